//! `twilld --role uninstall`: takes everything of Twill off the node, and ends.
//!
//! It is for a node whose daemon is gone for good and whose pods are, too: the next network begins on a node as
//! `--role install` found it, but for settings that any network needs. First the configuration goes, so
//! that a runtime calls the plugin no more; then the plugin; then what is in the kernel; the files last.
//! Every step may be repeated. What the API server has of the node stays: claims are the controller's to free.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::errno::Errno;
use twill_dataplane::{leave, pod::living_pods};
use twill_ipam_store::OwnerLock;

use crate::{
    config::Config,
    install::{IPAM_PLUGIN, PLUGIN, Places, beside, say},
};

/// How long a daemon that was told to end may take.
const DAEMON: Duration = Duration::from_secs(15);

/// Uninstalls, unless a daemon runs; with pods that live only if `force` says so.
pub(crate) fn run(config: &Path, places: &Places, force: bool) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    // Nobody adds or removes a pod meanwhile.
    let lock = config.run_dir.join("ipam/owner.lock");
    let lock = OwnerLock::acquire(&lock, "twilld --role uninstall", Instant::now() + DAEMON)
        .context("a daemon is on this node; delete its DaemonSet, or stop its service, first")?;
    let pods = living_pods().context("cannot list the pods' links")?;
    if !pods.is_empty() && !force {
        let name = |pod: &twill_types::LivingPod| {
            pod.pod.clone().unwrap_or_else(|| pod.attachment.container_id.clone())
        };
        let names: Vec<String> = pods.iter().take(3).map(name).collect();
        bail!(
            "{} pods have their network from Twill ({}{}): nothing was changed on this node. Drain it, or add \
             --force, which cuts them off",
            pods.len(),
            names.join(", "),
            if pods.len() > names.len() { ", ..." } else { "" }
        );
    }
    let conflist = places.conflist_from.file_name().context("--conflist-from is no file")?;
    let plugin = places.plugin_to.join(PLUGIN);
    let files = [places.conflist_to.join(conflist), places.plugin_to.join(IPAM_PLUGIN), plugin];
    for path in files {
        beside(&path)?;
        let removed = remove(&path)?;
        say(&format!("{} {}", path.display(), if removed { "removed" } else { "is not there" }));
    }
    let removed = leave::remove_all().context("cannot clear the kernel")?;
    say(&format!(
        "removed from the kernel: {} links of pods, {} nexthop objects, {} routes",
        removed.links, removed.objects, removed.routes
    ));
    empty(&config.state_dir)?;
    empty(&config.run_dir)?;
    drop(lock);
    Ok(())
}

/// Removes a file or a link; whether it was there.
fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Removes a directory with all that is in it. One that is mounted here stays, empty.
fn empty(directory: &Path) -> anyhow::Result<()> {
    let cannot = |path: &Path| format!("cannot remove {}", path.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| cannot(directory))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| cannot(directory))?;
        let path: PathBuf = entry.path();
        let is_directory = entry.file_type().with_context(|| cannot(&path))?.is_dir();
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| cannot(&path))?;
    }
    match fs::remove_dir(directory) {
        // A container's own file system, which it is mounted in, may be read-only.
        Err(error) if is_one_of(&error, &[Errno::EBUSY, Errno::EROFS]) => {}
        removed => removed.with_context(|| cannot(directory))?,
    }
    say(&format!("{} removed", directory.display()));
    Ok(())
}

fn is_one_of(error: &io::Error, errors: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|number| errors.contains(&Errno::from_raw(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_all_that_is_in_it_and_one_that_is_gone_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("run");
        fs::create_dir_all(directory.join("ipam/store")).unwrap();
        fs::write(directory.join("ipam/store/db"), "addresses").unwrap();
        fs::write(root.path().join("kept"), "").unwrap();
        std::os::unix::fs::symlink(root.path().join("kept"), directory.join("link")).unwrap();
        empty(&directory).unwrap();
        empty(&directory).unwrap();
        assert!(!directory.exists());
        assert!(root.path().join("kept").exists());
        assert!(!remove(&directory).unwrap());
        assert!(remove(&root.path().join("kept")).unwrap());
    }
}
