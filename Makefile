# The verbs of Twill. `make help` lists them; CONTRIBUTING.md says when to use which.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# The plugin is linked statically, so that it runs on any host. The target has to be named, or the
# flag would reach build scripts and procedural macros too.
ARCH := $(shell uname -m)
PLUGIN_TARGET ?= $(ARCH)-unknown-linux-musl
PLUGIN := $(TARGET_DIR)/$(PLUGIN_TARGET)/plugin/twill
# A link to its directory, wherever it was built for: what README installs from.
SHIPPED := $(TARGET_DIR)/shipped

# What `make bench` does; BENCH="--rounds 1 --pods 16 --together 16 --crowd 0" is over in seconds.
BENCH ?= --crowd 5000 --out bench/results

# Where `make test-storm` writes what it did.
STORM_LOG ?= bench/results/storm.log

# What `make bench-bgp` does; `BENCH_BGP=--short` is over in half a minute.
BENCH_BGP ?= --out bench/results

# What `make bench-cluster` does; BENCH_CLUSTER="--rounds 1 --pods 8 --idle 0" is over in a minute.
BENCH_CLUSTER ?= --out bench/results

.DEFAULT_GOAL := help
.PHONY: help demo test test-pure test-kernel test-runtimes test-kubernetes test-crash test-storm test-kill test-outage soak simulate fuzz bench bench-bgp bench-cluster bench-rib scale build plugin lint fmt crds manifest tidy deny ci clean tools tools-demo

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: tools-demo build ## nodes, a ToR, pods and pings, in namespaces of their own (root)
	@$(TARGET_DIR)/debug/twill-demo

test: tools build ## pure crates, doctests, kernel suites; not runtimes, kubernetes, cluster (root)
	$(CARGO) test --locked --workspace --no-fail-fast

test-pure: ## unit tests and doctests: no root, no tools
	$(CARGO) test --locked --workspace --lib --bins --no-fail-fast
	$(CARGO) test --locked --workspace --doc --no-fail-fast

test-kernel: tools build ## the suites in network namespaces alone (root)
	$(CARGO) test --locked --workspace --test kernel

test-crash: tools build ## the plugin killed at every one of its system calls (root; minutes)
	TWILL_CRASH_ALL=1 TWILL_TEST_LIMIT=900 \
	    $(CARGO) test --locked --package twill-tests --test kernel -- crash::

test-storm: tools build ## thousands of ADDs and DELs, plugins and daemon killed at random, into bench/results/storm.log (root; minutes)
	@echo "$$(date -u +%F) at $$(git describe --always --dirty --abbrev=7), Linux $$(uname -r)" >$(STORM_LOG)
	TWILL_RECORD=$(abspath $(STORM_LOG)) TWILL_STORM_OPERATIONS=$(or $(OPERATIONS),2000) TWILL_TEST_LIMIT=900 \
	    $(CARGO) test --locked --package twill-tests --test kernel -- storm::a_storm
	TWILL_RECORD=$(abspath $(STORM_LOG)) TWILL_STORM_OPERATIONS=$(or $(STEPS),200) TWILL_TEST_LIMIT=900 \
	    $(CARGO) test --locked --package twill-tests --test kernel -- claims_storm::

test-kill: ## the store's process killed, and its files damaged, 500 times
	TWILL_KILL_ROUNDS=$(or $(ROUNDS),500) \
	    $(CARGO) test --locked --package twill-ipam-store --test kill -- --nocapture

soak: ## 50 million damaged BGP messages, 50,000 streams for each of the speaker's targets (MESSAGES=, STREAMS=, SEED=), into bgp-proto/soak/ (minutes)
	@bgp-proto/soak/run $(or $(MESSAGES),50000000) $(or $(STREAMS),50000) $(or $(SEED),$$(date +%s))

simulate: ## 10,000 networks of speakers in virtual time (NETWORKS=, SEED=) (minutes)
	TWILL_SIMULATIONS=$(or $(NETWORKS),10000) TWILL_SEED=$(or $(SEED),$$(date +%s)) \
	    $(CARGO) test --locked --release --package twill-bgp-proto --lib -- any_network --nocapture

fuzz: ## the fuzz targets of the codec and the speaker, SECONDS_EACH (60) seconds each; needs `cargo install cargo-fuzz --locked`
	@fuzz/run $(or $(SECONDS_EACH),60)

