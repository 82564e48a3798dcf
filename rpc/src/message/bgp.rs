use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use twill_types::{Family, Prefix};

/// How often a NOTIFICATION came or went. Part of [`PeerStatus`](super::PeerStatus).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotificationCount {
    /// Sent by this node, or received.
    pub sent: bool,
    /// Error code (RFC 4271 section 4.5); 255, with the subcode 255, is all that no RFC names.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// How often.
    pub count: u64,
}

/// How often UPDATEs were wrong in one way. Part of [`PeerStatus`](super::PeerStatus).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateErrorCount {
    /// What was done: `prefix-discard`, `attribute-discard`, `afi-safi-disable`, `treat-as-withdraw` or
    /// `session-reset`.
    pub disposition: String,
    /// Type code of the attribute; 0 where it is none, 255 for all that are unknown.
    pub attribute: u8,
    /// How often.
    pub count: u64,
}

/// Body of [`Request::BgpExplain`](super::Request::BgpExplain).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    /// About this prefix, or the most specific one that covers it.
    pub prefix: Prefix,
}

/// Body of [`Request::BgpRefresh`](super::Request::BgpRefresh).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefreshRequest {
    /// The peer's address.
    pub address: IpAddr,
    /// Its port; `None` where the address has one session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Routes of this family; `None` for all that the session has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

/// Body of [`Response::BgpRefreshed`](super::Response::BgpRefreshed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refreshed {
    /// The peer's port.
    pub port: u16,
    /// Families that it was asked for. Its answer comes later.
    pub families: Vec<Family>,
}

/// Body of [`Response::BgpExplained`](super::Response::BgpExplained).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// What was asked for.
    pub asked: Prefix,
    /// What the answer is about; `None` if nothing covers what was asked for.
    pub prefix: Option<Prefix>,
    /// This node's own prefix that it is or lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Prefix>,
    /// Whether it is announced, if it is this node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<bool>,
    /// The part that another node has borrowed of this one, and that it is or lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<Prefix>,
    /// A learned route to it is in the kernel.
    pub installed: bool,
    /// The BGP next hops that the kernel is to use, in order, each address once.
    pub next_hops: Vec<IpAddr>,
    /// The most next hops that one route uses.
    pub max_paths: u32,
    /// Who is not told of it because of a filter, or because it is the node's own and has no room in a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<Withheld>,
    /// The best first, then those used beside it, then the others.
    pub paths: Vec<ExplainedPath>,
}

/// A peer that a filter keeps a route from, or the length of a message. Part of [`Explained`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Withheld {
    /// The peer.
    pub from: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// The filter and its rule, or the limit, for people.
    pub by: String,
}

/// One path. Part of [`Explained`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedPath {
    /// The peer that it came from.
    pub from: IpAddr,
    /// The peer's TCP port.
    pub port: u16,
    /// The peer's path identifier (RFC 7911); 0 without ADD-PATH.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub path_id: u32,
    /// Over an external session.
    pub external: bool,
    /// The peer's identifier.
    pub router_id: Option<String>,
    /// The best of all.
    pub best: bool,
    /// Used for forwarding.
    pub used: bool,
    /// Kept over a restart of the peer.
    pub stale: bool,
    /// How long it is still kept, or until it is the last resort, in milliseconds.
    #[serde(default)]
    pub stale_for_ms: Option<u64>,
    /// Whether it is used, and why or why not, for people.
    pub reason: String,
    /// The step of the decision that put another path before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The peer that the other path came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<IpAddr>,
    /// The other path's identifier; 0 without ADD-PATH.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub against_path_id: u32,
    /// Its next hop, and where that is.
    pub next_hop: ExplainedNextHop,
    /// AS path as text.
    pub as_path: String,
    /// IGP, EGP or incomplete.
    pub origin: String,
    /// LOCAL_PREF, where there is one.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC, where there is one.
    pub med: Option<u32>,
    /// AIGP, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aigp: Option<u64>,
    /// Communities, plain, extended and large, as text.
    pub communities: Vec<String>,
    /// The AS that lets it go to customers alone (RFC 9234), where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_to_customer: Option<u32>,
    /// ORIGINATOR_ID, where a reflector has set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub originator_id: Option<String>,
    /// CLUSTER_LIST, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_list: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(super) const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A next hop, and the way to it. Part of [`ExplainedPath`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedNextHop {
    /// Its address.
    pub address: IpAddr,
    /// Whether there is a way; `None` while it is not known.
    pub reachable: Option<bool>,
    /// What the way costs: 0 on a link of the node, 1 behind a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// The router on the way; none if it is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The other ways there that the underlay has. A route uses at most 16 of all ways to its next hops, those
    /// that work, each with the same share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<ExplainedHop>,
}

/// A way out of the node. Part of [`ExplainedNextHop`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedHop {
    /// The router; none if what it leads to is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The link.
    pub device: String,
}
