use super::*;

fn many(count: u32) -> Vec<Nlri> {
    let one = |n: u32| Prefix::new(Ipv4Addr::from_bits(0x0b00_0000 + (n << 8)).into(), 24).unwrap();
    (0..count).map(|n| Nlri { prefix: one(n), path_id: 0 }).collect()
}

/// A session of a peer that may announce ten prefixes.
fn limited(capabilities: Vec<Capability>) -> Single {
    let mut script = Single::new(|config| config.policy.max_prefixes = Some(10));
    script.establish(capabilities);
    script.end_of_rib();
    script.sent().clear();
    script
}

/// RFC 4486 section 4, and as a Hard Reset where the peer would keep routes over it (RFC 8538).
#[test]
fn a_peer_over_its_limit_is_ended_and_held() {
    let said = "Cease/Maximum Number of Prefixes Reached (6/1): more than 10 IPv4 prefixes";
    let hard = format!("Cease/Hard Reset (6/9): {said}");
    let all = without(is_add_path);
    for (capabilities, said) in [(all, hard.as_str()), (plain(), said)] {
        let mut script = limited(capabilities.clone());
        script.announce(&attributes("192.0.2.2"), &many(10));
        assert_eq!((script.reachable().len(), script.state()), (10, State::Established));
        // The same again is no more than before.
        script.announce(&attributes("192.0.2.3"), &many(10));
        assert_eq!(script.state(), State::Established);
        script.announce(&attributes("192.0.2.2"), &many(11));
        assert_eq!(script.heard(), [said]);
        assert_eq!(
            (script.reachable(), script.state(), script.is_closed()),
            (vec![], State::Idle, true)
        );
        assert_eq!(script.speaker.peers()[0].info, format!("sent {said}"));
        // It is held for a minute, whatever it does.
        script.wait(Duration::from_secs(44));
        assert_eq!(script.state(), State::Idle);
        script.wait(Duration::from_secs(16));
        assert_eq!(script.state(), State::Active);
        // And for longer the next time.
        script.establish(capabilities);
        script.announce(&attributes("192.0.2.2"), &many(11));
        script.wait(Duration::from_secs(89));
        assert_eq!(script.state(), State::Idle);
        // A new limit is tried at once.
        script.configure(|config| config.policy.max_prefixes = Some(20));
        assert_eq!(script.state(), State::Active);
    }
}

/// Two sessions with one address: what comes from there is for the one that takes it, else for nobody.
#[test]
fn a_connection_is_for_the_session_that_takes_it() {
    for (takes, whose) in
        [([true, false], Some(0)), ([false, true], Some(1)), ([false, false], None)]
    {
        let mut script = Single::new(|_| ());
        let (key, config) = peer(ONE, PEER);
        let sessions = [179, 1179].into_iter().zip(takes).map(|(port, takes_connections)| {
            let config = PeerConfig { passive: true, takes_connections, ..config.clone() };
            (PeerKey { port, ..key }, config)
        });
        script.input(Input::SetPeers(sessions.collect()));
        script.script.dial(ONE, address(0));
        let states: Vec<State> = script.speaker.peers().iter().map(|peer| peer.state).collect();
        let opened = |index| if whose == Some(index) { State::OpenSent } else { State::Active };
        assert_eq!(states, [opened(0), opened(1)], "{takes:?}");
        assert_eq!(script.is_closed(), whose.is_none(), "{takes:?}");
        // A session may be there, and a NOTIFICATION would be taken for its.
        assert_eq!(script.sent().is_empty(), whose.is_none(), "{takes:?}");
    }
}

/// What comes in the same bytes as the one prefix too many is not taken.
#[test]
fn nothing_is_taken_after_the_end() {
    let mut script = limited(plain());
    let mut bytes = Vec::new();
    for routes in [many(11), many(300), many(2000)] {
        let attributes = attributes("192.0.2.2");
        let fits =
            wire::encode_updates(&attributes, Family::V4, &routes, &script.session, &mut bytes);
        assert!(fits);
    }
    script.say(bytes);
    assert_eq!((script.reachable(), script.state()), (vec![], State::Idle));
    assert_eq!(script.speaker.peers()[0].prefixes_in, 0);
}

