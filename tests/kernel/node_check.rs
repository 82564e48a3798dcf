//! `twillctl node check`: what on a host stops pods' packets is found, with a remedy that works.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    ping,
    process::check,
    programs, rack,
    wait::wait_for,
};

use crate::{LONG, SECONDS};

/// All checks of node1 by name, and whether the command said that all is well.
fn checks(lab: &Lab) -> Result<(Vec<Value>, bool)> {
    let directory = lab.dir().join("net.d");
    let directory = directory.to_str().context("no path")?;
    let output = lab.node("node1")?.ctl_output(&[
        "node",
        "check",
        "--cni-conf-dir",
        directory,
        "-o",
        "json",
    ])?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&output.stderr)))?;
    let checks = report["checks"].as_array().cloned().context("no checks")?;
    Ok((checks, output.status.code() == Some(0)))
}

/// The one check that failed.
fn the_failure(lab: &Lab) -> Result<Value> {
    let (checks, well) = checks(lab)?;
    let mut failed = checks.into_iter().filter(|check| check["outcome"] == "failed");
    let first = failed.next().context("nothing failed")?;
    ensure!(failed.next().is_none(), "more than {first}");
    ensure!(!well, "exit status 0 with {first}");
    Ok(first)
}

fn all_is_well(lab: &Lab) -> Result<()> {
    let (checks, well) = checks(lab)?;
    ensure!(well && checks.iter().all(|check| check["outcome"] == "ok"), "{checks:?}");
    ensure!(checks.len() >= 8, "{checks:?}");
    Ok(())
}

fn shell(lab: &Lab, command: &str) -> Result<()> {
    let output = lab.node("node1")?.namespace().output(Command::new("sh").args(["-c", command]))?;
    check(command, &output).map(drop)
}

/// Twill's own network is the runtime's first.
fn configure_runtime(lab: &Lab) -> Result<()> {
    let conflist = fs::read(programs::source("conf/cni/05-twill.conflist"))?;
    fs::create_dir_all(lab.dir().join("net.d"))?;
    Ok(fs::write(lab.dir().join("net.d/05-twill.conflist"), conflist)?)
}

