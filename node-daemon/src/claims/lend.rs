//! Parts of this node's blocks for nodes that find none of their own (`strictAffinity: false`).
//!
//! A part is the borrower's from its entry in the claim until this node, its owner, has removed that
//! entry, which it does once the request says that the part was returned.

use std::{collections::BTreeSet, sync::Arc};

use tracing::{info, warn};
use twill_k8s_api::{BlockRequestSpec, Delegation, NOT_OURS, files::Claim};
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError};
use crate::datastore::{Grant, Lending, Requests};

impl Claims {
    /// Answers the requests for parts of this node's blocks, and takes back what was returned.
    pub(super) fn lend(&mut self) -> Result<(), ClaimsError> {
        let store = Arc::clone(&self.store);
        let Some(lending) = store.lending() else { return Ok(()) };
        let requests = lending.requests()?;
        self.take_back(lending, &requests)?;
        for (name, request) in requests {
            let Some(request) = request else { continue };
            let (outcome, spec) = (request.outcome(), request.spec);
            let Some(claim) = self.state.mine.get(&spec.block).cloned() else {
                if spec.owner.as_ref() == Some(&self.node) && outcome.refused.is_none() {
                    self.disown(lending, &name, &spec)?;
                }
                continue;
            };
            let entered = claim.delegations.iter().find(|part| part.request == name);
            if let Some(part) = entered.filter(|_| outcome.granted.is_none()) {
                lending.confirm(part)?;
            }
            let is_answered = entered.is_some() || outcome.refused.is_some() || outcome.returned;
            let is_unsure = self.state.unsure.contains(&claim.block);
            if spec.node == self.node || is_answered || is_unsure {
                continue;
            }
            if let Some(why) = self.lend_part(lending, &claim, &name, &spec)? {
                info!(block = %spec.block, to = spec.node, why, "no part of a block is lent");
                lending.refuse(&name, &why)?;
            }
        }
        Ok(())
    }

    /// Answers a request for a part of a block that is not this node's any more. Who asked waits for that
    /// before it removes the request: from then on no part of it can be lent.
    fn disown(
        &self,
        lending: &dyn Lending,
        name: &str,
        spec: &BlockRequestSpec,
    ) -> Result<(), ClaimsError> {
        // What is known may be behind, and a block that is about to go is this node's until it is gone.
        let claim = self.store.get(spec.block)?;
        if claim.is_none_or(|claim| claim.node != self.node) {
            info!(block = %spec.block, by = spec.node, "asked for a part of a block that is not ours");
            lending.refuse(name, NOT_OURS)?;
        }
        Ok(())
    }

    /// Lends a part of a block, or says why not.
    fn lend_part(
        &mut self,
        lending: &dyn Lending,
        claim: &Claim,
        request: &str,
        spec: &BlockRequestSpec,
    ) -> Result<Option<String>, ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow());
        if resources.ipam_config().strict_affinity {
            return Ok(Some("strictAffinity is true".to_owned()));
        }
        if let Some(dedication) = &claim.dedication {
            return Ok(Some(format!("it is set aside for network {}", dedication.network)));
        }
        // From here on nobody on this node gets an address of it. Half of a block at the most: peers
        // tell a part from its block by its length.
        let length = spec.length.max(spec.block.prefix().length() + 1);
        let Some(part) = self.service.delegate(spec.block, length, spec.address)? else {
            return Ok(Some(match spec.address {
                Some(address) => format!("{address} is not free"),
                None => "no address of it is free".to_owned(),
            }));
        };
        let (node, request) = (spec.node.clone(), request.to_owned());
        match lending.grant(claim, &Delegation { cidr: part, node, request }) {
            Ok(Grant::Done(claim)) => {
                info!(%part, block = %claim.block, to = spec.node, "lent a part of a block");
                self.remember(claim);
                return Ok(None);
            }
            Ok(Grant::Unwanted) => self.tell_store_what_is_lent(false)?,
            Ok(Grant::Lost) => self.state.behind = true,
            // It may stand there all the same, so it stays lent until the claim was read again.
            Err(error) => {
                self.state.behind = true;
                self.state.lent_unsure.insert(part);
                warn!(%part, error = %error_chain(&error), "cannot enter what is lent in a claim");
            }
        }
        Ok(None)
    }

    /// Takes the parts back that were returned.
    fn take_back(&mut self, lending: &dyn Lending, requests: &Requests) -> Result<(), ClaimsError> {
        let returned: BTreeSet<Block> = requests
            .values()
            .flatten()
            .filter(|request| request.outcome().returned)
            .map(|request| request.spec.block)
            .collect();
        for block in returned {
            let Some(claim) = self.state.mine.get(&block).cloned() else { continue };
            if self.state.unsure.contains(&block) {
                continue;
            }
            match lending.take_back(&claim)? {
                Some(claim) => {
                    info!(block = %claim.block, "parts of a block came back");
                    self.remember(claim);
                    self.tell_store_what_is_lent(false)?;
                }
                None => self.state.behind = true,
            }
        }
        Ok(())
    }

    /// Notes a claim of this node as it was just written.
    pub(super) fn remember(&mut self, claim: Claim) {
        let block = claim.block;
        self.state.mine.insert(block, claim);
        self.stamp(block);
        self.publish_owned();
    }

    /// Tells the store which parts of its blocks are others': those that the claims say, and, where
    /// that is not certain yet, those that were so before.
    pub(super) fn tell_store_what_is_lent(&self, and_before: bool) -> Result<(), ClaimsError> {
        let parts = self.state.mine.values().flat_map(|claim| &claim.delegations);
        let mut parts: BTreeSet<Block> = parts.map(|delegation| delegation.cidr).collect();
        parts.extend(&self.state.lent_unsure);
        if and_before && let Some(owned) = &*self.owned.borrow() {
            parts.extend(&owned.lent);
        }
        Ok(self.service.set_delegated(parts)?)
    }
}
