//! CHECK: compares a pod's link with what it shall be.

use std::{fmt, net::IpAddr};

use twill_sys::Netns;
use twill_types::{AttachmentId, Family, Prefix, host_link_name};

use super::{GATEWAY_V4, GATEWAY_V6, behind, gateway};
use crate::{
    Error,
    link::{Link, Owner},
    message::RouteFilter,
    netlink::Socket,
    route::Route,
};

/// What a CHECK demands of a pod's link. Not the sequence, the MTU and the hardware address: a link of
/// any ADD of the attachment is right, and the others may have been changed by a later plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Whose link it is.
    pub attachment: AttachmentId,
    /// Addresses that the pod has, and that the node routes to it.
    pub addresses: Vec<IpAddr>,
    /// Where the pod has routes to, through the gateway of their family.
    pub routes: Vec<Prefix>,
}

impl Expected {
    fn has_addresses(&self, family: Family) -> bool {
        self.addresses.iter().any(|ip| Family::of(*ip) == family)
    }
}

/// One thing that is not as an ADD left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The node has no link of the host end's name.
    HostLinkMissing(String),
    /// The link with the host end's name is not of this attachment.
    HostLinkForeign(String),
    /// The host end is down.
    HostLinkDown(String),
    /// The host end does not answer for the gateway of IPv4.
    ProxyArpOff(String),
    /// The node does not route the gateway of IPv4 elsewhere than to this link, so the host end does not
    /// answer for it.
    GatewayUnrouted(String),
    /// The host end lacks the gateway's address of IPv6.
    GatewayMissing(String),
    /// The pod has no interface of this name.
    PodLinkMissing(String),
    /// The pod's interface is not the other end of the host link.
    NotThePeer(String),
    /// The pod's interface is down.
    PodLinkDown(String),
    /// The pod's interface lacks an address.
    AddressMissing(IpAddr),
    /// The pod lacks a route.
    PodRouteMissing(Prefix),
    /// What comes from the address would leave the pod by another interface, which has the first default
    /// route.
    RuleMissing(IpAddr),
    /// The node does not route the address to the host end.
    HostRouteMissing(IpAddr),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostLinkMissing(name) => write!(f, "the node has no link {name}"),
            Self::HostLinkForeign(name) => {
                write!(f, "link {name} on the node is not of this attachment")
            }
            Self::HostLinkDown(name) => write!(f, "link {name} on the node is down"),
            Self::ProxyArpOff(name) => write!(f, "proxy_arp is off on link {name} of the node"),
            Self::GatewayUnrouted(name) => write!(
                f,
                "the node has no route to {GATEWAY_V4}, so it does not answer for that on link {name}"
            ),
            Self::GatewayMissing(name) => {
                write!(f, "link {name} on the node lacks the gateway's address {GATEWAY_V6}")
            }
            Self::PodLinkMissing(name) => write!(f, "the pod has no interface {name}"),
            Self::NotThePeer(name) => {
                write!(f, "the pod's interface {name} is not connected to its link on the node")
            }
            Self::PodLinkDown(name) => write!(f, "the pod's interface {name} is down"),
            Self::AddressMissing(address) => write!(f, "the pod lacks its address {address}"),
            Self::PodRouteMissing(prefix) => write!(f, "the pod lacks its route to {prefix}"),
            Self::RuleMissing(address) => {
                write!(f, "the pod lacks its rule for packets from {address}")
            }
            Self::HostRouteMissing(address) => {
                write!(f, "the node has no route for {address} to the pod")
            }
        }
    }
}

/// Compares; an empty list means that all is as it should be. More routes and addresses than ours,
/// another MTU, another hardware address and flushed neighbour entries are the business of other
/// plugins in the chain.
pub fn check_pod(expected: &Expected, netns: &Netns) -> Result<Vec<Difference>, Error> {
    let mut socket = Socket::open()?;
    let name = host_link_name(&expected.attachment);
    let host = match socket.link_by_name(&name)? {
        Some(host) if !host.is_doomed() => host,
        _ => return Ok(vec![Difference::HostLinkMissing(name)]),
    };
    if !matches!(host.owner(&expected.attachment), Owner::Add(_)) {
        return Ok(vec![Difference::HostLinkForeign(name)]);
    }
    let mut differences = check_host(&mut socket, expected, &host)?;
    let mut pod = netns.enter(Socket::open)??;
    differences.extend(check_in_pod(&mut pod, expected, &host)?);
    Ok(differences)
}

