//! What a node's OPEN says of forwarding over its restart: the F bits (RFC 4724 section 3).

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use twill_tests::{
    lab::{Lab, Topology},
    wait::wait_for,
};
use twill_types::Family;

use crate::{LONG, sessions::Raw};

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
";

const TOR: &str = "apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.168.2.1, asNumber: 64513, passive: true}
";

/// What the node has, without a pod.
const BLOCK: &str = "10.10.0.0/26";

/// Families of the node's OPEN, each with its F bit.
///
/// No session comes of it: of one that breaks the node would say F truly, as it has forwarded all the time.
fn bits(lab: &Lab) -> Result<Vec<(Family, bool)>> {
    let identifier = Ipv4Addr::new(192, 168, 2, 1);
    let (_raw, open) =
        wait_for("the node's OPEN", LONG, || Raw::exchange(lab.router("tor")?, identifier, 90))?;
    let restart = open.graceful_restart().context("no graceful restart")?;
    Ok(restart.families.iter().map(|entry| (entry.family, entry.forwarding)).collect())
}

fn ensure_bits(lab: &Lab, ipv4: bool, ipv6: bool, when: &str) -> Result<()> {
    let found = bits(lab)?;
    let expected = [(Family::V4, ipv4), (Family::V6, ipv6)];
    ensure!(found == expected, "{when}: {found:?}, not {expected:?}");
    Ok(())
}

/// Neither on a new node; of the one family whose routes are there on a node whose daemon died; and neither
/// where somebody has removed them meanwhile.
pub(crate) fn the_f_bits_are_of_what_the_kernel_has() -> Result<()> {
    let mut topology = Topology::new();
    topology.router("tor").on("seg-a", "192.168.2.1/24");
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("pool.yaml", POOL).resource("tor.yaml", TOR);
    let mut lab = topology.build()?;
    let node = std::fs::read_to_string(lab.resource("node1.yaml"))?;
    lab.write_resource("node1.yaml", &format!("{node}spec: {{blocks: [{BLOCK}]}}\n"))?;
    lab.start_all()?;
    ensure_bits(&lab, false, false, "a new node")?;
    let ours = |lab: &Lab| lab.node("node1")?.namespace().ip("route show proto 116");
    wait_for("the block's route", LONG, || {
        let routes = ours(&lab)?;
        ensure!(routes.contains(BLOCK), "{routes}");
        Ok(())
    })?;

    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    ensure_bits(&lab, true, false, "a daemon that has died")?;

    lab.node_mut("node1")?.kill9()?;
    lab.node("node1")?.namespace().ip("route flush proto 116")?;
    let left = ours(&lab)?;
    ensure!(left.trim().is_empty(), "not flushed: {left}");
    lab.node_mut("node1")?.start()?;
    ensure_bits(&lab, false, false, "a daemon whose routes were removed")
}
