//! Networks of any shape, disturbed in any way: in the end every node knows what a naive model of the
//! network says, and nothing else, and it stays so. A failure names its seed.

mod model;

use super::*;
use crate::Reflection;

/// The AS of the nodes inside.
const INSIDE: u32 = 64512;
/// Networks that a run of the tests looks at. `TWILL_SIMULATIONS` asks for more, `TWILL_SEED` for others.
const SIMULATIONS: u64 = 200;
/// Longer than any timer of a session, and than the kept routes of one that is gone.
const SETTLING: Duration = Duration::from_secs(500);

/// A route reflector.
#[derive(Debug, Clone)]
struct Reflector {
    cluster: u8,
    clients: BTreeSet<usize>,
}

/// Who there is, and who speaks with whom.
#[derive(Debug, Clone)]
struct Shape {
    asns: Vec<u32>,
    reflectors: BTreeMap<usize, Reflector>,
    /// Pairs, the lower number first.
    sessions: BTreeSet<(usize, usize)>,
    hold_time: u16,
    /// Seconds.
    restart_time: u16,
    /// What each announces.
    own: Vec<BTreeSet<Prefix>>,
}

/// The prefix that several announce.
fn shared() -> Prefix {
    prefix("10.0.99.0/24")
}

/// What is passed on: not the blocks of the nodes from 8 on.
fn pools() -> BTreeSet<Prefix> {
    [prefix("10.0.0.0/21"), shared()].into()
}

impl Random {
    fn place(&mut self, length: usize) -> usize {
        self.index(length as u64)
    }
}

impl Shape {
    fn random(random: &mut Random) -> Self {
        let inside = 2 + random.index(7);
        let edges = random.index(5);
        let mut asns = vec![INSIDE; inside];
        asns.extend((0..edges).map(|_| 64513 + u32::try_from(random.below(3)).unwrap()));
        let mut shape = Self {
            reflectors: BTreeMap::new(),
            sessions: BTreeSet::new(),
            hold_time: if random.below(8) == 0 { 9 } else { 180 },
            restart_time: [0, 20, 120][random.index(3)],
            own: (0..asns.len()).map(|index| [block(index)].into()).collect(),
            asns,
        };
        match random.below(3) {
            0 => shape.add_mesh(0..inside),
            kind => shape.add_reflectors(inside, kind == 1, random),
        }
        for edge in inside..inside + edges {
            for _ in 0..=random.below(2) {
                let other = random.place(inside);
                shape.sessions.insert((other, edge));
            }
        }
        for _ in 0..random.below(3) {
            let node = random.place(shape.asns.len());
            shape.own[node].insert(shared());
        }
        shape
    }

    fn add_mesh(&mut self, nodes: std::ops::Range<usize>) {
        for low in nodes.clone() {
            self.sessions.extend((low + 1..nodes.end).map(|high| (low, high)));
        }
    }

    /// One to three reflectors in a mesh; of the others some are clients, and some no clients, of some
    /// of them.
    fn add_reflectors(&mut self, inside: usize, one_cluster: bool, random: &mut Random) {
        let count = 1 + random.place(3.min(inside - 1));
        self.add_mesh(0..count);
        for index in 0..count {
            let cluster = if one_cluster { 1 } else { u8::try_from(index + 1).unwrap() };
            self.reflectors.insert(index, Reflector { cluster, clients: BTreeSet::new() });
        }
        for node in count..inside {
            let client = random.below(4) > 0;
            for reflector in 0..count {
                if reflector == node % count || random.below(2) == 0 {
                    self.sessions.insert((reflector, node));
                    let clients = self.reflectors.get_mut(&reflector).map(|r| &mut r.clients);
                    clients.filter(|_| client).map(|clients| clients.insert(node));
                }
            }
        }
    }

    fn neighbors(&self, node: usize) -> impl Iterator<Item = usize> {
        self.sessions.iter().filter_map(move |(low, high)| match node {
            _ if node == *low => Some(*high),
            _ if node == *high => Some(*low),
            _ => None,
        })
    }

    fn is_client(&self, reflector: usize, node: usize) -> bool {
        self.reflectors.get(&reflector).is_some_and(|found| found.clients.contains(&node))
    }

