//! From claims and resources to what this node has, may give, and says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};
use twill_ipam::{BlockSummary, Eligibility, OwnedBlock, Unusable, eligibility};
use twill_k8s_api::{
    Kind,
    files::{Claim, Claims as AllClaims},
};
use twill_selector::Selector;
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError, said::Said};
use crate::{
    datastore::{ClaimOutcome, Claimant, Requests, Snapshot, Stamp, lent},
    ipam::{PoolView, View},
    problems,
};

type Eligible = BTreeMap<String, Eligibility>;

/// Why a block gives no new address.
struct Closed {
    /// In a word, and for a person.
    reason: &'static str,
    message: String,
    /// It is a change that somebody made, and that goes on until the last pod is gone.
    drains: bool,
}

impl Claims {
    /// Brings store, view and announcements in line with claims and resources.
    pub(super) fn load(&mut self) -> Result<(), ClaimsError> {
        self.state.behind = false;
        let resources = Arc::clone(&self.resources.borrow_and_update());
        let mut said = Said::default();
        self.service.reserve(resources.reservations.clone())?;
        let rest = resources.ipam_config().ip_cooldown_seconds;
        self.service.set_rest(Duration::from_secs(rest.into()))?;
        self.claim_static(&resources, &mut said);
        let requests = self.requests()?;
        let stamps = self.stamps_before(&resources)?;
        let held: Vec<Block> = self.service.blocks()?.into_iter().map(|held| held.block).collect();
        let mut all = self.store.known(&held)?;
        said.problems.extend(all.problems.iter().map(ToString::to_string));
        // What could not be asked for is asked again: nothing tells when it can be.
        self.state.behind |= all.damaged.iter().any(|block| self.store.stamp(*block).is_none());
        self.heal(&mut all, &requests, &resources)?;
        let in_use = self.store.settled_pools(&resources, &all).into_iter().collect();
        let labels = resources.nodes.get(&self.node).map(|node| node.metadata.labels.clone());
        let pools = pool_views(&resources, &in_use);
        let eligible = eligibility(&pools, &labels.unwrap_or_default());
        self.find_borrowed(&all, &requests)?;
        // Nobody says when one is mended.
        self.state.behind |= requests.values().any(Option::is_none);
        said.problems.extend(requests.iter().filter(|(_, request)| request.is_none()).map(
            |(name, _)| format!("requests/{name}.yaml cannot be read; restore it, or remove it if nobody has a part of that block"),
        ));
        self.take_over(all, &requests, stamps)?;
        self.state.lent_unsure.clear();
        self.state.draining = self.draining(&resources, &eligible);

        // What is lent is known before anything can be given, and forgotten after nothing can.
        self.tell_store_what_is_lent(true)?;
        self.set_blocks(&resources, &eligible, &mut said)?;
        self.drop_lost_blocks(&mut said)?;
        self.tell_store_what_is_lent(false)?;
        say_pools(&eligible, &mut said);
        self.say_limit(&resources, &mut said);
        self.say_sizes(&resources, &mut said);
        problems::tell(&self.problems, said.problems);
        self.conditions.send_replace(said.conditions);
        self.publish_owned();
        self.publish_view(&resources, &pools, eligible);
        self.give_back()
    }

    /// Claims the `blocks:` of the node's own manifest.
    fn claim_static(&mut self, resources: &Snapshot, said: &mut Said) {
        let Some(node) = resources.nodes.get(&self.node) else {
            return;
        };
        for block in &node.spec.blocks {
            let mut pools = resources.pools.iter();
            let pool = pools.find(|(_, pool)| pool.spec.cidr.covers(block.prefix()));
            let pool = pool.map_or("static", |(name, _)| name.as_str());
            let who = Claimant { node: &self.node, pool, dedication: None };
            match self.store.try_claim(*block, who) {
                Ok(ClaimOutcome::Won(_)) => {}
                Ok(ClaimOutcome::Lost(other)) => said.problems.push(format!(
                    "{block} of spec.blocks of Node {} cannot be had: {} is claimed by node {}; \
                     remove one of the two",
                    self.node, other.block, other.node
                )),
                Err(error) => {
                    self.state.behind = true;
                    said.problems.push(format!(
                        "{block} of spec.blocks of Node {} cannot be claimed: {}",
                        self.node,
                        error_chain(&error)
                    ));
                }
            }
        }
    }

