//! Route reflectors (RFC 4456): who is told of what, and restarts of theirs.

use std::sync::Arc;

use super::*;
use crate::{
    Reflection,
    policy::{Action, RouteFilter, RoutePolicy, Rule},
    wire::Role,
};

/// Peers that this node tells everything.
fn client(index: usize, asn: u32) -> (PeerKey, PeerConfig) {
    let (key, config) = peer(index, asn);
    (key, PeerConfig { client: true, ..config })
}

fn reflection(cluster: u8) -> Input {
    let pools = BTreeSet::from([prefix("10.0.0.0/22"), prefix("10.0.0.0/24")]);
    Input::SetReflection(Some(Reflection { cluster_id: Ipv4Addr::new(0, 0, 0, cluster), pools }))
}

/// Sessions of every other node with the first `reflectors` nodes alone, and of these with each other.
fn star(asns: &[u32], reflectors: usize, clients: &[usize]) -> Net {
    let mut net = Net::mesh(asns, 3);
    for index in 0..asns.len() {
        sessions(&mut net, asns, reflectors, clients, index);
    }
    net
}

fn sessions(net: &mut Net, asns: &[u32], reflectors: usize, clients: &[usize], index: usize) {
    let is_reflector = index < reflectors;
    if is_reflector {
        net.input(index, reflection(1));
    }
    let others = (0..asns.len()).filter(|other| *other != index);
    let others = others.filter(|other| is_reflector || *other < reflectors);
    let session = |other: usize| match is_reflector && clients.contains(&other) {
        true => client(other, asns[other]),
        false => peer(other, asns[other]),
    };
    let peers = others.map(session).collect();
    net.input(index, Input::SetPeers(peers));
}

fn blocks(indices: &[usize]) -> Vec<Prefix> {
    indices.iter().map(|index| block(*index)).collect()
}

fn learned(net: &Net, node: usize) -> Vec<Prefix> {
    net.nodes[node].routes.keys().copied().collect()
}

/// 0 reflects; 1 and 2 are its clients, 3 and 4 internal peers that are none, 5 is a ToR. The pool ends
/// before the block of 4.
#[test]
fn who_is_told_of_what() {
    let asns = [64512, 64512, 64512, 64512, 64512, 64513];
    let mut net = star(&asns, 1, &[1, 2]);
    let expected: [&[usize]; 6] =
        [&[1, 2, 3, 4, 5], &[0, 2, 3], &[0, 1, 3], &[0, 1, 2], &[0, 1, 2], &[0, 1, 2, 3]];
    let is_told = |net: &Net| (0..6).all(|node| learned(net, node) == blocks(expected[node]));
    net.run_until("reflected routes", SECONDS_10, is_told);
    net.run_for(SECONDS_10);
    assert!(is_told(&net));
    // Inside the AS the next hop stays; the ToR goes by the reflector.
    assert_eq!(net.nodes[2].routes[&block(1)], [address(1)]);
    assert_eq!(net.nodes[5].routes[&block(1)], [address(0)]);
    let out = |net: &Net| -> Vec<usize> {
        net.nodes[0].speaker.peers().iter().map(|peer| peer.prefixes_out).collect()
    };
    assert_eq!(out(&net), [3, 3, 3, 3, 4]);
    let path = net.nodes[2].speaker.explain(net.now, block(3)).unwrap().paths.remove(0).attributes;
    assert_eq!(path.originator_id.map(IpAddr::V4), Some(address(3)));
    assert_eq!(path.cluster_list, [Ipv4Addr::new(0, 0, 0, 1)]);
    // On one link with it, it goes there directly (RFC 4271 section 5.1.3).
    let (key, tor) = peer(5, 64513);
    let on_link = PeerConfig { on_link: Some(prefix("192.0.2.0/24")), ..tor };
    let mut peers: BTreeMap<_, _> =
        (3..5).map(|index| peer(index, 64512)).chain((1..3).map(|i| client(i, 64512))).collect();
    peers.insert(key, on_link);
    net.input(0, Input::SetPeers(peers));
    net.run_until("the next hop", SECONDS_10, |net| {
        net.nodes[5].routes.get(&block(1)) == Some(&vec![address(1)])
    });
    // What goes is withdrawn from all, and what comes outside of the pools from none.
    net.input(1, Input::SetOwn(Own::announced([prefix("10.0.9.0/24")])));
    net.run_until("the withdrawal", SECONDS_10, |net| {
        (2..6).all(|node| !net.nodes[node].routes.contains_key(&block(1)))
    });
    assert_eq!(out(&net), [3, 2, 2, 2, 3]);
    assert!(net.nodes.iter().all(|node| node.speaker.peers().iter().all(|p| p.flaps == 0)));
    // It is none any more.
    net.input(0, Input::SetReflection(None));
    net.run_until("silence", SECONDS_10, |net| {
        (1..6).all(|node| learned(net, node) == blocks(&[0]))
    });
    assert_eq!(out(&net), [1; 5]);
}

