//! Parts of this node's blocks for nodes that find none of their own (`strictAffinity: false`).
//!
//! A part is the borrower's from its entry in the claim until its request is gone. Only the owner
//! writes the claim, and only the borrower removes its request, once it has stopped using the part.

use std::{collections::BTreeSet, sync::Arc};

use tracing::{info, warn};
use twill_k8s_api::{BlockRequestSpec, Delegation, files::Claim};
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError};

impl Claims {
    /// Answers the requests for parts of this node's blocks, and takes back what is not needed any
    /// more.
    pub(super) fn lend(&mut self) -> Result<(), ClaimsError> {
        self.take_back_lent()?;
        let requests = self.requests.list().map_err(ClaimsError::Read)?;
        for (name, request) in requests {
            let Some(request) = request else { continue };
            let spec = request.spec;
            let Some(claim) = self.state.mine.get(&spec.block).cloned() else {
                continue;
            };
            let is_answered = claim.delegations.iter().any(|part| part.request == name)
                || request.status.is_some();
            if spec.node == self.node || is_answered {
                continue;
            }
            if let Err(why) = self.lend_part(&claim, &name, &spec)? {
                info!(block = %spec.block, to = spec.node, why, "no part of a block is lent");
                if let Err(error) = self.requests.refuse(&name, &why) {
                    warn!(request = name, error = %error_chain(&error), "cannot answer a request");
                }
            }
        }
        Ok(())
    }

    /// Lends a part of a block, or says why not.
    fn lend_part(
        &mut self,
        claim: &Claim,
        request: &str,
        spec: &BlockRequestSpec,
    ) -> Result<Result<(), String>, ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow());
        if resources.ipam_config().strict_affinity {
            return Ok(Err("strictAffinity is true".to_owned()));
        }
        // From here on nobody on this node gets an address of it.
        let part = self.service.delegate(spec.block, spec.length, spec.address)?;
        let Some(part) = part else {
            return Ok(Err(match spec.address {
                Some(address) => format!("{address} is not free"),
                None => "no address of it is free".to_owned(),
            }));
        };
        let delegation =
            Delegation { cidr: part, node: spec.node.clone(), request: request.to_owned() };
        let written = self.store.delegate(claim, |parts| parts.push(delegation));
        match written {
            Ok(Some(claim)) => {
                info!(%part, block = %claim.block, to = spec.node, "lent a part of a block");
                self.state.mine.insert(claim.block, claim);
                self.publish_owned();
                return Ok(Ok(()));
            }
            // The claim is not this node's any more; the next change of anything says so.
            Ok(None) => self.state.behind = true,
            Err(error) => {
                warn!(%part, error = %error_chain(&error), "cannot enter what is lent in a claim");
            }
        }
        self.tell_store_what_is_lent()?;
        Ok(Ok(()))
    }

    /// Takes the parts back whose requests are gone, and tells the store which are not.
    pub(super) fn take_back_lent(&mut self) -> Result<(), ClaimsError> {
        let lending: Vec<Claim> =
            self.state.mine.values().filter(|c| !c.delegations.is_empty()).cloned().collect();
        if !lending.is_empty() {
            let requests = self.requests.list().map_err(ClaimsError::Read)?;
            let is_gone = |part: &Delegation| !requests.contains_key(&part.request);
            for claim in lending.iter().filter(|claim| claim.delegations.iter().any(is_gone)) {
                match self.store.delegate(claim, |parts| parts.retain(|part| !is_gone(part))) {
                    Ok(Some(claim)) => {
                        info!(block = %claim.block, "parts of a block came back");
                        self.state.mine.insert(claim.block, claim);
                    }
                    Ok(None) => self.state.behind = true,
                    Err(error) => {
                        warn!(block = %claim.block, error = %error_chain(&error), "cannot take parts back");
                    }
                }
            }
            self.publish_owned();
        }
        self.tell_store_what_is_lent()
    }

    fn tell_store_what_is_lent(&self) -> Result<(), ClaimsError> {
        let parts = self.state.mine.values().flat_map(|claim| &claim.delegations);
        let parts: BTreeSet<Block> = parts.map(|delegation| delegation.cidr).collect();
        Ok(self.service.set_delegated(parts)?)
    }
}
