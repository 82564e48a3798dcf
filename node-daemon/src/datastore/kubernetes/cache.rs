//! The copy of what was last known, in `stateDir`: a node boots, keeps its pods, gives addresses and
//! speaks BGP by it while the API server is away. Passwords are in it, so nobody but root can read it.

use std::{
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::warn;
use twill_k8s_api::files::{FileError, catalog, make_private_directory, sweep_leftovers};
use twill_types::error_chain;

use super::{access::ApiError, owned::OwnClaims, read};
use crate::{datastore::Snapshot, last_known::LastKnown};

/// The version of the format.
const FORMAT: u32 = 1;

const FILE: &str = "last-known-good.json";

/// What is in the file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    /// Each with the name of its list, as RBAC has it.
    objects: Vec<(String, Value)>,
    /// This node's BlockAffinities, and its BlockRequests for the parts that it has.
    claims: Vec<Value>,
}

/// The same, borrowed from those who have it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    objects: &'a [(&'a str, &'a Value)],
    claims: &'a [Value],
}

/// What was known.
pub(super) struct Known {
    pub(super) snapshot: Snapshot,
    pub(super) claims: OwnClaims,
    /// The manifests of those, and of requests for parts of blocks.
    pub(super) own: Vec<Value>,
    /// Each with the name of its list.
    pub(super) objects: Vec<(String, Value)>,
}

/// Whose the file is to write.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    /// The daemon before this one may be writing it still.
    NotYet,
    Held,
    /// The daemon after this one may be writing it already.
    Over,
}

/// The file of one node.
pub(super) struct Cache {
    file: LastKnown,
    right: Right,
    /// Told when it is this process's to write.
    begun: Arc<Notify>,
    /// A hash of what is in the file, as far as this process has written it, by keys of its own.
    written: Option<u64>,
    keys: RandomState,
    /// What was written before that is not this process's, with room for a clock that ticks every few
    /// milliseconds.
    opened: SystemTime,
}

impl Cache {
    /// Uses a file in this directory, made if there is none.
    pub(super) fn open(directory: &Path, node: &str) -> Result<Self, FileError> {
        make_private_directory(directory)?;
        let file = LastKnown::new((directory, FILE), "what was last known", FORMAT, node);
        let begun = Arc::default();
        let (written, keys) = (None, RandomState::new());
        let opened = SystemTime::now() - Duration::from_secs(1);
        Ok(Self { file, right: Right::NotYet, begun, written, keys, opened })
    }

    /// Told once it is this process's to write.
    pub(super) fn begun(&self) -> Arc<Notify> {
        Arc::clone(&self.begun)
    }

    /// From now on this process writes it, and no other one.
    pub(super) fn begin(&mut self) {
        self.right = Right::Held;
        self.begun.notify_one();
        // Other tasks write there already.
        let sweep = |directory| sweep_leftovers(directory, self.opened);
        let swept = self.file.path().parent().map_or(Ok(()), sweep);
        if let Err(error) = swept {
            warn!(error = %error_chain(&error), "what a daemon that was killed left in stateDir stays there");
        }
    }

    /// From now on this process does not write it.
    pub(super) fn end(&mut self) {
        self.right = Right::Over;
    }

    /// What was written last, unless it is another node's or cannot be read.
    pub(super) fn read(&self) -> Option<Known> {
        self.file.find().map(known)
    }

    /// Replaces it as a whole, if anything is new; `false` while it is not this process's to write.
    pub(super) fn write(
        &mut self,
        objects: &[(&str, &Value)],
        claims: &[Value],
    ) -> Result<bool, FileError> {
        if self.right != Right::Held {
            return Ok(false);
        }
        self.replace(objects, claims)?;
        Ok(true)
    }