    /// Claims again what pods of this node live in, if nobody has a claim for it: it was removed by
    /// hand, or with a datastore that was put back. What was borrowed is the owner's to claim.
    fn heal(
        &mut self,
        all: &mut AllClaims,
        requests: &Requests,
        resources: &Snapshot,
    ) -> Result<(), ClaimsError> {
        for BlockSummary { block, pool, used, dedication, .. } in self.service.blocks()? {
            let overlaps = |other: &Block| other.prefix().overlaps(block.prefix());
            let is_known = all.claims.keys().chain(&all.damaged).any(overlaps);
            let is_borrowed = self.state.borrowing.has(block)
                || requests.values().flatten().any(|request| {
                    request.spec.node == self.node
                        && request.spec.block.prefix().covers(block.prefix())
                });
            let has_pool = resources.pools.contains_key(&pool);
            let mine = self.state.mine.get(&block);
            let is_lent = mine.is_some_and(|claim| !claim.delegations.is_empty())
                || !lent(block, requests).is_empty();
            let is_needed = used > 0 || is_lent;
            if !is_needed || is_known || is_borrowed || !has_pool {
                continue;
            }
            // Where a request was removed as well, nobody but this node knows of its part.
            let mut parts = self.state.mine.get(&block).into_iter().flat_map(|c| &c.delegations);
            if let Some(lending) = self.store.lending() {
                parts.try_for_each(|part| lending.ask_again(part, block, &pool, &self.node))?;
            }
            let who = Claimant { node: &self.node, pool: &pool, dedication: dedication.as_ref() };
            match self.store.try_claim(block, who) {
                Ok(ClaimOutcome::Won(claim)) => {
                    warn!(%block, pool, used, "nobody had the claim of a block in use: claimed again");
                    all.claims.insert(block, claim);
                }
                Ok(ClaimOutcome::Lost(_)) => {}
                Err(error) => {
                    self.state.behind = true;
                    warn!(%block, error = %error_chain(&error), "cannot claim a block in use again")
                }
            }
        }
        Ok(())
    }

    /// How the claims look that matter to this node, before they are read: a change in between is
    /// seen then.
    fn stamps_before(
        &self,
        resources: &Snapshot,
    ) -> Result<BTreeMap<Block, Option<Stamp>>, ClaimsError> {
        let own = resources.nodes.get(&self.node);
        let statics = own.into_iter().flat_map(|node| node.spec.blocks.iter().copied());
        // Those that are lost as well: they may come back.
        let held = self.service.blocks()?.into_iter().map(|held| held.block);
        let known = self.state.mine.keys().copied().chain(self.state.borrowing.lenders());
        let watched = known.chain(held).chain(statics);
        Ok(watched.map(|block| (block, self.store.stamp(block))).collect())
    }

    /// Takes the claims of this node over. One that cannot be read is taken for what it was: nobody
    /// else can have it as long as its file is there. So is one that is gone while pods live there, as
    /// long as nobody else claims any of it.
    fn take_over(
        &mut self,
        all: AllClaims,
        requests: &Requests,
        stamps: BTreeMap<Block, Option<Stamp>>,
    ) -> Result<(), ClaimsError> {
        self.state.unsure.clear();
        let mut unsure = BTreeMap::new();
        for held in self.service.blocks()? {
            let block = held.block;
            let is_in_the_way = |other: &&Block| other.prefix().overlaps(block.prefix());
            let anybodys = all.claims.keys().chain(&all.damaged).any(|other| is_in_the_way(&other));
            let is_gone = held.used > 0 && !anybodys && !self.state.borrowing.has(block);
            if all.damaged.contains(&block) || is_gone {
                let delegations = lent(block, requests);
                let claim = self.state.mine.get(&block).cloned().unwrap_or_else(|| Claim {
                    block,
                    node: self.node.clone(),
                    pool: held.pool,
                    dedication: held.dedication,
                    delegations,
                    uid: String::new(),
                    created: String::new(),
                });
                unsure.insert(block, claim);
            }
        }
        // It is told until it is mended, whoever's it is.
        let told: Vec<Block> = all.damaged.iter().copied().collect();
        let damaged = all.damaged.iter().filter_map(|block| self.state.mine.get(block));
        unsure.extend(damaged.map(|claim| (claim.block, claim.clone())));
        self.state.unsure = unsure.keys().copied().collect();
        let of_this_node = |(_, claim): &(Block, Claim)| claim.node == self.node;
        let mut mine: BTreeMap<Block, Claim> =
            all.claims.into_iter().filter(of_this_node).collect();
        mine.extend(unsure);
        mine.retain(|block, _| !self.state.leaving.contains_key(block));
        self.state.mine = mine;
        self.state.stamps = stamps;
        let known = self.state.mine.keys().copied().chain(self.state.borrowing.lenders());
        let new: Vec<Block> =
            known.chain(told).filter(|block| !self.state.stamps.contains_key(block)).collect();
        new.into_iter().for_each(|block| self.stamp(block));
        Ok(())
    }

