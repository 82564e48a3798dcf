//! How the file datastore lies on disk: manifests in a directory, one file per claimed block in
//! `claims/`, one per request for a part of a block in `requests/`, what nodes say about objects in `status/<node>/`. Daemon and command line share it.
//!
//! Every file is written whole under a temporary name, synced, and then renamed or linked into
//! place, so that a reader never sees a half of one and a crash leaves nothing but a temporary
//! file, which the next writer sweeps.

mod claims;
mod fill;
mod leases;
mod manifests;
mod requests;
mod status;

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

pub use claims::{Claim, Claims, claim_block, claimed_blocks, read_claim, read_claims};
pub use fill::{BlockFill, NodeFill, read_fill, read_fills, remove_fill, write_fill};
pub use leases::{Lease, read_lease, read_leases, remove_lease, renew_lease};
pub use manifests::{
    Applied, Catalog, apply_manifest, catalog, find_manifest, load_directory, remove_manifest,
};
pub use requests::{read_request, read_requests};
pub use status::{Status, Statuses, read_statuses, remove_status, with_status, write_status};

use crate::ObjectId;

/// The directory of claims inside a datastore's directory.
pub const CLAIMS: &str = "claims";

/// The directory of requests for parts of blocks inside a datastore's directory.
pub const REQUESTS: &str = "requests";

/// The directory of what daemons say of themselves inside a datastore's directory.
pub const LEASES: &str = "leases";

/// The directory of conditions inside a datastore's directory.
pub const STATUS: &str = "status";

/// The file whose lock writers hold, in a datastore's directory and in `claims/`.
const LOCK: &str = ".lock";

const TEMPORARY: &str = ".tmp-";

/// The mode of files that everybody may read.
const EVERYONE: u32 = 0o644;

/// The mode of files with passwords in them.
const OWNER: u32 = 0o600;

/// How long a lock is waited for. Whoever has it writes a file or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest manifest that is read, bytes.
const LARGEST: u64 = 8 << 20;

/// A file of the datastore cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory, pipe or device where a file has to be.
    #[error("{} is not a regular file; remove it or give it another ending", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// A manifest that nobody wrote by hand.
    #[error("{} is larger than {LARGEST} bytes; split it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Bytes that are no text.
    #[error("{} is not UTF-8 text (first at byte {at}); save it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        at: usize,
    },
    /// An object that shares its document with others.
    #[error("{object} is an item of a List in {}; change it there by hand", path.display())]
    InList {
        /// The object.
        object: ObjectId,
        /// Where it stands.
        path: PathBuf,
    },
    /// A file of Twill's own that somebody has changed.
    #[error("{} is damaged: {message}; restore it, or remove it if its block is used nowhere", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Somebody does not let go of a lock.
    #[error(
        "another process has held {} for {} s; find and end it (lslocks, fuser)",
        path.display(),
        PATIENCE.as_secs()
    )]
    Held {
        /// The lock.
        path: PathBuf,
    },
    /// An object that has no text form.
    #[error(transparent)]
    Format(#[from] crate::FormatError),
}

/// Turns an I/O error into one that names the file.
pub(crate) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Whether a file of this name in the datastore's directory is read: `*.yaml`, `*.yml` and
/// `*.json`, not hidden ones (editors' and our own temporary files are).
pub fn is_manifest(file_name: &str) -> bool {
    let extension = Path::new(file_name).extension().and_then(|extension| extension.to_str());
    !file_name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The names of the manifests in a directory, sorted. Names that are not UTF-8 are passed over.
pub fn manifest_names(directory: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        if let Ok(name) = entry.file_name().into_string()
            && is_manifest(&name)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a manifest as text. A symbolic link to a regular file is fine.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    // Before opening: opening a pipe waits for its writer.
    let is_file = fs::metadata(path).map_err(failed("read", path))?.is_file();
    if !is_file {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(failed("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| FileError::NotText {
        path: path.to_owned(),
        at: error.utf8_error().valid_up_to(),
    })
}

/// Makes a directory and those above it; nobody but the owner may write into what is made.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(failed("make directory", path))
}

/// Makes a directory and those above it; nobody but the owner may look into what is made.
pub fn make_private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("make directory", path))
}

/// Makes what was linked, renamed or unlinked in a directory outlive a power cut.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}

/// A lock on a directory's content among writers, held until dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    /// Its being open is the lock.
    _file: File,
    names: Vec<String>,
}

