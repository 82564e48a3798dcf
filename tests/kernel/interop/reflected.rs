//! A node that is a route reflector, between a BIRD and the peer of a row.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::Topology,
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
