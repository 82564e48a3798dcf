//! Timers, damping and collisions, one rule at a time.

use super::*;
use crate::{Input, Speaker};

const MS: fn(u64) -> Duration = Duration::from_millis;

impl Rig {
    /// How long the timer of this name has to go.
    fn left(&self, name: &str) -> Duration {
        self.deadline(name).unwrap().since(self.now)
    }
}

fn with_jitter(wait: Duration) -> std::ops::RangeInclusive<Duration> {
    wait.mul_f64(0.75)..=wait
}

fn open_of(change: impl FnOnce(&mut Open)) -> Vec<u8> {
    let mut open = their_open();
    change(&mut open);
    wire::encode_open(&open)
}

fn without_restart(open: &mut Open) {
    open.capabilities.retain(|capability| !matches!(capability, Capability::GracefulRestart(_)));
}

#[test]
fn attempts_back_off_from_100_ms_to_30_s() {
    let mut rig = Rig::new(config());
    rig.start();
    assert_eq!(rig.now, Time::ZERO, "the first attempt is made at once");
    for expected in [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000] {
        rig.connect_failed();
        assert!(with_jitter(MS(expected)).contains(&rig.left("connect retry timer")), "{expected}");
        rig.expire("connect retry timer");
        assert_eq!(rig.take_actions().last().unwrap(), "connect");
        let attempt = rig.left("connect retry timer");
        assert!(attempt >= MS(3750) && attempt <= MS(30000), "an attempt ends: {attempt:?}");
    }
    // A session starts it anew.
    let conn = rig.connected();
    rig.establish(conn);
    rig.closed(conn);
    assert!(rig.left("connect retry timer") <= MS(100));
}

/// An attempt that was under way when the peer became passive is the last one.
#[test]
fn a_peer_that_became_passive_is_not_dialled_again() {
    let mut rig = Rig::new(config());
    rig.start();
    rig.act(|peer, sink| peer.reconfigure(PeerConfig { passive: true, ..config() }, sink));
    rig.take_actions();
    rig.expire("connect retry timer");
    assert_eq!((rig.take_actions(), rig.peer.state()), (vec!["close".to_owned()], State::Active));
}

#[test]
fn errors_are_damped_until_a_session_lasts() {
    let mut rig = Rig::new(config());
    rig.start();
    for expected in [100, 200, 400, 800] {
        let conn = rig.connected();
        rig.establish(conn);
        rig.wait(Duration::from_secs(59));
        rig.receive(conn, &notification(code::CEASE, cease::RESET));
        assert_eq!(rig.peer.state(), State::Idle);
        assert!(with_jitter(MS(expected)).contains(&rig.left("idle hold timer")), "{expected}");
        rig.take_actions();
        rig.accepted();
        assert_eq!(rig.take_actions(), ["close"], "Idle refuses");
        rig.expire("idle hold timer");
    }
    let conn = rig.connected();
    rig.establish(conn);
    rig.wait(Duration::from_secs(60));
    rig.receive(conn, &notification(code::CEASE, cease::RESET));
    assert!(rig.left("idle hold timer") <= MS(100));
}

/// A peer that dials with the wrong AS is damped too, though an attempt of ours is due.
#[test]
fn errors_on_the_peers_connection_are_damped() {
    let mut rig = Rig::new(config());
    rig.start();
    rig.connect_failed();
    let conn = rig.accepted();
    rig.receive(conn, &wire::encode_open(&stranger()));
    assert_eq!(rig.peer.state(), State::Idle);
}

#[test]
fn keepalives_are_a_third_of_the_hold_time_with_jitter() {
    let (rig, _) = Rig::established();
    assert!(with_jitter(Duration::from_secs(30)).contains(&rig.left("keepalive timer")));
    assert_eq!(rig.left("hold timer"), Duration::from_secs(90));
}

