//! The rack of the demo and of most tests: three nodes, and a ToR that is real BIRD.
//!
//! node1 and node3 share a segment with the ToR; node2 sits on one of its own and reaches all
//! others through the ToR. node3 has no label `env`, so the pool does not select it.

use std::time::Duration;

use anyhow::Result;

use crate::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
};

/// The nodes' AS number.
pub const NODES_AS: u32 = 64512;

/// The ToR's AS number.
pub const TOR_AS: u32 = 64513;

/// The ToR's address in all sessions.
pub const TOR: &str = "192.168.2.1";

/// The nodes and their addresses.
pub const NODES: [(&str, &str); 3] =
    [("node1", "192.168.2.11"), ("node2", "192.168.3.12"), ("node3", "192.168.2.13")];

/// What the ToR announces, and an address in it that answers.
pub const OUTSIDE: (&str, &str) = ("198.51.100.0/24", "198.51.100.1");

/// The pool of `ippool-app.yaml`.
pub const POOL: &str = "10.10.0.0/20";

/// The manifests of the rack.
pub const MANIFESTS: [&str; 3] =
    ["ippool-app.yaml", "bgppeer-rack1.yaml", "ipamconfig-default.yaml"];

/// How long sessions and routes may take.
pub const CONVERGENCE: Duration = Duration::from_secs(40);

/// The ToR's configuration.
pub fn tor() -> BirdConfig {
    let config = BirdConfig::new(TOR, TOR_AS).announce(OUTSIDE.0);
    NODES.iter().fold(config, |config, (name, address)| {
        config.neighbor(Neighbor::new(name, address, NODES_AS).local(TOR))
    })
}

/// The rack, to be changed before it is built.
pub fn topology() -> Result<Topology> {
    let mut topology = Topology::new();
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .on("seg-b", "192.168.3.1/24")
        .local("198.51.100.1/24")
        .bird(tor());
    for (name, address) in NODES {
        let (segment, gateway) = match address.starts_with("192.168.2.") {
            true => ("seg-a", "192.168.2.1"),
            false => ("seg-b", "192.168.3.1"),
        };
        let node = topology.node(name);
        node.label("rack", "rack1").on(segment, &format!("{address}/24")).gateway(gateway);
        if name != "node3" {
            node.label("env", "prod");
        }
    }
    topology.samples(&MANIFESTS)?;
    Ok(topology)
}

/// The rack with all daemons started and all sessions established.
pub fn up() -> Result<Lab> {
    let mut lab = topology()?.build()?;
    lab.start_all()?;
    wait_established(&lab)?;
    Ok(lab)
}

/// Waits for every session: of all nodes with the ToR and with each other.
pub fn wait_established(lab: &Lab) -> Result<()> {
    lab.bird("tor")?.wait_established(&NODES.map(|(name, _)| name), CONVERGENCE)?;
    for (name, _) in NODES {
        let others = NODES.iter().filter(|(other, _)| *other != name).map(|(_, address)| *address);
        let peers: Vec<_> = others.chain([TOR]).collect();
        lab.node(name)?.wait_established(&peers, CONVERGENCE)?;
    }
    Ok(())
}

/// Waits until the ToR and all other nodes have a kernel route to each block of these nodes.
pub fn wait_routes(lab: &Lab, owners: &[&str]) -> Result<()> {
    for owner in owners {
        for block in lab.node(owner)?.blocks()? {
            lab.bird("tor")?.wait_route(&block, owner, CONVERGENCE)?;
            for other in lab.nodes().filter(|node| node.name() != *owner) {
                other.wait_route(&block, CONVERGENCE)?;
            }
        }
    }
    Ok(())
}
