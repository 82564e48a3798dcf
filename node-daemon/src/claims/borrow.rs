//! Parts of other nodes' blocks, for a node that finds no block of its own (`strictAffinity: false`).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use twill_ipam::{BlockSummary, OwnedBlock};
use twill_k8s_api::{BlockRequestSpec, Delegation, files::Claims as AllClaims};
use twill_rpc::message::{ErrorKind, RpcError};
use twill_types::Block;

use super::{Claims, ClaimsError, LOOK};
use crate::{
    datastore::{Answer, Borrowed, DatastoreError, Lender, Lending, Requests, Snapshot},
    ipam::again,
};

/// How long an owner has for its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a block of which nothing was lent is passed over.
const PASSED_OVER: Duration = Duration::from_secs(30);

/// How long an owner is passed over that did not answer. Longer, so that many dead ones do not keep
/// a node from those that live.
const SILENT: Duration = Duration::from_secs(300);

/// How many addresses are asked for: 8.
const BITS: u8 = 3;

/// How many lenders an error names.
const NAMED: usize = 3;

/// What this node has of others, and has asked them for.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    /// By part.
    parts: BTreeMap<Block, Part>,
    /// Requests without an answer, by name.
    asked: BTreeMap<String, Asked>,
    /// Blocks out of which nothing was lent lately: when, and why not.
    refused: BTreeMap<Block, (Instant, String)>,
    /// Owners that did not answer lately, and when.
    silent: BTreeMap<String, Instant>,
    /// Who may lend anything, as it was a moment ago.
    lenders: Option<(Instant, Vec<Lender>)>,
}

#[derive(Debug)]
struct Part {
    request: String,
    pool: String,
    /// The block that it is a part of, and whose that is.
    of: Block,
    owner: String,
    /// The claim of that does not say so at present: it is damaged, or somebody has removed it.
    unsure: bool,
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

    /// The blocks that they are parts of.
    pub(super) fn lenders(&self) -> Vec<Block> {
        self.parts.values().map(|part| part.of).collect()
    }

    /// Whether a block is a part that its owner's claim does not say is this node's.
    pub(super) fn is_unsure(&self, part: Block) -> bool {
        self.parts.get(&part).is_some_and(|part| part.unsure)
    }

    /// Whether somebody was asked and has not answered.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Takes a part out; its request, and what that said.
    pub(super) fn forget(&mut self, part: Block, node: &str) -> Option<(String, BlockRequestSpec)> {
        let Part { request, pool, of, owner, .. } = self.parts.remove(&part)?;
        let (node, owner) = (node.to_owned(), Some(owner));
        let length = part.prefix().length();
        Some((request, BlockRequestSpec { node, owner, block: of, pool, length, address: None }))
    }

    /// Whether a block is borrowed, as far as is known.
    pub(super) fn has(&self, part: Block) -> bool {
        self.parts.contains_key(&part)
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
        if resources.ipam_config().strict_affinity || !self.may_lend() {
            return Ok(Err(String::new()));
        }
        let before = self.state.borrowing.parts.len();
        let freed = self.take_what_was_lent().map_err(|error| again(&error))?;
        if self.state.borrowing.parts.len() > before {
            return Ok(Ok(()));
        }
        if freed {
            self.state.borrowing.lenders = None;
            let message = "the block that a part was asked of was given back".to_owned();
            return Err(RpcError { kind: ErrorKind::TryAgain, message });
        }
        let is_for_this =
            |asked: &&Asked| pools.contains(&asked.spec.pool) && asked.spec.address == address;
        if let Some(asked) = self.state.borrowing.asked.values().find(is_for_this) {
            return Err(waiting(&asked.owner, asked.spec.block));
        }
        let lenders = self.lenders(pools, address).map_err(|error| again(&error))?;
        let unsettled = self.unsettled().map_err(|error| again(&error))?;
        let borrowing = &mut self.state.borrowing;
        borrowing.refused.retain(|_, (when, _)| when.elapsed() < PASSED_OVER);
        borrowing.silent.retain(|_, when| when.elapsed() < SILENT);
        let mut reasons = String::new();
        for (number, lender) in lenders.iter().enumerate() {
            let (block, owner) = (lender.block, &lender.node);
            let why = match (borrowing.silent.contains_key(owner), borrowing.refused.get(&block)) {
                (true, _) => "its daemon does not answer",
                (_, Some((_, why))) => why,
                (false, None) if unsettled.contains(&block) => {
                    "it has not taken the last part back"
                }
                (false, None) => return self.ask(lender, address).map(Ok),
            };
            if number < NAMED {
                let _ = write!(reasons, "; node {owner} lends nothing of {block}: {why}");
            }
        }
        if lenders.len() > NAMED {
            let _ = write!(reasons, "; and {} others", lenders.len() - NAMED);
        }
        Ok(Err(reasons))
    }

