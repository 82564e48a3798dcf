//! A control group for the containers of one test, or for all of a machine.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::wait::wait_for;
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ROOT: &str = "/sys/fs/cgroup";

/// Controllers of the unified hierarchy that containers want.
const CONTROLLERS: &str = "+cpu +cpuset +io +memory +pids";

/// A name below the root of each hierarchy, removed with everything below it when this is dropped.
/// Groups are no namespace's, so the sandbox does not end them.
#[derive(Debug)]
pub struct Cgroup(String);

impl Cgroup {
    /// A name that nobody else has; a runtime makes the groups.
    pub fn new(name: &str) -> Self {
        // Process numbers are the sandbox's own, so the clock keeps two apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(format!("twill-{name}-{:x}", now.unwrap_or_default().as_nanos()))
    }

    /// The same with a group in each hierarchy that this process is in.
    pub fn create(name: &str) -> Result<Self> {
        let group = Self::new(name);
        for directory in group.directories()? {
            make(&directory)?;
        }
        Ok(group)
    }

    /// Its path below the root of each hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }

    /// Lines of a shell that put it into these groups, for a process that will be the root of a
    /// namespace of groups.
    pub fn enter(&self) -> Result<String> {
        Ok(lines(self.directories()?))
    }

    /// The same for any other process.
    pub fn join(&self) -> Result<String> {
        Ok(lines(self.leaves()?))
    }

    /// Lets what is inside have groups of its own with limits: in the unified hierarchy a group has
    /// either processes or that.
    pub fn delegate(&self) -> Result<()> {
        if !is_unified() {
            return Ok(());
        }
        for leaf in self.leaves()? {
            let group = leaf.parent().unwrap_or(&leaf);
            let processes = fs::read_to_string(group.join("cgroup.procs"))?;
            for pid in processes.lines() {
                fs::write(leaf.join("cgroup.procs"), pid)
                    .with_context(|| format!("cannot move process {pid} to {}", leaf.display()))?;
            }
            let control = group.join("cgroup.subtree_control");
            fs::write(&control, CONTROLLERS)
                .with_context(|| format!("cannot write to {}", control.display()))?;
        }
        Ok(())
    }

    /// Where its processes are: in the unified hierarchy one below, see [`Cgroup::delegate`].
    fn leaves(&self) -> Result<Vec<PathBuf>> {
        let mut directories = self.directories()?;
        if is_unified() {
            for directory in &mut directories {
                directory.push("init");
                make(directory)?;
            }
        }
        Ok(directories)
    }

    fn directories(&self) -> Result<Vec<PathBuf>> {
        if is_unified() {
            return Ok(vec![Path::new(ROOT).join(&self.0)]);
        }
        Ok(hierarchies()?.into_iter().map(|(directory, _)| directory.join(&self.0)).collect())
    }
}

fn lines(directories: Vec<PathBuf>) -> String {
    let line = |directory: PathBuf| format!("echo $$ >{}/cgroup.procs\n", directory.display());
    directories.into_iter().map(line).collect()
}

/// Whether there is no hierarchy but the unified one.
fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").is_file()
}

/// The hierarchies that are mounted: where, and by which option of mount (empty for the unified one).
pub fn hierarchies() -> Result<Vec<(PathBuf, String)>> {
    let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    // `4:memory:/path`, `9:name=systemd:/`, `0::/`
    let controllers = text.lines().filter_map(|line| line.split(':').nth(1));
    let place = |controllers: &str| {
        let name = match controllers {
            "" if is_unified() => "",
            "" => "unified",
            _ => controllers.trim_start_matches("name="),
        };
        (Path::new(ROOT).join(name), controllers.to_owned())
    };
    Ok(controllers.map(place).filter(|(directory, _)| directory.is_dir()).collect())
}

/// Makes a group. One with a say in processors takes none in before it has some.
fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the control group {}", directory.display()))?;
    let parent = directory.parent().unwrap_or(directory);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), directory.join(file));
        if to.is_file() && from.is_file() && !is_unified() {
            let value = fs::read_to_string(&from)?;
            fs::write(&to, value).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let root = Path::new(ROOT);
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let mut groups: Vec<PathBuf> =
            hierarchies.map(|hierarchy| hierarchy.path().join(&self.0)).collect();
        groups.push(root.join(&self.0));
        groups.retain(|group| group.is_dir());
        // A test that failed has left its containers.
        groups.iter().for_each(|group| end_processes(group));
        let gone = wait_for("the control groups to be empty", Duration::from_secs(10), || {
            groups.iter().for_each(|group| remove(group));
            let left: Vec<_> = groups.iter().filter(|group| group.is_dir()).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        });
        if let Err(error) = gone {
            // Nothing depends on it, but somebody should know.
            let _ = writeln!(io::stderr(), "{error:#}");
        }
    }
}

fn below(group: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

fn end_processes(group: &Path) {
    below(group).for_each(|group| end_processes(&group));
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes a group and those below it, as far as they are empty.
fn remove(group: &Path) {
    below(group).for_each(|group| remove(&group));
    let _ = fs::remove_dir(group);
}
