//! BGPFilters with BIRD as the peer, and BGPPeers that select nodes.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{Bird, BirdConfig, Neighbor},
    lab::{Lab, Topology},
    ping,
    wait::wait_for,
};

use crate::LONG;

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
";

const TORS: [(&str, &str, u32); 2] =
    [("tor1", "192.168.2.1", 64513), ("tor2", "192.168.2.2", 64514)];

fn filter(spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {{name: racks}}\nspec: {spec}\n"
    )
}

/// Two ToRs, and a node that has the filter `racks` for both, whether or not there is one.
fn between_two_tors(spec: Option<&str>) -> Result<Lab> {
    let mut topology = Topology::new();
    for (name, address, asn) in TORS {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local(address);
        let mut bird = BirdConfig::new(address, asn).neighbor(neighbor);
        let announced: &[&str] = match name {
            "tor1" => &["198.51.100.0/24", "198.51.101.0/24"],
            _ => &["203.0.113.0/24"],
        };
        for prefix in announced {
            bird = bird.announce(prefix);
        }
        topology.router(name).on("seg-a", &format!("{address}/24")).bird(bird);
        topology.resource(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
                 spec: {{peerIP: {address}, asNumber: {asn}, filters: [racks]}}\n"
            ),
        );
    }
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("pool.yaml", POOL);
    if let Some(spec) = spec {
        topology.resource("filter.yaml", &filter(spec));
    }
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&TORS.map(|(_, address, _)| address), LONG)?;
    Ok(lab)
}

fn explained(lab: &Lab, prefix: &str) -> Result<Value> {
    lab.node("node1")?.ctl_json(&["bgp", "explain", prefix])
}

/// Waits until so many prefixes of a ToR are taken and refused, and so many told to it.
fn wait_counts(lab: &Lab, tor: &str, expected: [u64; 3]) -> Result<()> {
    wait_for(&format!("{expected:?} of {tor}"), LONG, || {
        let peer = lab.node("node1")?.peer(tor)?;
        let counts =
            ["prefixesIn", "prefixesRefused", "prefixesOut"].map(|name| peer[name].as_u64());
        ensure!(peer["state"] == "Established" && counts == expected.map(Some), "{peer}");
        Ok(())
    })
}

/// The daemon goes and comes, and its sessions with it.
fn restart(lab: &mut Lab) -> Result<()> {
    lab.node_mut("node1")?.stop()?;
    lab.node_mut("node1")?.start()?;
    lab.node("node1")?.wait_established(&TORS.map(|(_, address, _)| address), LONG)
}

/// No session of the node was lost.
fn sessions_went_on(lab: &Lab) -> Result<()> {
    for (_, address, _) in TORS {
        let peer = lab.node("node1")?.peer(address)?;
        ensure!(peer["flaps"] == 0, "{peer}");
    }
    Ok(())
}

