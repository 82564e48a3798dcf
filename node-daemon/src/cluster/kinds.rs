//! What the controller watches.

use kube::core::{ApiResource, GroupVersionKind};
use twill_k8s_api::API_VERSION;

/// A watched list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum List {
    Pools,
    Peers,
    BgpConfigurations,
    Filters,
    IpamConfigurations,
    /// The same by its older name.
    IpamConfigs,
    Reservations,
    Claims,
    Requests,
    NodeStatuses,
    /// Which Nodes there are: of these, metadata only.
    Nodes,
}

/// What users write, and what gets conditions for it.
pub(super) const CONFIGURATION: [List; 7] = [
    List::Pools,
    List::Peers,
    List::BgpConfigurations,
    List::Filters,
    List::IpamConfigurations,
    List::IpamConfigs,
    List::Reservations,
];

/// The rest: what nodes write, and the Nodes.
pub(super) const OF_NODES: [List; 4] =
    [List::Claims, List::Requests, List::NodeStatuses, List::Nodes];

impl List {
    /// What stands behind `kind:`, and the name of many, as RBAC has it.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Pools => ("IPPool", "ippools"),
            Self::Peers => ("BGPPeer", "bgppeers"),
            Self::BgpConfigurations => ("BGPConfiguration", "bgpconfigurations"),
            Self::Filters => ("BGPFilter", "bgpfilters"),
            Self::IpamConfigurations => ("IPAMConfiguration", "ipamconfigurations"),
            Self::IpamConfigs => ("IPAMConfig", "ipamconfigs"),
            Self::Reservations => ("IPReservation", "ipreservations"),
            Self::Claims => ("BlockAffinity", "blockaffinities"),
            Self::Requests => ("BlockRequest", "blockrequests"),
            Self::NodeStatuses => ("CalicoNodeStatus", "caliconodestatuses"),
            Self::Nodes => ("Node", "nodes"),
        }
    }

    pub(super) const fn kind(self) -> &'static str {
        self.names().0
    }

    pub(super) const fn plural(self) -> &'static str {
        self.names().1
    }

    /// The resource of its status.
    pub(super) const fn status(self) -> &'static str {
        match self {
            Self::Pools => "ippools/status",
            Self::Peers => "bgppeers/status",
            Self::BgpConfigurations => "bgpconfigurations/status",
            Self::Filters => "bgpfilters/status",
            Self::IpamConfigurations => "ipamconfigurations/status",
            Self::IpamConfigs => "ipamconfigs/status",
            Self::Reservations => "ipreservations/status",
            Self::Claims => "blockaffinities/status",
            Self::Requests => "blockrequests/status",
            Self::NodeStatuses => "caliconodestatuses/status",
            Self::Nodes => "nodes/status",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        if self == Self::Nodes { "v1" } else { API_VERSION }
    }

    pub(super) fn resource(self) -> ApiResource {
        let (group, version) = self.api_version().split_once('/').unwrap_or(("", "v1"));
        let kind = GroupVersionKind::gvk(group, version, self.kind());
        ApiResource::from_gvk_with_plural(&kind, self.plural())
    }

    /// What nodes call the kind in their reports: both names of IPAMConfiguration are one there.
    pub(super) fn reported_as(self) -> &'static str {
        match self {
            Self::IpamConfigs => Self::IpamConfigurations.kind(),
            other => other.kind(),
        }
    }
}
