//! The resources that Twill reads and writes, in Calico's field names, and how they stand in
//! files.
//!
//! Promise: whatever a manifest holds, reading it never fails as a whole. Every document that is
//! right is given back typed and checked; everything else becomes a [`Problem`] that names file,
//! line, field, value and remedy. A field that Calico has and Twill does not act on is kept and
//! told by [`Resource::unsupported`]. Nothing here watches, caches or decides. With the feature
//! `schema` the kinds are CustomResourceDefinitions, too (`crd`).

mod condition;
#[cfg(feature = "schema")]
pub mod crd;
pub mod files;
mod kind;
mod kinds;
mod load;
mod metadata;
mod problem;
mod resource;
mod table;
mod yaml;

pub use condition::{Condition, ConditionStatus};
pub use kind::Kind;
pub use kinds::{
    bgp_configuration::{
        BgpConfiguration, BgpConfigurationSpec, BindMode, Community, LoadBalancerAggregation,
        PrefixAdvertisement, ProgramClusterRoutes, ServiceCidr,
    },
    bgp_filter::{
        AddCommunity, AsPathPrefix, BgpFilter, BgpFilterRule, BgpFilterSpec, CommunityMatch,
        FilterAction, FilterOperation, MatchOperator, PeerType, PrefixLengthRange, RouteSource,
        SetPriority,
    },
    bgp_peer::{
        BgpPassword, BgpPeer, BgpPeerSpec, LocalRole, NextHopMode, PeerAddress, PeerAddressError,
        ReversePeering, SecretKeyRef, SourceAddress,
    },
    ip_pool::{AllowedUse, AssignmentMode, EncapsulationMode, IpPool, IpPoolSpec},
    ipam::{
        AffinityState, AffinityType, BlockAffinity, BlockAffinitySpec, BlockRequest,
        BlockRequestSpec, BlockRequestStatus, CLAIM_FINALIZER, Delegation, IpReservation,
        IpReservationSpec, IpamConfig, IpamConfigSpec, NOT_OURS, REQUEST_FINALIZER,
        VmAddressPersistence,
    },
    node::{Namespace, Node, NodeSpec},
    node_status::{
        AgentReport, BgpReport, IpamReport, LearnedFrom, LearnedFromType, NodeStatus,
        NodeStatusReport, NodeStatusSpec, ObjectReport, PeerOrigin, PeerReport, RouteReport,
        RouteTable, RoutesReport, SpeakerReport, SpeakerState, StatusClass,
    },
    restart_time::{LongLivedRestartTime, RestartTime, RestartTimeError},
    secret::{Secret, SecretText},
};
pub use load::{Loaded, Loc, load_manifests};
pub use metadata::{Metadata, Object, ObjectId};
pub use problem::{Problem, Severity};
pub use resource::{FormatError, Other, Resource, Unsupported};
pub use table::{columns, row};

/// The API version of Calico's resources.
pub const API_VERSION: &str = "projectcalico.org/v3";
