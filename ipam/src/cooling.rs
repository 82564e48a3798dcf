use std::{collections::BTreeMap, net::IpAddr};

use twill_types::Prefix;

use crate::Refusal;

/// Addresses that nobody has, and that cannot be given out again yet. Nothing of it is stored: after a
/// start no link waits any more, and all that was in use before begins to rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cooling {
    /// A link with this address may still exist; freed in which round of deleting links.
    held: BTreeMap<IpAddr, u64>,
    /// Resting until this time.
    resting: BTreeMap<IpAddr, u64>,
    /// How long an address rests; unknown at first.
    rest_ms: Option<u64>,
    now_ms: u64,
    round: u64,
}

impl Cooling {
    /// Milliseconds since any moment; it never goes back.
    pub(crate) fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.resting.retain(|_, until| *until > now_ms);
    }

    /// How long an address rests after use. When this is told for the first time, those of `freed`
    /// begin to rest: nobody knows any more since when they are free. A shorter time holds for those
    /// that rest already, a longer one for those that come.
    pub(crate) fn set_rest(&mut self, rest_ms: u64, freed: impl Iterator<Item = IpAddr>) {
        let latest = self.now_ms.saturating_add(rest_ms);
        if self.rest_ms.replace(rest_ms).is_none() {
            self.resting = freed.map(|address| (address, latest)).collect();
        }
        self.resting.values_mut().for_each(|until| *until = latest.min(*until));
        self.set_time(self.now_ms);
    }

    /// An address was in use until now.
    pub(crate) fn begin(&mut self, address: IpAddr) {
        self.held.insert(address, self.round);
        if let Some(rest_ms @ 1..) = self.rest_ms {
            self.resting.insert(address, self.now_ms.saturating_add(rest_ms));
        }
    }

    /// An address is in use.
    pub(crate) fn end(&mut self, address: IpAddr) {
        self.held.remove(&address);
        self.resting.remove(&address);
    }

    /// Begins a round of deleting links: what is freed from now on belongs to the next one.
    pub(crate) fn begin_round(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    /// The links of all that was freed before this round are gone.
    pub(crate) fn end_round(&mut self, round: u64) {
        self.held.retain(|_, freed| *freed >= round);
    }

    /// Why an address cannot be had yet.
    pub(crate) fn refusal(&self, address: IpAddr) -> Option<Refusal> {
        if self.held.contains_key(&address) {
            return Some(Refusal::Cooling { address });
        }
        let until = self.resting.get(&address)?;
        let seconds = until.saturating_sub(self.now_ms).div_ceil(1000);
        Some(Refusal::Resting { address, seconds })
    }

    /// Those of a block that wait for their links to go.
    pub(crate) fn held_in(&self, block: Prefix) -> impl Iterator<Item = IpAddr> + '_ {
        self.held.range(block.address()..=block.last()).map(|(address, _)| *address)
    }

    /// Those of a block that rest, and wait for nothing else.
    pub(crate) fn resting_in(&self, block: Prefix) -> impl Iterator<Item = IpAddr> + '_ {
        let resting = self.resting.range(block.address()..=block.last());
        resting.map(|(address, _)| *address).filter(|address| !self.held.contains_key(address))
    }

    /// How many seconds it takes until the first address of these blocks has rested.
    pub(crate) fn first_rested(&self, blocks: impl Iterator<Item = Prefix>) -> Option<u64> {
        let first = blocks
            .flat_map(|block| self.resting.range(block.address()..=block.last()))
            .map(|(_, until)| *until)
            .min()?;
        Some(first.saturating_sub(self.now_ms).div_ceil(1000))
    }
}
