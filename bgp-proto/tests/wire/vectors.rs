//! What has broken other codecs, each input by itself: crashes, endless loops, wrong readings.

use twill_bgp_proto::wire::{
    AddPath, AsPath, Capability, Disposition, MAX_MESSAGE, Notification, Origin, PathAttributes,
    Role, Session, UpdateIn, decode_open, decode_update, encode_updates, frame,
};
use twill_types::{Asn, Family, Prefix};

fn session() -> Session {
    Session { four_octet_as: true, ipv4: true, ipv6: true, as_sets: true, ..Session::default() }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(octet).collect()
}

/// An UPDATE with these attributes and this NLRI field.
fn body(attributes: &str, nlri: &str) -> Vec<u8> {
    let (attributes, nlri) = (hex(attributes), hex(nlri));
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    [&[0, 0], &length[..], &attributes, &nlri].concat()
}

fn decode(attributes: &str, nlri: &str) -> Result<UpdateIn, Notification> {
    decode_update(&body(attributes, nlri), &session()).map_err(Notification::from)
}

const REST: &str = "40010100 4002060201 0000fc00 400304c0000201";

/// A family that nobody knows crashed bgp-rs ("unimplemented").
#[test]
fn withdrawals_of_an_unknown_family_are_ignored() {
    let update = decode("800f04 0019 01 00", "").unwrap();
    assert_eq!(update.disposition(), Some(Disposition::AfiSafiDisable));
    assert_eq!(update.end_of_rib, None);
    assert!(update.withdrawn.is_empty() && update.announced.is_empty());
}

/// A valid MP_REACH_NLRI of BGP-LS crashed bgp-rs.
#[test]
fn link_state_routes_are_ignored() {
    let update = decode(&format!("800e0b 4004 47 04 01020304 00 0000 {REST}"), "180a0000").unwrap();
    assert_eq!(update.disposition(), Some(Disposition::AfiSafiDisable));
    assert_eq!(update.announced[0].1.len(), 1);
}

/// A next hop of 251 octets and more overflowed an octet in bgp-rs.
#[test]
fn a_long_next_hop_is_no_next_hop() {
    for length in 251..=255u8 {
        let value = format!("0002 01 {length:02x} {} 00", "20".repeat(length.into()));
        let attribute = format!("900e {:04x} {value}", usize::from(length) + 5);
        let error = decode(&format!("{attribute} {REST}"), "").unwrap_err();
        assert_eq!((error.code, error.subcode), (3, 9));
        assert_eq!(error.data, hex(&attribute));
    }
}

/// One octet behind the last segment kept zettabgp busy until memory was out.
#[test]
fn a_path_with_an_octet_too_many_ends() {
    let update = decode("40010100 400207 02 01 0000fc00 00 400304c0000201", "180a0000").unwrap();
    assert_eq!(update.disposition(), Some(Disposition::TreatAsWithdraw));
    assert_eq!(update.withdrawn.len(), 1);
}

/// Half a community crashed zettabgp.
#[test]
fn half_a_community_withdraws() {
    let update = decode(&format!("{REST} c00802 fc00"), "180a0000").unwrap();
    assert_eq!(update.disposition(), Some(Disposition::TreatAsWithdraw));
}

/// An empty multiprotocol capability crashed routecore.
#[test]
fn an_empty_multiprotocol_capability_is_kept_as_it_is() {
    let open = decode_open(&hex("04 fc00 005a 0a000001 04 0202 0100")).unwrap();
    assert_eq!(open.capabilities, [Capability::Unknown { code: 1, value: vec![] }]);
    assert!(open.families().is_empty());
}

/// The name of a host made zettabgp refuse the whole OPEN, and crashed GoBGP if it was too long.
#[test]
fn a_host_name_is_read_and_a_broken_one_does_no_harm() {
    let open = decode_open(&hex("04 fc00 005a 0a000001 08 0206 4904 01 61 01 62")).unwrap();
    let (host, domain) = ("a".to_owned(), "b".to_owned());
    assert_eq!(open.capabilities, [Capability::Fqdn { host, domain }]);
    let open = decode_open(&hex("04 fc00 005a 0a000001 06 0204 4902 ff 61")).unwrap();
    assert!(matches!(open.capabilities[..], [Capability::Unknown { code: 73, .. }]));
}

