use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use twill_k8s_api::files::{DirectoryLock, FileError, make_directory, remove_file, replace_file};

const LEASES: &str = "leases";

/// Which nodes' daemons live: each renews a file of its own. What counts is that it changes, seen by
/// the clock of who looks, so the clocks of two hosts need not agree.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    directory: PathBuf,
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    /// The node.
    pub(crate) node: String,
    /// The process.
    pub(crate) instance: String,
    /// How often it is renewed at the least.
    pub(crate) seconds: u64,
    /// Whether there was ever a Node of this name.
    pub(crate) had_node: bool,
    /// When it was renewed, RFC 3339.
    pub(crate) renewed: String,
}

impl Leases {
    /// Uses `<directory>/leases/`, made if there is none.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        let directory = directory.join(LEASES);
        make_directory(&directory)?;
        Ok(Self { directory })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a lease; what it was before.
    pub(crate) fn renew(&self, mut lease: Lease) -> Result<Option<Lease>, FileError> {
        let _lock = DirectoryLock::acquire(&self.directory)?;
        let before = self.get(&lease.node);
        lease.had_node |= before.as_ref().is_some_and(|before| before.had_node);
        let path = self.path(&lease.node);
        let text = serde_json::to_string_pretty(&lease).map_err(io::Error::from);
        let failed = |source| FileError::Io { action: "write", path: path.clone(), source };
        let text = text.map_err(failed)?;
        replace_file(&path, format!("{text}\n").as_bytes())?;
        Ok(before)
    }

    /// What a node said last; nothing, if that cannot be read: it is written again.
    pub(crate) fn get(&self, node: &str) -> Option<Lease> {
        let text = fs::read_to_string(self.path(node)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// What each node said last.
    pub(crate) fn list(&self) -> Result<BTreeMap<String, Lease>, FileError> {
        let failed = |source| {
            let path = self.directory.clone();
            FileError::Io { action: "list", path, source }
        };
        let mut leases = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let node = name.to_str().and_then(|name| name.strip_suffix(".json"));
            if let Some((node, lease)) = node.and_then(|node| Some((node, self.get(node)?))) {
                leases.insert(node.to_owned(), lease);
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
