//! A peer goes and comes back, or does not: what is kept of it (RFC 4724 section 4.2, RFC 8538,
//! RFC 9494).

use super::{
    script::{Says, Script},
    *,
};
use crate::wire::{Community, Notification, cease, code};

const V4: &str = "10.1.0.0/24";
const OTHER: &str = "10.2.0.0/24";
const V6: &str = "2001:db8:1::/64";
const SECOND: Duration = Duration::from_secs(1);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A session with a peer that has announced a prefix of each family, and all of it.
fn up(says: &Says) -> Script {
    up_with(says, |_| {})
}

fn up_with(says: &Says, change: impl Fn(&mut PeerConfig)) -> Script {
    let mut script = Script::new(&[], 2, change);
    script.connect(1, says);
    script.announce(1, &[V4, V6]);
    script.end_of_rib(1, Family::V4);
    script.end_of_rib(1, Family::V6);
    assert_eq!(script.reachable(), [V4, V6]);
    script
}

/// Long-lived graceful restart as we have it configured.
fn long_lived(config: &mut PeerConfig) {
    config.long_lived = BTreeMap::from([(Family::V4, 600), (Family::V6, 600)]);
}

/// RFC 4724 section 4.2: only what the capability covers, and for the restart time.
#[test]
fn families_without_graceful_restart_go_at_once() {
    let mut script = up(&Says::restart().forwarding(&[(Family::V4, false)]));
    script.lose(1);
    assert_eq!(script.reachable(), [V4]);
    let peer = script.snapshot(1);
    assert_eq!((peer.prefixes_stale, peer.stale_until), (1, Some(script.now + seconds(120))));
    script.wait(seconds(120) - SECOND);
    assert_eq!(script.reachable(), [V4]);
    script.wait(SECOND);
    assert!(script.reachable().is_empty());
    assert_eq!(script.snapshot(1).stale_until, None);
}

#[test]
fn a_restart_time_of_zero_keeps_nothing() {
    let mut script = up(&Says::restart().time(0));
    script.lose(1);
    assert!(script.reachable().is_empty());
}

#[test]
fn without_the_capability_nothing_is_kept() {
    let mut script = up(&Says::default());
    script.lose(1);
    assert!(script.reachable().is_empty());
}

/// RFC 4724 section 4.2: F clear, the family left out, the capability left out, the family not
/// negotiated any more: the stale routes go as the session comes up.
#[test]
fn what_the_peer_did_not_keep_is_not_kept_for_it() {
    let without_v6 = Says { families: vec![Family::V4], ..Says::restart() };
    for (name, back) in [
        ("F clear", Says::restart().forwarding(&[(Family::V4, true), (Family::V6, false)])),
        ("left out", Says::restart().forwarding(&[(Family::V4, true)])),
        ("not negotiated", without_v6),
    ] {
        let mut script = up(&Says::restart());
        script.lose(1);
        script.wait(SECOND);
        assert_eq!(script.reachable(), [V4, V6], "{name}");
        script.connect(1, &back);
        assert_eq!(script.reachable(), [V4], "{name}");
    }
    let mut script = up(&Says::restart());
    script.lose(1);
    script.connect(1, &Says::default());
    assert!(script.reachable().is_empty(), "no capability");
}

/// RFC 4724 section 4.2: what was not announced again goes with End-of-RIB, family by family.
#[test]
fn stale_routes_go_with_the_end_of_rib() {
    let mut script = up(&Says::restart());
    script.announce(1, &[OTHER]);
    script.lose(1);
    script.connect(1, &Says::restart());
    script.announce(1, &[OTHER]);
    assert_eq!(script.snapshot(1).prefixes_stale, 2);
    script.end_of_rib(1, Family::V4);
    assert_eq!(script.reachable(), [OTHER, V6]);
    script.end_of_rib(1, Family::V6);
    assert_eq!(script.reachable(), [OTHER]);
    assert_eq!(script.snapshot(1).stale_until, None);
}

