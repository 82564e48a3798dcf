use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use twill_selector::Selector;
use twill_types::{Family, Prefix};

use super::{Effects, Report, Rules};
use crate::{Object, Unsupported};

/// Addresses that pods get.
pub type IpPool = Object<IpPoolSpec>;

/// What an IPPool says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// All its addresses, with no bit set behind the prefix length: 10.10.0.0/20. It never changes.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::Cidr"))]
    pub cidr: Prefix,
    /// The prefix length of a block: 20 to 32 in IPv4 (unset: 26), 116 to 128 in IPv6 (unset: 122).
    /// It never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 128)))]
    pub block_size: Option<u8>,
    /// Nodes that use it; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Selector>"))]
    #[cfg_attr(feature = "schema", schemars(extend("default" = "all()")))]
    pub node_selector: Option<Selector>,
    /// Namespaces that use it; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Selector>"))]
    pub namespace_selector: Option<Selector>,
    /// Whether packets to its pods travel in IP in IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = "Never")))]
    pub ipip_mode: Option<EncapsulationMode>,
    /// Whether packets to its pods travel in VXLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = "Never")))]
    pub vxlan_mode: Option<EncapsulationMode>,
    /// Whether connections that leave all pools get the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = false)))]
    pub nat_outgoing: Option<bool>,
    /// No new addresses out of it; those in use stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = false)))]
    pub disabled: bool,
    /// Whether BGP keeps quiet about it.
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = false)))]
    pub disable_bgp_export: Option<bool>,
    /// What its addresses are for; unset: workloads and tunnels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "set"), length(min = 1, max = 3)))]
    pub allowed_uses: Option<Vec<AllowedUse>>,
    /// Whether it is used without being asked for by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("default" = "Automatic")))]
    pub assignment_mode: Option<AssignmentMode>,
}

/// When packets are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EncapsulationMode {
    /// No packet is wrapped.
    Never,
    /// Every packet to another node is wrapped.
    Always,
    /// Only to nodes in another subnet.
    CrossSubnet,
}

/// What an address may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum AllowedUse {
    /// A pod.
    Workload,
    /// The end of a tunnel on a node.
    Tunnel,
    /// A service of type LoadBalancer.
    LoadBalancer,
}

/// When a pool is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum AssignmentMode {
    /// For every pod that it selects.
    Automatic,
    /// Only for pods that ask for it by name.
    Manual,
}

impl IpPoolSpec {
    /// The prefix length of its blocks: as set, else 26 in IPv4 and 122 in IPv6.
    pub fn block_size(&self) -> u8 {
        self.block_size.unwrap_or(match self.cidr.family() {
            Family::V4 => 26,
            Family::V6 => 122,
        })
    }

    /// Whether a node with these labels uses it.
    pub fn selects(&self, labels: &impl twill_selector::Labels) -> bool {
        self.node_selector.as_ref().is_none_or(|selector| selector.matches(labels))
    }

    /// Whether pods may have its addresses.
    pub fn is_for_workloads(&self) -> bool {
        self.allowed_uses.as_ref().is_none_or(|uses| uses.contains(&AllowedUse::Workload))
    }

    /// Whether pods get its addresses without asking for it by name.
    pub fn is_automatic(&self) -> bool {
        self.assignment_mode != Some(AssignmentMode::Manual)
    }

    fn check_sizes(&self, report: &mut Report) {
        let family = self.cidr.family();
        let (least, most) = (family.bits() - 12, family.bits());
        let size = self.block_size();
        if !(least..=most).contains(&size) {
            let message = format!("a block of an {family} pool is /{least} to /{most}");
            report.error("spec.blockSize", message);
        } else if self.cidr.length() > size && !self.disabled {
            let message = format!(
                "a block of /{size} does not fit into {}; set blockSize to {} or more, or widen cidr",
                self.cidr,
                self.cidr.length(),
            );
            report.error(
                if self.block_size.is_some() { "spec.blockSize" } else { "spec.cidr" },
                message,
            );
        }
        let special: &[(&str, IpAddr, u8)] = match family {
            Family::V4 => &[
                ("link-local", IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
                ("loopback", IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
                ("multicast", IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
            ],
            Family::V6 => &[
                ("link-local", IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
                ("loopback", IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
                ("multicast", IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
                ("IPv4-mapped", IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96),
            ],
        };
        for (what, address, length) in special {
            if let Ok(range) = Prefix::masked(*address, *length)
                && self.cidr.overlaps(range)
            {
                let message = format!("overlaps the {what} range {range}; choose another range");
                report.error("spec.cidr", message);
            }
        }
    }

    fn check_uses(&self, report: &mut Report) {
        let wraps =
            |mode: Option<EncapsulationMode>| mode.is_some_and(|m| m != EncapsulationMode::Never);
        let (ipip, vxlan) = (wraps(self.ipip_mode), wraps(self.vxlan_mode));
        report.exclusive(("spec.ipipMode", ipip), ("spec.vxlanMode", vxlan));
        if ipip && self.cidr.family() == Family::V6 {
            report.error("spec.ipipMode", "IP in IP is for IPv4 pools; write Never");
        }
        let Some(uses) = &self.allowed_uses else {
            return;
        };
        if uses.is_empty() {
            report.error("spec.allowedUses", "an empty list allows nothing; remove the field");
        }
        if (1..uses.len()).any(|end| uses[..end].contains(&uses[end])) {
            report.error("spec.allowedUses", "names a use twice; remove one of them");
        }
        if uses.contains(&AllowedUse::Tunnel) && self.namespace_selector.is_some() {
            let message =
                "tunnels have no namespace; take Tunnel out of allowedUses or remove this";
            report.error("spec.namespaceSelector", message);
        }
        if !uses.contains(&AllowedUse::LoadBalancer) {
            return;
        }
        if uses.len() > 1 {
            report.error(
                "spec.allowedUses",
                "LoadBalancer stands alone; make another pool for the rest",
            );
        }
        if self.node_selector.as_ref().is_some_and(|selector| *selector != Selector::all()) {
            let message = "a LoadBalancer pool belongs to no node; write all()";
            report.error("spec.nodeSelector", message);
        }
        for (path, set) in [
            ("spec.ipipMode", ipip),
            ("spec.vxlanMode", vxlan),
            ("spec.disableBGPExport", self.disable_bgp_export == Some(true)),
        ] {
            if set {
                report.error(path, "cannot be set in a LoadBalancer pool; remove it");
            }
        }
    }
}

impl Rules for IpPool {
    fn check(&self, report: &mut Report) {
        self.spec.check_sizes(report);
        self.spec.check_uses(report);
        report.selector("spec.nodeSelector", self.spec.node_selector.as_ref());
        report.selector("spec.namespaceSelector", self.spec.namespace_selector.as_ref());
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        let spec = &self.spec;
        let wraps =
            |mode: Option<EncapsulationMode>| mode.is_some_and(|m| m != EncapsulationMode::Never);
        let no_tunnel = "no tunnel is made; pods are reached by plain routes";
        Effects::new()
            .when(wraps(spec.ipip_mode), "spec.ipipMode", no_tunnel)
            .when(wraps(spec.vxlan_mode), "spec.vxlanMode", no_tunnel)
            .when(
                !spec.is_for_workloads(),
                "spec.allowedUses",
                "only pods get addresses here, so this pool is not used",
            )
            .done()
    }
}
