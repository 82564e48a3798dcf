# The image of the node daemon, with the plugin that it installs: programs that are linked statically, and
# nothing else. hack/image-root and conf/image/files say what is in it.
#
#   docker build -t localhost/twill:0.1.0 .
#
# The release of Rust is the workspace's rust-version.
ARG RUST=1.95
FROM rust:${RUST}-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make musl-tools \
 && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /build
COPY . .
# The plugin by its own profile. The daemon against glibc: its allocator keeps up with many threads.
RUN make plugin \
 && target="$(uname -m)-unknown-linux-gnu" \
 && RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --target "$target" \
        --package twill-node-daemon --package twill-cli \
 && hack/image-root /image "target/$(uname -m)-unknown-linux-musl/plugin" "target/$target/release"

FROM scratch
COPY --from=build /image/ /
ENTRYPOINT ["/usr/bin/twilld"]
