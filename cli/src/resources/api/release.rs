//! `twillctl ipam release --node`: the blocks of a node that is gone.

use jiff::Timestamp;
use kube::{
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use twill_k8s_api::{CLAIM_FINALIZER, Kind};
use twill_rpc::message::IpamNodeReleased;

use super::{ApiServer, MANAGER, Place, ipam::read_claim};
use crate::resources::{ResourceError, Resources, Target};

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
        let mut released =
            IpamNodeReleased { blocks: Vec::new(), parts: Vec::new(), lent: Vec::new() };
        for place in self.places(Kind::BlockAffinity) {
            for object in self.list_place(&place, Some(&format!("spec.node={node}")))? {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let claim = read_claim(&object).map_err(|message| {
                    ResourceError::Invalid(format!("blockaffinities/{name} is damaged: {message}"))
                })?;
                if claim.delegations.is_empty() {
                    self.take_away(&place, name, &object)?;
                    released.blocks.push(claim.block);
                } else {
                    released.lent.push(claim.block);
                }
            }
        }
        if !exists && released.lent.is_empty() {
            self.forget_fill(node)?;
        }
        Ok(released)
    }

    /// Takes the finalizer off and deletes, if the claim is the one that was read still.
    fn take_away(&self, place: &Place, name: &str, claim: &Value) -> Result<(), ResourceError> {
        let metadata = &claim["metadata"];
        let others: Vec<&Value> = metadata["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|finalizer| *finalizer != CLAIM_FINALIZER)
            .collect();
        let patch = Patch::Merge(json!({ "metadata": {
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "finalizers": others,
        }}));
        let api = self.api(place);
        let params =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.ask(self.request("patch", place, name), api.patch(name, &params, &patch))?;
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
