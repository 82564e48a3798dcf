use super::*;

#[test]
fn capabilities_that_both_have_are_in_force_and_told() {
    let mut script = Single::new(|config| config.policy.role = Some(Role::Customer));
    let mut theirs = everything();
    theirs.push(Capability::Role(Role::Provider));
    script.establish(theirs);
    let peer = &script.speaker.peers()[0];
    assert_eq!(
        peer.capabilities,
        [
            "IPv4 unicast",
            "IPv6 unicast",
            "4-octet AS",
            "route refresh",
            "enhanced route refresh",
            "graceful restart",
            "ADD-PATH receive IPv4",
            "ADD-PATH receive IPv6",
            "extended messages",
            "IPv4 over IPv6 next hops",
            "peer is provider",
        ]
    );
    assert_eq!(peer.hostname.as_deref(), Some("tor1"));
    let mut script = Single::new(|_| ());
    script.establish(plain());
    assert_eq!(
        script.speaker.peers()[0].capabilities,
        ["IPv4 unicast", "IPv6 unicast", "4-octet AS"]
    );
}

/// We offer to receive several paths, and never to send them.
#[test]
fn several_paths_of_one_peer_share_the_traffic() {
    let mut script = Single::established(everything());
    let shared = "198.51.100.0/24";
    script.announce(&attributes("192.0.2.7"), &[nlri(shared, 7)]);
    script.announce(&attributes("192.0.2.9"), &[nlri(shared, 9), nlri("198.51.101.0/24", 7)]);
    let hops: [IpAddr; 2] = [[192, 0, 2, 7].into(), [192, 0, 2, 9].into()];
    assert_eq!(script.routes[&prefix(shared)], hops);
    assert_eq!(script.speaker.peers()[0].prefixes_in, 3);
    let explained = script.speaker.explain(script.now, prefix(shared)).unwrap();
    let told = explained.paths.iter().map(|path| format!("{}: {}", path.path_id, path.outcome));
    assert_eq!(
        told.collect::<Vec<_>>(),
        ["7: best", "9: as good as 192.0.2.2 path 7, which comes first by lower path identifier"]
    );
    // The same identifier again is the same path, elsewhere.
    script.announce(&attributes("192.0.2.8"), &[nlri(shared, 7)]);
    assert_eq!(script.routes[&prefix(shared)], [IpAddr::from([192, 0, 2, 8]), hops[1]]);
    script.withdraw(&[nlri(shared, 7), nlri(shared, 1)]);
    assert_eq!(script.routes[&prefix(shared)], [hops[1]]);
    script.withdraw(&[nlri(shared, 9)]);
    assert_eq!(script.reachable(), ["198.51.101.0/24"]);
    assert!(!script.session.add_path.receive_ipv4, "what we tell has no identifiers");
}

/// RFC 4724 and RFC 7911 together: all paths of a peer are kept, and the unrefreshed ones go.
#[test]
fn several_paths_survive_a_restart() {
    let mut script = Single::established(everything());
    let shared = "198.51.100.0/24";
    for (id, next_hop) in [(1, "192.0.2.7"), (2, "192.0.2.8"), (3, "192.0.2.9")] {
        script.announce(&attributes(next_hop), &[nlri(shared, id)]);
    }
    script.break_off();
    assert_eq!(script.speaker.peers()[0].prefixes_stale, 3);
    script.establish(everything());
    script.announce(&attributes("192.0.2.9"), &[nlri(shared, 3)]);
    assert_eq!(script.routes[&prefix(shared)].len(), 3);
    script.end_of_rib();
    assert_eq!(script.routes[&prefix(shared)], [IpAddr::from([192, 0, 2, 9])]);
}

const TWO: [&str; 2] = ["198.51.100.0/24", "198.51.101.0/24"];

/// A peer that has announced two routes.
fn with_two(capabilities: Vec<Capability>) -> Single {
    let mut script = Single::established(capabilities);
    script.announce(&attributes("192.0.2.2"), &TWO.map(|text| nlri(text, 0)));
    assert_eq!(script.reachable(), TWO);
    script
}

