//! Any events in any order.

use proptest::prelude::*;

use super::*;

/// Something that happens; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Expire,
    Connected,
    ConnectFailed,
    Accepted,
    Closed(usize),
    Received(usize, Said),
    Written(usize, usize),
    Reconfigure { passive: bool, stopped: bool, delay: u64, hold_time: u16 },
    Deconfigure,
}

/// What the peer says.
#[derive(Debug, Clone)]
enum Said {
    Open { identifier: u32, hold_time: u16, restarts: bool },
    WrongOpen,
    Keepalive,
    EndOfRib,
    Notification(u8, u8),
    Piece(Vec<u8>),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0_u64..3000).prop_map(Event::Wait),
        3 => Just(Event::Expire),
        4 => Just(Event::Connected),
        1 => Just(Event::ConnectFailed),
        4 => Just(Event::Accepted),
        1 => (0_usize..3).prop_map(Event::Closed),
        16 => (0_usize..3, said()).prop_map(|(conn, said)| Event::Received(conn, said)),
        2 => (0_usize..3, 0_usize..100).prop_map(|(conn, count)| Event::Written(conn, count)),
        1 => (any::<bool>(), prop::bool::weighted(0.3), 0_u64..2, 0_u16..2).prop_map(
            |(passive, stopped, delay, hold_time)| {
                Event::Reconfigure { passive, stopped, delay, hold_time: hold_time * 90 }
            }
        ),
        1 => Just(Event::Deconfigure),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        // Below, equal to and above our identifier.
        6 => (0_u32..3, 0_u16..2, any::<bool>()).prop_map(|(identifier, hold_time, restarts)| {
            Said::Open { identifier: 0xc000_0200 + identifier, hold_time: hold_time * 30, restarts }
        }),
        6 => Just(Said::Keepalive),
        2 => Just(Said::EndOfRib),
        1 => Just(Said::WrongOpen),
        1 => (1_u8..9, 0_u8..10).prop_map(|(code, subcode)| Said::Notification(code, subcode)),
        1 => prop::collection::vec(any::<u8>(), 1..30).prop_map(Said::Piece),
    ]
}

impl Said {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Open { identifier, hold_time, restarts } => {
                let mut open = Open { hold_time, identifier: identifier.into(), ..their_open() };
                if !restarts {
                    open.capabilities.truncate(2);
                }
                wire::encode_open(&open)
            }
            Self::WrongOpen => wire::encode_open(&stranger()),
            Self::Keepalive => wire::encode_keepalive(),
            Self::EndOfRib => end_of_rib(),
            Self::Notification(code, subcode) => notification(code, subcode),
            Self::Piece(bytes) => bytes,
        }
    }
}

fn happen(rig: &mut Rig, event: Event) {
    let pick = |rig: &Rig, index: usize| {
        rig.open.iter().nth(index % rig.open.len().max(1)).copied().unwrap_or(ConnId(999))
    };
    match event {
        Event::Wait(time) => {
            rig.wait(Duration::from_millis(time));
            rig.tick();
        }
        Event::Expire => {
            let deadline = rig.peer.next_deadline().map_or(rig.now, |(deadline, _)| deadline);
            rig.now = rig.now.max(deadline);
            rig.tick();
        }
        Event::Connected => drop(rig.connected()),
        Event::ConnectFailed => rig.connect_failed(),
        Event::Accepted => drop(rig.accepted()),
        Event::Closed(index) => rig.closed(pick(rig, index)),
        Event::Received(index, said) => rig.receive(pick(rig, index), &said.bytes()),
        Event::Written(index, count) => {
            let conn = pick(rig, index);
            rig.act(|peer, sink| peer.written(conn, count, sink.now));
        }
        Event::Reconfigure { passive, stopped, delay, hold_time } => rig.reconfigure(|config| {
            config.passive = passive;
            config.shutdown = stopped.then(String::new);
            config.delay_open = Duration::from_secs(delay);
            config.hold_time = hold_time;
        }),
        Event::Deconfigure => {
            rig.act(Peer::deconfigure);
            assert!(rig.open.is_empty() && rig.opening.is_empty(), "left open");
            rig.start();
        }
    }
}

/// What holds at all times. `up` is whether a session was reported.
fn check(rig: &mut Rig, up: &mut bool) {
    for action in rig.take_actions() {
        match action.as_str() {
            "session up" => assert!(!std::mem::replace(up, true), "up twice"),
            "session down" => assert!(std::mem::replace(up, false), "down twice"),
            "routes" | "refresh" => assert!(*up, "routes without a session"),
            _ => {}
        }
    }
    let peer = &rig.peer;
    let established = peer.connections.iter().filter(|c| c.state == State::Established).count();
    assert_eq!(established, usize::from(*up), "Established is what was reported");
    let held: BTreeSet<ConnId> = peer.connections.iter().map(|c| c.id).collect();
    assert_eq!(held, rig.open, "each open connection has an owner");
    let opening = matches!(peer.dial, Dial::Opening(..));
    assert_eq!(usize::from(opening), rig.opening.len());
    if matches!(peer.dial, Dial::Stopped | Dial::Held(_)) {
        assert!(held.is_empty(), "Idle has no connections");
    }
    for (deadline, timer) in peer.timers() {
        // The idle hold time doubles up to an hour for a peer that says we had too many prefixes;
        // the longest of the others is the send hold time.
        let longest = if timer == "idle hold timer" { 3600 } else { 480 };
        let limit = rig.now + Duration::from_secs(longest);
        assert!(deadline <= limit, "the {timer} ends too far away");
    }
    // Nothing hangs: what does not wait for the peer to call, or for people, has a timer.
    let rests = peer.dial == Dial::Stopped
        || peer.config.passive && peer.connections.is_empty()
        || established == 1;
    assert!(rests || peer.next_deadline().is_some(), "{:?} without a timer", peer.state());
    for connection in &peer.connections {
        let ends = connection.timers().next().is_some() || connection.state == State::Established;
        assert!(ends, "{:?} has no end", connection.state);
    }
}

proptest! {
    #[test]
    fn any_events_leave_one_session_and_nothing_open(
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut rig = Rig::new(config());
        let mut up = false;
        rig.start();
        for event in events {
            happen(&mut rig, event);
            check(&mut rig, &mut up);
        }
        // The peer falls silent: every connection ends, except a session without a hold time whose
        // bytes are all taken.
        let end = rig.now + Duration::from_secs(2000);
        while let Some((deadline, _)) = rig.peer.next_deadline().filter(|(at, _)| *at <= end) {
            rig.now = rig.now.max(deadline);
            rig.tick();
            rig.connect_failed();
            check(&mut rig, &mut up);
        }
        assert_eq!(rig.open.len(), usize::from(up), "connections are left open");
        // It is back, and comes to a session at once.
        if !up && rig.peer.config.shutdown.is_none() {
            rig.start();
            let conn = rig.accepted();
            if rig.open.contains(&conn) {
                rig.establish(conn);
                check(&mut rig, &mut up);
                assert!(up, "no session with a peer that behaves");
            }
        }
    }
}