/// One peer's path takes the place of another's: each of the two is told of the other's alone.
#[test]
fn whose_path_it_is_is_not_told_of_it() {
    let asns = [64512; 4];
    let mut net = star(&asns, 1, &[1, 2, 3]);
    let shared = prefix("10.0.3.0/24");
    let both = [1, 2].map(|node| Own::announced([block(node), shared]));
    net.input(3, Input::SetOwn(Own::default()));
    net.input(2, Input::SetOwn(both[1].clone()));
    net.run_until("the first", SECONDS_10, |net| {
        net.nodes[1].routes.get(&shared) == Some(&vec![address(2)])
    });
    assert!(!net.nodes[2].routes.contains_key(&shared));
    // The lower router id wins.
    net.input(1, Input::SetOwn(both[0].clone()));
    net.run_until("the better one", SECONDS_10, |net| {
        net.nodes[3].routes.get(&shared) == Some(&vec![address(1)])
    });
    net.run_for(SECONDS_10);
    let knows = |net: &Net, node: usize| {
        let explained = net.nodes[node].speaker.explain(net.now, shared);
        explained.map_or(0, |explained| explained.paths.len())
    };
    assert_eq!((knows(&net, 1), knows(&net, 2), knows(&net, 3)), (0, 1, 1));
    net.input(1, Input::SetOwn(Own::announced([block(1)])));
    net.run_until("the other again", SECONDS_10, |net| {
        net.nodes[3].routes.get(&shared) == Some(&vec![address(2)])
    });
    assert_eq!((knows(&net, 1), knows(&net, 2)), (1, 0));
}

/// What was passed on, and is announced by the reflector itself from now on, is not withdrawn; and what it
/// gives up is passed on again.
#[test]
fn what_was_passed_on_may_become_its_own() {
    let asns = [64512; 4];
    let mut net = star(&asns, 1, &[1, 2, 3]);
    let shared = prefix("10.0.3.0/24");
    net.input(3, Input::SetOwn(Own::default()));
    net.input(1, Input::SetOwn(Own::announced([block(1), shared])));
    let over =
        |net: &Net, node: usize| net.nodes[2].routes.get(&shared) == Some(&vec![address(node)]);
    net.run_until("what is passed on", SECONDS_10, |net| over(net, 1));
    for (own, node) in [(vec![block(0), shared], 0), (vec![block(0)], 1)] {
        net.input(0, Input::SetOwn(Own::announced(own)));
        net.run_until("the other one", SECONDS_10, |net| over(net, node));
        net.run_for(SECONDS_10);
        assert!(over(&net, node), "{node}: {:?}", net.nodes[2].routes);
        let peer = net.nodes[0].speaker.peers().remove(1);
        assert_eq!(peer.prefixes_out, 3, "{node}");
    }
}

/// A reflector that has restarted says that this was all when it has heard everything itself: what it
/// reflected before is not given up in between.
#[test]
fn a_reflector_that_restarts_costs_no_route() {
    for silently in [false, true] {
        let asns = [64512; 5];
        let clients = [1, 2, 3, 4];
        let mut net = star(&asns, 1, &clients);
        let is_full = |net: &Net| {
            clients
                .iter()
                .all(|node| net.nodes[*node].routes.len() == if *node == 4 { 4 } else { 3 })
        };
        net.run_until("all", SECONDS_10, is_full);
        net.kill(0, silently);
        net.run_for(Duration::from_secs(1));
        net.restart(0, &asns);
        sessions(&mut net, &asns, 1, &clients, 0);
        while net.nodes[0].converged.is_none() {
            assert!(net.step());
            assert!(is_full(&net), "at {:?}", net.now);
        }
        net.run_for(Duration::from_secs(400));
        assert!(is_full(&net));
        let stale = |node: &Node| node.speaker.routes().iter().any(|route| route.stale);
        assert!(!net.nodes.iter().any(stale));
    }
}

/// What 1 and 2 announce: clients of the reflector 0, as 3 is.
fn shared() -> Prefix {
    prefix("10.0.3.0/24")
}

fn goes_to(net: &Net, node: usize) -> bool {
    net.nodes[3].routes.get(&shared()) == Some(&vec![address(node)])
}

