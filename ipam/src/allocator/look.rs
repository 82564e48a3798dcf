use std::net::IpAddr;

use twill_types::{Block, Prefix};

use super::Allocator;
use crate::{BlockSummary, Record, Refusal};

/// All that a node knows of one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressLook {
    /// Its block, if this node has that.
    pub block: Option<BlockSummary>,
    /// Who has it.
    pub record: Option<Record>,
    /// Nobody has it any more, and its link is not gone yet.
    pub held: bool,
    /// For how many seconds it rests yet.
    pub resting: Option<u64>,
    /// The range that reserves it.
    pub reserved: Option<Prefix>,
    /// The part of a block that it lies in and that another node has.
    pub lent: Option<Block>,
}

impl Allocator {
    /// What there is to say about an address.
    pub fn look(&self, address: IpAddr) -> AddressLook {
        let refusal = self.cooling.refusal(address);
        AddressLook {
            block: self.block_of(address).map(|state| self.summary(state)),
            record: self.records.values().find(|r| r.addresses.contains(&address)).cloned(),
            held: matches!(refusal, Some(Refusal::Cooling { .. })),
            resting: match refusal {
                Some(Refusal::Resting { seconds, .. }) => Some(seconds),
                _ => None,
            },
            reserved: self.reservation_of(address),
            lent: self.delegation_of(address),
        }
    }
}