fn check_host(
    socket: &mut Socket,
    expected: &Expected,
    host: &Link,
) -> Result<Vec<Difference>, Error> {
    let mut differences = Vec::new();
    if !host.up {
        differences.push(Difference::HostLinkDown(host.name.clone()));
    }
    for family in [Family::V4, Family::V6].into_iter().filter(|f| expected.has_addresses(*f)) {
        differences.extend(check_gateway(socket, host, family)?);
        let filter = RouteFilter { ours: false, link: Some(host.index) };
        let routes = socket.routes(family, filter)?;
        for address in expected.addresses.iter().filter(|ip| Family::of(**ip) == family) {
            if !has_route(&routes, Prefix::host(*address), None) {
                differences.push(Difference::HostRouteMissing(*address));
            }
        }
    }
    Ok(differences)
}

/// Whether the host end answers for the pod's gateway.
fn check_gateway(
    socket: &mut Socket,
    host: &Link,
    family: Family,
) -> Result<Option<Difference>, Error> {
    let name = || host.name.clone();
    let gateway = gateway(family);
    match family {
        Family::V4 if host.ipv4.is_none_or(|conf| conf.proxy_arp == 0) => {
            Ok(Some(Difference::ProxyArpOff(name())))
        }
        Family::V4 => {
            let route = socket.route_entry(gateway)?;
            let hops = route.iter().flat_map(|route| &route.next_hops);
            let leads_elsewhere = hops.into_iter().any(|hop| hop.ifindex != host.index);
            Ok((!leads_elsewhere).then(|| Difference::GatewayUnrouted(name())))
        }
        Family::V6 => {
            let has = socket.addresses(host.index)?.iter().any(|found| found.ip == gateway);
            Ok((!has).then(|| Difference::GatewayMissing(name())))
        }
    }
}

fn check_in_pod(
    pod: &mut Socket,
    expected: &Expected,
    host: &Link,
) -> Result<Vec<Difference>, Error> {
    let name = &expected.attachment.ifname;
    let Some(interface) = pod.link_by_name(name)? else {
        return Ok(vec![Difference::PodLinkMissing(name.clone())]);
    };
    if host.peer != Some(interface.index) || interface.peer != Some(host.index) {
        return Ok(vec![Difference::NotThePeer(name.clone())]);
    }
    let mut differences = Vec::new();
    if !interface.up {
        differences.push(Difference::PodLinkDown(name.clone()));
    }
    let addresses = pod.addresses(interface.index)?;
    let missing = |address: &&IpAddr| !addresses.iter().any(|found| found.ip == **address);
    let missing = expected.addresses.iter().filter(missing);
    differences.extend(missing.map(|address| Difference::AddressMissing(*address)));
    for family in [Family::V4, Family::V6] {
        let mut wanted =
            expected.routes.iter().copied().filter(|to| to.family() == family).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let filter = RouteFilter { ours: false, link: Some(interface.index) };
        let routes = pod.routes(family, filter)?;
        let gateway = gateway(family);
        // Nothing but these routes needs the one to the gateway.
        if family == Family::V4 && !has_route(&routes, Prefix::host(gateway), None) {
            differences.push(Difference::PodRouteMissing(Prefix::host(gateway)));
        }
        let missing = wanted.filter(|to| !has_route(&routes, *to, Some(gateway)));
        differences.extend(missing.map(Difference::PodRouteMissing));
    }
    let unruled = behind::without_rule(pod, host, interface.index, &expected.addresses)?;
    differences.extend(unruled.into_iter().map(Difference::RuleMissing));
    Ok(differences)
}

fn has_route(routes: &[Route], prefix: Prefix, gateway: Option<IpAddr>) -> bool {
    routes.iter().any(|route| {
        route.prefix == prefix && route.next_hops.iter().any(|hop| hop.gateway == gateway)
    })
}