    /// The blocks that are to go once they are empty.
    fn draining(&self, resources: &Snapshot, eligible: &Eligible) -> BTreeSet<Block> {
        let is_draining = |claim: &&Claim| {
            let pool = resources.pools.get(&claim.pool);
            let outside = pool.is_none_or(|pool| !pool.spec.cidr.covers(claim.block.prefix()));
            let refused = eligible.get(&claim.pool).is_none_or(|e| e.refusal.is_some());
            // The network of another main plugin has its gateway in its block for as long as it is
            // there, whether there are pods or not.
            let stays = claim.dedication.is_some() && !outside;
            (outside || refused) && !stays && !self.is_static(resources, claim.block)
        };
        let claimed = self.state.mine.values().filter(is_draining).map(|claim| claim.block);
        claimed.chain(self.state.borrowing.parts().map(|(part, _)| part)).collect()
    }

    /// Takes the blocks of this node into use, as far as they give addresses.
    fn set_blocks(
        &self,
        resources: &Snapshot,
        eligible: &Eligible,
        said: &mut Said,
    ) -> Result<(), ClaimsError> {
        let claimed = self
            .state
            .mine
            .values()
            .map(|claim| (claim.block, claim.pool.as_str(), claim.dedication.clone()));
        let borrowed = self.state.borrowing.parts().map(|(part, pool)| (part, pool, None));
        for (block, pool, dedication) in claimed.chain(borrowed) {
            let closed = self.closed(block, pool, resources, eligible);
            if let Some(Closed { reason, message, drains }) = &closed {
                if *drains {
                    said.about(Kind::IpPool, pool, ("Drained", false), reason, message);
                } else {
                    let name = block.claim_name();
                    let about = ("Assigning", false);
                    said.about(Kind::BlockAffinity, &name, about, reason, message);
                }
                if ["PoolRemoved", "CidrChanged", "ClaimUnsure"].contains(reason) {
                    said.problems.push(message.clone());
                }
            }
            let is_usable = eligible.get(pool).is_some_and(|e| e.unusable.is_none());
            let open = closed.is_none_or(|closed| closed.reason == "NotSelected");
            let owned = OwnedBlock { block, pool: pool.to_owned(), dedication };
            self.service.set_block(owned, is_usable && open)?;
        }
        Ok(())
    }

    /// Why a block is not, or not for everybody, a source of new addresses.
    fn closed(
        &self,
        block: Block,
        name: &str,
        resources: &Snapshot,
        eligible: &Eligible,
    ) -> Option<Closed> {
        let until = "no new pod gets an address there, and the block goes with the last of those \
                     that have one";
        let drains = |reason, message| Some(Closed { reason, message, drains: true });
        let conflicts = self.conflicts.borrow();
        if let Some(conflict) = conflicts.iter().find(|c| c.ours == block.prefix()) {
            let message = conflict.text.clone();
            return Some(Closed { reason: "SecondOrigin", message, drains: false });
        }
        if self.state.unsure.contains(&block) || self.state.borrowing.is_unsure(block) {
            let message = format!(
                "the claim of {block} cannot be read, or is gone; who has an address of it keeps it, \
                 and nobody gets one"
            );
            return Some(Closed { reason: "ClaimUnsure", message, drains: false });
        }
        if self.is_static(resources, block) {
            return None;
        }
        let node = &self.node;
        let Some(pool) = resources.pools.get(name) else {
            let message = format!("the pool {name} of {block} was removed; {until}");
            return drains("PoolRemoved", message);
        };
        if !pool.spec.cidr.covers(block.prefix()) {
            let message =
                format!("{block} of node {node} was claimed before the cidr was changed; {until}");
            return drains("CidrChanged", message);
        }
        let refusal = eligible.get(name).and_then(|eligibility| eligibility.refusal.as_ref())?;
        drains("NotSelected", format!("{block} of node {node}: {refusal}"))
    }

