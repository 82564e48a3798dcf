//! Both directions against each other, and the rules that show only in what is written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*};
use twill_bgp_proto::wire::{
    AddPath, AddPathFamily, Aggregator, AsPath, Capability, Community, GracefulRestart,
    GracefulRestartFamily, HEADER_LENGTH, LargeCommunity, LongLivedFamily, NextHopEncoding, Nlri,
    Notification, Open, Origin, Partial, PathAttributes, RawAttribute, Role, RouteRefresh, Segment,
    Session, Text, cease, code, decode_open, decode_route_refresh, decode_update,
    encode_notification, encode_open, encode_route_refresh, encode_updates, encode_withdrawals,
    frame, fuzz,
};
use twill_types::{Asn, Family, Prefix};

fn asn() -> impl Strategy<Value = Asn> {
    prop_oneof![1u32..70_000, 4_200_000_000u32..=u32::MAX].prop_map(|asn| Asn::new(asn).unwrap())
}

fn path() -> impl Strategy<Value = AsPath> {
    let segment = prop_oneof![
        4 => vec(asn(), 1..6).prop_map(Segment::Sequence),
        1 => vec(asn(), 300..400).prop_map(Segment::Sequence),
        1 => vec(asn(), 1..6).prop_map(Segment::Set),
    ];
    vec(segment, 0..4).prop_map(AsPath::new)
}

fn global() -> impl Strategy<Value = Ipv6Addr> {
    any::<u64>().prop_map(|low| Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(low) << 8 | 1))
}

fn sorted<T: Ord + std::fmt::Debug>(
    one: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<T>> {
    vec(one, 0..40).prop_map(|mut all| {
        all.sort();
        all.dedup();
        all
    })
}

prop_compose! {
    /// What a session of this kind can carry.
    fn attributes(v6: bool, session: Session)(
        origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        as_path in path(),
        (global, link_local, host) in (global(), option::of(any::<u64>()), any::<u16>()),
        (med, local_pref, aigp) in (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u64>>()),
        atomic_aggregate in any::<bool>(),
        aggregator in option::of((asn(), any::<u32>())),
        communities in sorted(any::<u32>().prop_map(Community)),
        extended_communities in sorted(any::<[u8; 8]>()),
        large_communities in sorted(any::<[u32; 3]>().prop_map(LargeCommunity)),
        (originator, clusters) in (option::of(any::<u32>()), vec(any::<u32>(), 0..5)),
        only_to_customer in any::<Option<u32>>(),
        mut unknown in vec((36u8..=255, vec(any::<u8>(), 0..300)), 0..4),
        partial in any::<[bool; 5]>(),
    ) -> PathAttributes {
        let next_hop: IpAddr =
            if v6 { global.into() } else { Ipv4Addr::from_bits(0x0a00_0000 | u32::from(host)).into() };
        let mut all = PathAttributes::new(origin, as_path, next_hop);
        if v6 {
            let local = |low| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(low));
            all.link_local = link_local.map(local);
        }
        all.med = med;
        if session.internal {
            all.local_pref = local_pref;
            all.originator_id = originator.map(Ipv4Addr::from_bits);
            all.cluster_list = clusters.into_iter().map(Ipv4Addr::from_bits).collect();
        }
        all.aigp = aigp.filter(|_| session.aigp);
        all.atomic_aggregate = atomic_aggregate;
        all.aggregator = aggregator
            .map(|(asn, address)| Aggregator { asn, address: Ipv4Addr::from_bits(address) });
        all.communities = communities;
        all.extended_communities = extended_communities;
        all.large_communities = large_communities;
        all.only_to_customer = only_to_customer;
        unknown.sort();
        unknown.dedup_by_key(|(kind, _)| *kind);
        all.unknown =
            unknown.into_iter().map(|(kind, value)| RawAttribute { kind, value }).collect();
        all.partial = partials(&all, partial);
        all
    }
}

/// Of those that are there.
fn partials(all: &PathAttributes, wanted: [bool; 5]) -> Partial {
    let there = [
        (7, all.aggregator.is_some()),
        (8, !all.communities.is_empty()),
        (16, !all.extended_communities.is_empty()),
        (32, !all.large_communities.is_empty()),
        (35, all.only_to_customer.is_some()),
    ];
    let mut partial = Partial::default();
    for ((kind, there), wanted) in there.into_iter().zip(wanted) {
        if there && wanted {
            partial.insert(kind);
        }
    }
    partial
}

