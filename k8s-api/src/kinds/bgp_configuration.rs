use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use twill_types::{Asn, Prefix};

use super::{
    BGP_PORT, Effects, Report, Rules,
    bgp_peer::BgpPassword,
    restart_time::{LongLivedRestartTime, RestartTime},
};
use crate::{Object, Unsupported};

/// BGP settings: of the cluster under the name `default`, of one node under `node.<name>`.
pub type BgpConfiguration = Object<BgpConfigurationSpec>;

/// What a BGPConfiguration says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    /// How much is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub log_severity_screen: Option<String>,
    /// Whether every node peers with every other one; unset: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// The nodes' AS number; unset: [`BgpConfigurationSpec::DEFAULT_AS_NUMBER`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            with = "Option<crate::crd::AsNumber>",
            description = "The nodes' AS number; unset: 64512."
        )
    )]
    pub as_number: Option<Asn>,
    /// The port that nodes listen on; unset: 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub listen_port: Option<u16>,
    /// Which addresses nodes listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_mode: Option<BindMode>,
    /// Ranges of service addresses to announce.
    #[serde(rename = "serviceClusterIPs", skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub service_cluster_ips: Vec<ServiceCidr>,
    /// Ranges of external service addresses to announce.
    #[serde(rename = "serviceExternalIPs", skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub service_external_ips: Vec<ServiceCidr>,
    /// Ranges of load balancer addresses to announce.
    #[serde(rename = "serviceLoadBalancerIPs", skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub service_load_balancer_ips: Vec<ServiceCidr>,
    /// Whether load balancer ranges are announced whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_load_balancer_aggregation: Option<LoadBalancerAggregation>,
    /// Names for communities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub communities: Vec<Community>,
    /// Which communities go with which prefixes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    /// The password between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_password: Option<BgpPassword>,
    /// How long nodes keep each other's routes over a restart, such as `120s`, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Duration>"))]
    pub node_mesh_max_restart_time: Option<RestartTime>,
    /// The same as a BGPPeer's `longLivedRestartTime`, between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_long_lived_restart_time: Option<LongLivedRestartTime>,
    /// Interfaces whose addresses are not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500), inner(length(max = 64))))]
    pub ignored_interfaces: Vec<String>,
    /// The address at which pods peer with their node, IPv4.
    #[serde(rename = "localWorkloadPeeringIPV4", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Address4>"))]
    pub local_workload_peering_ipv4: Option<Ipv4Addr>,
    /// The same in IPv6.
    #[serde(rename = "localWorkloadPeeringIPV6", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Address6>"))]
    pub local_workload_peering_ipv6: Option<Ipv6Addr>,
    /// Which of Calico's parts writes routes between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_cluster_routes: Option<ProgramClusterRoutes>,
    /// The metric of learned IPv4 routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 2_147_483_646)))]
    pub ipv4_normal_route_priority: Option<u32>,
    /// The metric of learned IPv6 routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 2_147_483_646)))]
    pub ipv6_normal_route_priority: Option<u32>,
}

/// Which addresses a node listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum BindMode {
    /// All.
    None,
    /// Only the node's own.
    NodeIP,
}

/// A range of service addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceCidr {
    /// The range.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::Cidr"))]
    pub cidr: Prefix,
}

/// Whether a range is announced whole or address by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LoadBalancerAggregation {
    /// Whole.
    Enabled,
    /// Address by address.
    Disabled,
}

/// A name for a community.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Community {
    /// The name.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub name: String,
    /// `aa:nn` or `aa:nn:mm`.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::Community"))]
    pub value: String,
}

/// Communities for a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PrefixAdvertisement {
    /// The prefix.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::Cidr"))]
    pub cidr: Prefix,
    /// Values, or names out of `communities`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(length(max = 50), inner(length(max = 64))))]
    pub communities: Vec<String>,
}

/// Which routes between nodes Calico's BGP part writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProgramClusterRoutes {
    /// All.
    Enabled,
    /// None.
    Disabled,
    /// Those into IP in IP tunnels.
    EnabledIPIPOnly,
    /// Those without a tunnel.
    EnabledNoEncapOnly,
}

impl BgpConfigurationSpec {
    /// The AS number of nodes for which none is set.
    pub const DEFAULT_AS_NUMBER: u32 = 64512;

