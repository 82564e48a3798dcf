use std::net::IpAddr;

use twill_types::{Family, Prefix};

use super::{
    SAFI_UNICAST, Session, afi,
    as_path::two_octets,
    attributes::{Origin, PathAttributes, flag, kind},
    header::{HEADER_LENGTH, MAX_MESSAGE, MessageType},
    nlri,
    notification::Notification,
    open::{Open, PARAMETER_CAPABILITIES, RouteRefresh, VERSION},
};

/// The octets of one message around `body`. The caller keeps the body within the session's limit.
fn message(kind: MessageType, body: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(HEADER_LENGTH + body.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind.code());
    out.extend_from_slice(body);
}

/// An OPEN, with all capabilities in one optional parameter.
pub fn encode_open(open: &Open) -> Vec<u8> {
    let mut capabilities = Vec::new();
    for capability in &open.capabilities {
        let mut one = Vec::new();
        capability.encode(&mut one);
        // One octet says how long the parameters are. Ours take less than a third of it.
        if capabilities.len() + one.len() <= 253 {
            capabilities.extend_from_slice(&one);
        }
    }
    let mut body = vec![VERSION];
    body.extend_from_slice(&two_octets(open.asn).to_be_bytes());
    body.extend_from_slice(&open.hold_time.to_be_bytes());
    body.extend_from_slice(&open.identifier.octets());
    let length = u8::try_from(capabilities.len()).unwrap_or(0);
    if length == 0 {
        body.push(0);
    } else {
        body.extend_from_slice(&[length + 2, PARAMETER_CAPABILITIES, length]);
        body.extend_from_slice(&capabilities);
    }
    let mut out = Vec::new();
    message(MessageType::Open, &body, &mut out);
    out
}

/// A KEEPALIVE.
pub fn encode_keepalive() -> Vec<u8> {
    let mut out = Vec::new();
    message(MessageType::Keepalive, &[], &mut out);
    out
}

/// A NOTIFICATION. Data that would not fit a message is cut off.
pub fn encode_notification(notification: &Notification) -> Vec<u8> {
    let mut body = vec![notification.code, notification.subcode];
    let room = MAX_MESSAGE - HEADER_LENGTH - body.len();
    body.extend(notification.data.iter().take(room));
    let mut out = Vec::new();
    message(MessageType::Notification, &body, &mut out);
    out
}

/// A ROUTE-REFRESH.
pub fn encode_route_refresh(refresh: RouteRefresh) -> Vec<u8> {
    let mut out = Vec::new();
    message(MessageType::RouteRefresh, &refresh.octets(), &mut out);
    out
}

/// An End-of-RIB marker (RFC 4724 section 2).
pub fn encode_end_of_rib(family: Family, out: &mut Vec<u8>) {
    match family {
        Family::V4 => message(MessageType::Update, &[0; 4], out),
        Family::V6 => unreach(family, &[], out),
    }
}

/// Withdraws prefixes of one family, in as few messages as they take.
pub fn encode_withdrawals(
    family: Family,
    prefixes: &[Prefix],
    session: &Session,
    out: &mut Vec<u8>,
) {
    // Two length fields, and around MP_UNREACH_NLRI its header, AFI and SAFI.
    let overhead = match family {
        Family::V4 => HEADER_LENGTH + 4,
        Family::V6 => HEADER_LENGTH + 4 + 4 + 3,
    };
    for_each_batch(prefixes, session.max_message() - overhead, |routes| match family {
        Family::V4 => {
            let mut body = Vec::with_capacity(routes.len() + 4);
            push_long(routes, &mut body);
            body.extend_from_slice(&[0, 0]);
            message(MessageType::Update, &body, out);
        }
        Family::V6 => unreach(family, routes, out),
    });
}

fn unreach(family: Family, routes: &[u8], out: &mut Vec<u8>) {
    let mut value = afi(family).to_be_bytes().to_vec();
    value.push(SAFI_UNICAST);
    value.extend_from_slice(routes);
    let mut attributes = Vec::new();
    // RFC 4760 section 4: optional and not transitive.
    attribute(flag::OPTIONAL, kind::MP_UNREACH, &value, &mut attributes);
    let mut body = vec![0, 0];
    push_long(&attributes, &mut body);
    message(MessageType::Update, &body, out);
}

