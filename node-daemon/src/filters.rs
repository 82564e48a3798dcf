//! The copy of BGPFilters in `stateDir`: what sessions went by last, so that a daemon that starts while a
//! filter is gone goes on by it, as the one before did.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};
use twill_bgp_proto::PeerKey;
use twill_k8s_api::{BgpFilterSpec, files::FileError};

use crate::last_known::{Found, LastKnown};

/// The version of the copy's format.
const FORMAT: u32 = 1;

const FILE: &str = "last-known-filters.json";

/// What sessions go by where a BGPFilter is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LastFilters {
    /// By name, as they were last: those that a BGPPeer names, and those of `sessions`.
    pub(crate) filters: BTreeMap<String, BgpFilterSpec>,
    /// The filters of sessions whose BGPPeer names another that there has never been.
    pub(crate) sessions: BTreeMap<PeerKey, Vec<String>>,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    filters: BTreeMap<String, BgpFilterSpec>,
    sessions: Vec<Session>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Session {
    address: IpAddr,
    port: u16,
    filters: Vec<String>,
}

/// The file of one node. Only the daemon that has the node's store uses it.
pub(crate) struct FilterCopy {
    file: LastKnown,
    /// What the process before has left has been looked at.
    is_read: bool,
    /// What is in it, as far as that is known.
    written: Option<LastFilters>,
}

impl FilterCopy {
    pub(crate) fn new(state_dir: &Path, node: &str) -> Self {
        let file = LastKnown::new((state_dir, FILE), "BGPFilters", FORMAT, node);
        Self { file, is_read: false, written: None }
    }

    /// What the process before has left, at the first time; nothing if it is another node's or damaged.
    ///
    /// # Errors
    ///
    /// It cannot be read, and may be what is wanted: the next call reads it again.
    pub(crate) fn read_once(&mut self) -> Result<Option<LastFilters>, FileError> {
        if self.is_read {
            return Ok(None);
        }
        let found = self.file.read::<Copy>()?;
        self.is_read = true;
        self.written = match found {
            // A node whose peers have no filters needs no file.
            Found::Nothing => Some(LastFilters::default()),
            Found::Useless => None,
            Found::Copy(copy) => Some(copy.into()),
        };
        Ok(self.written.clone())
    }

    /// Replaces it as a whole, if anything is new. Has to come after a read that worked: what is there may be
    /// all that is left of a filter.
    pub(crate) fn write(&mut self, last: &LastFilters) -> Result<(), FileError> {
        if self.written.as_ref() == Some(last) {
            return Ok(());
        }
        let session = |(key, filters): (&PeerKey, &Vec<String>)| Session {
            address: key.address,
            port: key.port,
            filters: filters.clone(),
        };
        let copy = Copy {
            filters: last.filters.clone(),
            sessions: last.sessions.iter().map(session).collect(),
        };
        // If this fails, nobody knows what is there.
        self.written = None;
        self.file.write(&copy)?;
        self.written = Some(last.clone());
        Ok(())
    }
}

impl From<Copy> for LastFilters {
    fn from(copy: Copy) -> Self {
        let session = |Session { address, port, filters }| (PeerKey { address, port }, filters);
        Self { filters: copy.filters, sessions: copy.sessions.into_iter().map(session).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn some() -> LastFilters {
        let spec = serde_json::json!({
            "exportV4": [{"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In",
                "operations": [{"addCommunity": {"value": "64512:100"}}]}],
            "importV6": [{"action": "Reject", "asPathPrefix": [64513], "peerType": "eBGP"}],
        });
        let key = PeerKey { address: "2001:db8::1".parse().unwrap(), port: 1179 };
        LastFilters {
            filters: [("racks".to_owned(), serde_json::from_value(spec).unwrap())].into(),
            sessions: [(key, vec!["racks".to_owned()])].into(),
        }
    }

    #[test]
    fn a_copy_is_read_back_by_its_own_node_alone() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state");
        let path = directory.join(FILE);
        let copy = |node: &str| FilterCopy::new(&directory, node);
        let read = |node: &str| copy(node).read_once().unwrap();
        assert_eq!(read("node1"), Some(LastFilters::default()));

        let mut first = copy("node1");
        first.read_once().unwrap();
        first.write(&some()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read("node1"), Some(some()));
        assert_eq!(read("node2"), None);

        let text = fs::read_to_string(&path).unwrap();
        for damaged in [text.replace("\"format\":1", "\"format\":2"), text[..20].to_owned()] {
            fs::write(&path, damaged).unwrap();
            let mut next = copy("node1");
            assert_eq!(next.read_once().unwrap(), None);
            next.write(&LastFilters::default()).unwrap();
            assert_eq!(read("node1"), Some(LastFilters::default()), "it was replaced");
        }
    }

    #[test]
    fn what_is_there_is_not_written_again_and_no_filter_makes_no_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let mut copy = FilterCopy::new(root.path(), "node1");
        copy.read_once().unwrap();
        copy.write(&LastFilters::default()).unwrap();
        assert!(!path.exists());
        copy.write(&some()).unwrap();
        fs::remove_file(&path).unwrap();
        copy.write(&some()).unwrap();
        assert!(!path.exists(), "it is what was written last");
        copy.write(&LastFilters::default()).unwrap();
        let read = FilterCopy::new(root.path(), "node1").read_once().unwrap();
        assert_eq!(read, Some(LastFilters::default()));
        assert!(path.exists());
    }

    #[test]
    fn what_cannot_be_read_is_read_again_and_then_no_more() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        // Also root cannot read that.
        fs::create_dir(&path).unwrap();
        let mut copy = FilterCopy::new(root.path(), "node1");
        for _ in 0..2 {
            let error = copy.read_once().unwrap_err();
            assert!(matches!(error, FileError::Io { action: "read", .. }), "{error:?}");
        }
        fs::remove_dir(&path).unwrap();
        let mut other = FilterCopy::new(root.path(), "node1");
        other.read_once().unwrap();
        other.write(&some()).unwrap();
        assert_eq!(copy.read_once().unwrap(), Some(some()));
        assert_eq!(copy.read_once().unwrap(), None);
    }
}
