//! Sessions that come up, whoever dials, and what ends them without a word.

use std::{os::unix::net::UnixStream, process::Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use twill_tests::{
    process::{check, tail},
    wait::wait_for,
};

use super::{
    bird_router::BirdRouter,
    negotiated::notified,
    rig::{BLOCK, BLOCK6, Rig, bgp_peer, lab},
    router::{OUTSIDE, OUTSIDE6, Peering, Router},
};
use crate::LONG;

/// 4-octet AS numbers that have no 2-octet form (RFC 6793).
const WIDE: (u32, u32) = (4_200_000_002, 4_200_000_001);

/// What both ends learn of each other in both families.
fn exchange<R: Router>(rig: &Rig<R>) -> Result<()> {
    for (block, outside) in [(BLOCK, OUTSIDE), (BLOCK6, OUTSIDE6)] {
        let learned = rig.router.wait_path(block)?;
        let is_internal = rig.peering.asn == rig.peering.node_asn;
        let as_path = if is_internal { String::new() } else { rig.peering.node_asn.to_string() };
        ensure!(learned.as_path == as_path, "{block} came as {learned:?}");
        ensure!(!is_internal || learned.local_pref == Some(100), "{block} came as {learned:?}");
        rig.node()?.wait_route(outside, LONG)?;
        let explained = rig.node()?.ctl_json(&["bgp", "explain", outside])?;
        let as_path = if is_internal { String::new() } else { rig.peering.asn.to_string() };
        ensure!(explained["paths"][0]["asPath"] == as_path.as_str(), "{explained}");
    }
    Ok(())
}

/// eBGP with 4-octet AS numbers on both sides, IPv4 and IPv6 in one session (RFC 4760, 6793).
pub(super) fn families<R: Router>() -> Result<()> {
    let (asn, node_asn) = WIDE;
    let rig = Rig::<R>::up(Peering { asn, node_asn, ..Peering::default() })?;
    exchange(&rig)
}

/// Both families over a session of IPv6 addresses (RFC 2545).
pub(super) fn over_ipv6<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { over_ipv6: true, ..Peering::default() })?;
    exchange(&rig)
}

/// iBGP: no AS number is added, and LOCAL_PREF is told (RFC 4271 section 5.1.5).
pub(super) fn ibgp<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { asn: 64512, ..Peering::default() })?;
    exchange(&rig)
}

/// The router only listens; then it alone can dial.
pub(super) fn who_dials<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { passive: true, ..Peering::default() })?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    drop(rig);
    let peering = Peering::default();
    let elsewhere = bgp_peer(&peering, "").replace("192.168.2.1\"", "192.168.2.1:1790\"");
    ensure!(elsewhere.contains(":1790"), "{elsewhere}");
    let rig = Rig::<R>::start_with(peering, &elsewhere)?;
    rig.wait_up()?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    Ok(())
}

/// The OPEN of the connection that the node opens waits on its way, so that the router opens one of its
/// own in the meantime. Of both ways the answers to a SYN are counted.
const HELD: &str = "table ip held { counter taken { }; counter opened { }; \
                    chain out { type filter hook output priority 0; \
                    tcp sport 179 tcp flags & (syn | ack) == syn | ack counter name taken; \
                    tcp dport 179 tcp flags & psh == psh drop; }; \
                    chain in { type filter hook input priority 0; \
                    tcp sport 179 tcp flags & (syn | ack) == syn | ack counter name opened; }; }";

/// Both dial at once: one side tells the other by a Cease 6/7 which connection is left, and it stays
/// (RFC 4271 section 6.8).
pub(super) fn collision<R: Router>() -> Result<()> {
    let mut rig = Rig::<R>::up(Peering { hold_time: 3, ..Peering::default() })?;
    rig.lab.node_mut("node1")?.stop()?;
    wait_for("the router to lose the session", LONG, || {
        ensure!(rig.router.state()? != "Established");
        Ok(())
    })?;
    nft(&rig, HELD)?;
    rig.lab.node_mut("node1")?.start()?;
    wait_for("a collision", LONG, || {
        let peer = rig.peer()?;
        let told = notified(&peer, true, 6, 7) || notified(&peer, false, 6, 7);
        ensure!(told, "{peer}");
        // Of one connection alone it would be no collision.
        let counts = [answered(&rig, "taken")?, answered(&rig, "opened")?];
        ensure!(counts.iter().all(|count| *count > 0), "connections taken, opened: {counts:?}");
        Ok(())
    })?;
    nft(&rig, "delete table ip held")?;
    rig.wait_up()?;
    stays(&rig)
}

