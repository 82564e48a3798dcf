//! What is asked of the allocator, and what it answers.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use twill_types::{AttachmentId, Block, Dedication, Family, ForeignUse, Prefix};

/// A request for addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignRequest {
    /// For whom.
    pub attachment: AttachmentId,
    /// For each family that is wanted, the names of the pools to try, in order.
    pub pools: BTreeMap<Family, Vec<String>>,
    /// Addresses asked for, each in the place of the one that its family would get.
    pub wanted: BTreeMap<Family, IpAddr>,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The namespace's cookie, where the kernel tells it.
    pub netns_cookie: Option<u64>,
    /// Pod namespace and name, for people.
    pub pod: Option<String>,
    /// The pod's uid, as the kubelet has it.
    pub pod_uid: Option<String>,
    /// That another main plugin makes the interface, and what it needs.
    pub foreign: Option<ForeignUse>,
    /// An address that is asked for may be one that an IPReservation reserves.
    pub allow_reserved: bool,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

impl AssignRequest {
    /// What the blocks have to be set aside for.
    pub(crate) fn dedication(&self) -> Option<Dedication> {
        let foreign = self.foreign.as_ref()?;
        let network = self.attachment.network.clone();
        Some(Dedication { network, advertise: foreign.advertise })
    }

    /// Whether an address of a block is not to be given out.
    pub(crate) fn is_reserved(&self, block: Block, address: IpAddr) -> bool {
        self.foreign.as_ref().is_some_and(|foreign| {
            foreign.reserved.contains(&address)
                || foreign.first_is_gateway && block.prefix().address() == address
        })
    }
}

/// The answer to an [`AssignRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The block of each.
    pub blocks: Vec<Block>,
    /// The number of this assignment.
    pub sequence: u64,
    /// Pools of these blocks of which another block should be claimed before it is needed.
    pub nearly_full: Vec<String>,
}

/// The answer to a [`ReleaseRequest`](twill_types::ReleaseRequest).
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
    /// The pod's uid, as the kubelet has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
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
    /// The network that it is set aside for; `None` for pods whose interface we make.
    pub dedication: Option<Dedication>,
}

/// A block and its fill: `used`, `free`, `held`, `resting`, `reserved` and `delegated` are all its
/// addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// The block.
    pub block: Block,
    /// Its pool.
    pub pool: String,
    /// Addresses in use.
    pub used: u16,
    /// Addresses that can be given out now.
    pub free: u16,
    /// Addresses that nobody has any more, and whose links are not gone yet.
    pub held: u16,
    /// Addresses that rest after use.
    pub resting: u16,
    /// Addresses that nobody has, and that an IPReservation reserves.
    pub reserved: u16,
    /// Addresses in parts that other nodes have.
    pub delegated: u16,
    /// Whether new addresses come from it.
    pub assignable: bool,
    /// The network that it is set aside for.
    pub dedication: Option<Dedication>,
}

/// No block has a free address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free {family} address in this node's blocks of {}", pools.join(", "))]
pub struct Shortage {
    /// Of which family.
    pub family: Family,
    /// In which pools.
    pub pools: Vec<String>,
    /// What the blocks would have to be set aside for.
    pub dedication: Option<Dedication>,
    /// How many blocks were looked at: once there are more, it is worth asking again.
    pub blocks: usize,
    /// Addresses that nobody has any more, and that can be had once their links are gone.
    pub held: usize,
    /// In how many seconds the first of those can be had that rest.
    pub rested_in: Option<u64>,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No block has one.
    #[error(transparent)]
    Full(#[from] Shortage),
    /// The address that was asked for is in use.
    #[error("{address} is in use by {by}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: Box<AttachmentId>,
    },
    /// The address that was asked for was given back, and its link may still exist.
    #[error("{address} was freed a moment ago, and its link still exists")]
    Cooling {
        /// The address.
        address: IpAddr,
    },
    /// The address that was asked for was in use until lately.
    #[error(
        "{address} was in use until lately, and rests for another {seconds} s (ipCooldownSeconds)"
    )]
    Resting {
        /// The address.
        address: IpAddr,
        /// For how long yet.
        seconds: u64,
    },
    /// The address that was asked for is in no block that may give it.
    #[error("{address} is in no block of this node that gives addresses of {}", pools.join(", "))]
    NoBlock {
        /// The address.
        address: IpAddr,
        /// In which pools it may be.
        pools: Vec<String>,
        /// What its block would have to be set aside for.
        dedication: Option<Dedication>,
    },
    /// The address that was asked for is nobody's to have.
    #[error("{address} is kept for a gateway")]
    Reserved {
        /// The address.
        address: IpAddr,
    },
    /// The address that was asked for lies in a part of a block that another node has.
    #[error("{address} lies in {part}, which another node has borrowed")]
    Delegated {
        /// The address.
        address: IpAddr,
        /// The part.
        part: Block,
    },
    /// The address that was asked for is reserved by the cluster's operator.
    #[error("{address} is reserved by an IPReservation ({range})")]
    Withheld {
        /// The address.
        address: IpAddr,
        /// The range of the reservation.
        range: Prefix,
    },
}