/// What filters refuse, in each direction, comes and goes as they change, and so does what they have
/// passed on; no session is reset for it. A filter that is gone changes nothing, also when the daemon starts
/// again.
pub(crate) fn filters_change_without_a_reset() -> Result<()> {
    let lab = &mut between_two_tors(Some(
        "{importV4: [{action: Reject, cidr: 198.51.101.0/24, matchOperator: Equal}]}",
    ))?;
    let _pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    for (tor, ..) in TORS {
        lab.bird(tor)?.wait_route(&block, "node1", LONG)?;
    }
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    wait_for("a reason", LONG, || {
        let reason = explained(lab, "198.51.101.0/24")?["paths"][0]["reason"].clone();
        ensure!(reason == "rejected by BGPFilter racks, importV4[0]", "{reason}");
        Ok(())
    })?;
    lab.node("node1")?.wait_no_route("198.51.101.0/24", LONG)?;
    wait_counts(lab, "192.168.2.1", [1, 1, 1])?;

    let inside = "{action: Reject, cidr: 10.10.0.0/20, matchOperator: In}";
    lab.write_resource("filter.yaml", &filter(&format!("{{exportV4: [{inside}]}}")))?;
    for (tor, ..) in TORS {
        lab.bird(tor)?.wait_no_route(&block, LONG)?;
    }
    lab.node("node1")?.wait_route("198.51.101.0/24", LONG)?;
    let withheld = explained(lab, &block)?["withheld"].clone();
    ensure!(withheld[1]["by"] == "BGPFilter racks, exportV4[0]", "{withheld}");
    sessions_went_on(lab)?;

    let learned = "{exportV4: [{action: Accept, source: RemotePeers, cidr: 198.51.100.0/24, \
                   matchOperator: Equal, operations: [{prependASPath: {prefix: [64999]}}, \
                   {addCommunity: {value: '64512:100'}}]}]}";
    lab.write_resource("filter.yaml", &filter(learned))?;
    let route = lab.bird("tor2")?.wait_route("198.51.100.0/24", "node1", LONG)?;
    // They share a subnet, so the node is not on the way.
    ensure!(route.via == ["192.168.2.1 on eth0"], "{route:?}");
    let all = lab.bird("tor2")?.command("show route 198.51.100.0/24 all")?;
    ensure!(all.contains("BGP.as_path: 64512 64999 64513"), "{all}");
    ensure!(all.contains("BGP.community: (64512,100)"), "{all}");
    for (tor, ..) in TORS {
        lab.bird(tor)?.wait_route(&block, "node1", LONG)?;
    }
    let prefixes = |tor: &str| -> Result<Vec<String>> {
        let routes = lab.bird(tor)?.routes_from("node1")?;
        Ok(routes.into_iter().map(|route| route.prefix).collect())
    };
    let (first, second) = (prefixes("tor1")?, prefixes("tor2")?);
    ensure!(first == [block.clone()] && second.len() == 2, "{first:?} {second:?}");

    lab.remove_resource("filter.yaml")?;
    wait_for("the condition", LONG, || {
        let peer = lab.node("node1")?.ctl(&["get", "bgppeer", "tor2", "-o", "yaml"])?;
        ensure!(peer.contains("FilterNotFound") && peer.contains("BGPFilter racks"), "{peer}");
        Ok(())
    })?;
    ensure!(prefixes("tor2")?.len() == 2, "{:?}", prefixes("tor2")?);
    sessions_went_on(lab)?;
    restart(lab)?;
    wait_counts(lab, "192.168.2.1", [2, 0, 1])?;
    wait_counts(lab, "192.168.2.2", [1, 0, 2])?;
    let told = lab.bird("tor2")?.routes_from("node1")?;
    ensure!(told.len() == 2, "{told:?}");
    let all = lab.bird("tor2")?.command("show route 198.51.100.0/24 all")?;
    ensure!(all.contains("BGP.as_path: 64512 64999 64513"), "{all}");
    let peer = lab.node("node1")?.ctl(&["get", "bgppeer", "tor2", "-o", "yaml"])?;
    ensure!(peer.contains("FilterNotFound") && peer.contains("it holds as it was last"), "{peer}");
    Ok(())
}

/// Without a filter that a node has never seen a session comes up, and says and takes nothing until the filter is
/// there. From then on it may go, also while no daemon runs.
pub(crate) fn a_missing_filter_lets_nothing_pass() -> Result<()> {
    let lab = &mut between_two_tors(None)?;
    let _pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    wait_counts(lab, "192.168.2.1", [0, 2, 0])?;
    lab.node("node1")?.wait_no_route("198.51.100.0/24", LONG)?;
    lab.bird("tor1")?.wait_no_route(&block, LONG)?;
    let reason = explained(lab, "198.51.100.0/24")?["paths"][0]["reason"].clone();
    ensure!(reason == "rejected by BGPFilter racks, which does not exist", "{reason}");
    restart(lab)?;
    wait_counts(lab, "192.168.2.1", [0, 2, 0])?;
    let refuses = "{importV4: [{action: Reject, cidr: 198.51.101.0/24, matchOperator: Equal}]}";
    lab.write_resource("filter.yaml", &filter(refuses))?;
    lab.bird("tor1")?.wait_route(&block, "node1", LONG)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    wait_counts(lab, "192.168.2.1", [1, 1, 1])?;
    lab.node_mut("node1")?.stop()?;
    lab.remove_resource("filter.yaml")?;
    lab.node_mut("node1")?.start()?;
    wait_counts(lab, "192.168.2.1", [1, 1, 1])?;
    lab.bird("tor1")?.wait_route(&block, "node1", LONG)?;
    Ok(())
}

