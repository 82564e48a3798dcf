//! The same with FRR, GoBGP and OpenBGPD at the other end.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    frr::Frr,
    gobgp::Gobgp,
    lab::{Lab, Pod, Topology},
    openbgpd::Openbgpd,
    ping::{self, Pinger, Source},
    process::Daemon,
    wait::wait_for,
    watch::RouteWatch,
};

use super::{
    End, INTERVAL, NODE, OUTSIDE, POOL, TOR, ends, nft, peer, wait_another_session, wait_converged,
    wait_fresh,
};
use crate::LONG;

/// What FRR and OpenBGPD log of a route that is withdrawn.
const WITHDRAWN_AT_FRR: &str = "withdrawn";
const WITHDRAWN_AT_OPENBGPD: &str = ": withdraw ";

/// A node with a pod, and a machine for a router.
fn lab() -> Result<Lab> {
    lab_with("")
}

/// The same; `more` is added to the spec of the BGPPeer.
pub(super) fn lab_with(more: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    topology.router("tor").on("seg-a", "192.168.2.1/24").local("198.51.100.1/24");
    topology.node("node1").on("seg-a", "192.168.2.11/24").gateway(TOR);
    topology.resource("pool.yaml", POOL).resource("tor.yaml", &peer(more));
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// A pod, and the block of its node.
pub(super) fn pod(lab: &mut Lab) -> Result<(Pod, String)> {
    lab.node("node1")?.wait_established(&[TOR], LONG)?;
    let pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    Ok((pod, block))
}

/// Has the node withdraw its block and announce it again, and waits until the peer's log says the former in these
/// words: where they are missing later on, nothing was withdrawn.
fn sees_a_withdrawal(lab: &Lab, words: &str, log: impl Fn() -> String) -> Result<()> {
    let before = log().len();
    let quiet = POOL.replace("blockSize: 26", "blockSize: 26, disableBGPExport: true");
    lab.write_resource("pool.yaml", &quiet)?;
    wait_for(&format!("`{words}` in the peer's log"), LONG, || {
        let said = log()[before..].to_owned();
        ensure!(said.contains(words), "{said}");
        Ok(())
    })?;
    lab.write_resource("pool.yaml", POOL)
}

/// Ends the daemon in one way, and waits until the restart is over.
fn restart(lab: &mut Lab, name: &str, end: End) -> Result<()> {
    let log = lab.node("node1")?.log().len();
    end(lab.node_mut("node1")?).with_context(|| name.to_owned())?;
    lab.node("node1")?.wait_established(&[TOR], LONG)?;
    wait_converged(lab.node("node1")?, log)
}

/// FRR, which restarts gracefully and says that it kept forwarding; with `more` below its `router bgp`.
pub(super) fn start_frr(lab: &Lab, more: &str) -> Result<Frr> {
    let bgpd = format!(
        "router bgp 64513\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
         bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n{more} \
         neighbor {NODE} remote-as 64512\n neighbor {NODE} timers connect 1\n network {OUTSIDE}\n"
    );
    Frr::start(lab.router("tor")?, &bgpd, &lab.dir().join("frr"))
}

/// FRR keeps the routes of a daemon that dies or is replaced, and forwards by them.
pub(crate) fn frr_keeps_the_routes_of_a_daemon_that_restarts() -> Result<()> {
    let mut lab = lab()?;
    let frr = start_frr(&lab, "")?;
    let (pod, block) = pod(&mut lab)?;
    frr.wait_route(&block, NODE, LONG)?;
    sees_a_withdrawal(&lab, WITHDRAWN_AT_FRR, || frr.log())?;
    frr.wait_route(&block, NODE, LONG)?;
    wait_for("traffic", LONG, || ping::reaches(lab.router("tor")?, pod.address()?))?;
    let watches = [RouteWatch::start(&lab, "tor")?, RouteWatch::start(&lab, "node1")?];
    let (log, pinger) = (frr.log().len(), traffic(&lab, &pod)?);
    for (name, end) in ends() {
        restart(&mut lab, name, end)?;
        frr.wait_route(&block, NODE, LONG)?;
        wait_for("fresh routes", LONG, || {
            let paths = frr.paths(&block)?;
            ensure!(paths.iter().all(|path| path["stale"].is_null()), "{paths:?}");
            Ok(())
        })?;
    }
    unharmed(pinger, &watches)?;
    let said = frr.log()[log..].to_owned();
    let harm = [WITHDRAWN_AT_FRR, "received NOTIFICATION"];
    ensure!(harm.iter().all(|words| !said.contains(words)), "{said}");
    Ok(())
}

/// The routes of an FRR that dies are kept until it is back. Its kernel has a route to the pod that does
/// not come from it: at its return FRR is without its own ones for some 10 ms, if the machine is busy.
pub(crate) fn frr_that_dies_loses_no_packet() -> Result<()> {
    let mut lab = lab()?;
    let mut frr = start_frr(&lab, "")?;
    let (pod, block) = pod(&mut lab)?;
    frr.wait_route(&block, NODE, LONG)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    let before = lab.node("node1")?.peer(TOR)?;
    frr.restart_bgpd(lab.router("tor")?)?;
    wait_another_session(lab.node("node1")?, &before)?;
    wait_fresh(lab.node("node1")?)?;
    frr.wait_route(&block, NODE, LONG)?;
    observers.saw_nothing()
}

/// Traffic both ways beside what a test does, and the node's route events. The ToR's kernel has a route to
/// the node's block, whatever its daemon does.
pub(super) struct Observers {
    pinger: Pinger,
    watch: RouteWatch,
}

impl Observers {
    /// Starts once the node has learned the outside.
    pub(super) fn start(lab: &Lab, pod: &Pod, block: &str) -> Result<Self> {
        lab.node("node1")?.wait_route(OUTSIDE, LONG)?;
        static_route(lab, block)?;
        wait_for("traffic", LONG, || ping::reaches(lab.router("tor")?, pod.address()?))?;
        Ok(Self { watch: RouteWatch::start(lab, "node1")?, pinger: traffic(lab, pod)? })
    }

    /// No packet was lost, and no kernel route of the node deleted.
    pub(super) fn saw_nothing(self) -> Result<()> {
        unharmed(self.pinger, &[self.watch])
    }
}

fn static_route(lab: &Lab, block: &str) -> Result<()> {
    lab.router("tor")?.ip(&format!("route replace {block} via {NODE} proto static")).map(drop)
}

fn traffic(lab: &Lab, pod: &Pod) -> Result<Pinger> {
    let inward =
        Source { name: "tor", namespace: lab.router("tor")?, targets: vec![pod.address()?] };
    let targets = vec!["198.51.100.1".parse()?];
    let outward = Source { name: "pod", namespace: pod.namespace(), targets };
    Pinger::start(vec![inward, outward], INTERVAL)
}

/// No packet was lost, and no kernel route deleted.
fn unharmed(pinger: Pinger, watches: &[RouteWatch]) -> Result<()> {
    pinger.wait_rounds(20)?;
    for tally in pinger.stop()? {
        ensure!(tally.lost() == 0, "{tally}");
    }
    watches.iter().try_for_each(RouteWatch::nothing_deleted)
}

/// GoBGP with one neighbor; `restart` stands in its graceful restart, `family` below its IPv4.
pub(super) fn start_gobgp(lab: &Lab, restart: &str, family: &str) -> Result<Gobgp> {
    let yaml = format!(
        "global: {{config: {{as: 64513, router-id: {TOR}}}}}\nneighbors:\n\
         - config: {{neighbor-address: {NODE}, peer-as: 64512}}\n  \
         timers: {{config: {{connect-retry: 1, idle-hold-time-after-reset: 1}}}}\n  \
         graceful-restart: {{config: {{enabled: true, {restart}}}}}\n  \
         afi-safis:\n  - config: {{afi-safi-name: ipv4-unicast}}\n    \
         mp-graceful-restart: {{config: {{enabled: true}}}}\n{family}"
    );
    Gobgp::start(lab.router("tor")?, &yaml, &lab.dir().join("gobgp"))
}

/// The routes of a GoBGP that dies are kept until it is back. It has no routes in its kernel: that one
/// has a static one.
pub(crate) fn gobgp_that_dies_loses_no_packet() -> Result<()> {
    let mut lab = lab()?;
    let mut gobgp = start_gobgp(&lab, "restart-time: 120", "")?;
    let announce = ["global", "rib", "add", "-a", "ipv4", OUTSIDE];
    gobgp.command(&announce)?;
    let (pod, block) = pod(&mut lab)?;
    let tor = lab.router("tor")?;
    let observers = Observers::start(&lab, &pod, &block)?;
    let before = lab.node("node1")?.peer(TOR)?;
    // It has to have its route again before it tells that it has told everything.
    let rules = "table ip held { chain c { type filter hook input priority 0; tcp dport 179 drop; \
                 tcp sport 179 drop; }; }";
    nft(&lab, rules)?;
    gobgp.restart(tor, &["--graceful-restart"])?;
    gobgp.command(&announce)?;
    nft(&lab, "delete table ip held")?;
    wait_another_session(lab.node("node1")?, &before)?;
    wait_fresh(lab.node("node1")?)?;
    gobgp.wait_route(&block, NODE, LONG)?;
    observers.saw_nothing()
}

/// GoBGP helps only where it is configured to; its table is watched. It has no routes in its kernel: that
/// one has a static one.
pub(crate) fn gobgp_keeps_the_routes_of_a_daemon_that_restarts() -> Result<()> {
    let mut lab = lab()?;
    let dir = lab.dir().join("gobgp");
    let gobgp = start_gobgp(&lab, "restart-time: 120", "")?;
    gobgp.command(&["global", "rib", "add", "-a", "ipv4", OUTSIDE])?;
    let (pod, block) = pod(&mut lab)?;
    gobgp.wait_route(&block, NODE, LONG)?;
    let log = dir.join("monitor.log");
    let mut monitor = Command::new("gobgp");
    let socket = format!("unix://{}", dir.join("gobgpd.sock").display());
    monitor.args(["--target", &socket, "monitor", "global", "rib"]);
    let monitor = Daemon::start("gobgp monitor", lab.router("tor")?, &mut monitor, &log)?;
    wait_for("the monitor", LONG, || {
        // A route of our own, until it is seen.
        gobgp.command(&["global", "rib", "add", "-a", "ipv4", "203.0.113.0/24"])?;
        gobgp.command(&["global", "rib", "del", "-a", "ipv4", "203.0.113.0/24"])?;
        ensure!(monitor.log().contains("203.0.113.0/24"), "it sees nothing");
        Ok(())
    })?;
    let observers = Observers::start(&lab, &pod, &block)?;
    for (name, end) in ends() {
        let before = fs::read_to_string(&log)?.len();
        restart(&mut lab, name, end)?;
        // It is announced again: what was stale is fresh.
        wait_for("fresh routes", LONG, || {
            let paths = gobgp.paths(&block)?;
            let fresh = !paths.is_empty() && paths.iter().all(|path| path["stale"] != true);
            ensure!(fresh, "{paths:?}");
            Ok(())
        })?;
        let said = monitor.log()[before..].to_owned();
        let gone = said.lines().any(|line| line.contains("DEL") && line.contains(&block));
        ensure!(!gone, "{name}: {said}");
    }
    observers.saw_nothing()
}

/// OpenBGPD keeps the routes of a daemon that dies or is replaced, as stale ones until it is back. It has
/// no routes in its kernel, so its table and its log are watched. It does not dial: where a connection that
/// it opens breaks at once, it begins the next one with a message too many, and has to be refused.
pub(crate) fn openbgpd_keeps_the_routes_of_a_daemon_that_restarts() -> Result<()> {
    let mut lab = lab()?;
    let config = format!(
        "AS 64513\nrouter-id {TOR}\nlog updates\nnetwork {OUTSIDE}\n\
         neighbor {NODE} {{\n  remote-as 64512\n  passive\n}}\nallow from any\nallow to any\n"
    );
    let dir = lab.dir().join("openbgpd");
    let openbgpd = Openbgpd::start(lab.router("tor")?, &config, &dir)?;
    let (pod, block) = pod(&mut lab)?;
    openbgpd.wait_route(&block, NODE, LONG)?;
    sees_a_withdrawal(&lab, &format!("{WITHDRAWN_AT_OPENBGPD}{block}"), || openbgpd.log())?;
    openbgpd.wait_route(&block, NODE, LONG)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    let said = openbgpd.log().len();
    let stale = |wanted: bool| {
        wait_for(&format!("routes with stale={wanted}"), LONG, || {
            let path = openbgpd.wait_route(&block, NODE, LONG)?;
            ensure!((path["stale"] == true) == wanted, "{path}");
            Ok(())
        })
    };
    let log = lab.node("node1")?.log().len();
    lab.node_mut("node1")?.kill9()?;
    stale(true)?;
    lab.node_mut("node1")?.start()?;
    lab.node("node1")?.wait_established(&[TOR], LONG)?;
    wait_converged(lab.node("node1")?, log)?;
    stale(false)?;
    for (name, end) in ends().into_iter().skip(1) {
        restart(&mut lab, name, end)?;
        stale(false)?;
    }
    observers.saw_nothing()?;
    let said = openbgpd.log()[said..].to_owned();
    let harm = [WITHDRAWN_AT_OPENBGPD, ": flush ", "received notification"];
    ensure!(harm.iter().all(|word| !said.contains(word)), "{said}");
    Ok(())
}