/// Announces prefixes of one family that share attributes, in as few messages as they take.
/// Prefixes are in the NLRI field where family and next hop are IPv4, else in MP_REACH_NLRI.
/// Returns false, and writes nothing, if the attributes leave no room for a prefix: such a route
/// must not be announced (RFC 4271 section 9.2, RFC 8654 section 4).
#[must_use]
pub fn encode_updates(
    attributes: &PathAttributes,
    family: Family,
    prefixes: &[Prefix],
    session: &Session,
    out: &mut Vec<u8>,
) -> bool {
    let classic = family == Family::V4 && attributes.next_hop.is_ipv4();
    let common = encode_attributes(attributes, session, classic);
    let next_hop = match attributes.next_hop {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // AFI, SAFI, next hop with its length, reserved octet, and the attribute's own header.
    let mp = if classic { 0 } else { 4 + 3 + 1 + next_hop.len() + 1 };
    let overhead = HEADER_LENGTH + 4 + common.len() + mp;
    let longest = prefixes.iter().map(|prefix| nlri::encoded_length(*prefix)).max().unwrap_or(0);
    let Some(room) = session.max_message().checked_sub(overhead).filter(|room| *room >= longest)
    else {
        return false;
    };
    for_each_batch(prefixes, room, |routes| {
        let mut list = Vec::with_capacity(common.len() + mp + routes.len());
        if !classic {
            let mut value = afi(family).to_be_bytes().to_vec();
            value.push(SAFI_UNICAST);
            value.push(if next_hop.len() == 4 { 4 } else { 16 });
            value.extend_from_slice(&next_hop);
            value.push(0);
            value.extend_from_slice(routes);
            // RFC 7606 section 5.1: first of all, so that a broken list still shows the routes.
            attribute(flag::OPTIONAL, kind::MP_REACH, &value, &mut list);
        }
        list.extend_from_slice(&common);
        let mut body = vec![0, 0];
        push_long(&list, &mut body);
        if classic {
            body.extend_from_slice(routes);
        }
        message(MessageType::Update, &body, out);
    });
    true
}

/// Cuts the encoded prefixes into pieces of at most `room` octets.
fn for_each_batch(prefixes: &[Prefix], room: usize, mut emit: impl FnMut(&[u8])) {
    let mut routes = Vec::new();
    for prefix in prefixes {
        if routes.len() + nlri::encoded_length(*prefix) > room {
            emit(&routes);
            routes.clear();
        }
        nlri::encode(*prefix, &mut routes);
    }
    if !routes.is_empty() {
        emit(&routes);
    }
}

fn push_long(field: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(field);
}

fn attribute(flags: u8, kind: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, kind, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | flag::EXTENDED, kind]);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Everything but MP_REACH_NLRI, by ascending type code (RFC 4271 appendix F.3).
fn encode_attributes(attributes: &PathAttributes, session: &Session, classic: bool) -> Vec<u8> {
    const WELL_KNOWN: u8 = flag::TRANSITIVE;
    const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
    let mut out = Vec::new();
    let origin = match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    };
    attribute(WELL_KNOWN, kind::ORIGIN, &[origin], &mut out);
    let mut path = Vec::new();
    attributes.as_path.encode(session.four_octet_as, &mut path);
    attribute(WELL_KNOWN, kind::AS_PATH, &path, &mut out);
    if let (true, IpAddr::V4(next_hop)) = (classic, attributes.next_hop) {
        attribute(WELL_KNOWN, kind::NEXT_HOP, &next_hop.octets(), &mut out);
    }
    if let Some(med) = attributes.med {
        attribute(flag::OPTIONAL, kind::MED, &med.to_be_bytes(), &mut out);
    }
    if let (Some(preference), true) = (attributes.local_pref, session.internal) {
        attribute(WELL_KNOWN, kind::LOCAL_PREF, &preference.to_be_bytes(), &mut out);
    }
    if attributes.atomic_aggregate {
        attribute(WELL_KNOWN, kind::ATOMIC_AGGREGATE, &[], &mut out);
    }
    if let Some(aggregator) = attributes.aggregator {
        let mut value = if session.four_octet_as {
            aggregator.asn.get().to_be_bytes().to_vec()
        } else {
            two_octets(aggregator.asn).to_be_bytes().to_vec()
        };
        value.extend_from_slice(&aggregator.address.octets());
        attribute(OPTIONAL_TRANSITIVE, kind::AGGREGATOR, &value, &mut out);
    }
    if !attributes.communities.is_empty() {
        let value: Vec<u8> =
            attributes.communities.iter().flat_map(|c| c.0.to_be_bytes()).collect();
        attribute(OPTIONAL_TRANSITIVE, kind::COMMUNITIES, &value, &mut out);
    }
    if session.internal {
        if let Some(originator) = attributes.originator_id {
            attribute(flag::OPTIONAL, kind::ORIGINATOR_ID, &originator.octets(), &mut out);
        }
        if !attributes.cluster_list.is_empty() {
            let value: Vec<u8> =
                attributes.cluster_list.iter().flat_map(|id| id.octets()).collect();
            attribute(flag::OPTIONAL, kind::CLUSTER_LIST, &value, &mut out);
        }
    }
    if !attributes.extended_communities.is_empty() {
        let value = attributes.extended_communities.as_flattened();
        attribute(OPTIONAL_TRANSITIVE, kind::EXTENDED_COMMUNITIES, value, &mut out);
    }
    encode_as4(attributes, session, &mut out);
    if !attributes.large_communities.is_empty() {
        let value: Vec<u8> = attributes
            .large_communities
            .iter()
            .flat_map(|community| community.0)
            .flat_map(u32::to_be_bytes)
            .collect();
        attribute(OPTIONAL_TRANSITIVE, kind::LARGE_COMMUNITIES, &value, &mut out);
    }
    for raw in &attributes.unknown {
        attribute(raw.flags & !flag::EXTENDED, raw.kind, &raw.value, &mut out);
    }
    out
}

/// What an old peer cannot see in two octets (RFC 6793 section 4.2.2).
fn encode_as4(attributes: &PathAttributes, session: &Session, out: &mut Vec<u8>) {
    const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
    if session.four_octet_as {
        return;
    }
    if attributes.as_path.needs_as4() {
        let mut value = Vec::new();
        attributes.as_path.encode(true, &mut value);
        attribute(OPTIONAL_TRANSITIVE, kind::AS4_PATH, &value, out);
    }
    if let Some(aggregator) = attributes.aggregator
        && u16::try_from(aggregator.asn.get()).is_err()
    {
        let mut value = aggregator.asn.get().to_be_bytes().to_vec();
        value.extend_from_slice(&aggregator.address.octets());
        attribute(OPTIONAL_TRANSITIVE, kind::AS4_AGGREGATOR, &value, out);
    }
}
