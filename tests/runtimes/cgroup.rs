//! A control group for the containers of one test.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use twill_tests::wait::wait_for;

/// A name below the root of each hierarchy, removed with everything below it when this is dropped.
/// Groups are no namespace's, so the sandbox does not end them.
pub(crate) struct Cgroup(String);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        // Process numbers are the sandbox's own, so the clock keeps two apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(format!("twill-{name}-{:x}", now.unwrap_or_default().as_nanos()))
    }

    pub(crate) fn path(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
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
