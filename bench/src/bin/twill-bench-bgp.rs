//! `twill-bench-bgp`: the speaker beside BIRD and FRR.

fn main() -> anyhow::Result<()> {
    twill_tests::sandbox::enter()?;
    twill_bench::bgp::run()
}
