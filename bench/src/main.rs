//! `twill-bench`: ADD and DEL of Twill beside the reference plugins and the floor.

fn main() -> anyhow::Result<()> {
    twill_tests::sandbox::enter()?;
    twill_bench::run()
}
