//! `twillctl node check`: what on a host stops pods' packets is found, with a remedy that works.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{lab::Lab, ping, process::check, programs, rack, wait::wait_for};

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

pub(crate) fn what_stops_pods_is_found_with_a_remedy() -> Result<()> {
    let mut lab = rack::up()?;
    let conflist = fs::read(programs::source("conf/cni/05-twill.conflist"))?;
    fs::create_dir_all(lab.dir().join("net.d"))?;
    fs::write(lab.dir().join("net.d/05-twill.conflist"), conflist)?;
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
    wait_for("the standing problem", SECONDS, || {
        let status = lab.node("node1")?.status()?;
        ensure!(status["problems"].to_string().contains("table ip guard"), "{status}");
        Ok(())
    })?;
    let remedy = failure["remedy"].as_str().and_then(|text| text.split_once("or now: "));
    shell(&lab, remedy.context("no remedy")?.1)?;
    all_is_well(&lab)?;
    ping::reaches(lab.router("tor")?, address)?;
    wait_for("no problem any more", SECONDS, || {
        let status = lab.node("node1")?.status()?;
        ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })?;

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
