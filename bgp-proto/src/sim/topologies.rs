//! Networks of any shape, disturbed in any way: in the end every node knows what a naive model of the
//! network says, and nothing else, and it stays so. A failure names its seed.

mod model;
mod router;

use super::*;
use crate::Reflection;
pub(super) use router::Router;

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

/// What one of the two that have a session has configured for it.
#[derive(Debug, Clone)]
struct SessionEnd {
    families: BTreeSet<Family>,
    /// Long-lived stale times, in seconds (RFC 9494).
    long_lived: BTreeMap<Family, u32>,
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
    /// Those outside that are no speakers of ours.
    routers: BTreeMap<usize, router::Plan>,
    /// What each has configured for each peer; between the two of a session is at least one family.
    ends: BTreeMap<(usize, usize), SessionEnd>,
    /// What each announces.
    own: Vec<BTreeSet<Prefix>>,
}

/// The prefixes that several announce.
fn shared() -> [Prefix; 2] {
    [prefix("10.0.99.0/24"), prefix("2001:db8:99::/64")]
}

/// The blocks of a node.
fn blocks(index: usize) -> [Prefix; 2] {
    [block(index), prefix(&format!("2001:db8:{index}::/64"))]
}

/// The next hop of a node's routes of one family.
fn next_hop(family: Family, index: usize) -> IpAddr {
    match family {
        Family::V4 => address(index),
        Family::V6 => format!("2001:db8:ffff::{}", index + 1).parse().unwrap(),
    }
}

