//! Several sessions with one address.

use std::{collections::BTreeMap, net::IpAddr};

use twill_bgp_proto::{PeerKey, PeerKind};
use twill_k8s_api::{Condition, ConditionStatus, Kind, Node};
use twill_types::Family;

use super::{Configuration, Desired, Snapshot};

/// Says which session of each address has the connections that come from there: what port they come from
/// tells nothing. If a Node has the address, it is the session with the port that this node listens on, as
/// nodes dial each other. Of other sessions none has them, and this node alone dials.
pub(super) fn tell_apart(resources: &Snapshot, config: &Configuration<'_>, desired: &mut Desired) {
    let mut shared: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    for key in desired.peers.keys() {
        shared.entry(key.address).or_default().push(key.port);
    }
    shared.retain(|_, ports| ports.len() > 1);
    for (address, ports) in shared {
        let has_it = |node: &&Node| node.address(Family::of(address)) == Some(address);
        let holder = resources.nodes.values().find(has_it);
        let listens = holder.map(|node| config.listen_port(&node.metadata.name));
        for port in ports.iter().filter(|port| Some(**port) != listens) {
            let Some(session) = desired.peers.get_mut(&PeerKey { address, port: *port }) else {
                continue;
            };
            session.takes_connections = false;
            let (name, is_passive) = (session.name.clone(), session.passive);
            if session.kind == PeerKind::Mesh {
                continue;
            }
            let condition = not_taken(address, &ports, is_passive);
            // Two routers behind one address are none of the node's problems, as long as it can dial both.
            if is_passive {
                desired.say_once(Kind::BgpPeer, &name, condition);
            } else {
                desired.note_once(Kind::BgpPeer, &name, condition);
            }
        }
    }
}

fn not_taken(address: IpAddr, ports: &[u16], is_passive: bool) -> Condition {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let outcome = if is_passive {
        "none is taken for this one, and being passive it has no session: take passive away, or give it \
         an address of its own"
    } else {
        "none is taken for this one, and the node alone dials"
    };
    Condition {
        kind: "ConnectionsTaken".to_owned(),
        status: ConditionStatus::False,
        reason: "AddressShared".to_owned(),
        message: format!(
            "there are sessions with the ports {} of {address}, and a connection from there does not tell \
             which of them it is for: {outcome}",
            ports.join(" and ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{files, load_manifests};

    use super::{
        super::{Known, desired},
        *,
    };

    fn of(mesh: bool, peers: &[(&str, &str)]) -> Desired {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{nodeToNodeMeshEnabled: {mesh}, listenPort: 1790}}\n"
        );
        for (name, address) in [("n1", "192.0.2.11"), ("n2", "192.0.2.12")] {
            text += &format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: \
                 {{projectcalico.org/IPv4Address: {address}}}}}\n"
            );
        }
        for (name, spec) in peers {
            text += &format!(
                "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
                 spec: {{asNumber: 64513, peerIP: {spec}}}\n"
            );
        }
        let loaded = load_manifests(&text, "m.yaml");
        assert!(!loaded.has_errors(), "{:?}", loaded.problems);
        desired("n1", &Snapshot::new(files::catalog([&loaded])), &Known::default())
    }

    /// By port, whether connections are taken for the session.
    fn taken(desired: &Desired) -> Vec<(u16, bool)> {
        desired.peers.iter().map(|(key, peer)| (key.port, peer.takes_connections)).collect()
    }

    #[test]
    fn one_session_of_an_address_takes_what_comes_from_there() {
        let one = of(false, &[("a", "192.0.2.1"), ("b", "'192.0.2.2:1179'")]);
        assert_eq!((taken(&one), one.conditions.len()), (vec![(179, true), (1179, true)], 0));
    }

    #[test]
    fn two_sessions_of_an_address_are_dialled() {
        let two = of(false, &[("a", "192.0.2.1"), ("b", "'192.0.2.1:1179'"), ("c", "192.0.2.3")]);
        assert_eq!(taken(&two), [(179, false), (1179, false), (179, true)]);
        let said: Vec<_> = two.conditions.iter().collect();
        let names: Vec<_> = said.iter().map(|(id, _)| id.name.as_str()).collect();
        assert_eq!((names, two.problems.len()), (vec!["a", "b"], 0));
        let condition = &said[0].1[0];
        assert_eq!(
            (condition.kind.as_str(), condition.reason.as_str()),
            ("ConnectionsTaken", "AddressShared")
        );
        assert!(
            condition
                .message
                .starts_with("there are sessions with the ports 179 and 1179 of 192.0.2.1,")
        );
        assert!(condition.message.ends_with("the node alone dials"));
    }

    #[test]
    fn a_passive_one_among_them_has_no_session_and_is_a_problem() {
        let two = of(false, &[("a", "192.0.2.1"), ("b", "'192.0.2.1:1179', passive: true")]);
        assert_eq!(taken(&two), [(179, false), (1179, false)]);
        assert!(two.problems[0].starts_with("BGPPeer b: ") && two.problems.len() == 1);
        assert!(two.problems[0].ends_with("take passive away, or give it an address of its own"));
    }

    #[test]
    fn what_comes_from_a_node_is_the_nodes() {
        let beside_the_mesh = of(true, &[("a", "'192.0.2.12:179'")]);
        assert_eq!(taken(&beside_the_mesh), [(179, false), (1790, true)]);
        let names: Vec<_> = beside_the_mesh.conditions.keys().map(|id| id.name.as_str()).collect();
        assert_eq!(names, ["a"], "the mesh's is as it was");
        let by_peers = of(false, &[("a", "'192.0.2.12:179'"), ("b", "192.0.2.12")]);
        assert_eq!(taken(&by_peers), [(179, false), (1790, true)]);
    }
}
