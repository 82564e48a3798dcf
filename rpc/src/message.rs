//! The messages. Every type is plain data; field names on the wire are camelCase JSON.

mod bgp;
mod host;
mod ipam;
mod pod;

use std::net::IpAddr;

pub use bgp::{
    ExplainRequest, Explained, ExplainedHop, ExplainedNextHop, ExplainedPath, NotificationCount,
    RefreshRequest, Refreshed, UpdateErrorCount, Withheld,
};
pub use host::{HostCheck, HostOutcome, NodeChecked};
pub use ipam::{
    AddressStatus, Allocation, Holder, IpamCheckRequest, IpamChecked, IpamFind, IpamFound,
    IpamNodeReleased, IpamRelease, IpamReleaseNode, IpamReleased, Life, ReleaseOutcome,
};
pub use pod::{PodAnnotationsRequest, PodRef};
use serde::{Deserialize, Serialize};
use twill_types::{Asn, AttachmentId, Block, Dedication, Family, Prefix};
pub use twill_types::{Finding, FindingKind, ForeignUse, ReleaseRequest};

/// The version both sides must speak. It changes when a message changes in a way that the other
/// side cannot ignore, and when there is one that it does not know; unknown fields are ignored.
pub const PROTOCOL_VERSION: u16 = 2;

/// First frame of a connection, from the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the client.
    pub protocol: u16,
    /// Program and version, for the daemon's log.
    pub client: String,
}

/// The daemon's answer to [`Hello`]. On a version mismatch the daemon sends this and closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol: u16,
    /// The daemon's version.
    pub daemon: String,
    /// The node's name.
    pub node: String,
}

/// What a client may ask, any number of times per connection, one answer each, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "camelCase")]
pub enum Request {
    /// CNI ADD: what a pod and its namespace ask for.
    PodAnnotations(PodAnnotationsRequest),
    /// CNI ADD: addresses for an attachment.
    Assign(Box<AssignRequest>),
    /// CNI ADD: the link exists and is about to go up.
    EndpointUp(EndpointUp),
    /// CNI DEL: give the addresses back.
    Release(Release),
    /// CNI CHECK: is what the daemon holds what the plugin sees?
    Check(CheckRequest),
    /// CNI GC: who holds addresses on a network.
    Attachments(AttachmentsRequest),
    /// CNI STATUS: could an ADD succeed now? Without a body nothing more is asked.
    Readiness(Option<ReadinessRequest>),
    /// State of the node and its sessions.
    NodeStatus,
    /// What on the host decides whether pods' packets get through.
    NodeCheck,
    /// Sessions in detail.
    BgpPeers,
    /// Routes of the RIB.
    BgpRoutes(RoutesRequest),
    /// Why the route to a prefix is what it is.
    BgpExplain(ExplainRequest),
    /// Ask a peer for its routes again.
    BgpRefresh(RefreshRequest),
    /// Pools and blocks of this node.
    IpamShow,
    /// What there is to say about an address, or about who has some.
    IpamFind(IpamFind),
    /// Give addresses back by hand.
    IpamRelease(IpamRelease),
    /// Give the blocks of a node back that is gone.
    IpamReleaseNode(IpamReleaseNode),
    /// Compare store, kernel, claims and what is told of them.
    IpamCheck(IpamCheckRequest),
}

/// The answer to a [`Request`]. Each request has one answer type; [`Response::Error`] may take
/// the place of any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::PodAnnotations`]: those below `cni.projectcalico.org/`, with their full names.
    PodAnnotations(std::collections::BTreeMap<String, String>),
    /// To [`Request::Assign`].
    Assigned(Assigned),
    /// To [`Request::EndpointUp`] and [`Request::Check`]: all is well.
    Done,
    /// To [`Request::Release`].
    Released(Released),
    /// To [`Request::Attachments`].
    Attachments(Vec<Held>),
    /// To [`Request::Readiness`].
    Readiness(Readiness),
    /// To [`Request::NodeStatus`].
    NodeStatus(Box<NodeStatus>),
    /// To [`Request::NodeCheck`].
    NodeChecked(NodeChecked),
    /// To [`Request::BgpPeers`].
    BgpPeers(Vec<PeerStatus>),
    /// To [`Request::BgpRoutes`].
    BgpRoutes(Vec<RouteStatus>),
    /// To [`Request::BgpExplain`].
    BgpExplained(Box<Explained>),
    /// To [`Request::BgpRefresh`].
    BgpRefreshed(Refreshed),
    /// To [`Request::IpamShow`].
    IpamShow(IpamStatus),
    /// To [`Request::IpamFind`].
    IpamFound(Box<IpamFound>),
    /// To [`Request::IpamRelease`].
    IpamReleased(IpamReleased),
    /// To [`Request::IpamReleaseNode`].
    IpamNodeReleased(IpamNodeReleased),
    /// To [`Request::IpamCheck`].
    IpamChecked(IpamChecked),
    /// To any.
    Error(RpcError),
}

