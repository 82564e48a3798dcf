use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use twill_types::{AttachmentId, Block, Family};

use crate::block::BlockState;

/// A request for addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignRequest {
    /// For whom.
    pub attachment: AttachmentId,
    /// For each family that is wanted, the names of the pools to try, in order.
    pub pools: BTreeMap<Family, Vec<String>>,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The namespace's cookie, where the kernel tells it.
    pub netns_cookie: Option<u64>,
    /// Pod namespace and name, for people.
    pub pod: Option<String>,
    /// Whether another main plugin makes the interface: there is no host link of ours then.
    pub foreign: bool,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// The answer to an [`AssignRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The number of this assignment.
    pub sequence: u64,
    /// False if the attachment had these addresses already.
    pub fresh: bool,
}

/// A request to give addresses back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// Whose.
    pub attachment: AttachmentId,
    /// Only if the assignment still has this number; `None` gives back whatever is held.
    pub sequence: Option<u64>,
}

/// The answer to a [`ReleaseRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseOutcome {
    /// What was given back; empty if nothing was held, or a newer assignment holds it.
    pub addresses: Vec<IpAddr>,
}

/// What one attachment holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Who.
    pub attachment: AttachmentId,
    /// IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Number of the assignment; a later one has a higher number.
    pub sequence: u64,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The namespace's cookie, where the kernel tells it.
    pub netns_cookie: Option<u64>,
    /// Pod namespace and name, for people.
    pub pod: Option<String>,
    /// Whether another main plugin makes the interface: there is no host link of ours then.
    #[serde(default)]
    pub foreign: bool,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// A block that this node has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedBlock {
    /// The block.
    pub block: Block,
    /// The pool it was claimed from.
    pub pool: String,
}

/// A block and its fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// The block.
    pub block: Block,
    /// Its pool.
    pub pool: String,
    /// Addresses in use.
    pub used: u16,
    /// Addresses not in use.
    pub free: u16,
    /// Whether new addresses come from it.
    pub assignable: bool,
}

/// One change of what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write the record of an attachment, and mark its addresses as in use.
    Assign(Record),
    /// Remove a record, and free its addresses.
    Release(Record),
    /// Add a block, or change whether it gives addresses.
    Block(OwnedBlock, bool),
    /// Remove an empty block.
    RemoveBlock(Block),
}

/// What an assignment takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be written and applied, in order.
    pub changes: Vec<Change>,
    /// To be answered once that is durable.
    pub assignment: Assignment,
}

/// No block of these pools has a free address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free {family} address in this node's blocks of {}", pools.join(", "))]
pub struct Shortage {
    /// Of which family.
    pub family: Family,
    /// In which pools.
    pub pools: Vec<String>,
}

/// All blocks and records of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocator {
    blocks: BTreeMap<Block, BlockState>,
    records: BTreeMap<AttachmentId, Record>,
    /// Freed, but not to be given out yet: a link with this address may still exist.
    held: BTreeMap<IpAddr, u64>,
    epoch: u64,
    sequence: u64,
}

impl Allocator {
    /// An allocator as it was stored.
    pub fn restore(
        blocks: impl IntoIterator<Item = BlockState>,
        records: impl IntoIterator<Item = Record>,
        sequence: u64,
    ) -> Self {
        let blocks = blocks.into_iter().map(|state| (state.block, state)).collect();
        let records: BTreeMap<_, _> =
            records.into_iter().map(|record| (record.attachment.clone(), record)).collect();
        let highest = records.values().map(|record| record.sequence).max().unwrap_or(0);
        Self { blocks, records, sequence: sequence.max(highest), ..Self::default() }
    }

    /// What an assignment would take.
    ///
    /// Both families or none. An attachment that asks again gets the same answer; if its namespace
    /// is another one by now (a container that was restarted under its old id), it keeps the
    /// addresses under a new number, so that a late release of the old one changes nothing.
    ///
    /// # Errors
    /// [`Shortage`] names the first family that has no address, and where it was looked for.
    pub fn plan_assign(&self, request: &AssignRequest) -> Result<Plan, Shortage> {
        let mut changes = Vec::new();
        let mut freed = BTreeSet::new();
        let mut kept = None;
        if let Some(record) = self.records.get(&request.attachment) {
            let families: BTreeSet<Family> =
                record.addresses.iter().map(|address| Family::of(*address)).collect();
            if families == request.pools.keys().copied().collect() {
                if same_namespace(record, request) {
                    return Ok(Plan { changes, assignment: assignment(record, false) });
                }
                kept = Some(record.addresses.clone());
            } else {
                freed.extend(record.addresses.iter().copied());
                changes.push(Change::Release(record.clone()));
            }
        }
        let addresses = match kept {
            Some(addresses) => addresses,
            None => request
                .pools
                .iter()
                .map(|(family, pools)| self.find(*family, pools, &freed))
                .collect::<Result<_, _>>()?,
        };
        let record = Record {
            attachment: request.attachment.clone(),
            addresses,
            sequence: self.sequence + 1,
            netns: request.netns.clone(),
            netns_cookie: request.netns_cookie,
            pod: request.pod.clone(),
            foreign: request.foreign,
            created_ms: request.now_ms,
        };
        let assignment = assignment(&record, true);
        changes.push(Change::Assign(record));
        Ok(Plan { changes, assignment })
    }

