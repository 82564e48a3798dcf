//! What DELs leave that could not give their addresses back: a file each, with the release as JSON.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
};

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
/// them; says how many. What cannot be released stays for the next time, and so does what `stays` says; it is
/// asked right before each release. What is no tombstone gets another name, as it would never go.
///
/// # Errors
/// The directory cannot be read, or a tombstone not be removed.
pub fn work_off(
    directory: &Path,
    service: &Service,
    prefix: &str,
    mut stays: impl FnMut(&ReleaseRequest) -> bool,
) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !is_tombstone(&path, prefix) {
            continue;
        }
        let request = match read(&path) {
            Ok(request) => request,
            Err(error) if is_unreadable(&error) => {
                set_aside(&path, &error);
                continue;
            }
            Err(error) => {
                warn!(tombstone = %path.display(), %error, "left in the spool");
                continue;
            }
        };
        if stays(&request) {
            continue;
        }
        match service.release(request) {
            Ok(_) => {
                fs::remove_file(&path)?;
                count += 1;
            }
            Err(error) => {
                warn!(tombstone = %path.display(), error = error_chain(&error), "left in the spool");
            }
        }
    }
    Ok(count)
}

fn read(path: &Path) -> io::Result<ReleaseRequest> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Whether it is so for good.
fn is_unreadable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::IsADirectory
    )
}

fn set_aside(path: &Path, why: &io::Error) {
    let mut name = OsString::from(path);
    name.push(".bad");
    let aside = Path::new(&name);
    match fs::rename(path, aside) {
        Ok(()) => warn!(
            file = %aside.display(),
            error = %why,
            "no tombstone of ours, and named so; remove it: what its pod had comes back when it is seen \
             that the pod is gone"
        ),
        Err(error) => {
            warn!(tombstone = %path.display(), %error, %why, "unreadable, and left in the spool");
        }
    }
}

#[cfg(test)]
mod tests {
    use twill_types::AttachmentId;

    use super::*;
    use crate::Options;

    #[test]
    fn what_is_no_tombstone_is_set_aside_once() {
        let directory = tempfile::tempdir().unwrap();
        let (spool, store) = (directory.path().join("spool"), directory.path().join("store"));
        let options = Options { boot_id: "boot".into(), hold_freed: false };
        let (service, _) = Service::open(&store, options).unwrap();
        fs::create_dir(&spool).unwrap();
        let attachment =
            AttachmentId { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() };
        let request = ReleaseRequest { attachment, sequence: None, netns_cookie: None };
        fs::write(spool.join("twl1.json"), serde_json::to_vec(&request).unwrap()).unwrap();
        fs::write(spool.join("twl2.json"), "{").unwrap();
        fs::create_dir(spool.join("twl3.json")).unwrap();
        let mut seen = 0;
        let stays = |_: &ReleaseRequest| {
            seen += 1;
            false
        };
        assert_eq!(work_off(&spool, &service, "", stays).unwrap(), 1);
        assert_eq!(seen, 1);
        assert!(!names_any(&spool, "").unwrap());
        let mut left: Vec<_> =
            fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["twl2.json.bad", "twl3.json.bad"]);
    }
}
