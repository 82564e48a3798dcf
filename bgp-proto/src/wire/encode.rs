use std::net::IpAddr;

use twill_types::Family;

use super::{
    SAFI_UNICAST, Session, afi,
    as_path::two_octets,
    attributes::{PathAttributes, flag, kind},
    encode_attributes::encode_attributes,
    header::{HEADER_LENGTH, MAX_MESSAGE, MessageType},
    nlri::{self, Nlri},
    notification::Notification,
    open::{EXTENDED_LENGTH, Open, PARAMETER_CAPABILITIES, VERSION},
    refresh::RouteRefresh,
};

/// The header of a message whose body has `length` octets. The caller keeps them within the
/// session's limit.
fn header(kind: MessageType, length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&long(HEADER_LENGTH + length));
    out.push(kind.code());
}

fn message(kind: MessageType, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LENGTH + body.len());
    header(kind, body.len(), &mut out);
    out.extend_from_slice(body);
    out
}

/// A two-octet length.
fn long(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// An OPEN, with all capabilities in one optional parameter. Those that would take it over 4096 octets
/// are left out (RFC 8654 section 4).
pub fn encode_open(open: &Open) -> Vec<u8> {
    let mut capabilities = Vec::new();
    for capability in &open.capabilities {
        let mut one = Vec::new();
        capability.encode(&mut one);
        // Around them are the fixed fields, and the lengths of RFC 9072.
        if HEADER_LENGTH + 10 + 3 + 3 + capabilities.len() + one.len() <= MAX_MESSAGE {
            capabilities.extend_from_slice(&one);
        }
    }
    let mut body = vec![VERSION];
    body.extend_from_slice(&two_octets(open.asn).to_be_bytes());
    body.extend_from_slice(&open.hold_time.to_be_bytes());
    body.extend_from_slice(&open.identifier.octets());
    match u8::try_from(capabilities.len()) {
        Ok(0) => body.push(0),
        Ok(length) if length <= EXTENDED_LENGTH - 2 => {
            body.extend_from_slice(&[length + 2, PARAMETER_CAPABILITIES, length]);
        }
        _ => {
            // RFC 9072 section 2.
            body.extend_from_slice(&[EXTENDED_LENGTH, EXTENDED_LENGTH]);
            body.extend_from_slice(&long(capabilities.len() + 3));
            body.push(PARAMETER_CAPABILITIES);
            body.extend_from_slice(&long(capabilities.len()));
        }
    }
    body.extend_from_slice(&capabilities);
    message(MessageType::Open, &body)
}

/// A KEEPALIVE.
pub fn encode_keepalive() -> Vec<u8> {
    message(MessageType::Keepalive, &[])
}

/// A NOTIFICATION. Data that would not fit a message is cut off.
pub fn encode_notification(notification: &Notification) -> Vec<u8> {
    let mut body = vec![notification.code, notification.subcode];
    let room = MAX_MESSAGE - HEADER_LENGTH - body.len();
    body.extend(notification.data.iter().take(room));
    message(MessageType::Notification, &body)
}

/// A ROUTE-REFRESH.
pub fn encode_route_refresh(refresh: RouteRefresh) -> Vec<u8> {
    message(MessageType::RouteRefresh, &refresh.octets())
}

/// An End-of-RIB marker (RFC 4724 section 2).
pub fn encode_end_of_rib(family: Family, out: &mut Vec<u8>) {
    match family {
        Family::V4 => {
            header(MessageType::Update, 4, out);
            out.extend_from_slice(&[0; 4]);
        }
        Family::V6 => Mp::unreach(family).message::<Nlri>(&[], 0, false, &[], out),
    }
}

/// Withdraws routes of one family, in as few messages as they take. Path identifiers are written
/// where they were negotiated.
pub fn encode_withdrawals<T: Into<Nlri> + Copy>(
    family: Family,
    routes: &[T],
    session: &Session,
    out: &mut Vec<u8>,
) {
    let with_id = session.add_path.sends(family);
    // Two length fields, and around MP_UNREACH_NLRI its header, AFI and SAFI.
    let overhead = match family {
        Family::V4 => HEADER_LENGTH + 4,
        Family::V6 => HEADER_LENGTH + 4 + 4 + 3,
    };
    for (batch, length) in batches(routes, session.longest_sent() - overhead, with_id) {
        match family {
            Family::V4 => {
                header(MessageType::Update, 4 + length, out);
                out.extend_from_slice(&long(length));
                write(batch, with_id, out);
                out.extend_from_slice(&[0, 0]);
            }
            Family::V6 => Mp::unreach(family).message(batch, length, with_id, &[], out),
        }
    }
}

/// Announces routes of one family that share attributes, in as few messages as they take. They are
/// in the NLRI field where family and next hop are IPv4, else in MP_REACH_NLRI.
/// Returns false, and writes nothing, if the attributes leave no room for a route: such a one must
/// not be announced (RFC 4271 section 9.2, RFC 8654 section 4), and neither must IPv4 over IPv6 to
/// a peer that did not say it understands that (RFC 8950 section 4).
#[must_use]
pub fn encode_updates<T: Into<Nlri> + Copy>(
    attributes: &PathAttributes,
    family: Family,
    routes: &[T],
    session: &Session,
    out: &mut Vec<u8>,
) -> bool {
    let classic = match (family, attributes.next_hop) {
        (Family::V4, IpAddr::V4(_)) => true,
        (Family::V4, IpAddr::V6(_)) if !session.extended_next_hop => return false,
        (Family::V6, IpAddr::V4(_)) => return false,
        (_, IpAddr::V6(_)) => false,
    };
    let with_id = session.add_path.sends(family);
    let common = encode_attributes(attributes, session, classic);
    let mp = Mp::reach(family, attributes);
    // The attribute's header has up to four octets.
    let mp_length = if classic { 0 } else { 4 + mp.head.len() };
    let overhead = HEADER_LENGTH + 4 + common.len() + mp_length;
    let all_fit = |room: usize| {
        // The longest route there can be fits most of the time.
        room >= 1 + 16 + 4
            || routes.iter().all(|r| nlri::encoded_length((*r).into().prefix, with_id) <= room)
    };
    let Some(room) = session.longest_sent().checked_sub(overhead).filter(|room| all_fit(*room))
    else {
        return false;
    };
    for (batch, length) in batches(routes, room, with_id) {
        if classic {
            header(MessageType::Update, 4 + common.len() + length, out);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&long(common.len()));
            out.extend_from_slice(&common);
            write(batch, with_id, out);
        } else {
            mp.message(batch, length, with_id, &common, out);
        }
    }
    true
}

