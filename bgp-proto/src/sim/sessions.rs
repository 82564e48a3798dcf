//! Sessions that come up, collide, break and come back. A failure names its seed.

use super::*;
use crate::wire;

const SEEDS: u64 = 200;
const PAIRS: [[u32; 2]; 3] = [[64512, 64512], [64512, 64513], [64513, 64512]];

fn pair(seed: u64) -> [u32; 2] {
    PAIRS[Random::new(seed).index(3)]
}

impl Net {
    fn state(&self, node: usize) -> State {
        self.nodes[node].speaker.peers()[0].state
    }

    fn flaps(&self) -> u32 {
        self.nodes.iter().flat_map(|node| node.speaker.peers()).map(|peer| peer.flaps).sum()
    }

    /// Two connection ends for each pair of nodes, so one connection.
    fn has_one_connection_a_pair(&self) -> bool {
        let nodes = self.nodes.len();
        self.wires.len() == nodes * (nodes - 1)
    }

    /// Delivers the oldest input of one kind of connection of a node.
    fn deliver(&mut self, node: usize, outgoing: bool) -> bool {
        let is_outgoing = |conn: ConnId| conn.0 < u64::MAX / 2;
        let key = self.queue.iter().find(|(_, (to, input))| {
            *to == node && conn_of(input).is_some_and(|conn| is_outgoing(conn) == outgoing)
        });
        let Some(key) = key.map(|(key, _)| *key) else {
            return false;
        };
        let (_, input) = self.queue.remove(&key).unwrap();
        self.input(node, input);
        true
    }
}

/// Both dial at once. At each node the inputs of its two connections come in an order of their own:
/// bit by bit, a word says which connection is next.
#[test]
fn a_collision_ends_in_one_session_in_every_order() {
    const BITS: u32 = 6;
    for (asns, words) in PAIRS.iter().zip(0..).flat_map(|(asns, _)| {
        (0..1_u32 << (2 * BITS)).map(move |word| (asns, [word >> BITS, word & ((1 << BITS) - 1)]))
    }) {
        let mut net = Net::mesh(asns, 1);
        for bit in 0..BITS {
            for (node, word) in words.iter().enumerate() {
                let outgoing = word >> bit & 1 == 1;
                let _ = net.deliver(node, outgoing) || net.deliver(node, !outgoing);
            }
        }
        let name = format!("{asns:?} {words:?}");
        net.run_until(&name, Duration::from_secs(2), Net::is_full);
        net.run_for(Duration::from_secs(3));
        assert!(net.is_full() && net.has_one_connection_a_pair(), "{name}");
        assert_eq!(net.dialled, 2, "{name}: both connections were closed");
    }
}

#[test]
fn collisions_end_in_one_session_whatever_the_delays() {
    for seed in 0..SEEDS {
        for longest in [1, 10, 100, 400] {
            let asns = pair(seed);
            let mut net = Net::mesh(&asns, seed);
            net.longest_delay = Some(longest);
            if seed % 2 == 1 {
                // The second one starts while the first is at it.
                net.kill(1, false);
                net.run_for(Duration::from_millis(seed % 7 * longest / 4));
                net.restart(1, &asns);
            }
            let name = format!("seed {seed}, delays up to {longest} ms");
            net.run_until(&name, SECONDS_10, Net::is_full);
            net.run_for(Duration::from_secs(5));
            assert!(net.is_full() && net.has_one_connection_a_pair(), "{name}");
            let flaps = net.flaps();
            net.run_for(Duration::from_secs(60));
            assert!(net.is_full() && net.flaps() == flaps, "{name}: it does not stay");
        }
    }
}

/// RFC 6286 section 2.3: equal identifiers in different ASes.
#[test]
fn equal_identifiers_collide_once() {
    for seed in 0..SEEDS {
        let asns = [64512, 64513];
        let mut net = Net::mesh(&asns, seed);
        for (index, asn) in asns.into_iter().enumerate() {
            let same =
                SpeakerConfig { router_id: [9; 4].into(), ..config(index, asn, false, seed) };
            net.nodes[index].speaker = Speaker::new(same, net.now);
        }
        net.queue.clear();
        net.wires.clear();
        net.longest_delay = Some(20);
        (0..2).for_each(|index| net.configure(index, &asns));
        net.run_until(&format!("seed {seed}"), Duration::from_secs(2), Net::is_full);
    }
}

#[test]
fn a_restart_in_the_middle_of_every_state_ends_in_a_session() {
    let states =
        [State::Connect, State::Active, State::OpenSent, State::OpenConfirm, State::Established];
    for (seed, state) in (0..SEEDS).flat_map(|seed| states.map(|state| (seed, state))) {
        for (silently, watched) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let name = format!("seed {seed}, {state} at {watched}, silently={silently}");
            let asns = pair(seed);
            let mut net = Net::mesh(&asns, seed);
            net.longest_delay = Some(10);
            let mut steps = net.random.below(8);
            while net.state(watched) != state && !net.is_full() && net.step() {}
            while steps > 0 && net.state(watched) == state && net.step() {
                steps -= 1;
            }
            net.kill(1, silently);
            let away = net.random.below(1500);
            net.run_for(Duration::from_millis(away));
            net.restart(1, &asns);
            net.run_until(&name, Duration::from_secs(3), Net::is_full);
            net.run_for(SECONDS_10 * 2);
            assert!(net.is_full(), "{name}: it does not stay");
        }
    }
}

