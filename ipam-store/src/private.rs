//! Directories and files of the run directory that are root's alone. Whoever can open a file can
//! lock it, for reading too, and keep its owner waiting.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// How often a lock is tried that another process holds: a plugin holds one for some milliseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// Makes a directory for its owner alone, and those above it that do not exist. One that is there
/// with other rights gets these.
///
/// # Errors
/// It cannot be made, or is another user's.
pub fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a file for its owner alone, to be read and written; makes it if there is none. One that is
/// there with other rights gets these.
///
/// # Errors
/// It cannot be made or opened, or is another user's.
pub fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    if file.metadata()?.permissions().mode() & 0o7777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Locks a file alone, waiting at the most until `deadline`; gives it back if another process holds
/// it all the time.
///
/// # Errors
/// The file cannot be locked.
pub fn lock_alone(mut file: File, deadline: Instant) -> io::Result<Result<Flock<File>, File>> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Ok(lock)),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => return Ok(Err(back)),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                file = back;
                thread::sleep(PAUSE);
            }
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_there_gets_the_same_rights() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("run/spool");
        private_directory(&directory).unwrap();
        assert_eq!((mode(&root.path().join("run")), mode(&directory)), (0o700, 0o700));
        let lock = directory.join(".lock");
        drop(private_file(&lock).unwrap());
        assert_eq!(mode(&lock), 0o600);

        fs::write(&lock, "kept").unwrap();
        fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        private_directory(&directory).unwrap();
        drop(private_file(&lock).unwrap());
        assert_eq!((mode(&directory), mode(&lock)), (0o700, 0o600));
        assert_eq!(fs::read(&lock).unwrap(), b"kept");
    }

    #[test]
    fn a_lock_is_waited_for_until_the_deadline() {
        let root = tempfile::tempdir().unwrap();
        let open = || private_file(&root.path().join("lock")).unwrap();
        let held = lock_alone(open(), Instant::now()).unwrap().unwrap();
        let deadline = Instant::now() + Duration::from_millis(10);
        assert!(lock_alone(open(), deadline).unwrap().is_err());
        assert!(Instant::now() >= deadline);
        drop(held);
        assert!(lock_alone(open(), Instant::now()).unwrap().is_ok());
    }
}