/// Body of [`Request::Assign`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignRequest {
    /// Whose addresses.
    pub attachment: AttachmentId,
    /// Which families; one address each.
    pub families: Vec<Family>,
    /// Addresses asked for, at most one of a family and of these families alone.
    #[serde(default)]
    pub wanted: Vec<IpAddr>,
    /// Pools to take IPv4 from, by name or CIDR, instead of those whose selector matches.
    #[serde(default)]
    pub ipv4_pools: Vec<String>,
    /// The same for IPv6.
    #[serde(default)]
    pub ipv6_pools: Vec<String>,
    /// An address that is asked for may be one that an IPReservation reserves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_reserved: bool,
    /// `CNI_NETNS`.
    pub netns: String,
    /// The namespace's cookie (`NS_GET_ID`), where the kernel tells.
    pub netns_cookie: Option<u64>,
    /// The pod, from `CNI_ARGS`.
    pub pod: Option<PodRef>,
    /// That another main plugin makes the interface, and what it needs.
    #[serde(default)]
    pub foreign: Option<ForeignUse>,
    /// How long the caller will wait for the answer, in milliseconds.
    pub timeout_ms: u64,
}

/// Body of [`Response::Assigned`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    /// One address per family asked for, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The block of each.
    #[serde(default)]
    pub blocks: Vec<Block>,
    /// Number of this ADD; a DEL that carries an older one changes nothing.
    pub sequence: u64,
    /// The MTU of the node's uplink, for plugins configured with `mtu: 0`.
    pub mtu: u32,
}

/// Body of [`Request::EndpointUp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointUp {
    /// Whose link.
    pub attachment: AttachmentId,
    /// From [`Assigned`].
    pub sequence: u64,
    /// The host link's name.
    pub host_ifname: String,
    /// The host link's index.
    pub host_ifindex: u32,
}

/// Body of [`Request::Release`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// What to give back.
    #[serde(flatten)]
    pub request: ReleaseRequest,
    /// The index of the pod's link, which waits to be deleted. Without it, the daemon looks for such
    /// links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<u32>,
}

/// Body of [`Response::Released`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// What was given back; empty if nothing was held.
    pub addresses: Vec<IpAddr>,
}

/// Body of [`Request::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRequest {
    /// Whose addresses.
    pub attachment: AttachmentId,
    /// The addresses in the previous result.
    pub addresses: Vec<IpAddr>,
}

/// Body of [`Request::Attachments`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentsRequest {
    /// The network's name.
    pub network: String,
    /// Only this one. A daemon of before answers all, so whoever asks picks out what it wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentId>,
}

/// Who holds addresses. Part of [`Response::Attachments`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Who.
    pub attachment: AttachmentId,
    /// Number of the ADD.
    pub sequence: u64,
    /// The path of the namespace that they were given for.
    #[serde(default)]
    pub netns: String,
    /// That namespace's cookie, where the kernel told.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// When they were given, in milliseconds since the Unix epoch; 0 where the daemon does not say.
    #[serde(default)]
    pub created_ms: u64,
}

/// Body of [`Request::Readiness`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessRequest {
    /// Whether to look if there is an address left, which may take as long as the datastore does.
    #[serde(default)]
    pub exhaustion: bool,
}

/// Body of [`Response::Readiness`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// Whether the first full configuration has been read.
    pub in_sync: bool,
    /// Whether an ADD that named no pool found no address and no block to claim, and none would now; false if
    /// [`ReadinessRequest::exhaustion`] was not asked.
    pub exhausted: bool,
    /// Routes that the speaker wants and the kernel lacks.
    pub routes_missing: u32,
}

