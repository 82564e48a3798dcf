//! What `twillctl ipam` looks at, from the API server: pools, claims, Nodes, and what each node says of
//! itself in its CalicoNodeStatus.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::{
    Api,
    api::ListParams,
    core::{DynamicObject, PartialObjectMeta},
};
use serde_json::{Value, json};
use twill_k8s_api::{
    IpamReport, Kind, NodeStatusReport, ObjectReport, Problem, Resource, Severity,
    files::{Claim, Claims, NodeFill},
};
use twill_types::Block;

use super::{ApiServer, PAGE};
use crate::{
    ipam::{Datastore, Pool},
    resources::{Listing, ResourceError, Resources},
};

/// What a node says of itself.
#[derive(Debug)]
pub(super) struct OwnStatus {
    pub(super) node: String,
    /// What it makes of each object.
    pub(super) objects: Vec<ObjectReport>,
    /// How full its blocks are, if it tells.
    fill: Option<NodeFill>,
    /// What of it cannot be read.
    unread: Vec<String>,
}

impl OwnStatus {
    /// Reads a CalicoNodeStatus; `None` if a user made it to ask for something. A part that cannot be read,
    /// because it is of a later release, hides no other.
    fn of(object: &Value) -> Option<Self> {
        let node = object["metadata"]["name"].as_str()?;
        // Only the object that has a node's name is that node's own.
        (object["spec"]["node"] == *node).then_some(())?;
        let (report, unread) = NodeStatusReport::read(&object["status"]);
        let fill = report.ipam.map(|IpamReport { since, blocks }| NodeFill {
            node: node.to_owned(),
            since,
            blocks,
        });
        Some(Self { node: node.to_owned(), objects: report.objects, fill, unread })
    }
}

/// For how long a claim is young: its node may not have said yet how full the block is.
const SETTLED_SECONDS: i64 = 60;

impl ApiServer {
    /// What all nodes say.
    pub(super) fn node_statuses(&self) -> Result<Vec<OwnStatus>, ResourceError> {
        let mut all = Vec::new();
        for place in self.places(Kind::NodeStatus) {
            all.extend(self.list_place(&place, None)?.iter().filter_map(OwnStatus::of));
        }
        Ok(all)
    }

    pub(super) fn read_ipam(&self) -> Result<Datastore, ResourceError> {
        let mut all = Datastore { claims: self.claims()?, ..Datastore::default() };
        let keep = |all: &mut Datastore, kind| -> Result<Listing, ResourceError> {
            let listing = self.list(kind, &[])?;
            let errors = listing.problems.iter().filter(|p| p.severity == Severity::Error);
            all.manifest_problems.extend(errors.map(ToString::to_string));
            Ok(listing)
        };
        for item in keep(&mut all, Kind::IpPool)?.items {
            let name = item.name().to_owned();
            match item.resource {
                Some(Resource::IpPool(pool)) => {
                    let (cidr, block_size) = (pool.spec.cidr, pool.spec.block_size());
                    all.pools.insert(name, Pool { cidr, block_size });
                }
                _ => drop(all.broken_pools.insert(name)),
            }
        }
        for item in keep(&mut all, Kind::IpReservation)?.items {
            let name = item.name().to_owned();
            if let Some(Resource::IpReservation(reservation)) = item.resource {
                let ranges = reservation.spec.reserved_cidrs.into_iter();
                all.reservations.extend(ranges.map(|range| (name.clone(), range)));
            }
        }
        // IPAMConfiguration comes before IPAMConfig.
        let mut configs = keep(&mut all, Kind::IpamConfig)?.items;
        configs.sort_by_key(|item| item.kind() != Kind::IpamConfig.manifest_name());
        let default = configs.into_iter().find(|item| item.name() == "default");
        if let Some(Resource::IpamConfig(config)) = default.and_then(|item| item.resource) {
            all.config = Some(config.spec);
        }
        for name in self.names(Kind::Node)? {
            all.nodes.entry(name).or_default();
        }
        for status in self.node_statuses()? {
            let place = format!("caliconodestatuses/{}", status.node);
            let unread = status.unread.iter().map(|unread| format!("{place}: {unread}"));
            all.manifest_problems.extend(unread);
            match status.fill {
                Some(fill) => drop(all.fills.insert(status.node, fill)),
                None => drop(all.silent.insert(status.node)),
            }
        }
        all.settled = is_settled(&all.claims);
        Ok(all)
    }

