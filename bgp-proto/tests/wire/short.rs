//! NOTIFICATIONs and ROUTE-REFRESHes beside two others. `docs/bgp-oracles.md` explains where they differ.

use std::collections::BTreeMap;

use bytes::Bytes;
use netgauze_bgp_pkt::{
    notification::BgpNotificationMessage, route_refresh::BgpRouteRefreshMessage,
};
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFrom};
use rustbgpd_wire::{
    NotificationMessage, RouteRefreshMessage, notification::extract_shutdown_communication,
};
use twill_bgp_proto::wire::{
    Notification, RouteRefresh, Session, Text, decode_route_refresh, encode_notification, fuzz,
};
use twill_types::Family;

use crate::messages::{Random, damage};

/// The rows of the table that are about these messages.
pub(crate) const ROWS: [&str; 6] = [
    "netgauze-notification",
    "rustbgpd-refresh-longer",
    "rustbgpd-refresh-ignored",
    "netgauze-refresh-refused",
    "netgauze-refresh-longer",
    "netgauze-refresh-ignored",
];

type Explained = BTreeMap<&'static str, usize>;

const fn count() -> usize {
    if cfg!(debug_assertions) { 50_000 } else { 500_000 }
}

/// A reason of any code, with what goes with it, or with anything.
fn notification(random: &mut Random) -> Vec<u8> {
    let mut body = vec![random.octet() % 10, random.octet() % 13];
    if random.one_in(3) {
        body = vec![6, random.pick(&[2, 4, 9])];
        if body[1] == 9 && !random.one_in(8) {
            body.extend([random.pick(&[6, 6, 6, 3]), random.pick(&[2, 4, 9, 1])]);
        }
        let text: &[&[u8]] =
            &[b"", b"\x00", b"\x05hello", b"\x06\xc3\xbcber ", b"\x02\xff\xff", b"\x09cut"];
        body.extend_from_slice(random.pick(text));
    } else {
        body.extend((0..random.below(9)).map(|_| random.octet()).collect::<Vec<_>>());
    }
    body
}

/// What a text is, as both can say it: none, one, or nothing that can be read.
fn text(notification: &Notification) -> Option<Result<String, ()>> {
    match notification.text() {
        Text::None => None,
        Text::Text(text) => Some(Ok(text.to_owned())),
        Text::Malformed(_) => Some(Err(())),
    }
}

fn compare_notification(body: &[u8], explained: &mut Explained) {
    let ours = Notification::decode(body);
    let theirs = NotificationMessage::decode(&mut Bytes::copy_from_slice(body), body.len());
    let theirs = theirs.unwrap_or_else(|error| panic!("{error}: {body:02x?}"));
    assert_eq!(
        (ours.code, ours.subcode, ours.data.as_slice()),
        (theirs.code.as_u8(), theirs.subcode, &theirs.data[..]),
        "{body:02x?}"
    );
    let said = match extract_shutdown_communication(&theirs) {
        // A length of 0 is a text of nothing to them.
        Ok(None | Some("")) => None,
        Ok(Some(text)) => Some(Ok(text.to_owned())),
        // A Hard Reset that gives no reason has no text.
        Err(_) if theirs.subcode == 9 && theirs.data.len() < 2 => None,
        Err(_) => Some(Err(())),
    };
    assert_eq!(text(&ours), said, "{body:02x?}");
    match BgpNotificationMessage::parse(&mut SliceReader::new(body)) {
        Ok(read) => {
            let mut octets = Vec::new();
            read.write(&mut octets).unwrap();
            assert_eq!(encode_notification(&ours)[19..], octets[..], "{body:02x?}");
        }
        Err(_) => *explained.entry("netgauze-notification").or_default() += 1,
    }
}

#[test]
fn notifications_are_read_alike() {
    let mut random = Random::new(4486);
    let (mut explained, mut texts) = (Explained::new(), 0);
    for index in 0..count() {
        let mut body = notification(&mut random);
        if index % 3 == 0 {
            damage(&mut random, &mut body);
        }
        // Shorter ones do not get through the header.
        if body.len() < 2 {
            continue;
        }
        compare_notification(&body, &mut explained);
        texts += usize::from(Notification::decode(&body).shutdown_text().is_some());
    }
    println!("{texts} texts, {explained:?}");
    let all = texts > 1000 && explained.contains_key("netgauze-notification");
    assert!(all, "{texts} texts, {explained:?}");
}

