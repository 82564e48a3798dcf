//! Names, columns and rules of each kind.

use serde_json::Value;

use super::{
    definition::schema_of,
    expressions,
    rules::Rule,
    status::{NodeReportStatus, ObjectStatus, RequestStatus},
};
use crate::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, BlockRequestSpec,
    IpPoolSpec, IpReservationSpec, IpamConfigSpec, NodeStatusSpec,
};

/// What makes the definition of one kind.
pub(crate) struct KindDefinition {
    /// What stands behind `kind:`.
    pub(crate) kind: &'static str,
    /// The name of many, in lower case.
    pub(crate) plural: &'static str,
    /// Further names on kubectl's command line. No two kinds of the group may share one.
    pub(crate) short_names: &'static [&'static str],
    /// What it is for.
    pub(crate) about: &'static str,
    /// What kubectl prints behind the name.
    pub(crate) columns: &'static [Column],
    /// Fields that lists and watches can select by, beside name and namespace.
    pub(crate) selectable: &'static [&'static str],
    /// The schema of `spec`.
    pub(crate) spec: fn() -> Value,
    /// The schema of `status`.
    pub(crate) status: fn() -> Value,
    /// Rules beyond those of single fields, by the path of their node.
    pub(crate) rules: &'static [(&'static str, &'static [Rule])],
}

/// A column of `kubectl get`.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) form: &'static str,
    pub(crate) path: &'static str,
    /// Only with `-o wide`.
    pub(crate) wide: bool,
}

const fn column(name: &'static str, form: &'static str, path: &'static str) -> Column {
    Column { name, form, path, wide: false }
}

const fn wide(name: &'static str, form: &'static str, path: &'static str) -> Column {
    Column { name, form, path, wide: true }
}

/// Whether nodes use the object as it stands; empty where no controller has said so.
const ACCEPTED: Column =
    wide("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status");

/// Whether a pool gives addresses.
const ALLOCATABLE: Column =
    wide("Allocatable", "string", ".status.conditions[?(@.type==\"Allocatable\")].status");

