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
    next_hop: usize,
}

impl Known {
    /// Before which others it is chosen (RFC 4271 section 9.1.2.2); what else is looked at is all the same.
    fn rank(&self) -> impl Ord + use<> {
        let reflected = (self.originator, self.clusters.len(), self.from);
        (self.as_path.len(), !self.external, reflected)
    }
}

/// By node and peer: prefixes and their paths.
type Tables = BTreeMap<(usize, usize), BTreeMap<Prefix, Known>>;

/// What `node` uses for a prefix.
fn best(shape: &Shape, tables: &Tables, node: usize, prefix: Prefix) -> Option<Known> {
    if shape.own[node].contains(&prefix) {
        return None;
    }
    let tables = tables.iter().filter(|((at, _), _)| *at == node);
    let known = tables.filter_map(|(_, table)| table.get(&prefix));
    known.min_by_key(|known| known.rank()).cloned()
}

/// What `from` tells `to` about a prefix, as `to` takes it.
fn told(shape: &Shape, tables: &Tables, from: usize, to: usize, prefix: Prefix) -> Option<Known> {
    let external = shape.asns[from] != shape.asns[to];
    let mut known = match (shape.own[from].contains(&prefix), best(shape, tables, from, prefix)) {
        (true, _) => Known {
            as_path: Vec::new(),
            external,
            originator: from,
            clusters: Vec::new(),
            from,
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
    (!came_back).then_some(Known { external, from, ..known })
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

/// What everybody knows in the end.
fn solve(net: &Net, shape: &Shape, name: &str) -> Tables {
    let prefixes: BTreeSet<Prefix> = shape.own.iter().flatten().copied().collect();
    let live = |node: usize| net.nodes[node].alive;
    let pairs = shape.sessions.iter().flat_map(|(low, high)| [(*low, *high), (*high, *low)]);
    let pairs: Vec<_> = pairs.filter(|(to, from)| live(*to) && live(*from)).collect();
    let mut tables = Tables::new();
    for _ in 0..50 {
        let table = |(to, from): (usize, usize)| {
            let one = |prefix: &Prefix| Some((*prefix, told(shape, &tables, from, to, *prefix)?));
            ((to, from), prefixes.iter().filter_map(one).collect())
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
    for (node, of_it) in net.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
        check_sessions(net, shape, node, name);
        let routes = of_it.speaker.routes();
        assert!(!routes.iter().any(|route| route.stale), "{name}: node {node} has stale paths");
        let learned = routes.iter().filter_map(|route| Some((route.from?.address, route.prefix)));
        let wanted = tables.iter().filter(|((at, _), _)| *at == node);
        let wanted = wanted
            .flat_map(|((_, from), table)| table.keys().map(|prefix| (address(*from), *prefix)));
        let (learned, wanted): (BTreeSet<_>, BTreeSet<_>) = (learned.collect(), wanted.collect());
        assert_eq!(learned, wanted, "{name}: node {node} knows too little or too much");
        check_routes(net, shape, &tables, node, name);
    }
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

/// The kernel has a route to each prefix that is known and not its own, over the best path's next hop.
fn check_routes(net: &Net, shape: &Shape, tables: &Tables, node: usize, name: &str) {
    let prefixes: BTreeSet<Prefix> = shape.own.iter().flatten().copied().collect();
    let routes = &net.nodes[node].routes;
    for prefix in &prefixes {
        let best = best(shape, tables, node, *prefix);
        assert_eq!(routes.contains_key(prefix), best.is_some(), "{name}: node {node}, {prefix}");
        let Some(best) = best else { continue };
        let next_hops = &routes[prefix];
        assert!(next_hops.contains(&address(best.next_hop)), "{name}: node {node}, {prefix}");
        let explained = net.nodes[node].speaker.explain(net.now, *prefix).unwrap();
        let first = explained.paths[0].from.address;
        assert_eq!(first, address(best.from), "{name}: node {node}, {prefix}");
    }
    let unknown = routes.keys().find(|prefix| !prefixes.contains(prefix));
    assert_eq!(unknown, None, "{name}: node {node}");
}
