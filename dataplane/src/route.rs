//! What Twill reads of a route.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteScope,
        RouteType, RouteVia,
    },
    rule::RuleAttribute,
};
use nix::errno::Errno;
use twill_types::{Family, Prefix, ROUTE_PROTOCOL};

use crate::{
    Error,
    message::{self, RouteFilter, ip},
    netlink::Socket,
};

/// One way out of the node: a link, and the router behind it unless the destination is on the link
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The router's address; `None` if the destination is reached directly.
    pub gateway: Option<IpAddr>,
    /// The link's index.
    pub ifindex: u32,
    /// Whether the kernel shall take the gateway to be on the link without a route to it.
    pub onlink: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) prefix: Prefix,
    pub(crate) ours: bool,
    pub(crate) metric: u32,
    pub(crate) kind: RouteType,
    pub(crate) link_scope: bool,
    /// In order, without doubles; those that are dead are left out.
    pub(crate) next_hops: BTreeSet<NextHop>,
    pub(crate) source: Option<IpAddr>,
    /// The number of the nexthop object that it names.
    pub(crate) object: Option<u32>,
}

impl Route {
    /// `None` for what is no IPv4 or IPv6 route of a form that Twill knows.
    pub(crate) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let family = match header.address_family {
            netlink_packet_route::AddressFamily::Inet => Family::V4,
            netlink_packet_route::AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        let mut destination = Prefix::default_route(family).address();
        let (mut metric, mut source, mut next_hops) = (0, None, BTreeSet::new());
        let mut object = None;
        let (mut gateway, mut oif) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::NhId(id) => object = Some(*id),
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::MultiPath(hops) => {
                    let alive = |flags: RouteNextHopFlags| !flags.contains(RouteNextHopFlags::Dead);
                    let hops = hops.iter().filter(|hop| alive(hop.flags)).map(|hop| NextHop {
                        gateway: hop.attributes.iter().find_map(gateway_of),
                        ifindex: hop.interface_index,
                        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
                    });
                    next_hops.extend(hops);
                }
                other => gateway = gateway.or_else(|| gateway_of(other)),
            }
        }
        if let Some(ifindex) = oif.filter(|_| !header.flags.contains(RouteFlags::Dead)) {
            let onlink = header.flags.contains(RouteFlags::Onlink);
            next_hops.insert(NextHop { gateway, ifindex, onlink });
        }
        Some(Self {
            prefix: Prefix::new(destination, header.destination_prefix_length).ok()?,
            ours: header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
            metric,
            kind: header.kind,
            link_scope: header.scope == RouteScope::Link,
            next_hops,
            source,
            object,
        })
    }
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

impl Socket {
    /// Routes of the main table.
    pub(crate) fn routes(
        &mut self,
        family: Family,
        filter: RouteFilter,
    ) -> Result<Vec<Route>, Error> {
        let pick = |message| match message {
            // A kernel without IPv6 answers for other families.
            RouteNetlinkMessage::NewRoute(message) => {
                Route::from_message(&message).filter(|route| route.prefix.family() == family)
            }
            _ => None,
        };
        match self.dump(&message::list_routes(family, filter), "routes", pick) {
            // The filter names a link that has gone, and its routes with it.
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(Vec::new()),
            found => found,
        }
    }

    /// The addresses whose packets a rule has looked up in a table.
    pub(crate) fn sources_with_table(
        &mut self,
        family: Family,
        table: u32,
    ) -> Result<Vec<IpAddr>, Error> {
        let pick = |message| {
            let RouteNetlinkMessage::NewRule(rule) = message else { return None };
            let leads_there = rule.attributes.contains(&RuleAttribute::Table(table));
            rule.attributes.into_iter().filter(|_| leads_there).find_map(
                |attribute| match attribute {
                    RuleAttribute::Source(address) => Some(address),
                    _ => None,
                },
            )
        };
        self.dump(&message::list_rules(family), "rules", pick)
    }

    /// The entry of the routing table that decides about `address`; `None` without one.
    pub(crate) fn route_entry(&mut self, address: IpAddr) -> Result<Option<Route>, Error> {
        let step = format!("route get fibmatch {address}");
        let reply = self.one(message::get_route(address, None, true))?;
        match reply.answer(&[Errno::ENETUNREACH, Errno::EHOSTUNREACH], step)? {
            Some(RouteNetlinkMessage::NewRoute(message)) => Ok(Route::from_message(&message)),
            _ => Ok(None),
        }
    }
}
