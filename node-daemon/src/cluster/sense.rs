//! Objects that are right each by itself, and make no sense together.

use std::collections::BTreeMap;

use twill_k8s_api::{BgpPeer, Condition, Resource};
use twill_types::Block;

use super::{kinds::List, of_nodes, world::World};

/// What is said about an object, beside what nodes say.
pub(super) type Findings = BTreeMap<(List, String), Vec<Condition>>;

/// Looks at everything but pools, which [`super::pools`] looks at.
pub(super) fn look(world: &World) -> Findings {
    let mut found = Findings::new();
    peers(world, &mut found);
    claims(world, &mut found);
    of_nodes::look(world, &mut found);
    found
}

/// Adds a condition; of one type there is one, with both messages.
pub(super) fn say(found: &mut Findings, list: List, name: &str, condition: Condition) {
    let conditions = found.entry((list, name.to_owned())).or_default();
    match conditions.iter_mut().find(|known| known.kind == condition.kind) {
        Some(known) => known.message = format!("{}; {}", known.message, condition.message),
        None => conditions.push(condition),
    }
}

fn peers(world: &World, found: &mut Findings) {
    let peers: Vec<(&String, &BgpPeer)> = world
        .entries(List::Peers)
        .filter_map(|(name, entry)| match &entry.value {
            Some(Resource::BgpPeer(peer)) => Some((name, peer)),
            _ => None,
        })
        .collect();
    // By name, as nodes go through them: of two, the first one is used.
    let mut global: BTreeMap<_, &String> = BTreeMap::new();
    for (name, peer) in &peers {
        let spec = &peer.spec;
        let is_global = spec.node.is_none() && spec.node_selector.is_none();
        let Some(address) = spec.peer_ip.as_ref().filter(|_| is_global) else { continue };
        let key = (address.ip, address.port);
        let Some(first) = global.get(&key) else {
            global.insert(key, name);
            continue;
        };
        for (one, other) in [(name, first), (first, name)] {
            let message = format!(
                "BGPPeer {other} means {} for all nodes as well, and nodes use {first}: remove one, or \
                 give each a nodeSelector",
                address.ip
            );
            say(found, List::Peers, one, Condition::holds("Conflicted", "DuplicatePeer", message));
        }
    }
}

/// Claims that no node can make anything of.
fn claims(world: &World, found: &mut Findings) {
    let mut blocks: Vec<(Block, &String)> = Vec::new();
    for (name, entry) in &world.claims {
        match &entry.claim {
            Ok(claim) => blocks.push((claim.block, name)),
            Err(why) => {
                let message = format!(
                    "{why}. Its block is nobody's to use as long as this is there: restore it, or \
                     delete it if no pod has an address of it"
                );
                say(found, List::Claims, name, Condition::fails("Accepted", "Damaged", message));
            }
        }
    }
    // In the order of addresses, what lies in another comes after it.
    blocks.sort_by_key(|(block, _)| (*block, block.prefix().length()));
    let mut widest: Option<(Block, &String)> = None;
    for (block, name) in blocks {
        match widest {
            Some((wider, other)) if wider.prefix().overlaps(block.prefix()) => {
                for (one, another) in [(name, other), (other, name)] {
                    let message = format!(
                        "overlaps the claim {another}: there was a pool with blocks of another size. \
                         Release one of them"
                    );
                    let overlaps = Condition::holds("Conflicted", "OverlapsClaim", message);
                    say(found, List::Claims, one, overlaps);
                }
            }
            _ => widest = Some((block, name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::samples::{self, object},
        *,
    };

    fn render(found: &Findings) -> Vec<String> {
        let one = |((list, name), all): (&(List, String), &Vec<Condition>)| {
            let reasons: Vec<_> = all.iter().map(|c| format!("{} {}", c.kind, c.reason)).collect();
            format!("{} {name}: {}", list.kind(), reasons.join(", "))
        };
        found.iter().map(one).collect()
    }

    fn peer(name: &str, spec: Value) -> (List, kube::core::DynamicObject) {
        (List::Peers, object(List::Peers, name, spec))
    }

    #[test]
    fn two_peers_for_all_nodes_may_not_mean_one_address() {
        let address = |ip: &str| json!({"peerIP": ip, "asNumber": 64512});
        let world = samples::world(&[
            peer("a", address("10.0.0.1")),
            peer("b", address("10.0.0.2")),
            peer("c", address("10.0.0.1")),
            peer("d", address("10.0.0.1:1179")),
            peer(
                "e",
                json!({"peerIP": "10.0.0.1", "asNumber": 64512, "nodeSelector": "rack == 'a'"}),
            ),
            peer("f", json!({"peerIP": "10.0.0.1", "asNumber": 64512, "node": "n"})),
        ]);
        let found = look(&world);
        assert_eq!(
            render(&found),
            ["BGPPeer a: Conflicted DuplicatePeer", "BGPPeer c: Conflicted DuplicatePeer"]
        );
        let message = &found[&(List::Peers, "c".to_owned())][0].message;
        assert!(message.contains("BGPPeer a means 10.0.0.1") && message.contains("nodes use a"));
    }

    #[test]
    fn claims_that_nobody_can_read_or_that_overlap_are_told() {
        let claim = |name: &str, spec: Value| (List::Claims, object(List::Claims, name, spec));
        let spec = |cidr: &str| json!({"node": "n", "cidr": cidr, "pool": "a"});
        let world = samples::world(&[
            claim("0a000000-26", spec("10.0.0.0/26")),
            claim("0a000020-27", spec("10.0.0.32/27")),
            claim("0a000040-26", spec("10.0.0.64/26")),
            claim("0a000080-26", spec("10.0.0.192/26")),
            claim("0a000100-26", json!({"node": "n", "cidr": "10.0.1.0/26"})),
        ]);
        assert_eq!(
            render(&look(&world)),
            [
                "BlockAffinity 0a000000-26: Conflicted OverlapsClaim",
                "BlockAffinity 0a000020-27: Conflicted OverlapsClaim",
                "BlockAffinity 0a000080-26: Accepted Damaged",
                "BlockAffinity 0a000100-26: Accepted Damaged",
            ]
        );
    }
}
