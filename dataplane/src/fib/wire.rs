//! Learned routes on the wire (`linux/rtnetlink.h`), written straight into a request: a table is some
//! hundred thousand of them.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use twill_types::{Family, Prefix, ROUTE_PROTOCOL};

use super::{FibChange, LearnedRoute, Via};
use crate::{
    NextHop,
    message::address_family,
    netlink::{RawRequest, push_attribute},
};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// Any scope, in a request to delete.
const RT_SCOPE_NOWHERE: u8 = 255;
const RTNH_F_ONLINK: u8 = 4;

/// Writes the request that makes a change, with the metric of learned routes, into an empty one.
pub(super) fn write(change: &FibChange, metric: u32, request: &mut RawRequest) {
    match change {
        FibChange::Replace(route) => {
            request.kind = RTM_NEWROUTE;
            request.flags = NLM_F_CREATE | NLM_F_REPLACE;
            write_route(route, &mut request.payload);
        }
        FibChange::Delete(prefix) => {
            request.kind = RTM_DELROUTE;
            request.flags = 0;
            // The protocol keeps others' routes safe.
            begin(*prefix, RT_SCOPE_NOWHERE, 0, &mut request.payload);
        }
    }
    push_attribute(&mut request.payload, RTA_PRIORITY, &metric.to_ne_bytes());
}

/// `struct rtmsg`, and the destination.
fn begin(prefix: Prefix, scope: u8, flags: u8, payload: &mut Vec<u8>) {
    let family = address_family(prefix.family()).into();
    payload.extend([family, prefix.length(), 0, 0]);
    payload.extend([RT_TABLE_MAIN, ROUTE_PROTOCOL, scope, RTN_UNICAST]);
    payload.extend(u32::from(flags).to_ne_bytes());
    push_address(payload, RTA_DST, prefix.address());
}

fn push_address(payload: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => push_attribute(payload, kind, &v4.octets()),
        IpAddr::V6(v6) => push_attribute(payload, kind, &v6.octets()),
    }
}

fn write_route(route: &LearnedRoute, payload: &mut Vec<u8>) {
    let family = route.prefix.family();
    match &route.via {
        Via::Object(id) => {
            begin(route.prefix, RT_SCOPE_UNIVERSE, 0, payload);
            push_attribute(payload, RTA_NH_ID, &id.0.to_ne_bytes());
        }
        Via::Hops(hops) => {
            let direct = hops.iter().all(|hop| hop.gateway.is_none());
            let scope = match (family, direct) {
                (Family::V4, true) => RT_SCOPE_LINK,
                // IPv6 has no scopes of routes.
                _ => RT_SCOPE_UNIVERSE,
            };
            let mut all = hops.iter();
            match (all.next(), all.next()) {
                (Some(only), None) => {
                    begin(route.prefix, scope, flags(only), payload);
                    push_gateway(payload, family, only);
                    push_attribute(payload, RTA_OIF, &only.ifindex.to_ne_bytes());
                }
                _ => {
                    begin(route.prefix, scope, 0, payload);
                    push_attribute(payload, RTA_MULTIPATH, &multipath(family, hops));
                }
            }
        }
    }
    if let Some(source) = route.source {
        push_address(payload, RTA_PREFSRC, source);
    }
}

fn flags(hop: &NextHop) -> u8 {
    if hop.onlink { RTNH_F_ONLINK } else { 0 }
}

fn push_gateway(payload: &mut Vec<u8>, family: Family, hop: &NextHop) {
    match (family, hop.gateway) {
        (_, None) => {}
        // RFC 8950: an IPv4 route through an IPv6 router. `struct rtvia`: the family in two octets, and
        // the address.
        (Family::V4, Some(IpAddr::V6(v6))) => {
            let via_family: u8 = address_family(Family::V6).into();
            let mut via = [0; 18];
            via[..2].copy_from_slice(&u16::from(via_family).to_ne_bytes());
            via[2..].copy_from_slice(&v6.octets());
            push_attribute(payload, RTA_VIA, &via);
        }
        (_, Some(gateway)) => push_address(payload, RTA_GATEWAY, gateway),
    }
}