/// The reflector has restarted, and hears nothing of 1, by which 3 goes to the shared prefix.
fn restarted_and_cut_off() -> Net {
    let asns = [64512; 4];
    let mut net = star(&asns, 1, &[1, 2, 3]);
    net.input(3, Input::SetOwn(Own::default()));
    for node in [1, 2] {
        net.input(node, Input::SetOwn(Own::announced([block(node), shared()])));
    }
    net.run_until("the better one", SECONDS_10, |net| goes_to(net, 1));
    net.run_for(SECONDS_10);
    net.kill(0, false);
    net.cut.insert((0, 1));
    net.restart(0, &asns);
    sessions(&mut net, &asns, 1, &[1, 2, 3], 0);
    net
}

/// How many prefixes 3 was told of by the reflector.
fn told_to_3(net: &Net) -> usize {
    net.nodes[0].speaker.peers()[2].prefixes_out
}

/// RFC 4724 section 4.1: a reflector that has restarted tells nobody of a choice out of half of what
/// there is, for 4 s. What its clients were told before stays with them.
#[test]
fn a_reflector_that_restarts_defers_its_selection() {
    let mut net = restarted_and_cut_off();
    let hears = |net: &Net| net.nodes[0].routes.contains_key(&shared());
    net.run_until("the other one's", SECONDS_10, hears);
    net.run_for(Duration::from_secs(1));
    assert_eq!((told_to_3(&net), goes_to(&net, 1)), (1, true), "nothing but its own");
    net.heal();
    while net.nodes[0].converged.is_none() {
        assert!(net.step());
        assert!(goes_to(&net, 1), "at {:?}", net.now);
    }
    assert_eq!(net.nodes[0].converged, Some(vec![]));
    net.run_for(Duration::from_secs(400));
    assert_eq!((told_to_3(&net), goes_to(&net, 1)), (4, true));
}

/// The cut heals after 10 s: from 4 s on the second best takes the place of what 3 has kept, until the best is
/// heard of again. At no time is there no route.
#[test]
fn a_reflector_that_misses_a_client_goes_by_another_after_4_s() {
    let mut net = restarted_and_cut_off();
    let start = net.now;
    let go = |net: &mut Net, seconds: u64, by: &[usize]| {
        let end = start + Duration::from_secs(seconds);
        while net.next().is_some_and(|at| at < end) && net.step() {
            let found = net.nodes[3].routes.get(&shared());
            assert!(by.iter().any(|node| goes_to(net, *node)), "{found:?} at {:?}", net.now);
        }
    };
    go(&mut net, 4, &[1]);
    go(&mut net, 5, &[1, 2]);
    go(&mut net, 10, &[2]);
    net.heal();
    go(&mut net, 60, &[2, 1]);
    assert_eq!(net.nodes[0].converged, Some(vec![]));
    go(&mut net, 400, &[1]);
    assert_eq!(told_to_3(&net), 4);
}

/// Another client is gone for good, so the reflector's start takes its time; but one that has restarted with it
/// has what it passes on before the kernel routes of its own start go.
#[test]
fn a_client_that_restarts_with_its_reflector_loses_no_route() {
    let asns = [64512; 4];
    let mut net = star(&asns, 1, &[1, 2, 3]);
    let hears = |net: &Net| {
        let found = net.nodes[1].speaker.explain(net.now, block(2));
        found.is_some_and(|found| !found.paths.is_empty())
    };
    net.run_until("all", SECONDS_10, |net| hears(net) && net.nodes[0].routes.len() == 3);
    for node in [3, 0, 1] {
        net.kill(node, false);
    }
    for node in [0, 1] {
        net.restart(node, &asns);
        sessions(&mut net, &asns, 1, &[1, 2, 3], node);
    }
    assert!(!hears(&net));
    // From then on what it has not heard of goes from its kernel.
    while net.nodes[1].converged.is_none() {
        assert!(net.step());
    }
    assert!(hears(&net), "at {:?}", net.now);
    assert_eq!(net.nodes[0].converged, None, "it still waits for the one that is gone");
}

