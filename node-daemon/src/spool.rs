//! DELs that found no daemon.
//!
//! The plugin leaves a tombstone for each under a shared lock, after it has tried the socket once
//! more. The daemon holds the lock alone from reading the spool until it listens, so none is left
//! between the two; and it looks again now and then, for those that could not have the lock.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;
use tracing::{info, warn};
use twill_ipam_store::Service;
use twill_rpc::message::ReleaseRequest;

use crate::server::chain;

/// The file that is locked.
const LOCK: &str = ".lock";

/// How often a running daemon looks.
const LOOK: Duration = Duration::from_secs(5);

/// The spool, locked against those who write to it.
pub(crate) struct Spool {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Spool {
    /// Waits for those who write right now.
    pub(crate) fn lock(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join("spool");
        fs::create_dir_all(&directory)?;
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(directory.join(LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        Ok(Self { directory, _lock: lock })
    }

    /// Releases what the tombstones name, and removes them. What a killed plugin has begun to
    /// write goes as well: while the lock is held, nobody is writing who has waited for it.
    pub(crate) fn drain(&self, service: &Service) -> io::Result<usize> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".")
                && name != LOCK
                && let Err(error) = fs::remove_file(entry.path())
            {
                warn!(file = %entry.path().display(), %error, "left in the spool");
            }
        }
        drain(&self.directory, service)
    }
}

fn drain(directory: &Path, service: &Service) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // What begins with a dot is the lock, or is still being written.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match release(&path, service) {
            Ok(()) => {
                fs::remove_file(&path)?;
                count += 1;
            }
            Err(error) => warn!(tombstone = %path.display(), error, "left in the spool"),
        }
    }
    Ok(count)
}

fn release(path: &Path, service: &Service) -> Result<(), String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let request: ReleaseRequest =
        serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let request = crate::ipam::release_request(request);
    service.release(request).map(drop).map_err(|error| chain(&error))
}

/// Looks for tombstones for ever.
pub(crate) async fn watch(run_dir: PathBuf, service: Arc<Service>, released: Arc<Notify>) {
    let directory = run_dir.join("spool");
    loop {
        tokio::time::sleep(LOOK).await;
        match tokio::task::block_in_place(|| drain(&directory, &service)) {
            Ok(0) => {}
            Ok(count) => {
                info!(count, "released what the spool named");
                released.notify_one();
            }
            Err(error) => warn!(%error, "cannot read the spool"),
        }
    }
}