    /// Whether nodes lend each other parts of blocks at all.
    fn may_lend(&self) -> bool {
        self.shared && self.store.lending().is_some()
    }

    /// Addresses that can be had in others' blocks, as far as that is told.
    fn told_free(&self) -> Result<BTreeMap<Block, u32>, DatastoreError> {
        self.store.lending().map_or_else(|| Ok(BTreeMap::new()), Lending::free_addresses)
    }

    /// Whose blocks a part may come from, those with the most space first as far as that is known.
    fn lenders(
        &mut self,
        pools: &[String],
        address: Option<IpAddr>,
    ) -> Result<Vec<Lender>, ClaimsError> {
        let Some(lending) = self.store.lending() else { return Ok(Vec::new()) };
        let known = self.state.borrowing.lenders.take();
        let (when, found) = match known.filter(|(when, _)| when.elapsed() < LOOK) {
            Some(known) => known,
            None => (Instant::now(), lending.lenders(&self.node, pools)?),
        };
        let mut lenders: Vec<Lender> = found
            .iter()
            .filter(|lender| pools.contains(&lender.pool) && lender.block.size() > 1)
            .filter(|lender| address.is_none_or(|ip| lender.block.prefix().contains(ip)))
            .cloned()
            .collect();
        let free = self.told_free()?;
        // Nodes that know nothing about it do not all ask the same one.
        let chance = |lender: &Lender| {
            let mut hasher = DefaultHasher::new();
            (&self.node, lender.block).hash(&mut hasher);
            hasher.finish()
        };
        lenders.sort_by_cached_key(|lender| {
            (Reverse(free.get(&lender.block).copied()), chance(lender))
        });
        self.state.borrowing.lenders = Some((when, found));
        Ok(lenders)
    }

    /// Blocks whose owners have not taken back yet what this node has returned, where a request stays until
    /// they have.
    fn unsettled(&self) -> Result<BTreeSet<Block>, DatastoreError> {
        let Some(lending) = self.store.lending().filter(|lending| lending.is_by_request()) else {
            return Ok(BTreeSet::new());
        };
        let requests = lending.requests()?;
        let own = requests.values().flatten().filter(|request| request.spec.node == self.node);
        Ok(own.filter(|request| request.outcome().returned).map(|r| r.spec.block).collect())
    }

    /// Whether some node may have an address to lend of these pools.
    pub(super) fn might_borrow(&self, resources: &Snapshot, pools: &[String]) -> bool {
        if resources.ipam_config().strict_affinity || !self.may_lend() {
            return false;
        }
        if self.store.lending().is_some_and(Lending::is_by_request) {
            let borrowing = &self.state.borrowing;
            let lenders = borrowing.lenders.iter().flat_map(|(_, lenders)| lenders);
            return lenders.filter(|lender| pools.contains(&lender.pool)).any(|lender| {
                let is_refused = borrowing.refused.contains_key(&lender.block);
                !is_refused && !borrowing.silent.contains_key(&lender.node)
            });
        }
        let free = self.told_free().unwrap_or_default();
        let inside = |block: &Block| {
            let mut pools = pools.iter().filter_map(|name| resources.pools.get(name));
            pools.any(|pool| pool.spec.cidr.covers(block.prefix()))
        };
        free.iter()
            .any(|(block, free)| *free > 0 && inside(block) && !self.state.mine.contains_key(block))
    }

