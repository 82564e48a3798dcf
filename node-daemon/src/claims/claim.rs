//! The claim of another block: when an assignment lacks one, and ahead of need.

use std::{net::IpAddr, sync::Arc};

use tracing::info;
use twill_ipam::{
    BlockSummary, OwnedBlock, Refusal, Shortage, Taken, is_nearly_full, next_candidate,
};
use twill_k8s_api::{IpPool, files::Claim};
use twill_rpc::message::{ErrorKind, RpcError};
use twill_types::{Block, Dedication, Family, Prefix};

use super::{Claims, ClaimsError};
use crate::{
    datastore::{ClaimOutcome, Claimant, Snapshot},
    ipam::again,
};

impl Claims {
    /// Claims the block that an assignment lacks, unless there is one by now: of many requests that
    /// wait, one claim serves them all.
    pub(super) fn claim(&mut self, refusal: &Refusal) -> Result<(), RpcError> {
        let blocks = self.service.blocks().map_err(|error| again(&error))?;
        match refusal {
            Refusal::Full(shortage) => self.claim_any(shortage, &blocks),
            Refusal::NoBlock { address, pools, dedication } => {
                self.claim_around(*address, pools, dedication.as_ref(), &blocks)
            }
            // No block would help.
            Refusal::Taken { .. }
            | Refusal::Cooling { .. }
            | Refusal::Resting { .. }
            | Refusal::Reserved { .. }
            | Refusal::Delegated { .. }
            | Refusal::Withheld { .. } => Ok(()),
        }
    }

    /// Claims one block in the first of the pools that has one.
    fn claim_any(&mut self, shortage: &Shortage, blocks: &[BlockSummary]) -> Result<(), RpcError> {
        let Shortage { family, pools, dedication, .. } = shortage;
        let would_do = |block: &&BlockSummary| {
            block.assignable
                && block.block.family() == *family
                && pools.contains(&block.pool)
                && block.dedication == *dedication
        };
        if blocks.iter().filter(would_do).count() > shortage.blocks {
            return Ok(());
        }
        let resources = Arc::clone(&self.resources.borrow());
        let allowed = self.may_claim(&resources, *family);
        if allowed.is_ok() {
            for name in pools {
                let claimed = self.claim_in(&resources, name, dedication.as_ref());
                if claimed.map_err(|error| again(&error))? {
                    return Ok(());
                }
            }
        }
        let try_again = |message| Err(RpcError { kind: ErrorKind::TryAgain, message });
        if shortage.held > 0 {
            let message =
                "addresses of pods that were deleted can be had once their links are gone";
            return try_again(format!("{} {message}", shortage.held));
        }
        let may_borrow = allowed.is_ok() && dedication.is_none();
        let borrowed = may_borrow.then(|| self.borrow(&resources, pools, None)).transpose()?;
        if borrowed.as_ref().is_some_and(|borrowed| borrowed.is_ok()) {
            return Ok(());
        }
        self.note_refused(shortage);
        if let Some(seconds) = shortage.rested_in {
            return try_again(format!(
                "every address that is left rests after use; the first can be had in {seconds} s \
                 (ipCooldownSeconds)"
            ));
        }
        let message = allowed.err().unwrap_or_else(|| {
            let lenders = borrowed.and_then(Result::err).unwrap_or_default();
            let announced = self.announced_and_unclaimed(&resources, pools);
            format!(
                "every address of pools {} that node {} can have is in use{lenders}{announced}; add a \
                 pool, or delete pods",
                pools.join(", "),
                self.node
            )
        });
        Err(RpcError { kind: ErrorKind::Exhausted, message })
    }

    /// What keeps blocks of these pools from being claimed beside claims, for people.
    fn announced_and_unclaimed(&self, resources: &Snapshot, pools: &[String]) -> String {
        let taken = self.store.taken().unwrap_or_default();
        let pools = pools.iter().filter_map(|name| resources.pools.get(name));
        let learned = pools.flat_map(|p| self.learned_in(p.spec.cidr, p.spec.block_size()));
        let unclaimed: Vec<_> = learned
            .filter(|block| !taken.overlaps(*block))
            .map(|block| block.to_string())
            .collect();
        match unclaimed.is_empty() {
            true => String::new(),
            false => format!(
                "; somebody announces {}, for which nobody has a claim",
                unclaimed.join(", ")
            ),
        }
    }