fn refresh(random: &mut Random) -> Vec<u8> {
    let [high, low]: [u8; 2] = random.pick(&[[0, 1], [0, 2], [0, 1], [0, 2], [0, 25], [0, 77]]);
    let mut body = vec![high, low, random.pick(&[0, 0, 1, 2, 1, 2, 3, 255])];
    body.push(random.pick(&[1, 1, 1, 1, 2, 128, 99]));
    body
}

/// Both read a message of four octets alike. What of it means something here is ours to say.
fn compare_refresh(body: &[u8], session: &Session) -> Vec<&'static str> {
    let ours = decode_route_refresh(body, session);
    let theirs = RouteRefreshMessage::decode(&mut Bytes::copy_from_slice(body), body.len());
    let family = |afi: u16, safi: u8| match (afi, safi) {
        (1, 1) => Some(Family::V4),
        (2, 1) => Some(Family::V6),
        _ => None,
    };
    // What a reader of these fields has to make of them (RFC 2918 section 4, RFC 7313 section 5).
    let meant = |afi, subtype, safi| {
        let known = subtype == 0 || subtype <= 2 && session.enhanced_refresh;
        let family = family(afi, safi).filter(|family| known && session.has(*family));
        family.map(|family| RouteRefresh { family, subtype })
    };
    assert!(body.len() == 4 || !matches!(ours, Ok(Some(_))), "{session:?} {body:02x?}");
    let mut rows = Vec::new();
    match (&ours, &theirs) {
        // Read, or no outbound route filter.
        (_, _) if body.len() > 4 => rows.push("rustbgpd-refresh-longer"),
        (Ok(ours), Ok(theirs)) => {
            let meant = meant(theirs.afi_raw, theirs.subtype_raw, theirs.safi_raw);
            assert_eq!(*ours, meant, "{session:?} {body:02x?}");
            rows.extend(ours.is_none().then_some("rustbgpd-refresh-ignored"));
        }
        (Ok(ours), Err(error)) => {
            // One of another subtype may have another length, and means nothing.
            assert!(ours.is_none() && body.len() == 3, "{error}: {body:02x?}");
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(_)) => panic!("{error}: {body:02x?}"),
    }
    match (&ours, BgpRouteRefreshMessage::parse(&mut SliceReader::new(body))) {
        (_, Ok(_)) if body.len() > 4 => rows.push("netgauze-refresh-longer"),
        (Ok(ours), Ok(theirs)) => {
            let afi: u16 = theirs.address_type().address_family().into();
            let safi: u8 = theirs.address_type().subsequent_address_family().into();
            let meant = meant(afi, theirs.operation_type().into(), safi);
            assert_eq!(*ours, meant, "{session:?} {body:02x?}");
            rows.extend(ours.is_none().then_some("netgauze-refresh-ignored"));
        }
        (Ok(ours), Err(error)) => {
            assert_eq!(*ours, None, "{error}: {body:02x?}");
            rows.push("netgauze-refresh-refused");
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(_)) => panic!("{error}: {body:02x?}"),
    }
    rows
}

#[test]
fn refreshes_are_read_alike() {
    let mut random = Random::new(7313);
    let (mut explained, mut meant) = (Explained::new(), 0);
    for index in 0..count() {
        let session = fuzz::session([random.octet(), random.octet()]);
        let mut body = refresh(&mut random);
        if index % 3 == 0 {
            damage(&mut random, &mut body);
        }
        for row in compare_refresh(&body, &session) {
            *explained.entry(row).or_default() += 1;
        }
        meant += usize::from(matches!(decode_route_refresh(&body, &session), Ok(Some(_))));
    }
    println!("{meant} mean something, {explained:?}");
    assert!(meant > 1000, "{meant}");
    let mut rows = ROWS.iter().filter(|row| row.contains("refresh"));
    assert_eq!(rows.find(|row| !explained.contains_key(*row)), None, "nothing needs this one");
}
