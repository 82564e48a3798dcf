//! Requests for parts of other nodes' blocks, and what becomes of them.
//!
//! A part is the borrower's from its entry in the claim until the owner has removed that entry, which it
//! does once the request says that the part was returned. A request that is missing returns nothing.
//! All of this is written under the lock of the claims, so that an answer and a change of mind cannot
//! pass each other.

use std::{collections::BTreeMap, path::PathBuf};

use twill_k8s_api::{
    BlockRequest, BlockRequestSpec, BlockRequestStatus, Delegation, Resource,
    files::{
        Claim, DirectoryLock, FileError, REQUESTS, create_file, read_claim, read_request,
        read_requests, remove_file, replace_file,
    },
};

use twill_types::Block;

use super::{
    Grant,
    claims::{FileClaims, new_uid},
};

/// All requests, by name; those that cannot be read without a content.
pub(crate) type Requests = BTreeMap<String, Option<BlockRequest>>;

impl FileClaims {
    /// All requests.
    pub(crate) fn requests(&self) -> Result<Requests, FileError> {
        read_requests(self.directory())
    }

    /// Asks; the request's name.
    pub(crate) fn ask(&self, spec: BlockRequestSpec) -> Result<String, FileError> {
        let name = format!("{}.{}", spec.block.claim_name(), new_uid());
        let _locks = self.lock_both()?;
        self.create_request(&name, spec, &BlockRequestStatus::default())?;
        Ok(name)
    }

    /// Makes a request again that somebody has removed or damaged although its part is in use.
    pub(crate) fn ask_again(
        &self,
        part: &Delegation,
        block: Block,
        pool: &str,
    ) -> Result<(), FileError> {
        let _locks = self.lock_both()?;
        if self.readable(&part.request).is_some() {
            return Ok(());
        }
        remove_file(&self.request(&part.request))?;
        let (node, pool) = (part.node.clone(), pool.to_owned());
        let length = part.cidr.prefix().length();
        let spec = BlockRequestSpec { node, owner: None, block, pool, length, address: None };
        let granted = BlockRequestStatus { granted: Some(part.cidr), ..Default::default() };
        self.create_request(&part.request, spec, &granted)
    }

    /// A request that is there and can be read.
    fn readable(&self, name: &str) -> Option<BlockRequest> {
        read_request(self.directory(), name).flatten()
    }

    fn create_request(
        &self,
        name: &str,
        spec: BlockRequestSpec,
        outcome: &BlockRequestStatus,
    ) -> Result<(), FileError> {
        let created = jiff::Timestamp::now().to_string();
        let request = BlockRequest::named(name.to_owned(), created, spec);
        let text = Resource::BlockRequest(request.with_outcome(outcome)).to_yaml()?;
        create_file(&self.request(name), text.as_bytes()).map(drop)
    }

    /// The owner's answer, if it is no.
    pub(crate) fn refuse(&self, name: &str, why: &str) -> Result<(), FileError> {
        let _locks = self.lock_both()?;
        self.change(name, |outcome| outcome.refused = Some(why.to_owned()))
    }

    /// The owner's answer, if it is yes.
    pub(crate) fn grant(&self, claim: &Claim, part: &Delegation) -> Result<Grant, FileError> {
        let _locks = self.lock_both()?;
        let wanted = self.readable(&part.request);
        if wanted.is_none_or(|request| request.outcome().returned) {
            return Ok(Grant::Unwanted);
        }
        let found = read_claim(self.directory(), claim.block)?;
        let Some(mut found) = found.filter(|found| found.uid == claim.uid) else {
            return Ok(Grant::Lost);
        };
        found.delegations.push(part.clone());
        self.rewrite(&found)?;
        // For those who find no claim.
        self.change(&part.request, |outcome| outcome.granted = Some(part.cidr))?;
        Ok(Grant::Done(found))
    }

    /// The borrower does not use a part any more, or does not want one: the request goes at once if
    /// the owner has certainly not answered, else once the owner has taken its part back.
    ///
    /// `spec` is what was asked: a request that was removed or damaged is made again.
    pub(crate) fn give_up(&self, name: &str, spec: &BlockRequestSpec) -> Result<(), FileError> {
        let _locks = self.lock_both()?;
        let claim = read_claim(self.directory(), spec.block);
        let unanswered = claim.is_ok_and(|claim| {
            let names_it = |claim: &Claim| claim.delegations.iter().any(|d| d.request == name);
            !claim.is_some_and(|claim| names_it(&claim))
        });
        match unanswered {
            true => remove_file(&self.request(name)).map(drop),
            false => {
                if self.readable(name).is_none() {
                    remove_file(&self.request(name))?;
                    self.create_request(name, spec.clone(), &BlockRequestStatus::default())?;
                }
                self.change(name, |outcome| outcome.returned = true)
            }
        }
    }

    /// The owner takes the parts of a claim back that were returned; `None` if the claim is another's
    /// by now.
    pub(crate) fn take_back(&self, claim: &Claim) -> Result<Option<Claim>, FileError> {
        let _locks = self.lock_both()?;
        let found = read_claim(self.directory(), claim.block)?;
        let Some(mut found) = found.filter(|found| found.uid == claim.uid) else {
            return Ok(None);
        };
        let returned: Vec<String> = self
            .requests()?
            .into_iter()
            .filter(|(_, request)| request.as_ref().is_some_and(|r| is_returned(r, &found)))
            .map(|(name, _)| name)
            .collect();
        let before = found.delegations.len();
        found.delegations.retain(|part| !returned.contains(&part.request));
        if found.delegations.len() != before {
            self.rewrite(&found)?;
        }
        for name in returned {
            remove_file(&self.request(&name))?;
        }
        Ok(Some(found))
    }

    fn rewrite(&self, claim: &Claim) -> Result<(), FileError> {
        replace_file(&self.path(claim.block), claim.to_yaml()?.as_bytes())
    }

    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut BlockRequestStatus),
    ) -> Result<(), FileError> {
        let Some(request) = self.readable(name) else {
            return Ok(());
        };
        let mut outcome = request.outcome();
        change(&mut outcome);
        let text = Resource::BlockRequest(request.with_outcome(&outcome)).to_yaml()?;
        replace_file(&self.request(name), text.as_bytes())
    }

    pub(super) fn request(&self, name: &str) -> PathBuf {
        self.directory().join(REQUESTS).join(format!("{name}.yaml"))
    }

    fn lock_both(&self) -> Result<(DirectoryLock, DirectoryLock), FileError> {
        let claims = DirectoryLock::acquire(&self.claims())?;
        Ok((claims, DirectoryLock::acquire(&self.directory().join(REQUESTS))?))
    }
}

fn is_returned(request: &BlockRequest, claim: &Claim) -> bool {
    request.spec.block == claim.block && request.outcome().returned
}