    fn claims(&self) -> Result<Claims, ResourceError> {
        let mut all = Claims::default();
        for place in self.places(Kind::BlockAffinity) {
            for object in self.list_place(&place, None)? {
                add(&mut all, &object);
            }
        }
        Ok(all)
    }

    /// The names of all objects, and nothing else of them.
    fn names(&self, kind: Kind) -> Result<BTreeSet<String>, ResourceError> {
        let mut names = BTreeSet::new();
        for place in self.places(kind) {
            let api: Api<DynamicObject> = self.api(&place);
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let request = self.request("list", &place, "");
                let page = self.ask(request, api.list_metadata(&params))?;
                let name = |object: PartialObjectMeta<DynamicObject>| object.metadata.name;
                names.extend(page.items.into_iter().filter_map(name));
                match page.metadata.continue_ {
                    Some(token) if !token.is_empty() => params = params.continue_token(&token),
                    _ => break,
                }
            }
        }
        Ok(names)
    }
}

/// Adds a claim, or what is wrong with it.
fn add(all: &mut Claims, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match read_claim(object) {
        Ok(claim) => drop(all.claims.insert(claim.block, claim)),
        Err(message) => {
            all.damaged.extend(Block::from_claim_name(name).ok());
            let place = format!("blockaffinities/{name}");
            all.problems.push(Problem::of_file(Severity::Error, place, message));
        }
    }
}

/// Reads a claim; finalizers and status are no part of it.
pub(super) fn read_claim(object: &Value) -> Result<Claim, String> {
    let mut metadata = serde_json::Map::new();
    for field in ["name", "uid", "creationTimestamp"] {
        metadata.insert(field.to_owned(), object["metadata"][field].clone());
    }
    let manifest = json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata,
        "spec": object["spec"],
    });
    Claim::from_text(&manifest.to_string())
}

/// Whether all nodes had the time to say what they make of their claims.
fn is_settled(claims: &Claims) -> bool {
    let now = Timestamp::now();
    let ages = claims.claims.values().filter_map(|claim| {
        let made: Timestamp = claim.created.parse().ok()?;
        Some(now.duration_since(made).as_secs())
    });
    ages.min().is_none_or(|youngest| youngest > SETTLED_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_of_itself_by_its_name() {
        let block = json!({
            "block": "10.10.0.64/26", "pool": "a", "size": 64, "used": 3, "free": 61, "cooling": 0,
            "reserved": 0,
        });
        let condition =
            json!({"type": "Accepted", "status": "True", "reason": "Valid", "message": ""});
        let mut object = json!({
            "metadata": {"name": "node1"}, "spec": {"node": "node1"},
            "status": {
                "objects": [{"kind": "IPPool", "name": "a", "conditions": [condition]}, {"kind": 7}],
                "ipam": {"since": "2026-11-24T12:00:00Z", "blocks": [block]},
            },
        });
        let status = OwnStatus::of(&object).unwrap();
        let fill = status.fill.unwrap();
        assert_eq!((fill.node.as_str(), fill.blocks[0].used), ("node1", 3));
        assert_eq!(status.objects.len(), 1, "what is of a later release hides no other");
        assert_eq!(status.unread, ["status.objects[1]: has no kind, or no name"]);
        object["status"]["ipam"] = json!({"blocks": "full"});
        assert_eq!(OwnStatus::of(&object).unwrap().fill, None);
        object["status"] = Value::Null;
        assert_eq!(OwnStatus::of(&object).unwrap().fill, None);
        // One that a user made to ask for something.
        object["spec"]["node"] = json!("node2");
        assert!(OwnStatus::of(&object).is_none());
    }

    #[test]
    fn a_claim_is_read_without_what_is_about_it() {
        let mut object = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": {"name": "0a0a0040-26", "uid": "u", "creationTimestamp": "2026-11-24T11:00:00Z",
                "finalizers": ["twill.projectcalico.org/claim"], "resourceVersion": "7"},
            "spec": {"state": "confirmed", "node": "node1", "cidr": "10.10.0.64/26", "pool": "a"},
        });
        let mut all = Claims::default();
        add(&mut all, &object);
        assert_eq!(all.claims.values().next().unwrap().node, "node1");
        assert!(is_settled(&all), "it is old");
        object["metadata"]["creationTimestamp"] = json!(Timestamp::now().to_string());
        add(&mut all, &object);
        assert!(!is_settled(&all));
        object["spec"]["cidr"] = json!("10.10.0.128/26");
        add(&mut all, &object);
        assert_eq!((all.damaged.len(), all.problems.len()), (1, 1));
    }
}
