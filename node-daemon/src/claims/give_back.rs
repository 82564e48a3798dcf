//! Blocks that nobody needs any more.

use std::{sync::Arc, time::Instant};

use tracing::{info, warn};
use twill_ipam::BlockSummary;
use twill_k8s_api::{BlockRequestSpec, files::Claim};
use twill_types::{Block, Dedication, error_chain};

use super::{Claims, ClaimsError, LOOK};
use crate::{backoff::Backoff, datastore::Release};

/// A block that is withdrawn, and whose claim stays until the word of that has gone round.
#[derive(Debug)]
pub(super) struct Leaving {
    what: What,
    since: Instant,
    /// When it is tried again.
    retry: Backoff,
}

#[derive(Debug)]
enum What {
    Claim(Claim),
    /// A part of another's block: the request and what it said.
    Part(String, BlockRequestSpec),
}

impl Claims {
    /// Gives the blocks back that have been empty for the grace period: those that are to go, and
    /// those that are not needed beside the others of their pool. Never the last of a pool that this
    /// node uses, and never one whose addresses still rest.
    pub(super) fn give_back(&mut self) -> Result<(), ClaimsError> {
        let now = Instant::now();
        let blocks = self.service.blocks()?;
        let spare = self.spare(&blocks);
        let is_to_go = |block: &Block| self.state.draining.contains(block) || spare.contains(block);
        let empty = blocks.iter().filter(|block| is_empty(block)).map(|block| block.block);
        let to_go: Vec<Block> = empty.filter(is_to_go).collect();
        self.state.empty_since.retain(|block, _| to_go.contains(block));
        for block in to_go {
            let since = *self.state.empty_since.entry(block).or_insert(now);
            // What a pool that is gone leaves is of no use to anybody here.
            if now.duration_since(since) >= self.grace || self.has_no_pool(block) {
                self.leave(block)?;
            }
        }
        Ok(())
    }

    fn has_no_pool(&self, block: Block) -> bool {
        let resources = self.resources.borrow();
        self.state.mine.get(&block).is_some_and(|claim| !resources.pools.contains_key(&claim.pool))
    }

    /// The empty blocks that the others can stand in for, of the same pool and network: without them,
    /// half of a block is left. One of each at a time, the one that came last.
    fn spare(&self, blocks: &[BlockSummary]) -> Vec<Block> {
        let resources = Arc::clone(&self.resources.borrow());
        let candidate = |(pool, network): (&str, Option<&Dedication>)| {
            // What is borrowed goes by itself, and stands in for nothing.
            let own: Vec<&BlockSummary> = blocks
                .iter()
                .filter(|b| b.pool == pool && b.dedication.as_ref() == network)
                .filter(|b| self.state.mine.contains_key(&b.block))
                .collect();
            let may_go = |block: &&&BlockSummary| {
                is_empty(block) && !self.is_static(&resources, block.block)
            };
            let created = |block: Block| self.state.mine.get(&block).map(|c| c.created.as_str());
            let last =
                own.iter().filter(may_go).map(|b| b.block).max_by_key(|block| created(*block))?;
            let others = own.iter().filter(|block| block.block != last && block.assignable);
            let free: u32 = others.map(|block| u32::from(block.free)).sum();
            (own.len() > 1 && free * 2 >= u32::from(last.size())).then_some(last)
        };
        let mut groups: Vec<_> =
            blocks.iter().map(|b| (b.pool.as_str(), b.dedication.as_ref())).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.into_iter().filter_map(candidate).collect()
    }

    /// Takes one block out of use, if nobody has an address of it, and withdraws it.
    fn leave(&mut self, block: Block) -> Result<(), ClaimsError> {
        // Nobody can say whose it is as long as its claim cannot be read.
        if self.state.unsure.contains(&block) || !self.service.remove_block(block)? {
            return Ok(());
        }
        self.state.empty_since.remove(&block);
        self.state.stamps.remove(&block);
        let what = match self.state.mine.remove(&block) {
            Some(claim) => Some(What::Claim(claim)),
            None => {
                let part = self.state.borrowing.forget(block, &self.node);
                part.map(|(request, spec)| What::Part(request, spec))
            }
        };
        if let Some(what) = what {
            let retry = Backoff::new(LOOK, self.store.patience());
            self.state.leaving.insert(block, Leaving { what, since: Instant::now(), retry });
        }
        self.publish_owned();
        // What is said of it is not so any more.
        self.state.behind |= self.speaks_of_blocks();
        Ok(())
    }

    /// Parts with the blocks that were withdrawn a moment ago: from here on they are another's.
    pub(super) fn part_with_leaving(&mut self) -> Result<(), ClaimsError> {
        let due = |leaving: &Leaving| leaving.since.elapsed() >= LOOK && leaving.retry.is_due();
        let blocks: Vec<Block> =
            self.state.leaving.iter().filter(|(_, l)| due(l)).map(|(block, _)| *block).collect();
        for block in blocks {
            let Some(leaving) = self.state.leaving.get_mut(&block) else { continue };
            let parted = match &leaving.what {
                What::Part(request, spec) => match self.store.lending() {
                    Some(lending) => lending.give_up(request, spec).map(|()| Release::Done),
                    None => Ok(Release::Done),
                },
                What::Claim(claim) => self.store.release_if(claim, &|| Ok(true)),
            };
            match parted {
                Ok(Release::Done) => info!(%block, "an empty block was given back"),
                // It is taken into use again.
                Ok(Release::Lent | Release::Kept) => self.state.behind = true,
                Ok(Release::Anothers) => warn!(%block, "an empty block was another's already"),
                Err(error) => {
                    leaving.retry.failed();
                    warn!(%block, error = %error_chain(&error), "an empty block cannot be given back yet");
                    continue;
                }
            }
            self.state.leaving.remove(&block);
        }
        Ok(())
    }
}

/// Nobody has an address of it, or has had one until lately.
const fn is_empty(block: &BlockSummary) -> bool {
    block.used + block.held + block.resting + block.delegated == 0
}
