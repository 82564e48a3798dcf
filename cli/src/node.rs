//! `twillctl node status`.

use std::fmt::Write;

use jiff::{Timestamp, tz::TimeZone};
use twill_rpc::message::{NodeStatus, PeerKind, PeerStatus};
use twill_types::Family;

use crate::table::{age, framed, peer_address, since};

pub(crate) fn table(status: &NodeStatus, now: Timestamp, zone: &TimeZone, wide: bool) -> String {
    let mut text = format!(
        "Twill process is running (pid {}, version {}, up {}).\n",
        status.pid,
        status.version,
        age(status.started_ms, now)
    );
    let list = |items: Vec<String>| {
        if items.is_empty() { "-".into() } else { items.join(", ") }
    };
    let asn = status.asn.map_or("not configured".to_owned(), |asn| asn.to_string());
    let addresses = list(status.addresses.iter().map(ToString::to_string).collect());
    let _ = writeln!(
        text,
        "Node {}, AS {asn}, addresses {addresses}, blocks {}, learned routes {}{}.",
        status.node,
        status.blocks,
        status.kernel_routes,
        if status.in_sync { "" } else { "; still reading its resources" },
    );
    if wide {
        let labels = status.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let _ = writeln!(text, "Router ID {}, labels {}.", status.router_id, list(labels));
    }
    for (name, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
        let _ = writeln!(text, "\n{name} BGP status");
        let peers: Vec<_> =
            status.peers.iter().filter(|peer| Family::of(peer.address) == family).collect();
        match peers.is_empty() {
            true => _ = writeln!(text, "No {name} peers found."),
            false => text += &sessions(&peers, now, zone),
        }
    }
    let awaited: Vec<String> = status
        .peers
        .iter()
        .filter(|peer| peer.awaited)
        .map(|peer| peer_address(peer.address, peer.port))
        .collect();
    if !awaited.is_empty() {
        let _ = writeln!(text, "\nRestarted: old kernel routes wait for {}.", awaited.join(", "));
    }
    if !status.problems.is_empty() {
        text += "\nProblems\n";
        for problem in &status.problems {
            let _ = writeln!(text, "- {problem}");
        }
    }
    text
}

fn sessions(peers: &[&PeerStatus], now: Timestamp, zone: &TimeZone) -> String {
    let row = |peer: &&PeerStatus| {
        vec![
            peer_address(peer.address, peer.port),
            kind(peer.kind).to_owned(),
            if is_up(peer) { "up" } else { "start" }.to_owned(),
            since(peer.since_ms, now, zone),
            info(peer),
        ]
    };
    framed(
        &["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"],
        &[],
        peers.iter().map(row).collect(),
    )
}

pub(crate) fn is_up(peer: &PeerStatus) -> bool {
    peer.state == "Established"
}

/// The state, and what last went wrong while the session is not up.
pub(crate) fn info(peer: &PeerStatus) -> String {
    let awaited = if peer.awaited { " (awaited)" } else { "" };
    match is_up(peer) || peer.info.is_empty() {
        true => format!("{}{awaited}", peer.state),
        false => format!("{}{awaited}: {}", peer.state, peer.info),
    }
}

pub(crate) const fn kind(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::NodeToNodeMesh => "node-to-node mesh",
        PeerKind::NodeSpecific => "node specific",
        PeerKind::Global => "global",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::tests::{NOW_MS, peer};

    fn status() -> NodeStatus {
        NodeStatus {
            node: "node1".into(),
            version: "0.1.0".into(),
            pid: 4711,
            started_ms: NOW_MS - 312_000,
            addresses: vec!["192.168.2.11".parse().unwrap()],
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            asn: Some("64512".parse().unwrap()),
            router_id: "192.168.2.11".into(),
            in_sync: true,
            peers: Vec::new(),
            strangers_refused: 0,
            blocks: 1,
            kernel_routes: 3,
            problems: Vec::new(),
        }
    }

    fn text(status: &NodeStatus, wide: bool) -> String {
        let now = Timestamp::from_millisecond(NOW_MS.cast_signed()).unwrap();
        table(status, now, &TimeZone::UTC, wide)
    }

    #[test]
    fn sessions_by_family() {
        let mut status = status();
        status.peers = vec![peer("192.168.2.1"), peer("192.168.3.12")];
        status.peers[1].kind = PeerKind::NodeToNodeMesh;
        status.peers[1].port = 1179;
        status.peers[1].state = "Active".into();
        status.peers[1].info = "hold timer expired".into();
        status.peers[1].awaited = true;
        expect![[r#"
            Twill process is running (pid 4711, version 0.1.0, up 5m12s).
            Node node1, AS 64512, addresses 192.168.2.11, blocks 1, learned routes 3.

            IPv4 BGP status
            +-------------------+-------------------+-------+----------+--------------------------------------+
            |    PEER ADDRESS   |     PEER TYPE     | STATE |   SINCE  |                 INFO                 |
            +-------------------+-------------------+-------+----------+--------------------------------------+
            | 192.168.2.1       | node specific     | up    | 11:58:00 | Established                          |
            | 192.168.3.12:1179 | node-to-node mesh | start | 11:58:00 | Active (awaited): hold timer expired |
            +-------------------+-------------------+-------+----------+--------------------------------------+

            IPv6 BGP status
            No IPv6 peers found.

            Restarted: old kernel routes wait for 192.168.3.12:1179.
        "#]]
        .assert_eq(&text(&status, false));
    }

    #[test]
    fn a_node_that_just_started() {
        let mut status = status();
        status.asn = None;
        status.in_sync = false;
        status.problems = vec!["there is no Node node1; add its manifest".into()];
        expect![[r#"
            Twill process is running (pid 4711, version 0.1.0, up 5m12s).
            Node node1, AS not configured, addresses 192.168.2.11, blocks 1, learned routes 3; still reading its resources.
            Router ID 192.168.2.11, labels env=prod.

            IPv4 BGP status
            No IPv4 peers found.

            IPv6 BGP status
            No IPv6 peers found.

            Problems
            - there is no Node node1; add its manifest
        "#]]
        .assert_eq(&text(&status, true));
    }
}
