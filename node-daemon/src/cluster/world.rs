//! What the API server has told so far.

use std::collections::{BTreeMap, BTreeSet};

use kube::{api::ObjectMeta, core::DynamicObject, runtime::watcher::Event};
use serde_json::{Map, Value, json};
use twill_k8s_api::{
    Loaded, NodeStatusReport, Problem, Resource, Severity,
    files::{BlockFill, Claim},
    load_manifests,
};
use twill_types::Block;

use super::{
    conditions::{Counts, Stated},
    kinds::List,
    of_nodes::Asked,
    watching::News,
};
use crate::datastore::kubernetes::Version;

/// What of an object's metadata is of use here.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Meta {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) generation: Option<i64>,
    pub(super) finalizers: Vec<String>,
    pub(super) is_deleting: bool,
}

/// An object that users write.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) meta: Meta,
    /// The object, if it is right.
    pub(super) value: Option<Resource>,
    /// What is wrong with it.
    pub(super) problems: Vec<Problem>,
    pub(super) conditions: Vec<Stated>,
    pub(super) counts: Counts,
}

/// A claim of a block.
#[derive(Debug, Clone)]
pub(super) struct ClaimEntry {
    pub(super) meta: Meta,
    /// The claim, or what is wrong with it.
    pub(super) claim: Result<Claim, String>,
    pub(super) conditions: Vec<Stated>,
}

/// A request for a part of a block.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestEntry {
    pub(super) meta: Meta,
    /// Who asks.
    pub(super) node: String,
    /// Who is asked.
    pub(super) owner: Option<String>,
    /// Of which block.
    pub(super) block: Option<Block>,
    /// The owner has written which part it lends.
    pub(super) is_granted: bool,
    /// The owner has said its last word: it has no entry for it, and enters none.
    pub(super) is_refused: bool,
    /// Who asked does not use the part.
    pub(super) returned: bool,
    pub(super) conditions: Vec<Stated>,
}

impl RequestEntry {
    /// Value by value: one that cannot be read hides no other.
    fn of(object: &DynamicObject, meta: Meta) -> Self {
        let (spec, status) = (&object.data["spec"], &object.data["status"]);
        Self {
            meta,
            node: spec["node"].as_str().unwrap_or_default().to_owned(),
            owner: spec["owner"].as_str().map(ToOwned::to_owned),
            block: spec["block"].as_str().and_then(|block| block.parse().ok()),
            is_granted: !status["granted"].is_null(),
            is_refused: status["refused"].is_string(),
            returned: status["returned"] == true,
            conditions: stated(object).0,
        }
    }
}

/// What one node says.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeEntry {
    pub(super) meta: Meta,
    /// It is a daemon's own.
    pub(super) is_own: bool,
    pub(super) report: NodeStatusReport,
    /// The first value of it that cannot be read, if there is one.
    unread: Option<String>,
    pub(super) asked: Asked,
}

impl NodeEntry {
    /// How full its blocks are.
    pub(super) fn fills(&self) -> &[BlockFill] {
        self.report.ipam.as_ref().map_or(&[], |ipam| &ipam.blocks)
    }
}

/// How far a list is known.
#[derive(Debug, Default)]
struct Sync {
    /// It was told as a whole once.
    is_complete: bool,
    /// The names seen in a list that is being read.
    listing: Option<BTreeSet<String>>,
    /// Why it is behind.
    fault: Option<String>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) configuration: BTreeMap<List, BTreeMap<String, Entry>>,
    pub(super) claims: BTreeMap<String, ClaimEntry>,
    pub(super) requests: BTreeMap<String, RequestEntry>,
    pub(super) statuses: BTreeMap<String, NodeEntry>,
    pub(super) nodes: BTreeMap<String, Meta>,
    sync: BTreeMap<List, Sync>,
}

impl World {
    /// Whether a list is known as it is now, as far as can be told without asking.
    pub(super) fn is_current(&self, list: List) -> bool {
        self.sync.get(&list).is_some_and(|sync| sync.is_complete && sync.fault.is_none())
    }

    /// Whether a list was told as a whole once: what it lacks may be missing, what it has is no more than
    /// old.
    pub(super) fn is_complete(&self, list: List) -> bool {
        self.sync.get(&list).is_some_and(|sync| sync.is_complete)
    }

    /// Why lists are behind, where they are.
    pub(super) fn faults(&self) -> BTreeSet<String> {
        self.sync.values().filter_map(|sync| sync.fault.clone()).collect()
    }

    /// What nodes say that cannot be read here, in one text: in the middle of an upgrade it may be many.
    pub(super) fn unread(&self) -> Option<String> {
        let unread = |(node, status): (&String, &NodeEntry)| {
            Some(format!("caliconodestatuses/{node}: {}", status.unread.as_ref()?))
        };
        let unread: Vec<String> = self.statuses.iter().filter_map(unread).collect();
        let first = unread.first()?;
        let nodes = if unread.len() == 1 {
            "one node".to_owned()
        } else {
            format!("{} nodes", unread.len())
        };
        Some(format!(
            "not all that {nodes} say can be read, as daemons of another release may say it; the rest \
             counts. The first: {first}"
        ))
    }

