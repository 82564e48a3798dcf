//! Speakers against each other in virtual time: a network that delays, cuts and forgets.

mod filters;
mod helper;
mod reflection;
mod restarts;
mod script;
mod scripted;
mod sessions;
mod topologies;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use twill_types::{Asn, BgpNextHop, Family, Prefix};

use self::topologies::Router;
use crate::{
    Conflict, ConnId, Input, NextHopState, Output, Own, PeerConfig, PeerEvent, PeerKey, PeerKind,
    Speaker, SpeakerConfig, State, Time,
};

const DELAY: Duration = Duration::from_millis(3);

/// One end of a connection: which node, and what it calls it.
type End = (usize, ConnId);

struct Node {
    speaker: Speaker,
    /// What is there in the place of the speaker.
    router: Option<Router>,
    address: IpAddr,
    /// The process runs.
    alive: bool,
    routes: BTreeMap<Prefix, Vec<IpAddr>>,
    /// Who was not heard by the end of the restart.
    converged: Option<Vec<PeerKey>>,
    conflicts: Vec<Conflict>,
    events: Vec<(PeerKey, PeerEvent)>,
    /// Its next timer, as of its last input.
    deadline: Option<Time>,
}

struct Net {
    now: Time,
    nodes: Vec<Node>,
    /// Who is at the other end.
    wires: BTreeMap<End, End>,
    queue: BTreeMap<(Time, u64), (usize, Input)>,
    sequence: u64,
    next_accepted: u64,
    /// Packets between these two are dropped without a word.
    cut: BTreeSet<(usize, usize)>,
    /// What waits for a cut to heal.
    held: Vec<(usize, Input)>,
    /// Each input takes its own time, up to so many milliseconds; `None` is always the same.
    longest_delay: Option<u64>,
    /// Connections that were asked for.
    dialled: u32,
    random: Random,
    /// When the last input of a connection arrives: none overtakes it.
    last: BTreeMap<End, Time>,
}

/// Chance out of a seed (xorshift64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn index(&mut self, end: u64) -> usize {
        usize::try_from(self.below(end)).unwrap()
    }
}

/// The connection that an input is about.
fn conn_of(input: &Input) -> Option<ConnId> {
    match input {
        Input::Connected { conn, .. }
        | Input::ConnectFailed { conn, .. }
        | Input::Accepted { conn, .. }
        | Input::Received { conn, .. }
        | Input::Written { conn, .. }
        | Input::Closed { conn, .. } => Some(*conn),
        Input::Tick
        | Input::SetPeers(_)
        | Input::SetOwn(_)
        | Input::SetReflection(_)
        | Input::NextHops(_) => None,
    }
}

fn address(index: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(index).unwrap() + 1).into()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn block(index: usize) -> Prefix {
    prefix(&format!("10.0.{index}.0/24"))
}

fn config(index: usize, asn: u32, restarting: bool, seed: u64) -> SpeakerConfig {
    let IpAddr::V4(router_id) = address(index) else { unreachable!() };
    SpeakerConfig {
        router_id,
        asn: Asn::new(asn).unwrap(),
        hostname: format!("node{index}"),
        seed,
        forwarding: match restarting {
            true => [Family::V4, Family::V6].into(),
            false => BTreeSet::new(),
        },
        selection_deferral: Duration::from_secs(60),
        max_paths: 16,
    }
}

fn peer(index: usize, asn: u32) -> (PeerKey, PeerConfig) {
    let key = PeerKey { address: address(index), port: 179 };
    let asn = Asn::new(asn).unwrap();
    let config = PeerConfig {
        hold_time: 9,
        ..PeerConfig::new(&format!("node{index}"), PeerKind::Mesh, asn)
    };
    (key, config)
}

impl Net {
    /// A full mesh of nodes with these AS numbers, each announcing its block.
    fn mesh(asns: &[u32], seed: u64) -> Self {
        let mut net = Self::apart(asns, seed);
        for index in 0..asns.len() {
            net.configure(index, asns);
        }
        net
    }