    fn find(
        &self,
        family: Family,
        pools: &[String],
        freed: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Shortage> {
        let candidates = pools.iter().flat_map(|pool| {
            self.blocks.values().filter(move |state| {
                state.assignable && state.pool == *pool && state.block.family() == family
            })
        });
        for state in candidates {
            let held = |offset| {
                state
                    .block
                    .nth(offset)
                    .is_none_or(|a| self.held.contains_key(&a) || freed.contains(&a))
            };
            if let Some(address) = state.next(held).and_then(|offset| state.block.nth(offset)) {
                return Ok(address);
            }
        }
        Err(Shortage { family, pools: pools.to_vec() })
    }

    /// What a release would take. Nothing held is no change, and no error.
    pub fn plan_release(&self, request: &ReleaseRequest) -> (Vec<Change>, ReleaseOutcome) {
        let held = self.records.get(&request.attachment).filter(|record| {
            // A late release names an older assignment.
            request.sequence.is_none_or(|sequence| sequence >= record.sequence)
        });
        match held {
            None => (Vec::new(), ReleaseOutcome::default()),
            Some(record) => (
                vec![Change::Release(record.clone())],
                ReleaseOutcome { addresses: record.addresses.clone() },
            ),
        }
    }

    /// What removing a block would take; `None` if there is an address of it in use.
    pub fn plan_remove_block(&self, block: Block) -> Option<Vec<Change>> {
        match self.blocks.get(&block) {
            None => Some(Vec::new()),
            Some(state) if state.used() == 0 => Some(vec![Change::RemoveBlock(block)]),
            Some(_) => None,
        }
    }

    /// Makes a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Assign(record) => {
                for address in &record.addresses {
                    self.in_block(*address, BlockState::take);
                    self.held.remove(address);
                }
                self.sequence = self.sequence.max(record.sequence);
                self.records.insert(record.attachment.clone(), record.clone());
            }
            Change::Release(record) => {
                self.records.remove(&record.attachment);
                for address in &record.addresses {
                    self.in_block(*address, BlockState::give_back);
                    self.held.insert(*address, self.epoch);
                }
            }
            Change::Block(owned, assignable) => {
                let state = self
                    .blocks
                    .entry(owned.block)
                    .or_insert_with(|| BlockState::new(owned.block, owned.pool.clone()));
                state.pool.clone_from(&owned.pool);
                state.assignable = *assignable;
            }
            Change::RemoveBlock(block) => {
                self.blocks.remove(block);
            }
        }
    }

    fn in_block(&mut self, address: IpAddr, act: impl FnOnce(&mut BlockState, u16)) {
        if let Some(state) = self.block_of_mut(address)
            && let Some(offset) = state.block.offset_of(address)
        {
            act(state, offset);
        }
    }

    fn block_of_mut(&mut self, address: IpAddr) -> Option<&mut BlockState> {
        self.blocks.values_mut().find(|state| state.block.prefix().contains(address))
    }

    /// The blocks that a change touches, as they are now: what the store has to write.
    pub fn touched(&self, change: &Change) -> Vec<&BlockState> {
        let of = |record: &Record| {
            let blocks = self.blocks.values();
            let holds = |state: &&BlockState| {
                record.addresses.iter().any(|address| state.block.prefix().contains(*address))
            };
            blocks.filter(holds).collect()
        };
        match change {
            Change::Assign(record) | Change::Release(record) => of(record),
            Change::Block(owned, _) => self.blocks.get(&owned.block).into_iter().collect(),
            Change::RemoveBlock(_) => Vec::new(),
        }
    }

    /// Begins a round of deleting links: what is freed from now on belongs to the next round.
    /// Returns the name of this one for [`Allocator::end_round`].
    pub fn begin_round(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// The links of all that was freed before this round are gone.
    pub fn end_round(&mut self, round: u64) {
        self.held.retain(|_, epoch| *epoch >= round);
    }

    /// Addresses freed whose link may still exist.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Number of the last assignment.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What an attachment holds.
    pub fn lookup(&self, attachment: &AttachmentId) -> Option<&Record> {
        self.records.get(attachment)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// All blocks and their fill.
    pub fn blocks(&self) -> impl Iterator<Item = BlockSummary> {
        self.blocks.values().map(|state| BlockSummary {
            block: state.block,
            pool: state.pool.clone(),
            used: state.used(),
            free: state.free(),
            assignable: state.assignable,
        })
    }
}

fn assignment(record: &Record, fresh: bool) -> Assignment {
    Assignment { addresses: record.addresses.clone(), sequence: record.sequence, fresh }
}

/// The cookie tells for certain; a path may be used again.
fn same_namespace(record: &Record, request: &AssignRequest) -> bool {
    match (record.netns_cookie, request.netns_cookie) {
        (Some(was), Some(is)) => was == is,
        _ => record.netns == request.netns,
    }
}

#[cfg(test)]
mod tests;
