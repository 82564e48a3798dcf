//! What nodes that are gone have left: their claims, what they borrowed, and what they said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{coordination::v1::Lease as LeaseObject, core::v1::Node};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Preconditions},
    core::DynamicObject,
};
use tracing::info;
use twill_k8s_api::{CLAIM_FINALIZER, files::Lease};

use super::{
    borrowing::lent,
    kinds::List,
    leader::settled,
    metrics::Metrics,
    requests::{RequestError, Requests, or_gone},
    world::{RequestEntry, World},
};
use crate::{
    datastore::kubernetes::{Found, OF_NODES, Removal, lease_name, read_lease},
    gone::{Absences, had_node},
};

/// Longest interval between two searches for nodes that are gone.
const PERIOD: Duration = Duration::from_secs(60);

/// Interval at which Leases are read although no node seems gone: a Lease may be all that is left of one.
const LEFTOVERS: Duration = Duration::from_secs(3600);

/// How many nodes are cleared up after at once.
const NODES: usize = 16;

/// Who looks after them.
pub(super) struct Departed {
    pub(super) requests: Arc<Requests>,
    pub(super) metrics: Metrics,
    grace: Duration,
    absences: Absences,
    missing: usize,
    next_look: Instant,
    leases: BTreeMap<String, Lease>,
    listed: Option<Instant>,
}

impl Departed {
    pub(super) fn new(requests: Arc<Requests>, metrics: Metrics, grace: Duration) -> Self {
        Self {
            requests,
            metrics,
            grace,
            absences: Absences::default(),
            missing: 0,
            next_look: Instant::now(),
            leases: BTreeMap::new(),
            listed: None,
        }
    }

    /// How many nodes without a Node have left something.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// Looks who is gone, and frees what those had that have been gone for long enough.
    pub(super) async fn look(&mut self, world: &mut World) -> Result<(), RequestError> {
        let now = Instant::now();
        if now < self.next_look {
            return Ok(());
        }
        let needed = [List::Nodes, List::Claims, List::Requests, List::NodeStatuses];
        if !needed.iter().all(|list| world.is_current(*list)) {
            // A Node may be missing because it was not told. What was seen before counts on: whoever is
            // freed is asked for by name.
            return Ok(());
        }
        self.next_look = now + PERIOD.min(self.grace / 4);
        let mut absent = without_node(world);
        let is_due = self.listed.is_none_or(|listed| listed.elapsed() >= LEFTOVERS);
        if !absent.is_empty() || is_due {
            self.leases = self.list_leases().await?;
            self.listed = Some(now);
            let others = self.leases.keys().filter(|node| !world.nodes.contains_key(*node));
            absent.extend(others.cloned());
        }
        let absent = absent.into_iter().map(|node| {
            let lease = self.leases.get(&node).cloned();
            (node, lease)
        });
        let absent: BTreeMap<_, _> = absent.filter(|(_, lease)| had_node(lease.as_ref())).collect();
        self.missing = absent.len();
        for node in self.absences.note(now, absent) {
            info!(node, "a node that has left something has no Node any more");
        }
        for (node, lease) in self.absences.gone(now, self.grace).into_iter().take(NODES) {
            if self.clear_up(world, &node, lease.as_ref()).await? {
                self.absences.forget(&node);
                info!(node, "nothing is left of a node that is gone");
            }
        }
        Ok(())
    }

    async fn list_leases(&self) -> Result<BTreeMap<String, Lease>, RequestError> {
        let params = ListParams::default().labels(OF_NODES);
        let api = self.leases();
        let found = self.requests.read("list", "leases", "", api.list(&params)).await?;
        let leases = found.items.into_iter().filter_map(read_lease);
        Ok(leases.map(|lease| (lease.node.clone(), lease)).collect())
    }

    fn leases(&self) -> Api<LeaseObject> {
        Api::namespaced(self.requests.client(), self.requests.namespace())
    }