    /// Nodes with these AS numbers that know nothing of each other.
    fn apart(asns: &[u32], seed: u64) -> Self {
        let mut net = Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            wires: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            next_accepted: u64::MAX,
            cut: BTreeSet::new(),
            held: Vec::new(),
            longest_delay: None,
            dialled: 0,
            random: Random::new(seed),
            last: BTreeMap::new(),
        };
        for (index, asn) in asns.iter().enumerate() {
            let config = config(index, *asn, false, seed.wrapping_mul(31) + index as u64);
            net.nodes.push(Node {
                speaker: Speaker::new(config, Time::ZERO),
                router: None,
                address: address(index),
                alive: true,
                routes: BTreeMap::new(),
                converged: None,
                conflicts: Vec::new(),
                events: Vec::new(),
                deadline: None,
            });
        }
        net
    }

    fn configure(&mut self, index: usize, asns: &[u32]) {
        self.input(index, Input::SetOwn(Own::announced([block(index)])));
        let others = (0..asns.len()).filter(|other| *other != index);
        let peers = others.map(|other| peer(other, asns[other])).collect();
        self.input(index, Input::SetPeers(peers));
    }

    fn schedule(&mut self, node: usize, input: Input) {
        self.sequence += 1;
        let delay = self
            .longest_delay
            .map_or(DELAY, |longest| Duration::from_millis(self.random.below(longest + 1)));
        let mut at = self.now + delay;
        if let Some(conn) = conn_of(&input) {
            let last = self.last.entry((node, conn)).or_default();
            at = at.max(*last);
            *last = at;
        }
        self.queue.insert((at, self.sequence), (node, input));
    }

    fn input(&mut self, index: usize, input: Input) {
        if !self.nodes[index].alive {
            return;
        }
        if let Some(router) = &mut self.nodes[index].router {
            let outputs = router.hear(input);
            return outputs.into_iter().for_each(|output| self.output(index, output));
        }
        self.nodes[index].speaker.handle(self.now, input);
        self.settle(index);
    }

    /// A node asks a peer for all its routes again, if it can; says whether it has.
    fn ask_again(&mut self, index: usize, peer: PeerKey) -> bool {
        let asked = self.nodes[index].speaker.request_refresh(self.now, peer, None);
        self.settle(index);
        asked.is_ok()
    }

    /// What follows from an input.
    fn settle(&mut self, index: usize) {
        self.nodes[index].speaker.check_lookup();
        while let Some(output) = self.nodes[index].speaker.poll_output() {
            self.output(index, output);
        }
        let node = &mut self.nodes[index];
        node.deadline = node.speaker.poll_timeout().map(|(deadline, _)| deadline);
    }

    fn output(&mut self, index: usize, output: Output) {
        match output {
            Output::Connect { conn, remote, .. } => self.connect(index, conn, remote),
            Output::Send { conn, bytes } => {
                self.schedule(index, Input::Written { conn, count: bytes.len() });
                if let Some((other, conn)) = self.wires.get(&(index, conn)).copied() {
                    self.carry(index, other, Input::Received { conn, bytes });
                }
            }
            Output::Close { conn } | Output::Abort { conn } => self.close((index, conn)),
            Output::Routes(changes) => {
                let routes = &mut self.nodes[index].routes;
                for change in changes {
                    for prefix in change.prefixes.iter() {
                        if change.next_hops.is_empty() {
                            routes.remove(&prefix);
                        } else {
                            let next_hops = change.next_hops.iter().map(|hop| hop.address);
                            routes.insert(prefix, next_hops.collect());
                        }
                    }
                }
            }
            Output::TrackNextHops(addresses) => {
                let state = NextHopState::Reachable { metric: 0 };
                let states = addresses.into_iter().map(|address| (address, state)).collect();
                self.schedule(index, Input::NextHops(states));
            }
            Output::Converged { unheard } => self.nodes[index].converged = Some(unheard),
            Output::Conflicts(conflicts) => self.nodes[index].conflicts = conflicts,
            Output::Event(key, event) => self.nodes[index].events.push((key, event)),
            Output::Refused { .. } => {}
        }
    }

    /// What is sent over a cut is sent again by TCP when it is healed.
    fn carry(&mut self, from: usize, to: usize, input: Input) {
        match self.is_cut(from, to) {
            true => self.held.push((to, input)),
            false => self.schedule(to, input),
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        for (to, input) in std::mem::take(&mut self.held) {
            self.schedule(to, input);
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn connect(&mut self, index: usize, conn: ConnId, remote: SocketAddr) {
        self.dialled += 1;
        let other = self.nodes.iter().position(|node| node.address == remote.ip()).unwrap();
        if !self.nodes[other].alive || self.is_cut(index, other) {
            return self.schedule(index, Input::ConnectFailed { conn, reason: "refused".into() });
        }
        let accepted = ConnId(self.next_accepted);
        self.next_accepted -= 1;
        self.wires.insert((index, conn), (other, accepted));
        self.wires.insert((other, accepted), (index, conn));
        let local = SocketAddr::new(self.nodes[index].address, 40000);
        let end = SocketAddr::new(self.nodes[other].address, 179);
        self.schedule(index, Input::Connected { conn, local });
        self.schedule(other, Input::Accepted { conn: accepted, local: end, remote: local });
    }

    fn close(&mut self, end: End) {
        let Some(other) = self.wires.remove(&end) else {
            return;
        };
        if self.wires.remove(&other).is_some() {
            let reason = "closed".to_owned();
            self.carry(end.0, other.0, Input::Closed { conn: other.1, reason });
        }
    }

    /// The process of a node dies; its kernel closes its connections, or drops them unseen.
    fn kill(&mut self, index: usize, silently: bool) {
        self.nodes[index].alive = false;
        let ends: Vec<End> = self.wires.keys().filter(|end| end.0 == index).copied().collect();
        for end in ends {
            if silently {
                // The other end stays open, and what it sends goes nowhere.
                if let Some(other) = self.wires.remove(&end) {
                    self.wires.remove(&other);
                }
            } else {
                self.close(end);
            }
        }
        // The next process numbers its connections from the start again.
        self.queue.retain(|_, (node, _)| *node != index);
        self.last.retain(|(node, _), _| *node != index);
        self.held.retain(|(node, _)| *node != index);
    }

    fn restart(&mut self, index: usize, asns: &[u32]) {
        let config = config(index, asns[index], true, 77);
        self.nodes[index].speaker = Speaker::new(config, self.now);
        self.nodes[index].alive = true;
        self.nodes[index].converged = None;
        self.configure(index, asns);
    }

    /// When something happens next.
    fn next(&self) -> Option<Time> {
        let live = self.nodes.iter().filter(|node| node.alive);
        let timers = live.filter_map(|node| node.deadline);
        timers.chain(self.queue.keys().map(|(at, _)| *at)).min()
    }

    fn step(&mut self) -> bool {
        let timers = self.nodes.iter().enumerate().filter(|(_, node)| node.alive);
        let next_timer = timers.filter_map(|(i, node)| Some((node.deadline?, i))).min();
        let next_message = self.queue.keys().next().copied();
        match (next_timer, next_message) {
            (Some((deadline, index)), message) if message.is_none_or(|(at, _)| deadline < at) => {
                self.now = self.now.max(deadline);
                self.input(index, Input::Tick);
            }
            (_, Some(key)) => {
                self.now = key.0;
                let Some((index, input)) = self.queue.remove(&key) else {
                    return false;
                };
                self.input(index, input);
            }
            (None, None) | (Some(_), None) => return false,
        }
        true
    }

    fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = self.now + limit;
        while !done(self) {
            assert!(self.step() && self.now <= deadline, "{what}: not within {limit:?}");
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next().is_some_and(|at| at <= end) && self.step() {}
        self.now = end;
    }

    /// Every live node has a route to every other's block, and one session with each.
    fn is_full(&self) -> bool {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|i| self.nodes[*i].alive).collect();
        live.iter().all(|i| {
            let node = &self.nodes[*i];
            live.iter().filter(|j| *j != i).all(|j| node.routes.contains_key(&block(*j)))
                && node.speaker.peers().iter().all(|peer| peer.state == State::Established)
        })
    }
}

const SECONDS_10: Duration = Duration::from_secs(10);

#[test]
fn a_mesh_converges_with_one_session_a_pair() {
    for seed in 0..50 {
        let mut net = Net::mesh(&[64512, 64512, 64512, 64513], seed);
        net.run_until("mesh", SECONDS_10, Net::is_full);
        net.run_for(Duration::from_secs(120));
        assert!(net.is_full(), "seed {seed}");
        assert_eq!(net.wires.len(), 4 * 3, "seed {seed}: a collision left two connections");
        let flaps: u32 = net.nodes[0].speaker.peers().iter().map(|peer| peer.flaps).sum();
        assert_eq!(flaps, 0, "seed {seed}");
    }
}

#[test]
fn a_killed_node_keeps_its_routes_until_it_is_back() {
    for silently in [false, true] {
        let asns = [64512, 64512, 64513];
        let mut net = Net::mesh(&asns, 3);
        net.run_until("mesh", SECONDS_10, Net::is_full);
        net.kill(1, silently);
        net.run_for(Duration::from_secs(1));
        assert!(net.nodes[0].routes.contains_key(&block(1)), "kept, silently={silently}");
        net.restart(1, &asns);
        net.run_until("back", Duration::from_secs(2), |net| {
            net.is_full() && net.nodes[1].converged.is_some()
        });
        for node in [0, 2] {
            let lost = net.nodes[node]
                .events
                .iter()
                .any(|(_, event)| matches!(event, PeerEvent::StaleFlushed { .. }));
            assert!(!lost, "node {node} flushed routes, silently={silently}");
        }
    }
}

#[test]
fn a_node_that_stays_away_loses_its_routes_after_the_restart_time() {
    let mut net = Net::mesh(&[64512, 64513], 1);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.kill(1, false);
    net.run_for(Duration::from_secs(119));
    assert!(net.nodes[0].routes.contains_key(&block(1)));
    net.run_for(Duration::from_secs(3));
    assert!(!net.nodes[0].routes.contains_key(&block(1)));
}

#[test]
fn a_route_that_is_gone_after_the_restart_is_flushed_at_end_of_rib() {
    let asns = [64512, 64513];
    let mut net = Net::mesh(&asns, 1);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.kill(1, false);
    net.nodes[1].speaker = Speaker::new(config(1, 64513, true, 5), net.now);
    net.nodes[1].alive = true;
    net.input(1, Input::SetOwn(Own::announced([prefix("10.9.0.0/24")])));
    net.input(1, Input::SetPeers([peer(0, 64512)].into()));
    net.run_until("new route", SECONDS_10, |net| {
        let routes = &net.nodes[0].routes;
        routes.contains_key(&prefix("10.9.0.0/24")) && !routes.contains_key(&block(1))
    });
}

/// Old kernel routes go with the word that all is known, so by then every route has to be out: also
/// those whose next hop had to be found first.
#[test]
fn convergence_waits_for_the_next_hops() {
    let asns = [64512, 64513];
    let mut net = Net::mesh(&asns, 5);
    net.run_until("a full mesh", Duration::from_secs(30), Net::is_full);
    net.kill(0, false);
    net.nodes[0].routes.clear();
    net.restart(0, &asns);
    net.run_until("convergence", Duration::from_secs(30), |net| net.nodes[0].converged.is_some());
    assert!(net.nodes[0].routes.contains_key(&block(1)), "{:?}", net.nodes[0].routes);
}

#[test]
fn silence_ends_a_session_by_the_hold_timer() {
    let mut net = Net::mesh(&[64512, 64513], 1);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.cut.insert((0, 1));
    net.run_for(Duration::from_secs(8));
    let speaker = &net.nodes[0].speaker;
    assert_eq!(speaker.peers()[0].state, State::Established);
    let (now, then) = (net.now, net.now + Duration::from_secs(4));
    assert_eq!((speaker.has_expired_hold(now), speaker.has_expired_hold(then)), (false, true));
    net.run_for(Duration::from_secs(4));
    assert!(!net.nodes[0].speaker.has_expired_hold(net.now));
    assert_ne!(net.nodes[0].speaker.peers()[0].state, State::Established);
    let told = net.nodes[0].events.iter().any(|(_, event)| match event {
        PeerEvent::Notification { sent: true, notification } => notification.code == 4,
        _ => false,
    });
    assert!(told, "no Hold Timer Expired");
    net.heal();
    net.run_until("healed", Duration::from_secs(60), Net::is_full);
}

#[test]
fn a_removed_peer_is_told_and_its_routes_go_at_once() {
    let mut net = Net::mesh(&[64512, 64513], 1);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.input(0, Input::SetPeers(BTreeMap::new()));
    assert!(net.nodes[0].routes.is_empty());
    net.run_until("told", SECONDS_10, |net| {
        net.nodes[1].events.iter().any(|(_, event)| match event {
            PeerEvent::Notification { sent: false, notification } => {
                // Both keep routes over a NOTIFICATION, so it comes as a Hard Reset (RFC 8538).
                notification.to_string() == "Cease/Hard Reset (6/9): Cease/Peer De-configured (6/3)"
            }
            _ => false,
        })
    });
}

#[test]
fn withdrawn_prefixes_go_and_new_ones_come_without_a_reset() {
    let mut net = Net::mesh(&[64512, 64512, 64513], 9);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    let new = prefix("10.0.7.0/24");
    net.input(1, Input::SetOwn(Own::announced([new])));
    net.run_until("moved", SECONDS_10, |net| {
        [0, 2].iter().all(|node| {
            let routes = &net.nodes[*node].routes;
            routes.contains_key(&new) && !routes.contains_key(&block(1))
        })
    });
    assert!(net.nodes.iter().all(|node| node.speaker.peers().iter().all(|p| p.flaps == 0)));
}

#[test]
fn what_we_own_is_not_learned_from_others_unless_we_have_lent_it() {
    let mut net = Net::mesh(&[64512, 64513], 9);
    net.run_until("mesh", SECONDS_10, Net::is_full);
    let inside = prefix("10.0.0.128/25");
    net.input(1, Input::SetOwn(Own::announced([block(1), inside])));
    net.run_until("a conflict", SECONDS_10, |net| !net.nodes[0].conflicts.is_empty());
    assert_eq!(net.nodes[0].conflicts[0].prefix, inside);
    assert_eq!(net.nodes[0].conflicts[0].ours, block(0));
    assert!(!net.nodes[0].routes.contains_key(&inside));

    let lent = Own { lent: [inside].into(), ..Own::announced([block(0)]) };
    net.input(0, Input::SetOwn(lent));
    assert!(net.nodes[0].routes.contains_key(&inside), "it was announced before");
    assert_eq!(net.nodes[0].conflicts, []);
    net.input(0, Input::SetOwn(Own::announced([block(0)])));
    assert!(!net.nodes[0].routes.contains_key(&inside), "taken back");
    assert_eq!(net.nodes[0].conflicts.len(), 1);
    net.input(1, Input::SetOwn(Own::announced([block(1)])));
    net.run_until("the end of it", SECONDS_10, |net| net.nodes[0].conflicts.is_empty());
}

#[test]
fn a_wrong_as_is_refused_with_the_right_notification() {
    let mut net = Net::mesh(&[64512, 64513], 9);
    net.input(0, Input::SetPeers([peer(1, 64999)].into()));
    net.run_for(SECONDS_10);
    assert_ne!(net.nodes[0].speaker.peers()[0].state, State::Established);
    let told = net.nodes[1].events.iter().any(|(_, event)| match event {
        PeerEvent::Notification { sent: false, notification } => {
            (notification.code, notification.subcode) == (2, 2)
        }
        _ => false,
    });
    assert!(told);
}

/// RFC 8212: nothing that was learned is passed on, whatever the kind of session on both sides.
#[test]
fn a_node_is_no_transit() {
    for asns in [[64512, 64513, 64514], [64512, 64512, 64514], [64512, 64512, 64512]] {
        let mut net = Net::mesh(&asns, 4);
        net.input(0, Input::SetPeers([peer(1, asns[1])].into()));
        net.input(2, Input::SetPeers([peer(1, asns[1])].into()));
        net.run_until("the middle", SECONDS_10, |net| net.nodes[1].routes.len() == 2);
        net.run_for(SECONDS_10);
        for end in [0, 2] {
            let told: Vec<_> = net.nodes[end].routes.keys().copied().collect();
            assert_eq!(told, [block(1)], "{asns:?}");
        }
        let out = net.nodes[1].speaker.peers().iter().map(|p| p.prefixes_out).max();
        assert_eq!(out, Some(1));
    }
}

/// The other family's next hop is not part of what was negotiated, so its change resets nothing.
#[test]
fn another_next_hop_is_announced_without_a_reset() {
    let mut net = Net::mesh(&[64512, 64513], 4);
    let v6 = prefix("2001:db8:7::/64");
    net.input(0, Input::SetOwn(Own::announced([block(0), v6])));
    net.run_until("mesh", SECONDS_10, Net::is_full);
    net.run_for(SECONDS_10);
    assert!(!net.nodes[1].routes.contains_key(&v6), "without a next hop");
    for next_hop in [Some("2001:db8::1"), Some("2001:db8::2"), None] {
        let next_hop = next_hop.map(|text| text.parse::<IpAddr>().unwrap());
        let (key, mut config) = peer(1, 64513);
        config.other_next_hop = next_hop;
        net.input(0, Input::SetPeers([(key, config)].into()));
        net.run_until("the news", SECONDS_10, |net| {
            net.nodes[1].routes.get(&v6).and_then(|hops| hops.first().copied()) == next_hop
        });
        assert!(net.nodes[1].routes.contains_key(&block(0)));
    }
    assert_eq!(net.nodes[0].speaker.peers()[0].flaps, 0);
}

/// The explanation is found by an address inside, and says what the kernel was told.
#[test]
fn routes_are_explained() {
    let mut net = Net::mesh(&[64512, 64513, 64513], 2);
    let shared = prefix("10.9.0.0/24");
    for node in [1, 2] {
        net.input(node, Input::SetOwn(Own::announced([block(node), shared])));
    }
    net.run_until("mesh", SECONDS_10, Net::is_full);
    let hops = [address(1), address(2)];
    net.run_until("both paths", SECONDS_10, |net| {
        net.nodes[0].routes.get(&shared).is_some_and(|found| found == &hops)
    });
    let speaker = &net.nodes[0].speaker;
    let explained = speaker.explain(net.now, prefix("10.9.0.77/32")).unwrap();
    let expected = hops.map(BgpNextHop::from).to_vec();
    assert_eq!((explained.prefix, explained.next_hops), (shared, expected));
    let outcomes: Vec<String> = explained.paths.iter().map(|p| p.outcome.to_string()).collect();
    let second = "as good as 192.0.2.2, which comes first by lower router id";
    assert_eq!(outcomes, ["best", second]);
    let own = speaker.explain(net.now, prefix("10.0.0.3/32")).unwrap();
    assert_eq!((own.prefix, own.announced), (block(0), Some(true)));
    assert!(speaker.explain(net.now, prefix("172.16.0.0/12")).is_none());
}