    /// As the schema has it: each prefix that is told is held against all entries of some of these.
    fn check_lengths(&self, report: &mut Report) {
        const MOST: usize = 500;
        const MOST_COMMUNITIES: usize = 50;
        let wider = "write one shorter cidr for several";
        for (path, entries, remedy) in [
            ("spec.serviceClusterIPs", self.service_cluster_ips.len(), wider),
            ("spec.serviceExternalIPs", self.service_external_ips.len(), wider),
            ("spec.serviceLoadBalancerIPs", self.service_load_balancer_ips.len(), wider),
            (
                "spec.communities",
                self.communities.len(),
                "write the values into prefixAdvertisements, which needs no name for them",
            ),
            ("spec.prefixAdvertisements", self.prefix_advertisements.len(), wider),
            (
                "spec.ignoredInterfaces",
                self.ignored_interfaces.len(),
                "write one pattern for several",
            ),
        ] {
            report.at_most(path, MOST, entries, remedy);
        }
        for (index, advertised) in self.prefix_advertisements.iter().enumerate() {
            report.at_most(
                &format!("spec.prefixAdvertisements[{index}].communities"),
                MOST_COMMUNITIES,
                advertised.communities.len(),
                "move some into another entry for the same cidr",
            );
        }
    }
}

impl Rules for BgpConfiguration {
    fn check(&self, report: &mut Report) {
        let spec = &self.spec;
        let is_default = self.metadata.name == "default";
        if !is_default && !self.metadata.name.starts_with("node.") {
            report.warning(
                "metadata.name",
                "is read by nobody; name it `default` for the cluster or node.<name> for one node",
            );
        }
        if spec.listen_port == Some(0) {
            report.error("spec.listenPort", format!("ports are 1 to 65535; {BGP_PORT} is usual"));
        }
        for (path, set) in [
            ("spec.nodeToNodeMeshEnabled", spec.node_to_node_mesh_enabled.is_some()),
            ("spec.nodeMeshPassword", spec.node_mesh_password.is_some()),
            ("spec.nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time.is_some()),
            ("spec.nodeMeshLongLivedRestartTime", spec.node_mesh_long_lived_restart_time.is_some()),
        ] {
            if set && !is_default {
                report.error(
                    path,
                    "belongs into the BGPConfiguration named `default`; move it there",
                );
            }
        }
        spec.check_lengths(report);
        spec.node_mesh_long_lived_restart_time
            .unwrap_or_default()
            .check("spec.nodeMeshLongLivedRestartTime", report);
        for (path, priority) in [
            ("spec.ipv4NormalRoutePriority", spec.ipv4_normal_route_priority),
            ("spec.ipv6NormalRoutePriority", spec.ipv6_normal_route_priority),
        ] {
            if priority.is_some_and(|priority| !(1..=2_147_483_646).contains(&priority)) {
                report.error(path, "a priority is 1 to 2147483646");
            }
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        let spec = &self.spec;
        let peering = "no session with a pod is made";
        let metric = "learned routes have the metric of twilld.yaml (fib.metric)";
        Effects::new()
            .when(
                spec.log_severity_screen.is_some(),
                "spec.logSeverityScreen",
                "the level is the one of twilld.yaml (log.level)",
            )
            .when(
                spec.bind_mode == Some(BindMode::NodeIP),
                "spec.bindMode",
                "nodes listen on all addresses",
            )
            .when(
                !spec.ignored_interfaces.is_empty(),
                "spec.ignoredInterfaces",
                "nodes announce only what they own, whatever the interface",
            )
            .when(
                spec.local_workload_peering_ipv4.is_some(),
                "spec.localWorkloadPeeringIPV4",
                peering,
            )
            .when(
                spec.local_workload_peering_ipv6.is_some(),
                "spec.localWorkloadPeeringIPV6",
                peering,
            )
            .when(
                spec.program_cluster_routes.is_some(),
                "spec.programClusterRoutes",
                "twilld writes all routes between nodes",
            )
            .when(spec.ipv4_normal_route_priority.is_some(), "spec.ipv4NormalRoutePriority", metric)
            .when(spec.ipv6_normal_route_priority.is_some(), "spec.ipv6NormalRoutePriority", metric)
            .done()
    }
}
