//! A node that is a route reflector: between a BIRD and the peer of a row, and between other nodes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::Topology,
    ping,
    wait::wait_for,
    watch::RouteWatch,
};

use super::{
    rig::{POOL, bgp_peer},
    router::{COMMUNITIES, NODE, Peering, ROUTER, Router},
};
use crate::LONG;

const SOURCE: &str = "192.168.2.2";
const REFLECTED: &str = "10.10.4.0/26";

/// Communities of all three kinds are kept on the way through a reflector, within the AS and out of
/// it: each of them is transitive (RFC 1997, RFC 4360 section 6, RFC 8092).
pub(super) fn communities_passed_on<R: Router>() -> Result<()> {
    for asn in [64512, 64513] {
        let peering = Peering { asn, ..Peering::default() };
        let mut topology = Topology::new();
        topology
            .node("node1")
            .annotation("projectcalico.org/RouteReflectorClusterID", "10.0.0.1")
            .on("seg-a", &format!("{NODE}/24"));
        let marked = format!(
            "protocol static marked {{ ipv4; route {REFLECTED} blackhole {{ \
             bgp_community.add((64513,7)); bgp_large_community.add((64513,1,2)); \
             bgp_ext_community.add((rt,64513,9)); }}; }}\n"
        );
        let neighbor = Neighbor::new("node1", NODE, peering.node_asn).local(SOURCE);
        let source = BirdConfig::new(SOURCE, peering.node_asn).neighbor(neighbor).extra(&marked);
        topology.router("source").on("seg-a", &format!("{SOURCE}/24")).bird(source);
        topology.router("router").on("seg-a", &format!("{ROUTER}/24"));
        let to_source = bgp_peer(&peering, "")
            .replace("name: router", "name: source")
            .replace(ROUTER, SOURCE)
            .replace(&format!("asNumber: {asn}"), &format!("asNumber: {}", peering.node_asn));
        topology
            .resource("pool.yaml", POOL)
            .resource("router.yaml", &bgp_peer(&peering, ""))
            .resource("source.yaml", &to_source);
        let mut lab = topology.build()?;
        let router = R::start(lab.router("router")?, &lab.dir().join("router"), &peering)?;
        lab.start_all()?;
        lab.node("node1")?.wait_established(&[SOURCE, ROUTER], LONG)?;
        let learned = router.wait_path(REFLECTED)?;
        let wanted: BTreeSet<String> = COMMUNITIES.map(str::to_owned).into();
        ensure!(learned.communities == wanted, "{learned:?}");
        // The router ends before its namespace.
        drop(router);
    }
    Ok(())
}

/// Nodes without a mesh, with a reflector among them, go by each other directly, and are back at once
/// when the reflector restarts.
pub(crate) fn nodes_reach_each_other_by_a_reflector() -> Result<()> {
    let peer = |name: &str, spec: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {{{spec}}}\n"
        )
    };
    let mut topology = Topology::new();
    topology
        .node("node1")
        .annotation("projectcalico.org/RouteReflectorClusterID", "10.0.0.1")
        .on("seg-a", "192.168.2.11/24");
    topology.node("node2").on("seg-a", "192.168.2.12/24");
    topology.node("node3").on("seg-a", "192.168.2.13/24");
    topology
        .resource("pool.yaml", POOL)
        .resource(
            "bgp.yaml",
            "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\n\
             metadata: {name: default}\nspec: {nodeToNodeMeshEnabled: false}\n",
        )
        .resource("reflector.yaml", &peer("reflector", "peerIP: 192.168.2.11, asNumber: 64512"))
        .resource(
            "to-2.yaml",
            &peer("to-node2", "node: node1, peerIP: 192.168.2.12, asNumber: 64512"),
        )
        .resource(
            "to-3.yaml",
            &peer("to-node3", "node: node1, peerIP: 192.168.2.13, asNumber: 64512"),
        );
    let mut lab = topology.build()?;
    lab.start_all()?;
    let (web, client) = (lab.add_pod("node2", "web")?, lab.add_pod("node3", "client")?);
    let block = lab.node("node2")?.blocks()?.first().cloned().context("no block")?;
    let route = lab.node("node3")?.wait_route(&block, LONG)?;
    ensure!(route["gateway"] == "192.168.2.12", "{route}");
    wait_for("traffic", LONG, || ping::reaches(client.namespace(), web.address()?))?;
    let watch = RouteWatch::start(&lab, "node3")?;
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    for node in ["node2", "node3"] {
        lab.node(node)?.wait_established(&["192.168.2.11"], LONG)?;
        wait_for("fresh routes", LONG, || {
            let peer = lab.node(node)?.peer("192.168.2.11")?;
            ensure!(peer["prefixesStale"] == 0 && peer["prefixesIn"].as_u64() > Some(0), "{peer}");
            Ok(())
        })?;
    }
    watch.nothing_deleted()
}