/// RFC 9687: progress, however slow, restarts the timer; all taken stops it.
#[test]
fn a_peer_that_takes_no_bytes_is_ended() {
    let mut rig = Rig::new(PeerConfig { hold_time: 0, ..config() });
    rig.start();
    let conn = rig.connected();
    rig.establish(conn);
    let sent = 1000;
    rig.act(|peer, sink| peer.written(conn, 10_000, sink.now));
    assert_eq!(rig.deadline("send hold timer"), None, "all is taken");
    let bytes = wire::encode_keepalive().repeat(sent);
    rig.act(|peer, sink| peer.send_many(conn, bytes, 1000, sink));
    for _ in 0..10 {
        rig.wait(Duration::from_secs(400));
        rig.act(|peer, sink| peer.written(conn, 1, sink.now));
        rig.tick();
        assert_eq!(rig.peer.state(), State::Established);
    }
    assert_eq!(rig.left("send hold timer"), Duration::from_secs(480));
    rig.take_actions();
    rig.expire("send hold timer");
    assert_eq!(rig.take_actions(), ["NOTIFICATION 8/0", "abort", "session down"]);
}

#[test]
fn a_confirmation_is_not_awaited_without_end() {
    let mut rig = Rig::new(PeerConfig { hold_time: 0, ..config() });
    rig.start();
    let conn = rig.connected();
    rig.receive(conn, &wire::encode_open(&their_open()));
    assert_eq!(rig.left("hold timer"), Duration::from_secs(240));
    rig.receive(conn, &wire::encode_keepalive());
    assert_eq!(rig.deadline("hold timer"), None);
}

#[test]
fn our_open_waits_for_the_peers_or_for_the_timer() {
    let delayed = PeerConfig { delay_open: Duration::from_secs(3), ..config() };
    let mut rig = Rig::new(delayed.clone());
    rig.start();
    let conn = rig.connected();
    assert_eq!(rig.take_actions(), ["connect"]);
    rig.receive(conn, &wire::encode_open(&their_open()));
    assert_eq!(rig.take_actions(), ["OPEN", "KEEPALIVE"]);

    let mut rig = Rig::new(PeerConfig { passive: true, ..delayed });
    rig.start();
    rig.accepted();
    assert_eq!((rig.take_actions(), rig.left("delay open timer")), (vec![], MS(3000)));
    rig.expire("delay open timer");
    assert_eq!((rig.take_actions(), rig.peer.state()), (vec!["OPEN".into()], State::OpenSent));
}

#[test]
fn a_stop_is_final_until_the_start() {
    for (restarts, said) in [(false, "NOTIFICATION 6/2"), (true, "NOTIFICATION 6/9")] {
        let mut rig = Rig::new(config());
        rig.start();
        let conn = rig.connected();
        let open = if restarts { open_of(|_| ()) } else { open_of(without_restart) };
        rig.receive(conn, &open);
        rig.receive(conn, &wire::encode_keepalive());
        rig.take_actions();
        rig.reconfigure(|config| config.shutdown = Some("drained".to_owned()));
        assert_eq!(rig.take_actions(), [said, "close", "session down"]);
        rig.reconfigure(|config| config.hold_time = 30);
        rig.accepted();
        rig.wait(Duration::from_secs(3600));
        rig.tick();
        assert_eq!(rig.take_actions(), ["close"], "the peer's connection is refused");
        assert_eq!(rig.peer.next_deadline(), None);
        rig.reconfigure(|config| config.shutdown = None);
        assert_eq!(rig.take_actions(), ["connect"]);
    }
}

#[test]
fn a_change_that_needs_no_reset_leaves_the_session_alone() {
    let (mut rig, _) = Rig::established();
    rig.reconfigure(|config| config.passive = true);
    rig.reconfigure(|config| config.delay_open = MS(5));
    assert_eq!(rig.take_actions(), [""; 0]);
    let mut rig = Rig::new(PeerConfig { passive: true, ..config() });
    rig.start();
    assert_eq!(rig.peer.next_deadline(), None, "it waits to be called");
    rig.reconfigure(|config| config.passive = false);
    assert_eq!(rig.take_actions(), ["connect"]);
}

