use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use twill_k8s_api::files::{DirectoryLock, FileError, make_directory, remove_file, replace_file};

const LEASES: &str = "leases";

/// Which nodes' daemons live: each renews a file of its own. What counts is that it changes, seen by
/// the clock of who looks, so the clocks of two hosts need not agree.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    directory: PathBuf,
}

impl Leases {
    /// Uses `<directory>/leases/`, made if there is none.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        let directory = directory.join(LEASES);
        make_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Says that a node's daemon lives.
    pub(crate) fn renew(&self, node: &str) -> Result<(), FileError> {
        let _lock = DirectoryLock::acquire(&self.directory)?;
        let text =
            format!("{{\"node\": \"{node}\", \"renewed\": \"{}\"}}\n", jiff::Timestamp::now());
        replace_file(&self.path(node), text.as_bytes())
    }

    /// What each node said last, as it stands there.
    pub(crate) fn list(&self) -> Result<BTreeMap<String, String>, FileError> {
        let failed =
            |source| FileError::Io { action: "list", path: self.directory.clone(), source };
        let mut leases = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(node) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            match fs::read_to_string(entry.path()) {
                Ok(text) => drop(leases.insert(node.to_owned(), text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(leases)
    }

    /// Forgets a node that is gone.
    pub(crate) fn remove(&self, node: &str) -> Result<bool, FileError> {
        remove_file(&self.path(node))
    }

    fn path(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.json"))
    }
}