    pub(super) fn is_static(&self, resources: &Snapshot, block: Block) -> bool {
        resources.nodes.get(&self.node).is_some_and(|node| node.spec.blocks.contains(&block))
    }

    /// Blocks that this node has no claim for, or not any more. Those with pods stay: the pods keep
    /// their addresses, and nobody else gets one.
    fn drop_lost_blocks(&self, said: &mut Said) -> Result<(), ClaimsError> {
        let borrowed: BTreeSet<Block> =
            self.state.borrowing.parts().map(|(part, _)| part).collect();
        for BlockSummary { block, pool, used, dedication, .. } in self.service.blocks()? {
            if self.state.mine.contains_key(&block) || borrowed.contains(&block) {
                continue;
            }
            if self.service.remove_block(block)? {
                info!(%block, "a block without a claim, and without pods: dropped");
                continue;
            }
            let message = format!(
                "{used} addresses of {block} are in use here, and this node has no claim for it \
                 (ClaimLost); it is not announced: delete these pods"
            );
            said.about(Kind::Node, &self.node, ("ClaimLost", true), "NotOurs", &message);
            said.problems.push(message);
            self.service.set_block(OwnedBlock { block, pool, dedication }, false)?;
        }
        Ok(())
    }

    /// Whether the node has as many blocks as it may.
    fn say_limit(&self, resources: &Snapshot, said: &mut Said) {
        let limit = resources.ipam_config().max_blocks_per_host as usize;
        let families = self.state.mine.keys().map(|block| block.family());
        for family in families.collect::<BTreeSet<_>>() {
            let count = self.state.mine.keys().filter(|block| block.family() == family).count();
            if limit > 0 && count >= limit {
                let message =
                    format!("node {} has {count} {family} blocks and may have {limit}", self.node);
                let about = ("BlockLimitReached", true);
                said.about(Kind::IpamConfig, "default", about, "MaxBlocksPerHost", &message);
            }
        }
    }

    fn publish_view(
        &self,
        resources: &Snapshot,
        pools: &BTreeMap<String, twill_ipam::PoolView>,
        eligible: Eligible,
    ) {
        let view = |(name, eligibility): (String, Eligibility)| {
            let cidr = pools.get(&name)?.cidr;
            let spec = &resources.pools.get(&name)?.spec;
            let everybody = |selector: &Selector| *selector == Selector::all();
            let namespaces = spec.namespace_selector.clone().filter(|s| !everybody(s));
            let Eligibility { refusal, unusable } = eligibility;
            let unusable = unusable.map(|why| why.to_string());
            Some((name, PoolView { cidr, namespaces, refusal, unusable }))
        };
        let pools = eligible.into_iter().filter_map(view).collect();
        let namespaces = resources.namespaces.clone();
        self.view.send_replace(Arc::new(View { ready: true, pools, namespaces }));
    }
}

/// The pools as the choice of pools sees them.
fn pool_views(
    resources: &Snapshot,
    in_use: &BTreeSet<String>,
) -> BTreeMap<String, twill_ipam::PoolView> {
    let view = |(name, pool): (&String, &twill_k8s_api::IpPool)| {
        let spec = &pool.spec;
        let closed = if spec.disabled {
            Some("it is disabled".to_owned())
        } else if spec.is_for_workloads() {
            None
        } else {
            Some("its allowedUses has no Workload, so pods get nothing of it".to_owned())
        };
        let view = twill_ipam::PoolView {
            name: name.clone(),
            cidr: spec.cidr,
            block_size: spec.block_size(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            closed,
            manual: !spec.is_automatic(),
            in_use: in_use.contains(name),
        };
        (name.clone(), view)
    };
    resources.pools.iter().map(view).collect()
}

/// Whether each pool gives addresses at all.
fn say_pools(eligible: &Eligible, said: &mut Said) {
    for (name, eligibility) in eligible {
        let reason = match &eligibility.unusable {
            None => "Usable",
            Some(Unusable::Closed(_)) => "Closed",
            Some(Unusable::Overlaps { .. }) => "Overlaps",
            Some(Unusable::NoBlock { .. }) => "NoBlock",
        };
        let message = eligibility.unusable.as_ref().map(ToString::to_string);
        let about = ("Allocatable", message.is_none());
        said.about(Kind::IpPool, name, about, reason, &message.unwrap_or_default());
    }
}
