//! What every node has to know, computed for the whole network at once and from scratch: round by round
//! everybody tells everybody, until nothing changes any more.

use super::*;

/// A path as it is known somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    as_path: Vec<u32>,
    /// From an external session.
    external: bool,
    /// Who brought it into the AS.
    originator: usize,
    clusters: Vec<u8>,
    from: usize,
    /// With ADD-PATH, which of its paths it is.
    path_id: u32,
    /// A node, or one of several next hops at a router.
    next_hop: usize,
}

impl Known {
    /// Before which others it is used (RFC 4271 section 9.1.2.2); what else is looked at is all the same.
    fn goodness(&self) -> (usize, bool) {
        (self.as_path.len(), !self.external)
    }

    /// Before which others it is the best.
    fn rank(&self) -> impl Ord + use<> {
        (self.goodness(), self.originator, self.clusters.len(), self.from, self.path_id)
    }
}

/// By node and peer: prefixes and their paths, by identifier.
type Tables = BTreeMap<(usize, usize), BTreeMap<(Prefix, u32), Known>>;

/// What `node` uses for a prefix: the best path, and those that are as good as that, best first.
fn used(shape: &Shape, tables: &Tables, node: usize, prefix: Prefix) -> Vec<Known> {
    if shape.own[node].contains(&prefix) {
        return Vec::new();
    }
    let tables = tables.iter().filter(|((at, _), _)| *at == node);
    let paths = tables.flat_map(|(_, table)| table.range((prefix, 0)..=(prefix, u32::MAX)));
    let mut known: Vec<Known> = paths.map(|(_, known)| known.clone()).collect();
    known.sort_by_key(Known::rank);
    let best = known.first().map(Known::goodness);
    known.retain(|known| Some(known.goodness()) == best);
    known
}

fn best(shape: &Shape, tables: &Tables, node: usize, prefix: Prefix) -> Option<Known> {
    used(shape, tables, node, prefix).into_iter().next()
}

/// What `from` tells `to` about a prefix, as `to` takes it. A router tells of all its paths.
fn told_all(shape: &Shape, tables: &Tables, from: usize, to: usize, prefix: Prefix) -> Vec<Known> {
    let Some(router) = shape.routers.get(&from) else {
        return told(shape, tables, from, to, prefix).into_iter().collect();
    };
    if !shape.carries(from, to, prefix.family()) {
        return Vec::new();
    }
    let paths = router.told(prefix).into_iter().map(|(path_id, number, length)| Known {
        as_path: vec![shape.asns[from]; length],
        external: true,
        originator: from,
        clusters: Vec::new(),
        from,
        path_id,
        next_hop: router::hop_of(from, number),
    });
    paths.collect()
}

fn told(shape: &Shape, tables: &Tables, from: usize, to: usize, prefix: Prefix) -> Option<Known> {
    shape.carries(from, to, prefix.family()).then_some(())?;
    let external = shape.asns[from] != shape.asns[to];
    let mut known = match (shape.own[from].contains(&prefix), best(shape, tables, from, prefix)) {
        (true, _) => Known {
            as_path: Vec::new(),
            external,
            originator: from,
            clusters: Vec::new(),
            from,
            path_id: 0,
            next_hop: from,
        },
        (false, best) => passed(shape, best?, from, to, prefix)?,
    };
    if external {
        known.as_path.insert(0, shape.asns[from]);
        known.clusters.clear();
        known.originator = from;
        known.next_hop = from;
    }
    // What has come back is not taken (RFC 4271 section 9.1.2, RFC 4456 section 8).
    let own_cluster = shape.reflectors.get(&to).map(|reflector| reflector.cluster);
    let came_back = known.as_path.contains(&shape.asns[to])
        || known.originator == to
        || own_cluster.is_some_and(|own| known.clusters.contains(&own));
    (!came_back).then_some(Known { external, from, path_id: 0, ..known })
}

/// What a reflector passes on (RFC 4456 section 6), and nobody else does. What comes from outside of the
/// AS is for the AS only.
fn passed(shape: &Shape, best: Known, from: usize, to: usize, prefix: Prefix) -> Option<Known> {
    let reflector = shape.reflectors.get(&from)?;
    let external = shape.asns[from] != shape.asns[to];
    let covered = pools().iter().any(|pool| pool.covers(prefix));
    let client = |node: usize| reflector.clients.contains(&node);
    let by_rank = external || best.external || client(best.from) || client(to);
    let transit = external && best.external;
    if !covered || best.from == to || !by_rank || transit {
        return None;
    }
    let mut known = best;
    match known.external {
        // It is the reflector that brings it in.
        true => known.originator = from,
        false => known.clusters.insert(0, reflector.cluster),
    }
    Some(known)
}

/// All that anybody announces.
fn prefixes(shape: &Shape) -> BTreeSet<Prefix> {
    let own = shape.own.iter().flatten().copied();
    own.chain(shape.routers.values().flat_map(router::Plan::prefixes)).collect()
}

