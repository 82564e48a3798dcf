//! Blocks that nobody needs any more.

use std::{sync::Arc, time::Instant};

use tracing::{info, warn};
use twill_ipam::{BlockSummary, is_nearly_full};
use twill_types::{Block, error_chain};

use super::{Claims, ClaimsError};

impl Claims {
    /// Gives the blocks back that have been empty for the grace period: those that are to go, and
    /// those that are not needed beside the others of their pool. Never the last of a pool that this
    /// node uses, and never one whose addresses still rest.
    pub(super) fn give_back(&mut self) -> Result<(), ClaimsError> {
        let now = Instant::now();
        let blocks = self.service.blocks()?;
        let spare = self.spare(&blocks);
        let empty: Vec<Block> = blocks
            .iter()
            .filter(|block| block.used == 0 && block.held == 0 && block.resting == 0)
            .filter(|block| block.delegated == 0)
            .map(|block| block.block)
            .collect();
        let is_to_go = |block: &Block| self.state.unneeded.contains(block) || spare.contains(block);
        let to_go: Vec<Block> = empty.into_iter().filter(is_to_go).collect();
        self.state.empty_since.retain(|block, _| to_go.contains(block));
        for block in to_go {
            let since = *self.state.empty_since.entry(block).or_insert(now);
            // What a pool that is gone leaves is of no use to anybody here.
            if now.duration_since(since) >= self.grace || self.has_no_pool(block) {
                self.release(block)?;
            }
        }
        Ok(())
    }

    fn has_no_pool(&self, block: Block) -> bool {
        let resources = self.resources.borrow();
        self.state.mine.get(&block).is_some_and(|claim| !resources.pools.contains_key(&claim.pool))
    }

    /// The empty blocks that the others of their pool can stand in for: without them, half of a block
    /// is left. At the most one of a pool at a time.
    fn spare(&self, blocks: &[BlockSummary]) -> Vec<Block> {
        let resources = Arc::clone(&self.resources.borrow());
        let candidate = |pool: &str| {
            let of_pool =
                || blocks.iter().filter(|block| block.pool == pool && block.dedication.is_none());
            let empty = |block: &&BlockSummary| {
                block.used + block.held + block.resting + block.delegated == 0
                    && self.state.mine.contains_key(&block.block)
                    && !self.is_static(&resources, block.block)
            };
            // The one that came last.
            let mut empty: Vec<Block> = of_pool().filter(empty).map(|block| block.block).collect();
            empty
                .sort_by_key(|block| self.state.mine.get(block).map(|claim| claim.created.clone()));
            let last = empty.pop()?;
            let others = of_pool().filter(|block| block.block != last && block.assignable);
            let free: u32 = others.clone().map(|block| u32::from(block.free)).sum();
            let enough =
                free * 2 >= u32::from(last.size()) && !is_nearly_full(pool, others.cloned());
            enough.then_some(last)
        };
        let mut pools: Vec<&str> = blocks.iter().map(|block| block.pool.as_str()).collect();
        pools.sort_unstable();
        pools.dedup();
        pools.into_iter().filter_map(candidate).collect()
    }

    /// Gives one block back: nobody gets an address of it, it is withdrawn, and then it is another's.
    fn release(&mut self, block: Block) -> Result<(), ClaimsError> {
        if !self.service.remove_block(block)? {
            return Ok(());
        }
        self.state.empty_since.remove(&block);
        if self.return_borrowed(block)? {
            return Ok(());
        }
        let Some(claim) = self.state.mine.remove(&block) else {
            return Ok(());
        };
        self.publish_owned();
        match self.store.release(&claim) {
            Ok(true) => info!(%block, pool = claim.pool, "an empty block was given back"),
            Ok(false) => info!(%block, pool = claim.pool, "an empty block was another's already"),
            Err(error) => {
                // It stays this node's, and is taken into use with the next change.
                warn!(%block, error = %error_chain(&error), "an empty block cannot be given back");
                self.state.behind = true;
            }
        }
        Ok(())
    }
}