test-runtimes: build ## cnitool, chains of plugins, podman, containerd (root, Go)
	@hack/install-tools runtimes
	@hack/build-go-tools cni crictl containerd
	$(CARGO) test --locked --package twill-tests --test runtimes

test-kubernetes: tools build ## CRDs and node daemons on a real API server; a whole cluster (root, Go)
	@hack/install-tools kubernetes
	@hack/build-go-tools kubernetes containerd helm cni
	$(CARGO) test --locked --no-fail-fast --package twill-tests --test kubernetes --test cluster

test-outage: build ## the API server away for OUTAGE (300) seconds under pods that come and go on a cluster (root, Go)
	TWILL_OUTAGE_SECONDS=$(or $(OUTAGE),300) \
	    $(CARGO) test --locked --package twill-tests --test cluster -- restarts::pods_come_and_go

bench: tools plugin ## ADD and DEL beside ptp + host-local (Debian's, and the newest where Go is), steps of an ADD, addresses alone, into bench/results/ (root)
	$(CARGO) build --locked --release --bin twilld --bin twillctl --bin twill-bench
	$(CARGO) build --locked --release --package twill-ipam-store --example committer
	@hack/build-go-tools cni || echo "bench: beside Debian's reference plugins alone" >&2
	$(TARGET_DIR)/release/twill-bench --plugin $(PLUGIN) $(BENCH) \
	    $$(if [ -x .tools/go/cni/ptp ]; then echo '--reference newest=$(CURDIR)/.tools/go/cni'; fi)

bench-bgp: tools ## the speaker beside BIRD, FRR and OpenBGPD, into bench/results/ (root; an hour)
	$(CARGO) build --locked --release --bin twilld --bin twillctl --bin twill-bench-bgp
	$(TARGET_DIR)/release/twill-bench-bgp $(BENCH_BGP)

bench-cluster: tools plugin ## ADD on a real cluster: containerd's metric, each execution, whole sandboxes, into bench/results/ (root, Go; ten minutes)
	@hack/install-tools kubernetes
	@hack/build-go-tools kubernetes containerd
	$(CARGO) build --locked --release --bin twilld --bin twillctl --bin twill-bench-cluster --bin twill-bench-timed
	$(TARGET_DIR)/release/twill-bench-cluster --plugin $(PLUGIN) $(BENCH_CLUSTER)

bench-rib: ## time and memory of the speaker's tables, without a network
	$(CARGO) run --locked --release --bin twill-bench-rib -- $(BENCH_RIB)

scale: tools ## what NODES (1000) nodes ask of the API server, into bench/results/ (SCALE="--mesh") (root, Go; an hour)
	@hack/install-tools kubernetes
	@hack/build-go-tools kubernetes
	$(CARGO) build --locked --release --bin twilld --bin twill-bench-scale
	$(TARGET_DIR)/release/twill-bench-scale --nodes $(or $(NODES),1000) $(or $(SCALE),--out bench/results)

build: ## all programs, for demo and tests
	$(CARGO) build --locked --workspace --bins
	@ln -sf twill $(TARGET_DIR)/debug/twill-ipam

plugin: ## the CNI plugin as it is shipped: small and static, in target/shipped/
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(PLUGIN_TARGET)/lib" ] || rustup target add $(PLUGIN_TARGET)
	RUSTFLAGS='-C relocation-model=static --cfg sha2_backend="soft"' $(CARGO) build --locked \
	    --package twill-cni-plugin --profile plugin --target $(PLUGIN_TARGET)
	@ln -sfn twill $(dir $(PLUGIN))twill-ipam
	@ln -sfn $(PLUGIN_TARGET)/plugin $(SHIPPED)

lint: ## clippy, warnings denied
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --package twill-tests --test runtimes --test kubernetes --test cluster -- -D warnings

fmt: ## format
	$(CARGO) fmt --all

crds: ## conf/crds/, from the types of k8s-api
	$(CARGO) xtask crds

manifest: ## conf/install/twill.yaml and the Helm chart, from the rest of conf/
	$(CARGO) xtask install

tidy: ## the structure rules
	$(CARGO) xtask tidy

deny: ## bans, licences and sources of all dependencies
	PATH="$(CURDIR)/.tools/bin:$$PATH" cargo-deny --locked check bans licenses sources

ci: ## what has to be green before a commit
	.ci/run

clean: ## build output
	$(CARGO) clean

tools: # what the programs and tests call; installs nothing a second time
	@hack/install-tools

tools-demo: # what the demo calls
	@hack/install-tools demo
