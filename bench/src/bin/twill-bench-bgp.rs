//! `twill-bench-bgp`: the speaker beside BIRD, FRR and OpenBGPD.

fn main() -> anyhow::Result<()> {
    twill_tests::sandbox::enter()?;
    twill_bench::bgp::run()
}
