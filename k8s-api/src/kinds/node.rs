use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twill_types::{Asn, Block, Family, Prefix};

use super::{Report, Rules};
use crate::{Metadata, Unsupported};

const IPV4_ADDRESS: &str = "projectcalico.org/IPv4Address";
const IPV6_ADDRESS: &str = "projectcalico.org/IPv6Address";
const AS_NUMBER: &str = "projectcalico.org/ASNumber";
const ROUTE_REFLECTOR_CLUSTER_ID: &str = "projectcalico.org/RouteReflectorClusterID";

/// What Calico writes where it makes tunnels. Twill reads them to say so, and never writes them.
const TUNNELS: [&str; 6] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "projectcalico.org/WireguardPublicKey",
];

/// Kubernetes' own Node: labels decide which pools and peers it has, Calico's annotations say
/// where it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// `v1`.
    pub api_version: String,
    /// `Node`.
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What belongs to it.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What a cluster said about it; read by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// What a Node says. All but `blocks` is Kubernetes' and kept as it came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Blocks that this node has without claiming them (Twill's own field).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_cidrs: Option<Value>,
    #[serde(rename = "providerID", skip_serializing_if = "Option::is_none")]
    pub(crate) provider_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) taints: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unschedulable: Option<bool>,
    #[serde(rename = "externalID", skip_serializing_if = "Option::is_none")]
    pub(crate) external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config_source: Option<Value>,
}

/// Kubernetes' own Namespace: its labels decide which pools its pods get addresses from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// `v1`.
    pub api_version: String,
    /// `Namespace`.
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Kept as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spec: Option<Value>,
    /// What a cluster said about it; read by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

impl Rules for Namespace {
    fn check(&self, _: &mut Report) {}

    fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}

impl Node {
    /// Its address in a family, from the annotation; the prefix length that may stand behind it is
    /// dropped.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.address_and_length(family).map(|(address, _)| address)
    }

    /// The subnet that its address is in, if the annotation has a prefix length.
    pub fn subnet(&self, family: Family) -> Option<Prefix> {
        let (address, length) = self.address_and_length(family)?;
        Prefix::masked(address, length?).ok()
    }

    /// The annotation that has its address in a family.
    pub const fn address_annotation(family: Family) -> &'static str {
        match family {
            Family::V4 => IPV4_ADDRESS,
            Family::V6 => IPV6_ADDRESS,
        }
    }

    fn address_and_length(&self, family: Family) -> Option<(IpAddr, Option<u8>)> {
        let key = Self::address_annotation(family);
        parse_address(self.annotation(key)?).filter(|(address, _)| Family::of(*address) == family)
    }

    /// Its own AS number, when it differs from the cluster's.
    pub fn as_number(&self) -> Option<Asn> {
        self.annotation(AS_NUMBER)?.parse().ok()
    }

    /// The cluster it reflects routes for, if it is a route reflector (RFC 4456).
    pub fn route_reflector_cluster_id(&self) -> Option<Ipv4Addr> {
        self.annotation(ROUTE_REFLECTOR_CLUSTER_ID)?.parse().ok()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }
}

/// `address` or `address/length`.
fn parse_address(text: &str) -> Option<(IpAddr, Option<u8>)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let fits = length.is_none_or(|length: u8| length <= Family::of(address).bits());
    let usable = !address.is_unspecified() && !address.is_multicast();
    (usable && fits).then_some((address, length))
}

impl Rules for Node {
    fn check(&self, report: &mut Report) {
        let rules = [
            (
                IPV4_ADDRESS,
                self.address(Family::V4).is_some(),
                "an IPv4 address such as 192.168.2.11 or 192.168.2.11/24",
            ),
            (
                IPV6_ADDRESS,
                self.address(Family::V6).is_some(),
                "an IPv6 address such as fd00::11 or fd00::11/64",
            ),
            (AS_NUMBER, self.as_number().is_some(), "an AS number from 1 to 4294967295"),
            (
                ROUTE_REFLECTOR_CLUSTER_ID,
                self.route_reflector_cluster_id().is_some(),
                "an IPv4 address such as 10.0.0.1",
            ),
        ];
        for (key, is_right, expected) in rules {
            if self.annotation(key).is_some() && !is_right {
                report
                    .error(&format!("metadata.annotations.{key}"), format!("expected {expected}"));
            }
        }
        for (index, block) in self.spec.blocks.iter().enumerate() {
            let earlier = &self.spec.blocks[..index];
            if let Some(other) =
                earlier.iter().find(|other| other.prefix().overlaps(block.prefix()))
            {
                let message = format!("overlaps {other}, which stands before it; remove one");
                report.error(&format!("spec.blocks[{index}]"), message);
            }
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        let set = TUNNELS.iter().filter(|key| self.annotation(key).is_some());
        let unsupported = |key: &&str| Unsupported {
            field: format!("metadata.annotations.{key}"),
            effect: "no tunnel is made; the pods of this node are reached by plain routes"
                .to_owned(),
        };
        set.map(unsupported).collect()
    }
}
