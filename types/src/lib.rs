//! The vocabulary that every part of Twill shares.
//!
//! Promise: values of these types are valid by construction (a [`Prefix`] has no host bits, a
//! [`Block`] has a legal size, an [`AttachmentId`] has legal names). Nothing here reads a file, a
//! clock or the network.

mod annotation;
mod asn;
mod attachment;
mod block;
mod chain;
mod finding;
mod next_hop;
mod prefix;
mod prefix_list;
mod prefix_map;
mod request;
#[cfg(test)]
mod samples;

pub use annotation::asks_for_nothing;
pub use asn::{Asn, AsnError};
pub use attachment::{
    Alias, AttachmentError, AttachmentId, HOST_LINK_PREFIX, LinkAlias, LivingPod, hex,
    host_link_name, is_host_link_name,
};
pub use block::{Block, BlockError, Dedication};
pub use chain::error_chain;
pub use finding::{Finding, FindingKind};
pub use next_hop::BgpNextHop;
pub use prefix::{Family, Prefix, PrefixError};
pub use prefix_list::PrefixList;
pub use prefix_map::PrefixMap;
pub use request::{ForeignUse, ReleaseRequest};

/// The routing protocol number (`rtm_protocol`) of every route that Twill makes. It is in none of
/// the registered ranges of `rt_protos` (`ip route show proto 116`).
pub const ROUTE_PROTOCOL: u8 = 116;

/// The link group into which a deleted pod's host link is put until the daemon deletes it in a
/// batch ("twil" in ASCII).
pub const DELETE_GROUP: u32 = 0x7477_696c;
