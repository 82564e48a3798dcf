//! The copy of what was last known, in `stateDir`: a node boots, keeps its pods, gives addresses and
//! speaks BGP by it while the API server is away. Passwords are in it, so nobody but root can read it.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;
use twill_k8s_api::files::{FileError, catalog, make_private_directory, replace_private_file};

use super::{owned::OwnClaims, read};
use crate::datastore::Snapshot;

/// The version of the format. A copy of another version is of no use, and not an error.
const FORMAT: u32 = 1;

const FILE: &str = "last-known-good.json";

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    format: u32,
    node: String,
    /// Each with the name of its list, as RBAC has it.
    objects: Vec<(String, Value)>,
    /// This node's BlockAffinities.
    claims: Vec<Value>,
}

/// What was known.
pub(super) struct Known {
    pub(super) snapshot: Snapshot,
    pub(super) claims: OwnClaims,
}

/// The file of one node.
pub(super) struct Cache {
    path: PathBuf,
    node: String,
    written: Option<Copy>,
}

impl Cache {
    /// Uses a file in this directory, made if there is none.
    pub(super) fn open(directory: &Path, node: &str) -> Result<Self, FileError> {
        make_private_directory(directory)?;
        Ok(Self { path: directory.join(FILE), node: node.to_owned(), written: None })
    }

    /// What was written last, unless it is another node's or cannot be read.
    pub(super) fn read(&self) -> Option<Known> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the copy of what was last known cannot be read");
                return None;
            }
        };
        match serde_json::from_str::<Copy>(&text) {
            Ok(copy) if copy.format == FORMAT && copy.node == self.node => Some(known(&copy)),
            Ok(copy) => {
                let Copy { format, node, .. } = copy;
                warn!(path = %self.path.display(), format, node, "the copy of what was last known is of no use here");
                None
            }
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the copy of what was last known is damaged");
                None
            }
        }
    }

    /// Replaces it as a whole, if anything is new.
    pub(super) fn write(
        &mut self,
        objects: Vec<(String, Value)>,
        claims: Vec<Value>,
    ) -> Result<(), FileError> {
        let copy = Copy { format: FORMAT, node: self.node.clone(), objects, claims };
        if self.written.as_ref() == Some(&copy) {
            return Ok(());
        }
        let text = serde_json::to_vec(&copy).map_err(|source| FileError::Io {
            action: "write",
            path: self.path.clone(),
            source: source.into(),
        })?;
        replace_private_file(&self.path, &text)?;
        self.written = Some(copy);
        Ok(())
    }
}

fn known(copy: &Copy) -> Known {
    let name = |value: &Value| value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let loaded: Vec<_> = copy
        .objects
        .iter()
        .map(|(plural, object)| read::load(plural, &name(object), object))
        .collect();
    Known {
        snapshot: Snapshot::new(catalog(&loaded)),
        claims: OwnClaims::from_manifests(&copy.claims),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_copy_is_read_back_by_its_own_node_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(directory.path(), "node1").unwrap();
        assert!(cache.read().is_none());
        let pool = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/16"},
        });
        let claim = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": {"name": "0a000000-26", "uid": "u1"},
            "spec": {"node": "node1", "cidr": "10.0.0.0/26", "pool": "a"},
        });
        cache.write(vec![("ippools".to_owned(), pool)], vec![claim]).unwrap();
        let path = directory.path().join(FILE);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "passwords are in it");

        let known = cache.read().unwrap();
        assert!(known.snapshot.pools.contains_key("a"));
        let held = &known.claims.blocks()[&"10.0.0.0/26".parse().unwrap()];
        assert_eq!(held.claim.as_ref().unwrap().pool, "a");

        assert!(Cache::open(directory.path(), "node2").unwrap().read().is_none());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(cache.read().is_none(), "of another format");
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(cache.read().is_none(), "half of it");
    }
}