/// RFC 4724 section 4.2: the stale session gives way to the new connection at once.
#[test]
fn a_peer_whose_fins_were_dropped_is_back_within_a_second() {
    for seed in 0..SEEDS {
        let asns = pair(seed);
        for passive in [None, Some(0), Some(1)] {
            let name = format!("seed {seed}, passive {passive:?}");
            let mut net = Net::mesh(&asns, seed);
            net.longest_delay = Some(10);
            net.run_until(&name, SECONDS_10, Net::is_full);
            net.run_for(Duration::from_millis(1000 + seed * 20));
            if let Some(node) = passive {
                let (key, config) = peer(1 - node, asns[1 - node]);
                let config = PeerConfig { passive: true, ..config };
                net.input(node, Input::SetPeers([(key, config)].into()));
            }
            net.kill(1, true);
            net.nodes[1].speaker = Speaker::new(config(1, asns[1], true, seed), net.now);
            net.nodes[1].alive = true;
            net.configure(1, &asns);
            net.run_until(&name, Duration::from_secs(1), Net::is_full);
            let flushed =
                |(_, event): &(PeerKey, PeerEvent)| matches!(event, PeerEvent::StaleFlushed { .. });
            assert!(!net.nodes[0].events.iter().any(flushed), "{name}: routes were flushed");
        }
    }
}

/// Whoever reads the log has the state in the last line, also where a peer that is back says all at once.
#[test]
fn a_session_is_down_before_the_one_that_replaces_it_is_up() {
    let mut net = Net::mesh(&[64512, 64513], 1);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.run_for(SECONDS_10);
    net.kill(1, true);
    let conn = ConnId(net.next_accepted);
    let [local, remote] = [0, 1].map(|node| SocketAddr::new(address(node), 179));
    net.input(0, Input::Accepted { conn, local, remote });
    let (asn, identifier) = (Asn::new(64513).unwrap(), [192, 0, 2, 2].into());
    let open = wire::Open { asn, hold_time: 9, identifier, capabilities: Vec::new() };
    let bytes = [wire::encode_open(&open), wire::encode_keepalive()].concat();
    net.input(0, Input::Received { conn, bytes });
    let told = net.nodes[0].events.iter().filter_map(|(_, event)| match event {
        PeerEvent::Up => Some(true),
        PeerEvent::Down { .. } => Some(false),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn a_stopped_peer_stays_away_until_it_is_started() {
    let asns = [64512, 64513];
    let mut net = Net::mesh(&asns, 4);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    let (key, config) = peer(1, 64513);
    let stopped = PeerConfig { shutdown: Some("drained".to_owned()), ..config.clone() };
    net.input(0, Input::SetPeers([(key, stopped)].into()));
    net.run_for(Duration::from_secs(60));
    assert_eq!((net.state(0), net.wires.len()), (State::Idle, 0));
    assert!(net.nodes[1].routes.is_empty(), "a Hard Reset flushes");
    let text = net.nodes[1].events.iter().any(|(_, event)| match event {
        PeerEvent::Notification { sent: false, notification } => {
            notification.data == [&[6, 2, 7][..], b"drained"].concat()
        }
        _ => false,
    });
    assert!(text, "the reason is not told");
    net.input(0, Input::SetPeers([(key, config)].into()));
    net.run_until("started", Duration::from_secs(1), Net::is_full);
}

/// Old kernel routes go when every peer has sent its own; one that is stopped sends none.
#[test]
fn a_stopped_peer_is_not_waited_for_after_a_restart() {
    for before in [false, true] {
        let mut net = Net::mesh(&[64512, 64513], 4);
        net.run_until("mesh", SECONDS_10, Net::is_full);
        net.kill(1, false);
        net.nodes[0].speaker = Speaker::new(config(0, 64512, true, 4), net.now);
        net.nodes[0].converged = None;
        let (key, config) = peer(1, 64513);
        let stopped = PeerConfig { shutdown: Some(String::new()), ..config.clone() };
        if !before {
            net.input(0, Input::SetPeers([(key, config)].into()));
            assert_eq!(net.nodes[0].converged, None);
        }
        net.input(0, Input::SetPeers([(key, stopped)].into()));
        assert_eq!(net.nodes[0].converged, Some(vec![]), "before={before}");
    }
}

/// Nodes die, come back and lose sight of each other at random; in the end all is well again.
#[test]
fn chaos_ends_in_one_session_a_pair() {
    let asns = [64512, 64512, 64513, 64514];
    for seed in 0..SEEDS {
        let mut net = Net::mesh(&asns, seed);
        net.longest_delay = Some(30);
        for _ in 0..12 {
            let (a, b) = (net.random.index(4), net.random.index(4));
            match net.random.below(5) {
                0 | 1 if net.nodes[a].alive => {
                    let silently = net.random.below(2) == 0;
                    net.kill(a, silently);
                }
                0..=2 if !net.nodes[a].alive => net.restart(a, &asns),
                3 if a != b => drop(net.cut.insert((a.min(b), a.max(b)))),
                _ => net.heal(),
            }
            let pause = net.random.below(4000);
            net.run_for(Duration::from_millis(pause));
        }
        net.heal();
        for index in 0..asns.len() {
            if !net.nodes[index].alive {
                net.restart(index, &asns);
            }
        }
        net.run_until(&format!("seed {seed}"), Duration::from_secs(60), Net::is_full);
        net.run_for(Duration::from_secs(30));
        assert!(net.is_full(), "seed {seed}: it does not stay");
    }
}