/// bgp-rs wrote AS numbers below 65536 in two octets, whatever was negotiated; zettabgp wrote a
/// sequence as a set.
#[test]
fn a_path_of_small_numbers_has_four_octets_each() {
    let path = AsPath::sequence([64512, 65001].map(|asn| Asn::new(asn).unwrap()));
    let attributes = PathAttributes::new(Origin::Igp, path, "192.0.2.1".parse().unwrap());
    let prefixes = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"];
    let prefixes = prefixes.map(|prefix| prefix.parse::<Prefix>().unwrap());
    let mut out = Vec::new();
    assert!(encode_updates(&attributes, Family::V4, &prefixes, &session(), &mut out));
    let path = hex("4002 0a 0202 0000fc00 0000fde9");
    assert!(out.windows(path.len()).any(|window| window == path), "{out:02x?}");
    let old = Session { four_octet_as: false, ..session() };
    let mut out = Vec::new();
    assert!(encode_updates(&attributes, Family::V4, &prefixes, &old, &mut out));
    let path = hex("4002 06 0202 fc00 fde9");
    assert!(out.windows(path.len()).any(|window| window == path), "{out:02x?}");
}

/// bgp-rs guessed path identifiers from the bytes. These are right both ways.
#[test]
fn path_identifiers_are_negotiated_and_not_guessed() {
    let field = body(REST, "00 00 00 00 08 0a");
    let plain = decode_update(&field, &session()).unwrap();
    let all: Vec<String> = plain.announced[0].1.iter().map(|nlri| nlri.to_string()).collect();
    assert_eq!(all, ["0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0", "10.0.0.0/8"]);
    let add_path = AddPath { receive_ipv4: true, ..AddPath::default() };
    let field = body(REST, "00 00 00 07 08 0a");
    let with_id = decode_update(&field, &Session { add_path, ..session() }).unwrap();
    let all: Vec<String> = with_id.announced[0].1.iter().map(|nlri| nlri.to_string()).collect();
    assert_eq!(all, ["10.0.0.0/8 path 7"]);
}

/// zettabgp read this as the IPv4 next hop 32.1.13.184.
#[test]
fn an_ipv6_next_hop_of_ipv4_routes_stays_one() {
    let attribute = "800e18 0001 01 10 20010db8000000000000000000000001 00 180a00";
    let attributes = format!("{} {}", attribute.replace("800e18", "800e19"), "00 40010100 400200");
    let session = Session { extended_next_hop: true, ..session() };
    let update = decode_update(&body(&attributes, ""), &session).unwrap();
    assert_eq!(update.announced[0].0.next_hop.to_string(), "2001:db8::1");
    assert_eq!(update.announced[0].1.prefixes().next().unwrap().to_string(), "10.0.0.0/24");
}

/// netgauze took 3 for a client of a route server; zettabgp and bgpkit lost the N bit.
#[test]
fn roles_and_restart_bits_have_the_right_numbers() {
    let open =
        decode_open(&hex("04 fc00 005a 0a000001 0d 020b 0901 03 4006 4078 0001 01 80")).unwrap();
    assert_eq!(open.role(), Ok(Some(Role::Customer)));
    let restart = open.graceful_restart().unwrap();
    assert!(restart.notification && !restart.restarting && restart.families[0].forwarding);
    assert_eq!(restart.restart_time, 120);
}

/// bgp-rs took any marker, and a KEEPALIVE with a body, as BIRD does.
#[test]
fn markers_and_keepalives_are_checked() {
    let mut keepalive = [vec![0xff; 16], vec![0, 19, 4]].concat();
    assert!(frame(&keepalive, MAX_MESSAGE).unwrap().is_some());
    keepalive[15] = 0;
    assert_eq!(frame(&keepalive, MAX_MESSAGE).unwrap_err().subcode, 1);
    let longer = [vec![0xff; 16], vec![0, 20, 4, 0]].concat();
    assert_eq!(frame(&longer, MAX_MESSAGE).unwrap_err().subcode, 2);
}

/// After an attribute error bgp-rs kept the route without the attribute, the failure that RFC 7606
/// was written against.
#[test]
fn a_route_does_not_lose_a_broken_attribute() {
    let update = decode(&format!("{REST} 800403 000001"), "180a0000").unwrap();
    assert!(update.announced.is_empty());
    assert_eq!(update.withdrawn.len(), 1);
}
