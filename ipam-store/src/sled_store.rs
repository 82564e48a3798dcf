use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tracing::warn;
use twill_sys::sched::first_in_line;

use crate::{Entry, Store, StoreError, Write};

/// How long the library may hold on to a handle that was dropped.
const LET_GO: Duration = Duration::from_secs(2);

/// The store on sled 0.34.
///
/// On Linux its `flush` calls `sync_file_range` only: safe against a crash of the process, not
/// against a power cut. On a tmpfs nothing survives one anyway; elsewhere the file is synced, too.
#[derive(Debug)]
pub struct SledStore {
    directory: PathBuf,
    /// `None` only between dropping and reopening.
    db: Option<sled::Db>,
    /// The database file, where it has to be synced.
    sync: Option<File>,
}

impl SledStore {
    /// Opens, or makes, the database in a directory.
    ///
    /// # Errors
    /// Another process has it open, the directory cannot be used, or the database is damaged.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let mut store = Self { directory: directory.to_owned(), db: None, sync: None };
        store.reopen()?;
        if store.sync.is_some() {
            warn!(
                directory = %directory.display(),
                "the store is not on a tmpfs: every write waits for the disk"
            );
        }
        Ok(store)
    }

    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().ok_or(StoreError::Stopped)
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        let db = self.db()?;
        let path = &self.directory;
        guarded("read", || {
            db.iter()
                .map(|entry| {
                    let (key, value) =
                        entry.map_err(|source| StoreError::Open { path: path.clone(), source })?;
                    Ok((key.to_vec(), value.to_vec()))
                })
                .collect()
        })
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        let db = self.db()?;
        guarded("wrote", || {
            let mut sled_batch = sled::Batch::default();
            for (key, value) in batch {
                match value {
                    Some(value) => sled_batch.insert(key.as_slice(), value.as_slice()),
                    None => sled_batch.remove(key.as_slice()),
                }
            }
            db.apply_batch(sled_batch).map_err(StoreError::Write)?;
            // Never `flush_async`: it can wait for itself.
            db.flush().map_err(StoreError::Write)?;
            Ok(())
        })?;
        match &self.sync {
            Some(file) => file
                .sync_data()
                .map_err(|source| StoreError::Sync { path: self.directory.clone(), source }),
            None => Ok(()),
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        // sled holds a lock of its own, so the old handle goes first.
        self.db = None;
        let io = |source| StoreError::Directory { path: self.directory.clone(), source };
        std::fs::create_dir_all(&self.directory).map_err(io)?;
        remove_half_snapshots(&self.directory).map_err(io)?;
        self.db = Some(open(&self.directory)?);
        let file_system = statfs(&self.directory).map_err(|errno| io(errno.into()))?;
        self.sync = if file_system.filesystem_type() == TMPFS_MAGIC {
            None
        } else {
            Some(File::open(self.directory.join("db")).map_err(io)?)
        };
        Ok(())
    }

    fn waits_for_disk(&self) -> bool {
        self.sync.is_some()
    }
}

/// Opens the database. A handle that this process has just dropped lives on for a moment in a
/// thread of the library, which holds its lock until then; other processes are kept away by the
/// [`crate::OwnerLock`].
fn open(directory: &Path) -> Result<sled::Db, StoreError> {
    let until = Instant::now() + LET_GO;
    loop {
        // The library's threads spin until the one that starts them is done with all of them, and on
        // few processors they keep it from that for 20 ms.
        let opened = guarded("opened", || {
            first_in_line(|| sled_config(directory).open())
                .map_err(|source| StoreError::Open { path: directory.to_owned(), source })
        });
        match opened {
            Err(StoreError::Open { source: sled::Error::Io(error), .. })
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Removes the snapshots that a process was writing when it was killed. The library takes one for
/// the newest snapshot, and then the whole database for damaged; without it, it goes by the one
/// before, which it removes only when the new one has its final name.
fn remove_half_snapshots(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b"snap.") && name.ends_with(b".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sled_config(directory: &Path) -> sled::Config {
    sled::Config::default()
        .path(directory)
        // Its default of 1 GiB is for databases; this one has some kilobytes.
        .cache_capacity(16 * 1024 * 1024)
        // Every batch is flushed by us; a thread that does it as well costs a start.
        .flush_every_ms(None)
}

/// Runs code of the library, which panics on some kinds of damage.
fn guarded<T>(
    what: &'static str,
    act: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // Nothing of ours is changed inside; the handle is dropped after an error.
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(StoreError::Panic(what)))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::fcntl::{Flock, FlockArg};

    use super::*;

    #[test]
    fn a_snapshot_that_was_being_written_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let entries = vec![(b"key".to_vec(), b"value".to_vec())];
        let mut store = SledStore::open(&path).unwrap();
        store.commit(&[(b"key".to_vec(), Some(b"value".to_vec()))]).unwrap();
        drop(store);
        for content in ["", "the first half of one"] {
            std::fs::write(path.join("snap.00000000FFFFFFFF.generating"), content).unwrap();
            assert_eq!(SledStore::open(&path).unwrap().load().unwrap(), entries);
        }
    }

    #[test]
    fn a_database_that_is_being_closed_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        drop(SledStore::open(directory.path()).unwrap());
        let file = File::open(directory.path().join("db")).unwrap();
        let closing = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let closer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(closing);
        });
        SledStore::open(directory.path()).unwrap();
        closer.join().unwrap();
    }
}
