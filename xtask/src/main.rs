//! `cargo xtask`: see [`twill_xtask`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match twill_xtask::run(twill_xtask::Cli::parse(), &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            use std::io::Write;
            // Nothing is left to do when stderr itself is gone.
            let _ = writeln!(std::io::stderr(), "xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
