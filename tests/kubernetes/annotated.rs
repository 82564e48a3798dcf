//! What Nodes on the API server say of their BGP: annotations that come while daemons run, and that are there
//! when one starts.

use std::fs;

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    kubernetes::ApiServer,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    nodes::{NODES, PEER, POOL, STRICT, Site, TOR, block_of},
};

/// The AS of nodes that say nothing.
const ASN: u32 = 64512;

fn annotate(site: &Site, node: &str, annotation: &str) -> Result<()> {
    let annotation = format!("projectcalico.org/{annotation}");
    site.api.kubectl().run(&["annotate", "--overwrite", "node", node, &annotation]).map(drop)
}

/// Waits until the router has the route of a node to a block, with this among its attributes.
fn wait_attribute(site: &Site, block: &str, node: &str, attribute: &str) -> Result<()> {
    wait_for(&format!("{attribute} of {block}"), LONG, || {
        let routes = site.lab.bird("tor")?.routes(block)?;
        let route = routes.iter().find(|route| route.protocol == node);
        let text = &route.with_context(|| format!("it has {routes:?}"))?.text;
        ensure!(text.lines().any(|line| line.trim() == attribute), "{text}");
        Ok(())
    })
}

/// A node that is given an AS number speaks with it, to the router that expects it and to the other nodes, who
/// are told of it as well; so it does after a restart, also without the API server. Without the annotation it is
/// in the AS of all.
pub(crate) fn a_node_speaks_with_its_own_as_number(_: &ApiServer) -> Result<()> {
    const OWN: u32 = 64777;
    let mut site = Site::start(&[POOL, PEER, STRICT])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    site.lab.bird("tor")?.wait_established(&["node1", "node2"], LONG)?;
    wait_attribute(&site, &block, "node1", &format!("BGP.as_path: {ASN}"))?;

    let before = site.lab.bird("tor")?.config().clone();
    let (name, address) = NODES[0];
    let expects = Neighbor::new(name, address, OWN).local(TOR);
    let expects = before.clone().without(name).neighbor(expects);
    annotate(&site, "node1", &format!("ASNumber={OWN}"))?;
    site.lab.bird_mut("tor")?.configure(expects)?;
    let speaks = |site: &Site| {
        wait_attribute(site, &block, "node1", &format!("BGP.as_path: {OWN}"))?;
        wait_for("the other node to expect it", LONG, || {
            let peer = site.lab.node("node2")?.peer(address)?;
            ensure!(peer["state"] == "Established" && peer["asn"] == OWN, "{peer}");
            Ok(())
        })
    };
    speaks(&site)?;
    let copy = site.lab.node("node1")?.dir().join("state/last-known-good.json");
    wait_until("the copy of what is known", LONG, || {
        Ok(fs::read_to_string(&copy).is_ok_and(|text| text.contains(&OWN.to_string())))
    })?;
    site.lab.node_mut("node1")?.stop()?;
    site.api.set_reachable(false)?;
    site.lab.node_mut("node1")?.start()?;
    speaks(&site)?;
    site.api.set_reachable(true)?;

    annotate(&site, "node1", "ASNumber-")?;
    site.lab.bird_mut("tor")?.configure(before)?;
    wait_attribute(&site, &block, "node1", &format!("BGP.as_path: {ASN}"))?;
    site.lab.delete_pod(pod)
}

/// A node that is given a cluster ID passes routes of one node on to a router in its AS, which sees the ID, and
/// sees another one once the node has that; without it nothing is passed on any more.
pub(crate) fn a_reflector_is_known_by_its_cluster_id(_: &ApiServer) -> Result<()> {
    let peer = |name: &str, spec: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {{{spec}, asNumber: {ASN}}}\n"
        )
    };
    let no_mesh = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\n\
                   metadata: {name: default}\nspec: {nodeToNodeMeshEnabled: false}\n";
    let (reflector, other) = (NODES[0], NODES[1]);
    let manifests = [
        peer("to-reflector", &format!("node: {}, peerIP: {}", other.0, reflector.1)),
        peer("to-other", &format!("node: {}, peerIP: {}", reflector.0, other.1)),
        peer("tor", &format!("node: {}, peerIP: {TOR}", reflector.0)),
    ];
    let mut site =
        Site::start(&[POOL, STRICT, no_mesh, &manifests[0], &manifests[1], &manifests[2]])?;
    let inside = Neighbor::new(reflector.0, reflector.1, ASN).local(TOR);
    site.lab.bird_mut("tor")?.configure(BirdConfig::new(TOR, ASN).neighbor(inside))?;
    site.lab.bird("tor")?.wait_established(&[reflector.0], LONG)?;
    let pod = site.lab.add_pod(other.0, "a")?;
    let (block, _) = block_of(&site, &pod)?;
    // The node has it, and is nobody's reflector.
    site.lab.node(reflector.0)?.wait_route(&block, LONG)?;
    site.lab.bird("tor")?.wait_no_route(&block, LONG)?;

    for id in ["10.0.0.1", "10.0.0.2"] {
        annotate(&site, reflector.0, &format!("RouteReflectorClusterID={id}"))?;
        wait_attribute(&site, &block, reflector.0, &format!("BGP.cluster_list: {id}"))?;
    }
    wait_attribute(&site, &block, reflector.0, &format!("BGP.originator_id: {}", other.1))?;
    annotate(&site, reflector.0, "RouteReflectorClusterID-")?;
    site.lab.bird("tor")?.wait_no_route(&block, LONG)?;
    site.lab.delete_pod(pod)
}