/// RFC 7313 section 4.
#[test]
fn a_refresh_ends_what_is_not_told_again() {
    let one = [nlri(TWO[0], 0)];
    let mut script = with_two(without(is_add_path));
    script.refresh(RouteRefresh::BEGIN);
    assert_eq!(script.speaker.peers()[0].prefixes_stale, 2);
    script.announce(&attributes("192.0.2.2"), &one);
    assert_eq!(script.reachable(), TWO, "stale routes are used until the end");
    script.refresh(RouteRefresh::END);
    assert_eq!(script.reachable(), [TWO[0]]);
    // An end without a beginning is nothing.
    script.refresh(RouteRefresh::END);
    assert_eq!(script.reachable(), [TWO[0]]);

    // One that begins again vouches for nothing that was told before.
    let mut script = with_two(without(is_add_path));
    script.refresh(RouteRefresh::BEGIN);
    script.announce(&attributes("192.0.2.2"), &one);
    script.refresh(RouteRefresh::BEGIN);
    assert_eq!(script.speaker.peers()[0].prefixes_stale, 2);
    script.refresh(RouteRefresh::END);
    assert_eq!(script.reachable(), [""; 0]);

    // An End-of-RIB is no end of a refresh.
    let mut script = with_two(without(is_add_path));
    script.refresh(RouteRefresh::BEGIN);
    script.end_of_rib();
    assert_eq!(script.reachable(), TWO);

    // One that is never ended ends by itself.
    script.announce(&attributes("192.0.2.2"), &one);
    script.wait(Duration::from_secs(359));
    assert_eq!(script.reachable(), TWO);
    script.wait(Duration::from_secs(1));
    assert_eq!(script.reachable(), [TWO[0]]);
}

/// RFC 7313 section 4: in the initial exchange of a peer with graceful restart it means nothing.
#[test]
fn a_refresh_before_the_end_of_rib_is_ignored() {
    let mut script = Single::new(|_| ());
    script.establish(without(is_add_path));
    script.announce(&attributes("192.0.2.2"), &[nlri(TWO[0], 0)]);
    script.refresh(RouteRefresh::BEGIN);
    script.refresh(RouteRefresh::END);
    assert_eq!(script.reachable(), [TWO[0]]);
}

/// The session is lost in the middle: graceful restart keeps all, not only what was told twice.
#[test]
fn a_session_lost_in_a_refresh_keeps_its_routes() {
    let mut script = with_two(without(is_add_path));
    script.refresh(RouteRefresh::BEGIN);
    script.announce(&attributes("192.0.2.2"), &[nlri(TWO[0], 0)]);
    script.break_off();
    assert_eq!(script.reachable(), TWO);
    script.establish(without(is_add_path));
    script.wait(Duration::from_secs(359));
    assert_eq!(script.reachable(), TWO, "the refresh is over");
}

#[test]
fn a_replay_has_a_beginning_and_an_end_where_that_is_understood() {
    let update = "[\"10.0.0.0/24\"] via 192.0.2.1";
    let mut script = Single::established(everything());
    script.refresh(RouteRefresh::REQUEST);
    assert_eq!(script.heard(), ["RouteRefresh 1", update, "RouteRefresh 2"]);
    let mut script =
        Single::established(without(|c| matches!(c, Capability::EnhancedRouteRefresh)));
    script.refresh(RouteRefresh::REQUEST);
    assert_eq!(script.heard(), [update]);
}

/// RFC 8654 section 4: we say that we take them, so they are taken of whoever sends them.
#[test]
fn long_messages_are_taken_of_any_peer() {
    let mut long = attributes("192.0.2.2");
    long.unknown = vec![wire::RawAttribute { kind: 99, value: vec![7; 5000] }];
    let mut script = Single::established(everything());
    script.announce(&long, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [TWO[0]]);

    let mut script = Single::established(without(|c| matches!(c, Capability::ExtendedMessage)));
    script.session.send_extended = true;
    script.announce(&long, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [TWO[0]]);
}

