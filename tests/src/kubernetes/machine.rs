//! A machine of its own, as far as a kubelet can tell: namespaces of every kind, and a first process.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    cgroup::{self, Cgroup},
    netns::Namespace,
    process::{Daemon, read_lossy, run},
    wait::wait_for,
};

/// Set for the first process: the machine's name and directory.
const NAME: &str = "TWILL_MACHINE";
const DIRECTORY: &str = "TWILL_MACHINE_DIRECTORY";

const START: Duration = Duration::from_secs(20);

/// Where the files of the test stay visible.
const LABS: &str = crate::sandbox::LABS;

/// Directories whose changes are the machine's own. What stands in them outside can be read.
const LAYERED: [&str; 3] = ["/etc", "/opt", "/var"];

/// Places that no file system in layers can be, since containers' layers lie there, or that have to last.
const OWN: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];

/// What a kubelet and kube-proxy want to set for the whole machine: each node has a file instead.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A machine that runs until this is dropped, which is as if its power were cut.
#[derive(Debug)]
pub(super) struct Machine {
    // In this order they are dropped: the group is empty then.
    init: Daemon,
    group: Cgroup,
    namespace: Namespace,
    directory: PathBuf,
    /// The first process.
    pid: u32,
}

impl Machine {
    /// Starts one in a network namespace; its files go below `directory`, on the sandbox's tmpfs.
    pub(super) fn start(name: &str, namespace: Namespace, directory: &Path) -> Result<Self> {
        for own in ["layers", "own", "settings", "log"] {
            fs::create_dir_all(directory.join(own))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let group = Cgroup::create(name)?;
        let mut command = shell(&group.enter()?, "unshare");
        let kinds = ["--mount", "--uts", "--ipc", "--pid", "--cgroup"];
        command.args(kinds).args(["--fork", "--kill-child", "--mount-proc", "--"]);
        command.arg(env::current_exe().context("cannot find my own program file")?);
        command.env(NAME, name).env(DIRECTORY, directory);
        let log = directory.join("machine.log");
        let mut init = Daemon::start(name, &namespace, &mut command, &log)?;
        let ready = directory.join("ready");
        wait_for(&format!("the first process of {name}"), START, || {
            match init.alive() {
                Ok(()) => ensure!(ready.is_file(), "it is not ready"),
                Err(error) => return Ok(Err(error)),
            }
            Ok(Ok(()))
        })??;
        group.delegate()?;
        let pid = child_of(init.pid())?;
        Ok(Self { init, group, namespace, directory: directory.to_owned(), pid })
    }

    /// Its network namespace.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A program inside.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = shell(&self.group.join()?, "nsenter");
        let kinds = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"];
        command.args(["--target", &self.pid.to_string()]).args(kinds);
        command.arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// Runs a program inside to its end.
    pub(super) fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        run(self.command(program)?.args(arguments))
    }

    /// Starts a program inside that goes on.
    pub(super) fn service(&self, name: &str, command: &mut Command) -> Result<Service> {
        let daemon = Daemon::start(name, &self.namespace, command, &self.log_of(name))?;
        Ok(Service { daemon })
    }

    /// What the programs of this name wrote so far.
    pub(super) fn log(&self, name: &str) -> String {
        read_lossy(&self.log_of(name))
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    /// Where a path inside is for a process outside.
    pub(super) fn outside(&self, path: &Path) -> PathBuf {
        // The link from /var/run leads to /run, of whoever follows it.
        let run = path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest));
        let path = run.unwrap_or_else(|_| path.to_owned());
        let path = path.strip_prefix("/").unwrap_or(&path);
        Path::new(&format!("/proc/{}/root", self.pid)).join(path)
    }

    /// Fails if its first process has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        self.init.alive()
    }
}

/// A program of a machine.
#[derive(Debug)]
pub(super) struct Service {
    /// `nsenter`, which waits for the program.
    daemon: Daemon,
}