/// What MP_REACH_NLRI or MP_UNREACH_NLRI say before the routes (RFC 4760 sections 3 and 4).
struct Mp {
    kind: u8,
    head: Vec<u8>,
}

impl Mp {
    fn unreach(family: Family) -> Self {
        let [high, low] = afi(family).to_be_bytes();
        Self { kind: kind::MP_UNREACH, head: vec![high, low, SAFI_UNICAST] }
    }

    fn reach(family: Family, attributes: &PathAttributes) -> Self {
        let [high, low] = afi(family).to_be_bytes();
        let mut head = vec![high, low, SAFI_UNICAST];
        match (attributes.next_hop, attributes.link_local) {
            (IpAddr::V4(v4), _) => {
                head.push(4);
                head.extend_from_slice(&v4.octets());
            }
            (IpAddr::V6(global), None) => {
                head.push(16);
                head.extend_from_slice(&global.octets());
            }
            (IpAddr::V6(global), Some(link_local)) => {
                // RFC 2545 section 3.
                head.push(32);
                head.extend_from_slice(&global.octets());
                head.extend_from_slice(&link_local.octets());
            }
        }
        // Reserved.
        head.push(0);
        Self { kind: kind::MP_REACH, head }
    }

    /// An UPDATE with this attribute first of all, so that a broken list still shows the routes
    /// (RFC 7606 section 5.1), and `common` behind it. `length` is that of the routes.
    fn message<T: Into<Nlri> + Copy>(
        &self,
        routes: &[T],
        length: usize,
        with_id: bool,
        common: &[u8],
        out: &mut Vec<u8>,
    ) {
        let value = self.head.len() + length;
        let short = u8::try_from(value);
        let list = if short.is_ok() { 3 } else { 4 } + value + common.len();
        header(MessageType::Update, 4 + list, out);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&long(list));
        match short {
            Ok(value) => out.extend_from_slice(&[flag::OPTIONAL, self.kind, value]),
            Err(_) => {
                out.extend_from_slice(&[flag::OPTIONAL | flag::EXTENDED, self.kind]);
                out.extend_from_slice(&long(value));
            }
        }
        out.extend_from_slice(&self.head);
        write(routes, with_id, out);
        out.extend_from_slice(common);
    }
}

/// Cuts routes into pieces that take at most `room` octets, each with its length in octets.
fn batches<T: Into<Nlri> + Copy>(
    mut routes: &[T],
    room: usize,
    with_id: bool,
) -> impl Iterator<Item = (&[T], usize)> {
    std::iter::from_fn(move || {
        let mut length = 0;
        let mut count = 0;
        for route in routes {
            let more = length + nlri::encoded_length((*route).into().prefix, with_id);
            if more > room {
                break;
            }
            length = more;
            count += 1;
        }
        let (batch, rest) = routes.split_at_checked(count)?;
        routes = rest;
        (count > 0).then_some((batch, length))
    })
}

fn write<T: Into<Nlri> + Copy>(routes: &[T], with_id: bool, out: &mut Vec<u8>) {
    for route in routes {
        nlri::encode((*route).into(), with_id, out);
    }
}
