//! Parts of blocks on the API server: docs/adr/0022-lending-on-the-api.md has the order of the writes, and
//! why none of them needs a lock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use twill_k8s_api::{
    BlockRequestSpec, Delegation, NOT_OURS, REQUEST_FINALIZER,
    files::{Claim, Claims},
};
use twill_types::Block;

use super::{
    access::ApiError,
    claims::{ApiClaims, lock, read_claim},
    names::{self, Age, Listed, Which},
    removal::{Found, Removal},
    requests::Told,
    subject::BLOCK_REQUESTS,
};
use crate::datastore::{
    Answer, Borrowed, DatastoreError, Grant, Lender, Lending, Requests, new_uid,
};

/// How long a list of all claims says who may lend anything.
const CURRENT: Duration = Duration::from_secs(10);

/// The owner's last word about a part that it has taken back.
const TAKEN_BACK: &str = "it was returned, and taken back";

impl ApiClaims {
    /// What was written about a request, or told.
    fn note_request(&self, object: &DynamicObject) {
        self.requests.send_modify(|requests| Arc::make_mut(requests).set(object));
    }

    fn told(&self, name: &str) -> Option<Told> {
        self.requests.borrow().get(name).cloned()
    }

    fn find_request(&self, name: &str) -> Result<Option<Told>, ApiError> {
        let found = self.access.ask(
            "get",
            format!("blockrequests/{name}"),
            self.request_api.get_opt(name),
        )?;
        if let Some(object) = &found {
            self.note_request(object);
        }
        Ok(found.and_then(|_| self.told(name)))
    }

    fn create_request(&self, name: &str, spec: &BlockRequestSpec) -> Result<(), ApiError> {
        let mut object = DynamicObject::new(name, &BLOCK_REQUESTS.resource());
        object.metadata.finalizers = Some(vec![REQUEST_FINALIZER.to_owned()]);
        let object = object.data(json!({ "spec": spec }));
        let params = PostParams::default();
        let request = self.request_api.create(&params, &object);
        let made = self.access.ask("create", format!("blockrequests/{name}"), request)?;
        self.note_request(&made);
        Ok(())
    }

    /// Changes the status of a request; `false` if there is none.
    fn write_status(&self, name: &str, status: &Value) -> Result<bool, ApiError> {
        let patch = json!({ "status": status });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.request_api.patch_status(name, &params, &patch);
        match self.access.ask("patch", format!("blockrequests/{name}/status"), request) {
            Ok(object) => {
                self.note_request(&object);
                Ok(true)
            }
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a request of this node that its owner has said the last word about; `false` if somebody has
    /// written into it meanwhile, as the controller does when it says what became of it.
    fn remove_request(&self, name: &str) -> Result<bool, ApiError> {
        let Some(known) = self.told(name) else { return Ok(true) };
        let is_gone = || {
            self.requests.send_modify(|all| Arc::make_mut(all).removed(name, &known.uid));
        };
        // As it is now: out of the copy it has neither version nor finalizers.
        let Some(told) = self.find_request(name)?.filter(|told| told.uid == known.uid) else {
            is_gone();
            return Ok(true);
        };
        let what = format!("blockrequests/{name}");
        let found = Found {
            uid: &told.uid,
            version: &told.version,
            finalizers: &told.finalizers,
            is_going: told.is_going,
        };
        let removal = Removal::new(&self.request_api, name, found, REQUEST_FINALIZER);
        let gone = self.access.ask("patch", what.clone(), removal.unhold()).and_then(|unheld| {
            removal
                .delete(&unheld)
                .map_or(Ok(()), |request| self.access.ask("delete", what, request))
        });
        match gone {
            Err(error) if error.is(409) => return Ok(false),
            Err(error) if !error.is(404) => return Err(error),
            // Gone already, by hand or with its finalizer.
            Ok(()) | Err(_) => {}
        }
        is_gone();
        Ok(true)
    }

    /// Writes the delegations of a claim over what they were when it was read.
    fn delegate(&self, object: &DynamicObject, parts: &[Delegation]) -> Result<Claim, ApiError> {
        let meta = &object.metadata;
        let patch = json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "spec": {"delegations": parts},
        });
        let name = meta.name.clone().unwrap_or_default();
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.api.patch(&name, &params, &patch);
        let written = self.access.ask("patch", format!("blockaffinities/{name}"), request)?;
        self.note(&written)
    }

