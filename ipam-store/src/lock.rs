use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use nix::fcntl::Flock;

use crate::private::{lock_alone, private_directory, private_file};

/// Who may open the store: a lock on a file of our own, taken before the database is touched and
/// held for life. Unlike the database's own lock it can be waited for, and it says who has it.
#[derive(Debug)]
pub struct OwnerLock {
    _file: Flock<File>,
}

/// How a daemon calls itself in the lock, before the name of its node.
const DAEMON: &str = "twilld of node";

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be made or opened.
    #[error("cannot open the lock {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Someone else has it.
    #[error("{} is held by {holder}; wait for it to end", path.display())]
    Held {
        /// Which.
        path: PathBuf,
        /// What the holder wrote of itself.
        holder: String,
    },
}

impl LockError {
    /// Whether a daemon has it, which keeps it for as long as it lives: nobody's turn comes.
    #[must_use]
    pub fn is_of_a_daemon(&self) -> bool {
        matches!(self, Self::Held { holder, .. } if holder.starts_with(DAEMON))
    }
}

impl OwnerLock {
    /// [`OwnerLock::acquire`] for the daemon of a node.
    ///
    /// # Errors
    /// As there.
    pub fn acquire_as_daemon(
        path: &Path,
        node: &str,
        deadline: Instant,
    ) -> Result<Self, LockError> {
        Self::acquire(path, &format!("{DAEMON} {node}"), deadline)
    }

    /// Takes the lock, waiting at the most until `deadline`. `role` is for whom it keeps out.
    ///
    /// # Errors
    /// The file cannot be used, or the lock is held by someone else all the time.
    pub fn acquire(path: &Path, role: &str, deadline: Instant) -> Result<Self, LockError> {
        let open = |source| LockError::Open { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            private_directory(directory).map_err(open)?;
        }
        let file = private_file(path).map_err(open)?;
        match lock_alone(file, deadline).map_err(open)? {
            Ok(mut lock) => {
                // For people; a failure to write it takes nothing away from the lock.
                let _ = lock.set_len(0);
                let _ = lock.rewind();
                let _ = write!(lock, "{role}, pid {}", std::process::id());
                Ok(Self { _file: lock })
            }
            Err(file) => Err(held(path, file)),
        }
    }
}

fn held(path: &Path, mut file: File) -> LockError {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    if holder.is_empty() {
        "another process".clone_into(&mut holder);
    }
    LockError::Held { path: path.to_owned(), holder }
}
