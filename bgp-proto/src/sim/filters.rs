//! Filters: what they let through, and that a change of them resets nothing.

use std::sync::Arc;

use super::*;
use crate::{
    Outcome, Unusable,
    policy::{Action, PrefixMatch, RouteFilter, RoutePolicy, Rule},
};

const ASNS: [u32; 4] = [64512, 64513, 64514, 64512];

fn equal(prefix: Prefix) -> Rule {
    let prefix = Some(PrefixMatch { prefix, within: None, negated: false });
    Rule { prefix, ..Rule::default() }
}

fn accept(rule: Rule) -> Rule {
    Rule { action: Action::Accept(Vec::new()), ..rule }
}

fn filter(export: Vec<Rule>, import: Vec<Rule>) -> Option<Arc<RoutePolicy>> {
    let [export, import] = [export, import].map(|rules| [rules, Vec::new()]);
    let filters = vec![RouteFilter { name: "f".to_owned(), export, import }];
    Some(Arc::new(RoutePolicy { filters, ..RoutePolicy::default() }))
}

/// Gives node 0 the peers that it has, these with their policies.
fn set(net: &mut Net, policies: &[(usize, Option<Arc<RoutePolicy>>)]) {
    let peers = (1..ASNS.len()).map(|index| {
        let (key, mut config) = peer(index, ASNS[index]);
        let policy = policies.iter().find(|(with, _)| *with == index);
        config.policy.routes = policy.and_then(|(_, policy)| policy.clone());
        (key, config)
    });
    let peers = peers.collect();
    net.input(0, Input::SetPeers(peers));
}

/// Node 0 with a ToR on each side (1 and 2), and another node of its AS (3). Nobody else has sessions.
fn star() -> Net {
    let mut net = Net::apart(&ASNS, 6);
    for index in 0..ASNS.len() {
        net.input(index, Input::SetOwn(Own::announced([block(index)])));
    }
    set(&mut net, &[]);
    for index in 1..ASNS.len() {
        net.input(index, Input::SetPeers([peer(0, ASNS[0])].into()));
    }
    net.run_until("the star", SECONDS_10, |net| {
        net.nodes[0].routes.len() == 3 && (1..4).all(|node| net.nodes[node].routes.len() == 1)
    });
    net.run_for(Duration::from_secs(1));
    net
}

fn knows(net: &Net, node: usize) -> Vec<Prefix> {
    net.nodes[node].routes.keys().copied().collect()
}

/// UPDATEs that node 0 has got of a peer, KEEPALIVEs among them, and sessions lost.
fn heard(net: &Net, from: usize) -> (u64, u32) {
    let peers = net.nodes[0].speaker.peers();
    let peer = peers.iter().find(|peer| peer.key.address == address(from)).unwrap();
    (peer.messages_in, peer.flaps)
}

#[test]
fn what_an_import_filter_refuses_comes_back_without_a_word() {
    let mut net = star();
    let before = heard(&net, 1);
    set(&mut net, &[(1, filter(vec![], vec![equal(block(1))]))]);
    assert_eq!(knows(&net, 0), [block(2), block(3)], "at once");
    let explained = net.nodes[0].speaker.explain(net.now, block(1)).unwrap();
    assert_eq!(explained.paths[0].outcome, Outcome::Unusable(Unusable::Filtered));
    assert_eq!(explained.paths[0].refused_by.as_deref(), Some("BGPFilter f, importV4[0]"));
    let peers = net.nodes[0].speaker.peers();
    assert_eq!((peers[0].prefixes_in, peers[0].prefixes_refused), (0, 1));
    // Changed while it is refused.
    net.input(1, Input::SetOwn(Own::announced([block(1), block(7)])));
    net.run_until("another", SECONDS_10, |net| net.nodes[0].routes.contains_key(&block(7)));
    net.run_for(Duration::from_millis(10));
    assert_eq!(knows(&net, 0), [block(2), block(3), block(7)]);
    let told = heard(&net, 1);
    set(&mut net, &[]);
    assert_eq!(knows(&net, 0), [block(1), block(2), block(3), block(7)], "at once");
    assert_eq!(heard(&net, 1), told, "nothing was asked for");
    assert_eq!(before.1, 0);
}

