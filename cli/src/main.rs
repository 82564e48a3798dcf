//! `twillctl`: see [`twill_cli`].

use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    let cli = match twill_cli::Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    match twill_cli::run(&cli, &mut out, &mut err) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr itself is gone.
            let _ = writeln!(err, "twillctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
