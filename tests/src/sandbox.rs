//! The outer world of every demo, bench and kernel test: namespaces that die with their process.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
    unistd::{getpid, getuid},
};

use crate::{
    netns,
    process::{read_lossy, run, tail},
};

/// Set for the program that runs inside.
const INSIDE: &str = "TWILL_SANDBOX";

/// Where labs keep their files: on the sandbox's own tmpfs.
pub const LABS: &str = "/run/lab";

/// Makes the rest of this program run in a mount, network and process namespace of its own.
///
/// Outside, the calling process *becomes* `unshare` (by exec), which starts this program again
/// with the same arguments as process 1 of the new namespaces. So whoever kills the process it
/// knows, with SIGKILL too, ends everything inside, and the exit status is the program's own.
/// Inside, it mounts what the new world needs and returns.
///
/// To be called first in `main`, before there are threads. Sandboxes nest: a caller that starts
/// another program of this kind takes `TWILL_SANDBOX` out of its environment (see [`nested`]).
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() && getpid().as_raw() == 1 {
        return furnish();
    }
    ensure!(
        getuid().is_root(),
        "this needs root: it makes network namespaces (none of the machine's own interfaces is \
         touched). Run it again as root, for example with sudo"
    );
    let program = env::current_exe().context("cannot find my own program file")?;
    let error = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    bail!("cannot execute unshare (package util-linux): {error}")
}

/// A command that calls [`enter`] itself, and gets a sandbox inside this one.
pub fn nested(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_remove(INSIDE);
    command
}

/// Mounts of the new world, its loopback, and an end on Ctrl-C.
fn furnish() -> Result<()> {
    end_on_signals()?;
    tmpfs("/run")?;
    for dir in [netns::DIRECTORY, LABS] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    // The reference IPAM plugin keeps its addresses there, and no call may leave any behind.
    if Path::new("/var/lib/cni").is_dir() {
        tmpfs("/var/lib/cni")?;
    }
    run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

fn tmpfs(at: &str) -> Result<()> {
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )
    .with_context(|| format!("cannot mount a tmpfs on {at}"))
}

/// Process 1 of a namespace has no default action for signals, so it reads them itself. Its end
/// is the end of all processes of the namespace.
fn end_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Later threads inherit the mask; std gives started programs an empty one.
    signals.thread_block().context("cannot block signals")?;
    let read = SignalFd::new(&signals).context("cannot read signals")?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Ok(Some(info)) = read.read_signal() {
                // Written past the lock of std's handle, which a blocked writer may hold.
                if let Ok(mut terminal) = OpenOptions::new().write(true).open("/dev/stderr") {
                    let text = "\ninterrupted: the kernel removes all that was made\n";
                    let _ = terminal.write_all(text.as_bytes());
                }
                process::exit(128 + i32::try_from(info.ssi_signo).unwrap_or_default());
            }
        })?;
    Ok(())
}

/// The logs of all labs that are not empty: where they are, and their last lines.
pub fn logs(lines: usize) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from(LABS)];
    while let Some(dir) = directories.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                let end = tail(&read_lossy(&path), lines);
                found.push((path, end));
            }
        }
    }
    found.retain(|(_, end)| !end.is_empty());
    found.sort();
    found
}
