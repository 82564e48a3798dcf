//! What peers say, out of choices: messages that are in order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Asn, Family, Prefix};

use super::choices::Choices;
use crate::wire::{
    self, AddPathFamily, AsPath, Capability, Community, GracefulRestart, GracefulRestartFamily,
    LongLivedFamily, NextHopEncoding, Nlri, Notification, Open, Origin, PathAttributes,
    RawAttribute, Role, RouteRefresh, Segment, Session, cease, code,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A number that is no AS number is AS 64512.
pub(super) fn asn(number: u32) -> Asn {
    match Asn::new(number) {
        Ok(asn) => asn,
        Err(error) => panic!("{error}"),
    }
}

/// Prefixes of the world, some of them parts of others.
pub(super) fn prefix(number: u8) -> Prefix {
    let third = number >> 1 & 3;
    let (address, length): (IpAddr, u8) = match number & 9 {
        0 => (Ipv4Addr::new(10, 0, third, 0).into(), 24),
        1 => (Ipv4Addr::new(10, 0, third, 128).into(), 25),
        8 => (Ipv6Addr::new(0x2001, 0xdb8, 1, third.into(), 0, 0, 0, 0).into(), 64),
        _ => (Ipv6Addr::new(0x2001, 0xdb8, 1, third.into(), 0, 0, 0, 0x100).into(), 122),
    };
    match Prefix::new(address, length) {
        Ok(prefix) => prefix,
        Err(error) => panic!("{error}"),
    }
}

/// An OPEN with any capabilities of a peer in this AS.
pub(super) fn open(choices: &mut Choices<'_>, number: u32, identifier: u8) -> Vec<u8> {
    let bits = choices.short();
    let bit = |n: u16| bits & (1 << n) != 0;
    let mut capabilities = Vec::new();
    for (n, family) in (0..).zip(FAMILIES) {
        if !bit(n) {
            capabilities.push(Capability::MultiProtocol(family));
        }
    }
    if !bit(2) {
        capabilities.push(Capability::FourOctetAs(asn(number)));
    }
    let optional = [
        (3, Capability::RouteRefresh),
        (4, Capability::EnhancedRouteRefresh),
        (5, Capability::ExtendedMessage),
        (6, Capability::ExtendedNextHop(vec![NextHopEncoding::IPV4_OVER_IPV6])),
        (7, add_path()),
        (8, restart(bits)),
        (12, long_lived(choices)),
        (13, Capability::Role(choices.pick([Role::Customer, Role::Provider, Role::Peer]))),
        (14, Capability::Fqdn { host: "far".to_owned(), domain: String::new() }),
        (15, Capability::Unknown { code: 200, value: vec![1, 2, 3] }),
    ];
    capabilities.extend(optional.into_iter().filter(|(n, _)| bit(*n)).map(|(_, c)| c));
    let hold_time = choices.pick([0, 3, 9, 90]);
    let identifier = Ipv4Addr::new(192, 0, 2, identifier);
    wire::encode_open(&Open { asn: asn(number), hold_time, identifier, capabilities })
}

fn add_path() -> Capability {
    let both = |family| AddPathFamily { family, receive: true, send: true };
    Capability::AddPath(FAMILIES.map(both).to_vec())
}

fn restart(bits: u16) -> Capability {
    let forwarding = bits & 1 << 9 != 0;
    let family = |family| GracefulRestartFamily { family, forwarding };
    Capability::GracefulRestart(GracefulRestart {
        restarting: bits & 1 << 10 != 0,
        notification: bits & 1 << 11 != 0,
        restart_time: if forwarding { 120 } else { 5 },
        families: FAMILIES.map(family).to_vec(),
    })
}

fn long_lived(choices: &mut Choices<'_>) -> Capability {
    let (forwarding, stale_time) = (choices.flag(), choices.pick([0, 7, 3600]));
    let family = |family| LongLivedFamily { family, forwarding, stale_time };
    Capability::LongLivedGracefulRestart(FAMILIES.map(family).to_vec())
}

/// An UPDATE: some prefixes announced with one set of attributes, or withdrawn.
pub(super) fn update(choices: &mut Choices<'_>, number: u32, session: &Session) -> Vec<u8> {
    let what = choices.octet();
    let family = if what & 1 == 0 { Family::V4 } else { Family::V6 };
    let mut routes = Vec::new();
    for _ in 0..=what >> 1 & 3 {
        let chosen = choices.octet();
        let prefix = prefix(chosen);
        let path_id = if session.add_path.sends(family) { u32::from(chosen >> 6) } else { 0 };
        if prefix.family() == family && session.has(family) {
            routes.push(Nlri { prefix, path_id });
        }
    }
    let mut bytes = Vec::new();
    if what & 0x80 != 0 {
        wire::encode_withdrawals(family, &routes, session, &mut bytes);
    } else {
        let attributes = attributes(choices, number, family, session);
        // What cannot be said on this session is not said.
        let _ = wire::encode_updates(&attributes, family, &routes, session, &mut bytes);
    }
    bytes
}

fn attributes(
    choices: &mut Choices<'_>,
    number: u32,
    family: Family,
    session: &Session,
) -> PathAttributes {
    let bits = choices.short();
    let bit = |n: u16| bits & (1 << n) != 0;
    let last = 1 + (bits & 3);
    let next_hop: IpAddr = match (family, bit(2)) {
        (Family::V4, false) => Ipv4Addr::new(192, 0, 2, u8::try_from(last).unwrap_or(1)).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into(),
    };
    let mut attributes = PathAttributes::new(Origin::Igp, as_path(choices, number), next_hop);
    attributes.med = bit(3).then(|| u32::from(choices.octet()));
    attributes.local_pref = session.internal.then(|| 100 + u32::from(choices.octet() & 3));
    attributes.atomic_aggregate = bit(4);
    if bit(5) {
        attributes.communities.push(choices.pick([
            Community::NO_EXPORT,
            Community::NO_ADVERTISE,
            Community::NO_EXPORT_SUBCONFED,
            Community::LLGR_STALE,
            Community::NO_LLGR,
            Community(64512 << 16 | 7),
        ]));
    }
    if session.internal && bit(6) {
        attributes.originator_id = Some(Ipv4Addr::new(192, 0, 2, choices.octet()));
        attributes.cluster_list = vec![Ipv4Addr::new(0, 0, 0, choices.octet())];
    }
    attributes.only_to_customer = bit(7).then_some(number);
    if bit(8) {
        // So long that hardly anything goes beside it where messages are short.
        let length = choices.pick([0, 1, 255, 3900, 4020]);
        let value = vec![7; length];
        attributes.unknown.push(RawAttribute { kind: 99, value });
    }
    attributes
}

fn as_path(choices: &mut Choices<'_>, number: u32) -> AsPath {
    let what = choices.octet();
    let length = usize::from(what & 3);
    // Inside an AS it is not in the path.
    let mut path = vec![asn(if number == 64512 { 64998 } else { number }); length];
    path.extend((what & 4 != 0).then(|| asn(70_000)));
    path.extend((what & 8 != 0).then(|| asn(64512)));
    let mut segments = vec![Segment::Sequence(path)];
    segments.extend((what & 16 != 0).then(|| Segment::Set(vec![asn(64999)])));
    AsPath::new(segments)
}

/// One of the messages that have hardly a content.
pub(super) fn short(choices: &mut Choices<'_>) -> Vec<u8> {
    let what = choices.octet();
    let family = FAMILIES[usize::from(what & 1)];
    let refresh = |subtype| wire::encode_route_refresh(RouteRefresh { family, subtype });
    match what >> 1 & 7 {
        0 | 1 => {
            let mut bytes = Vec::new();
            wire::encode_end_of_rib(family, &mut bytes);
            bytes
        }
        2 => refresh(RouteRefresh::REQUEST),
        3 => refresh(RouteRefresh::BEGIN),
        4 => refresh(RouteRefresh::END),
        5 => wire::encode_notification(&notification(choices)),
        _ => wire::encode_keepalive(),
    }
}

fn notification(choices: &mut Choices<'_>) -> Notification {
    let what = choices.octet();
    let said = match what & 7 {
        0 => Notification::new(code::CEASE, cease::COLLISION),
        1 => Notification::cease_with_text(cease::SHUTDOWN, "bye"),
        2 => Notification::max_prefixes(Family::V4, 7),
        3 => Notification::new(code::OPEN, choices.octet()).with_data(choices.octets(4)),
        4 => Notification::new(code::HOLD_TIMER, 0),
        5 => Notification::new(code::CEASE, cease::CONFIGURATION),
        _ => Notification::new(choices.octet(), choices.octet()),
    };
    if what & 8 != 0 { said.into_hard_reset() } else { said }
}