/// RFC 8950, received and sent; without it an IPv4 route over IPv6 is an error.
#[test]
fn ipv4_goes_over_ipv6_where_both_can() {
    let mut script = Single::established(without(is_add_path));
    script.announce(&attributes("2001:db8::7"), &[nlri(TWO[0], 0)]);
    assert_eq!(script.routes[&prefix(TWO[0])], ["2001:db8::7".parse::<IpAddr>().unwrap()]);

    let rigid = without(|c| is_add_path(c) || matches!(c, Capability::ExtendedNextHop(_)));
    for (capabilities, expected) in
        [(without(is_add_path), "[\"10.0.0.0/24\"] via 2001:db8::1"), (rigid, "End-of-RIB IPv4")]
    {
        let mut script = Single::new(|_| ());
        // A session over IPv6, of a node that has no IPv4 address.
        script.local = "2001:db8::1".parse().unwrap();
        script.establish(capabilities);
        assert_eq!(script.heard()[1], expected);
    }
}

#[test]
fn a_session_without_a_family_is_refused() {
    let mut script = Single::new(|_| ());
    // L3VPN routes and nothing else.
    let vpn = Capability::Unknown { code: 1, value: vec![0, 1, 0, 128] };
    script.open(vec![vpn, Capability::FourOctetAs(Asn::new(PEER).unwrap())]);
    let said = Notification::decode(&script.told(ONE)[0].1);
    assert_eq!((said.code, said.subcode), (code::OPEN, open_error::CAPABILITY));
    assert_eq!(said.data, [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1], "it names what it misses");
    assert!(script.is_closed());
}

/// RFC 5492 section 3: what the peer does not like is left out, and the session comes up without.
#[test]
fn a_refused_capability_is_left_out_of_the_next_open() {
    let mut script = Single::new(|_| ());
    let codes = |open: &Open| open.capabilities.iter().map(Capability::code).collect::<Vec<_>>();
    let all = codes(&script.dial());
    assert_eq!(all, [1, 1, 2, 5, 6, 64, 65, 69, 70, 73]);
    let refuse = |script: &mut Single, data: &[u8]| {
        let said = Notification::new(code::OPEN, open_error::CAPABILITY).with_data(data);
        script.say(wire::encode_notification(&said));
        script.wait(Duration::from_secs(30));
        codes(&script.dial())
    };
    assert_eq!(refuse(&mut script, &[70, 0, 6, 0]), [1, 1, 2, 5, 64, 65, 69, 73]);
    assert_eq!(refuse(&mut script, &[]), [1, 1, 65]);
    let info = script.speaker.peers()[0].info.clone();
    assert!(info.ends_with("the next OPEN goes with families and AS number alone"), "{info}");
    script.establish(everything());
    let peer = &script.speaker.peers()[0];
    assert_eq!(peer.capabilities, ["IPv4 unicast", "IPv6 unicast", "4-octet AS", "route refresh"]);
    // No graceful restart either: we did not offer it.
    script.announce(&attributes("192.0.2.2"), &[nlri(TWO[0], 0)]);
    script.break_off();
    assert_eq!(script.reachable(), [""; 0]);
}

/// The same of one that has to be configured: what was left out of our OPEN is not in force, though
/// the peer offers it (RFC 5492 section 3, RFC 9494 section 4.2).
#[test]
fn long_lived_restart_that_was_refused_is_not_in_force() {
    let name = "long-lived graceful restart";
    let theirs = || {
        let entry = LongLivedFamily { family: Family::V4, forwarding: true, stale_time: 600 };
        let long_lived = Capability::LongLivedGracefulRestart(vec![entry]);
        everything().into_iter().chain([long_lived]).collect::<Vec<_>>()
    };
    let mut script = Single::new(|config| config.long_lived = [(Family::V4, 600)].into());
    script.establish(theirs());
    assert!(script.speaker.peers()[0].capabilities.contains(&name));
    let mut script = Single::new(|config| config.long_lived = [(Family::V4, 600)].into());
    script.dial();
    let said = Notification::new(code::OPEN, open_error::CAPABILITY).with_data(&[71, 0]);
    script.say(wire::encode_notification(&said));
    script.wait(Duration::from_secs(30));
    script.establish(theirs());
    let in_force = &script.speaker.peers()[0].capabilities;
    assert!(in_force.contains(&"graceful restart") && !in_force.contains(&name), "{in_force:?}");
    script.announce(&attributes("192.0.2.2"), &[nlri(TWO[0], 0)]);
    script.break_off();
    script.wait(Duration::from_secs(119));
    assert_eq!(script.reachable(), [TWO[0]]);
    script.wait(Duration::from_secs(1));
    assert_eq!(script.reachable(), [""; 0], "it goes with the restart time");
}

