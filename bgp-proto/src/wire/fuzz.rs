//! Targets for fuzzing: plain functions over bytes, one for each kind of message.
//!
//! Each of them takes whatever bytes there are, and panics if the codec breaks a promise: what was
//! decoded and encoded again has to decode to the same.

use super::{
    AddPath, Frame, MAX_EXTENDED, MAX_MESSAGE, MessageType, Notification, Packed, Session,
    UpdateIn, decode_open, decode_route_refresh, decode_update, encode_notification, encode_open,
    encode_route_refresh, encode_updates, encode_withdrawals, frame,
};

/// The session that two octets ask for, one bit for each thing negotiated. All combinations can
/// be had.
pub fn session(octets: [u8; 2]) -> Session {
    let bits = u16::from_be_bytes(octets);
    let bit = |n: u16| bits & (1 << n) != 0;
    Session {
        four_octet_as: !bit(0),
        send_extended: bit(1),
        receive_extended: bit(1),
        extended_next_hop: bit(2),
        enhanced_refresh: bit(3),
        ipv4: !bit(4),
        ipv6: !bit(5),
        add_path: AddPath {
            receive_ipv4: bit(6),
            receive_ipv6: bit(7),
            send_ipv4: bit(8),
            send_ipv6: bit(9),
        },
        internal: bit(10),
        as_sets: !bit(11),
        aigp: bit(12),
    }
}

/// A stream of bytes, cut into messages, each of them decoded. The first two octets are the
/// session.
pub fn stream(input: &[u8]) {
    let Some((head, mut bytes)) = input.split_first_chunk::<2>() else {
        return;
    };
    let session = session(*head);
    while let Ok(Some(Frame { kind, body, length })) = frame(bytes, session.longest_received()) {
        message(kind, body, &session);
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

fn message(kind: MessageType, body: &[u8], session: &Session) {
    match kind {
        MessageType::Open => open(body),
        MessageType::Update => {
            update_of(body, session);
        }
        MessageType::Notification => notification(body),
        MessageType::Keepalive => assert!(body.is_empty(), "a KEEPALIVE has no body"),
        MessageType::RouteRefresh => refresh_of(body, session),
    }
}

/// The body of an OPEN.
pub fn open(body: &[u8]) {
    let Ok(open) = decode_open(body) else {
        return;
    };
    let Some(again) = whole(&encode_open(&open), MessageType::Open, MAX_MESSAGE) else {
        panic!("an OPEN cannot be read again: {open:?}");
    };
    assert_eq!(decode_open(&again).as_ref(), Ok(&open), "an OPEN has changed");
    let _ = open.role();
    let _ = Session::negotiate(&open.capabilities, &open, true);
}

/// The body of a NOTIFICATION.
pub fn notification(body: &[u8]) {
    let notification = Notification::decode(body);
    let _ = notification.to_string();
    let again = whole(&encode_notification(&notification), MessageType::Notification, MAX_MESSAGE);
    let again = again.map(|body| Notification::decode(&body));
    if notification.data.len() <= MAX_MESSAGE - 21 {
        assert_eq!(again.as_ref(), Some(&notification), "a NOTIFICATION has changed");
    }
}

/// Two octets of session and the body of a ROUTE-REFRESH.
pub fn refresh(input: &[u8]) {
    if let Some((head, body)) = input.split_first_chunk::<2>() {
        refresh_of(body, &session(*head));
    }
}

fn refresh_of(body: &[u8], session: &Session) {
    let Ok(Some(refresh)) = decode_route_refresh(body, session) else {
        return;
    };
    let again = whole(&encode_route_refresh(refresh), MessageType::RouteRefresh, MAX_MESSAGE);
    assert_eq!(again.as_deref(), Some(body), "a ROUTE-REFRESH has changed");
}

/// Two octets of session and the body of an UPDATE.
pub fn update(input: &[u8]) {
    if let Some((head, body)) = input.split_first_chunk::<2>() {
        update_of(body, &session(*head));
    }
}

/// Decodes the body of an UPDATE, and if it was in order, encodes it and decodes that.
pub fn update_of(body: &[u8], session: &Session) -> Option<UpdateIn> {
    let update = decode_update(body, session).ok()?;
    // What we send has path identifiers as what we receive, so that both are the same.
    let AddPath { receive_ipv4, receive_ipv6, .. } = session.add_path;
    let add_path = AddPath { send_ipv4: receive_ipv4, send_ipv6: receive_ipv6, ..session.add_path };
    let session = Session { add_path, ..*session };
    for (attributes, routes) in &update.announced {
        let kept = Packed::new(attributes).unpack();
        assert_eq!(kept.as_ref(), Some(attributes), "attributes have changed in the table");
        let all: Vec<_> = routes.iter().collect();
        let Some(family) = all.first().map(|first| first.prefix.family()) else {
            panic!("a group without a route: {update:?}");
        };
        let mut bytes = Vec::new();
        // IPv4 over IPv4 may have come by MP_REACH_NLRI and been longer so.
        if !encode_updates(attributes, family, &all, &session, &mut bytes) {
            continue;
        }
        let mut back = Vec::new();
        for again in bodies(&bytes, &session) {
            let Ok(again) = decode_update(&again, &session) else {
                panic!("an UPDATE cannot be read again: {update:?}");
            };
            assert!(again.faults.is_empty(), "{:?} of {update:?}", again.faults);
            for (again, routes) in again.announced {
                assert_eq!(&again, attributes, "attributes have changed");
                back.extend(routes);
            }
        }
        assert_eq!(back, all, "routes have changed");
    }
    withdrawals(&update, &session);
    Some(update)
}

fn withdrawals(update: &UpdateIn, session: &Session) {
    use twill_types::Family;
    for family in [Family::V4, Family::V6] {
        let all: Vec<_> =
            update.withdrawn.iter().filter(|nlri| nlri.prefix.family() == family).collect();
        let mut bytes = Vec::new();
        encode_withdrawals(family, &all, session, &mut bytes);
        let mut back = Vec::new();
        for again in bodies(&bytes, session) {
            match decode_update(&again, session) {
                Ok(again) => back.extend(again.withdrawn),
                Err(reset) => panic!("{reset} in the withdrawal of {all:?}"),
            }
        }
        assert_eq!(back, all, "withdrawals have changed");
    }
}

/// The bodies of the UPDATEs of a run.
fn bodies(mut bytes: &[u8], session: &Session) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Ok(Some(frame)) = frame(bytes, session.longest_received()) {
        assert_eq!(frame.kind, MessageType::Update, "not an UPDATE");
        all.push(frame.body.to_vec());
        bytes = bytes.get(frame.length..).unwrap_or_default();
    }
    assert!(bytes.is_empty(), "{} octets are no message", bytes.len());
    all
}

/// The body of the one message that the bytes are.
fn whole(bytes: &[u8], kind: MessageType, max: usize) -> Option<Vec<u8>> {
    let max = max.min(MAX_EXTENDED);
    let frame = frame(bytes, max).ok().flatten()?;
    (frame.kind == kind && frame.length == bytes.len()).then(|| frame.body.to_vec())
}