fn routes(v6: bool, with_id: bool) -> impl Strategy<Value = Vec<Nlri>> {
    let one = (any::<u64>(), 0u8..=128, any::<u32>()).prop_map(move |(bits, length, id)| {
        let prefix = if v6 {
            let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(bits) << 32);
            Prefix::masked(address.into(), length)
        } else {
            let [_, low @ ..] = bits.to_be_bytes();
            let address = Ipv4Addr::new(10, low[0], low[1], low[2]);
            Prefix::masked(address.into(), length % 33)
        };
        Nlri { prefix: prefix.unwrap(), path_id: if with_id { id } else { 0 } }
    });
    prop_oneof![4 => vec(one.clone(), 1..20), 1 => vec(one, 900..1500)]
}

/// A session that sends as it receives, its family, and what goes over it.
fn exchange() -> impl Strategy<Value = (Session, Family, PathAttributes, Vec<Nlri>)> {
    (any::<[u8; 2]>(), any::<bool>(), any::<bool>()).prop_flat_map(|(bits, v6, over_v6)| {
        let mut session = Session { ipv4: true, ipv6: true, as_sets: true, ..fuzz::session(bits) };
        session.add_path.send_ipv4 = session.add_path.receive_ipv4;
        session.add_path.send_ipv6 = session.add_path.receive_ipv6;
        let family = if v6 { Family::V6 } else { Family::V4 };
        let v6_next_hop = v6 || (over_v6 && session.extended_next_hop);
        (
            Just(session),
            Just(family),
            attributes(v6_next_hop, session),
            routes(v6, session.add_path.sends(family)),
        )
    })
}

/// The bodies of a run of messages, each as long as the session allows and no longer.
fn bodies(mut bytes: &[u8], session: &Session) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = frame(bytes, session.longest_sent()).unwrap() {
        all.push(frame.body.to_vec());
        bytes = &bytes[frame.length..];
    }
    assert!(bytes.is_empty(), "half a message at the end");
    all
}

/// The type codes of an UPDATE's attributes, in their order.
fn kinds(body: &[u8]) -> Vec<u8> {
    let length = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let mut at = 4 + length(0);
    let end = at + length(at - 2);
    let mut kinds = Vec::new();
    while at < end {
        kinds.push(body[at + 1]);
        let long = body[at] & 0x10 != 0;
        at += if long { 4 + length(at + 2) } else { 3 + usize::from(body[at + 2]) };
    }
    kinds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// decode(encode(x)) == x, in messages of the right size and the right order.
    #[test]
    fn what_is_announced_comes_back((session, family, attributes, routes) in exchange()) {
        let mut bytes = Vec::new();
        let fits = encode_updates(&attributes, family, &routes, &session, &mut bytes);
        prop_assume!(fits);
        let mut back = Vec::new();
        let bodies = bodies(&bytes, &session);
        for body in &bodies {
            let update = decode_update(body, &session).unwrap();
            prop_assert_eq!(&update.faults, &[]);
            prop_assert!(update.withdrawn.is_empty() && update.end_of_rib.is_none());
            for (again, routes) in update.announced {
                prop_assert_eq!(&again, &attributes);
                back.extend(routes);
            }
            let mut kinds = kinds(body);
            // RFC 7606 section 5.1, RFC 4271 appendix F.3.
            if kinds[0] == 14 {
                kinds.remove(0);
            }
            prop_assert!(kinds.is_sorted(), "{:?}", kinds);
        }
        // Packed: the longest route, behind an attribute's length of two octets, would not have
        // fitted the message before.
        for pair in bodies.windows(2) {
            prop_assert!(pair[0].len() + HEADER_LENGTH + 21 + 1 > session.longest_sent());
        }
        prop_assert_eq!(back, routes);
    }

    #[test]
    fn what_is_withdrawn_comes_back((session, family, _, routes) in exchange()) {
        let mut bytes = Vec::new();
        encode_withdrawals(family, &routes, &session, &mut bytes);
        let mut back = Vec::new();
        for body in bodies(&bytes, &session) {
            let update = decode_update(&body, &session).unwrap();
            prop_assert_eq!(&update.faults, &[]);
            prop_assert!(update.end_of_rib.is_none());
            back.extend(update.withdrawn);
        }
        prop_assert_eq!(back, routes);
    }

    #[test]
    fn an_open_comes_back(
        asn in asn(),
        hold_time in prop_oneof![Just(0), 3u16..],
        identifier in 1u32..,
        mut capabilities in vec(capability(), 0..60),
    ) {
        prop_assume!(asn != Asn::TRANS);
        if asn.get() > 65535 {
            capabilities.push(Capability::FourOctetAs(asn));
        }
        let identifier = Ipv4Addr::from_bits(identifier);
        let open = Open { asn, hold_time, identifier, capabilities };
        let bytes = encode_open(&open);
        let body = frame(&bytes, 4096).unwrap().unwrap().body;
        prop_assert_eq!(decode_open(body), Ok(open));
    }

    /// encode(decode(x)) says the same as x: the fuzz target holds it to that.
    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..300)) {
        fuzz::open(&bytes);
        fuzz::update(&bytes);
        fuzz::notification(&bytes);
        fuzz::refresh(&bytes);
        fuzz::stream(&bytes);
    }
}