/// Paths count, not prefixes: memory is what is guarded.
#[test]
fn each_path_counts() {
    let mut script = limited(everything());
    let paths: Vec<Nlri> = (0..11).map(|id| nlri("198.51.100.0/24", id)).collect();
    script.announce(&attributes("192.0.2.2"), &paths[..10]);
    assert_eq!(script.state(), State::Established);
    script.announce(&attributes("192.0.2.2"), &paths);
    assert_eq!(script.state(), State::Idle);
}

/// A peer that comes back with another table has the old one as stale beside it; one that begins a
/// refresh again and again does not pile up tables.
#[test]
fn stale_paths_do_not_count_until_they_are_too_many() {
    let mut script = limited(without(is_add_path));
    let all = many(60);
    script.announce(&attributes("192.0.2.2"), &all[..10]);
    for (begin, state) in [(10, State::Established), (20, State::Idle)] {
        script.refresh(RouteRefresh::BEGIN);
        script.announce(&attributes("192.0.2.2"), &all[begin..begin + 10]);
        assert_eq!(script.state(), state, "{begin}");
    }
}

/// A lower limit holds for what is there.
#[test]
fn a_lower_limit_counts_at_once() {
    let mut script = limited(plain());
    script.announce(&attributes("192.0.2.2"), &many(10));
    script.configure(|config| config.policy.max_prefixes = Some(9));
    assert_eq!(script.state(), State::Idle);
}

fn with_set() -> PathAttributes {
    let mut attributes = attributes("192.0.2.2");
    attributes.as_path = AsPath::new(vec![
        Segment::Sequence(vec![Asn::new(PEER).unwrap()]),
        Segment::Set(vec![Asn::new(64999).unwrap()]),
    ]);
    attributes
}

/// RFC 9774 section 3: withdrawn, unless the operator says otherwise.
#[test]
fn as_sets_are_withdrawn_unless_they_are_accepted() {
    for (accepted, known, count) in [(false, 0, 1), (true, 1, 0)] {
        let mut script = Single::new(|config| config.policy.as_sets = accepted);
        script.establish(plain());
        script.announce(&attributes("192.0.2.2"), &many(1));
        script.announce(&with_set(), &many(1));
        assert_eq!(script.reachable().len(), known);
        let errors = script.speaker.peers()[0].update_errors.clone();
        let expected = UpdateErrorCount { disposition: "treat-as-withdraw", attribute: 2, count };
        assert_eq!(errors, vec![expected; usize::from(!accepted)]);
    }
}

/// Of many errors few are told, and all are counted; the number comes when the minute is over.
#[test]
fn errors_do_not_flood_the_log() {
    let mut script = Single::established(plain());
    script.events.clear();
    for _ in 0..1000 {
        script.announce(&with_set(), &many(1));
    }
    let told = |script: &Single| {
        let is_told = |event: &&PeerEvent| matches!(event, PeerEvent::BadUpdate { .. });
        script.events.iter().filter(is_told).count()
    };
    assert_eq!(told(&script), 5);
    script.wait(Duration::from_secs(60));
    assert!(script.events.contains(&PeerEvent::MoreBadUpdates { count: 995 }));
    assert_eq!(script.speaker.peers()[0].update_errors[0].count, 1000);
    script.announce(&with_set(), &many(1));
    assert_eq!(told(&script), 6, "a new minute");
}

/// RFC 7606 section 6: whoever looks for the cause finds the routes and the message.
#[test]
fn a_broken_update_is_told_with_its_routes_and_octets() {
    let mut script = Single::established(plain());
    script.events.clear();
    script.announce(&with_set(), &many(25));
    let Some(PeerEvent::BadUpdate { routes, message, .. }) = script.events.first() else {
        panic!("{:?}", script.events);
    };
    assert!(routes.starts_with("11.0.0.0/24, 11.0.1.0/24, "), "{routes}");
    assert!(routes.ends_with(", 11.0.19.0/24 and 5 more"), "{routes}");
    // No withdrawn routes; AS_PATH with a set; the last prefix.
    assert!(message.starts_with("0000") && message.ends_with("180b0018"), "{message}");
    assert!(message.contains("01010000fde7"), "{message}");
}