    /// Whether the node is still without a Node, and its daemon silent, as the API server has it now.
    pub(super) async fn is_still_gone(
        &self,
        node: &str,
        lease: Option<&Lease>,
    ) -> Result<bool, RequestError> {
        let api: Api<Node> = Api::all(self.requests.client());
        let found = api.get_metadata_opt(node);
        if self.requests.read("get", "nodes", node, found).await?.is_some() {
            return Ok(false);
        }
        let found = self.find_lease(node).await?;
        Ok(found.and_then(read_lease).as_ref() == lease)
    }

    async fn find_lease(&self, node: &str) -> Result<Option<LeaseObject>, RequestError> {
        let (api, name) = (self.leases(), lease_name(node));
        self.requests.read("get", "leases", &name, api.get_opt(&name)).await
    }

    /// Deletes a Lease as it was not renewed; whether it is gone. One that was renewed meanwhile is that of a
    /// daemon that lives.
    async fn delete_lease(&self, node: &str, lease: &Lease) -> Result<bool, RequestError> {
        let Some(found) = self.find_lease(node).await? else { return Ok(true) };
        let preconditions = Preconditions {
            uid: found.metadata.uid.clone(),
            resource_version: found.metadata.resource_version.clone(),
        };
        if read_lease(found).as_ref() != Some(lease) {
            return Ok(false);
        }
        let (api, name) = (self.leases(), lease_name(node));
        let params = DeleteParams::default().preconditions(preconditions);
        let request = api.delete(&name, &params);
        let deleted = self.requests.write("delete", "leases", &name, request).await;
        Ok(settled(or_gone(deleted))?.is_some())
    }

    /// Frees what a node had; whether nothing is left. Others' parts of its blocks keep these.
    async fn clear_up(
        &mut self,
        world: &mut World,
        node: &str,
        lease: Option<&Lease>,
    ) -> Result<bool, RequestError> {
        let mut is_all = self.return_borrowed(world, node, lease).await?;
        let of_node = |(name, entry): (&String, &super::world::ClaimEntry)| {
            let is_its = entry.claim.as_ref().is_ok_and(|claim| claim.node == node);
            is_its.then(|| name.clone())
        };
        let names: Vec<String> = world.claims.iter().filter_map(of_node).collect();
        for name in names {
            if !self.is_still_gone(node, lease).await? {
                return Ok(false);
            }
            let freed = settled(self.free(world, node, &name).await)?.unwrap_or(false);
            is_all &= freed;
        }
        is_all &= self.refuse_for(world, node, lease).await?;
        if !is_all || !self.is_still_gone(node, lease).await? {
            return Ok(false);
        }
        is_all &= self.delete(world, List::NodeStatuses, node).await?;
        if let Some(lease) = lease {
            let is_deleted = self.delete_lease(node, lease).await?;
            if is_deleted {
                self.leases.remove(node);
            }
            is_all &= is_deleted;
        }
        Ok(is_all)
    }

    /// Frees one claim; whether it is gone.
    async fn free(&self, world: &mut World, node: &str, name: &str) -> Result<bool, RequestError> {
        let api = self.requests.objects(List::Claims);
        let found = self.requests.read("get", "blockaffinities", name, api.get_opt(name)).await?;
        let Some(object) = found else {
            world.remove(List::Claims, name);
            return Ok(true);
        };
        world.apply(List::Claims, &object);
        let claim = world.claims.get(name).and_then(|entry| entry.claim.clone().ok());
        let Some(claim) = claim else { return Ok(false) };
        if claim.node != node {
            return Ok(true);
        }
        if !lent(&claim, world).is_empty() {
            return Ok(false);
        }
        let removal = Removal::new(&api, name, Found::of(&object), CLAIM_FINALIZER).with_parts();
        self.requests.remove(List::Claims, name, &removal).await?;
        world.remove(List::Claims, name);
        self.metrics.freed(List::Claims.kind());
        info!(node, block = %claim.block, "the node is gone: its block is free");
        Ok(true)
    }