/// Two reflectors of one cluster: nothing goes round between them, and one is enough.
#[test]
fn one_of_two_reflectors_is_enough() {
    let asns = [64512; 4];
    let mut net = star(&asns, 2, &[2, 3]);
    let hears = |net: &Net, times: usize| {
        let paths = |node: usize, of: usize| {
            net.nodes[node].speaker.explain(net.now, block(of)).map_or(0, |found| found.paths.len())
        };
        (paths(2, 3), paths(3, 2)) == (times, times)
    };
    net.run_until("both", SECONDS_10, |net| hears(net, 2));
    // Each has the other's block from itself alone: a path with its own cluster in it is refused.
    for (node, of) in [(0, 2), (1, 2), (0, 3), (1, 3)] {
        assert_eq!(net.nodes[node].speaker.explain(net.now, block(of)).unwrap().paths.len(), 1);
    }
    net.kill(0, false);
    net.run_for(Duration::from_secs(200));
    assert!(hears(&net, 1));
    assert_eq!(net.nodes[2].routes[&block(3)], [address(3)]);
}

/// A block that a reflector has passed on becomes its own, and another's again: nobody loses it.
#[test]
fn what_was_passed_on_becomes_ones_own_and_back() {
    let asns = [64512; 3];
    let mut net = star(&asns, 1, &[1, 2]);
    let leads_to =
        |net: &Net, node: usize| net.nodes[2].routes.get(&block(1)) == Some(&vec![address(node)]);
    net.run_until("the client's", SECONDS_10, |net| leads_to(net, 1));
    for (own, owner) in [(blocks(&[0, 1]), 0), (blocks(&[0]), 1)] {
        net.input(0, Input::SetOwn(Own::announced(own)));
        net.run_until("the new way", SECONDS_10, |net| leads_to(net, owner));
        net.run_for(SECONDS_10);
        assert!(leads_to(&net, owner));
    }
}

/// RFC 9234 section 5, egress: what a client has learned from its provider (1) goes by the reflector (0) to a
/// router (2) of whom the node is the provider, and to one without a role, and to no other; and what has no
/// mark yet gets one where it goes to customers or peers.
#[test]
fn what_is_for_customers_alone_is_told_to_no_other() {
    let asns = [64512, 64513, 64514, 64512];
    let everything = Rule { learned: true, action: Action::Accept(Vec::new()), ..Rule::default() };
    let filter = RouteFilter { export: [vec![everything], Vec::new()], ..RouteFilter::default() };
    let passes = Arc::new(RoutePolicy { filters: vec![filter], ..RoutePolicy::default() });
    for (role, is_told) in [
        (None, true),
        (Some(Role::Provider), true),
        (Some(Role::RouteServer), true),
        (Some(Role::Customer), false),
        (Some(Role::RouteServerClient), false),
        (Some(Role::Peer), false),
    ] {
        let mut net = Net::apart(&asns, 3);
        for index in 0..asns.len() {
            net.input(index, Input::SetOwn(Own::announced([block(index)])));
        }
        let of_role = |index: usize, role| {
            let (key, mut config) = peer(index, asns[index]);
            config.policy.role = role;
            (key, config)
        };
        let (reflector, mut passes_on) = peer(0, asns[0]);
        passes_on.policy.routes = Some(Arc::clone(&passes));
        let sessions = [
            vec![of_role(2, role), client(3, asns[3])],
            vec![peer(3, asns[3])],
            vec![peer(0, asns[0])],
            vec![of_role(1, Some(Role::Customer)), (reflector, passes_on)],
        ];
        net.input(0, reflection(1));
        for (index, peers) in sessions.into_iter().enumerate() {
            net.input(index, Input::SetPeers(peers.into_iter().collect()));
        }
        net.run_until("the provider's route, and the client's", SECONDS_10, |net| {
            net.nodes[0].routes.contains_key(&block(1)) && learned(net, 2).contains(&block(3))
        });
        net.run_for(SECONDS_10);
        let paths = net.nodes[0].speaker.explain(net.now, block(1)).unwrap().paths;
        assert_eq!(paths[0].attributes.only_to_customer, Some(asns[1]), "{role:?}");
        let expected = if is_told { blocks(&[0, 1, 3]) } else { blocks(&[0, 3]) };
        assert_eq!(learned(&net, 2), expected, "{role:?}");
        let is_marked = matches!(role, Some(Role::Provider | Role::RouteServer | Role::Peer));
        let ours = is_marked.then_some(asns[0]);
        let marks = learned(&net, 2).into_iter().map(|prefix| {
            let paths = net.nodes[2].speaker.explain(net.now, prefix).unwrap().paths;
            (prefix, paths[0].attributes.only_to_customer)
        });
        let expected = [(block(0), ours), (block(1), Some(asns[1])), (block(3), ours)];
        let is_there = |(prefix, _): &(Prefix, _)| is_told || *prefix != block(1);
        assert!(marks.eq(expected.into_iter().filter(is_there)), "{role:?}");
    }
}