    /// A claim of this node as it is now, with what it says; `None` if it is another one by now.
    fn own_claim(&self, claim: &Claim) -> Result<Option<(DynamicObject, Claim)>, ApiError> {
        let Some(object) = self.find(claim.block)? else { return Ok(None) };
        let found = read_claim(&object)?;
        Ok((found.uid == claim.uid).then_some((object, found)))
    }
}

impl Lending for ApiClaims {
    /// Nobody tells that here.
    fn free_addresses(&self) -> Result<BTreeMap<Block, u32>, DatastoreError> {
        Ok(BTreeMap::new())
    }

    fn forget_fill(&self, _node: &str) -> Result<bool, DatastoreError> {
        Ok(false)
    }

    /// Whether a block is set aside for a network is for its owner to say.
    fn lenders(&self, node: &str, pools: &[String]) -> Result<Vec<Lender>, DatastoreError> {
        let mut listed = lock(&self.lenders);
        if listed.as_ref().is_none_or(|(when, _)| when.elapsed() >= CURRENT) {
            *listed = Some((Instant::now(), names::list(&self.access, Which::All, Age::Any)?));
        }
        let listed = listed.iter().flat_map(|(_, listed)| listed);
        let is_lender = |claim: &&Listed| claim.node != node && pools.contains(&claim.pool);
        let lender = |claim: &Listed| {
            let Listed { block, node, pool } = claim.clone();
            Lender { block, node, pool }
        };
        Ok(listed.filter(is_lender).map(lender).collect())
    }

    fn is_by_request(&self) -> bool {
        true
    }

    /// The owner writes into the request what it has entered in its claim, and takes it out of there only
    /// when the request says that it was returned.
    fn borrowed(&self, node: &str, _all: &Claims, requests: &Requests) -> Vec<Borrowed> {
        let part = |(name, request): (&String, &Option<_>)| {
            let request: &twill_k8s_api::BlockRequest = request.as_ref()?;
            let outcome = request.outcome();
            let is_ours =
                request.spec.node == node && !outcome.returned && outcome.refused.is_none();
            let cidr = outcome.granted.filter(|_| is_ours)?;
            let (of, pool) = (request.spec.block, request.spec.pool.clone());
            let owner = request.spec.owner.clone().unwrap_or_default();
            let part = Delegation { cidr, node: node.to_owned(), request: name.clone() };
            Some(Borrowed { part, of, pool, owner })
        };
        requests.iter().filter_map(part).collect()
    }

    fn answer(&self, name: &str, _spec: &BlockRequestSpec, requests: &Requests) -> Answer {
        let request = requests.get(name).and_then(Option::as_ref);
        let outcome = request.map(twill_k8s_api::BlockRequest::outcome).unwrap_or_default();
        match (outcome.refused, outcome.granted) {
            (Some(why), _) if why == NOT_OURS => {
                // The list that named the owner is too old.
                *lock(&self.lenders) = None;
                Answer::Freed
            }
            (Some(why), _) => Answer::Refused(why),
            (None, Some(part)) => Answer::Granted(part),
            (None, None) => Answer::None,
        }
    }

    fn settle(&self) -> Result<(), DatastoreError> {
        let settled = self.requests.borrow().settled();
        for name in &settled {
            // One that was written meanwhile comes again with the news of that.
            self.remove_request(name)?;
        }
        Ok(())
    }

    fn confirm(&self, part: &Delegation) -> Result<(), DatastoreError> {
        self.write_status(&part.request, &json!({"granted": part.cidr}))?;
        Ok(())
    }

