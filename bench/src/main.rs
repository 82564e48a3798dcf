//! `twill-bench`: ADD and DEL of Twill beside the reference plugins and the floor.

fn main() -> anyhow::Result<()> {
    twill_bench::serve_if_asked()?;
    twill_tests::sandbox::enter()?;
    twill_bench::run()
}