impl DirectoryLock {
    /// Waits for the lock (`flock` on the file `.lock`), for some seconds at the most, then sweeps what a
    /// killed writer left.
    pub fn acquire(directory: &Path) -> Result<Self, FileError> {
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        shut_out_others(&file).map_err(failed("change the mode of", &path))?;
        wait_for_lock(&file, &path)?;
        Ok(Self { _file: file, names: sweep(directory)? })
    }

    /// The names of the manifests in the directory: other writers add none until this is dropped.
    pub fn manifest_names(&self) -> &[String] {
        &self.names
    }
}

/// A process that is stopped while it has the lock must not stop all others with it.
fn wait_for_lock(file: &File, path: &Path) -> Result<(), FileError> {
    const PAUSE: Duration = Duration::from_millis(2);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(FileError::Held { path: path.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
    }
}

/// Takes the rights of everybody away from a lock: whoever can open it can hold it for ever.
fn shut_out_others(lock: &File) -> io::Result<()> {
    const OTHERS: u32 = 0o007;
    let mode = lock.metadata()?.permissions().mode();
    if mode & OTHERS == 0 {
        return Ok(());
    }
    lock.set_permissions(Permissions::from_mode(mode & 0o7777 & !OTHERS))
}

/// Removes temporary files; all their writers hold the lock while they have one. Answers the names
/// of the manifests.
fn sweep(directory: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name();
        if is_temporary(&name) {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        } else if let Ok(name) = name.into_string()
            && is_manifest(&name)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Replaces a file as a whole, keeping its mode; durable when it returns.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_file_as(path, bytes, EVERYONE)
}

/// Removes what writers that were killed before a moment left in a directory. Only for who knows that whoever
/// wrote there then writes there no more.
pub fn sweep_leftovers(directory: &Path, before: SystemTime) -> Result<(), FileError> {
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        // One that is gone by now was no leftover.
        let changed = entry.metadata().and_then(|found| found.modified());
        if is_temporary(&entry.file_name()) && changed.is_ok_and(|changed| changed < before) {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

fn is_temporary(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(TEMPORARY)
}

/// Replaces a file as a whole; if it is new, nobody but its owner can read it.
pub fn replace_private_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_file_as(path, bytes, OWNER)
}

/// [`replace_file`], with the mode of a file that is new.
fn replace_file_as(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let directory = parent(path);
    // Nobody else reads it before its mode is what it has to be.
    let temporary = Temporary::write(directory, bytes, OWNER)?;
    let mut permissions = Permissions::from_mode(mode);
    if let Ok(old) = fs::metadata(path) {
        permissions = old.permissions();
    }
    fs::set_permissions(&temporary.path, permissions)
        .map_err(failed("set the mode of", &temporary.path))?;
    fs::rename(&temporary.path, path).map_err(failed("write", path))?;
    sync_directory(directory)
}

/// Makes a file unless there is one: `false` when there is. The name appears with its whole
/// content or not at all, and of several writers one wins. Durable when it returns `true`.
pub fn create_file(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let directory = parent(path);
    let temporary = Temporary::write(directory, bytes, EVERYONE)?;
    match fs::hard_link(&temporary.path, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed("make", path)(error)),
    }
    drop(temporary);
    sync_directory(directory)?;
    Ok(true)
}

/// Removes a file; `false` when there was none. Durable when it returns.
pub fn remove_file(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A file under a temporary name, gone when dropped unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(directory: &Path, bytes: &[u8], mode: u32) -> Result<Self, FileError> {
        let (temporary, mut file) = Self::create(directory, mode)?;
        let path = &temporary.path;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", path))?;
        Ok(temporary)
    }
}

impl Temporary {
    /// A file under a name that nobody else uses. In a container every process has the same number, so
    /// one that was killed may have left this very name behind.
    fn create(directory: &Path, mode: u32) -> Result<(Self, File), FileError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
                Ok(file) => return Ok((Self { path }, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make", &path)(error)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there any more after a rename; else the next writer sweeps it.
        let _ = fs::remove_file(&self.path);
    }
}

/// The first part of the file names of an object: `ippool.app-pool`.
fn stem(id: &ObjectId) -> String {
    match &id.namespace {
        Some(namespace) => format!("{}.{namespace}.{}", id.kind, id.name),
        None => format!("{}.{}", id.kind, id.name),
    }
}

#[cfg(test)]
mod tests;
