//! Whom a BGPPeer means: an address, or the nodes that it selects.

use std::net::IpAddr;

use twill_bgp_proto::{PeerKey, PeerKind};
use twill_k8s_api::{BgpPeer, Condition, ConditionStatus, Node, PeerAddress, ReversePeering};
use twill_types::{Asn, Family};

use super::{BGP_PORT, Configuration, Snapshot};

/// One session of a BGPPeer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) key: PeerKey,
    pub(super) kind: PeerKind,
    pub(super) asn: Asn,
    /// The node that is the peer, if it is one.
    pub(super) holder: Option<&'a Node>,
}

/// The address over which two nodes have their session: it carries the routes of both families.
pub(super) fn shared_address(own: &Node, other: &Node) -> Option<IpAddr> {
    [Family::V4, Family::V6]
        .into_iter()
        .find_map(|family| own.address(family).and(other.address(family)))
}

/// The session with a peer of an address; none if it is this node's own.
pub(super) fn at<'a>(
    peer: &BgpPeer,
    address: PeerAddress,
    own: &Node,
    resources: &'a Snapshot,
    config: &Configuration<'_>,
) -> Result<Option<Session<'a>>, Condition> {
    let has_it = |node: &&Node| node.address(Family::of(address.ip)) == Some(address.ip);
    let holder = resources.nodes.values().find(has_it);
    if !is_selected(peer, own) || holder.is_some_and(|node| is_same(node, own)) {
        // A peer for all nodes that is one of them: not with itself.
        return Ok(None);
    }
    let of_holder = holder.map(|node| config.as_number(node));
    let Some(asn) = peer.spec.as_number.or(of_holder) else {
        return Err(unknown_as(address.ip));
    };
    // Without a port it is the other node's own, if it is one of ours.
    let of_holder = || holder.map_or(BGP_PORT, |node| config.listen_port(&node.metadata.name));
    let key = PeerKey { address: address.ip, port: address.port.unwrap_or_else(of_holder) };
    Ok(Some(Session { key, kind: kind(peer), asn, holder }))
}

/// The sessions that `peerSelector` makes: of the nodes that have this peer with those that it selects,
/// and, unless `reversePeering` is `Manual`, of these with them.
pub(super) fn nodes<'a>(
    peer: &BgpPeer,
    own: &Node,
    resources: &'a Snapshot,
    config: &Configuration<'_>,
) -> Vec<Session<'a>> {
    let Some(selector) = &peer.spec.peer_selector else {
        return Vec::new();
    };
    let is_peer = |node: &Node| selector.matches(&node.metadata.labels);
    let forth = is_selected(peer, own);
    let back = is_peer(own) && peer.spec.reverse_peering != Some(ReversePeering::Manual);
    let others = resources.nodes.values().filter(|node| !is_same(node, own));
    others
        .filter_map(|node| {
            let kind = match (forth && is_peer(node), back && is_selected(peer, node)) {
                (true, _) => kind(peer),
                (false, true) => PeerKind::Node,
                (false, false) => return None,
            };
            let address = shared_address(own, node)?;
            let key = PeerKey { address, port: config.listen_port(&node.metadata.name) };
            Some(Session { key, kind, asn: config.as_number(node), holder: Some(node) })
        })
        .collect()
}

fn is_selected(peer: &BgpPeer, node: &Node) -> bool {
    peer.spec.selects(&node.metadata.name, &node.metadata.labels)
}

fn is_same(node: &Node, own: &Node) -> bool {
    node.metadata.name == own.metadata.name
}

const fn kind(peer: &BgpPeer) -> PeerKind {
    match (&peer.spec.node, &peer.spec.node_selector) {
        (None, None) => PeerKind::Global,
        _ => PeerKind::Node,
    }
}

