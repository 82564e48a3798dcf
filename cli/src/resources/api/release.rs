//! `twillctl ipam release --node`: the blocks of a node that is gone, and what it has to do with others'.
//! docs/adr/0022-lending-on-the-api.md has the order of the writes.

use jiff::Timestamp;
use kube::{
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use twill_k8s_api::{CLAIM_FINALIZER, Kind, NOT_OURS, REQUEST_FINALIZER};
use twill_rpc::message::IpamNodeReleased;
use twill_types::Block;

use super::{ApiServer, MANAGER, Place, ipam::read_claim};
use crate::resources::{ResourceError, Resources, Target};

/// How often claims are read again that their owners change at the same moment.
const ATTEMPTS: usize = 4;

/// What a finalizer of ours holds, and is to go.
struct Held<'a> {
    place: &'a Place,
    object: &'a Value,
    finalizer: &'a str,
}

impl ApiServer {
    /// Takes away the claims of a node that has no Node object and whose daemon shows no life; with
    /// `force`, whatever it has.
    pub(super) fn give_back(
        &self,
        node: &str,
        force: bool,
    ) -> Result<IpamNodeReleased, ResourceError> {
        let exists = match self.get(&Target::named(Kind::Node, node)) {
            Ok(_) => true,
            Err(ResourceError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        if exists && !force {
            let message = format!("{node} has a Node; delete that, or say --force");
            return Err(ResourceError::InUse(message));
        }
        if !force && let Some(seconds) = self.sign_of_life(node)? {
            return Err(ResourceError::InUse(format!(
                "the daemon of {node} gave a sign of life {seconds} s ago; end it, or say --force if \
                 it certainly does not run"
            )));
        }
        let mut released = IpamNodeReleased::default();
        self.settle_own_requests(node, &mut released)?;
        let asking = self.block_requests(&format!("spec.owner={node}"))?;
        let is_returned = |name: &str| {
            let of_name = asking.iter().find(|(_, request)| request["metadata"]["name"] == *name);
            of_name.is_some_and(|(_, request)| request["status"]["returned"] == true)
        };
        for place in self.places(Kind::BlockAffinity) {
            for object in self.list_place(&place, Some(&format!("spec.node={node}")))? {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let claim = read_claim(&object).map_err(|message| {
                    ResourceError::Invalid(format!("blockaffinities/{name} is damaged: {message}"))
                })?;
                if claim.delegations.iter().all(|part| is_returned(&part.request)) {
                    let (place, finalizer) = (&place, CLAIM_FINALIZER);
                    let parts = json!({"delegations": null});
                    self.take_away(&Held { place, object: &object, finalizer }, Some(parts))?;
                    released.blocks.push(claim.block);
                } else {
                    released.lent.push(claim.block);
                }
            }
        }
        self.answer_for(&asking, &mut released)?;
        if !exists && released.lent.is_empty() {
            self.forget_fill(node)?;
        }
        Ok(released)
    }

    /// All objects of a kind, with where they are.
    fn objects(
        &self,
        kind: Kind,
        field: Option<&str>,
    ) -> Result<Vec<(Place, Value)>, ResourceError> {
        let mut found = Vec::new();
        for place in self.places(kind) {
            for object in self.list_place(&place, field)? {
                let Place { resource, namespace } = &place;
                let place = Place { resource: resource.clone(), namespace: namespace.clone() };
                found.push((place, object));
            }
        }
        Ok(found)
    }

    fn block_requests(&self, field: &str) -> Result<Vec<(Place, Value)>, ResourceError> {
        self.objects(Kind::BlockRequest, Some(field))
    }

    /// Ends what a node has asked others for. First it is said to be returned, so that no owner enters any more of
    /// it; then the parts are taken off the claims, if no owner has been faster; then the requests go, which an
    /// owner would wait with for a word of its own. An owner that had read the request before all that may enter the
    /// part after it, so claims are looked at once more in the end.
    fn settle_own_requests(
        &self,
        node: &str,
        released: &mut IpamNodeReleased,
    ) -> Result<(), ResourceError> {
        let asked = self.block_requests(&format!("spec.node={node}"))?;
        let lenders = self.lenders(node)?;
        for (place, request) in asked.iter().filter(|(_, r)| r["status"]["returned"] != true) {
            let metadata = json!({"uid": request["metadata"]["uid"]});
            self.say(place, request, &metadata, &json!({"returned": true}))?;
        }
        note_parts(&lenders, node, released);
        self.take_all_parts_back(node)?;
        for (place, request) in &asked {
            // Also if its owner has written its last word into it meanwhile.
            let mut request = request.clone();
            request["metadata"]["resourceVersion"] = Value::Null;
            let held = Held { place, object: &request, finalizer: REQUEST_FINALIZER };
            self.take_away(&held, None)?;
            released.requests += 1;
        }
        if asked.is_empty() {
            return Ok(());
        }
        note_parts(&self.lenders(node)?, node, released);
        self.take_all_parts_back(node)
    }

    /// Takes the parts of a node off others' claims, which their owners may write at the same moment.
    fn take_all_parts_back(&self, node: &str) -> Result<(), ResourceError> {
        let mut attempts = 0..ATTEMPTS;
        while !self.take_parts_back(node)? {
            attempts.next().ok_or(ResourceError::Conflict)?;
        }
        Ok(())
    }

    /// Takes the parts of a node off others' claims; `false` if one was written meanwhile.
    fn take_parts_back(&self, node: &str) -> Result<bool, ResourceError> {
        for (place, claim) in self.lenders(node)? {
            match self.take_parts_off(&place, &claim, node) {
                Ok(()) => {}
                Err(ResourceError::Conflict | ResourceError::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Others' claims that a node has parts of.
    fn lenders(&self, node: &str) -> Result<Vec<(Place, Value)>, ResourceError> {
        let found = self.objects(Kind::BlockAffinity, None)?.into_iter();
        let is_lender = |claim: &Value| {
            claim["spec"]["node"] != *node && parts(claim).any(|part| part["node"] == *node)
        };
        Ok(found.filter(|(_, claim)| is_lender(claim)).collect())
    }

    /// Takes the parts of a node off another's claim, as that was read.
    fn take_parts_off(
        &self,
        place: &Place,
        claim: &Value,
        node: &str,
    ) -> Result<(), ResourceError> {
        let kept: Vec<&Value> = parts(claim).filter(|part| part["node"] != *node).collect();
        let metadata = &claim["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let patch = Patch::Merge(json!({
            "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
            "spec": {"delegations": kept},
        }));
        let (api, params) = (self.api(place), params());
        let call = api.patch(name, &params, &patch);
        self.ask(self.request("patch", place, name), call).map(drop)
    }

    /// Answers for a node that lends nothing any more, so that who asked it does not wait for ever. What somebody
    /// uses stays as it is.
    fn answer_for(
        &self,
        asking: &[(Place, Value)],
        released: &mut IpamNodeReleased,
    ) -> Result<(), ResourceError> {
        let lent: Vec<String> = released.lent.iter().map(ToString::to_string).collect();
        for (place, request) in asking {
            let (metadata, status) = (&request["metadata"], &request["status"]);
            let is_used = !status["granted"].is_null() && status["returned"] != true;
            let is_lent = lent.iter().any(|block| request["spec"]["block"] == **block);
            if is_used || is_lent || !status["refused"].is_null() {
                continue;
            }
            let as_read =
                json!({"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]});
            if self.say(place, request, &as_read, &json!({"refused": NOT_OURS}))? {
                released.requests += 1;
            }
        }
        Ok(())
    }

    /// Writes into the status of a request; `false` if there is none any more.
    fn say(
        &self,
        place: &Place,
        request: &Value,
        metadata: &Value,
        status: &Value,
    ) -> Result<bool, ResourceError> {
        let name = request["metadata"]["name"].as_str().unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": metadata, "status": status}));
        let (api, params) = (self.api(place), params());
        let call = api.patch_status(name, &params, &patch);
        match self.ask(self.request("patch", place, &format!("{name}/status")), call) {
            Ok(_) => Ok(true),
            Err(ResourceError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the finalizer off and deletes, if the object is the one that was read still. One that is gone by
    /// then is what was wanted.
    fn take_away(&self, held: &Held<'_>, spec: Option<Value>) -> Result<(), ResourceError> {
        let Held { place, object, finalizer } = held;
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
        let others: Vec<&Value> = finalizers.filter(|other| *other != finalizer).collect();
        let mut bare = json!({"metadata": {"uid": metadata["uid"], "finalizers": others}});
        if !metadata["resourceVersion"].is_null() {
            bare["metadata"]["resourceVersion"] = metadata["resourceVersion"].clone();
        }
        if let Some(spec) = spec {
            bare["spec"] = spec;
        }
        let api = self.api(place);
        let patch = Patch::Merge(bare);
        match self.ask(self.request("patch", place, name), api.patch(name, &params(), &patch)) {
            Ok(_) => {}
            Err(ResourceError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let uid = metadata["uid"].as_str().map(str::to_owned);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match self.ask(self.request("delete", place, name), api.delete(name, &params)) {
            // One that was to be deleted already goes with its finalizer.
            Ok(_) | Err(ResourceError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long ago the daemon of a node renewed its Lease, seconds, if that is not so long ago that it
    /// counts as gone.
    fn sign_of_life(&self, node: &str) -> Result<Option<i64>, ResourceError> {
        let kind = GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease");
        let resource = ApiResource::from_gvk_with_plural(&kind, "leases");
        // In which namespace the daemons run is not known here.
        let place = Place { resource, namespace: None };
        let leases = self.list_place(&place, Some(&format!("metadata.name=twill-node-{node}")))?;
        let ages = leases.iter().filter_map(|lease| {
            let renewed: Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
            let age = Timestamp::now().duration_since(renewed).as_secs().max(0);
            let seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or_default();
            (age < 2 * seconds).then_some(age)
        });
        Ok(ages.min())
    }
}

/// The parts of a claim that others have.
fn parts(claim: &Value) -> impl Iterator<Item = &Value> {
    claim["spec"]["delegations"].as_array().into_iter().flatten()
}

/// Tells which parts of these claims a node has, once each.
fn note_parts(lenders: &[(Place, Value)], node: &str, released: &mut IpamNodeReleased) {
    let of_node = lenders.iter().flat_map(|(_, claim)| parts(claim));
    let of_node = of_node.filter(|part| part["node"] == *node);
    for cidr in of_node.filter_map(|part| part["cidr"].as_str()?.parse::<Block>().ok()) {
        if !released.parts.contains(&cidr) {
            released.parts.push(cidr);
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

#[cfg(test)]
mod tests;