/// An UPDATE that ends the session says in what it was wrong, not only which code it got.
#[test]
fn a_fault_that_resets_is_named() {
    let mut script = Single::established(plain());
    // A prefix of 33 bits.
    let mut update = vec![0xff; 16];
    update.extend([0, 24, 2, 0, 0, 0, 0, 33]);
    script.say(update);
    assert_eq!(script.heard(), ["UPDATE Message Error/Invalid Network Field (3/10)"]);
    let peer = &script.speaker.peers()[0];
    assert!(peer.info.ends_with("a prefix is malformed"), "{}", peer.info);
    assert_eq!(peer.update_errors[0].disposition, "session-reset");
    let counted = &peer.notifications[0];
    assert_eq!((counted.sent, counted.code, counted.subcode, counted.count), (true, 3, 10, 1));
}

/// The peer's operator reads why, and so does ours.
#[test]
fn a_shutdown_tells_its_text() {
    let mut script = Single::established(plain());
    script.configure(|config| config.shutdown = Some("rack 7 is moved".to_owned()));
    let said = "Cease/Administrative Shutdown (6/2): \"rack 7 is moved\"";
    assert_eq!((script.heard(), script.is_closed()), (vec![said.to_owned()], true));
    assert_eq!(script.speaker.peers()[0].info, said);
    script.configure(|config| config.shutdown = None);
    assert_eq!(script.state(), State::Active);
    script.configure(|config| config.shutdown = Some("again".to_owned()));
    let restarted = Notification::cease_with_text(cease::SHUTDOWN, "again");
    assert_eq!(script.speaker.peers()[0].info, restarted.to_string());
}

/// One that asks for everything again and again, and does not read, is answered once, and once more when it
/// has read that.
#[test]
fn a_flood_of_refreshes_fills_no_memory() {
    let mut script = Single::established(everything());
    script.sent().clear();
    script.deaf = true;
    let one = wire::encode_route_refresh(RouteRefresh { family: Family::V4, subtype: 0 });
    for _ in 0..1000 {
        script.say(one.repeat(100));
    }
    let once = script.sent().len();
    assert_eq!(script.heard().len(), 3, "BoRR, a route, EoRR");
    assert_eq!(script.state(), State::Established);
    script.deaf = false;
    let conn = script.end(ONE).conn;
    script.input(Input::Written { conn, count: once });
    assert_eq!(script.heard().len(), 3, "once for all of them");
}

/// Each of a peer's paths to a prefix is compared with the others.
#[test]
fn paths_to_one_prefix_are_bounded() {
    let mut script = Single::established(everything());
    let all: Vec<Nlri> = (0..100_000).map(|id| nlri("198.51.100.0/24", id)).collect();
    script.announce(&attributes("192.0.2.2"), &all);
    assert_eq!(script.speaker.peers()[0].prefixes_in, 64);
    let told = |event: &PeerEvent| matches!(event, PeerEvent::BadUpdate { .. });
    assert_eq!(script.events.iter().filter(|event| told(event)).count(), 1);
    // Those that are there can change and go.
    script.announce(&attributes("192.0.2.3"), &[nlri("198.51.100.0/24", 63)]);
    assert_eq!(script.routes[&prefix("198.51.100.0/24")].len(), 2);
}

/// Few paths with much in them are too many as well.
#[test]
fn what_comes_with_the_paths_is_bounded() {
    let mut script = Single::new(|config| config.policy.max_prefixes = Some(1000));
    script.establish(without(is_add_path));
    script.end_of_rib();
    script.sent().clear();
    for n in 0..100_u32 {
        let mut attributes = attributes("192.0.2.2");
        attributes.unknown = vec![wire::RawAttribute { kind: 200, value: vec![1; 48_000] }];
        attributes.med = Some(n);
        script.announce(&attributes, &many(n + 1)[n as usize..]);
        if script.is_closed() {
            break;
        }
    }
    assert_eq!(script.heard(), ["Cease/Hard Reset (6/9): Cease/Out of Resources (6/8)"]);
    assert!(script.reachable().is_empty());
}

/// A caller that is no peer is told so, and the operator is told of it; one that is a peer is not.
#[test]
fn a_stranger_is_refused_and_told_of() {
    let mut script = Single::new(|_| ());
    let stranger = 7;
    let local = script.local;
    script.script.dial(stranger, local);
    let (kind, body) = script.told(stranger).remove(0);
    let said = Notification::decode(&body);
    assert_eq!(kind, MessageType::Notification);
    assert_eq!(said, Notification::new(code::CEASE, cease::REJECTED));
    assert!(script.end(stranger).closed);
    script.establish(plain());
    assert_eq!(script.refused, [address(stranger)]);
}