    /// Deletes an object as it is known; whether it is gone.
    async fn delete(
        &self,
        world: &mut World,
        list: List,
        name: &str,
    ) -> Result<bool, RequestError> {
        let Some(meta) = world.meta(list, name) else { return Ok(true) };
        let uid = Some(meta.uid.clone());
        let preconditions = Preconditions { uid, resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let api: Api<DynamicObject> = self.requests.objects(list);
        let request = api.delete(name, &params);
        let deleted = self.requests.write("delete", list.plural(), name, request).await;
        let is_gone = settled(or_gone(deleted))?.is_some();
        if is_gone {
            world.remove(list, name);
            self.metrics.freed(list.kind());
        }
        Ok(is_gone)
    }
}

/// Who is asked, and has not said the last word.
fn unanswered(request: &RequestEntry) -> Option<&String> {
    request.owner.as_ref().filter(|_| !request.is_refused)
}

/// Who has left something, and has no Node.
fn without_node(world: &World) -> BTreeSet<String> {
    let claims = world.claims.values().filter_map(|entry| entry.claim.as_ref().ok());
    let owners = claims.flat_map(|claim| {
        let borrowers = claim.delegations.iter().map(|part| &part.node);
        std::iter::once(&claim.node).chain(borrowers)
    });
    // One whose spec names another node is somebody's, and not a daemon's.
    let speakers = world.statuses.iter().filter(|(_, status)| status.is_own);
    owners
        .chain(world.requests.values().map(|request| &request.node))
        .chain(world.requests.values().filter_map(unanswered))
        .chain(speakers.map(|(node, _)| node))
        .filter(|node| !world.nodes.contains_key(*node))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::{
            borrowing::lenders,
            samples::{self, object},
        },
        *,
    };

    fn claim(name: &str, spec: Value) -> (List, DynamicObject) {
        (List::Claims, object(List::Claims, name, spec))
    }

    fn request(name: &str, node: &str, returned: bool) -> (List, DynamicObject) {
        let spec = json!({"node": node, "owner": "asked", "block": "10.9.0.0/26"});
        let mut request = object(List::Requests, name, spec);
        request.data["status"] = json!({"returned": returned});
        (List::Requests, request)
    }

    fn world() -> World {
        let parts = json!([
            {"cidr": "10.0.0.0/28", "node": "borrower", "request": "r1"},
            {"cidr": "10.0.0.16/28", "node": "borrower", "request": "r2"},
            {"cidr": "10.0.0.32/28", "node": "here", "request": "r3"},
            {"cidr": "10.0.0.48/28", "node": "here", "request": "removed"},
        ]);
        let status = |name: &str, node: &str| {
            (List::NodeStatuses, object(List::NodeStatuses, name, json!({"node": node})))
        };
        samples::world(&[
            claim(
                "0a000000-26",
                json!({"node": "owner", "cidr": "10.0.0.0/26", "pool": "a", "delegations": parts}),
            ),
            claim("0a000040-26", json!({"node": "here", "cidr": "10.0.0.64/26", "pool": "a"})),
            // Nobody can say whose it is.
            claim("0a000080-26", json!({"node": "unknown", "cidr": "10.0.0.128/26"})),
            request("r1", "borrower", true),
            request("r3", "here", false),
            request("r4", "asker", false),
            status("speaker", "speaker"),
            status("of-people", "another"),
            (List::Nodes, object(List::Nodes, "here", Value::Null)),
        ])
    }

    #[test]
    fn who_has_left_something_and_has_no_node() {
        let found = without_node(&world());
        assert_eq!(
            found.iter().map(String::as_str).collect::<Vec<_>>(),
            ["asked", "asker", "borrower", "owner", "speaker"]
        );
    }

    #[test]
    fn a_part_is_lent_until_its_request_says_otherwise_or_is_gone() {
        let world = world();
        let claim = world.claims["0a000000-26"].claim.clone().unwrap();
        let parts = lent(&claim, &world);
        assert_eq!(
            parts.iter().map(|part| part.request.as_str()).collect::<Vec<_>>(),
            ["r3", "removed"]
        );
        assert_eq!(lenders(&world, "borrower").len(), 1);
        assert_eq!(lenders(&world, "owner").len(), 0);
    }
}