    fn ask(&mut self, lender: &Lender, address: Option<IpAddr>) -> Result<(), RpcError> {
        let bits = lender.block.family().bits();
        let length = match address {
            Some(_) => bits,
            None => (bits - BITS).max(lender.block.prefix().length() + 1),
        };
        let spec = BlockRequestSpec {
            node: self.node.clone(),
            owner: Some(lender.node.clone()),
            block: lender.block,
            pool: lender.pool.clone(),
            length,
            address,
        };
        let Some(lending) = self.store.lending() else {
            return Err(waiting(&lender.node, lender.block));
        };
        // It may be there all the same, and then its owner answers it.
        let asked = lending.ask(spec.clone()).inspect_err(|_| self.state.behind = true);
        let name = asked.map_err(|error| again(&error))?;
        info!(block = %lender.block, owner = lender.node, "asked for a part of a block");
        let asked = Asked { owner: lender.node.clone(), spec, since: Instant::now() };
        self.state.borrowing.asked.insert(name, asked);
        Err(waiting(&lender.node, lender.block))
    }

    /// Takes into use what owners have lent since the last time; whether a block is nobody's any more
    /// that a part was asked of.
    pub(super) fn take_what_was_lent(&mut self) -> Result<bool, ClaimsError> {
        let mut freed = false;
        if !self.state.borrowing.is_waiting() {
            return Ok(freed);
        }
        let store = Arc::clone(&self.store);
        let Some(lending) = store.lending() else { return Ok(freed) };
        let requests = lending.requests()?;
        let names: Vec<String> = self.state.borrowing.asked.keys().cloned().collect();
        for name in names {
            let Some(asked) = self.state.borrowing.asked.get(&name) else { continue };
            let (owner, block) = (asked.owner.clone(), asked.spec.block);
            let is_late = asked.since.elapsed() >= ANSWER;
            match lending.answer(&name, &asked.spec, &requests) {
                Answer::Granted(part) => self.use_part(&name, part)?,
                Answer::Freed => {
                    self.give_up(&name)?;
                    freed = true;
                }
                Answer::Refused(why) => {
                    self.give_up(&name)?;
                    self.state.borrowing.refused.insert(block, (Instant::now(), why));
                }
                Answer::None if is_late => {
                    self.give_up(&name)?;
                    self.state.borrowing.silent.insert(owner, Instant::now());
                }
                Answer::None => {}
            }
        }
        Ok(freed)
    }

    fn use_part(&mut self, request: &str, part: Block) -> Result<(), ClaimsError> {
        let Some(asked) = self.state.borrowing.asked.get(request) else {
            return Ok(());
        };
        let (pool, of, owner) = (asked.spec.pool.clone(), asked.spec.block, asked.owner.clone());
        let owned = OwnedBlock { block: part, pool: pool.clone(), dedication: None };
        info!(%part, owner, pool, "borrowed a part of a block");
        // It is this node's whatever the store says.
        self.state.borrowing.asked.remove(request);
        let what = Part { request: request.to_owned(), pool, of, owner, unsure: false };
        self.state.borrowing.parts.insert(part, what);
        self.state.draining.insert(part);
        self.stamp(of);
        self.publish_owned();
        let taken = self.service.set_block(owned, true);
        Ok(taken.inspect_err(|_| self.state.behind = true)?)
    }