/// All kinds. Columns and short names are those of calicoctl, in its order, as far as kubectl lets them: where
/// they differ says docs/adr/0018-crds.md. A mode or switch that is not set has a default in the schema,
/// so that both print the same.
pub(crate) const KINDS: [KindDefinition; 10] = [
    KindDefinition {
        kind: "IPPool",
        plural: "ippools",
        short_names: &["ipp", "ipps", "pool", "pools"],
        about: "Addresses that pods get.",
        columns: &[
            column("CIDR", "string", ".spec.cidr"),
            wide("NAT", "boolean", ".spec.natOutgoing"),
            wide("IPIPMode", "string", ".spec.ipipMode"),
            wide("VXLANMode", "string", ".spec.vxlanMode"),
            wide("Disabled", "boolean", ".spec.disabled"),
            wide("DisableBGPExport", "boolean", ".spec.disableBGPExport"),
            column("Selector", "string", ".spec.nodeSelector"),
            wide("AssignmentMode", "string", ".spec.assignmentMode"),
            ACCEPTED,
            ALLOCATABLE,
        ],
        selectable: &[],
        spec: schema_of::<IpPoolSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::IP_POOL,
    },
    KindDefinition {
        kind: "BGPPeer",
        plural: "bgppeers",
        short_names: &["bgpp", "bgpps", "bp", "bps"],
        about: "A router that nodes speak BGP with.",
        columns: &[
            column("PeerIP", "string", ".spec.peerIP"),
            column("Node", "string", ".spec.node"),
            column("NodeSelector", "string", ".spec.nodeSelector"),
            column("ASN", "string", ".spec.asNumber"),
            wide("LocalASN", "string", ".spec.localASNumber"),
            wide("PeerSelector", "string", ".spec.peerSelector"),
            ACCEPTED,
        ],
        selectable: &[],
        spec: schema_of::<BgpPeerSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::BGP_PEER,
    },
    KindDefinition {
        kind: "BGPConfiguration",
        plural: "bgpconfigurations",
        short_names: &["bgpconfig", "bgpconfigs"],
        about: "BGP settings: of the cluster under the name default, of one node under node.NAME.",
        columns: &[
            column("LogSeverity", "string", ".spec.logSeverityScreen"),
            column("MeshEnabled", "boolean", ".spec.nodeToNodeMeshEnabled"),
            column("ASNumber", "string", ".spec.asNumber"),
            ACCEPTED,
        ],
        selectable: &[],
        spec: schema_of::<BgpConfigurationSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::BGP_CONFIGURATION,
    },
    KindDefinition {
        kind: "BGPFilter",
        plural: "bgpfilters",
        short_names: &["bgpf", "bgpfs", "bf", "bfs"],
        about: "Rules for what peers hear and what is taken from them.",
        // The first is what a definition without columns has.
        columns: &[column("Age", "date", ".metadata.creationTimestamp"), ACCEPTED],
        selectable: &[],
        spec: schema_of::<BgpFilterSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::BGP_FILTER,
    },
    // Calico's short names for this kind, ipamconfig and ipamconfigs, are the names of the next one.
    KindDefinition {
        kind: "IPAMConfiguration",
        plural: "ipamconfigurations",
        short_names: &[],
        about: "How addresses are given out; only the one named default is read.",
        columns: IPAM_COLUMNS,
        selectable: &[],
        spec: schema_of::<IpamConfigSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::IPAM_CONFIG,
    },
    KindDefinition {
        kind: "IPAMConfig",
        plural: "ipamconfigs",
        short_names: &[],
        about: "IPAMConfiguration by the name that it has in Calico's older API group.",
        columns: IPAM_COLUMNS,
        selectable: &[],
        spec: schema_of::<IpamConfigSpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::IPAM_CONFIG,
    },
    KindDefinition {
        kind: "IPReservation",
        plural: "ipreservations",
        short_names: &["reservation", "reservations"],
        about: "Addresses that nobody gets.",
        columns: &[wide("CIDRs", "string", ".spec.reservedCIDRs"), ACCEPTED],
        selectable: &[],
        spec: schema_of::<IpReservationSpec>,
        status: schema_of::<ObjectStatus>,
        rules: &[],
    },
    KindDefinition {
        kind: "BlockAffinity",
        plural: "blockaffinities",
        short_names: &["affinity", "affinities"],
        about: "The claim of a block by a node. Its name is made of the block, so that there is one.",
        columns: &[
            column("CIDR", "string", ".spec.cidr"),
            column("Node", "string", ".spec.node"),
            column("Pool", "string", ".spec.pool"),
            column("State", "string", ".spec.state"),
        ],
        selectable: &[".spec.node"],
        spec: schema_of::<BlockAffinitySpec>,
        status: schema_of::<ObjectStatus>,
        rules: expressions::BLOCK_AFFINITY,
    },
    KindDefinition {
        kind: "BlockRequest",
        plural: "blockrequests",
        short_names: &[],
        about: "A node asks for a part of another's block, or has one.",
        columns: &[
            column("Block", "string", ".spec.block"),
            column("Node", "string", ".spec.node"),
            column("Owner", "string", ".spec.owner"),
            column("Pool", "string", ".spec.pool"),
            column("Length", "integer", ".spec.length"),
            column("Granted", "string", ".status.granted"),
        ],
        selectable: &[".spec.node", ".spec.owner"],
        spec: schema_of::<BlockRequestSpec>,
        status: schema_of::<RequestStatus>,
        rules: expressions::BLOCK_REQUEST,
    },
    KindDefinition {
        kind: "CalicoNodeStatus",
        plural: "caliconodestatuses",
        short_names: &["nodestatus", "nodestatuses"],
        about: "What a node tells about itself.",
        columns: &[
            column("Node", "string", ".spec.node"),
            wide("Classes", "string", ".spec.classes"),
            column("Updated", "date", ".status.lastUpdated"),
        ],
        selectable: &[],
        spec: schema_of::<NodeStatusSpec>,
        status: schema_of::<NodeReportStatus>,
        rules: &[],
    },
];

const IPAM_COLUMNS: &[Column] = &[
    column("StrictAffinity", "boolean", ".spec.strictAffinity"),
    column("AutoAllocateBlocks", "boolean", ".spec.autoAllocateBlocks"),
    wide("MaxBlocksPerHost", "integer", ".spec.maxBlocksPerHost"),
    ACCEPTED,
];