#[test]
fn a_stranger_is_refused_and_no_peer_notices() {
    let rig = Rig::new(config());
    let mut speaker = Speaker::new(rig.speaker, Time::ZERO);
    let passive = PeerConfig { passive: true, ..config() };
    speaker.handle(Time::ZERO, Input::SetPeers([(rig.peer.key, passive)].into()));
    while speaker.poll_output().is_some() {}
    let conn = ConnId(u64::MAX);
    let remote = SocketAddr::from(([192, 0, 2, 77], 4000));
    speaker.handle(Time::ZERO, Input::Accepted { conn, local: local(), remote });
    let said = notification(code::CEASE, cease::REJECTED);
    assert_eq!(speaker.poll_output(), Some(Output::Send { conn, bytes: said }));
    assert_eq!(speaker.poll_output(), Some(Output::Close { conn }));
    assert_eq!(speaker.peers()[0].state, State::Active);
}

/// After 6/7 the next attempt is soon, and the ones after it not much later: the peer waits for its
/// hold timer.
#[test]
fn a_refused_collision_is_tried_again_soon() {
    let mut rig = Rig::new(config());
    rig.start();
    for expected in [50, 100, 200, 400, 800, 1000, 1000] {
        let conn = rig.connected();
        rig.receive(conn, &notification(code::CEASE, cease::COLLISION));
        assert!(with_jitter(MS(expected)).contains(&rig.left("connect retry timer")), "{expected}");
        rig.expire("connect retry timer");
    }
}

/// Two connections, of which the first is ours unless it is said to be the peer's.
struct Collision {
    rig: Rig,
    first: ConnId,
    second: ConnId,
}

/// What is sent and reported from here on.
fn collision(ours_wins: bool, state: State, first_is_theirs: bool, age: u64) -> Collision {
    collision_with(ours_wins, state, first_is_theirs, age, |_| ())
}

fn collision_with(
    ours_wins: bool,
    state: State,
    first_is_theirs: bool,
    age: u64,
    change: impl Fn(&mut Open),
) -> Collision {
    let mut rig = Rig::new(config());
    if ours_wins {
        rig.speaker.router_id = Ipv4Addr::new(203, 0, 113, 1);
    }
    rig.start();
    let first = if first_is_theirs {
        rig.connect_failed();
        rig.accepted()
    } else {
        rig.connected()
    };
    if state >= State::OpenConfirm {
        rig.receive(first, &open_of(&change));
    }
    if state == State::Established {
        rig.receive(first, &wire::encode_keepalive());
    }
    assert_eq!(rig.peer.state(), state);
    rig.wait(MS(age));
    let second = rig.accepted();
    rig.take_actions();
    rig.receive(second, &open_of(&change));
    Collision { rig, first, second }
}

impl Collision {
    /// What was done, and which connections are left.
    fn is(&mut self, actions: &[&str], first: bool, second: bool) {
        assert_eq!(self.rig.take_actions(), actions);
        let open = [self.first, self.second].map(|conn| self.rig.open.contains(&conn));
        assert_eq!(open, [first, second]);
    }
}

const DUMP: [&str; 2] = ["NOTIFICATION 6/7", "close"];

#[test]
fn collision_1_to_4_before_established() {
    // 1: nothing is known yet; the one whose OPEN comes goes on.
    collision(false, State::OpenSent, false, 0).is(&["KEEPALIVE"], true, true);
    // 2: the peer's wins.
    collision(false, State::OpenConfirm, false, 0).is(
        &["NOTIFICATION 6/7", "close", "KEEPALIVE"],
        false,
        true,
    );
    // 3: ours wins.
    collision(true, State::OpenConfirm, false, 0).is(&DUMP, true, false);
    // 4: ours would win, but it is stuck.
    collision(true, State::OpenConfirm, false, 1000).is(&["close", "KEEPALIVE"], false, true);
    // 4: the peer dials again; its first is closed before its second has said anything.
    collision(false, State::OpenConfirm, true, 0).is(&["KEEPALIVE"], false, true);
}