    fn requests(&self) -> Result<Requests, DatastoreError> {
        Ok(self.requests.borrow().all())
    }

    fn ask(&self, spec: BlockRequestSpec) -> Result<String, DatastoreError> {
        let name = format!("{}.{}", spec.block.claim_name(), new_uid());
        self.create_request(&name, &spec)?;
        Ok(name)
    }

    /// Only who has the part may. The owner enters in its status again what stands in the claim.
    fn ask_again(
        &self,
        part: &Delegation,
        block: Block,
        pool: &str,
        owner: &str,
    ) -> Result<(), DatastoreError> {
        if part.node != self.node || self.find_request(&part.request)?.is_some() {
            return Ok(());
        }
        let (node, owner) = (part.node.clone(), Some(owner.to_owned()));
        let (length, pool) = (part.cidr.prefix().length(), pool.to_owned());
        let spec = BlockRequestSpec { node, owner, block, pool, length, address: None };
        Ok(self.create_request(&part.request, &spec)?)
    }

    fn refuse(&self, name: &str, why: &str) -> Result<(), DatastoreError> {
        self.write_status(name, &json!({"refused": why}))?;
        Ok(())
    }

    fn grant(&self, claim: &Claim, part: &Delegation) -> Result<Grant, DatastoreError> {
        // As it is now: the watch may be behind a change of mind.
        let wanted = self.find_request(&part.request)?.map(|told| told.outcome());
        if wanted.is_none_or(|outcome| outcome.returned || outcome.refused.is_some()) {
            return Ok(Grant::Unwanted);
        }
        let Some((object, found)) = self.own_claim(claim)? else { return Ok(Grant::Lost) };
        let mut parts = found.delegations;
        parts.retain(|other| other.request != part.request);
        parts.push(part.clone());
        let written = self.delegate(&object, &parts)?;
        // Who asked hears of it now. If not, `confirm` tells it.
        if let Err(error) = self.confirm(part) {
            let error = twill_types::error_chain(&error);
            tracing::warn!(part = %part.cidr, error, "cannot tell yet what is lent");
        }
        Ok(Grant::Done(written))
    }

    /// The request stays until the owner has said the last word, since what it enters in its claim
    /// meanwhile has to be taken back by this request.
    fn give_up(&self, name: &str, spec: &BlockRequestSpec) -> Result<(), DatastoreError> {
        let is_own = spec.node == self.node;
        let is_settled = self.told(name).is_some_and(|told| told.outcome().refused.is_some());
        // One that was written meanwhile is returned, so that `settle` finds it.
        if is_own && is_settled && self.remove_request(name)? {
            return Ok(());
        }
        if is_own {
            self.requests.send_modify(|known| Arc::make_mut(known).set_returning(name));
            lock(&self.cache).write_claims(&self.kept())?;
        }
        let returned = json!({"returned": true});
        if !self.write_status(name, &returned)? && is_own {
            // Somebody has removed it. The owner may have entered it all the same.
            self.create_request(name, spec)?;
            self.write_status(name, &returned)?;
        }
        Ok(())
    }

    fn take_back(&self, claim: &Claim) -> Result<Option<Claim>, DatastoreError> {
        let Some((object, mut found)) = self.own_claim(claim)? else { return Ok(None) };
        let requests = self.requests.borrow().all();
        let returned: Vec<&String> = requests
            .iter()
            .filter(|(_, request)| {
                let request = request.as_ref().filter(|r| r.spec.block == claim.block);
                request.is_some_and(|request| request.outcome().returned)
            })
            .map(|(name, _)| name)
            .collect();
        let before = found.delegations.len();
        found.delegations.retain(|part| !returned.contains(&&part.request));
        if found.delegations.len() != before {
            found = self.delegate(&object, &found.delegations)?;
        }
        for name in returned {
            self.refuse(name, TAKEN_BACK)?;
        }
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests;
