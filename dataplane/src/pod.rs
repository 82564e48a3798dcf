//! A pod's link: a veth pair whose host end answers for the gateway of all pods.
//!
//! A pod has its addresses as /32 and /128 and one gateway, which lives on no link: in IPv4
//! 169.254.1.1, for which the host end answers by proxy ARP, in IPv6 `fe80::1` on each host end.

mod add;
mod behind;
mod check;
mod del;
mod list;
mod plan;
mod restore;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use add::{Hardware, PodLinkUp, Prepared, Sides, prepare};
pub use check::{Difference, Expected, check_pod};
pub use del::{
    DelMode, DelOutcome, del_pod, delete_group_links, delete_parked_links, remove_leftover,
};
pub use list::{FoundPodLink, host_link, host_links, living_pods, pod_links};
pub use plan::HOST_ROUTE_METRIC_V6;
pub use restore::HostEnd;
use twill_types::{AttachmentId, Family, HOST_LINK_PREFIX, Prefix, host_link_name};

use crate::MacAddress;

/// The IPv4 gateway of every pod. Link-local (RFC 3927), so it never collides with a real network.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The IPv6 gateway of every pod.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The hardware address of every host end. All are the same, so a pod's permanent neighbour entry
/// holds wherever its link is made.
pub const HOST_MAC: MacAddress = MacAddress([0xee; 6]);

/// The gateway of pods in a family.
pub const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(GATEWAY_V4),
        Family::V6 => IpAddr::V6(GATEWAY_V6),
    }
}

/// The hash of the attachment that the name of a host end is.
fn hash_in(host_ifname: &str) -> u64 {
    let digits = host_ifname.strip_prefix(HOST_LINK_PREFIX).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_default()
}

/// A route of a pod, through the gateway of its family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to.
    pub destination: Prefix,
    /// Its metric; the lowest goes first, and `None` leaves it to the kernel.
    pub priority: Option<u32>,
    /// The most bytes of a packet on it.
    pub mtu: Option<u32>,
    /// The TCP maximum segment size that is announced on it, in bytes.
    pub advmss: Option<u32>,
}

impl PodRoute {
    /// A plain one.
    pub const fn to(destination: Prefix) -> Self {
        Self { destination, priority: None, mtu: None, advmss: None }
    }
}

/// One pod's link as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// Whose link it is; its `ifname` is the interface's name in the pod.
    pub attachment: AttachmentId,
    /// The sequence number of the ADD, which tells a late DEL from a new one.
    pub sequence: u64,
    /// The pod's addresses, of either family or both.
    pub addresses: Vec<IpAddr>,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// The hardware address of the pod's end; `None` takes one that follows from the attachment.
    pub mac: Option<MacAddress>,
    /// Routes beside the default route. A default route among them takes its place.
    pub routes: Vec<PodRoute>,
    /// The pod's name, as an alternative name of the host end (`ip link show <pod>`). Best effort:
    /// it is left out where the kernel does not take it.
    pub pod_name: Option<String>,
}

impl PodLink {
    /// The name of the host end.
    pub fn host_ifname(&self) -> String {
        host_link_name(&self.attachment)
    }

    /// The hardware address of the pod's end: the one asked for, or one that follows from the
    /// attachment, so that the same ADD gives the same one.
    pub fn pod_mac(&self) -> MacAddress {
        if let Some(mac) = self.mac {
            return mac;
        }
        let [_, _, first, rest @ ..] = hash_in(&self.host_ifname()).to_be_bytes();
        let mut mac = [0; 6];
        // IEEE 802: bit 1 of the first octet says locally administered, bit 0 would say group.
        mac[0] = first & !1 | 2;
        mac[1..].copy_from_slice(&rest);
        MacAddress(mac)
    }

    /// All routes of the pod, each through the gateway of its family.
    pub fn routes(&self) -> Vec<PodRoute> {
        let has = |family| self.families().any(|own| own == family);
        let extra: Vec<PodRoute> =
            self.routes.iter().filter(|route| has(route.destination.family())).cloned().collect();
        let defaults = self.families().map(Prefix::default_route);
        let mut routes: Vec<PodRoute> = defaults
            .filter(|default| !extra.iter().any(|route| route.destination == *default))
            .map(PodRoute::to)
            .collect();
        routes.extend(extra);
        routes
    }

    /// What a CHECK finds where nothing has been changed since.
    pub fn expected(&self) -> Expected {
        Expected {
            attachment: self.attachment.clone(),
            addresses: self.addresses.clone(),
            routes: self.routes().into_iter().map(|route| route.destination).collect(),
        }
    }

    /// The families of its addresses, each once.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let has = |family| self.addresses.iter().any(|ip| Family::of(*ip) == family);
        [Family::V4, Family::V6].into_iter().filter(move |family| has(*family))
    }
}
