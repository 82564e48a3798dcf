//! What DELs leave that could not give their addresses back: a file each, with the release as JSON.
//!
//! They are in the run directory's [`spool`]. Who writes one holds the spool's lock ([`SPOOL_LOCK`]) shared, if it
//! can be had; a daemon that starts holds it alone until it listens. A file is begun under another name, with a dot
//! before it, and then has the name that the release makes up ([`tombstone_name`]), so that it is there whole or
//! not at all, and the same DEL leaves one however often it is repeated. All names of an attachment's begin with
//! its [`tombstone_prefix`].

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use tracing::warn;
use twill_types::{AttachmentId, ReleaseRequest, error_chain, host_link_name};

use crate::Service;

/// The file of the spool that is locked.
pub const SPOOL_LOCK: &str = ".lock";

/// Where the tombstones are, of this run directory.
pub fn spool(run_dir: &Path) -> PathBuf {
    run_dir.join("spool")
}

/// What the names of all tombstones of an attachment begin with.
pub fn tombstone_prefix(attachment: &AttachmentId) -> String {
    host_link_name(attachment)
}

/// The name of a release's tombstone. All that the release names is in it, so that no other DEL of the attachment
/// takes its place.
pub fn tombstone_name(release: &ReleaseRequest) -> String {
    let mut name = tombstone_prefix(&release.attachment);
    if let Some(sequence) = release.sequence {
        name += &format!("-{sequence}");
    }
    if let Some(cookie) = release.netns_cookie {
        name += &format!("-ns{cookie}");
    }
    name + ".json"
}

/// Whether there is a tombstone in a directory whose name begins with `prefix`. What a newer release has
/// written in a form of its own waits for that release, and is none here.
///
/// # Errors
/// The directory cannot be read.
pub fn names_any(directory: &Path, prefix: &str) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_tombstone(&path, prefix) && !matches!(read(&path), Err(Unread::OtherForm(_))) {
            return Ok(true);
        }
    }
    Ok(false)
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
pub fn release_tombstones(
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
            Err(Unread::None(error)) => {
                set_aside(&path, &error);
                continue;
            }
            Err(Unread::OtherForm(error)) => {
                warn!(
                    tombstone = %path.display(),
                    %error,
                    "no tombstone as this release writes them, and left in the spool for one that can read \
                     it; without one remove it: what its pod had comes back when it is seen that the pod is \
                     gone"
                );
                continue;
            }
            Err(Unread::Yet(error)) => {
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

/// Why there is nothing to release.
enum Unread {
    /// It is no tombstone of any release.
    None(io::Error),
    /// It may be one of a newer release.
    OtherForm(serde_json::Error),
    /// Perhaps it can be read next time.
    Yet(io::Error),
}

fn read(path: &Path) -> Result<ReleaseRequest, Unread> {
    let text = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::IsADirectory => Unread::None(error),
        _ => Unread::Yet(error),
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        match serde_json::from_slice::<serde::de::IgnoredAny>(&text) {
            Ok(_) => Unread::OtherForm(error),
            Err(error) => Unread::None(error.into()),
        }
    })
}

fn set_aside(path: &Path, why: &io::Error) {
    let aside = free_name(path);
    match fs::rename(path, &aside) {
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

/// A name that ends in `.bad`, or in a number after that: what has one already stays what it is. Nobody else
/// names files so meanwhile, as the spool is worked off by one alone.
fn free_name(path: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = OsString::from(path);
        name.push(".bad");
        if number > 1 {
            name.push(number.to_string());
        }
        PathBuf::from(name)
    };
    let is_free = |name: &PathBuf| fs::symlink_metadata(name).is_err();
    (1..).map(numbered).find(is_free).unwrap_or_else(|| numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    /// A spool with these files, and a service.
    fn with_spool(files: &[(&str, &str)]) -> (tempfile::TempDir, std::path::PathBuf, Service) {
        let directory = tempfile::tempdir().unwrap();
        let (spool, store) = (directory.path().join("spool"), directory.path().join("store"));
        let options = Options { boot_id: "boot".into(), hold_freed: false };
        let (service, _) = Service::open(&store, options).unwrap();
        fs::create_dir(&spool).unwrap();
        for (name, content) in files {
            fs::write(spool.join(name), content).unwrap();
        }
        (directory, spool, service)
    }

    fn names(spool: &Path) -> Vec<String> {
        let entries = fs::read_dir(spool).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn tombstone() -> String {
        let attachment =
            AttachmentId { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() };
        let request = ReleaseRequest { attachment, sequence: None, netns_cookie: None };
        serde_json::to_string(&request).unwrap()
    }

    #[test]
    fn what_is_no_tombstone_is_set_aside_once() {
        let files = [("twl1.json", &*tombstone()), ("twl2.json", "{"), ("twl4.json", "")];
        let (_directory, spool, service) = with_spool(&files);
        fs::create_dir(spool.join("twl3.json")).unwrap();
        let mut seen = 0;
        let stays = |_: &ReleaseRequest| {
            seen += 1;
            false
        };
        assert_eq!(release_tombstones(&spool, &service, "", stays).unwrap(), 1);
        assert_eq!(seen, 1);
        assert!(!names_any(&spool, "").unwrap());
        assert_eq!(names(&spool), ["twl2.json.bad", "twl3.json.bad", "twl4.json.bad"]);
    }

    #[test]
    fn what_was_set_aside_stays_when_more_of_its_name_comes() {
        let (_directory, spool, service) = with_spool(&[]);
        for content in ["{first", "{second", "{third"] {
            fs::write(spool.join("twl1.json"), content).unwrap();
            assert_eq!(release_tombstones(&spool, &service, "", |_| false).unwrap(), 0);
        }
        assert_eq!(names(&spool), ["twl1.json.bad", "twl1.json.bad2", "twl1.json.bad3"]);
        assert_eq!(fs::read_to_string(spool.join("twl1.json.bad")).unwrap(), "{first");
    }

    #[test]
    fn the_form_of_a_newer_release_waits_for_it() {
        let newer = r#"{"attachments": ["n/c/eth0"], "form": 2}"#;
        let (_directory, spool, service) = with_spool(&[("twl1.json", newer), ("twl2.json", "[]")]);
        let asked = |_: &ReleaseRequest| panic!("it cannot be read");
        assert_eq!(release_tombstones(&spool, &service, "", asked).unwrap(), 0);
        assert_eq!(names(&spool), ["twl1.json", "twl2.json"]);
        // Nothing is done about it each time.
        assert!(!names_any(&spool, "").unwrap());
        fs::write(spool.join("twl3.json"), tombstone()).unwrap();
        assert!(names_any(&spool, "").unwrap());
        assert_eq!(release_tombstones(&spool, &service, "", |_| false).unwrap(), 1);
        assert_eq!(names(&spool), ["twl1.json", "twl2.json"]);
    }
}