    /// Configures a node that has just started.
    fn configure(&self, net: &mut Net, node: usize) {
        if let Some(reflector) = self.reflectors.get(&node) {
            let cluster_id = Ipv4Addr::new(0, 0, 0, reflector.cluster);
            let reflection = Reflection { cluster_id, pools: pools() };
            net.input(node, Input::SetReflection(Some(reflection)));
        }
        net.input(node, Input::SetOwn(Own::announced(self.own[node].iter().copied())));
        let session = |other: usize| {
            let (key, config) = peer(other, self.asns[other]);
            let (hold_time, restart_time) = (self.hold_time, self.restart_time);
            let client = self.is_client(node, other);
            (key, PeerConfig { hold_time, restart_time, client, ..config })
        };
        net.input(node, Input::SetPeers(self.neighbors(node).map(session).collect()));
    }

    /// Starts the process of a node. One that finds its routes in the kernel says so.
    fn start(&self, net: &mut Net, node: usize) {
        let graceful = net.random.below(2) == 0;
        let seed = net.random.below(1000);
        let config = config(node, self.asns[node], graceful, seed);
        net.nodes[node].speaker = Speaker::new(config, net.now);
        net.nodes[node].alive = true;
        // What it finds is its own to sweep, and the shell's.
        net.nodes[node].routes.clear();
        self.configure(net, node);
    }

    /// Something happens.
    fn disturb(&mut self, net: &mut Net) {
        let (a, b) = (net.random.place(self.asns.len()), net.random.place(self.asns.len()));
        match net.random.below(8) {
            0 | 1 if net.nodes[a].alive => {
                let silently = net.random.below(2) == 0;
                net.kill(a, silently);
            }
            0..=2 if !net.nodes[a].alive => self.start(net, a),
            3 => drop(net.cut.insert((a.min(b), a.max(b)))),
            4 => net.heal(),
            5 => self.break_a_connection(net),
            _ => {
                let changed = if net.random.below(2) == 0 { block(a) } else { shared() };
                if !self.own[a].remove(&changed) {
                    self.own[a].insert(changed);
                }
                let own = Own::announced(self.own[a].iter().copied());
                net.input(a, Input::SetOwn(own));
            }
        }
    }

    /// So much is lost that TCP gives up at both ends.
    fn break_a_connection(&self, net: &mut Net) {
        if net.wires.is_empty() {
            return;
        }
        let chosen = net.random.place(net.wires.len());
        let Some((end, other)) = net.wires.iter().nth(chosen).map(|(end, other)| (*end, *other))
        else {
            return;
        };
        net.wires.remove(&end);
        net.wires.remove(&other);
        for (node, conn) in [end, other] {
            net.schedule(node, Input::Closed { conn, reason: "timed out".to_owned() });
        }
    }
}

/// A network, disturbed, and left alone.
fn simulate(seed: u64) {
    let mut shape = Shape::random(&mut Random::new(seed));
    let mut net = Net::apart(&shape.asns, seed);
    net.longest_delay = Some(30);
    (0..shape.asns.len()).for_each(|node| shape.configure(&mut net, node));
    for _ in 0..net.random.below(16) {
        let pause = [3, 100, 3000, 20_000][net.random.index(4)];
        let pause = net.random.below(pause);
        net.run_for(Duration::from_millis(pause));
        shape.disturb(&mut net);
    }
    net.heal();
    let absent = net.random.place(shape.asns.len() * 4);
    for node in 0..shape.asns.len() {
        if node == absent && net.nodes[node].alive {
            net.kill(node, false);
        } else if node != absent && !net.nodes[node].alive {
            shape.start(&mut net, node);
        }
    }
    net.run_for(SETTLING);
    let name = format!("TWILL_SEED={seed}: {shape:?}");
    model::check(&net, &shape, &name);
    let before = net.flaps_of_all();
    net.nodes.iter_mut().for_each(|node| node.events.clear());
    net.run_for(Duration::from_secs(100));
    assert_eq!(net.flaps_of_all(), before, "{name}: it does not stay");
    model::check(&net, &shape, &name);
}

impl Net {
    /// How often each session of each live node ended.
    fn flaps_of_all(&self) -> Vec<u32> {
        let live = self.nodes.iter().filter(|node| node.alive);
        live.flat_map(|node| node.speaker.peers()).map(|peer| peer.flaps).collect()
    }
}

#[allow(clippy::disallowed_methods, reason = "a test is asked for a longer run in this way")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed alone, if `TWILL_SEED` names it and no count is asked for.
#[test]
fn any_network_ends_as_its_model_says() {
    let (seed, count) = (asked("TWILL_SEED"), asked("TWILL_SIMULATIONS"));
    let first = seed.unwrap_or(0);
    let count = count.unwrap_or(if seed.is_some() { 1 } else { SIMULATIONS });
    for seed in first..first + count {
        simulate(seed);
    }
    println!("{count} networks from seed {first}: each as its model says");
}