fn capability() -> impl Strategy<Value = Capability> {
    let family = || prop_oneof![Just(Family::V4), Just(Family::V6)];
    let restart = (any::<[bool; 2]>(), 0u16..4096, vec((family(), any::<bool>()), 0..3)).prop_map(
        |([restarting, notification], restart_time, families)| {
            let entry = |(family, forwarding)| GracefulRestartFamily { family, forwarding };
            let families = families.into_iter().map(entry).collect();
            Capability::GracefulRestart(GracefulRestart {
                restarting,
                notification,
                restart_time,
                families,
            })
        },
    );
    let long_lived = vec((family(), any::<bool>(), 0u32..1 << 24), 0..3).prop_map(|all| {
        let entry =
            |(family, forwarding, stale_time)| LongLivedFamily { family, forwarding, stale_time };
        Capability::LongLivedGracefulRestart(all.into_iter().map(entry).collect())
    });
    let add_path = vec((family(), 1u8..4), 0..3).prop_map(|all| {
        let entry =
            |(family, mode)| AddPathFamily { family, receive: mode & 1 != 0, send: mode & 2 != 0 };
        Capability::AddPath(all.into_iter().map(entry).collect())
    });
    let role = prop_oneof![
        Just(Role::Provider),
        Just(Role::RouteServer),
        Just(Role::RouteServerClient),
        Just(Role::Customer),
        Just(Role::Peer),
        (5u8..).prop_map(Role::Unassigned),
    ];
    prop_oneof![
        family().prop_map(Capability::MultiProtocol),
        Just(Capability::RouteRefresh),
        Just(Capability::EnhancedRouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::ExtendedNextHop(vec![NextHopEncoding::IPV4_OVER_IPV6])),
        role.prop_map(Capability::Role),
        restart,
        long_lived,
        add_path,
        ("[a-zü]{0,20}", "[a-z.]{0,20}")
            .prop_map(|(host, domain)| Capability::Fqdn { host, domain }),
        (200u8.., vec(any::<u8>(), 0..60))
            .prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

fn open(capabilities: Vec<Capability>) -> Open {
    let asn = Asn::new(64512).unwrap();
    Open { asn, hold_time: 90, identifier: Ipv4Addr::new(10, 0, 0, 1), capabilities }
}

/// RFC 7911 section 5: each direction by itself. RFC 8950 and 8654: both sides or not at all.
#[test]
fn a_session_is_what_both_sides_said() {
    let families = [Capability::MultiProtocol(Family::V4), Capability::MultiProtocol(Family::V6)];
    let path = |family, receive, send| AddPathFamily { family, receive, send };
    let ours = [
        &families[..],
        &[
            Capability::AddPath(vec![path(Family::V4, true, false), path(Family::V6, true, true)]),
            Capability::FourOctetAs(Asn::new(64512).unwrap()),
            Capability::ExtendedMessage,
        ],
    ]
    .concat();
    let theirs = [
        &families[..],
        &[
            Capability::AddPath(vec![path(Family::V4, true, true), path(Family::V6, true, false)]),
            Capability::FourOctetAs(Asn::new(64513).unwrap()),
            Capability::EnhancedRouteRefresh,
        ],
    ]
    .concat();
    let session = Session::negotiate(&ours, &open(theirs), false);
    let expected = Session {
        four_octet_as: true,
        receive_extended: true,
        ipv4: true,
        ipv6: true,
        add_path: AddPath {
            receive_ipv4: true,
            receive_ipv6: false,
            send_ipv4: false,
            send_ipv6: true,
        },
        ..Session::default()
    };
    assert_eq!(session, expected);
    // RFC 4760 section 8: nothing said is IPv4.
    let session = Session::negotiate(&families, &open(vec![]), true);
    assert_eq!(session, Session { ipv4: true, internal: true, ..Session::default() });
}

/// RFC 4724 section 3 and RFC 9494 section 4.1.
#[test]
fn the_last_restart_capability_counts_and_the_long_one_needs_it() {
    let restart = |restart_time| {
        Capability::GracefulRestart(GracefulRestart { restart_time, ..GracefulRestart::default() })
    };
    let long = LongLivedFamily { family: Family::V4, forwarding: true, stale_time: 3600 };
    let long_lived = Capability::LongLivedGracefulRestart(vec![long]);
    let both = open(vec![restart(10), long_lived.clone(), restart(20)]);
    assert_eq!(both.graceful_restart().map(|restart| restart.restart_time), Some(20));
    assert_eq!(both.long_lived_restart(), [long]);
    assert_eq!(open(vec![long_lived]).long_lived_restart(), []);
}

/// RFC 9234 section 4.2.
#[test]
fn roles_fit_or_are_refused_with_2_11() {
    let with = |roles: &[Role]| open(roles.iter().map(|role| Capability::Role(*role)).collect());
    for (ours, theirs, strict, good) in [
        (Role::Customer, &[Role::Provider][..], true, true),
        (Role::Peer, &[Role::Peer], true, true),
        (Role::RouteServerClient, &[Role::RouteServer], true, true),
        (Role::Customer, &[Role::Customer], false, false),
        (Role::Peer, &[Role::Unassigned(9)], false, false),
        (Role::Peer, &[], false, true),
        (Role::Peer, &[], true, false),
        (Role::Peer, &[Role::Peer, Role::Peer], true, true),
        (Role::Peer, &[Role::Peer, Role::Customer], false, false),
    ] {
        let answer = with(theirs).check_role(ours, strict);
        assert_eq!(answer.is_ok(), good, "{ours:?} {theirs:?} {strict}");
        assert!(answer.err().is_none_or(|error| (error.code, error.subcode) == (2, 11)));
    }
}

/// RFC 9072: only where it is needed, for the sake of who does not know it.
#[test]
fn extended_parameters_are_written_when_needed() {
    let some = |count| {
        let one = Capability::Unknown { code: 200, value: vec![0; 8] };
        encode_open(&open(vec![one; count]))
    };
    let few = some(25);
    assert_eq!((few[28], few[29]), (252, 2));
    let many = some(26);
    assert_eq!((many[28], many[29]), (255, 255));
    // No OPEN may have more than 4096 octets (RFC 8654 section 4).
    assert!(some(1000).len() <= 4096);
}

fn attributes_of(list: &str, session: &Session) -> PathAttributes {
    let digits: Vec<u8> = list.bytes().filter(|byte| *byte != b' ').collect();
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let list: Vec<u8> = digits.chunks(2).map(octet).collect();
    let length = u16::try_from(list.len()).unwrap().to_be_bytes();
    let body = [&[0, 0], &length[..], &list, &[8, 10]].concat();
    decode_update(&body, session).unwrap().announced.remove(0).0
}

/// RFC 6793 section 4.2.3.
#[test]
fn a_path_through_an_old_speaker_is_put_together_again() {
    let old = Session { ipv4: true, as_sets: true, ..Session::default() };
    let rest = "40010100 400304c0000201";
    for (path, as4, expected) in [
        // 65001 is old and has put itself in front.
        ("0203 fde9 5ba0 5ba0", "0202 fa56ea00 fa56ea01", "65001 4200000000 4200000001"),
        ("0202 5ba0 5ba0", "0202 fa56ea00 fa56ea01", "4200000000 4200000001"),
        // An AS4_PATH that is longer is out of date.
        ("0201 fde9", "0202 fa56ea00 fa56ea01", "65001"),
        // A set counts once.
        ("0201 5ba0 0102 5ba0 fde9", "0201 fa56ea00 0101 fa56ea01", "4200000000 {4200000001}"),
    ] {
        let attribute = |kind: &str, value: &str| {
            format!("{kind}{:02x}{value}", value.replace(' ', "").len() / 2)
        };
        let list = format!("{rest} {} {}", attribute("4002", path), attribute("c011", as4));
        assert_eq!(attributes_of(&list, &old).as_path.to_string(), expected);
    }
    // The AGGREGATOR says that an old speaker aggregated since, so both are out of date.
    let stale =
        "400204 0201 5ba0 c01106 0201 fa56ea00 c00706 fde9 0a000001 c01208 fa56ea00 0a000002";
    let attributes = attributes_of(&format!("{rest} {stale}"), &old);
    assert_eq!(attributes.as_path.to_string(), "23456");
    assert_eq!(attributes.aggregator.unwrap().asn.get(), 65001);
    let fresh = stale.replace("fde9", "5ba0");
    let attributes = attributes_of(&format!("{rest} {fresh}"), &old);
    assert_eq!(attributes.as_path.to_string(), "4200000000");
    assert_eq!(attributes.aggregator.unwrap().address, Ipv4Addr::new(10, 0, 0, 2));
}

/// RFC 4271 section 5: who does not know an attribute says so, and nobody takes that back.
#[test]
fn unknown_attributes_are_passed_on_with_partial() {
    let session = Session { four_octet_as: true, ipv4: true, ..Session::default() };
    let list = "40010100 400200 400304c0000201 e00804 fc000001 c0c801 05 80c901 06 d0ff0001 07";
    let attributes = attributes_of(list, &session);
    assert_eq!(attributes.unknown.iter().map(|raw| raw.kind).collect::<Vec<_>>(), [200, 255]);
    let mut out = Vec::new();
    let prefix: Prefix = "10.0.0.0/8".parse().unwrap();
    assert!(encode_updates(&attributes, Family::V4, &[prefix], &session, &mut out));
    let tail = [0xe0, 8, 4, 0xfc, 0, 0, 1, 0xe0, 200, 1, 5, 0xe0, 255, 1, 7, 8, 10];
    assert!(out.ends_with(&tail), "{out:02x?}");
}

/// RFC 8654 section 4, RFC 8950 section 4.
#[test]
fn what_does_not_fit_the_session_is_not_announced() {
    let session = Session { four_octet_as: true, ipv4: true, ipv6: true, ..Session::default() };
    let long = Session { send_extended: true, ..session };
    let mut attributes =
        PathAttributes::new(Origin::Igp, AsPath::default(), "192.0.2.1".parse().unwrap());
    attributes.communities = (0..1100).map(Community).collect();
    let prefix: Prefix = "10.0.0.0/8".parse().unwrap();
    let announce = |attributes: &PathAttributes, family, session: &Session| {
        let mut out = Vec::new();
        let fits = encode_updates(attributes, family, &[prefix], session, &mut out);
        assert_eq!(fits, !out.is_empty());
        fits
    };
    assert!(!announce(&attributes, Family::V4, &session));
    assert!(announce(&attributes, Family::V4, &long));
    attributes.communities.clear();
    assert!(!announce(&attributes, Family::V6, &session));
    attributes.next_hop = "2001:db8::1".parse().unwrap();
    assert!(!announce(&attributes, Family::V4, &session));
    assert!(announce(&attributes, Family::V4, &Session { extended_next_hop: true, ..session }));
}

/// RFC 2545 section 3, and what peers without global addresses make of it.
#[test]
fn link_local_next_hops_are_found() {
    let session = Session { four_octet_as: true, ipv6: true, ..Session::default() };
    let (global, local) = ("20010db8000000000000000000000001", "fe800000000000000000000000000002");
    let zero = "00000000000000000000000000000000";
    for (hops, next_hop, link_local) in [
        (global.to_owned(), "2001:db8::1", None),
        ([global, local].concat(), "2001:db8::1", Some("fe80::2")),
        ([global, global].concat(), "2001:db8::1", None),
        (local.to_owned(), "fe80::2", None),
        ([local, local].concat(), "fe80::2", None),
        ([zero, local].concat(), "fe80::2", None),
    ] {
        let value = format!("0002 01 {:02x} {hops} 00 2020010db8", hops.len() / 2);
        let length = value.replace(' ', "").len() / 2;
        let list = format!("800e{length:02x} {value} 40010100 400200");
        let digits: Vec<u8> = list.bytes().filter(|byte| *byte != b' ').collect();
        let octet =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let list: Vec<u8> = digits.chunks(2).map(octet).collect();
        let body = [&[0, 0, 0, u8::try_from(list.len()).unwrap()], &list[..]].concat();
        let update = decode_update(&body, &session).unwrap();
        let (attributes, _) = &update.announced[0];
        assert_eq!(attributes.next_hop.to_string(), next_hop);
        assert_eq!(attributes.link_local.map(|local| local.to_string()).as_deref(), link_local);
    }
}

/// RFC 9003 section 2, RFC 8538 section 3.1.
#[test]
fn a_notification_says_why_to_the_operator() {
    let shutdown = Notification::cease_with_text(cease::SHUTDOWN, "rack 4 moves, back at 10:00 ✓");
    assert_eq!(shutdown.text(), Text::Text("rack 4 moves, back at 10:00 ✓"));
    let hard = shutdown.clone().into_hard_reset();
    assert_eq!((hard.code, hard.subcode, &hard.data[..3]), (6, 9, &[6, 2, 31][..]));
    assert_eq!(hard.inner().as_ref(), Some(&shutdown));
    assert_eq!(hard.shutdown_text(), shutdown.shutdown_text());
    assert_eq!(
        hard.to_string(),
        "Cease/Hard Reset (6/9): Cease/Administrative Shutdown (6/2): \
         \"rack 4 moves, back at 10:00 ✓\"",
    );
    // 255 octets at most, and no half character at the end.
    let long = Notification::cease_with_text(cease::RESET, &"é".repeat(200));
    assert_eq!((long.data.len(), long.data[0]), (255, 254));
    assert_eq!(long.shutdown_text().map(str::len), Some(254));
    // What is not as the RFC says is shown as it is.
    for data in [&[3, b'a', b'b'][..], &[2, 0xc3, 0x28], &[1, b'a', b'b']] {
        let bad = Notification::new(code::CEASE, cease::SHUTDOWN).with_data(data);
        assert_eq!(bad.text(), Text::Malformed(data));
        assert!(bad.to_string().contains("malformed text ["), "{bad}");
    }
    let other = Notification::new(code::CEASE, cease::COLLISION).with_data(&[1, b'a']);
    assert_eq!(other.text(), Text::None);
    // A message of its own says the same.
    let bytes = encode_notification(&hard);
    assert_eq!(Notification::decode(&bytes[HEADER_LENGTH..]), hard);
    // Hard Resets inside of each other go no deeper than one.
    let nested = Notification::new(6, 9).with_data(&[6, 9].repeat(30_000));
    assert_eq!(nested.inner(), None);
    assert_eq!(nested.to_string(), "Cease/Hard Reset (6/9)");
}

/// RFC 2918 and RFC 7313.
#[test]
fn refreshes_have_a_beginning_and_an_end() {
    let session = Session { ipv6: true, enhanced_refresh: true, ..Session::default() };
    for subtype in [RouteRefresh::REQUEST, RouteRefresh::BEGIN, RouteRefresh::END] {
        let refresh = RouteRefresh { family: Family::V6, subtype };
        let bytes = encode_route_refresh(refresh);
        assert_eq!(bytes[16..], [0, 23, 5, 0, 2, subtype, 1]);
        let body = &bytes[HEADER_LENGTH..];
        assert_eq!(decode_route_refresh(body, &session), Ok(Some(refresh)));
        let plain = Session { enhanced_refresh: false, ..session };
        let expected = Some(refresh).filter(|_| subtype == RouteRefresh::REQUEST);
        assert_eq!(decode_route_refresh(body, &plain), Ok(expected));
        let other = Session { ipv6: false, ..session };
        assert_eq!(decode_route_refresh(body, &other), Ok(None));
    }
}