#[test]
fn roles_have_to_fit() {
    for (ours, theirs, comes_up) in [
        (Some(Role::Customer), Some(Role::Provider), true),
        (Some(Role::Customer), Some(Role::Customer), false),
        (Some(Role::Peer), Some(Role::Peer), true),
        (Some(Role::Provider), Some(Role::Unassigned(9)), false),
        // Not strict: a peer without a role is taken.
        (Some(Role::Customer), None, true),
        (None, Some(Role::Customer), true),
    ] {
        let mut script = Single::new(|config| config.policy.role = ours);
        let mut capabilities = plain();
        capabilities.extend(theirs.map(Capability::Role));
        script.open(capabilities);
        script.say(wire::encode_keepalive());
        let name = format!("{ours:?} {theirs:?}");
        assert_eq!(script.state() == State::Established, comes_up, "{name}");
        if !comes_up {
            assert_eq!(script.heard(), ["OPEN Message Error/Role Mismatch (2/11)"], "{name}");
        }
    }
}

/// RFC 9234 section 5: a leak withdraws what was there, and what we tell a customer is marked.
#[test]
fn leaks_are_refused_and_routes_to_customers_marked() {
    let mut script = Single::new(|config| config.policy.role = Some(Role::Provider));
    script.establish(plain());
    let told = script.first_update();
    assert_eq!(told.announced[0].0.only_to_customer, Some(64512));

    script.announce(&attributes("192.0.2.2"), &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [TWO[0]]);
    let mut leak = attributes("192.0.2.2");
    leak.only_to_customer = Some(64999);
    script.announce(&leak, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [""; 0]);
}

/// Towards the peer the node is in another AS: in the OPEN, in its paths, and where its routes come back.
#[test]
fn a_local_as_is_all_that_the_peer_sees() {
    let local = Asn::new(4_200_000_000).unwrap();
    let mut script = Single::new(|config| config.policy.local_asn = Some(local));
    assert_eq!(script.dial().asn, local);
    script.establish(plain());
    let told = script.first_update();
    assert_eq!(told.announced[0].0.as_path, AsPath::sequence([local]));
    for own in [local, Asn::new(64512).unwrap()] {
        let mut looped = attributes("192.0.2.2");
        looped.as_path = AsPath::sequence([Asn::new(PEER).unwrap(), own]);
        script.announce(&looped, &[nlri(TWO[0], 0)]);
        assert_eq!(script.reachable(), [""; 0], "{own}");
    }
    // In the peer's AS the session is internal.
    let mut script = Single::new(|config| config.policy.local_asn = Asn::new(PEER).ok());
    script.open(plain());
    script.say(wire::encode_keepalive());
    assert_eq!(script.state(), State::Established);
    assert!(script.heard().contains(&"[\"10.0.0.0/24\"] via 192.0.2.1".to_owned()));
    script.configure(|config| config.policy.local_asn = None);
    assert_eq!(script.heard(), ["Cease/Other Configuration Change (6/6)"]);
}

/// A change of what is taken asks for everything again, or resets where that cannot be asked for.
#[test]
fn our_own_as_in_a_path_is_taken_where_it_is_allowed() {
    let mut through_us = attributes("192.0.2.2");
    through_us.as_path = AsPath::sequence([PEER, 64512].map(|asn| Asn::new(asn).unwrap()));
    let mut script = Single::established(without(is_add_path));
    script.announce(&through_us, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [""; 0]);
    script.configure(|config| config.policy.allowed_own_as = 1);
    assert_eq!(script.heard(), ["RouteRefresh 0", "RouteRefresh 0"]);
    script.announce(&through_us, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [TWO[0]]);
    through_us.as_path = through_us.as_path.prepended(Asn::new(64512).unwrap());
    script.announce(&through_us, &[nlri(TWO[0], 0)]);
    assert_eq!(script.reachable(), [""; 0], "it is there twice");

    let mut script = Single::established(plain());
    script.configure(|config| config.policy.allowed_own_as = 1);
    assert_eq!(script.heard(), ["Cease/Other Configuration Change (6/6)"]);
}

