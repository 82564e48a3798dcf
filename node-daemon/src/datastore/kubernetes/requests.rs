//! The requests that this node has made, and those that ask it: what the watches tell, and what was
//! written since.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::DynamicObject;
use serde_json::{Value, json};
use twill_k8s_api::{BlockRequest, BlockRequestStatus};

use super::{subject::BLOCK_REQUESTS, version::Version};
use crate::datastore::Requests;

/// Which of the two lists a request is in. It is in none twice: nobody asks itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// This node asks.
    Asking,
    /// This node is asked.
    Asked,
}

/// A request with what is needed to change it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    /// `None` if it cannot be read.
    pub(super) request: Option<BlockRequest>,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) finalizers: Vec<String>,
    /// Somebody has deleted it.
    pub(super) is_going: bool,
}

/// The requests that matter to a node, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct NodeRequests {
    node: String,
    asking: BTreeMap<String, Told>,
    asked: BTreeMap<String, Told>,
    /// The names in a list that is being read.
    listing: BTreeMap<Side, BTreeSet<String>>,
    /// About to be returned, by name: the copy does not name these any more.
    returning: BTreeSet<String>,
}

impl Told {
    fn of(object: &DynamicObject) -> Option<(String, Self)> {
        let metadata = &object.metadata;
        let name = metadata.name.clone()?;
        let uid = metadata.uid.clone().unwrap_or_default();
        let version = metadata.resource_version.clone().unwrap_or_default();
        let request = serde_json::from_value(manifest(object)).ok();
        let finalizers = metadata.finalizers.clone().unwrap_or_default();
        let is_going = metadata.deletion_timestamp.is_some();
        Some((name, Self { request, uid, version, finalizers, is_going }))
    }

    pub(super) fn outcome(&self) -> BlockRequestStatus {
        self.request.as_ref().map(BlockRequest::outcome).unwrap_or_default()
    }

    fn version(&self) -> Version<'_> {
        Version { uid: &self.uid, number: &self.version }
    }
}

impl NodeRequests {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// Takes those of the copy over.
    pub(super) fn set_known(&mut self, manifests: &[Value]) {
        for object in manifests.iter().filter(|manifest| manifest["kind"] == BLOCK_REQUESTS.kind) {
            if let Ok(object) = serde_json::from_value(object.clone())
                && let Some((name, told)) = Told::of(&object)
            {
                self.asking.entry(name).or_insert(told);
            }
        }
    }

    /// For the copy: the parts that this node has.
    pub(super) fn manifests(&self) -> Vec<Value> {
        let has_part = |(name, told): &(&String, &Told)| {
            let outcome = told.outcome();
            outcome.granted.is_some() && !outcome.returned && !self.returning.contains(*name)
        };
        let parts = self.asking.iter().filter(has_part);
        parts.filter_map(|(_, told)| serde_json::to_value(told.request.as_ref()?).ok()).collect()
    }

    /// A part is about to be returned.
    pub(super) fn set_returning(&mut self, name: &str) {
        self.returning.insert(name.to_owned());
    }

    /// A list begins.
    pub(super) fn begin_list(&mut self, side: Side) {
        self.listing.insert(side, BTreeSet::new());
    }

    /// A list is complete.
    pub(super) fn end_list(&mut self, side: Side) {
        if let Some(listed) = self.listing.remove(&side) {
            self.side(side).retain(|name, _| listed.contains(name));
        }
    }

    /// Told by a watch, or just written. What is older than what is known changes nothing.
    pub(super) fn set(&mut self, object: &DynamicObject) {
        let Some((name, told)) = Told::of(object) else { return };
        let is_own = object.data["spec"]["node"] == *self.node;
        let side = if is_own { Side::Asking } else { Side::Asked };
        if let Some(listed) = self.listing.get_mut(&side) {
            listed.insert(name.clone());
        }
        let known = self.side(side);
        if !known.get(&name).is_some_and(|before| told.version().is_older_than(before.version())) {
            known.insert(name, told);
        }
    }