#[test]
fn an_export_filter_withdraws_and_tells_again_only_what_it_is_about() {
    let mut net = star();
    net.input(0, Input::SetOwn(Own::announced([block(0), block(8)])));
    net.run_until("both", SECONDS_10, |net| knows(net, 1).len() == 2);
    let out = |net: &Net| -> Vec<(u64, usize)> {
        let peers = net.nodes[0].speaker.peers();
        peers.iter().map(|peer| (peer.messages_out, peer.prefixes_out)).collect()
    };
    let before = out(&net);
    set(&mut net, &[(1, filter(vec![equal(block(8))], vec![]))]);
    net.run_until("the withdrawal", SECONDS_10, |net| knows(net, 1) == [block(0)]);
    let expected = vec![(before[0].0 + 1, 1), before[1], before[2]];
    assert_eq!(out(&net), expected, "one UPDATE, to one peer");
    let withheld = net.nodes[0].speaker.explain(net.now, block(8)).unwrap().withheld;
    assert_eq!(withheld, [(peer(1, 64513).0, "BGPFilter f, exportV4[0]".to_owned())]);
    set(&mut net, &[]);
    net.run_until("it is told again", SECONDS_10, |net| knows(net, 1).len() == 2);
    assert_eq!(out(&net)[0], (before[0].0 + 2, 2));
    // What a filter accepts without a word of learned routes widens nothing.
    let all = || vec![accept(Rule::default())];
    set(&mut net, &[(1, filter(all(), vec![])), (2, filter(all(), vec![]))]);
    net.run_for(SECONDS_10);
    assert_eq!(knows(&net, 2), [block(0), block(8)]);
    assert_eq!(net.nodes.iter().flat_map(|n| n.speaker.peers()).map(|p| p.flaps).sum::<u32>(), 0);
}

/// A rule that names learned routes passes them on: to a ToR what comes from anywhere else, to a node of
/// the AS what comes from outside.
#[test]
fn learned_routes_are_passed_on_where_a_rule_names_them() {
    let mut net = star();
    let learned = |prefix: Option<Prefix>| {
        let rule = prefix.map_or_else(Rule::default, equal);
        filter(vec![accept(Rule { learned: true, ..rule })], vec![])
    };
    set(&mut net, &[(2, learned(Some(block(1))))]);
    net.run_until("transit", SECONDS_10, |net| knows(net, 2) == [block(0), block(1)]);
    assert_eq!(net.nodes[2].routes[&block(1)], [address(0)]);
    let path = net.nodes[2].speaker.explain(net.now, block(1)).unwrap().paths.remove(0).attributes;
    assert_eq!(path.as_path.to_string(), "64512 64513");
    assert_eq!((knows(&net, 1), knows(&net, 3)), (vec![block(0)], vec![block(0)]));
    // What goes is withdrawn.
    net.input(1, Input::SetOwn(Own::default()));
    net.run_until("it is gone", SECONDS_10, |net| knows(net, 2) == [block(0)]);
    net.input(1, Input::SetOwn(Own::announced([block(1)])));
    net.run_until("it is back", SECONDS_10, |net| knows(net, 2) == [block(0), block(1)]);
    // Everything to everybody: nobody is told of what is his, nor a node of the AS what comes from another.
    set(&mut net, &[(1, learned(None)), (2, learned(None)), (3, learned(None))]);
    net.run_until("all of it", SECONDS_10, |net| {
        knows(net, 1) == [block(0), block(2), block(3)]
            && knows(net, 2) == [block(0), block(1), block(3)]
            && knows(net, 3) == [block(0), block(1), block(2)]
    });
    // A ToR's next hop stays inside the AS.
    assert_eq!(net.nodes[3].routes[&block(1)], [address(1)]);
    set(&mut net, &[]);
    net.run_until("no transit", SECONDS_10, |net| (1..4).all(|n| knows(net, n) == [block(0)]));
    assert_eq!(net.nodes.iter().flat_map(|n| n.speaker.peers()).map(|p| p.flaps).sum::<u32>(), 0);
}
