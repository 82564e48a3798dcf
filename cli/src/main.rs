//! `twillctl`: see [`twill_cli`].

use std::{io::Write, process::ExitCode};

use clap::Parser;

fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    match twill_cli::run(&twill_cli::Cli::parse(), &mut out, &mut err) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr itself is gone.
            let _ = writeln!(err, "twillctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
