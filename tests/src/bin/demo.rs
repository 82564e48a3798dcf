//! `twill-demo`: the main job in a terminal, see [`twill_tests::demo`].

use std::process::ExitCode;

use twill_tests::{demo, sandbox};

fn main() -> anyhow::Result<ExitCode> {
    sandbox::enter()?;
    Ok(demo::run())
}