#[test]
fn collision_5_to_7_with_an_established_session() {
    for ours_wins in [false, true] {
        for theirs in [false, true] {
            // 5: it has restarted.
            let mut restarted = collision(ours_wins, State::Established, theirs, 1000);
            restarted.is(&["close", "KEEPALIVE", "session down"], false, true);
            restarted.rig.receive(restarted.second, &wire::encode_keepalive());
            restarted.is(&["session up"], false, true);
            // 6: without graceful restart the session stays until its hold timer.
            collision_with(ours_wins, State::Established, theirs, 1000, without_restart)
                .is(&DUMP, true, false);
        }
    }
    // 7: ours wins, and was Established just now.
    collision(true, State::Established, false, 999).is(&DUMP, true, false);
    // 7: the peer's wins, but the peer is Established on ours too.
    let mut rig = Rig::new(config());
    rig.start();
    let first = rig.connected();
    rig.establish(first);
    rig.receive(first, &end_of_rib());
    let second = rig.accepted();
    rig.take_actions();
    rig.receive(second, &wire::encode_open(&their_open()));
    Collision { rig, first, second }.is(&DUMP, true, false);
}

#[test]
fn collision_8_to_12_waits_for_what_the_peer_does() {
    let wait = || {
        let mut waiting = collision(false, State::Established, false, 0);
        waiting.is(&[], true, true);
        assert_eq!(waiting.rig.left("collision timer"), MS(1000));
        waiting
    };
    // 9: it is Established on the first.
    let mut both = wait();
    both.rig.receive(both.first, &end_of_rib());
    both.is(&["NOTIFICATION 6/7", "close", "routes"], true, false);
    // 10: it has chosen the second.
    let mut both = wait();
    both.rig.receive(both.second, &wire::encode_keepalive());
    both.is(&["close", "KEEPALIVE", "session down", "session up"], false, true);
    assert_eq!(both.rig.deadline("collision timer"), None);
    // 11: it has closed the first.
    for closes in [true, false] {
        let mut both = wait();
        if closes {
            both.rig.closed(both.first);
            both.is(&["KEEPALIVE", "session down"], false, true);
        } else {
            both.rig.receive(both.first, &notification(code::CEASE, cease::COLLISION));
            both.is(&["close", "KEEPALIVE", "session down"], false, true);
        }
        both.rig.receive(both.second, &wire::encode_keepalive());
        both.is(&["session up"], false, true);
    }
    // 12: it says nothing.
    let mut both = wait();
    both.rig.expire("collision timer");
    both.is(&DUMP, true, false);
    // 8: a peer that dials twice within a second.
    let mut again = collision(true, State::Established, true, 500);
    again.is(&[], true, true);
    again.rig.receive(again.second, &wire::encode_keepalive());
    again.is(&["close", "KEEPALIVE", "session down", "session up"], false, true);
}

/// The first is Established while the second is in OpenSent.
#[test]
fn collision_with_one_whose_open_has_not_come() {
    for ours_wins in [false, true] {
        let mut rig = Rig::new(config());
        if ours_wins {
            rig.speaker.router_id = Ipv4Addr::new(203, 0, 113, 1);
        }
        rig.start();
        let first = rig.connected();
        let second = rig.accepted();
        rig.take_actions();
        rig.establish(first);
        let mut both = Collision { rig, first, second };
        if ours_wins {
            both.is(&["KEEPALIVE", "NOTIFICATION 6/7", "close", "session up"], true, false);
        } else {
            both.is(&["KEEPALIVE", "session up"], true, true);
            assert_eq!(both.rig.left("collision timer"), MS(1000));
            both.rig.receive(first, &end_of_rib());
            both.is(&["NOTIFICATION 6/7", "close", "routes"], true, false);
        }
    }
}

/// A read may end anywhere in a message, and hold any number of them.
#[test]
fn messages_are_the_same_however_they_are_cut() {
    let open = wire::encode_open(&their_open());
    let stream = [open, wire::encode_keepalive(), end_of_rib(), end_of_rib()].concat();
    for size in 1..=stream.len() {
        let mut rig = Rig::new(config());
        rig.start();
        let conn = rig.connected();
        rig.take_actions();
        for piece in stream.chunks(size) {
            rig.receive(conn, piece);
        }
        assert_eq!(rig.peer.messages_in, 4, "pieces of {size}");
        assert_eq!(rig.take_actions(), ["KEEPALIVE", "session up", "routes", "routes"]);
    }
}
