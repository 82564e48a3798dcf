//! What DELs leave that could not give their addresses back: a file each, with the release as JSON.

use std::{ffi::OsStr, fs, io, path::Path};

use tracing::warn;
use twill_types::{ReleaseRequest, error_chain};

use crate::Service;

/// Whether there is a tombstone in a directory whose name begins with `prefix`.
///
/// # Errors
/// The directory cannot be read.
pub fn names_any(directory: &Path, prefix: &str) -> io::Result<bool> {
    let mut paths = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.any(|path| is_tombstone(&path, prefix)))
}

/// What begins with a dot is the lock, or is still being written.
fn is_tombstone(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().map(OsStr::as_encoded_bytes).unwrap_or_default();
    !name.starts_with(b".")
        && name.starts_with(prefix.as_bytes())
        && path.extension().is_some_and(|extension| extension == "json")
}

/// Releases what the tombstones in a directory name whose own names begin with `prefix`, and removes
/// them; says how many. What cannot be released stays for the next time, and so does what `stays` says.
///
/// # Errors
/// The directory cannot be read, or a tombstone not be removed.
pub fn work_off(
    directory: &Path,
    service: &Service,
    prefix: &str,
    stays: impl Fn(&ReleaseRequest) -> bool,
) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !is_tombstone(&path, prefix) {
            continue;
        }
        match release(&path, service, &stays) {
            Ok(true) => {
                fs::remove_file(&path)?;
                count += 1;
            }
            Ok(false) => {}
            Err(error) => warn!(tombstone = %path.display(), error, "left in the spool"),
        }
    }
    Ok(count)
}

fn release(
    path: &Path,
    service: &Service,
    stays: impl Fn(&ReleaseRequest) -> bool,
) -> Result<bool, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let request: ReleaseRequest =
        serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if stays(&request) {
        return Ok(false);
    }
    service.release(request).map(|_| true).map_err(|error| error_chain(&error))
}