/// RFC 4724 section 4.2: an upper bound for a peer that is back and never finishes.
#[test]
fn a_peer_that_does_not_finish_loses_its_stale_routes() {
    let mut script = up(&Says::restart());
    script.lose(1);
    script.wait(seconds(100));
    script.connect(1, &Says::restart());
    script.wait(seconds(360) - SECOND);
    assert_eq!(script.reachable(), [V4, V6]);
    script.wait(SECOND);
    assert!(script.reachable().is_empty());
}

/// RFC 4724 section 4.2: what was stale already goes at the second loss; what came between is kept.
#[test]
fn nothing_is_kept_over_two_restarts() {
    let mut script = up(&Says::restart());
    script.lose(1);
    script.wait(seconds(60));
    script.connect(1, &Says::restart());
    script.announce(1, &[OTHER]);
    script.lose(1);
    assert_eq!(script.reachable(), [OTHER]);
    script.wait(seconds(120) - SECOND);
    assert_eq!(script.reachable(), [OTHER]);
    script.wait(SECOND);
    assert!(script.reachable().is_empty());
}

/// RFC 8538 section 4: with N on both sides, every NOTIFICATION but a Hard Reset keeps the routes.
#[test]
fn a_notification_keeps_routes_where_both_sides_say_so() {
    let with = Says::restart();
    let without = Says { notification: false, ..Says::restart() };
    let reset = Notification::new(code::CEASE, cease::RESET);
    let hard = reset.clone().into_hard_reset();
    let expired = Notification::new(code::HOLD_TIMER, 0);
    for (says, notification, kept) in [
        (&with, &reset, true),
        (&with, &expired, true),
        (&with, &hard, false),
        (&without, &reset, false),
        (&without, &expired, false),
        (&without, &hard, false),
    ] {
        let mut script = up(says);
        script.notify(1, notification);
        assert_eq!(!script.reachable().is_empty(), kept, "{notification}");
    }
}

/// RFC 4724 section 4.2: stale routes compete as all others do.
#[test]
fn stale_routes_are_as_good_as_fresh_ones() {
    let mut script = up(&Says::restart());
    script.connect(2, &Says::restart());
    script.announce_with(2, &[V4], 2, &[]);
    script.lose(1);
    assert_eq!(script.routes[&prefix(V4)], [address(1)]);
}

/// RFC 9494 section 4.2: the long-lived stale time follows the restart time, with the community.
#[test]
fn the_long_lived_time_follows_the_restart_time() {
    let mut script = up_with(&Says::restart().long_lived(true, 3600), long_lived);
    script.lose(1);
    script.wait(seconds(120) - SECOND);
    assert_eq!(script.communities(1, V4), []);
    assert!(!script.snapshot(1).long_lived_stale);
    script.wait(SECOND);
    assert_eq!(script.communities(1, V4), [Community::LLGR_STALE]);
    let peer = script.snapshot(1);
    assert!(peer.long_lived_stale && peer.prefixes_stale == 2);
    assert_eq!(peer.stale_until, Some(script.now + seconds(3600)));
    script.wait(seconds(3600) - SECOND);
    assert_eq!(script.reachable(), [V4, V6]);
    script.wait(SECOND);
    assert!(script.reachable().is_empty());
}

/// RFC 9494 section 4.2: each family has its time; a restart time of zero, or a family that
/// graceful restart leaves out, is long-lived stale at once.
#[test]
fn without_a_restart_time_routes_are_long_lived_at_once() {
    let both = [Family::V4, Family::V6];
    for (says, at_once) in [
        (Says::restart().time(0), &both[..]),
        (Says::restart().forwarding(&[(Family::V6, true)]), &both[..1]),
    ] {
        let mut says = says.long_lived(true, 300);
        says.long_lived[1].2 = 1000;
        let mut script = up_with(&says, long_lived);
        script.lose(1);
        for (family, text) in both.into_iter().zip([V4, V6]) {
            let marked = script.communities(1, text) == [Community::LLGR_STALE];
            assert_eq!(marked, at_once.contains(&family), "{text}");
        }
        script.wait(seconds(300));
        assert_eq!(script.reachable(), [V6]);
        script.wait(seconds(700 + 120));
        assert!(script.reachable().is_empty());
    }
}