/// An operator may ask a peer for its routes again, and hears why where it cannot be asked.
#[test]
fn a_peer_is_asked_again_by_hand() {
    let mut script = Single::new(|_| ());
    let ask = |script: &mut Single, family| {
        let (now, key) = (script.now, script.key);
        let asked = script.speaker.request_refresh(now, key, family);
        script.input(Input::Tick);
        asked
    };
    assert_eq!(ask(&mut script, None), Err(RefreshError::NotEstablished(State::Active)));
    script.establish(everything());
    script.end_of_rib();
    script.heard();
    assert_eq!(ask(&mut script, None), Ok(vec![Family::V4, Family::V6]));
    assert_eq!(script.heard(), ["RouteRefresh 0", "RouteRefresh 0"]);
    assert_eq!(ask(&mut script, Some(Family::V6)), Ok(vec![Family::V6]));
    assert_eq!(script.heard(), ["RouteRefresh 0"]);

    let v4 = without(|c| matches!(c, Capability::MultiProtocol(Family::V6)));
    let mut script = Single::established(v4);
    assert_eq!(ask(&mut script, Some(Family::V6)), Err(RefreshError::NoFamily(Family::V6)));
    let mut script = Single::established(plain());
    assert_eq!(ask(&mut script, None), Err(RefreshError::NoRouteRefresh));
    script.key.port += 1;
    assert_eq!(ask(&mut script, None), Err(RefreshError::NoPeer));
    assert_eq!(script.heard(), Vec::<String>::new());
}

/// Which AS the peer said is told to both operators.
#[test]
fn a_wrong_as_is_named() {
    let mut script = Single::new(|config| config.asn = Asn::new(64999).unwrap());
    script.open(plain());
    let said = script.heard();
    assert_eq!(said, [format!("OPEN Message Error/Bad Peer AS (2/2): AS {PEER}")]);
    assert!(script.speaker.peers()[0].info.contains(&said[0]), "{:?}", script.speaker.peers());
    // Some write it in 2 octets, or not at all.
    for (data, text) in [(&[0xfc, 0x01][..], "(2/2): AS 64513"), (&[], "(2/2)"), (&[1], "(2/2)")] {
        let told = Notification::new(code::OPEN, 2).with_data(data).to_string();
        assert!(told.ends_with(text), "{told}");
    }
}

/// RFC 6286 section 2.3: within an AS an identifier is one router's, and between two it may be the same.
#[test]
fn our_identifier_is_refused_within_our_as() {
    let ours = Ipv4Addr::new(192, 0, 2, 1);
    let refusal =
        Notification::new(code::OPEN, open_error::BAD_IDENTIFIER).with_data(&ours.octets());
    for (local_asn, identifier, comes_up) in [
        (Asn::new(PEER).ok(), ours, false),
        (Asn::new(PEER).ok(), Ipv4Addr::new(192, 0, 2, 2), true),
        (None, ours, true),
    ] {
        let mut script = Single::new(|config| config.policy.local_asn = local_asn);
        script.dial();
        script.sent().clear();
        let asn = Asn::new(PEER).unwrap();
        let capabilities = without(is_add_path);
        let open = Open { asn, hold_time: 0, identifier, capabilities };
        script.say(wire::encode_open(&open));
        let (kind, body) = script.told(ONE).remove(0);
        let name = format!("{local_asn:?} {identifier}");
        if comes_up {
            assert_eq!(kind, MessageType::Keepalive, "{name}");
            script.say(wire::encode_keepalive());
        } else {
            assert_eq!(
                (kind, Notification::decode(&body)),
                (MessageType::Notification, refusal.clone()),
                "{name}"
            );
        }
        assert_eq!(script.state() == State::Established, comes_up, "{name}");
        assert_eq!(script.is_closed(), !comes_up, "{name}");
    }
}