impl Service {
    /// Kills the program, and waits for its end.
    pub(super) fn kill(mut self, signal: Signal) -> Result<()> {
        let pid = child_of(self.daemon.pid())?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).context("cannot kill a program")?;
        self.daemon.wait(START).map(drop)
    }

    /// Fails, with the end of its log, if it has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        self.daemon.alive()
    }
}

/// A shell that runs these lines and then becomes the program.
fn shell(lines: &str, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(format!("{lines}exec {program} \"$@\"")).arg("sh");
    command
}

/// The one child of a process.
fn child_of(pid: u32) -> Result<u32> {
    wait_for("a program to start", START, || {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let child = text.split_whitespace().next().context("it has no child")?;
        child.parse().with_context(|| format!("{path} says {text:?}"))
    })
}

/// Makes the rest of this process the first one of a machine, if that is what it was started for. To be
/// called first in `main`.
pub fn enter() -> Option<ExitCode> {
    let (name, directory) = (env::var(NAME).ok()?, env::var_os(DIRECTORY)?);
    match init(&name, Path::new(&directory)) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn init(name: &str, directory: &Path) -> Result<()> {
    // Before there is anything that ends.
    let children: SigSet = [Signal::SIGCHLD].into_iter().collect();
    children.thread_block().context("cannot block signals")?;
    fs::write("/proc/sys/kernel/hostname", name).context("cannot set the host name")?;
    furnish(directory)?;
    fs::write(directory.join("ready"), "").context("cannot say that the machine is ready")?;
    loop {
        // Whoever lost its parent is ours to reap.
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
        children.wait().context("cannot wait for signals")?;
    }
}

fn furnish(directory: &Path) -> Result<()> {
    let none = MsFlags::empty();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot keep mounts private")?;
    let hierarchies = cgroup::hierarchies()?;
    attach("sysfs", "/sys", "sysfs", none, "")?;
    groups(hierarchies)?;
    for layered in LAYERED {
        let name = layered.trim_start_matches('/');
        let (upper, work) =
            (directory.join("layers").join(name), directory.join("layers/work").join(name));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options =
            format!("lowerdir={layered},upperdir={},workdir={}", upper.display(), work.display());
        attach("overlay", layered, "overlay", none, &options)?;
    }
    for own in OWN {
        let source = directory.join("own").join(own.trim_start_matches('/'));
        fs::create_dir_all(&source)?;
        fs::create_dir_all(own)?;
        bind(&source, own)?;
    }
    // A /run of its own, in which the files of the test stay where they are.
    bind(Path::new(LABS), "/mnt")?;
    attach("tmpfs", "/run", "tmpfs", none, "mode=755")?;
    for made in [LABS, "/run/netns", "/run/lock"] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {made}"))?;
    }
    mount(Some("/mnt"), LABS, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the test's files")?;
    for (key, value) in SETTINGS {
        let file = directory.join("settings").join(key.replace('/', "_"));
        fs::write(&file, format!("{value}\n"))?;
        bind(&file, &format!("/proc/sys/{key}"))?;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("cannot share mounts")
}

/// Hierarchies whose roots are the machine's own groups.
fn groups(hierarchies: Vec<(PathBuf, String)>) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if hierarchies.iter().any(|(at, _)| at == root) {
        return attach("cgroup2", "/sys/fs/cgroup", "cgroup2", MsFlags::empty(), "");
    }
    attach("tmpfs", "/sys/fs/cgroup", "tmpfs", MsFlags::empty(), "mode=755")?;
    for (at, controllers) in hierarchies {
        fs::create_dir_all(&at)?;
        let at = at.to_string_lossy();
        let (kind, options) = match controllers.as_str() {
            "" => ("cgroup2", String::new()),
            named if named.starts_with("name=") => ("cgroup", format!("none,{named}")),
            controllers => ("cgroup", controllers.to_owned()),
        };
        attach("cgroup", &at, kind, MsFlags::empty(), &options)?;
    }
    Ok(())
}

fn attach(source: &str, at: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), at, Some(kind), flags, Some(options))
        .with_context(|| format!("cannot mount {kind} ({options}) at {at}"))
}

fn bind(source: &Path, at: &str) -> Result<()> {
    mount(Some(source), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {at}", source.display()))
}