    /// Claims the block that an address lies in.
    fn claim_around(
        &mut self,
        address: IpAddr,
        pools: &[String],
        dedication: Option<&Dedication>,
        blocks: &[BlockSummary],
    ) -> Result<(), RpcError> {
        let refuse = |kind, why: String| {
            Err(RpcError { kind, message: format!("{address} cannot be had: {why}") })
        };
        if let Some(owned) = blocks.iter().find(|block| block.block.prefix().contains(address)) {
            let is_named = pools.contains(&owned.pool);
            if owned.assignable && owned.dedication.as_ref() == dedication && is_named {
                return Ok(());
            }
            let why = match &owned.dedication {
                Some(other) => {
                    format!("{} is set aside for network {}", owned.block, other.network)
                }
                None if !is_named => format!("{} is of pool {}", owned.block, owned.pool),
                None if owned.assignable => format!("{} is for pods of twill itself", owned.block),
                None => format!("{} gives no new addresses", owned.block),
            };
            return refuse(ErrorKind::Taken, format!("{why}; ask for another one"));
        }
        let resources = Arc::clone(&self.resources.borrow());
        if let Err(why) = self.may_claim(&resources, Family::of(address)) {
            return refuse(ErrorKind::Exhausted, why);
        }
        let pool = pools
            .iter()
            .filter_map(|name| Some((name, resources.pools.get(name)?)))
            .find(|(_, pool)| pool.spec.cidr.contains(address));
        let block = pool.and_then(|(name, pool)| {
            Some((name, Block::new(Prefix::masked(address, pool.spec.block_size()).ok()?).ok()?))
        });
        let Some((name, block)) = block else {
            return refuse(ErrorKind::Invalid, "no pool of it has blocks".to_owned());
        };
        let in_the_way = |held: &&BlockSummary| {
            held.block.prefix().overlaps(block.prefix()) && !self.state.borrowing.has(held.block)
        };
        if let Some(held) = blocks.iter().find(in_the_way) {
            let why = format!("its block {block} overlaps {}, which is in use here", held.block);
            return refuse(ErrorKind::Taken, why);
        }
        let learned = self.learned_in(block.prefix(), block.prefix().length());
        if let (Some(part), Ok(None)) = (learned.first(), self.store.get(block)) {
            let why =
                format!("nobody has a claim for its block {block}, and somebody announces {part}");
            return refuse(ErrorKind::Taken, format!("{why}; ask for another one"));
        }
        let Some(other) = self.take(block, name, dedication).map_err(|error| again(&error))? else {
            return Ok(());
        };
        let mut why = format!("its block {} belongs to node {}", other.block, other.node);
        if dedication.is_none() {
            match self.borrow(&resources, std::slice::from_ref(name), Some(address))? {
                Ok(()) => return Ok(()),
                Err(lenders) => why.push_str(&lenders),
            }
        }
        refuse(ErrorKind::Taken, format!("{why}; ask for an address of another"))
    }

