//! `twill-bench-scale`: what a large cluster costs its API server.

fn main() -> anyhow::Result<()> {
    twill_bench::scale::main()
}
