//! Sessions that one side refuses or ends, and what the other says of it.

use anyhow::{Context, Result, ensure};
use twill_tests::{
    process::tail,
    wait::{wait_for, wait_until},
};

use super::{
    rig::{BLOCK, Rig, bgp_peer},
    router::{OUTSIDE, Peering, Router},
};
use crate::LONG;

/// An AS number that nobody has.
const NOBODY: u32 = 64999;

/// Bad Peer AS (RFC 4271 section 6.2), said by either side, is understood by the other.
pub(super) fn refused_asn<R: Router>() -> Result<()> {
    // The node takes the router for another AS, and says so.
    let peering = Peering::default();
    let wrong = Peering { asn: NOBODY, ..peering.clone() };
    let mut rig = Rig::<R>::start_with(peering.clone(), &bgp_peer(&wrong, ""))?;
    rig.wait_down(&format!("sent OPEN Message Error/Bad Peer AS (2/2): AS {}", peering.asn))?;
    wait_until("the router to hear of it", LONG, || rig.router.heard_bad_peer_as())?;
    // Of a router that only counts NOTIFICATIONs it is this that it has heard: it was sent no other.
    let peer = rig.peer()?;
    let counts = peer["notifications"].as_array().context("no counts")?;
    let mut sent = counts.iter().filter(|count| count["sent"] == true);
    ensure!(sent.all(|count| count["code"] == 2 && count["subcode"] == 2), "{peer}");
    rig.lab.write_resource("router.yaml", &bgp_peer(&peering, ""))?;
    rig.wait_up()?;
    // The router takes the node for another one.
    rig.router.reconfigure(&Peering { node_asn: NOBODY, ..peering.clone() })?;
    let received = "received OPEN Message Error/Bad Peer AS (2/2)";
    let named = format!("{received}: AS {}", peering.node_asn);
    rig.wait_down(if R::NAMES_BAD_AS { &named } else { received })?;
    rig.router.reconfigure(&peering)?;
    rig.wait_up()
}

/// A peer of RFC 4271 alone, without capabilities: IPv4, and nothing else.
pub(super) fn no_capabilities<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { no_capabilities: true, ..Peering::default() })?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    rig.router.wait_path(BLOCK)?;
    let peer = rig.peer()?;
    ensure!(peer["prefixesIn"] == 1 && peer["prefixesOut"] == 1, "{peer}");
    Ok(())
}

/// The reason that the operator of one side gives is what that of the other reads (RFC 9003).
pub(super) fn shutdown_text<R: Router>() -> Result<()> {
    text_from_the_router::<R>()?;
    text_from_the_node::<R>()
}

fn text_from_the_node<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering::default())?;
    rig.router.wait_path(BLOCK)?;
    let stopped = bgp_peer(&rig.peering, ", shutdown: rack-7-is-moved");
    rig.lab.write_resource("router.yaml", &stopped)?;
    rig.wait_down("Administrative Shutdown (6/2): \"rack-7-is-moved\"")?;
    wait_for("the text at the router", LONG, || {
        let told = rig.router.told()?;
        ensure!(told.contains("rack-7-is-moved"), "{}", tail(&told, 10));
        Ok(())
    })?;
    rig.router.wait_no_path(BLOCK)
}

fn text_from_the_router<R: Router>() -> Result<()> {
    let mut rig = Rig::<R>::up(Peering::default())?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    rig.router.shut_down("maintenance-at-noon")?;
    // What the session says of itself may be that of the next attempt already; the log keeps it.
    wait_for("the text in the node's log", LONG, || {
        let log = rig.node()?.log();
        let said = log.contains("Administrative Shutdown (6/2): \"maintenance-at-noon\"");
        ensure!(said && rig.peer()?["state"] != "Established", "{}", tail(&log, 10));
        Ok(())
    })?;
    rig.node()?.wait_no_route(OUTSIDE, LONG)
}