/// What is passed on: not the blocks of the nodes from 8 on.
fn pools() -> BTreeSet<Prefix> {
    let [shared4, shared6] = shared();
    [prefix("10.0.0.0/21"), shared4, prefix("2001:db8::/45"), shared6].into()
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
            routers: BTreeMap::new(),
            ends: BTreeMap::new(),
            own: (0..asns.len()).map(|index| blocks(index).into()).collect(),
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
            shape.own[node].insert(shared()[random.index(2)]);
        }
        for edge in inside..inside + edges {
            if random.below(3) == 0 {
                shape.routers.insert(edge, router::Plan::random(edge, random));
                shape.own[edge].clear();
            }
        }
        for (low, high) in shape.sessions.clone() {
            let ends = session_ends(random);
            shape.ends.extend([(low, high), (high, low)].into_iter().zip(ends));
        }
        shape
    }

    /// Routes of a family go between these two.
    fn carries(&self, one: usize, other: usize, family: Family) -> bool {
        let has = |end| self.ends[&end].families.contains(&family);
        has((one, other)) && has((other, one))
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
        if self.routers.contains_key(&node) {
            net.nodes[node].router = Some(Router::new(self, node));
            return;
        }
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
            let SessionEnd { families, long_lived } = self.ends[&(node, other)].clone();
            let other_next_hop = Some(next_hop(Family::V6, node));
            let session = PeerConfig { families, long_lived, other_next_hop, ..config };
            (key, PeerConfig { hold_time, restart_time, client, ..session })
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
    fn disturb(&mut self, net: &mut Net, seen: &mut Seen) {
        let (a, b) = (net.random.place(self.asns.len()), net.random.place(self.asns.len()));
        match net.random.below(10) {
            _ if self.routers.contains_key(&a) => self.change_router(net, a),
            0 | 1 if net.nodes[a].alive => {
                let silently = net.random.below(2) == 0;
                net.kill(a, silently);
            }
            0..=2 if !net.nodes[a].alive => self.start(net, a),
            3 => drop(net.cut.insert((a.min(b), a.max(b)))),
            4 => net.heal(),
            5 => self.break_a_connection(net),
            6 | 7 if net.nodes[a].alive => {
                for other in self.neighbors(a) {
                    let (key, _) = peer(other, self.asns[other]);
                    seen.refreshes += usize::from(net.ask_again(a, key));
                }
            }
            _ => {
                let of_whom = if net.random.below(2) == 0 { blocks(a) } else { shared() };
                let changed = of_whom[net.random.index(2)];
                if !self.own[a].remove(&changed) {
                    self.own[a].insert(changed);
                }
                let own = Own::announced(self.own[a].iter().copied());
                net.input(a, Input::SetOwn(own));
            }
        }
    }

    /// A router has a path more or less.
    fn change_router(&mut self, net: &mut Net, index: usize) {
        if let (Some(plan), Some(router)) =
            (self.routers.get_mut(&index), &mut net.nodes[index].router)
        {
            plan.toggle(index, &mut net.random);
            let outputs = router.change(plan);
            outputs.into_iter().for_each(|output| net.output(index, output));
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

/// What the two ends of a session have configured: families of which they have one in common at least, and
/// for some of them how long stale routes stay behind the restart time.
fn session_ends(random: &mut Random) -> [SessionEnd; 2] {
    let both = BTreeSet::from([Family::V4, Family::V6]);
    let mut end = || {
        let families = match random.below(8) {
            0 => [Family::V4].into(),
            1 => [Family::V6].into(),
            _ => both.clone(),
        };
        let times = [Family::V4, Family::V6].into_iter().zip([30, 90]);
        let long_lived = times.filter(|_| random.below(3) > 0).collect();
        SessionEnd { families, long_lived }
    };
    let (one, mut other) = (end(), end());
    if one.families.is_disjoint(&other.families) {
        other.families = both;
    }
    [one, other]
}

/// What has happened in some networks, so that a run can say that it was not about nothing.
#[derive(Debug, Default)]
struct Seen {
    /// Peers that were asked for their routes again.
    refreshes: usize,
    /// Sessions of one family alone.
    narrow: usize,
    /// Times that paths of a peer became long-lived stale.
    long_lived: usize,
    /// Kernel routes of IPv6 in the end.
    ipv6: usize,
    /// Paths with identifiers (RFC 7911) in the end.
    add_path: usize,
}

/// A network, disturbed, and left alone.
fn simulate(seed: u64, seen: &mut Seen) {
    let mut shape = Shape::random(&mut Random::new(seed));
    let mut net = Net::apart(&shape.asns, seed);
    net.longest_delay = Some(30);
    (0..shape.asns.len()).for_each(|node| shape.configure(&mut net, node));
    for _ in 0..net.random.below(16) {
        // The last one is longer than one of the restart times.
        let pause = [3, 100, 3000, 20_000, 60_000][net.random.index(5)];
        let pause = net.random.below(pause);
        net.run_for(Duration::from_millis(pause));
        shape.disturb(&mut net, seen);
    }
    net.heal();
    let absent = net.random.place(shape.asns.len() * 4);
    for node in 0..shape.asns.len() {
        if node == absent && net.nodes[node].alive && net.nodes[node].router.is_none() {
            net.kill(node, false);
        } else if node != absent && !net.nodes[node].alive {
            shape.start(&mut net, node);
        }
    }
    net.run_for(SETTLING);
    let name = format!("TWILL_SEED={seed}: {shape:?}");
    model::check(&net, &shape, &name);
    let before = net.flaps_of_all();
    let is_long_lived = |event: &&(PeerKey, PeerEvent)| matches!(event.1, PeerEvent::LongLived(_));
    for node in &mut net.nodes {
        seen.long_lived += node.events.iter().filter(is_long_lived).count();
        node.events.clear();
    }
    net.run_for(Duration::from_secs(100));
    assert_eq!(net.flaps_of_all(), before, "{name}: it does not stay");
    model::check(&net, &shape, &name);
    let routes = net.nodes.iter().filter(|node| node.alive).flat_map(|node| node.routes.keys());
    seen.ipv6 += routes.filter(|prefix| prefix.family() == Family::V6).count();
    let paths = net.nodes.iter().flat_map(|node| node.speaker.routes());
    seen.add_path += paths.filter(|path| path.path_id != 0).count();
    let narrow = |(low, high): &&(usize, usize)| {
        !shape.carries(*low, *high, Family::V4) || !shape.carries(*low, *high, Family::V6)
    };
    seen.narrow += shape.sessions.iter().filter(narrow).count();
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

/// Names the network in which something panics.
struct Shown(u64);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("TWILL_SEED={}", self.0);
        }
    }
}

/// One seed alone, if `TWILL_SEED` names it and no count is asked for.
#[test]
fn any_network_ends_as_its_model_says() {
    let (seed, count) = (asked("TWILL_SEED"), asked("TWILL_SIMULATIONS"));
    let first = seed.unwrap_or(0);
    let count = count.unwrap_or(if seed.is_some() { 1 } else { SIMULATIONS });
    let mut seen = Seen::default();
    for seed in first..first + count {
        let _shown = Shown(seed);
        simulate(seed, &mut seen);
    }
    println!("{count} networks from seed {first}: each as its model says; {seen:?}");
    let Seen { refreshes, narrow, long_lived, ipv6, add_path } = seen;
    let any = [refreshes, narrow, long_lived, ipv6, add_path].iter().all(|count| *count > 0);
    assert!(any || count < SIMULATIONS, "something has never happened: {seen:?}");
}