    /// The same with other claims only; durable when it returns. Without a copy there is nothing to
    /// write them into, and nothing that names a claim.
    pub(super) fn write_claims(&mut self, claims: &[Value]) -> Result<(), ApiError> {
        if self.right != Right::Held {
            return Err(ApiError::Ending);
        }
        // Read again: a second copy in memory would cost more than this does, now and then.
        let Some(before) = self.file.find::<Copy>() else { return Ok(()) };
        let objects: Vec<_> =
            before.objects.iter().map(|(plural, object)| (plural.as_str(), object)).collect();
        Ok(self.replace(&objects, claims)?)
    }

    fn replace(&mut self, objects: &[(&str, &Value)], claims: &[Value]) -> Result<(), FileError> {
        let text = self.file.text(&Written { objects, claims })?;
        let hash = self.keys.hash_one(&text);
        if self.written == Some(hash) {
            return Ok(());
        }
        // Whether it is there or not: if this fails, nobody knows.
        self.written = None;
        self.file.replace(&text)?;
        self.written = Some(hash);
        Ok(())
    }
}

fn known(copy: Copy) -> Known {
    let loaded: Vec<_> = copy
        .objects
        .iter()
        .map(|(plural, object)| read::load(plural, read::name(object), object))
        .collect();
    Known {
        snapshot: Snapshot::new(catalog(&loaded)),
        claims: OwnClaims::from_manifests(&copy.claims),
        own: copy.claims,
        objects: copy.objects,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pool() -> (String, Value) {
        let pool = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/16"},
        });
        ("ippools".to_owned(), pool)
    }

    fn claim() -> Value {
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": {"name": "0a000000-26", "uid": "u1"},
            "spec": {"node": "node1", "cidr": "10.0.0.0/26", "pool": "a"},
        })
    }

    #[test]
    fn a_copy_is_read_back_by_its_own_node_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(directory.path(), "node1").unwrap();
        cache.begin();
        assert!(cache.read().is_none());
        let (plural, pool) = pool();
        cache.write(&[(&plural, &pool)], &[claim()]).unwrap();
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

    #[test]
    fn only_who_has_the_store_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = Cache::open(directory.path(), "node1").unwrap();
        old.begin();
        let (plural, pool) = pool();
        assert!(old.write(&[(&plural, &pool)], &[claim()]).unwrap());
        let mut new = Cache::open(directory.path(), "node1").unwrap();
        assert!(!new.write(&[], &[]).unwrap(), "the one before it still serves");
        assert!(matches!(new.write_claims(&[]), Err(ApiError::Ending)));
        old.end();
        assert!(!old.write(&[], &[]).unwrap(), "the one after it may serve already");
        assert_eq!(new.read().unwrap().snapshot.pools.len(), 1);
        new.begin();
        // It has written nothing yet, and knows what is there all the same.
        new.write_claims(&[]).unwrap();
        let known = new.read().unwrap();
        assert_eq!((known.snapshot.pools.len(), known.claims.blocks().len()), (1, 0));
    }

    #[test]
    fn what_a_killed_daemon_left_is_swept_and_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        let left: Vec<_> = (0..64)
            .map(|number| directory.path().join(format!(".tmp-{}-{number}", std::process::id())))
            .collect();
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        for path in &left {
            std::fs::write(path, "half").unwrap();
            std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        let mut cache = Cache::open(directory.path(), "node1").unwrap();
        cache.file.replace(b"{}").unwrap();
        // Another task of this process is writing.
        let fresh = directory.path().join(".tmp-fresh");
        std::fs::write(&fresh, "half").unwrap();
        cache.begin();
        assert!(left.iter().all(|path| !path.exists()));
        assert!(fresh.exists(), "it is not renamed yet");
        let (plural, pool) = pool();
        let mut write = || cache.write(&[(&plural, &pool)], &[]).unwrap();
        assert!(write());
        // What is there already is not written again.
        std::fs::remove_file(directory.path().join(FILE)).unwrap();
        assert!(write() && !directory.path().join(FILE).exists());
    }
}
