//! DELs that found no daemon.
//!
//! The plugin leaves a tombstone for each under a shared lock, after it has tried the socket once
//! more. The daemon holds the lock alone from reading the spool until it listens, so none is left
//! between the two; and it looks again now and then, for those that could not have the lock (a
//! daemon hung) or whose release could not be stored.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use nix::fcntl::Flock;
use tokio::task::block_in_place;
use tracing::{info, warn};
use twill_ipam_store::{
    SPOOL_LOCK, Service, lock_alone, names_any, private_directory, private_file,
    release_tombstones, spool, tombstone_prefix,
};
use twill_types::AttachmentId;

use crate::reaper::Parked;

/// Interval at which a running daemon looks for tombstones.
const LOOK: Duration = Duration::from_secs(5);

/// The spool, locked against those who write to it.
pub(crate) struct Spool {
    directory: PathBuf,
    /// `None` if another process did not let go of it.
    lock: Option<Flock<File>>,
}

impl Spool {
    /// Waits for those who write right now, at the most until `deadline`. A plugin that hangs on
    /// the lock must not keep the node without a daemon: what is written later is found by the
    /// watch.
    pub(crate) fn lock(run_dir: &Path, deadline: Instant) -> io::Result<Self> {
        let directory = spool(run_dir);
        private_directory(&directory)?;
        let path = directory.join(SPOOL_LOCK);
        let lock = lock_alone(private_file(&path)?, deadline)?.ok();
        if lock.is_none() {
            warn!(
                lock = %path.display(),
                "another process does not let go of the spool's lock; going on without it: find \
                 and end that process (lslocks, fuser)"
            );
        }
        Ok(Self { directory, lock })
    }

    /// Releases what the tombstones name, and removes them. What a killed plugin has begun to
    /// write goes as well: while the lock is held, nobody is writing who has waited for it.
    pub(crate) fn drain(&self, service: &Service) -> io::Result<usize> {
        if self.lock.is_some() {
            self.sweep()?;
        }
        release_tombstones(&self.directory, service, "", |_| false)
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".")
                && name != SPOOL_LOCK
                && let Err(error) = fs::remove_file(entry.path())
            {
                warn!(file = %entry.path().display(), %error, "left in the spool");
            }
        }
        Ok(())
    }
}

/// The tombstones that come while the daemon runs.
pub(crate) struct Tombstones {
    directory: PathBuf,
    service: Arc<Service>,
    parked: Arc<Parked>,
    /// Held while they are worked off: an ADD must not come between the reading of a tombstone and
    /// its release.
    working: Mutex<()>,
    /// When the spool was last changed, if it was empty then and has not changed for a while: each
    /// ADD looks, and a look at one time is faster than one at all names.
    quiet: Mutex<Option<SystemTime>>,
}

/// Two changes in so short a time may have the same one.
const TICK: Duration = Duration::from_millis(50);

impl Tombstones {
    /// Those of this run directory.
    pub(crate) fn new(run_dir: &Path, service: Arc<Service>, parked: Arc<Parked>) -> Self {
        Self {
            directory: spool(run_dir),
            service,
            parked,
            working: Mutex::default(),
            quiet: Mutex::default(),
        }
    }

    /// Looks for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.release_and_reap("") {
                Ok(0) => {}
                Ok(count) => info!(count, "released what the spool named"),
                Err(error) => warn!(%error, "cannot read the spool"),
            }
        }
    }

    /// Works off what DELs of an attachment have left, before it is given anything: it would get
    /// what it had, and lose it to the tombstone a moment later.
    ///
    /// # Errors
    /// The spool cannot be read, or one of them is still there.
    pub(crate) fn settle(&self, attachment: &AttachmentId) -> io::Result<()> {
        if self.is_quiet()? {
            return Ok(());
        }
        let prefix = tombstone_prefix(attachment);
        // A tombstone is removed when it is done, so there is nothing to wait for without one.
        if !names_any(&self.directory, &prefix)? {
            return Ok(());
        }
        self.release_and_reap(&prefix)?;
        match names_any(&self.directory, &prefix)? {
            true => Err(io::Error::other("a DEL before is not done yet, and would take it away")),
            false => Ok(()),
        }
    }

    /// Why every ADD is refused, as long as the spool cannot be read.
    pub(crate) fn failure(&self) -> Option<String> {
        let read = || Ok(self.is_quiet()? || names_any(&self.directory, "")?);
        let error: io::Error = read().err()?;
        let remedy = match error.kind() {
            io::ErrorKind::NotADirectory => "; move away what is at that path",
            _ => "",
        };
        Some(format!(
            "the spool {} cannot be read ({error}), so every ADD fails with code 11{remedy}",
            self.directory.display()
        ))
    }

    /// Whether there is certainly no tombstone.
    fn is_quiet(&self) -> io::Result<bool> {
        let changed = match fs::metadata(&self.directory) {
            Ok(metadata) => metadata.modified()?,
            // Who has removed it has removed what was in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        if *quiet == Some(changed) {
            return Ok(true);
        }
        let is_old = SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICK);
        *quiet = (is_old && !names_any(&self.directory, "")?).then_some(changed);
        Ok(quiet.is_some())
    }

    fn release_and_reap(&self, prefix: &str) -> io::Result<usize> {
        block_in_place(|| {
            let _working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
            if !names_any(&self.directory, prefix)? {
                return Ok(0);
            }
            let stays = |_: &_| {
                // A tombstone does not say which link it was.
                self.parked.note_any();
                false
            };
            let done = release_tombstones(&self.directory, &self.service, prefix, stays)?;
            if done > 0 {
                self.parked.reap();
            }
            Ok(done)
        })
    }
}
