use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    DirectoryLock, FileError, LEASES, failed, read_text, remove_file, replace_file, status::entries,
};

/// What a node's daemon says of itself: the file `leases/<node>.json`, which it renews. What counts is
/// that it changes, seen by the clock of who looks, so the clocks of two hosts need not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The node.
    pub node: String,
    /// The process.
    pub instance: String,
    /// How often it is renewed at the least.
    pub seconds: u64,
    /// Whether there was ever a Node of this name.
    pub had_node: bool,
    /// When it was renewed, RFC 3339.
    pub renewed: String,
}

/// Writes a lease; what it was before.
pub fn renew_lease(directory: &Path, mut lease: Lease) -> Result<Option<Lease>, FileError> {
    let own = directory.join(LEASES);
    let _lock = DirectoryLock::acquire(&own)?;
    let before = read_lease(directory, &lease.node);
    lease.had_node |= before.as_ref().is_some_and(|before| before.had_node);
    let path = path(directory, &lease.node);
    let mut text = serde_json::to_string_pretty(&lease)
        .map_err(io::Error::from)
        .map_err(failed("write", &path))?;
    text.push('\n');
    replace_file(&path, text.as_bytes())?;
    Ok(before)
}

/// What a node said last; nothing, if that cannot be read: it is written again.
pub fn read_lease(directory: &Path, node: &str) -> Option<Lease> {
    serde_json::from_str(&read_text(&path(directory, node)).ok()?).ok()
}

/// What each node said last.
pub fn read_leases(directory: &Path) -> Result<BTreeMap<String, Lease>, FileError> {
    let files = entries(&directory.join(LEASES))?;
    let nodes = files.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".json"));
    let lease = |node: &str| Some((node.to_owned(), read_lease(directory, node)?));
    Ok(nodes.filter_map(lease).collect())
}

/// Forgets what a node said.
pub fn remove_lease(directory: &Path, node: &str) -> Result<bool, FileError> {
    remove_file(&path(directory, node))
}

fn path(directory: &Path, node: &str) -> PathBuf {
    directory.join(LEASES).join(format!("{node}.json"))
}
