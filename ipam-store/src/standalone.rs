use std::path::Path;

use twill_ipam::{AssignRequest, Assignment, OwnedBlock, Refusal, Shortage, Taken, next_candidate};
use twill_types::{Block, Dedication, Prefix};

use crate::{AssignError, Options, Service, StoreError, boot_id};

/// Name of the file beside the store that says that the plugin used it without a daemon. A daemon that
/// takes the store over removes it.
pub const STANDALONE_MARK: &str = "standalone";

/// A pool of a network configuration, for nodes without a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandalonePool {
    /// Its range, all of it this node's.
    pub cidr: Prefix,
    /// Prefix length of its blocks.
    pub block_size: u8,
}

impl StandalonePool {
    /// Its name: the range, since nothing else names it.
    pub fn name(&self) -> String {
        self.cidr.to_string()
    }
}

/// The same service, where nobody else claims blocks: the plugin opens it for one call.
#[derive(Debug)]
pub struct Standalone {
    service: Service,
    pools: Vec<StandalonePool>,
}

impl Standalone {
    /// Opens the store. The caller holds the [`crate::OwnerLock`].
    ///
    /// # Errors
    /// As [`Service::open`].
    pub fn open(directory: &Path, pools: Vec<StandalonePool>) -> Result<Self, StoreError> {
        // Here links are deleted before their addresses are released.
        let options = Options { boot_id: boot_id()?, hold_freed: false };
        let (service, _) = Service::open(directory, options)?;
        Ok(Self { service, pools })
    }

    /// The service, for what needs no pools.
    pub const fn service(&self) -> &Service {
        &self.service
    }

    /// Assigns addresses, taking the next block of a pool when those in use are full.
    ///
    /// # Errors
    /// The pools are full, or the store failed.
    pub fn assign(&self, request: &AssignRequest) -> Result<Assignment, AssignError> {
        loop {
            match self.service.assign(request.clone()) {
                Err(AssignError::Refused(refusal)) => {
                    if !self.take_block_for(&refusal)? {
                        return Err(refusal.into());
                    }
                }
                other => return other,
            }
        }
    }

    /// Whether one of these pools has a free address in a block in use, or a block that is not: for pods
    /// of our own, or of the network of another main plugin, which has blocks of its own.
    ///
    /// # Errors
    /// The service has ended.
    pub fn has_free(&self, pools: &[String], network: Option<&str>) -> Result<bool, StoreError> {
        let blocks = self.service.blocks()?;
        let taken: Taken = blocks.iter().map(|summary| summary.block).collect();
        let mut ours = self.pools.iter().filter(|pool| pools.contains(&pool.name()));
        Ok(blocks.iter().any(|block| {
            let set_aside = block.dedication.as_ref().map(|other| other.network.as_str());
            block.free > 0 && set_aside == network && pools.contains(&block.pool)
        }) || ours.any(|pool| next_candidate(pool.cidr, pool.block_size, "", &taken).is_some()))
    }

    /// Takes the block that an assignment lacks; false if there is none to take.
    fn take_block_for(&self, refusal: &Refusal) -> Result<bool, StoreError> {
        let blocks = self.service.blocks()?;
        let taken: Taken = blocks.iter().map(|summary| summary.block).collect();
        let named = |names: &[String]| -> Vec<&StandalonePool> {
            self.pools.iter().filter(|pool| names.contains(&pool.name())).collect()
        };
        let (found, dedication) = match refusal {
            Refusal::Full(Shortage { pools, dedication, .. }) => {
                // From the start of the pool: there is no other node to keep out of the way of.
                let next = |pool: &&StandalonePool| {
                    Some((pool.name(), next_candidate(pool.cidr, pool.block_size, "", &taken)?))
                };
                (named(pools).iter().find_map(next), dedication)
            }
            Refusal::NoBlock { address, pools, dedication } => {
                let block = |pool: &&StandalonePool| {
                    let block = Prefix::masked(*address, pool.block_size).ok()?;
                    let block = Block::new(block).ok().filter(|b| pool.cidr.covers(b.prefix()))?;
                    let free = blocks.iter().all(|b| !b.block.prefix().overlaps(block.prefix()));
                    free.then(|| (pool.name(), block))
                };
                (named(pools).iter().find_map(block), dedication)
            }
            Refusal::Taken { .. }
            | Refusal::Cooling { .. }
            | Refusal::Resting { .. }
            | Refusal::Reserved { .. }
            | Refusal::Delegated { .. }
            | Refusal::Withheld { .. } => {
                return Ok(false);
            }
        };
        let Some((pool, block)) = found else {
            return Ok(false);
        };
        let dedication: Option<Dedication> = dedication.clone();
        self.service.set_block(OwnedBlock { block, pool, dedication }, true)?;
        Ok(true)
    }
}
