//! What both ends have to offer before it is in force, and what is refused.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::wait::wait_for;

use super::{
    rig::{BLOCK, Rig, bgp_peer},
    router::{CROWD, OUTSIDE, OUTSIDE6, Peering, ROUTER, ROUTER6, Router, SECOND},
};
use crate::LONG;

/// Paths to the outside, as the node explains them.
fn paths<R: Router>(rig: &Rig<R>, outside: &str) -> Result<Vec<Value>> {
    let explained = rig.node()?.ctl_json(&["bgp", "explain", outside])?;
    Ok(explained["paths"].as_array().cloned().unwrap_or_default())
}

fn has_community(path: &Value, wanted: &str) -> bool {
    path["communities"].as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
}

fn ensure_in_force<R: Router>(rig: &Rig<R>, capability: &str) -> Result<()> {
    let peer = rig.peer()?;
    let all = peer["capabilities"].as_array().context("no capabilities")?;
    ensure!(all.iter().any(|one| one == capability), "`{capability}` is not in force: {peer}");
    Ok(())
}

/// Two paths to one prefix by one session, told apart by their identifiers (RFC 7911): one that goes
/// takes nothing of the other along.
pub(super) fn add_path<R: Router>() -> Result<()> {
    let mut rig = Rig::<R>::up(Peering { add_path: true, ..Peering::default() })?;
    for (family, outside) in [("IPv4", OUTSIDE), ("IPv6", OUTSIDE6)] {
        ensure_in_force(&rig, &format!("ADD-PATH receive {family}"))?;
        wait_two_paths(&rig, outside)?;
    }
    rig.router.announce(false)?;
    wait_for("one path", LONG, || {
        let paths = paths(&rig, OUTSIDE)?;
        ensure!(paths.len() == 1 && has_community(&paths[0], SECOND), "{paths:?}");
        Ok(())
    })?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    wait_two_paths(&rig, OUTSIDE6)
}

fn wait_two_paths<R: Router>(rig: &Rig<R>, outside: &str) -> Result<()> {
    wait_for("two paths from one peer", LONG, || {
        let paths = paths(rig, outside)?;
        let marked = paths.iter().filter(|path| has_community(path, SECOND)).count();
        ensure!(paths.len() == 2 && marked == 1, "{paths:?}");
        ensure!(paths.iter().all(|path| path["from"] == ROUTER), "{paths:?}");
        ensure!(paths[0]["pathId"] != paths[1]["pathId"], "{paths:?}");
        Ok(())
    })
}

/// A route with more attributes than a message of 4,096 octets holds (RFC 8654).
pub(super) fn extended_messages<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { crowd: true, ..Peering::default() })?;
    ensure_in_force(&rig, "extended messages")?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    let paths = paths(&rig, OUTSIDE)?;
    let path = paths.first().context("no path")?;
    for number in 0..CROWD {
        ensure!(has_community(path, &format!("64513:8:{number}")), "{number} is missing: {path}");
    }
    Ok(())
}

/// A node without an IPv4 address, which has IPv4 routes by the router's IPv6 address, and whose IPv4 block
/// the router has by the node's (RFC 8950).
pub(super) fn ipv4_over_ipv6<R: Router>() -> Result<()> {
    let peering = Peering { over_ipv6: true, extended_next_hop: true, ..Peering::default() };
    let mut rig = Rig::<R>::up(peering)?;
    ensure_in_force(&rig, "IPv4 over IPv6 next hops")?;
    let by_ipv6 = format!("via inet6 {ROUTER6}");
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    let found = rig.node()?.namespace().ip("route get 198.51.100.1")?;
    ensure!(found.contains(&by_ipv6), "not {by_ipv6}: {found}");
    rig.router.wait_path(BLOCK)?;
    // And it goes again, with the same session.
    rig.router.announce(false)?;
    rig.node()?.wait_no_route(OUTSIDE, LONG)?;
    let peer = rig.peer()?;
    ensure!(peer["state"] == "Established" && peer["flaps"] == 0, "{peer}");
    Ok(())
}

