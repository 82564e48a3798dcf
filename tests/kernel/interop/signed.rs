//! Who else could be the peer: passwords (TCP segments signed with MD5, RFC 2385) and distance (RFC
//! 5082).

use anyhow::{Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::Topology,
    wait::wait_for,
};

use super::{
    rig::{Rig, bgp_peer},
    router::{NODE, NODE6, OUTSIDE, Peering, ROUTER, ROUTER6, Router},
};
use crate::{LONG, sessions::tcp_counter};

const RIGHT: &str = "first-of-all-secrets";
const CHANGED: &str = "second-of-all-secrets";

const REFERENCE: &str = ", password: {secretKeyRef: {name: bgp, key: router}}";

fn secret(value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp}}\nstringData: {{router: {value}}}\n"
    )
}

/// The same password opens a session, another one does not, and one changed on both sides does
/// again. None of them is told anywhere.
pub(super) fn password<R: Router>() -> Result<()> {
    let peering = Peering { password: Some(RIGHT), hold_time: 3, ..Peering::default() };
    let mut lab = super::rig::lab(&peering, &bgp_peer(&peering, REFERENCE))?;
    lab.write_resource("secret.yaml", &secret(RIGHT))?;
    let router = R::start(lab.router("router")?, &lab.dir().join("router"), &peering)?;
    lab.start_all()?;
    let mut rig = Rig { router, lab, peering: peering.clone() };
    rig.wait_up()?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;

    rig.lab.write_resource("secret.yaml", &secret(CHANGED))?;
    wait_for("segments to be dropped and the session to go", LONG, || {
        ensure!(dropped(&rig)? > 0, "none was dropped");
        let (peer, state) = (rig.peer()?, rig.router.state()?);
        ensure!(peer["state"] != "Established" && state != "Established", "{peer}, {state}");
        Ok(())
    })?;
    rig.router.reconfigure(&Peering { password: Some(CHANGED), ..peering })?;
    rig.wait_up()?;

    let mut told = rig.node()?.log();
    for command in [&["bgp", "peers"][..], &["get", "bgppeers"], &["node", "status"]] {
        told += &rig.node()?.ctl(&[command, &["-o", "json"]].concat())?;
    }
    for password in [RIGHT, CHANGED] {
        ensure!(!told.contains(password), "a password is told");
    }
    Ok(())
}

/// Segments with another password that the node's kernel has dropped.
fn dropped<R: Router>(rig: &Rig<R>) -> Result<u64> {
    tcp_counter(rig.node()?.namespace(), "TCPMD5Failure")
}

/// Both sides see that the other is one link away.
pub(super) fn ttl_security<R: Router>() -> Result<()> {
    let peering = Peering { ttl_security: true, ..Peering::default() };
    let near = bgp_peer(&peering, ", ttlSecurity: 1");
    let rig = Rig::<R>::start_with(peering, &near)?;
    rig.wait_up()?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    Ok(())
}

/// A Secret that there is not is named on the peer, and nothing is opened without a password; once
/// it is there the session comes up, and if it goes the session stays.
pub(crate) fn a_missing_secret_is_named_and_opens_nothing() -> Result<()> {
    type Bird = super::bird_router::BirdRouter;
    let peering = Peering { password: Some(RIGHT), ..Peering::default() };
    let rig = Rig::<Bird>::start_with(peering.clone(), &bgp_peer(&peering, REFERENCE))?;
    let condition = |reason: &str| {
        wait_for(&format!("the condition {reason}"), LONG, || {
            let peer = rig.node()?.ctl(&["get", "bgppeer", "router", "-o", "yaml"])?;
            ensure!(peer.contains(reason) && peer.contains("Secret bgp"), "{peer}");
            Ok(())
        })
    };
    condition("SecretNotFound")?;
    ensure!(rig.peer().is_err(), "there is a session: {}", rig.peer()?);
    rig.lab.write_resource("secret.yaml", &secret(RIGHT).replace("router:", "other:"))?;
    condition("KeyNotFound")?;
    ensure!(rig.peer().is_err(), "there is a session: {}", rig.peer()?);
    rig.lab.write_resource("secret.yaml", &secret(RIGHT))?;
    rig.wait_up()?;
    let before = rig.peer()?;
    rig.lab.remove_resource("secret.yaml")?;
    condition("SecretNotFound")?;
    let after = rig.peer()?;
    ensure!(before["flaps"] == after["flaps"], "{before} became {after}");
    Ok(())
}

/// A changed password begins its own session again, and no other.
pub(crate) fn a_changed_password_resets_one_session() -> Result<()> {
    let bird = |password: &str| {
        let signed = Neighbor::new("signed", NODE, 64512)
            .local(ROUTER)
            .option(&format!("password \"{password}\""));
        let plain = Neighbor::new("plain", NODE6, 64512).local(ROUTER6);
        BirdConfig::new(ROUTER, 64513).neighbor(signed).neighbor(plain).announce(OUTSIDE)
    };
    let mut topology = Topology::new();
    topology
        .router("router")
        .on("seg-a", &format!("{ROUTER}/24"))
        .on("seg-a", &format!("{ROUTER6}/64"))
        .bird(bird(RIGHT));
    topology.node("node1").on("seg-a", &format!("{NODE}/24")).on("seg-a", &format!("{NODE6}/64"));
    let plain = Peering { over_ipv6: true, ..Peering::default() };
    topology
        .resource("secret.yaml", &secret(RIGHT))
        .resource("signed.yaml", &bgp_peer(&Peering::default(), REFERENCE))
        .resource("plain.yaml", &bgp_peer(&plain, "").replace("name: router", "name: plain"));
    let mut lab = topology.build()?;
    lab.start_all()?;
    let peers = [ROUTER, ROUTER6];
    lab.node("node1")?.wait_established(&peers, LONG)?;
    let before = peers.map(|address| lab.node("node1")?.peer(address));
    lab.write_resource("secret.yaml", &secret(CHANGED))?;
    lab.bird_mut("router")?.configure(bird(CHANGED))?;
    let [signed, plain] = before;
    let (signed, plain) = (signed?, plain?);
    wait_for("the signed session to begin again", LONG, || {
        let now = lab.node("node1")?.peer(ROUTER)?;
        ensure!(now["state"] == "Established" && now["flaps"] != signed["flaps"], "{now}");
        Ok(())
    })?;
    let now = lab.node("node1")?.peer(ROUTER6)?;
    ensure!(now["flaps"] == plain["flaps"], "{plain} became {now}");
    Ok(())
}