    /// The objects of a list that users write, by name.
    pub(super) fn entries(&self, list: List) -> impl Iterator<Item = (&String, &Entry)> {
        self.configuration.get(&list).into_iter().flatten()
    }

    /// Takes over what a watch says; whether anything may have changed.
    pub(super) fn take(&mut self, list: List, news: News) -> bool {
        let sync = self.sync.entry(list).or_default();
        let event = match news {
            News::Resumed => return sync.fault.take().is_some(),
            News::Failed { text, .. } => {
                sync.fault = Some(text);
                return false;
            }
            News::Event(event) => *event,
        };
        if !matches!(event, Event::Init | Event::InitApply(_)) {
            sync.fault = None;
        }
        match event {
            Event::Init => sync.listing = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                if let Some(listing) = &mut sync.listing {
                    listing.extend(object.metadata.name.clone());
                }
                self.set(list, &object);
            }
            Event::InitDone => {
                sync.is_complete = true;
                if let Some(listed) = sync.listing.take() {
                    self.retain(list, &listed);
                }
            }
            Event::Apply(object) => self.apply(list, &object),
            Event::Delete(object) => {
                self.remove(list, &object.metadata.name.unwrap_or_default());
            }
        }
        true
    }

    /// Takes over an object that was told by a watch or answered to a write; whichever is older does
    /// not count.
    pub(super) fn apply(&mut self, list: List, object: &DynamicObject) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let known = self.meta(list, name);
        if !known.is_some_and(|known| is_older(object, known)) {
            self.set(list, object);
        }
    }

    pub(super) fn meta(&self, list: List, name: &str) -> Option<&Meta> {
        match list {
            List::Claims => self.claims.get(name).map(|entry| &entry.meta),
            List::Requests => self.requests.get(name).map(|entry| &entry.meta),
            List::NodeStatuses => self.statuses.get(name).map(|entry| &entry.meta),
            List::Nodes => self.nodes.get(name),
            _ => self.configuration.get(&list)?.get(name).map(|entry| &entry.meta),
        }
    }

    fn set(&mut self, list: List, object: &DynamicObject) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let meta = meta(&object.metadata);
        match list {
            List::Claims => {
                let claim = Claim::from_text(&trim(list, object).to_string());
                let (conditions, _) = stated(object);
                self.claims.insert(name, ClaimEntry { meta, claim, conditions });
            }
            List::Requests => {
                self.requests.insert(name, RequestEntry::of(object, meta));
            }
            List::NodeStatuses => {
                // People may make others, as on Calico; a daemon's own is named by its node.
                let is_own = object.data["spec"]["node"] == json!(name);
                let (report, unread) = match is_own {
                    true => NodeStatusReport::read(&object.data["status"]),
                    false => Default::default(),
                };
                let unread = unread.into_iter().next();
                let asked = Asked::of(object);
                self.statuses.insert(name, NodeEntry { meta, is_own, report, unread, asked });
            }
            List::Nodes => drop(self.nodes.insert(name, meta)),
            _ => {
                let text = trim(list, object).to_string();
                let Loaded { resources, problems } =
                    load_manifests(&text, &format!("{}/{name}", list.plural()));
                let mut problems = problems;
                problems.retain(|problem| problem.severity == Severity::Error);
                let value = resources.into_iter().next().map(|found| found.value);
                let (conditions, counts) = stated(object);
                let entry = Entry { meta, value, problems, conditions, counts };
                self.configuration.entry(list).or_default().insert(name, entry);
            }
        }
    }

    /// What is not there any more.
    pub(super) fn remove(&mut self, list: List, name: &str) {
        match list {
            List::Claims => drop(self.claims.remove(name)),
            List::Requests => drop(self.requests.remove(name)),
            List::NodeStatuses => drop(self.statuses.remove(name)),
            List::Nodes => drop(self.nodes.remove(name)),
            _ => drop(self.configuration.entry(list).or_default().remove(name)),
        }
    }

    fn retain(&mut self, list: List, listed: &BTreeSet<String>) {
        match list {
            List::Claims => self.claims.retain(|name, _| listed.contains(name)),
            List::Requests => self.requests.retain(|name, _| listed.contains(name)),
            List::NodeStatuses => self.statuses.retain(|name, _| listed.contains(name)),
            List::Nodes => self.nodes.retain(|name, _| listed.contains(name)),
            _ => {
                let objects = self.configuration.entry(list).or_default();
                objects.retain(|name, _| listed.contains(name));
            }
        }
    }
}

