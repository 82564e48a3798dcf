//! Tombstones: what a DEL leaves for a daemon that does not run.
//!
//! The daemon holds the spool's lock exclusively from the moment it reads the spool until it
//! listens, and watches the spool while it runs. So a DEL that holds the lock shared and finds
//! nobody listening knows that its tombstone will be read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use twill_ipam_store::{SPOOL_LOCK, private_directory, private_file, spool, tombstone_name};
use twill_rpc::message::ReleaseRequest;

use crate::deadline::Deadline;

/// How often a lock that the daemon holds is tried.
const PAUSE: Duration = Duration::from_millis(5);

/// A tombstone could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the spool {}", path.display())]
pub(crate) struct SpoolError {
    path: PathBuf,
    source: io::Error,
}

/// The spool, with its lock held as far as it could be had.
pub(crate) struct Spool {
    directory: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Spool {
    /// Waits for the lock until the deadline. A daemon that holds it longer hangs; a tombstone
    /// without the lock is read by its watch, or by the next daemon.
    pub(crate) fn open(run_dir: &Path, deadline: Deadline) -> Result<Self, SpoolError> {
        let directory = spool(run_dir);
        let failed = |source| SpoolError { path: directory.clone(), source };
        private_directory(&directory).map_err(failed)?;
        let mut file = private_file(&directory.join(SPOOL_LOCK)).map_err(failed)?;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(lock) => break Some(lock),
                Err((again, Errno::EWOULDBLOCK)) if !deadline.left().is_zero() => {
                    file = again;
                    std::thread::sleep(PAUSE.min(deadline.left()));
                }
                Err(_) => break None,
            }
        };
        Ok(Self { directory, _lock: lock })
    }

    /// Writes a tombstone. It is there whole or not at all, and a repeated DEL writes the same.
    pub(crate) fn bury(&self, release: &ReleaseRequest) -> Result<(), SpoolError> {
        let name = tombstone_name(release);
        let path = self.directory.join(&name);
        let temporary = self.directory.join(format!(".{name}.{}", std::process::id()));
        let written = (|| {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(release)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        })();
        written.map_err(|source| {
            // What is left of it would stay for ever; if it cannot go, the first error counts.
            let _ = fs::remove_file(&temporary);
            SpoolError { path, source }
        })
    }
}

#[cfg(test)]
mod tests {
    use twill_types::AttachmentId;

    use super::*;

    fn release(sequence: Option<u64>) -> ReleaseRequest {
        of_namespace(sequence, None)
    }

    fn of_namespace(sequence: Option<u64>, netns_cookie: Option<u64>) -> ReleaseRequest {
        let attachment = AttachmentId {
            network: "net".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        };
        ReleaseRequest { attachment, sequence, netns_cookie }
    }

    fn tombstones(run_dir: &Path) -> Vec<ReleaseRequest> {
        let mut paths: Vec<_> = fs::read_dir(run_dir.join("spool"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.sort();
        paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    #[test]
    fn a_repeated_del_leaves_one_tombstone() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        for release in [release(Some(3)), release(Some(3)), release(None)] {
            let spool = Spool::open(&run_dir, Deadline::after(Duration::from_secs(5))).unwrap();
            spool.bury(&release).unwrap();
        }
        assert_eq!(tombstones(&run_dir), [release(Some(3)), release(None)]);
        assert_eq!(fs::read_dir(run_dir.join("spool")).unwrap().count(), 3, "lock and tombstones");
    }

    /// The address may be held for either of two namespaces.
    #[test]
    fn dels_of_different_namespaces_leave_one_each() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), Deadline::after(Duration::from_secs(5))).unwrap();
        let all = [
            of_namespace(Some(4), None),
            of_namespace(None, Some(4)),
            of_namespace(None, Some(5)),
            of_namespace(None, None),
        ];
        for release in all.iter().chain(&all) {
            spool.bury(release).unwrap();
        }
        let left = tombstones(directory.path());
        assert!(all.iter().all(|release| left.contains(release)), "{left:?}");
        assert_eq!(left.len(), all.len());
    }

    #[test]
    fn a_daemon_that_hangs_on_the_lock_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Spool::open(directory.path(), Deadline::after(Duration::from_millis(20)));
        drop(open().unwrap());
        let file = File::open(directory.path().join("spool/.lock")).unwrap();
        let daemon = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        open().unwrap().bury(&release(None)).unwrap();
        assert_eq!(tombstones(directory.path()), [release(None)]);
        drop(daemon);
    }

    #[test]
    fn two_dels_share_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let deadline = Deadline::after(Duration::from_secs(5));
        let one = Spool::open(directory.path(), deadline).unwrap();
        let two = Spool::open(directory.path(), deadline).unwrap();
        assert!(one._lock.is_some() && two._lock.is_some());
    }
}