pub(crate) fn what_stops_pods_is_found_with_a_remedy() -> Result<()> {
    let mut lab = rack::up()?;
    configure_runtime(&lab)?;
    let pod = lab.add_pod("node1", "web")?;
    let address = pod.address()?;
    all_is_well(&lab)?;
    wait_for("the ToR to reach the pod", LONG, || ping::reaches(lab.router("tor")?, address))?;

    // Docker and others do this.
    shell(
        &lab,
        "nft add table ip guard; nft 'add chain ip guard forward { type filter hook forward \
         priority 0; policy drop; }'; nft add rule ip guard forward ct state established accept",
    )?;
    ping::reaches(lab.router("tor")?, address).err().context("it got through")?;
    let failure = the_failure(&lab)?;
    ensure!(failure["name"] == "forward-policy", "{failure}");
    ensure!(failure["detail"].to_string().contains("table ip guard"), "{failure}");
    wait_for("the standing problem", LONG, || {
        let status = lab.node("node1")?.status()?;
        ensure!(status["problems"].to_string().contains("table ip guard"), "{status}");
        Ok(())
    })?;
    let remedy = failure["remedy"].as_str().and_then(|text| text.split_once("or now: "));
    shell(&lab, remedy.context("no remedy")?.1)?;
    all_is_well(&lab)?;
    ping::reaches(lab.router("tor")?, address)?;
    wait_for("no problem any more", LONG, || {
        let status = lab.node("node1")?.status()?;
        ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })?;

    // Some distributions do this.
    let node = lab.node("node1")?.namespace();
    node.sysctl("ipv4/conf/all/rp_filter", "2")?;
    let failure = the_failure(&lab)?;
    ensure!(failure["name"] == "pod-source-check", "{failure}");
    ensure!(failure["remedy"].to_string().contains("set it to 0"), "{failure}");
    node.sysctl("ipv4/conf/all/rp_filter", "0")?;
    all_is_well(&lab)?;

    // Another network that the runtime would take.
    let other = lab.dir().join("net.d/00-other.conflist");
    fs::write(&other, r#"{"name": "x", "plugins": [{"type": "bridge"}]}"#)?;
    let failure = the_failure(&lab)?;
    ensure!(failure["name"] == "runtime-configuration", "{failure}");
    fs::remove_file(&other)?;

    // The node's own address.
    let node = lab.node("node1")?.namespace();
    node.ip("address delete 192.168.2.11/24 dev eth0")?;
    let failure = the_failure(&lab)?;
    ensure!(failure["name"] == "node-address", "{failure}");
    node.ip("address add 192.168.2.11/24 dev eth0")?;
    node.ip("route add default via 192.168.2.1")?;
    all_is_well(&lab)?;

    // A smaller uplink is no failure, and told.
    node.ip("link set eth0 mtu 1400")?;
    wait_for("the pods' larger links to be told", SECONDS, || {
        let (checks, well) = checks(&lab)?;
        let mtu = checks.iter().find(|check| check["name"] == "mtu").context("no mtu")?;
        ensure!(well && mtu["outcome"] == "warning", "{mtu}");
        Ok(())
    })
}

/// A daemon that cannot write settings, as in a container without the host's /proc/sys/net, on a node that does
/// not forward: it starts all the same and says what is the matter, then and when somebody does it later.
pub(crate) fn forwarding_that_cannot_be_set_is_told() -> Result<()> {
    const READ_ONLY: &str = "mount --bind /proc/sys/net /proc/sys/net && \
                             mount -o remount,bind,ro /proc/sys/net && exec \"$@\"";
    let mut lab = rack::up()?;
    configure_runtime(&lab)?;
    let node = lab.node_mut("node1")?;
    node.stop()?;
    node.namespace().sysctl("ipv4/ip_forward", "0")?;
    let private = ["unshare", "--mount", "--propagation", "private"];
    node.launch_by(&[&private[..], &["sh", "-c", READ_ONLY, "sh"]].concat())?;
    node.wait_ready()?;
    let node = lab.node("node1")?;
    for time in ["at its start", "later"] {
        let failure = wait_for("the failure", SECONDS, || the_failure(&lab))?;
        ensure!(failure["name"] == "forwarding", "{time}: {failure}");
        ensure!(failure["detail"].to_string().contains("ip_forward is 0"), "{time}: {failure}");
        wait_for("the standing problem", LONG, || {
            let problems = node.status()?["problems"].to_string();
            ensure!(problems.contains("twilld cannot set it"), "{time}: {problems}");
            Ok(())
        })?;
        node.namespace().sysctl("ipv4/ip_forward", "1")?;
        all_is_well(&lab)?;
        wait_for("no problem any more", LONG, || {
            let status = node.status()?;
            ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{time}: {status}");
            Ok(())
        })?;
        node.namespace().sysctl("ipv4/ip_forward", "0")?;
    }
    Ok(())
}

/// Of two uplinks with learned routes one is strict, and drops what comes in there by another way than the answer
/// goes: a warning, with the setting that helps.
pub(crate) fn a_strict_uplink_beside_another_is_a_warning() -> Result<()> {
    const TORS: [(&str, &str, &str, &str); 2] = [
        ("tor1", "192.168.2.1", "192.168.2.11", "198.51.100.0/24"),
        ("tor2", "192.168.3.1", "192.168.3.11", "203.0.113.0/24"),
    ];
    let mut topology = Topology::new();
    for (tor, address, node, beyond) in TORS {
        let neighbor = Neighbor::new("node1", node, rack::NODES_AS).local(address);
        let bird = BirdConfig::new(address, rack::TOR_AS).neighbor(neighbor).announce(beyond);
        topology.router(tor).on(tor, &format!("{address}/24")).bird(bird);
        let peer = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {tor}}}\n\
             spec: {{peerIP: {address}, asNumber: {}}}\n",
            rack::TOR_AS
        );
        topology.resource(&format!("{tor}.yaml"), &peer);
    }
    let node = topology.node("node1");
    for (tor, _, address, _) in TORS {
        node.on(tor, &format!("{address}/24"));
    }
    let mut lab = topology.build()?;
    for link in ["eth0", "eth1"] {
        lab.node("node1")?.namespace().sysctl(&format!("ipv4/conf/{link}/rp_filter"), "0")?;
    }
    configure_runtime(&lab)?;
    lab.start_all()?;
    let node = lab.node("node1")?;
    for (.., beyond) in TORS {
        node.wait_route(beyond, LONG)?;
    }
    all_is_well(&lab)?;
    let uplinks = || -> Result<Value> {
        let (checks, well) = checks(&lab)?;
        let found = checks.into_iter().find(|check| check["name"] == "uplink-source-check");
        let found = found.context("no uplink-source-check")?;
        ensure!(well, "a failure beside {found}");
        Ok(found)
    };
    node.namespace().sysctl("ipv4/conf/eth1/rp_filter", "1")?;
    let warning = uplinks()?;
    ensure!(warning["outcome"] == "warning", "{warning}");
    ensure!(warning["detail"].to_string().contains("strict on eth1, one of 2"), "{warning}");
    ensure!(warning["remedy"].to_string().contains("rp_filter to 2 there"), "{warning}");
    node.namespace().sysctl("ipv4/conf/eth1/rp_filter", "2")?;
    all_is_well(&lab)
}
