//! From claims and resources to what this node has, may give, and says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};
use twill_ipam::{BlockSummary, Eligibility, OwnedBlock, eligibility};
use twill_k8s_api::{
    Condition, ConditionStatus, Kind, ObjectId,
    files::{Claim, Claims as AllClaims},
};
use twill_selector::Selector;
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError};
use crate::{
    datastore::{ClaimOutcome, Claimant, Snapshot},
    ipam::{PoolView, View},
    problems,
};

/// What is said while the claims are looked at.
#[derive(Default)]
struct Said {
    problems: Vec<String>,
    conditions: BTreeMap<ObjectId, Vec<Condition>>,
}

impl Said {
    fn about(&mut self, kind: Kind, name: &str, condition: Condition) {
        let id =
            ObjectId { kind: kind.singular().to_owned(), namespace: None, name: name.to_owned() };
        self.conditions.entry(id).or_default().push(condition);
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Condition {
    let status = if status { ConditionStatus::True } else { ConditionStatus::False };
    let (kind, reason, message) = (kind.to_owned(), reason.to_owned(), message.to_owned());
    Condition { kind, status, reason, message }
}

impl Claims {
    /// Brings store, view and announcements in line with claims and resources.
    pub(super) fn load(&mut self) -> Result<(), ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow_and_update());
        let mut said = Said::default();
        self.service.reserve(resources.reservations.clone())?;
        let rest = resources.ipam_config().ip_cooldown_seconds;
        self.service.set_rest(Duration::from_secs(rest.into()))?;
        self.claim_static(&resources);

        let mut all = self.store.list().map_err(ClaimsError::Read)?;
        said.problems.extend(all.problems.iter().map(ToString::to_string));
        self.heal(&mut all, &resources)?;
        let in_use = all.claims.values().map(|claim| claim.pool.as_str()).collect();
        let labels = resources.nodes.get(&self.node).map(|node| node.metadata.labels.clone());
        let pools = pool_views(&resources, &in_use);
        let eligible = eligibility(&pools, &labels.unwrap_or_default());
        self.find_borrowed(&all)?;
        self.state.mine =
            all.claims.into_iter().filter(|(_, claim)| claim.node == self.node).collect();
        self.take_back_lent()?;
        self.state.unneeded = self.unneeded(&resources, &eligible);

        self.set_blocks(&resources, &eligible, &mut said)?;
        self.drop_lost_blocks(&mut said)?;
        say_pools(&pools, &eligible, &mut said);
        problems::tell(&self.problems, said.problems);
        self.conditions.send_replace(said.conditions);
        self.publish_owned();
        self.publish_view(&resources, &pools, eligible);
        self.give_back()
    }

