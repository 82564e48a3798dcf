//! Where a BGP next hop is, by the routes that are not from BGP.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use netlink_packet_route::{RouteNetlinkMessage, route::RouteType};
use nix::errno::Errno;
use twill_types::{BgpNextHop, Family};

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
    /// The way to a next hop; `None` if there is none, or if it is an address of this node. To a link-local
    /// one there is none if its peer is not on a link of this node (RFC 2545 section 3).
    ///
    /// Learned routes do not count: a route that says how to reach its own next hop would carry
    /// itself (RFC 4271 section 9.1.2.1).
    pub fn resolve(&mut self, next_hop: impl Into<BgpNextHop>) -> Result<Option<Resolved>, Error> {
        self.resolve_with(next_hop.into(), &mut BTreeMap::new())
    }

    /// The ways to all of these. The kernel has no lookup that leaves learned routes out; where one of
    /// them is in the way the table is read, once for all.
    pub fn resolve_all(
        &mut self,
        next_hops: impl IntoIterator<Item = BgpNextHop>,
    ) -> Result<BTreeMap<BgpNextHop, Option<Resolved>>, Error> {
        let mut tables = BTreeMap::new();
        let resolve = |next_hop| Ok((next_hop, self.resolve_with(next_hop, &mut tables)?));
        next_hops.into_iter().map(resolve).collect()
    }

    fn resolve_with(
        &mut self,
        next_hop: BgpNextHop,
        tables: &mut BTreeMap<Family, Vec<Route>>,
    ) -> Result<Option<Resolved>, Error> {
        let is_direct = |way: &Resolved| way.gateway.is_none();
        if !next_hop.is_link_local() {
            return self.way(next_hop.address, None, tables);
        }
        // Every link has these addresses, those of pods too: the kernel would take any of them.
        let Some(peer) = next_hop.peer else {
            return Ok(None);
        };
        let Some(link) = self.resolve_with(peer.into(), tables)?.filter(is_direct) else {
            return Ok(None);
        };
        Ok(self.way(next_hop.address, Some(link.ifindex), tables)?.filter(is_direct))
    }

    /// The way to an address, by this link if one is named.
    fn way(
        &mut self,
        address: IpAddr,
        link: Option<u32>,
        tables: &mut BTreeMap<Family, Vec<Route>>,
    ) -> Result<Option<Resolved>, Error> {
        const NO_WAY: &[Errno] =
            &[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL, Errno::ENODEV];
        let step = || format!("route get {address}");
        let (entry, way) = self.socket.two(
            message::get_route(address, link, true),
            message::get_route(address, link, false),
        )?;
        let entry = entry.answer(NO_WAY, step())?;
        let way = way.answer(NO_WAY, step())?;
        let read = |message| match message {
            Some(RouteNetlinkMessage::NewRoute(message)) => Route::from_message(&message),
            _ => None,
        };
        let Some(entry) = read(entry) else {
            return Ok(None);
        };
        if !is_learned(&entry, self.config.metric) {
            return Ok(read(way).and_then(|way| resolved(&way, &entry, link)));
        }
        let routes = match tables.entry(Family::of(address)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.others(Family::of(address))?),
        };
        // What the kernel's lookup would find.
        let leads = |route: &&Route| match link {
            None => route.kind != RouteType::Unicast || !route.next_hops.is_empty(),
            Some(link) => route.next_hops.iter().any(|hop| hop.ifindex == link),
        };
        let best = routes
            .iter()
            .filter(|route| route.prefix.contains(address))
            .filter(leads)
            .max_by_key(|route| (route.prefix.length(), std::cmp::Reverse(route.metric)));
        Ok(best.and_then(|route| resolved(route, route, link)))
    }

    /// The routes that are not learned.
    fn others(&mut self, family: Family) -> Result<Vec<Route>, Error> {
        let metric = self.config.metric;
        let mut routes = self.socket.routes(family, RouteFilter::default())?;
        routes.retain(|route| !is_learned(route, metric));
        Ok(routes)
    }
}

fn resolved(way: &Route, entry: &Route, link: Option<u32>) -> Option<Resolved> {
    if way.kind != RouteType::Unicast {
        return None;
    }
    let by_link = |hop: &&NextHop| link.is_none_or(|link| hop.ifindex == link);
    let hop = way.next_hops.iter().find(by_link)?;
    let onlink = entry.next_hops.iter().any(|entry| entry.onlink && entry.gateway == hop.gateway);
    Some(Resolved { gateway: hop.gateway, ifindex: hop.ifindex, source: way.source, onlink })
}