/// What goes to a customer is marked for customers only, and roles that do not fit end the session, with
/// whichever side sees it first (RFC 9234).
pub(super) fn roles<R: Router>() -> Result<()> {
    let peering = Peering { role: Some("customer"), ..Peering::default() };
    let provider = bgp_peer(&peering, ", localRole: Provider");
    let rig = Rig::<R>::start_with(peering.clone(), &provider)?;
    rig.wait_up()?;
    ensure_in_force(&rig, "peer is customer")?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    let learned = rig.router.wait_path(BLOCK)?;
    ensure!(learned.only_to_customer == Some(peering.node_asn.into()), "{learned:?}");
    rig.lab.write_resource("router.yaml", &bgp_peer(&peering, ", localRole: Customer"))?;
    rig.wait_down("Role Mismatch (2/11)")?;
    rig.lab.write_resource("router.yaml", &provider)?;
    rig.wait_up()
}

/// Whether the node has sent, or received, a NOTIFICATION of this kind.
pub(super) fn notified(peer: &Value, sent: bool, code: u8, subcode: u8) -> bool {
    let counts = peer["notifications"].as_array();
    counts
        .into_iter()
        .flatten()
        .any(|one| one["sent"] == sent && one["code"] == code && one["subcode"] == subcode)
}

/// A session that carries nothing is refused with 2/7 (RFC 5492 section 5).
pub(super) fn no_common_family<R: Router>() -> Result<()> {
    let rig = Rig::<R>::start(Peering { foreign_family: true, ..Peering::default() })?;
    wait_for("the node to refuse", LONG, || {
        let peer = rig.peer()?;
        ensure!(notified(&peer, true, 2, 7), "{peer}");
        Ok(())
    })
}

/// The same, refused by the peer.
pub(super) fn no_common_family_heard<R: Router>() -> Result<()> {
    let rig = Rig::<R>::start(Peering { foreign_family: true, ..Peering::default() })?;
    wait_for("the router to refuse", LONG, || {
        let peer = rig.peer()?;
        ensure!(notified(&peer, false, 2, 7), "{peer}");
        Ok(())
    })
}

/// The node asks for everything again, by hand, in the same session (RFC 2918); `messages` are what the
/// answer has at least.
fn ask<R: Router>(rig: &Rig<R>, messages: u64) -> Result<()> {
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    rig.router.wait_path(BLOCK)?;
    let before = rig.peer()?;
    let told = rig.node()?.ctl(&["bgp", "refresh", ROUTER])?;
    ensure!(told.contains("was asked for its IPv4 and IPv6 routes again"), "{told}");
    let count = |peer: &Value| peer["messagesIn"].as_u64().context("no count");
    wait_for("the answer", LONG, || {
        let peer = rig.peer()?;
        ensure!(count(&peer)? >= count(&before)? + messages, "{peer}");
        ensure!(peer["flaps"] == before["flaps"], "{before} became {peer}");
        Ok(())
    })?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    Ok(())
}

/// It answers with an UPDATE of each family.
pub(super) fn refresh_asked<R: Router>() -> Result<()> {
    ask(&Rig::<R>::up(Peering::default())?, 2)
}

/// It says where its answer begins and ends, and hears where ours does (RFC 7313).
pub(super) fn enhanced_refresh<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering::default())?;
    ensure_in_force(&rig, "enhanced route refresh")?;
    // A BoRR, an UPDATE and an EoRR of each family.
    ask(&rig, 6)?;
    let peer = rig.peer()?;
    ensure!(peer["prefixesIn"] == 2 && peer["prefixesStale"] == 0, "{peer}");
    let updates = rig.router.updates()?;
    rig.router.ask_again()?;
    wait_for("the routes to come again", LONG, || {
        ensure!(rig.router.updates()? > updates, "{updates} UPDATEs, as before");
        ensure!(rig.router.path(BLOCK)?.is_some(), "the path to {BLOCK} is gone");
        ensure!(rig.router.heard_replay()?, "no beginning or no end");
        Ok(())
    })
}
