//! What is asked of a store in the same words by a caller, through the daemon's socket, and in a
//! tombstone.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::AttachmentId;

/// What the network of another main plugin (bridge, macvlan, ptp) needs of its addresses. They come
/// from blocks that are set aside for that network alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForeignUse {
    /// Whether these blocks are announced to BGP peers.
    pub advertise: bool,
    /// Whether the first address of each block is its gateway's.
    pub first_is_gateway: bool,
    /// Addresses that are not given out, such as those of gateways.
    #[serde(default)]
    pub reserved: BTreeSet<IpAddr>,
}

/// A request to give addresses back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseRequest {
    /// Whose addresses.
    pub attachment: AttachmentId,
    /// Only if the assignment has this number (read from the link's alias) or an earlier one: what a later ADD
    /// was given stays. `None` gives back whatever the attachment holds.
    pub sequence: Option<u64>,
    /// The cookie of the namespace that is left, where it can be told: an assignment that is known
    /// to be for another namespace belongs to a later ADD.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
}