    /// Claims the `blocks:` of the node's own manifest.
    fn claim_static(&self, resources: &Snapshot) {
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
                Ok(ClaimOutcome::Lost(other)) => {
                    let (owner, claim) = (other.node, other.block);
                    warn!(%block, owner, %claim, "a static block belongs to another node");
                }
                Err(error) => {
                    warn!(%block, error = %error_chain(&error), "cannot claim a static block")
                }
            }
        }
    }

    /// Claims again what pods of this node live in, if nobody has a claim for it: it was removed by
    /// hand, or with a datastore that was put back.
    fn heal(&self, all: &mut AllClaims, resources: &Snapshot) -> Result<(), ClaimsError> {
        for BlockSummary { block, pool, used, dedication, .. } in self.service.blocks()? {
            let is_known = all.claims.keys().any(|other| other.prefix().overlaps(block.prefix()));
            if used == 0 || is_known || !resources.pools.contains_key(&pool) {
                continue;
            }
            let who = Claimant { node: &self.node, pool: &pool, dedication: dedication.as_ref() };
            match self.store.try_claim(block, who) {
                Ok(ClaimOutcome::Won(claim)) => {
                    warn!(%block, pool, used, "nobody had the claim of a block in use: claimed again");
                    all.claims.insert(block, claim);
                }
                Ok(ClaimOutcome::Lost(_)) => {}
                Err(error) => {
                    warn!(%block, error = %error_chain(&error), "cannot claim a block in use again")
                }
            }
        }
        Ok(())
    }

    /// The blocks that are to go once they are empty.
    fn unneeded(
        &self,
        resources: &Snapshot,
        eligible: &BTreeMap<String, Eligibility>,
    ) -> BTreeSet<Block> {
        let is_unneeded = |claim: &&Claim| {
            let pool = resources.pools.get(&claim.pool);
            let outside = pool.is_none_or(|pool| !pool.spec.cidr.covers(claim.block.prefix()));
            let refused = eligible.get(&claim.pool).is_none_or(|e| e.refusal.is_some());
            // The network of another main plugin has its gateway in its block for as long as it is
            // there, whether there are pods or not.
            let stays = claim.dedication.is_some() && !outside;
            (outside || refused) && !stays && !self.is_static(resources, claim.block)
        };
        let claimed = self.state.mine.values().filter(is_unneeded).map(|claim| claim.block);
        claimed.chain(self.state.borrowing.parts().map(|(part, _)| part)).collect()
    }

    /// Takes the blocks of this node into use, as far as they give addresses.
    fn set_blocks(
        &self,
        resources: &Snapshot,
        eligible: &BTreeMap<String, Eligibility>,
        said: &mut Said,
    ) -> Result<(), ClaimsError> {
        let conflicts = self.conflicts.borrow().clone();
        for claim in self.state.mine.values() {
            let (block, name) = (claim.block, &claim.pool);
            let pool = resources.pools.get(name);
            let inside = pool.is_none_or(|pool| pool.spec.cidr.covers(block.prefix()));
            let conflict = conflicts.iter().find(|conflict| conflict.ours == block.prefix());
            let is_usable = eligible.get(name).is_some_and(|e| e.unusable.is_none());
            if pool.is_none() && !self.is_static(resources, block) {
                said.problems.push(format!(
                    "the pool {name} of {block} was removed; no new pod gets an address there, and \
                     the block goes with the last of those that have one"
                ));
            } else if !inside {
                let message = format!(
                    "{block} of node {} was claimed before the cidr was changed; no new pod gets an \
                     address there, and the block goes with the last of those that have one",
                    self.node
                );
                said.about(
                    Kind::IpPool,
                    name,
                    condition("Drained", false, "CidrChanged", &message),
                );
                said.problems.push(message);
            }
            if let Some(conflict) = conflict {
                let why = condition("Assigning", false, "SecondOrigin", &conflict.text);
                said.about(Kind::BlockAffinity, &block.claim_name(), why);
            }
            let assignable = is_usable && inside && conflict.is_none();
            let dedication = claim.dedication.clone();
            let owned = OwnedBlock { block, pool: name.clone(), dedication };
            self.service.set_block(owned, assignable)?;
        }
        for (part, pool) in self.state.borrowing.parts() {
            let assignable = eligible.get(pool).is_some_and(|e| e.unusable.is_none());
            let owned = OwnedBlock { block: part, pool: pool.to_owned(), dedication: None };
            self.service.set_block(owned, assignable)?;
        }
        Ok(())
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
            let lost = condition("ClaimLost", true, "NotOurs", &message);
            said.about(Kind::Node, &self.node, lost);
            said.problems.push(message);
            self.service.set_block(OwnedBlock { block, pool, dedication }, false)?;
        }
        Ok(())
    }

    fn publish_view(
        &self,
        resources: &Snapshot,
        pools: &BTreeMap<String, twill_ipam::PoolView>,
        eligible: BTreeMap<String, Eligibility>,
    ) {
        let view = |(name, eligibility): (String, Eligibility)| {
            let cidr = pools.get(&name)?.cidr;
            let spec = &resources.pools.get(&name)?.spec;
            let everybody = |selector: &Selector| *selector == Selector::all();
            let namespaces = spec.namespace_selector.clone().filter(|s| !everybody(s));
            let Eligibility { refusal, unusable } = eligibility;
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
    in_use: &BTreeSet<&str>,
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
            in_use: in_use.contains(name.as_str()),
        };
        (name.clone(), view)
    };
    resources.pools.iter().map(view).collect()
}

/// Whether each pool gives addresses at all.
fn say_pools(
    pools: &BTreeMap<String, twill_ipam::PoolView>,
    eligible: &BTreeMap<String, Eligibility>,
    said: &mut Said,
) {
    for (name, eligibility) in eligible {
        let closed = pools.get(name).is_some_and(|pool| pool.closed.is_some());
        let allocatable = match &eligibility.unusable {
            None => condition("Allocatable", true, "Usable", ""),
            Some(why) if closed => condition("Allocatable", false, "Closed", why),
            Some(why) if why.contains("overlaps") => {
                condition("Allocatable", false, "Overlaps", why)
            }
            Some(why) => condition("Allocatable", false, "NoBlock", why),
        };
        said.about(Kind::IpPool, name, allocatable);
    }
}