    /// Takes an unanswered request back. Whatever the owner enters for it now, it takes back as well.
    fn give_up(&mut self, request: &str) -> Result<(), ClaimsError> {
        if let Some(asked) = self.state.borrowing.asked.get(request)
            && let Some(lending) = self.store.lending()
        {
            lending.give_up(request, &asked.spec)?;
        }
        self.state.borrowing.asked.remove(request);
        Ok(())
    }

    /// Finds the parts of others' blocks that this node has. That stands in the claims; where one
    /// cannot be read, or is gone, its request says what it was. Requests of the process before that
    /// nobody waits for are taken back.
    pub(super) fn find_borrowed(
        &mut self,
        all: &AllClaims,
        requests: &Requests,
    ) -> Result<(), ClaimsError> {
        let store = Arc::clone(&self.store);
        let Some(lending) = store.lending() else { return Ok(()) };
        let mut parts = BTreeMap::new();
        for Borrowed { part, of, pool, owner } in lending.borrowed(&self.node, all, requests) {
            self.state.borrowing.asked.remove(&part.request);
            let request = part.request.clone();
            if requests.get(&request).is_none_or(Option::is_none) {
                warn!(part = %part.cidr, request, "the request of a borrowed part was lost: made again");
                lending.ask_again(&part, of, &pool, &owner)?;
            }
            parts.insert(part.cidr, Part { request, pool, of, owner, unsure: false });
        }
        if lending.is_by_request() {
            let lost = |what: &Part| !requests.contains_key(&what.request);
            for (part, what) in std::mem::take(&mut self.state.borrowing.parts) {
                if !lost(&what) || parts.contains_key(&part) {
                    continue;
                }
                let Part { request, pool, of, owner, .. } = what;
                warn!(%part, request, "the request of a borrowed part was removed: made again");
                let (cidr, node) = (part, self.node.clone());
                let delegation = Delegation { cidr, node, request: request.clone() };
                lending.ask_again(&delegation, of, &pool, &owner)?;
                parts.insert(part, Part { request, pool, of, owner, unsure: true });
                self.state.behind = true;
            }
        }
        let held = self.service.blocks()?;
        for (name, request) in requests {
            let Some(request) = request.as_ref().filter(|r| r.spec.node == self.node) else {
                continue;
            };
            let (outcome, spec) = (request.outcome(), &request.spec);
            let is_known = parts.values().any(|part: &Part| part.request == *name);
            let is_leaving = outcome.granted.is_some_and(|p| self.state.leaving.contains_key(&p));
            if is_known || is_leaving || outcome.returned {
                continue;
            }
            let in_block = |held: &&BlockSummary| {
                spec.block.prefix().covers(held.block.prefix()) && held.used + held.held > 0
            };
            // A claim that can be read has not named it: then it is not this node's any more.
            let unsure = !all.claims.contains_key(&spec.block);
            let used = held.iter().find(|held| in_block(held) && !parts.contains_key(&held.block));
            let used = used.map(|held| held.block);
            let part = outcome.granted.or(used).filter(|_| unsure);
            match part {
                Some(part) => {
                    let (request, pool, of) = (name.clone(), spec.pool.clone(), spec.block);
                    let owner = spec.owner.clone().unwrap_or_default();
                    parts.insert(part, Part { request, pool, of, owner, unsure: true });
                    self.state.behind = true;
                }
                None if self.state.borrowing.asked.contains_key(name) => {}
                // Pods live there: what the claim says is for people to settle.
                None if held.iter().any(|held| in_block(&held)) => {}
                None => lending.give_up(name, spec)?,
            }
        }
        parts.retain(|part, _| !self.state.leaving.contains_key(part));
        self.state.borrowing.parts = parts;
        Ok(())
    }
}

fn waiting(owner: &str, block: Block) -> RpcError {
    let message = format!("node {owner} was asked for a part of {block}, and has not answered yet");
    RpcError { kind: ErrorKind::TryAgain, message }
}
