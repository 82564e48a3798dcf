//! The outer world of every demo, bench and kernel test: namespaces that die with their process.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
    unistd::{Pid, getpid, getppid, getuid},
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
/// with the same arguments as process 1 of the new namespaces; that one starts it once more and
/// looks after it. So whoever kills the process it knows, with SIGKILL too, ends everything
/// inside, and the exit status is the program's own. Inside, it mounts what the new world needs
/// and returns.
///
/// To be called first in `main`, before there are threads. Sandboxes nest: a caller that starts
/// another program of this kind takes `TWILL_SANDBOX` out of its environment (see [`nested`]).
pub fn enter() -> Result<()> {
    match env::var(INSIDE).as_deref() {
        Ok("init") if getpid().as_raw() == 1 => return init(),
        Ok("program") if getppid().as_raw() == 1 => return furnish(),
        _ => {}
    }
    ensure!(
        getuid().is_root(),
        "this needs root: it makes network namespaces (none of the machine's own interfaces is \
         touched). Run it again as root, for example with sudo"
    );
    let program = env::current_exe().context("cannot find my own program file")?;
    let error = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "init")
        .exec();
    bail!("cannot execute unshare (package util-linux): {error}")
}

/// A command that calls [`enter`] itself, and gets a sandbox inside this one.
pub fn nested(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_remove(INSIDE);
    command
}

/// The signals that end a sandbox.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Process 1: it has no default action for signals, so it reads them; and orphans are its to reap.
/// Its end is the end of all processes of the namespace.
fn init() -> Result<()> {
    let signals: SigSet = ENDING.into_iter().chain([Signal::SIGCHLD]).collect();
    signals.thread_block().context("cannot block signals")?;
    let read = SignalFd::new(&signals).context("cannot read signals")?;
    let program = env::current_exe().context("cannot find my own program file")?;
    let child = Command::new(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "program")
        .spawn()
        .context("cannot start myself again")?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        let info = read.read_signal().context("cannot read signals")?;
        let number = info.map_or(0, |info| i32::try_from(info.ssi_signo).unwrap_or_default());
        if number != Signal::SIGCHLD as i32 {
            // Nobody may be reading.
            let _ = writeln!(io::stderr(), "\ninterrupted: the kernel removes all that was made");
            process::exit(128 + number);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => process::exit(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                    process::exit(128 + signal as i32)
                }
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

/// Mounts of the new world, and its loopback.
fn furnish() -> Result<()> {
    // Programs inherit the mask: what is started from here on gets its signals as usual.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    tmpfs("/run")?;
    for dir in [netns::DIRECTORY, LABS] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    // libcni and the reference IPAM plugin keep their state there, podman its cache, FRR what it
    // says when it crashes, and no call may leave any behind.
    for directory in ["/var/lib/cni", "/var/lib/containers", "/var/tmp"] {
        if Path::new(directory).is_dir() {
            tmpfs(directory)?;
        }
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