fn unknown_as(address: IpAddr) -> Condition {
    Condition {
        kind: "PeerKnown".to_owned(),
        status: ConditionStatus::False,
        reason: "AsNumberMissing".to_owned(),
        message: format!(
            "no Node has the address {address}, so the peer's AS number is not known: add asNumber. Until \
             then there is no session"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twill_k8s_api::{files, load_manifests};

    use super::{
        super::{Desired, Known, desired},
        *,
    };

    const NODES: [(&str, &str, &str, &str); 4] = [
        ("n1", "192.0.2.11", "2001:db8::11", "role: rr"),
        ("n2", "192.0.2.12", "2001:db8::12", "role: leaf"),
        ("n3", "192.0.2.13", "2001:db8::13", "role: leaf"),
        ("n4", "", "2001:db8::14", "role: leaf"),
    ];

    fn resources(mesh: bool, more: &str) -> Snapshot {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{nodeToNodeMeshEnabled: {mesh}}}\n"
        );
        for (name, v4, v6, label) in NODES {
            let v4 = match v4 {
                "" => String::new(),
                v4 => format!("projectcalico.org/IPv4Address: {v4}, "),
            };
            text += &format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{label}}}, \
                 annotations: {{{v4}projectcalico.org/IPv6Address: '{v6}'}}}}\n"
            );
        }
        Snapshot::new(files::catalog([&load_manifests(&(text + more), "m.yaml")]))
    }

    fn bgp_peer(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {spec}\n"
        )
    }

    fn of(node: &str, resources: &Snapshot) -> Desired {
        desired(node, resources, &Known::default())
    }

    /// By whom each session is made, by the last part of its address.
    fn sessions(node: &str, resources: &Snapshot) -> BTreeMap<String, String> {
        let found = of(node, resources);
        assert_eq!(found.problems, Vec::<String>::new());
        let last =
            |address: IpAddr| address.to_string().rsplit(['.', ':']).next().map(str::to_owned);
        found.peers.iter().map(|(k, p)| (last(k.address).unwrap(), p.name.clone())).collect()
    }

    fn expected(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(address, by)| ((*address).to_owned(), (*by).to_owned())).collect()
    }

    #[test]
    fn both_ends_of_a_peer_selector_have_the_session() {
        let leaves = r"{nodeSelector: role == 'leaf', peerSelector: role == 'rr'}";
        let with = resources(false, &bgp_peer("a", leaves));
        assert_eq!(sessions("n1", &with), expected(&[("12", "a"), ("13", "a"), ("14", "a")]));
        assert_eq!(sessions("n2", &with), expected(&[("11", "a")]));
        assert_eq!(sessions("n4", &with), expected(&[("11", "a")]), "over IPv6");
        let manual = leaves.replace('}', ", reversePeering: Manual}");
        let with = resources(false, &bgp_peer("a", &manual));
        assert_eq!(sessions("n1", &with), expected(&[]));
        assert_eq!(sessions("n2", &with), expected(&[("11", "a")]));
        // One of all nodes, and all with all.
        let with = resources(false, &bgp_peer("a", "{node: n2, peerSelector: has(role)}"));
        assert_eq!(sessions("n2", &with), expected(&[("11", "a"), ("13", "a"), ("14", "a")]));
        assert_eq!(sessions("n3", &with), expected(&[("12", "a")]));
        let with = resources(false, &bgp_peer("a", "{peerSelector: all()}"));
        assert_eq!(sessions("n1", &with), expected(&[("12", "a"), ("13", "a"), ("14", "a")]));
        assert!(of("n1", &with).peers.values().all(|peer| peer.kind == PeerKind::Global));
    }

    #[test]
    fn there_is_one_session_with_each_address() {
        let two = bgp_peer("b", "{peerSelector: role == 'rr'}")
            + &bgp_peer("a", "{peerSelector: all(), nodeSelector: role == 'leaf'}")
            + &bgp_peer("z", "{node: n2, peerIP: 192.0.2.13}");
        let with = resources(true, &two);
        assert_eq!(sessions("n2", &with), expected(&[("11", "a"), ("13", "z"), ("14", "a")]));
        assert_eq!(sessions("n1", &with), expected(&[("12", "a"), ("13", "a"), ("14", "a")]));
        // Without the peers it is the mesh.
        let mesh = sessions("n2", &resources(true, ""));
        assert_eq!(mesh, expected(&[("11", "n1"), ("13", "n3"), ("14", "n4")]));
    }

    #[test]
    fn a_node_tells_its_as_number() {
        let at = |address: &str| {
            resources(false, &bgp_peer("a", &format!("{{node: n2, peerIP: {address}}}")))
        };
        let found = of("n2", &at("192.0.2.13"));
        let asns: Vec<u32> = found.peers.values().map(|peer| peer.asn.get()).collect();
        assert_eq!(asns, [64512]);
        let missing = of("n2", &at("192.0.2.99"));
        assert_eq!(missing.peers.len(), 0);
        let (object, conditions) = missing.conditions.first_key_value().unwrap();
        assert_eq!((object.to_string().as_str(), conditions.len()), ("bgppeer a", 1));
        assert_eq!(conditions[0].reason, "AsNumberMissing");
    }

    #[test]
    fn a_missing_filter_is_told_once_for_all_sessions() {
        let peer = bgp_peer("a", "{peerSelector: all(), filters: [f]}");
        let found = of("n1", &resources(false, &peer));
        assert_eq!(found.peers.len(), 3);
        let is_closed = |peer: &twill_bgp_proto::PeerConfig| {
            peer.policy.routes.as_ref().is_some_and(|policy| policy.closed.is_some())
        };
        assert!(found.peers.values().all(is_closed));
        let conditions: Vec<_> = found.conditions.values().flatten().collect();
        assert_eq!((conditions.len(), conditions[0].reason.as_str()), (1, "FilterNotFound"));
        // It comes, and it goes again: what was in force stays.
        let filter = "---\napiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: f}\n\
                      spec: {exportV4: [{action: Reject}]}\n";
        let with = desired("n1", &resources(false, &(peer.clone() + filter)), &Known::of(&found));
        assert!(!with.peers.values().any(is_closed));
        assert_eq!(with.conditions.len(), 0);
        let without = desired("n1", &resources(false, &peer), &Known::of(&with));
        assert_eq!(without.peers, with.peers);
        assert_eq!(without.conditions.len(), 1);
    }

    /// Whatever becomes of filters and of the names in BGPPeers, a daemon that starts again does what the one
    /// before did.
    #[test]
    fn a_restart_changes_nothing_about_filters() {
        let filter = |name: &str, rule: &str| {
            format!(
                "---\napiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {{name: {name}}}\n\
                 spec: {{exportV4: [{rule}]}}\n"
            )
        };
        let (reject, accept) = ("{action: Reject}", "{action: Accept}");
        let peer = |filters: &str| {
            bgp_peer("a", &format!("{{peerIP: 192.0.2.99, asNumber: 64513, filters: [{filters}]}}"))
        };
        let names = |found: &Desired| {
            let policy = found.peers.values().next().unwrap().policy.routes.clone();
            policy.map(|policy| match &policy.closed {
                Some(_) => "closed".to_owned(),
                None => policy
                    .filters
                    .iter()
                    .map(|f| format!("{}{:?} ", f.name, f.export[0][0].action))
                    .collect(),
            })
        };
        let mut known = Known::default();
        for (what, manifests, expected) in [
            ("never seen", peer("f"), Some("closed")),
            ("without", peer(""), None),
            ("a name that never was", peer("f"), None),
            ("it is there", peer("f") + &filter("f", reject), Some("fReject ")),
            ("it changes", peer("f") + &filter("f", accept), Some("fAccept([]) ")),
            ("it goes", peer("f"), Some("fAccept([]) ")),
            ("one more that never was", peer("f, g"), Some("fAccept([]) ")),
            ("another that never was", peer("h"), Some("fAccept([]) ")),
            ("what it keeps is there again", peer("h") + &filter("f", reject), Some("fReject ")),
            ("another in its place", peer("g") + &filter("g", accept), Some("gAccept([]) ")),
            ("nobody names f any more", peer("f, g"), Some("gAccept([]) ")),
        ] {
            let resources = resources(false, &manifests);
            let found = desired("n1", &resources, &known);
            assert_eq!(names(&found).as_deref(), expected, "{what}");
            let mut left = Known::default();
            left.add_left(found.last.clone());
            let restarted = desired("n1", &resources, &left);
            assert_eq!(restarted.peers, found.peers, "{what}");
            assert_eq!(restarted.last, found.last, "{what}");
            assert_eq!(restarted.conditions, found.conditions, "{what}");
            known = Known::of(&found);
        }
    }
}
