use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use twill_types::{Block, Dedication};

/// The addresses of one block: which are in use, and in which order the others come.
///
/// Addresses that were never used come first, in order; after that the one that has been free the
/// longest. So an address is reused as late as can be, and what still talks to its last user
/// (neighbour caches, connection tracking, log readers) has had time to forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockState {
    /// The block.
    pub block: Block,
    /// The pool that it was claimed from.
    pub pool: String,
    /// Whether new addresses come from it.
    pub assignable: bool,
    /// The network that it is set aside for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedication: Option<Dedication>,
    /// A bit for each address in use, lowest first.
    used: Vec<u64>,
    /// Offsets from here on were never used.
    fresh: u16,
    /// Offsets that were used, the one free for the longest first.
    freed: VecDeque<u16>,
}

impl BlockState {
    /// A block with no address in use.
    pub fn new(block: Block, pool: String) -> Self {
        let words = usize::from(block.size()).div_ceil(64);
        Self {
            block,
            pool,
            assignable: true,
            dedication: None,
            used: vec![0; words],
            fresh: 0,
            freed: VecDeque::new(),
        }
    }

    /// Addresses in use.
    pub fn used(&self) -> u16 {
        let count: u32 = self.used.iter().map(|word| word.count_ones()).sum();
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    /// Addresses not in use.
    pub fn free(&self) -> u16 {
        self.block.size() - self.used()
    }

    /// The offsets that were in use before, the one free for the longest first.
    pub(crate) fn freed(&self) -> impl Iterator<Item = u16> + '_ {
        self.freed.iter().copied()
    }

    /// Whether this offset is in use.
    pub fn is_used(&self, offset: u16) -> bool {
        self.used.get(usize::from(offset / 64)).is_some_and(|word| word & bit(offset) != 0)
    }

    /// The offset to give next, but none that `skip` names.
    pub(crate) fn next(&self, skip: impl Fn(u16) -> bool) -> Option<u16> {
        let fresh = self.fresh..self.block.size();
        fresh.chain(self.freed.iter().copied()).find(|offset| !skip(*offset))
    }

    /// Marks an offset as in use.
    pub(crate) fn take(&mut self, offset: u16) {
        if let Some(word) = self.used.get_mut(usize::from(offset / 64)) {
            *word |= bit(offset);
        }
        self.freed.retain(|freed| *freed != offset);
        // Those passed over by one that is taken out of turn have been free the longest of all.
        while self.fresh < offset {
            let at = self.freed.iter().take_while(|freed| **freed < self.fresh).count();
            self.freed.insert(at, self.fresh);
            self.fresh += 1;
        }
        self.fresh = self.fresh.max(offset + 1);
    }

    /// Marks an offset as free, to be reused after all others.
    pub(crate) fn give_back(&mut self, offset: u16) {
        if !self.is_used(offset) {
            return;
        }
        if let Some(word) = self.used.get_mut(usize::from(offset / 64)) {
            *word &= !bit(offset);
        }
        self.freed.push_back(offset);
    }
}

const fn bit(offset: u16) -> u64 {
    1 << (offset % 64)
}