    /// Told by a watch, or just done: gone.
    pub(super) fn removed(&mut self, name: &str, uid: &str) {
        let is_it = |told: &Told| told.uid == uid;
        for known in [&mut self.asking, &mut self.asked] {
            if known.get(name).is_some_and(is_it) {
                known.remove(name);
            }
        }
        if !self.asking.contains_key(name) {
            self.returning.remove(name);
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Told> {
        self.asking.get(name).or_else(|| self.asked.get(name))
    }

    /// The names of this node's own that are returned, and whose owners have said the last word.
    pub(super) fn settled(&self) -> Vec<String> {
        let is_settled = |told: &Told| {
            let outcome = told.outcome();
            outcome.returned && outcome.refused.is_some()
        };
        self.asking
            .iter()
            .filter(|(_, told)| is_settled(told))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// All of them; of what this node is asked not what it has said the last word about, and of its own not
    /// what has nothing left but to be removed.
    pub(super) fn all(&self) -> Requests {
        let is_open = |(_, told): &(&String, &Told)| {
            let outcome = told.outcome();
            !(outcome.returned && outcome.refused.is_some())
        };
        let all = self.asking.iter().chain(&self.asked).filter(is_open);
        all.map(|(name, told)| (name.clone(), told.request.clone())).collect()
    }

    fn side(&mut self, side: Side) -> &mut BTreeMap<String, Told> {
        match side {
            Side::Asking => &mut self.asking,
            Side::Asked => &mut self.asked,
        }
    }
}

/// What of a request is read.
fn manifest(object: &DynamicObject) -> Value {
    let resource = BLOCK_REQUESTS.resource();
    let metadata = &object.metadata;
    let mut manifest = json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": {"name": metadata.name, "uid": metadata.uid},
        "spec": object.data["spec"],
    });
    if !object.data["status"].is_null() {
        manifest["status"] = object.data["status"].clone();
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(node: &str, uid: &str, version: &str, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockRequest",
            "metadata": {"name": "0a000000-28.r1", "uid": uid, "resourceVersion": version},
            "spec": {"node": node, "owner": "node2", "block": "10.0.0.0/28", "pool": "a", "length": 29},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn late_news_do_not_take_back_what_was_written() {
        let mut requests = NodeRequests::new("node1");
        requests.set(&object(
            "node1",
            "u1",
            "9",
            json!({"granted": "10.0.0.8/29", "returned": true}),
        ));
        requests.set(&object("node1", "u1", "8", json!({"granted": "10.0.0.8/29"})));
        assert!(requests.get("0a000000-28.r1").unwrap().outcome().returned);
        requests.set(&object("node1", "u2", "3", json!(null)));
        assert!(!requests.get("0a000000-28.r1").unwrap().outcome().returned, "it is another one");
        requests.removed("0a000000-28.r1", "u1");
        assert!(requests.get("0a000000-28.r1").is_some(), "the end of the first is not its end");
    }

    #[test]
    fn a_list_takes_away_what_it_lacks_on_its_own_side() {
        let mut requests = NodeRequests::new("node1");
        requests.set(&object("node1", "u1", "9", json!(null)));
        requests.begin_list(Side::Asked);
        requests.end_list(Side::Asked);
        assert_eq!(requests.all().len(), 1);
        requests.begin_list(Side::Asking);
        requests.end_list(Side::Asking);
        assert_eq!(requests.all().len(), 0);
    }

    #[test]
    fn the_copy_has_the_parts_that_are_in_use() {
        let mut requests = NodeRequests::new("node1");
        let name = "0a000000-28.r1";
        requests.set(&object("node1", "u1", "1", json!(null)));
        assert!(requests.manifests().is_empty(), "nothing is granted");
        requests.set(&object("node1", "u1", "2", json!({"granted": "10.0.0.8/29"})));
        let mut read = NodeRequests::new("node1");
        read.set_known(&requests.manifests());
        assert_eq!(read.get(name).unwrap().outcome().granted, "10.0.0.8/29".parse().ok());
        requests.set_returning(name);
        assert!(requests.manifests().is_empty(), "it is about to be another's");
    }

    #[test]
    fn who_has_said_the_last_word_does_not_see_it_again() {
        let mut requests = NodeRequests::new("node2");
        let status = json!({"granted": "10.0.0.8/29", "returned": true});
        requests.set(&object("node1", "u1", "1", status.clone()));
        assert_eq!(requests.all().len(), 1);
        let mut done = status;
        done["refused"] = json!("it was returned");
        requests.set(&object("node1", "u1", "2", done.clone()));
        assert_eq!((requests.all().len(), requests.settled().len()), (0, 0), "not its to remove");
        let mut requests = NodeRequests::new("node1");
        requests.set(&object("node1", "u1", "2", done));
        assert_eq!(requests.settled(), ["0a000000-28.r1"]);
    }
}
