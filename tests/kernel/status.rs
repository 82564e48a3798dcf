//! STATUS of a node that lacks routes.

use anyhow::{Result, ensure};
use serde_json::json;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::Topology,
    ping,
    wait::wait_for,
};

use crate::{LONG, SECONDS, plugin::refusal};

/// Its session is over one link, and the address of its routes (their preferred source) on another: the
/// kernel refuses the routes as long as that is not there.
pub(crate) fn s_02_missing_routes_count_by_option() -> Result<()> {
    let mut topology = Topology::new();
    let neighbor = Neighbor::new("node1", "192.168.3.11", 64512).local("192.168.3.1");
    topology
        .router("tor")
        .on("seg-b", "192.168.3.1/24")
        .bird(BirdConfig::new("192.168.3.1", 64513).neighbor(neighbor).announce("198.51.100.0/24"));
    topology.samples(&["ippool-app.yaml"])?;
    topology
        .node("node1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24")
        .on("seg-b", "192.168.3.11/24");
    topology.resource(
        "tor.yaml",
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\n\
         spec: {peerIP: 192.168.3.1, asNumber: 64513, sourceAddress: None}\n",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let plain = runtime.conflist().clone();
    let mut counting = plain.clone();
    counting["plugins"][0]["statusOnMissingRoutes"] = json!(true);
    runtime.set_conflist(counting.clone());
    let node = lab.node("node1")?;
    wait_for("readiness", SECONDS, || node.runtime().status(node.namespace()))?;

    node.namespace().ip("address del 192.168.2.11/24 dev eth0")?;
    let error = wait_for("the route to be missed", LONG, || {
        refusal(node.runtime().status(node.namespace()))
    })?;
    ensure!(error.code == 51 && error.message.starts_with("1 routes"), "{error}");
    // S-05: the other verbs do their work all the same.
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    node.runtime().gc(node.namespace(), &[pod.attachment()])?;
    ping::reaches(node.namespace(), pod.address()?)?;
    lab.delete_pod(pod)?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().status(node.namespace()))?;
    ensure!(error.code == 51, "{error}");
    node.wait_established(&["192.168.3.1"], SECONDS)?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(plain);
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())?;

    node.namespace().ip("address add 192.168.2.11/24 dev eth0")?;
    node.wait_route("198.51.100.0/24", LONG)?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(counting);
    let node = lab.node("node1")?;
    wait_for("readiness again", SECONDS, || node.runtime().status(node.namespace()))
}
