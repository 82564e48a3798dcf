//! A node and a router on one segment, with one session.

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::{
    lab::{Lab, Node, Topology},
    wait::wait_for,
};

use super::router::{NODE, NODE6, Peering, ROUTER, ROUTER6, Router};
use crate::LONG;

pub(super) const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
";

pub(super) const POOL6: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: \"fd00:10::/112\", blockSize: 122}
";

/// What the node owns and announces, without a pod.
pub(super) const BLOCK: &str = "10.10.0.0/26";
pub(super) const BLOCK6: &str = "fd00:10::/122";

/// The two, while they run.
pub(super) struct Rig<R> {
    // The router ends before its namespace: fields are dropped in this order.
    pub(super) router: R,
    pub(super) lab: Lab,
    pub(super) peering: Peering,
}

/// The manifest of the session, as the node has it. `more` stands in its spec.
pub(super) fn bgp_peer(peering: &Peering, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: router}}\n\
         spec: {{peerIP: {:?}, asNumber: {}{more}}}\n",
        peering.own(),
        peering.asn
    )
}

/// The lab without the router's daemon and with the node's not started.
pub(super) fn lab(peering: &Peering, peer: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    topology
        .router("router")
        .on("seg-a", &format!("{ROUTER}/24"))
        .on("seg-a", &format!("{ROUTER6}/64"));
    let node = topology.node("node1");
    if !peering.extended_next_hop {
        node.on("seg-a", &format!("{NODE}/24"));
    }
    node.on("seg-a", &format!("{NODE6}/64"));
    let configuration = format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asNumber: {}, nodeToNodeMeshEnabled: false}}\n",
        peering.node_asn
    );
    topology
        .resource("pool.yaml", POOL)
        .resource("pool6.yaml", POOL6)
        .resource("bgp.yaml", &configuration)
        .resource("router.yaml", peer);
    let lab = topology.build()?;
    let node = std::fs::read_to_string(lab.resource("node1.yaml"))?;
    lab.write_resource(
        "node1.yaml",
        &format!("{node}spec: {{blocks: [{BLOCK}, \"{BLOCK6}\"]}}\n"),
    )?;
    Ok(lab)
}

impl<R: Router> Rig<R> {
    /// Both started.
    pub(super) fn start(peering: Peering) -> Result<Self> {
        let peer = bgp_peer(&peering, "");
        Self::start_with(peering, &peer)
    }

    /// Both started, with this manifest of the session.
    pub(super) fn start_with(peering: Peering, peer: &str) -> Result<Self> {
        let mut lab = lab(&peering, peer)?;
        let router = R::start(lab.router("router")?, &lab.dir().join("router"), &peering)?;
        lab.start_all()?;
        Ok(Self { router, lab, peering })
    }

    /// Both started, and the session up.
    pub(super) fn up(peering: Peering) -> Result<Self> {
        let rig = Self::start(peering)?;
        rig.wait_up()?;
        Ok(rig)
    }

    pub(super) fn node(&self) -> Result<&Node> {
        self.lab.node("node1")
    }

    /// The session, as the node has it.
    pub(super) fn peer(&self) -> Result<Value> {
        self.node()?.peer(self.peering.own())
    }

    /// Waits until both ends say that the session is up.
    pub(super) fn wait_up(&self) -> Result<()> {
        self.node()?.wait_established(&[self.peering.own()], LONG)?;
        self.router.wait_up()
    }

    /// Waits until the node's session is not up and says this of it.
    pub(super) fn wait_down(&self, info: &str) -> Result<Value> {
        wait_for(&format!("the node to say `{info}`"), LONG, || {
            let peer = self.peer()?;
            let told = peer["info"].as_str().unwrap_or_default().to_lowercase();
            ensure!(
                peer["state"] != "Established" && told.contains(&info.to_lowercase()),
                "{peer}"
            );
            Ok(peer)
        })
    }
}