/// One `struct rtnexthop` for each hop: its length, flags, its weight less one, the link; and its
/// gateway.
fn multipath(family: Family, hops: &BTreeSet<NextHop>) -> Vec<u8> {
    let mut all = Vec::new();
    for hop in hops {
        let start = all.len();
        all.extend([0, 0, flags(hop), 0]);
        all.extend(hop.ifindex.to_ne_bytes());
        push_gateway(&mut all, family, hop);
        // A header and at most one address.
        let length = u16::try_from(all.len() - start).unwrap_or(u16::MAX);
        all[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;
    use crate::{fib::ObjectId, route::Route};

    fn hop(gateway: Option<&str>, ifindex: u32, onlink: bool) -> NextHop {
        NextHop { gateway: gateway.map(|text| text.parse().unwrap()), ifindex, onlink }
    }

    /// What an independent reader of such messages finds in a request.
    fn read(change: &FibChange) -> RouteNetlinkMessage {
        let mut request = RawRequest { kind: 0, flags: 0, payload: Vec::new() };
        write(change, 512, &mut request);
        let mut bytes = u32::try_from(16 + request.payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(request.payload);
        match NetlinkMessage::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let one = |gateway, onlink| vec![hop(gateway, 7, onlink)];
        let rows = [
            ("10.0.0.0/26", one(Some("192.0.2.1"), false), None),
            ("10.0.0.0/26", one(Some("192.0.2.1"), true), Some("192.0.2.9")),
            ("10.0.0.0/26", one(Some("fe80::1"), false), None),
            ("10.0.0.0/26", one(None, false), None),
            ("10.0.0.0/26", vec![hop(Some("192.0.2.1"), 7, false), hop(None, 8, true)], None),
            (
                "0.0.0.0/0",
                vec![hop(Some("fe80::1"), 7, true), hop(Some("192.0.2.1"), 8, false)],
                Some("192.0.2.9"),
            ),
            ("2001:db8::/64", one(Some("fe80::1"), false), Some("2001:db8:9::1")),
            (
                "2001:db8::/64",
                vec![hop(Some("fe80::1"), 7, false), hop(Some("fe80::2"), 8, false)],
                None,
            ),
            ("2001:db8::1/128", one(None, false), None),
        ];
        for (text, hops, source) in rows {
            let prefix: Prefix = text.parse().unwrap();
            let next_hops: BTreeSet<NextHop> = hops.into_iter().collect();
            let source = source.map(|text| text.parse().unwrap());
            let via = Via::Hops(Arc::new(next_hops.clone()));
            let change = FibChange::Replace(LearnedRoute { prefix, via, source });
            let RouteNetlinkMessage::NewRoute(message) = read(&change) else {
                panic!("{text} is no new route");
            };
            let route = Route::from_message(&message).expect("a route of the main table");
            assert_eq!((route.prefix, route.metric, route.ours), (prefix, 512, true));
            assert_eq!((route.next_hops, route.source, route.object), (next_hops, source, None));
        }
        let prefix: Prefix = "10.0.0.0/26".parse().unwrap();
        let via = Via::Object(ObjectId::MAX);
        let source = Some("192.0.2.9".parse().unwrap());
        match read(&FibChange::Replace(LearnedRoute { prefix, via, source })) {
            RouteNetlinkMessage::NewRoute(message) => {
                let route = Route::from_message(&message).expect("a route of the main table");
                assert_eq!((route.object, route.source), (Some(ObjectId::LAST), source));
            }
            other => panic!("{other:?}"),
        }
        match read(&FibChange::Delete(prefix)) {
            RouteNetlinkMessage::DelRoute(message) => {
                let route = Route::from_message(&message).expect("a route of the main table");
                assert_eq!((route.prefix, route.metric, route.ours), (prefix, 512, true));
            }
            other => panic!("{other:?}"),
        }
    }
}
