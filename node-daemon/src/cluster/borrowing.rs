//! The requests of nodes that are gone, and those that ask them: docs/adr/0022-lending-on-the-api.md has
//! the order of the writes. What a node that is gone would write is written for it here.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tracing::info;
use twill_k8s_api::{
    Delegation, NOT_OURS, REQUEST_FINALIZER,
    files::{Claim, Lease},
};

use super::{
    departed::Departed,
    kinds::List,
    leader::settled,
    requests::RequestError,
    world::{RequestEntry, World},
};
use crate::datastore::kubernetes::{Found, Removal};

impl Departed {
    /// Says for a node that is gone that it does not use what it has borrowed: the owner takes it back, and
    /// what it has said the last word about is removed. Whether nothing of that is left to be done.
    pub(super) async fn return_borrowed(
        &self,
        world: &mut World,
        node: &str,
        lease: Option<&Lease>,
    ) -> Result<bool, RequestError> {
        let of_node = |(name, request): (&String, &RequestEntry)| {
            (request.node == node).then(|| name.clone())
        };
        let asked: Vec<String> = world.requests.iter().filter_map(of_node).collect();
        let lenders = lenders(world, node);
        if asked.is_empty() && lenders.is_empty() {
            return Ok(true);
        }
        if !self.is_still_gone(node, lease).await? {
            return Ok(false);
        }
        let mut is_all = true;
        for name in asked {
            let Some(request) = world.requests.get(&name) else { continue };
            if !request.returned {
                self.write_status(world, &name, &json!({"returned": true})).await?;
                is_all = false;
            } else if is_over(request, &name, world) {
                is_all &= self.remove_request(world, node, &name).await?;
            } else {
                // The owner takes the part back first.
                is_all = false;
            }
        }
        for (name, claim) in lenders {
            let is_asked = |part: &Delegation| world.requests.contains_key(&part.request);
            let parts = claim.delegations.iter();
            let kept = parts.filter(|part| part.node != node || is_asked(part)).cloned();
            let kept: Vec<Delegation> = kept.collect();
            if kept.len() < claim.delegations.len() {
                is_all &= self.take_parts_off(world, &name, kept).await?;
            }
        }
        Ok(is_all)
    }

    /// Answers for a node that is gone that it lends nothing of what was its own. Whether nobody waits for it
    /// any more. A part that somebody uses stays its, also where no claim is left that names it.
    pub(super) async fn refuse_for(
        &self,
        world: &mut World,
        node: &str,
        lease: Option<&Lease>,
    ) -> Result<bool, RequestError> {
        let asks = |(name, request): (&String, &RequestEntry)| {
            let is_open = request.owner.as_deref() == Some(node) && !request.is_refused;
            is_open.then(|| name.clone())
        };
        let asking: Vec<String> = world.requests.iter().filter_map(asks).collect();
        let mut is_all = true;
        for name in asking {
            let Some(request) = world.requests.get(&name) else { continue };
            let is_used = request.is_granted && !request.returned;
            if is_used || is_claimed_by(request, node, world) {
                is_all = false;
                continue;
            }
            if !self.is_still_gone(node, lease).await? {
                return Ok(false);
            }
            is_all &= self.write_status(world, &name, &json!({"refused": NOT_OURS})).await?;
        }
        Ok(is_all)
    }

    /// Writes in the status of a request, as it is known; whether that was done.
    async fn write_status(
        &self,
        world: &mut World,
        name: &str,
        status: &Value,
    ) -> Result<bool, RequestError> {
        let Some(meta) = world.meta(List::Requests, name) else { return Ok(true) };
        let patch = json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.version}, "status": status,
        });
        let (api, params) = (self.requests.objects(List::Requests), PatchParams::default());
        let patch = Patch::Merge(&patch);
        let request = api.patch_status(name, &params, &patch);
        let written = self.requests.write("patch", "blockrequests/status", name, request).await;
        let Some(written) = settled(written)? else { return Ok(false) };
        world.apply(List::Requests, &written);
        Ok(true)
    }

    /// Takes the finalizer off a request, and deletes it; whether it is gone.
    async fn remove_request(
        &self,
        world: &mut World,
        node: &str,
        name: &str,
    ) -> Result<bool, RequestError> {
        let Some(meta) = world.meta(List::Requests, name).cloned() else { return Ok(true) };
        let found = Found {
            uid: &meta.uid,
            version: &meta.version,
            finalizers: &meta.finalizers,
            is_going: meta.is_deleting,
        };
        let api = self.requests.objects(List::Requests);
        let removal = Removal::new(&api, name, found, REQUEST_FINALIZER);
        if settled(self.requests.remove(List::Requests, name, &removal).await)?.is_none() {
            return Ok(false);
        }
        world.remove(List::Requests, name);
        self.metrics.freed(List::Requests.kind());
        info!(node, request = name, "the node is gone: what it asked for is settled");
        Ok(true)
    }

    /// Parts whose requests are gone are nobody's; whether that is written.
    async fn take_parts_off(
        &self,
        world: &mut World,
        name: &str,
        kept: Vec<Delegation>,
    ) -> Result<bool, RequestError> {
        let Some(meta) = world.meta(List::Claims, name) else { return Ok(true) };
        let patch = json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.version},
            "spec": {"delegations": kept},
        });
        let (api, params) = (self.requests.objects(List::Claims), PatchParams::default());
        let patch = Patch::Merge(&patch);
        let request = api.patch(name, &params, &patch);
        let written = self.requests.write("patch", "blockaffinities", name, request).await;
        let written = settled(written)?;
        if let Some(written) = &written {
            world.apply(List::Claims, written);
        }
        Ok(written.is_some())
    }
}

/// Whether nothing will be entered for a request any more: its owner has said the last word, or nobody is
/// asked. An owner that is gone is answered for.
fn is_over(request: &RequestEntry, name: &str, world: &World) -> bool {
    let is_named = || {
        let claims = world.claims.values().filter_map(|entry| entry.claim.as_ref().ok());
        claims.flat_map(|claim| &claim.delegations).any(|part| part.request == *name)
    };
    request.is_refused || request.owner.is_none() && !is_named()
}

/// Whether a node has the claim of the block that a request is about; also one that cannot be read, as its
/// name says of which block it is.
fn is_claimed_by(request: &RequestEntry, node: &str, world: &World) -> bool {
    let claim = request.block.and_then(|block| world.claims.get(&block.claim_name()));
    claim.is_some_and(|entry| entry.claim.as_ref().map_or(true, |claim| claim.node == node))
}

/// The claims that this node has a part of.
pub(super) fn lenders(world: &World, node: &str) -> Vec<(String, Claim)> {
    let claims = world.claims.iter().filter_map(|(name, entry)| {
        let claim = entry.claim.as_ref().ok()?;
        let has_part = claim.delegations.iter().any(|part| part.node == node);
        has_part.then(|| (name.clone(), claim.clone()))
    });
    claims.collect()
}

/// The parts of a claim that somebody still has: one is over when its request says that it came back, or is
/// gone with the node that asked. A node that lives makes its request again.
pub(super) fn lent<'a>(claim: &'a Claim, world: &World) -> Vec<&'a Delegation> {
    let is_over = |part: &Delegation| match world.requests.get(&part.request) {
        Some(request) => request.returned,
        None => !world.nodes.contains_key(&part.node),
    };
    claim.delegations.iter().filter(|part| !is_over(part)).collect()
}