fn nft<R: Router>(rig: &Rig<R>, rules: &str) -> Result<String> {
    let output = rig.node()?.namespace().output(Command::new("nft").arg(rules))?;
    check("nft (package nftables)", &output)
}

/// What a counter of [`HELD`] has counted.
fn answered<R: Router>(rig: &Rig<R>, counter: &str) -> Result<u64> {
    let text = nft(rig, &format!("list counter ip held {counter}"))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    Ok(words.next().with_context(|| format!("no packets in {text}"))?.parse()?)
}

/// There is one connection, and KEEPALIVEs go on over it.
fn stays<R: Router>(rig: &Rig<R>) -> Result<()> {
    wait_for("one connection", LONG, || {
        let found = connections(rig)?;
        ensure!(found.len() == 1, "{found:?}");
        Ok(())
    })?;
    let before = rig.peer()?;
    wait_for("three more messages", LONG, || {
        let peer = rig.peer()?;
        let count = |peer: &serde_json::Value| peer["messagesIn"].as_u64().context("no count");
        ensure!(count(&peer)? >= count(&before)? + 3, "{peer}");
        ensure!(peer["flaps"] == before["flaps"], "{before} became {peer}");
        Ok(())
    })
}

/// Open BGP connections of the node.
fn connections<R: Router>(rig: &Rig<R>) -> Result<Vec<String>> {
    let mut ss = Command::new("ss");
    ss.args(["-Htn", "state", "established", "( sport = :179 or dport = :179 )"]);
    let text = check("ss", &rig.node()?.namespace().output(&mut ss)?)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A process that hangs is noticed after the hold time by the other side, whichever hangs (RFC 4271
/// section 6.5), and the session is back when it goes on.
pub(super) fn hold_time<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { hold_time: 3, ..Peering::default() })?;
    rig.router.daemon().signal(Signal::SIGSTOP)?;
    let noticed = rig.wait_down("hold timer expired");
    rig.router.daemon().signal(Signal::SIGCONT)?;
    noticed?;
    rig.wait_up()?;

    rig.node()?.daemon()?.signal(Signal::SIGSTOP)?;
    let noticed = wait_for("the router to notice", LONG, || {
        ensure!(rig.router.state()? != "Established");
        Ok(())
    });
    rig.node()?.daemon()?.signal(Signal::SIGCONT)?;
    noticed?;
    rig.wait_up()
}

/// A peer that dials while the daemon has no file left for it waits, is told of once, and has its
/// session when there is one again.
pub(crate) fn a_lack_of_files_is_outlived() -> Result<()> {
    const FILES: usize = 64;
    let peering = Peering::default();
    // The node cannot reach the router's port, so it is the router that dials.
    let elsewhere = bgp_peer(&peering, "").replace("192.168.2.1\"", "192.168.2.1:1790\"");
    let mut lab = lab(&peering, &elsewhere)?;
    let node = lab.node_mut("node1")?;
    node.launch_by(&["prlimit", &format!("--nofile={FILES}")])?;
    node.wait_ready()?;
    let before = node.daemon()?.pid();
    let connect = || UnixStream::connect(node.socket());
    let crowd = (0..2 * FILES).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    let told = |words: &str| {
        wait_for(&format!("`{words}`"), LONG, || {
            let log = lab.node("node1")?.log();
            ensure!(log.contains(words), "{}", tail(&log, 10));
            Ok(log.matches(words).count())
        })
    };
    told("cannot accept a connection")?;
    let directory = lab.dir().join("router");
    let router = BirdRouter::start(lab.router("router")?, &directory, &peering)?;
    told("raise LimitNOFILE")?;
    drop(crowd);
    router.wait_up()?;
    let node = lab.node("node1")?;
    node.wait_established(&[peering.own()], LONG)?;
    ensure!(told("raise LimitNOFILE")? == 1, "told more than once");
    ensure!(node.status()?["pid"] == before, "another daemon answers");
    Ok(())
}