/// RFC 9494 section 4.2: NO_LLGR.
#[test]
fn what_must_not_be_kept_for_long_goes_with_the_restart_time() {
    let mut script = up_with(&Says::restart().long_lived(true, 3600), long_lived);
    script.announce_with(1, &[OTHER], 1, &[Community::NO_LLGR]);
    script.lose(1);
    script.wait(seconds(119));
    assert_eq!(script.reachable(), [V4, OTHER, V6]);
    script.wait(SECOND);
    assert_eq!(script.reachable(), [V4, V6]);
}

/// RFC 9494 section 4.3: any other route is better, also than one that came with the community.
#[test]
fn long_lived_stale_routes_are_the_last_resort() {
    let mut script = up_with(&Says::restart().long_lived(true, 3600), long_lived);
    script.connect(2, &Says::restart());
    script.announce_with(2, &[V4], 5, &[]);
    script.lose(1);
    assert_eq!(script.routes[&prefix(V4)], [address(1)]);
    script.wait(seconds(120));
    assert_eq!(script.routes[&prefix(V4)], [address(2)]);
    assert_eq!(script.reachable(), [V4, V6]);
    // Both are last resorts: the other steps decide.
    script.announce_with(2, &[V4], 5, &[Community::LLGR_STALE]);
    assert_eq!(script.routes[&prefix(V4)], [address(1)]);
}

/// RFC 9494 sections 4.5 and 5: without graceful restart beside it, and without being asked for by
/// configuration, it counts for nothing, and is not offered.
#[test]
fn long_lived_restart_has_to_be_configured() {
    let only_v4 = |config: &mut PeerConfig| {
        config.long_lived = BTreeMap::from([(Family::V4, 600)]);
    };
    let says = Says::restart().long_lived(true, 3600);
    let mut script = up_with(&says, only_v4);
    let offered = script.opened(1).long_lived_restart().to_vec();
    assert_eq!(offered.len(), 1);
    assert_eq!((offered[0].family, offered[0].stale_time), (Family::V4, 600));
    script.lose(1);
    script.wait(seconds(120));
    assert_eq!(script.reachable(), [V4]);

    let mut script = up(&says);
    assert!(script.opened(1).long_lived_restart().is_empty());
    script.lose(1);
    script.wait(seconds(120));
    assert!(script.reachable().is_empty());

    let mut script = up_with(&Says { restart: None, ..says }, long_lived);
    script.lose(1);
    assert!(script.reachable().is_empty());
}

/// RFC 9494 section 4.2: back without F of this capability, or without the capability, is too late.
#[test]
fn long_lived_stale_routes_wait_for_a_peer_that_kept_forwarding() {
    let says = Says::restart().long_lived(true, 3600);
    for (back, kept) in [
        (says.clone(), true),
        (Says::restart().long_lived(false, 3600), false),
        (Says::restart(), false),
    ] {
        let mut script = up_with(&says, long_lived);
        script.lose(1);
        script.wait(seconds(200));
        script.connect(1, &back);
        assert_eq!(!script.reachable().is_empty(), kept, "{back:?}");
        if kept {
            script.announce(1, &[V4]);
            assert_eq!(script.communities(1, V4), []);
            script.end_of_rib(1, Family::V4);
            script.end_of_rib(1, Family::V6);
            assert_eq!(script.reachable(), [V4]);
            assert!(!script.snapshot(1).long_lived_stale);
        }
    }
}

