//! `twilld`, the node daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    twill_node_daemon::main()
}
