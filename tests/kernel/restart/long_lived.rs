//! Long-lived graceful restart (RFC 9494) and resets that keep routes (RFC 8538), with FRR and GoBGP at
//! the other end.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use twill_tests::{
    lab::{Lab, Pod},
    wait::wait_for,
};

use super::{
    NODE, OUTSIDE, TOR,
    others::{Observers, lab_with, pod, start_frr, start_gobgp},
};
use crate::{LONG, SECONDS};

/// Of the BGPPeer of a node that helps for a minute.
const HELPS: &str = ", longLivedRestartTime: {ipv4: 60}";
/// Of one that is away for longer than its restart time.
const STAYS_AWAY: &str = ", maxRestartTime: 1s, longLivedRestartTime: {ipv4: 60}";
/// Lines of an FRR with a restart time of 2 s.
const FRR_LINES: &str = " bgp graceful-restart restart-time 2\n \
                         bgp long-lived-graceful-restart stale-time 60\n";
/// The same of GoBGP: for the neighbor, and for its family.
const GOBGP_RESTART: &str = "restart-time: 2, long-lived-enabled: true";
const GOBGP_FAMILY: &str = "    long-lived-graceful-restart: {config: {enabled: true, \
                            restart-time: 60}}\n";

/// The routes of a peer that is gone are the last resort, and forwarded by.
fn wait_last_resort(lab: &Lab) -> Result<()> {
    let node = lab.node("node1")?;
    wait_for("long-lived stale routes", SECONDS, || {
        let peer = node.peer(TOR)?;
        ensure!(peer["longLivedStale"] == true && peer["prefixesStale"] == 1, "{peer}");
        Ok(())
    })?;
    let explained = node.ctl(&["bgp", "explain", OUTSIDE, "-o", "wide"])?;
    ensure!(explained.contains("65535:6"), "no LLGR_STALE: {explained}");
    node.wait_route(OUTSIDE, SECONDS)?;
    Ok(())
}

/// FRR dies and stays away: its routes are the last resort after its restart time.
pub(crate) fn frr_that_stays_away_is_the_last_resort() -> Result<()> {
    let mut lab = lab_with(HELPS)?;
    let frr = start_frr(&lab, FRR_LINES)?;
    let (pod, block) = pod(&mut lab)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    frr.bgpd().signal(Signal::SIGKILL)?;
    wait_last_resort(&lab)?;
    observers.saw_nothing()
}

/// The same with GoBGP.
pub(crate) fn gobgp_that_stays_away_is_the_last_resort() -> Result<()> {
    let mut lab = lab_with(HELPS)?;
    let gobgp = start_gobgp(&lab, GOBGP_RESTART, GOBGP_FAMILY)?;
    gobgp.command(&["global", "rib", "add", "-a", "ipv4", OUTSIDE])?;
    let (pod, block) = pod(&mut lab)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    gobgp.daemon().signal(Signal::SIGKILL)?;
    wait_last_resort(&lab)?;
    observers.saw_nothing()
}

/// The node stays away, and is back: the path that the peer has of it is marked in between, and forwarding
/// goes on; `marks` are those of all its paths to the node's block.
fn is_last_resort_and_back(
    lab: &mut Lab,
    (pod, block): &(Pod, String),
    marks: impl Fn() -> Result<Vec<bool>>,
) -> Result<()> {
    let marked = |wanted: bool| {
        wait_for(&format!("LLGR_STALE to be {wanted}"), LONG, || {
            let found = marks()?;
            ensure!(found == [wanted], "{found:?}");
            Ok(())
        })
    };
    marked(false)?;
    let observers = Observers::start(lab, pod, block)?;
    lab.node_mut("node1")?.stop()?;
    marked(true)?;
    lab.node_mut("node1")?.start()?;
    marked(false)?;
    observers.saw_nothing()
}