/// Body of [`Request::BgpRoutes`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutesRequest {
    /// Only routes inside this prefix.
    pub within: Option<Prefix>,
}

/// Body of [`Response::NodeStatus`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When the daemon started, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The node's addresses, as its Node resource says.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The local AS number, once configured.
    pub asn: Option<Asn>,
    /// The BGP identifier.
    pub router_id: String,
    /// Whether the first full configuration has been read.
    pub in_sync: bool,
    /// The sessions.
    pub peers: Vec<PeerStatus>,
    /// Callers for BGP that were refused as no peers since the speaker's start.
    #[serde(default)]
    pub strangers_refused: u64,
    /// Blocks owned.
    pub blocks: u32,
    /// Learned routes in the kernel.
    pub kernel_routes: u32,
    /// What is wrong, each with place, value and remedy.
    pub problems: Vec<String>,
}

/// Where a session comes from, in calicoctl's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerKind {
    /// From the full mesh.
    NodeToNodeMesh,
    /// From a BGPPeer that names nodes.
    NodeSpecific,
    /// From a BGPPeer for all nodes.
    Global,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port.
    pub port: u16,
    /// Where it comes from.
    pub kind: PeerKind,
    /// Name of the BGPPeer, or of the other node in a mesh.
    pub name: String,
    /// The peer's AS number.
    pub asn: Asn,
    /// FSM state as RFC 4271 names it (Idle, Connect, Active, OpenSent, OpenConfirm, Established).
    pub state: String,
    /// When the session entered or left Established last, milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// What happened last: an error, a NOTIFICATION, a wait.
    pub info: String,
    /// Negotiated hold time in seconds, 0 when off or not established.
    pub hold_time: u16,
    /// The peer's BGP identifier, once known.
    pub router_id: Option<String>,
    /// Capabilities in force, by name.
    pub capabilities: Vec<String>,
    /// Prefixes accepted from it, stale ones included.
    pub prefixes_in: u32,
    /// Prefixes that it tells and a filter refuses; not among `prefixes_in`, and they count for `maxPrefixes`.
    #[serde(default)]
    pub prefixes_refused: u32,
    /// Of these, kept over a restart of the peer.
    pub prefixes_stale: u32,
    /// How long the first of these are still kept, or until they are the last resort, in
    /// milliseconds.
    #[serde(default)]
    pub stale_for_ms: Option<u64>,
    /// Some of these are the last resort: used only where there is nothing else (RFC 9494).
    #[serde(default)]
    pub long_lived_stale: bool,
    /// After a restart of this node, old kernel routes wait for what this peer has to say.
    #[serde(default)]
    pub awaited: bool,
    /// Prefixes announced to it.
    pub prefixes_out: u32,
    /// Messages received and sent since the session was made.
    pub messages_in: u64,
    /// See `messages_in`.
    pub messages_out: u64,
    /// How often the session left Established.
    pub flaps: u32,
    /// What the peer says that it is called, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NOTIFICATIONs since the session was configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<NotificationCount>,
    /// Errors in the peer's UPDATEs since the session was configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub update_errors: Vec<UpdateErrorCount>,
}

/// One path of the RIB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// The destination.
    pub prefix: Prefix,
    /// The BGP next hop; `None` for what this node originates.
    pub next_hop: Option<IpAddr>,
    /// The peer it came from; `None` for what this node originates.
    pub from: Option<IpAddr>,
    /// The peer's path identifier (RFC 7911); 0 without ADD-PATH.
    #[serde(default, skip_serializing_if = "bgp::is_zero")]
    pub path_id: u32,
    /// Used for forwarding (more than one path with multipath).
    pub best: bool,
    /// In the kernel.
    pub installed: bool,
    /// Kept over a restart of the peer.
    pub stale: bool,
    /// AS path as text, empty for a local one.
    pub as_path: String,
    /// IGP, EGP or incomplete.
    pub origin: String,
    /// LOCAL_PREF, where there is one.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC, where there is one.
    pub med: Option<u32>,
    /// Communities, plain, extended and large, as text.
    pub communities: Vec<String>,
}

/// Body of [`Response::IpamShow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamStatus {
    /// Every pool that the node knows.
    pub pools: Vec<PoolStatus>,
    /// Blocks that this node owns.
    pub blocks: Vec<BlockStatus>,
    /// Claims of all nodes in the datastore: which node owns which block.
    pub claims: Vec<ClaimStatus>,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: Prefix,
    /// Whether it gives addresses on this node, and if not, why.
    pub eligible: Result<(), String>,
}