/// Whether an object is an earlier state of what is known.
fn is_older(object: &DynamicObject, known: &Meta) -> bool {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let number = object.metadata.resource_version.as_deref().unwrap_or_default();
    let known = Version { uid: &known.uid, number: &known.version };
    Version { uid, number }.is_older_than(known)
}

fn meta(metadata: &ObjectMeta) -> Meta {
    Meta {
        uid: metadata.uid.clone().unwrap_or_default(),
        version: metadata.resource_version.clone().unwrap_or_default(),
        generation: metadata.generation,
        finalizers: metadata.finalizers.clone().unwrap_or_default(),
        is_deleting: metadata.deletion_timestamp.is_some(),
    }
}

/// What is said in the object's own status now.
pub(super) fn stated(object: &DynamicObject) -> (Vec<Stated>, Counts) {
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    // One that cannot be read is written anew.
    let conditions = conditions.filter_map(|value| serde_json::from_value(value.clone()).ok());
    let counts = serde_json::from_value(status["nodes"].clone()).unwrap_or_default();
    (conditions.collect(), counts)
}

/// The object as the nodes read it.
fn trim(list: List, object: &DynamicObject) -> Value {
    let metadata = &object.metadata;
    let mut kept = Map::new();
    kept.insert("name".to_owned(), json!(metadata.name));
    kept.insert("uid".to_owned(), json!(metadata.uid));
    kept.insert("creationTimestamp".to_owned(), json!(metadata.creation_timestamp));
    json!({
        "apiVersion": list.api_version(), "kind": list.kind(), "metadata": kept,
        "spec": object.data["spec"],
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{self, object},
        *,
    };

    #[test]
    fn a_list_counts_when_it_is_complete_and_nothing_fails() {
        let event = |event| News::Event(Box::new(event));
        let node = object(List::Nodes, "node1", Value::Null);
        let mut world = World::default();
        world.take(List::Nodes, event(Event::Init));
        world.take(List::Nodes, event(Event::InitApply(node.clone())));
        assert!(!world.is_current(List::Nodes), "a part of a list says nothing");
        world.take(List::Nodes, event(Event::InitDone));
        assert!(world.is_current(List::Nodes));
        world.take(List::Nodes, News::Failed { text: "it is away".to_owned(), refused: false });
        assert!(!world.is_current(List::Nodes) && world.is_complete(List::Nodes));
        world.take(List::Nodes, News::Resumed);
        assert!(world.is_current(List::Nodes));
        // Read once more: nothing goes before the new list is complete.
        world.take(List::Nodes, event(Event::Init));
        assert_eq!(world.nodes.len(), 1);
        world.take(List::Nodes, event(Event::InitDone));
        assert_eq!(world.nodes.len(), 0);
    }

    #[test]
    fn late_news_of_the_watch_do_not_undo_what_was_written() {
        let mut world = samples::world(&[]);
        let mut pool = object(List::Pools, "a", json!({"cidr": "10.0.0.0/16"}));
        pool.metadata.resource_version = Some("10".to_owned());
        pool.metadata.finalizers = Some(vec!["f".to_owned()]);
        world.apply(List::Pools, &pool);
        pool.metadata.resource_version = Some("9".to_owned());
        pool.metadata.finalizers = None;
        world.take(List::Pools, News::Event(Box::new(Event::Apply(pool.clone()))));
        assert_eq!(world.meta(List::Pools, "a").unwrap().finalizers, ["f"]);
        // Made again, it is another object.
        pool.metadata.uid = Some("another".to_owned());
        world.apply(List::Pools, &pool);
        assert_eq!(world.meta(List::Pools, "a").unwrap().finalizers, [""; 0]);
    }
    #[test]
    fn a_value_of_a_newer_release_does_not_silence_a_node() {
        let status = |node: &str, verdict: &str| {
            let conditions = json!([
                {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""},
                {"type": "Other", "status": verdict, "reason": "New", "message": ""},
            ]);
            let mut status = object(List::NodeStatuses, node, json!({"node": node}));
            status.data["status"] = json!({
                "objects": [{"kind": "IPPool", "name": "a", "conditions": conditions}],
                "ipam": {"since": "2026-01-01T00:00:00Z", "blocks": [{
                    "block": "10.0.0.0/26", "pool": "a", "size": 64, "used": 0, "free": 64,
                    "cooling": 0, "reserved": 0,
                }]},
            });
            (List::NodeStatuses, status)
        };
        let world = samples::world(&[status("n1", "True"), status("n2", "True")]);
        assert_eq!(world.unread(), None);
        let world =
            samples::world(&[status("n1", "True"), status("n2", "Likely"), status("n3", "Likely")]);
        let newer = &world.statuses["n2"];
        assert_eq!((newer.report.objects[0].conditions.len(), newer.fills().len()), (1, 1));
        let unread = world.unread().unwrap();
        let place =
            "caliconodestatuses/n2: status.objects[0].conditions[1]: unknown variant `Likely`";
        assert!(unread.contains(place) && unread.contains("2 nodes"), "{unread}");
    }
}