/// FRR has the routes of a node that stays away as its last resort, and good ones when it is back.
pub(crate) fn a_node_that_stays_away_is_the_last_resort_of_frr() -> Result<()> {
    let mut lab = lab_with(STAYS_AWAY)?;
    let frr = start_frr(&lab, " bgp long-lived-graceful-restart stale-time 60\n")?;
    let pod = pod(&mut lab)?;
    let is_marked = |path: &Value| {
        path["community"]["string"].as_str().is_some_and(|text| text.contains("llgr-stale"))
    };
    let marks = || Ok(frr.paths(&pod.1)?.iter().map(is_marked).collect());
    is_last_resort_and_back(&mut lab, &pod, marks)
}

/// The same with GoBGP.
pub(crate) fn a_node_that_stays_away_is_the_last_resort_of_gobgp() -> Result<()> {
    let mut lab = lab_with(STAYS_AWAY)?;
    let restart = "restart-time: 120, long-lived-enabled: true";
    let gobgp = start_gobgp(&lab, restart, GOBGP_FAMILY)?;
    gobgp.command(&["global", "rib", "add", "-a", "ipv4", OUTSIDE])?;
    let pod = pod(&mut lab)?;
    // Attribute 8 is COMMUNITIES (RFC 1997); LLGR_STALE is 65535:6.
    let is_marked = |path: &Value| {
        let attributes = path["attrs"].as_array().into_iter().flatten();
        let plain = attributes.filter(|attribute| attribute["type"] == 8);
        let mut numbers = plain.flat_map(|plain| plain["communities"].as_array()).flatten();
        numbers.any(|number| *number == 0xffff_0006_u32)
    };
    let marks = || Ok(gobgp.paths(&pod.1)?.iter().map(is_marked).collect());
    is_last_resort_and_back(&mut lab, &pod, marks)
}

/// Waits until the peer has reset the session by a Cease that is no Hard Reset, which is as good as a
/// restart where both sides say so (RFC 8538), and the node has said what else is wanted of it.
fn wait_reset(lab: &Lab, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    wait_for("the reset", LONG, || {
        let peer = lab.node("node1")?.peer(TOR)?;
        let counts = peer["notifications"].as_array().cloned().unwrap_or_default();
        let cease = |one: &Value| one["sent"] == false && one["code"] == 6 && one["subcode"] == 4;
        ensure!(counts.iter().any(cease) && wanted(&peer), "{peer}");
        Ok(())
    })
}

/// FRR resets the session, and is back at once.
pub(crate) fn frr_that_resets_a_session_keeps_its_routes() -> Result<()> {
    let mut lab = lab_with("")?;
    let soft = " bgp graceful-restart notification\n no bgp hard-administrative-reset\n";
    let frr = start_frr(&lab, soft)?;
    let (pod, block) = pod(&mut lab)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    let flaps = lab.node("node1")?.peer(TOR)?["flaps"].clone();
    frr.command(&["clear bgp *"])?;
    wait_reset(&lab, |peer| {
        let fresh = peer["prefixesStale"] == 0 && peer["prefixesIn"] == 1;
        peer["flaps"] != flaps && peer["state"] == "Established" && fresh
    })?;
    observers.saw_nothing()
}

/// GoBGP resets the session; it takes no connection for half a minute after that.
pub(crate) fn gobgp_that_resets_a_session_keeps_its_routes() -> Result<()> {
    let mut lab = lab_with("")?;
    let gobgp = start_gobgp(&lab, "restart-time: 120, notification-enabled: true", "")?;
    gobgp.command(&["global", "rib", "add", "-a", "ipv4", OUTSIDE])?;
    let (pod, block) = pod(&mut lab)?;
    let observers = Observers::start(&lab, &pod, &block)?;
    gobgp.command(&["neighbor", NODE, "reset"])?;
    wait_reset(&lab, |peer| peer["prefixesStale"] == 1)?;
    lab.node("node1")?.wait_route(OUTSIDE, LONG)?;
    observers.saw_nothing()
}
