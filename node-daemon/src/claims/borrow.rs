//! Parts of other nodes' blocks, for a node that finds no block of its own (`strictAffinity: false`).

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use twill_ipam::OwnedBlock;
use twill_k8s_api::{
    BlockRequestSpec,
    files::{Claim, Claims as AllClaims},
};
use twill_rpc::message::{ErrorKind, RpcError};
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError};
use crate::{datastore::Snapshot, ipam::again};

/// How long an owner has for its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long an owner that gave nothing is not asked again.
const PASSED_OVER: Duration = Duration::from_secs(30);

/// How many addresses are asked for: 8.
const BITS: u8 = 3;

/// What this node has of others, and has asked them for.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    /// By part.
    parts: BTreeMap<Block, Part>,
    /// Requests without an answer, by name.
    asked: BTreeMap<String, Asked>,
    /// Claims out of which nothing was lent lately: when, and why not.
    passed_over: BTreeMap<Block, (Instant, String)>,
}

#[derive(Debug)]
struct Part {
    request: String,
    pool: String,
}

#[derive(Debug)]
struct Asked {
    owner: String,
    spec: BlockRequestSpec,
    since: Instant,
}

impl Borrowing {
    /// The parts, each with its pool.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Block, &str)> {
        self.parts.iter().map(|(part, what)| (*part, what.pool.as_str()))
    }

    /// Whether somebody was asked and has not answered.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }
}

impl Claims {
    /// Borrows a part of a block of one of these pools, or the part with an address. Answers once it
    /// is there; until then it has to be asked again. The inner error says why nobody lends.
    pub(super) fn borrow(
        &mut self,
        resources: &Snapshot,
        pools: &[String],
        address: Option<IpAddr>,
    ) -> Result<Result<(), String>, RpcError> {
        if resources.ipam_config().strict_affinity || !self.shared {
            return Ok(Err(String::new()));
        }
        let before = self.state.borrowing.parts.len();
        let freed = self.take_what_was_lent().map_err(|error| again(&error))?;
        if self.state.borrowing.parts.len() > before {
            return Ok(Ok(()));
        }
        if freed {
            let message = "the block that a part was asked of was given back".to_owned();
            return Err(RpcError { kind: ErrorKind::TryAgain, message });
        }
        let is_for_this =
            |asked: &&Asked| pools.contains(&asked.spec.pool) && asked.spec.address == address;
        if let Some(asked) = self.state.borrowing.asked.values().find(is_for_this) {
            return Err(waiting(&asked.owner, asked.spec.block));
        }
        let claims = self.store.list().map_err(|error| again(&error))?;
        self.state.borrowing.passed_over.retain(|_, (when, _)| when.elapsed() < PASSED_OVER);
        let lenders: Vec<&Claim> = claims
            .claims
            .values()
            .filter(|claim| claim.node != self.node && claim.dedication.is_none())
            .filter(|claim| pools.contains(&claim.pool))
            .filter(|claim| address.is_none_or(|ip| claim.block.prefix().contains(ip)))
            .collect();
        let mut reasons = String::new();
        for claim in lenders {
            match self.state.borrowing.passed_over.get(&claim.block) {
                None => return self.ask(claim, address).map(Ok),
                Some((_, why)) => {
                    let _ = write!(
                        reasons,
                        "; node {} lends nothing of {}: {why}",
                        claim.node, claim.block
                    );
                }
            }
        }
        Ok(Err(reasons))
    }

    fn ask(&mut self, claim: &Claim, address: Option<IpAddr>) -> Result<(), RpcError> {
        let bits = claim.block.family().bits();
        let length = match address {
            Some(_) => bits,
            None => (bits - BITS).max(claim.block.prefix().length()),
        };
        let spec = BlockRequestSpec {
            node: self.node.clone(),
            block: claim.block,
            pool: claim.pool.clone(),
            length,
            address,
        };
        let name = self.requests.ask(spec.clone()).map_err(|error| again(&error))?;
        info!(block = %claim.block, owner = claim.node, "asked for a part of a block");
        let asked = Asked { owner: claim.node.clone(), spec, since: Instant::now() };
        self.state.borrowing.asked.insert(name, asked);
        Err(waiting(&claim.node, claim.block))
    }

