//! `twill-bench-bgp`: the speaker beside BIRD, FRR and OpenBGPD.

fn main() -> anyhow::Result<()> {
    if let Some(ended) = twill_bench::bgp::bare_speaker() {
        return ended;
    }
    twill_tests::sandbox::enter()?;
    twill_bench::bgp::run()
}