/// Two routers behind one address, in one AS, that dial the node as it dials them: each has the session of its own
/// BGPPeer, with its filters.
pub(crate) fn two_routers_behind_one_address_are_told_apart() -> Result<()> {
    const ADDRESS: &str = "192.168.2.1";
    let router = |identifier: &str, port: &str| {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local(ADDRESS);
        BirdConfig::new(identifier, 64513).neighbor(neighbor.option(&format!("local port {port}")))
    };
    let mut topology = Topology::new();
    topology.router("tor1").on("seg-a", &format!("{ADDRESS}/24")).bird(router("10.0.0.1", "179"));
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    for (name, address, filters) in
        [("told", ADDRESS.to_owned(), ""), ("quiet", format!("{ADDRESS}:1179"), "racks")]
    {
        topology.resource(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
                 spec: {{peerIP: \"{address}\", asNumber: 64513, filters: [{filters}]}}\n"
            ),
        );
    }
    let refuses = filter("{exportV4: [{action: Reject}]}");
    topology.resource("pool.yaml", POOL).resource("filter.yaml", &refuses);
    let mut lab = topology.build()?;
    let second = router("10.0.0.2", "1179");
    let second = Bird::start(lab.router("tor1")?, second, &lab.dir().join("second"))?;
    lab.start_all()?;
    let _pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let block = node.blocks()?.first().cloned().context("no block")?;
    wait_for("both sessions", LONG, || {
        let peers = node.ctl_json(&["bgp", "peers"])?;
        for (peer, (port, router, told)) in
            [(179, "10.0.0.1", 1), (1179, "10.0.0.2", 0)].into_iter().enumerate()
        {
            let peer = &peers[peer];
            ensure!(peer["port"] == port && peer["state"] == "Established", "{peers}");
            ensure!(peer["routerId"] == router && peer["prefixesOut"] == told, "{peers}");
        }
        Ok(())
    })?;
    second.wait_established(&["node1"], LONG)?;
    lab.bird("tor1")?.wait_route(&block, "node1", LONG)?;
    second.wait_no_route(&block, LONG)?;
    for name in ["told", "quiet"] {
        let peer = node.ctl(&["get", "bgppeer", name, "-o", "yaml"])?;
        ensure!(peer.contains("AddressShared"), "{peer}");
    }
    Ok(())
}

/// One BGPPeer for a reflector and all others, whoever they are: both ends have the session, and labels
/// decide who is the reflector.
pub(crate) fn a_reflector_is_reached_by_a_peer_selector() -> Result<()> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .annotation("projectcalico.org/RouteReflectorClusterID", "10.0.0.1")
        .label("route-reflector", "true")
        .on("seg-a", "192.168.2.11/24");
    topology.node("node2").on("seg-a", "192.168.2.12/24");
    topology.node("node3").on("seg-a", "192.168.2.13/24");
    topology.resource("pool.yaml", POOL).resource(
        "bgp.yaml",
        "apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: reflectors}
spec: {nodeSelector: '!has(route-reflector)', peerSelector: has(route-reflector)}
",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.12", "192.168.2.13"], LONG)?;
    for node in ["node2", "node3"] {
        lab.node(node)?.wait_established(&["192.168.2.11"], LONG)?;
        let peers = lab.node(node)?.ctl_json(&["bgp", "peers"])?;
        ensure!(peers.as_array().is_some_and(|peers| peers.len() == 1), "{peers}");
    }
    let (web, client) = (lab.add_pod("node2", "web")?, lab.add_pod("node3", "client")?);
    let block = lab.node("node2")?.blocks()?.first().cloned().context("no block")?;
    let route = lab.node("node3")?.wait_route(&block, LONG)?;
    ensure!(route["gateway"] == "192.168.2.12", "{route}");
    wait_for("traffic", LONG, || ping::reaches(client.namespace(), web.address()?))?;
    // Nobody is a reflector any more, so nobody has a peer.
    let manifest = std::fs::read_to_string(lab.resource("node1.yaml"))?;
    lab.write_resource("node1.yaml", &manifest.replace("route-reflector", "retired"))?;
    wait_for("the sessions to go", LONG, || {
        for node in ["node1", "node2", "node3"] {
            let peers = lab.node(node)?.ctl_json(&["bgp", "peers"])?;
            ensure!(peers.as_array().is_some_and(Vec::is_empty), "{node}: {peers}");
        }
        Ok(())
    })?;
    lab.node("node3")?.wait_no_route(&block, LONG)
}
