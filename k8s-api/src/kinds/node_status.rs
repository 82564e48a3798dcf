mod reading;

use serde::{Deserialize, Serialize};

use super::{Effects, Report, Rules};
use crate::{Condition, Object, Unsupported, files::BlockFill};

/// What a node tells about itself, in Calico's kind `CalicoNodeStatus`: its sessions and routes for
/// people, and (Twill's own field) what it makes of each object for the controller.
pub type NodeStatus = Object<NodeStatusSpec>;

/// What a CalicoNodeStatus asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatusSpec {
    /// The node that is to tell.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub node: String,
    /// What it is to tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))
    )]
    pub classes: Vec<StatusClass>,
    /// How often, seconds, 0 to 86400; 0: not any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 86_400)))]
    pub update_period_seconds: Option<u32>,
}

/// A part of what a node tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StatusClass {
    /// The BGP speaker itself.
    Agent,
    /// Its sessions.
    BGP,
    /// Its routes.
    Routes,
}

/// What the node told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatusReport {
    /// When it told it, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("format" = "date-time")))]
    pub last_updated: Option<String>,
    /// Class Agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReport>,
    /// Class BGP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpReport>,
    /// Class Routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<RoutesReport>,
    /// What the node makes of each object (Twill's own field). The controller gathers it into the
    /// objects' own status, so that a thousand nodes never write to one object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(max = 4096),
            extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["kind", "name"])
        )
    )]
    pub objects: Vec<ObjectReport>,
    /// How full the node's blocks are (Twill's own field). Told by a writer of its own, about once a
    /// minute while it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<IpamReport>,
}

/// How full a node's blocks are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IpamReport {
    /// Since when the numbers are these, RFC 3339.
    #[cfg_attr(feature = "schema", schemars(extend("format" = "date-time")))]
    pub since: String,
    /// The blocks, in order.
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(max = 10_000),
            extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["block"])
        )
    )]
    pub blocks: Vec<BlockFill>,
}

/// The speaker, by family; Twill has one for both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct AgentReport {
    /// For IPv4.
    #[serde(rename = "birdV4", skip_serializing_if = "Option::is_none")]
    pub v4: Option<SpeakerReport>,
    /// For IPv6.
    #[serde(rename = "birdV6", skip_serializing_if = "Option::is_none")]
    pub v6: Option<SpeakerReport>,
}

/// A speaker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SpeakerReport {
    /// Whether it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<SpeakerState>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub version: Option<String>,
    /// Its BGP identifier (RFC 6286).
    #[serde(rename = "routerID", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 39)))]
    pub router_id: Option<String>,
    /// When it started, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub last_boot_time: Option<String>,
    /// When its configuration changed last, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub last_reconfiguration_time: Option<String>,
}

/// Whether a speaker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum SpeakerState {
    /// It does.
    Ready,
    /// It does not.
    NotReady,
}

/// Sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BgpReport {
    /// Sessions over IPv4 that are up.
    pub number_established_v4: u32,
    /// Sessions over IPv4 that are not.
    pub number_not_established_v4: u32,
    /// Sessions over IPv6 that are up.
    pub number_established_v6: u32,
    /// Sessions over IPv6 that are not.
    pub number_not_established_v6: u32,
    /// Peers over IPv4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 10_000)))]
    pub peers_v4: Vec<PeerReport>,
    /// Peers over IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 10_000)))]
    pub peers_v6: Vec<PeerReport>,
}

/// A peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct PeerReport {
    /// Its address.
    #[serde(rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub peer_ip: Option<String>,
    /// Where the peering comes from.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub origin: Option<PeerOrigin>,
    /// The state of its session (RFC 4271 section 8.2.2).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 32)))]
    pub state: Option<String>,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub since: Option<String>,
}

/// Where a peering comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum PeerOrigin {
    /// The mesh between nodes.
    NodeMesh,
    /// A BGPPeer of some nodes.
    NodePeer,
    /// A BGPPeer of all nodes.
    GlobalPeer,
}

/// Routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RoutesReport {
    /// In IPv4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 10_000)))]
    pub routes_v4: Vec<RouteReport>,
    /// In IPv6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 10_000)))]
    pub routes_v6: Vec<RouteReport>,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RouteReport {
    /// Whether the kernel has it.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub table: Option<RouteTable>,
    /// Where it leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub destination: Option<String>,
    /// By which neighbour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub gateway: Option<String>,
    /// Over which interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 15)))]
    pub interface: Option<String>,
    /// Who told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned_from: Option<LearnedFrom>,
}

/// Whether the kernel has a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RouteTable {
    /// It does.
    FIB,
    /// Only the speaker does.
    RIB,
}

/// Who told a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LearnedFrom {
    /// What that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_type: Option<LearnedFromType>,
    /// Its address, if it is a peer.
    #[serde(rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub peer_ip: Option<String>,
}

/// What tells routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LearnedFromType {
    /// The kernel.
    Kernel,
    /// The configuration.
    Static,
    /// An interface of the node.
    Direct,
    /// A node of the mesh.
    NodeMesh,
    /// A BGPPeer.
    BGPPeer,
}

/// What the node makes of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ObjectReport {
    /// The object's kind, such as IPPool.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 63)))]
    pub kind: String,
    /// Its name.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// The generation that the node looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub observed_generation: Option<i64>,
    /// What it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(max = 32),
            extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
        )
    )]
    pub conditions: Vec<Condition>,
}

impl Rules for NodeStatus {
    fn check(&self, report: &mut Report) {
        if self.spec.update_period_seconds.is_some_and(|seconds| seconds > 86_400) {
            report.error("spec.updatePeriodSeconds", "is at most 86400");
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        Effects::new()
            .when(!self.spec.classes.is_empty(), "spec.classes", "no session or route is told here")
            .done()
    }
}
