//! What can be seen of the namespaces that records name.

use std::{os::linux::fs::MetadataExt, path::Path};

use tracing::debug;
use twill_ipam::{PathFact, PodFact, Record, RecordFact};
use twill_sys::AtPath;
use twill_types::error_chain;

/// A record with what is at the path of its namespace, and with what the cluster says of its pod.
pub fn record_fact(record: Record, pod: PodFact) -> RecordFact {
    let path = path_fact(Path::new(&record.netns), record.netns_cookie);
    RecordFact { record, path, pod }
}

fn path_fact(path: &Path, cookie: Option<u64>) -> PathFact {
    if path.as_os_str().is_empty() {
        return PathFact::Unknown;
    }
    let fact = match twill_sys::look(path) {
        Ok(AtPath::Namespace(found)) => match (found, cookie) {
            (Some(found), Some(cookie)) if found != cookie => PathFact::Another,
            _ => PathFact::Same,
        },
        Ok(AtPath::Plain) => PathFact::Plain,
        Ok(AtPath::Nothing) => PathFact::Nothing,
        Err(error) => {
            debug!(error = %error_chain(&error), "nothing can be told from a namespace's path");
            PathFact::Unknown
        }
    };
    match fact {
        // A process's path ends with the process, not with the namespace, its number may name
        // another process by now, and /proc may be that of other processes altogether.
        PathFact::Another | PathFact::Nothing | PathFact::Plain if path.starts_with("/proc") => {
            PathFact::Unknown
        }
        fact => fact,
    }
}

/// Whether this process sees the files that the host's first process sees: it is in the host's
/// process namespace (else process 1 is another one), in its mount namespace, and has its root.
pub fn has_host_view() -> bool {
    /// `PROC_PID_INIT_INO`, the inode of the first process namespace.
    const FIRST: u64 = 0xEFFF_FFFC;
    let identity = |path: &str| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.st_dev(), file.st_ino()))
    };
    let is_same = |own: &str, first: &str| {
        let own = identity(own);
        own.is_some() && own == identity(first)
    };
    identity("/proc/self/ns/pid").is_some_and(|(_, inode)| inode == FIRST)
        && is_same("/proc/self/ns/mnt", "/proc/1/ns/mnt")
        && is_same("/", "/proc/1/root/")
}
