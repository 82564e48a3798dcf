mod look;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use look::AddressLook;
use twill_types::{AttachmentId, Block, Dedication, Family, Prefix};

use crate::{
    AssignRequest, Assignment, BlockSummary, OwnedBlock, Record, Refusal, ReleaseOutcome,
    ReleaseRequest, Shortage, block::BlockState, cooling::Cooling,
};

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

/// How many addresses of a block are what, besides those in use.
struct Fill {
    free: u16,
    held: u16,
    resting: u16,
    reserved: u16,
    delegated: u16,
}

/// What an assignment takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be written and applied, in order.
    pub changes: Vec<Change>,
    /// To be answered once that is durable.
    pub assignment: Assignment,
}

/// All blocks and records of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocator {
    blocks: BTreeMap<Block, BlockState>,
    records: BTreeMap<AttachmentId, Record>,
    cooling: Cooling,
    /// Ranges that nobody gets an address of. They are the configuration's, and not stored.
    reservations: Vec<Prefix>,
    /// Parts of blocks that other nodes have. They stand in the claims, and are not stored.
    delegated: BTreeSet<Block>,
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

    /// Goes back to what is stored, when changes were made here that could not be written. Numbers
    /// go on, and what was freed before stays held.
    pub fn reload(
        &mut self,
        blocks: impl IntoIterator<Item = BlockState>,
        records: impl IntoIterator<Item = Record>,
    ) {
        let stored = Self::restore(blocks, records, self.sequence);
        let old = std::mem::take(self);
        let Self { blocks, records, sequence, .. } = stored;
        *self = Self { blocks, records, sequence, ..old };
        // What was freed and not written is in use as before.
        for address in self.records.values().flat_map(|record| &record.addresses) {
            self.cooling.end(*address);
        }
    }

    /// Tells the time, in milliseconds since any moment; it never goes back.
    pub fn set_time(&mut self, now_ms: u64) {
        self.cooling.set_time(now_ms);
    }

    /// How long an address rests after use, in milliseconds. When this is told for the first time, all
    /// addresses that were in use before begin to rest: nobody knows any more since when they are
    /// free. A shorter time holds for those that rest already, too.
    pub fn set_rest(&mut self, rest_ms: u64) {
        let freed = self
            .blocks
            .values()
            .flat_map(|state| state.freed().filter_map(|offset| state.block.nth(offset)));
        self.cooling.set_rest(rest_ms, freed);
    }

    /// From now on nobody gets an address of these ranges. Who has one keeps it.
    pub fn reserve(&mut self, ranges: Vec<Prefix>) {
        self.reservations = ranges;
    }

    /// These parts of blocks are other nodes', all of them. Of those that overlap, as they never should, the
    /// largest counts.
    pub fn set_delegated(&mut self, parts: BTreeSet<Block>) {
        self.delegated.clear();
        // The larger of two that begin at one address comes first.
        for part in parts {
            if !self.delegated.last().is_some_and(|last| last.prefix().covers(part.prefix())) {
                self.delegated.insert(part);
            }
        }
    }

    /// Takes an aligned part out of a block for another node: of this prefix length if there is one,
    /// else a smaller one; only with an address in it, where one is asked for. `None` if nothing can
    /// be had. All addresses of it are free, and nobody here gets one from now on.
    pub fn delegate(&mut self, block: Block, length: u8, address: Option<IpAddr>) -> Option<Block> {
        let state = self.blocks.get(&block).filter(|s| s.assignable && s.dedication.is_none())?;
        let (least, most) = (block.prefix().length(), block.family().bits());
        let is_free = |ip: IpAddr| {
            state.block.offset_of(ip).is_some_and(|offset| !state.is_used(offset))
                && self.cooling.refusal(ip).is_none()
                && self.reservation_of(ip).is_none()
                && self.delegation_of(ip).is_none()
        };
        let part = (length.max(least)..=most).find_map(|length| {
            // From the end: addresses are given from the start.
            (0..1u128 << (length - least)).rev().find_map(|index| {
                let part = Block::new(block.prefix().subnet(length, index)?).ok()?;
                let fits = address.is_none_or(|address| part.prefix().contains(address));
                let free = || (0..part.size()).all(|n| part.nth(n).is_some_and(is_free));
                (fits && free()).then_some(part)
            })
        })?;
        self.delegated.insert(part);
        Some(part)
    }

    fn delegation_of(&self, address: IpAddr) -> Option<Block> {
        let alone = Block::new(Prefix::host(address)).ok()?;
        let part = self.delegated.range(..=alone).next_back()?;
        part.prefix().contains(address).then_some(*part)
    }

    /// What a block is filled with, besides what is in use. Each ADD counts all blocks of its pool.
    fn fill(&self, state: &BlockState) -> Fill {
        let range = state.block.prefix();
        let is_used = |ip| state.block.offset_of(ip).is_some_and(|offset| state.is_used(offset));
        // Each address counts once. A pod that was found after the store was lost may have one in a
        // part, and what rests after a start may lie in one.
        let parts = self.delegated.iter().filter(|part| range.covers(part.prefix()));
        let in_parts = parts.flat_map(|part| (0..part.size()).filter_map(|n| part.nth(n)));
        let delegated = count(in_parts.filter(|ip| !is_used(*ip)));
        let is_reserved =
            |ip| self.reservation_of(ip).is_some() && self.delegation_of(ip).is_none();
        let is_spare = |offset: &u16| {
            !state.is_used(*offset) && state.block.nth(*offset).is_some_and(is_reserved)
        };
        let reserved = match self.reservations.iter().any(|other| other.overlaps(range)) {
            true => count((0..state.block.size()).filter(is_spare)),
            false => 0,
        };
        let is_ours = |ip: &IpAddr| {
            !is_used(*ip) && self.reservation_of(*ip).is_none() && self.delegation_of(*ip).is_none()
        };
        let held = count(self.cooling.held_in(range).filter(is_ours));
        let resting = count(self.cooling.resting_in(range).filter(is_ours));
        let free = state.free() - delegated - reserved - held - resting;
        Fill { free, held, resting, reserved, delegated }
    }

    fn summary(&self, state: &BlockState) -> BlockSummary {
        let Fill { free, held, resting, reserved, delegated } = self.fill(state);
        BlockSummary {
            block: state.block,
            pool: state.pool.clone(),
            used: state.used(),
            free,
            held,
            resting,
            reserved,
            delegated,
            assignable: state.assignable,
            dedication: state.dedication.clone(),
        }
    }

    fn reservation_of(&self, address: IpAddr) -> Option<Prefix> {
        self.reservations.iter().find(|range| range.contains(address)).copied()
    }

    /// What an assignment would take.
    ///
    /// Both families or none. An attachment that asks again gets the same answer; if its namespace
    /// is another one by now (a container that was restarted under its old id), it keeps the
    /// addresses under a new number, so that a late release of the old one changes nothing.
    ///
    /// # Errors
    /// [`Refusal`] says why the first family that gets none has no address.
    pub fn plan_assign(&self, request: &AssignRequest) -> Result<Plan, Refusal> {
        let mut changes = Vec::new();
        let mut freed = BTreeSet::new();
        let mut kept = None;
        if let Some(record) = self.records.get(&request.attachment) {
            let families: BTreeSet<Family> =
                record.addresses.iter().map(|address| Family::of(*address)).collect();
            let wanted = request.wanted.values().all(|address| record.addresses.contains(address));
            if wanted && families == request.pools.keys().copied().collect() {
                if same_namespace(record, request) {
                    return Ok(Plan { changes, assignment: self.assignment(record) });
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
                .map(|(family, pools)| match request.wanted.get(family) {
                    Some(address) => self.find_wanted(request, *address, pools, &freed),
                    None => self.find(request, *family, pools, &freed),
                })
                .collect::<Result<_, _>>()?,
        };
        let record = Record {
            attachment: request.attachment.clone(),
            addresses,
            sequence: self.sequence + 1,
            netns: request.netns.clone(),
            netns_cookie: request.netns_cookie,
            pod: request.pod.clone(),
            pod_uid: request.pod_uid.clone(),
            foreign: request.foreign.is_some(),
            created_ms: request.now_ms,
        };
        let assignment = self.assignment(&record);
        changes.push(Change::Assign(record));
        Ok(Plan { changes, assignment })
    }

    /// The blocks that may give an address to a request, in the order to try.
    fn candidates<'a>(
        &'a self,
        family: Family,
        pools: &'a [String],
        dedication: Option<&'a Dedication>,
    ) -> impl Iterator<Item = &'a BlockState> {
        let gives = move |state: &&BlockState, pool: &String| {
            state.assignable
                && state.pool == *pool
                && state.block.family() == family
                && state.dedication.as_ref() == dedication
        };
        pools
            .iter()
            .flat_map(move |pool| self.blocks.values().filter(move |state| gives(state, pool)))
    }

    fn find(
        &self,
        request: &AssignRequest,
        family: Family,
        pools: &[String],
        freed: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        let dedication = request.dedication();
        let (mut blocks, mut held, mut resting) = (0, 0, 0);
        for state in self.candidates(family, pools, dedication.as_ref()) {
            let skip = |offset| {
                state.block.nth(offset).is_none_or(|address| {
                    freed.contains(&address) || self.refusal(request, state, address).is_some()
                })
            };
            if let Some(address) = state.next(skip).and_then(|offset| state.block.nth(offset)) {
                return Ok(address);
            }
            blocks += 1;
            let fill = self.fill(state);
            held += usize::from(fill.held);
            resting += usize::from(fill.resting);
        }
        let candidates = self.candidates(family, pools, dedication.as_ref());
        let rested_in = self.cooling.first_rested(candidates.map(|state| state.block.prefix()));
        let pools = pools.to_vec();
        let rested_in = rested_in.filter(|_| resting > 0);
        Err(Shortage { family, pools, dedication, blocks, held, rested_in }.into())
    }

    /// Why an address that nobody has is not given out.
    fn refusal(
        &self,
        request: &AssignRequest,
        state: &BlockState,
        address: IpAddr,
    ) -> Option<Refusal> {
        if request.is_reserved(state.block, address) {
            return Some(Refusal::Reserved { address });
        }
        if let Some(refusal) = self.withheld(request, address) {
            return Some(refusal);
        }
        if let Some(part) = self.delegation_of(address) {
            return Some(Refusal::Delegated { address, part });
        }
        self.cooling.refusal(address)
    }

    /// That an address is reserved, unless who asks may have it all the same. The override is for
    /// those who know which address they want.
    fn withheld(&self, request: &AssignRequest, address: IpAddr) -> Option<Refusal> {
        let overrides = request.allow_reserved && request.wanted.values().any(|ip| *ip == address);
        let range = self.reservation_of(address).filter(|_| !overrides)?;
        Some(Refusal::Withheld { address, range })
    }

    /// The address that was asked for, if it can be had.
    fn find_wanted(
        &self,
        request: &AssignRequest,
        address: IpAddr,
        pools: &[String],
        freed: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        let dedication = request.dedication();
        let state = self
            .candidates(Family::of(address), pools, dedication.as_ref())
            .find(|state| state.block.prefix().contains(address));
        let Some(state) = state else {
            // No block is claimed for what nobody gets.
            if let Some(refusal) = self.withheld(request, address) {
                return Err(refusal);
            }
            return Err(Refusal::NoBlock { address, pools: pools.to_vec(), dedication });
        };
        let refusal = self.refusal(request, state, address);
        let is_cold = |refusal: &Refusal| {
            matches!(refusal, Refusal::Cooling { .. } | Refusal::Resting { .. })
        };
        // What the attachment itself gives up now goes from hand to hand.
        if let Some(refusal) = refusal.filter(|r| !(is_cold(r) && freed.contains(&address))) {
            return Err(refusal);
        }
        if freed.contains(&address) {
            return Ok(address);
        }
        match self.records.values().find(|record| record.addresses.contains(&address)) {
            Some(record) => {
                Err(Refusal::Taken { address, by: Box::new(record.attachment.clone()) })
            }
            None => Ok(address),
        }
    }

    fn assignment(&self, record: &Record) -> Assignment {
        let block_of = |address: &IpAddr| self.block_of(*address).map(|state| state.block);
        Assignment {
            addresses: record.addresses.clone(),
            blocks: record.addresses.iter().filter_map(block_of).collect(),
            sequence: record.sequence,
            nearly_full: Vec::new(),
        }
    }

    /// The pools of these blocks of which little is left here, in blocks for everybody.
    pub fn nearly_full(&self, blocks: &[Block]) -> Vec<String> {
        let mut pools: Vec<&str> = blocks
            .iter()
            .filter_map(|block| self.blocks.get(block))
            .filter(|state| state.dedication.is_none())
            .map(|state| state.pool.as_str())
            .collect();
        pools.dedup();
        let is_nearly_full = |pool: &&str| {
            let gives = |state: &&BlockState| {
                state.pool == *pool && state.assignable && state.dedication.is_none()
            };
            let blocks = self.blocks.values().filter(gives);
            is_short(blocks.map(|state| {
                let Fill { free, held, .. } = self.fill(state);
                (free + held, state.block.size())
            }))
        };
        pools.into_iter().filter(is_nearly_full).map(str::to_owned).collect()
    }

    /// What a release would take. Nothing held is no change, and no error.
    pub fn plan_release(&self, request: &ReleaseRequest) -> (Vec<Change>, ReleaseOutcome) {
        let held = self.records.get(&request.attachment).filter(|record| {
            // A late release names an older assignment.
            request.sequence.is_none_or(|sequence| sequence >= record.sequence)
                // So does one that comes from another namespace than the one that is served.
                && request
                    .netns_cookie
                    .zip(record.netns_cookie)
                    .is_none_or(|(theirs, ours)| theirs == ours)
        });
        match held {
            None => (Vec::new(), ReleaseOutcome::default()),
            Some(record) => (
                vec![Change::Release(record.clone())],
                ReleaseOutcome { addresses: record.addresses.clone() },
            ),
        }
    }

    /// What it takes to know of an assignment that was lost; nothing, if somebody has one of its
    /// addresses, or its attachment has others.
    pub fn plan_adopt(&self, record: Record) -> Option<Change> {
        let taken = self.records.values().any(|other| {
            other.attachment == record.attachment
                || other.addresses.iter().any(|address| record.addresses.contains(address))
        });
        (!taken && !record.addresses.is_empty()).then_some(Change::Assign(record))
    }

    /// Makes the numbers of assignments go on after this one.
    pub fn number_after(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// What it takes to have a block; nothing, if it is there as it shall be, or if another block here
    /// has some of its addresses: two would give them twice. It can be had when the other has gone.
    pub fn plan_block(&self, owned: OwnedBlock, assignable: bool) -> Option<Change> {
        let is_there = self.blocks.get(&owned.block).is_some_and(|state| {
            state.pool == owned.pool
                && state.dedication == owned.dedication
                && state.assignable == assignable
        });
        let is_in_the_way =
            |other: &Block| *other != owned.block && other.prefix().overlaps(owned.block.prefix());
        let can = !is_there && !self.blocks.keys().any(is_in_the_way);
        can.then_some(Change::Block(owned, assignable))
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
                    self.cooling.end(*address);
                }
                self.sequence = self.sequence.max(record.sequence);
                self.records.insert(record.attachment.clone(), record.clone());
            }
            Change::Release(record) => {
                self.records.remove(&record.attachment);
                for address in &record.addresses {
                    self.in_block(*address, BlockState::give_back);
                    self.cooling.begin(*address);
                }
            }
            Change::Block(owned, assignable) => {
                let used = self.records.values().flat_map(|record| &record.addresses);
                let state = self.blocks.entry(owned.block).or_insert_with(|| {
                    let mut state = BlockState::new(owned.block, owned.pool.clone());
                    // After the loss of a store records are there before their blocks.
                    let inside = used.filter(|ip| owned.block.prefix().contains(**ip));
                    inside.filter_map(|ip| owned.block.offset_of(*ip)).for_each(|n| state.take(n));
                    state
                });
                state.pool.clone_from(&owned.pool);
                state.dedication.clone_from(&owned.dedication);
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
        let block = self.block_of(address)?.block;
        self.blocks.get_mut(&block)
    }

    /// Blocks of a node do not overlap, so the one that holds an address is the last that begins
    /// before it.
    fn block_of(&self, address: IpAddr) -> Option<&BlockState> {
        let alone = Block::new(Prefix::host(address)).ok()?;
        let (_, state) = self.blocks.range(..=alone).next_back()?;
        state.block.prefix().contains(address).then_some(state)
    }

    /// The blocks that a change touches, as they are now: what the store has to write.
    pub fn touched(&self, change: &Change) -> Vec<&BlockState> {
        let of = |record: &Record| {
            record.addresses.iter().filter_map(|address| self.block_of(*address)).collect()
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
        self.cooling.begin_round()
    }

    /// The links of all that was freed before this round are gone.
    pub fn end_round(&mut self, round: u64) {
        self.cooling.end_round(round);
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
        self.blocks.values().map(|state| self.summary(state))
    }
}

/// Whether less than a quarter of a block is left of a pool, in these blocks, for everybody: then
/// another one should be claimed before it is needed.
pub fn is_nearly_full(pool: &str, blocks: impl IntoIterator<Item = BlockSummary>) -> bool {
    let gives =
        |block: &BlockSummary| block.pool == pool && block.assignable && block.dedication.is_none();
    let blocks = blocks.into_iter().filter(gives);
    is_short(blocks.map(|block| (block.free + block.held, block.block.size())))
}

/// Whether of blocks, each with what can be had and its size, less than a quarter of one is left. What
/// waits for its link to go can be had in a moment.
fn is_short(blocks: impl Iterator<Item = (u16, u16)>) -> bool {
    let (left, size) = blocks.fold((0, 0), |(left, size), (block_left, block_size)| {
        (left + u32::from(block_left), size.max(u32::from(block_size)))
    });
    left * 4 < size
}

/// A block has at most 4096 addresses.
fn count(addresses: impl Iterator) -> u16 {
    u16::try_from(addresses.count()).unwrap_or(u16::MAX)
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