    /// Takes into use what owners have lent since the last time; whether a block is nobody's any more
    /// that a part was asked of.
    pub(super) fn take_what_was_lent(&mut self) -> Result<bool, ClaimsError> {
        let mut freed = false;
        if !self.state.borrowing.is_waiting() {
            return Ok(freed);
        }
        let requests = self.requests.list().map_err(ClaimsError::Read)?;
        let names: Vec<String> = self.state.borrowing.asked.keys().cloned().collect();
        for name in names {
            let Some(asked) = self.state.borrowing.asked.get(&name) else { continue };
            let block = asked.spec.block;
            let refused = requests
                .get(&name)
                .and_then(|request| request.as_ref()?.status.as_ref()?.get("refused")?.as_str());
            let claim = match self.store.get(block) {
                // Given back, it may be another's by now, or this node's.
                Ok(claim) => claim.filter(|claim| claim.node == asked.owner),
                Err(error) => {
                    warn!(%block, error = %error_chain(&error), "cannot read who lends");
                    continue;
                }
            };
            let granted = claim.as_ref().and_then(|claim| {
                claim.delegations.iter().find(|part| part.request == name).map(|part| part.cidr)
            });
            match (granted, claim, refused) {
                (Some(part), ..) if requests.contains_key(&name) => self.use_part(&name, part)?,
                (_, None, _) => {
                    self.give_up(&name, None);
                    freed = true;
                }
                (_, _, Some(why)) => self.give_up(&name, Some(why.to_owned())),
                _ if asked.since.elapsed() >= ANSWER => {
                    self.give_up(&name, Some("its daemon does not answer".to_owned()));
                }
                _ => {}
            }
        }
        Ok(freed)
    }

    fn use_part(&mut self, request: &str, part: Block) -> Result<(), ClaimsError> {
        let Some(asked) = self.state.borrowing.asked.remove(request) else {
            return Ok(());
        };
        let pool = asked.spec.pool;
        info!(%part, owner = asked.owner, pool, "borrowed a part of a block");
        self.service
            .set_block(OwnedBlock { block: part, pool: pool.clone(), dedication: None }, true)?;
        let request = request.to_owned();
        self.state.borrowing.parts.insert(part, Part { request, pool });
        self.state.unneeded.insert(part);
        self.publish_owned();
        Ok(())
    }

    /// Takes an unanswered request back. Whatever the owner enters for it now, it takes back as well.
    fn give_up(&mut self, request: &str, why: Option<String>) {
        let Some(asked) = self.state.borrowing.asked.remove(request) else {
            return;
        };
        if let Err(error) = self.requests.withdraw(request) {
            warn!(request, error = %error_chain(&error), "cannot take a request back");
        }
        if let Some(why) = why {
            let block = asked.spec.block;
            info!(%block, owner = asked.owner, why, "nothing is lent");
            self.state.borrowing.passed_over.insert(block, (Instant::now(), why));
        }
    }

    /// Finds the parts of others' blocks that this node has, as the claims say. Requests that nobody
    /// waits for any more, those of the process before, are taken back.
    pub(super) fn find_borrowed(&mut self, all: &AllClaims) -> Result<(), ClaimsError> {
        let requests = self.requests.list().map_err(ClaimsError::Read)?;
        let mut parts = BTreeMap::new();
        for claim in all.claims.values().filter(|claim| claim.node != self.node) {
            let ours = |part: &&twill_k8s_api::Delegation| {
                part.node == self.node && requests.contains_key(&part.request)
            };
            for part in claim.delegations.iter().filter(ours) {
                self.state.borrowing.asked.remove(&part.request);
                let what = Part { request: part.request.clone(), pool: claim.pool.clone() };
                parts.insert(part.cidr, what);
            }
        }
        self.state.borrowing.parts = parts;
        for (name, request) in &requests {
            let is_ours = request.as_ref().is_some_and(|r| r.spec.node == self.node);
            let borrowing = &self.state.borrowing;
            let is_answered = borrowing.parts.values().any(|part| part.request == *name);
            if is_ours && !is_answered && !borrowing.asked.contains_key(name) {
                self.requests.withdraw(name).map_err(ClaimsError::Read)?;
            }
        }
        Ok(())
    }

    /// Gives a part back that is not in use any more, if it is one.
    pub(super) fn return_borrowed(&mut self, part: Block) -> Result<bool, ClaimsError> {
        let Some(what) = self.state.borrowing.parts.remove(&part) else {
            return Ok(false);
        };
        self.publish_owned();
        self.requests.withdraw(&what.request).map_err(ClaimsError::Read)?;
        info!(%part, pool = what.pool, "gave a borrowed part of a block back");
        Ok(true)
    }
}

fn waiting(owner: &str, block: Block) -> RpcError {
    let message = format!("node {owner} was asked for a part of {block}, and has not answered yet");
    RpcError { kind: ErrorKind::TryAgain, message }
}
