//! Where a BGP next hop is, by the routes that are not from BGP.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use netlink_packet_route::{RouteNetlinkMessage, route::RouteType};
use nix::errno::Errno;
use twill_types::{BgpNextHop, Family};

use super::{Fib, is_learned};
use crate::{
    Error, NextHop,
    message::{self, RouteFilter},
    nexthop::{self, AnyObject},
    route::Route,
};

/// The way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// By which routers and links, at least one; several share the traffic, whatever weights the kernel has
    /// for them. One without a gateway says that the address is on the link itself.
    pub hops: BTreeSet<NextHop>,
    /// The address from which the kernel would send there, if it says so.
    pub source: Option<IpAddr>,
}

impl Resolved {
    /// Whether the address is on a link itself.
    pub fn is_direct(&self) -> bool {
        self.hops.iter().all(|hop| hop.gateway.is_none())
    }

    /// The next hops of a route whose router is `target`, the address that was resolved: `target` itself
    /// where it is on the link, else the router before it. In order.
    pub fn next_hops(&self, target: IpAddr) -> impl Iterator<Item = NextHop> {
        self.hops.iter().map(move |hop| NextHop {
            gateway: Some(hop.gateway.unwrap_or(target)),
            onlink: hop.onlink && hop.gateway.is_some(),
            ..*hop
        })
    }
}

impl Fib {
    /// The way to a next hop; `None` if there is none, or if it is an address of this node. To a link-local
    /// one there is none if its peer is not on a link of this node (RFC 2545 section 3).
    ///
    /// Learned routes do not count: a route that says how to reach its own next hop would carry
    /// itself (RFC 4271 section 9.1.2.1).
    pub fn resolve(&mut self, next_hop: impl Into<BgpNextHop>) -> Result<Option<Resolved>, Error> {
        self.resolve_with(next_hop.into(), &mut Known::default())
    }

    /// The ways to all of these. The kernel has no lookup that leaves learned routes out; where one of
    /// them is in the way the table is read, once for all.
    pub fn resolve_all(
        &mut self,
        next_hops: impl IntoIterator<Item = BgpNextHop>,
    ) -> Result<BTreeMap<BgpNextHop, Option<Resolved>>, Error> {
        let mut known = Known::default();
        let resolve = |next_hop| Ok((next_hop, self.resolve_with(next_hop, &mut known)?));
        next_hops.into_iter().map(resolve).collect()
    }

    fn resolve_with(
        &mut self,
        next_hop: BgpNextHop,
        known: &mut Known,
    ) -> Result<Option<Resolved>, Error> {
        if !next_hop.is_link_local() {
            return self.way(next_hop.address, None, known);
        }
        // Every link has these addresses, those of pods too: the kernel would take any of them.
        let Some(peer) = next_hop.peer else {
            return Ok(None);
        };
        let link = match known.links.get(&peer) {
            Some(link) => *link,
            None => {
                let to_peer = self.resolve_with(peer.into(), known)?.filter(Resolved::is_direct);
                let link = to_peer.and_then(|way| way.hops.first().map(|hop| hop.ifindex));
                known.links.insert(peer, link);
                link
            }
        };
        let Some(link) = link else {
            return Ok(None);
        };
        Ok(self.way(next_hop.address, Some(link), known)?.filter(Resolved::is_direct))
    }

    /// The way to an address, by this link if one is named.
    fn way(
        &mut self,
        address: IpAddr,
        link: Option<u32>,
        known: &mut Known,
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
        let Some(mut entry) = read(entry) else {
            return Ok(None);
        };
        if !is_learned(&entry, self.config.metric) {
            self.spell_out(&mut entry, &mut known.objects)?;
            return Ok(read(way).and_then(|way| resolved(&way, &entry, link)));
        }
        let family = Family::of(address);
        let routes = match known.routes.entry(family) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(unread) => unread.insert(self.others(family, &mut known.objects)?),
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
    fn others(
        &mut self,
        family: Family,
        objects: &mut Option<Objects>,
    ) -> Result<Vec<Route>, Error> {
        let metric = self.config.metric;
        let mut routes = self.socket.routes(family, RouteFilter::default())?;
        routes.retain(|route| !is_learned(route, metric));
        for route in &mut routes {
            self.spell_out(route, objects)?;
        }
        Ok(routes)
    }

    /// Says by which hops a route leads that names an object, where the kernel does not
    /// ([`super::set_compat`]).
    fn spell_out(&mut self, route: &mut Route, objects: &mut Option<Objects>) -> Result<(), Error> {
        let Some(id) = route.object.filter(|_| route.next_hops.is_empty()) else {
            return Ok(());
        };
        let objects = match objects {
            Some(read) => read,
            unread => unread.insert(self.hops_of_objects()?),
        };
        route.next_hops = objects.get(&id).cloned().unwrap_or_default();
        Ok(())
    }

    /// The hops of all objects, somebody else's among them, by their numbers.
    fn hops_of_objects(&mut self) -> Result<Objects, Error> {
        let all = self.socket.dump_raw(&nexthop::list(), "nexthop objects", nexthop::read_any)?;
        let all: BTreeMap<u32, AnyObject> = all.into_iter().collect();
        let hop = |id: &u32| match all.get(id) {
            Some(AnyObject::Hop(hop)) => Some(*hop),
            // Groups have no groups for members.
            Some(AnyObject::Group(_)) | None => None,
        };
        let hops = |(id, object): (&u32, &AnyObject)| match object {
            AnyObject::Hop(hop) => (*id, [*hop].into()),
            AnyObject::Group(members) => (*id, members.iter().filter_map(hop).collect()),
        };
        Ok(all.iter().map(hops).collect())
    }
}

/// What is read once for many next hops, if it is needed.
#[derive(Debug, Default)]
struct Known {
    /// Routes that are not learned.
    routes: BTreeMap<Family, Vec<Route>>,
    objects: Option<Objects>,
    /// The links on which peers with link-local next hops are, by their addresses.
    links: BTreeMap<IpAddr, Option<u32>>,
}

/// The hops of nexthop objects, by their numbers.
type Objects = BTreeMap<u32, BTreeSet<NextHop>>;

/// `way` is what the kernel's lookup chose out of `entry`, one hop of all of them.
fn resolved(way: &Route, entry: &Route, link: Option<u32>) -> Option<Resolved> {
    if way.kind != RouteType::Unicast {
        return None;
    }
    let by_link = |hop: &&NextHop| link.is_none_or(|link| hop.ifindex == link);
    let of = |route: &Route| -> BTreeSet<NextHop> {
        route.next_hops.iter().filter(by_link).copied().collect()
    };
    let hops = Some(of(entry)).filter(|hops| !hops.is_empty()).unwrap_or_else(|| of(way));
    (!hops.is_empty()).then_some(Resolved { hops, source: way.source })
}