/// RFC 9494 section 4.2: sessions that end before End-of-RIB neither take the routes along nor give
/// them more time.
#[test]
fn the_long_lived_time_goes_on_over_sessions_that_do_not_finish() {
    let says = Says::restart().long_lived(true, 1000);
    let mut script = up_with(&says, long_lived);
    script.lose(1);
    script.wait(seconds(120));
    let end = script.now + seconds(1000);
    for round in 0..3 {
        script.wait(seconds(100));
        script.connect(1, &says);
        script.announce(1, &[OTHER]);
        script.wait(seconds(100));
        script.lose(1);
        assert_eq!(script.reachable(), [V4, OTHER, V6], "round {round}");
        assert_eq!(script.communities(1, V4), [Community::LLGR_STALE]);
        assert_eq!(script.snapshot(1).stale_until, Some(end), "round {round}");
    }
    script.wait(seconds(400) - SECOND);
    assert_eq!(script.reachable(), [V4, OTHER, V6]);
    script.wait(SECOND);
    assert!(script.reachable().is_empty());
}

/// RFC 9494 section 4.2: a time that is over while the peer sends its routes takes nothing away from
/// under it, but another loss does.
#[test]
fn the_long_lived_time_does_not_end_in_the_middle_of_a_synchronization() {
    let says = Says::restart().long_lived(true, 100);
    for lost in [false, true] {
        let mut script = up_with(&says, long_lived);
        script.lose(1);
        script.wait(seconds(120 + 90));
        script.connect(1, &says);
        script.wait(seconds(20));
        assert_eq!(script.reachable(), [V4, V6]);
        match lost {
            true => script.lose(1),
            false => {
                script.end_of_rib(1, Family::V4);
                script.end_of_rib(1, Family::V6);
            }
        }
        assert!(script.reachable().is_empty(), "lost={lost}");
    }
}

/// Whatever peers do, stale paths have a timer, and peers that are away for good leave nothing.
#[test]
fn no_stale_route_stays_for_ever() {
    let both = [Family::V4, Family::V6];
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let mut script = Script::new(&[], 2, long_lived);
        for _ in 0..60 {
            let peer = random.index(2) + 1;
            let state = script.snapshot(peer).state;
            let is_up = state == State::Established;
            match random.below(8) {
                // After a NOTIFICATION it is refused for a moment, in Idle.
                0 | 1 if state == State::Active => script.connect(peer, &random_says(&mut random)),
                2 if is_up => script.lose(peer),
                3 if is_up && random.below(2) == 0 => {
                    script.notify(peer, &Notification::new(code::CEASE, cease::RESET));
                }
                4 | 5 if is_up => {
                    let some = [&[V4, V6][..], &[OTHER], &[V4]][random.index(3)];
                    let community = [Community(1), Community::NO_LLGR][random.index(2)];
                    script.announce_with(peer, some, 1, &[community]);
                }
                6 if is_up => script.end_of_rib(peer, both[random.index(2)]),
                _ => script.wait(seconds(random.below(200))),
            }
            for peer in [1, 2].map(|peer| script.snapshot(peer)) {
                assert_eq!(peer.prefixes_stale > 0, peer.stale_until.is_some(), "seed {seed}");
                assert!(peer.stale_until.is_none_or(|at| at > script.now), "seed {seed}: late");
            }
        }
        for peer in [1, 2] {
            if script.snapshot(peer).state == State::Established {
                script.lose(peer);
            }
        }
        script.wait(seconds(4095 + 1000));
        assert!(script.reachable().is_empty(), "seed {seed}: {:?}", script.reachable());
        assert_eq!([1, 2].map(|peer| script.snapshot(peer).prefixes_in), [0, 0], "seed {seed}");
    }
}

fn random_says(random: &mut Random) -> Says {
    let mut bit = || random.below(3) > 0;
    let (v4, v6, notification, long_lived) = (bit(), bit(), bit(), bit());
    let mut says = Says { notification, ..Says::restart() };
    says = says.forwarding(&[(Family::V4, v4), (Family::V6, v6)]);
    says = says.time([0, 5, 120, 4095][random.index(4)]);
    if long_lived {
        let forwarding = random.below(3) > 0;
        says = says.long_lived(forwarding, [0, 10, 900][random.index(3)]);
    }
    if random.below(6) == 0 {
        says.restart = None;
    }
    if random.below(6) == 0 {
        says.families = vec![Family::V4];
    }
    says
}
