//! CHECK: compares a pod's link with what it shall be.

use std::{fmt, net::IpAddr};

use twill_sys::Netns;
use twill_types::{Family, Prefix};

use super::{PodLink, gateway};
use crate::{
    Error,
    link::{Link, Owner},
    message::RouteFilter,
    netlink::Socket,
    route::Route,
};

/// One thing that is not as an ADD left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The node has no link of the host end's name.
    HostLinkMissing(String),
    /// The link with the host end's name is not of this attachment.
    HostLinkForeign(String),
    /// The host end is down.
    HostLinkDown(String),
    /// The host end does not answer for the gateway.
    ProxyArpOff(String),
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
            Self::PodLinkMissing(name) => write!(f, "the pod has no interface {name}"),
            Self::NotThePeer(name) => {
                write!(f, "the pod's interface {name} is not connected to its link on the node")
            }
            Self::PodLinkDown(name) => write!(f, "the pod's interface {name} is down"),
            Self::AddressMissing(address) => write!(f, "the pod lacks its address {address}"),
            Self::PodRouteMissing(prefix) => write!(f, "the pod lacks its route to {prefix}"),
            Self::HostRouteMissing(address) => {
                write!(f, "the node has no route for {address} to the pod")
            }
        }
    }
}

/// Compares; an empty list means that all is as it should be. More routes and addresses than ours,
/// another MTU, another hardware address and flushed neighbour entries are the business of other
/// plugins in the chain.
pub fn check_pod(link: &PodLink, netns: &Netns) -> Result<Vec<Difference>, Error> {
    let mut socket = Socket::open()?;
    let name = link.host_ifname();
    let host = match socket.link_by_name(&name)? {
        Some(host) if !host.is_doomed() => host,
        _ => return Ok(vec![Difference::HostLinkMissing(name)]),
    };
    if !matches!(host.owner(&link.attachment), Owner::Add(_)) {
        return Ok(vec![Difference::HostLinkForeign(name)]);
    }
    let mut differences = check_host(&mut socket, link, &host)?;
    let mut pod = netns.enter(Socket::open)??;
    differences.extend(check_in_pod(&mut pod, link, &host)?);
    Ok(differences)
}

fn check_host(socket: &mut Socket, link: &PodLink, host: &Link) -> Result<Vec<Difference>, Error> {
    let mut differences = Vec::new();
    if !host.up {
        differences.push(Difference::HostLinkDown(host.name.clone()));
    }
    for family in link.families() {
        if family == Family::V4 && host.ipv4.is_none_or(|conf| conf.proxy_arp == 0) {
            differences.push(Difference::ProxyArpOff(host.name.clone()));
        }
        let filter = RouteFilter { ours: false, link: Some(host.index) };
        let routes = socket.routes(family, filter)?;
        for address in link.addresses.iter().filter(|ip| Family::of(**ip) == family) {
            if !has_route(&routes, Prefix::host(*address), None) {
                differences.push(Difference::HostRouteMissing(*address));
            }
        }
    }
    Ok(differences)
}

fn check_in_pod(pod: &mut Socket, link: &PodLink, host: &Link) -> Result<Vec<Difference>, Error> {
    let name = &link.attachment.ifname;
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
    let missing = link.addresses.iter().filter(missing);
    differences.extend(missing.map(|address| Difference::AddressMissing(*address)));
    for family in link.families() {
        let filter = RouteFilter { ours: false, link: Some(interface.index) };
        let routes = pod.routes(family, filter)?;
        let gateway = gateway(family);
        if family == Family::V4 && !has_route(&routes, Prefix::host(gateway), None) {
            differences.push(Difference::PodRouteMissing(Prefix::host(gateway)));
        }
        let wanted = link.routes().into_iter().map(|route| route.destination);
        let missing = wanted
            .filter(|to| to.family() == family && !has_route(&routes, *to, Some(gateway)))
            .map(Difference::PodRouteMissing);
        differences.extend(missing);
    }
    Ok(differences)
}

fn has_route(routes: &[Route], prefix: Prefix, gateway: Option<IpAddr>) -> bool {
    routes.iter().any(|route| {
        route.prefix == prefix && route.next_hops.iter().any(|hop| hop.gateway == gateway)
    })
}