/// What everybody knows in the end.
fn solve(net: &Net, shape: &Shape, name: &str) -> Tables {
    let prefixes = prefixes(shape);
    let live = |node: usize| net.nodes[node].alive;
    let pairs = shape.sessions.iter().flat_map(|(low, high)| [(*low, *high), (*high, *low)]);
    let pairs: Vec<_> = pairs.filter(|(to, from)| live(*to) && live(*from)).collect();
    let mut tables = Tables::new();
    for _ in 0..50 {
        let table = |(to, from): (usize, usize)| {
            let all = |prefix: &Prefix| {
                let told = told_all(shape, &tables, from, to, *prefix);
                told.into_iter().map(|known| ((*prefix, known.path_id), known)).collect::<Vec<_>>()
            };
            ((to, from), prefixes.iter().flat_map(all).collect())
        };
        let next: Tables = pairs.iter().map(|pair| table(*pair)).collect();
        if next == tables {
            return tables;
        }
        tables = next;
    }
    panic!("{name}: the model comes to no end");
}

/// Holds every live node against the model.
pub(super) fn check(net: &Net, shape: &Shape, name: &str) {
    let tables = solve(net, shape, name);
    let is_speaker = |(_, node): &(usize, &Node)| node.alive && node.router.is_none();
    for (node, of_it) in net.nodes.iter().enumerate().filter(is_speaker) {
        check_sessions(net, shape, node, name);
        let routes = of_it.speaker.routes();
        assert!(!routes.iter().any(|route| route.stale), "{name}: node {node} has stale paths");
        let learned = routes
            .iter()
            .filter_map(|route| Some((route.from?.address, (route.prefix, route.path_id))));
        let wanted = tables.iter().filter(|((at, _), _)| *at == node);
        let wanted =
            wanted.flat_map(|((_, from), table)| table.keys().map(|path| (address(*from), *path)));
        let (learned, wanted): (BTreeSet<_>, BTreeSet<_>) = (learned.collect(), wanted.collect());
        assert_eq!(learned, wanted, "{name}: node {node} knows too little or too much");
        check_routes(net, shape, &tables, node, name);
        for prefix in of_it.routes.keys() {
            follow(net, shape, *prefix, node, &mut Vec::new(), name);
        }
    }
}

/// Whoever follows next hops, whichever of several, comes to somebody who announces the prefix, and
/// nowhere twice.
fn follow(net: &Net, shape: &Shape, prefix: Prefix, at: usize, way: &mut Vec<usize>, name: &str) {
    assert!(!way.contains(&at), "{name}: {prefix} goes round by {way:?} to {at}");
    way.push(at);
    let announces =
        shape.routers.get(&at).is_some_and(|router| router.prefixes().contains(&prefix));
    if !shape.own[at].contains(&prefix) && !announces {
        let next_hops = net.nodes[at].routes.get(&prefix).filter(|_| net.nodes[at].alive);
        for next_hop in next_hops.unwrap_or_else(|| panic!("{name}: {prefix} ends by {way:?}")) {
            let is_it = |hop: &usize| super::next_hop(prefix.family(), *hop) == *next_hop;
            let next = router::node_of((0..).find(is_it).unwrap());
            follow(net, shape, prefix, next, way, name);
        }
    }
    way.pop();
}

/// One session with each live neighbor, on one connection.
fn check_sessions(net: &Net, shape: &Shape, node: usize, name: &str) {
    let live: BTreeSet<IpAddr> =
        shape.neighbors(node).filter(|other| net.nodes[*other].alive).map(address).collect();
    for peer in net.nodes[node].speaker.peers() {
        let (up, wanted) = (peer.state == State::Established, live.contains(&peer.key.address));
        assert_eq!(up, wanted, "{name}: node {node} is {} with {}", peer.state, peer.key);
    }
    let wires = net.wires.keys().filter(|(at, _)| *at == node).count();
    assert_eq!(wires, live.len(), "{name}: node {node} has other connections");
}

/// The kernel has a route to each prefix that is known and not its own, over the next hops of the best path
/// and of those that are as good, and over no others.
fn check_routes(net: &Net, shape: &Shape, tables: &Tables, node: usize, name: &str) {
    let prefixes = prefixes(shape);
    let routes = &net.nodes[node].routes;
    for prefix in &prefixes {
        let used = used(shape, tables, node, *prefix);
        let next_hop = |known: &Known| super::next_hop(prefix.family(), known.next_hop);
        let wanted: BTreeSet<IpAddr> = used.iter().map(next_hop).collect();
        let found = routes.get(prefix).into_iter().flatten().copied().collect::<BTreeSet<_>>();
        assert_eq!(found, wanted, "{name}: node {node}, {prefix}");
        let Some(best) = used.first() else { continue };
        let explained = net.nodes[node].speaker.explain(net.now, *prefix).unwrap();
        let first = explained.paths[0].from.address;
        assert_eq!(first, address(best.from), "{name}: node {node}, {prefix}");
    }
    let unknown = routes.keys().find(|prefix| !prefixes.contains(prefix));
    assert_eq!(unknown, None, "{name}: node {node}");
}