    pub(super) fn ahead(&mut self, pool: &str) -> Result<(), ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow());
        let family = resources.pools.get(pool).map(|pool| pool.spec.cidr.family());
        let blocks = self.service.blocks()?;
        // Each ADD that found little says so; one claim is the answer to them all.
        let is_needed = is_nearly_full(pool, blocks.iter().cloned());
        let may_claim = |family| self.may_claim(&resources, family).is_ok();
        if is_needed && family.is_some_and(may_claim) {
            self.claim_in(&resources, pool, None)?;
        }
        Ok(())
    }

    /// Whether this node may take another block by itself.
    pub(super) fn may_claim(&self, resources: &Snapshot, family: Family) -> Result<(), String> {
        let config = resources.ipam_config();
        let limit = config.max_blocks_per_host as usize;
        let count = self.state.mine.keys().filter(|block| block.family() == family).count();
        if limit > 0 && count >= limit {
            return Err(format!(
                "node {} has {count} {family} blocks and may have {limit}; raise maxBlocksPerHost in \
                 the IPAMConfiguration, or delete pods",
                self.node
            ));
        }
        if !config.auto_allocate_blocks {
            return Err(
                "autoAllocateBlocks of the IPAMConfiguration is false, so this node takes no \
                        block by itself; list more blocks in its Node"
                    .to_owned(),
            );
        }
        if !self.shared && resources.nodes.len() > 1 {
            return Err(format!(
                "the datastore has {} nodes and is not shared, so node {} takes no block by \
                 itself; list blocks in its Node, or set datastore.shared",
                resources.nodes.len(),
                self.node
            ));
        }
        Ok(())
    }

    fn claim_in(
        &mut self,
        resources: &Snapshot,
        name: &str,
        dedication: Option<&Dedication>,
    ) -> Result<bool, ClaimsError> {
        let Some(pool) = resources.pools.get(name) else {
            return Ok(false);
        };
        let who = Claimant { node: &self.node, pool: name, dedication };
        let held = self.service.blocks()?;
        let claim = self.store.claim(who, &|taken| self.next_block(resources, pool, &held, taken));
        // It may be there all the same.
        let claim = claim.inspect_err(|_| self.state.behind = true);
        match claim? {
            Some(claim) => self.take_into_use(claim).map(|()| true),
            None => Ok(false),
        }
    }

    /// The block of a pool that this node would claim next, beside those that are taken: not one that
    /// is reserved as a whole, not what it holds itself, which may be lost while pods still live in it,
    /// and not what somebody announces.
    pub(super) fn next_block(
        &self,
        resources: &Snapshot,
        pool: &IpPool,
        held: &[BlockSummary],
        taken: &Taken,
    ) -> Option<Block> {
        let (cidr, size) = (pool.spec.cidr, pool.spec.block_size());
        let mut taken = taken.clone().without(resources.reservations.clone());
        held.iter().for_each(|held| taken.insert(held.block));
        self.learned_in(cidr, size).into_iter().for_each(|block| taken.insert(block));
        next_candidate(cidr, size, &self.node, &taken)
    }

    /// What somebody announces of a pool, in blocks or parts of blocks: where that is so, a claim that is
    /// missing was lost, and not given back.
    fn learned_in(&self, pool: Prefix, block_size: u8) -> Vec<Block> {
        let learned = Arc::clone(&self.learned.borrow());
        let blocks = learned.within(pool).filter(|prefix| prefix.length() >= block_size);
        blocks.filter_map(|prefix| Block::new(prefix).ok()).collect()
    }

    /// Claims one block and takes it into use; answers the claim that is in the way, if another
    /// node's is.
    fn take(
        &mut self,
        block: Block,
        pool: &str,
        dedication: Option<&Dedication>,
    ) -> Result<Option<Claim>, ClaimsError> {
        let who = Claimant { node: &self.node, pool, dedication };
        let outcome = self.store.try_claim(block, who).inspect_err(|_| self.state.behind = true);
        match outcome? {
            ClaimOutcome::Won(claim) => self.take_into_use(claim).map(|()| None),
            ClaimOutcome::Lost(other) => Ok(Some(other)),
        }
    }

    fn take_into_use(&mut self, claim: Claim) -> Result<(), ClaimsError> {
        let Claim { block, pool, dedication, .. } = claim.clone();
        info!(%block, pool, ?dedication, "claimed a block");
        // It is this node's whatever the store says.
        self.remember(claim);
        let limit = self.resources.borrow().ipam_config().max_blocks_per_host as usize;
        let of_family = self.state.mine.keys().filter(|mine| mine.family() == block.family());
        if limit > 0 && of_family.count() >= limit {
            // There is something to say about that.
            self.state.behind = true;
        }
        let taken = self.service.set_block(OwnedBlock { block, pool, dedication }, true);
        Ok(taken.inspect_err(|_| self.state.behind = true)?)
    }
}
