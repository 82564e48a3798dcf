#![allow(clippy::indexing_slicing, reason = "a test ends with the first surprise")]

use proptest::prelude::*;
use twill_types::{Asn, Prefix};

use super::*;

fn session(family: Family) -> Session {
    Session {
        four_octet_as: true,
        ipv4: family == Family::V4,
        ipv6: family == Family::V6,
        ..Session::default()
    }
}

fn attributes(next_hop: &str) -> PathAttributes {
    let path = AsPath::default().prepended(Asn::new(4_200_000_000).unwrap());
    PathAttributes::new(Origin::Igp, path, next_hop.parse().unwrap())
}

/// The messages of an UPDATE that announces these.
fn announce(family: Family, next_hop: &str, prefixes: &[Prefix]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let session = session(family);
    assert!(encode_updates(&attributes(next_hop), family, prefixes, &session, &mut bytes));
    bytes
}

/// The bodies of a run of messages, none longer than allowed.
fn bodies(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = frame(bytes, MAX_MESSAGE).unwrap() {
        all.push(bytes[HEADER_LENGTH..frame.length].to_vec());
        bytes = &bytes[frame.length..];
    }
    assert!(bytes.is_empty(), "half a message at the end");
    all
}

#[test]
fn a_keepalive_is_a_header() {
    let mut expected = vec![0xff; 16];
    expected.extend([0, 19, 4]);
    assert_eq!(encode_keepalive(), expected);
}

/// RFC 4271 section 6.1: subcode, and the field in question as data.
#[test]
fn broken_headers_have_their_notification() {
    let mut marker = encode_keepalive();
    marker[3] = 0;
    let mut short = encode_keepalive();
    short[17] = 18;
    let mut long = encode_keepalive();
    (long[16], long[17]) = (0x10, 0x01);
    let mut kind = encode_keepalive();
    kind[18] = 9;
    for (bytes, subcode) in [(marker, 1), (short, 2), (long, 2), (kind, 3)] {
        let error = frame(&bytes, MAX_MESSAGE).map(|frame| frame.map(|f| f.length)).unwrap_err();
        assert_eq!((error.code, error.subcode), (1, subcode), "{bytes:?}");
    }
}

#[test]
fn the_end_of_rib_of_each_family_is_read_as_such() {
    for family in [Family::V4, Family::V6] {
        let mut bytes = Vec::new();
        encode_end_of_rib(family, &mut bytes);
        let update = decode_update(&bodies(&bytes)[0], &session(family)).unwrap();
        assert_eq!(update.end_of_rib, Some(family));
    }
}

#[test]
fn a_thousand_prefixes_come_back_out_of_few_messages() {
    for (family, next_hop, pool) in
        [(Family::V4, "192.0.2.1", "10.0.0.0/14"), (Family::V6, "2001:db8::1", "fd00::/54")]
    {
        let pool: Prefix = pool.parse().unwrap();
        let length = if family == Family::V4 { 24 } else { 64 };
        let prefixes: Vec<Prefix> =
            (0..1000).map(|index| pool.subnet(length, index).unwrap()).collect();
        let bodies = bodies(&announce(family, next_hop, &prefixes));
        assert!(bodies.len() < 5, "{} messages", bodies.len());
        let mut back = Vec::new();
        for body in bodies {
            let update = decode_update(&body, &session(family)).unwrap();
            assert!(update.faults.is_empty());
            for (attributes, routes) in update.announced {
                assert_eq!(attributes.next_hop.to_string(), next_hop);
                assert!(attributes.as_path.contains(Asn::new(4_200_000_000).unwrap()));
                back.extend(routes.prefixes());
            }
        }
        back.sort();
        assert_eq!(back, prefixes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed on the way: an answer, and never a panic.
    #[test]
    fn damaged_updates_are_answered(
        six in any::<bool>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (family, next_hop, prefix) = match six {
            false => (Family::V4, "192.0.2.1", "10.0.0.0/24"),
            true => (Family::V6, "2001:db8::1", "fd00::/64"),
        };
        let mut body = bodies(&announce(family, next_hop, &[prefix.parse().unwrap()])).remove(0);
        for (at, value) in flips {
            let at = at.index(body.len());
            body[at] ^= value;
        }
        let _ = decode_update(&body, &session(family));
        body.truncate(cut.index(body.len() + 1));
        let _ = decode_update(&body, &session(family));
        let _ = decode_open(&body);
        let _ = decode_route_refresh(&body, &session(family));
    }
}