/// One block of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStatus {
    /// The block.
    pub block: Block,
    /// Its pool.
    pub pool: String,
    /// Addresses in use.
    pub used: u32,
    /// Addresses that can be given now.
    pub free: u32,
    /// Addresses that were in use until lately.
    #[serde(default)]
    pub cooling: u32,
    /// Addresses that nobody gets.
    #[serde(default)]
    pub reserved: u32,
    /// Addresses in parts that other nodes have.
    #[serde(default)]
    pub lent: u32,
    /// Whether new addresses come from it.
    pub assignable: bool,
    /// The network of another main plugin that it is set aside for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedication: Option<Dedication>,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimStatus {
    /// The block.
    pub block: Block,
    /// The owner.
    pub node: String,
    /// The pool it was claimed from.
    pub pool: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct RpcError {
    /// What kind; the plugin derives the CNI error code from it.
    pub kind: ErrorKind,
    /// What happened, to what, and what to do.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// No pool gives addresses on this node.
    NoPool,
    /// Pools there are, but no free address and no block to claim.
    Exhausted,
    /// The address that was asked for is another's.
    Taken,
    /// Not now: still starting, datastore away, shutting down.
    TryAgain,
    /// CHECK found a difference.
    Mismatch,
    /// A fault of the daemon.
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What asks for nothing more is what it was before there was anything to ask.
    #[test]
    fn readiness_without_a_body_is_understood_by_both_sides() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(tag = "type", content = "body", rename_all = "camelCase")]
        enum Before {
            Readiness,
        }
        let before = r#"{"type":"readiness"}"#;
        let plain = Request::Readiness(None);
        assert_eq!(serde_json::from_str::<Request>(before).unwrap(), plain);
        let now = serde_json::to_string(&plain).unwrap();
        assert_eq!(serde_json::from_str::<Before>(&now).unwrap(), Before::Readiness);
        for exhaustion in [false, true] {
            let request = Request::Readiness(Some(ReadinessRequest { exhaustion }));
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
    }

    /// Who asks for one alone is understood by a daemon of before, and the other way round.
    #[test]
    fn attachments_of_all_and_of_one_are_understood_by_both_sides() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Before {
            network: String,
        }
        let id = AttachmentId {
            network: "pods".to_owned(),
            container_id: "c".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let before = r#"{"network":"pods"}"#;
        let all = AttachmentsRequest { network: "pods".to_owned(), attachment: None };
        assert_eq!(serde_json::from_str::<AttachmentsRequest>(before).unwrap(), all);
        assert_eq!(serde_json::to_string(&all).unwrap(), before);
        let one = AttachmentsRequest { attachment: Some(id), ..all };
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<AttachmentsRequest>(&text).unwrap(), one);
        let read = serde_json::from_str::<Before>(&text).unwrap();
        assert_eq!(read, Before { network: "pods".to_owned() });
    }

    /// Who adds a frame or takes one away changes the version with it: the other side would call it broken, and
    /// not say that it is of another release.
    #[test]
    fn a_version_has_its_frames() {
        let frames = |error: serde_json::Error| {
            let text = error.to_string();
            let names = text.split('`').skip(3).step_by(2);
            names.collect::<Vec<_>>().join(" ")
        };
        let unknown = r#"{"type": "?", "body": null}"#;
        let requests = serde_json::from_str::<Request>(unknown).map(drop).map_err(frames);
        let responses = serde_json::from_str::<Response>(unknown).map(drop).map_err(frames);
        assert_eq!(PROTOCOL_VERSION, 2);
        assert_eq!(
            requests.unwrap_err(),
            "podAnnotations assign endpointUp release check attachments readiness nodeStatus \
             nodeCheck bgpPeers bgpRoutes bgpExplain bgpRefresh ipamShow ipamFind ipamRelease \
             ipamReleaseNode ipamCheck"
        );
        assert_eq!(
            responses.unwrap_err(),
            "podAnnotations assigned done released attachments readiness nodeStatus nodeChecked \
             bgpPeers bgpRoutes bgpExplained bgpRefreshed ipamShow ipamFound ipamReleased \
             ipamNodeReleased ipamChecked error"
        );
    }
}
