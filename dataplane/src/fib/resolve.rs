//! Where a BGP next hop is, by the routes that are not from BGP.

use std::net::IpAddr;

use netlink_packet_route::{RouteNetlinkMessage, route::RouteType};
use nix::errno::Errno;
use twill_types::Family;

use super::{Fib, is_learned};
use crate::{
    Error, NextHop,
    message::{self, RouteFilter},
    route::Route,
};

/// The way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The router on the way; `None` if the address is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link.
    pub ifindex: u32,
    /// The address from which the kernel would send there, if it says so.
    pub source: Option<IpAddr>,
    /// Whether the way there is by a gateway that is taken to be on the link.
    pub onlink: bool,
}

impl Resolved {
    /// The next hop of a route whose router is `target`, the address that was resolved: `target`
    /// itself if it is on the link, else the router before it.
    pub fn next_hop(&self, target: IpAddr) -> NextHop {
        let onlink = self.onlink && self.gateway.is_some();
        NextHop { gateway: Some(self.gateway.unwrap_or(target)), ifindex: self.ifindex, onlink }
    }
}

impl Fib {
    /// The way to `address`; `None` if there is none, or if it is an address of this node.
    ///
    /// Learned routes do not count: a route that says how to reach its own next hop would carry
    /// itself (RFC 4271 section 9.1.2.1).
    pub fn resolve(&mut self, address: IpAddr) -> Result<Option<Resolved>, Error> {
        const NO_WAY: &[Errno] =
            &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];
        let step = || format!("route get {address}");
        let (entry, way) = self
            .socket
            .two(message::get_route(address, true), message::get_route(address, false))?;
        let entry = entry.answer(NO_WAY, step())?;
        let way = way.answer(NO_WAY, step())?;
        let read = |message| match message {
            Some(RouteNetlinkMessage::NewRoute(message)) => Route::from_message(&message),
            _ => None,
        };
        let Some(entry) = read(entry) else {
            return Ok(None);
        };
        if is_learned(&entry, self.config.metric) {
            return self.resolve_without_learned(address);
        }
        Ok(read(way).and_then(|way| resolved(&way, &entry)))
    }

    /// What the kernel's lookup would find if our learned routes were not there.
    fn resolve_without_learned(&mut self, address: IpAddr) -> Result<Option<Resolved>, Error> {
        let routes = self.socket.routes(Family::of(address), RouteFilter::default())?;
        let metric = self.config.metric;
        let best = routes
            .iter()
            .filter(|route| route.prefix.contains(address) && !is_learned(route, metric))
            .filter(|route| route.kind != RouteType::Unicast || !route.next_hops.is_empty())
            .max_by_key(|route| (route.prefix.length(), std::cmp::Reverse(route.metric)));
        Ok(best.and_then(|route| resolved(route, route)))
    }
}

fn resolved(way: &Route, entry: &Route) -> Option<Resolved> {
    if way.kind != RouteType::Unicast {
        return None;
    }
    let hop = way.next_hops.first()?;
    let onlink = entry.next_hops.iter().any(|entry| entry.onlink && entry.gateway == hop.gateway);
    Some(Resolved { gateway: hop.gateway, ifindex: hop.ifindex, source: way.source, onlink })
}
