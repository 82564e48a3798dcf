//! The testkit itself, with the reference plugins and BIRD on both sides.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::Stdio,
    thread,
    time::Duration,
};

use crate::{LONG, SECONDS};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde_json::json;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    cni::{self, Attachment, CniError, Runtime},
    frr::Frr,
    gobgp::Gobgp,
    lab::Topology,
    netns::Namespace,
    ping::{self, Pinger, Source},
    programs,
    snapshot::Snapshot,
    suite,
    wait::{wait_for, wait_until},
};

/// Two routers, joined by a third.
fn two_sites() -> Topology {
    let mut topology = Topology::new();
    let left = Neighbor::new("tor", "192.168.2.1", 64513).local("192.168.2.2");
    topology
        .router("left")
        .on("seg-a", "192.168.2.2/24")
        .on("seg-a", "2001:db8:2::2/64")
        .gateway("192.168.2.1")
        .bird(BirdConfig::new("192.168.2.2", 64512).neighbor(left).announce("203.0.113.0/24"));
    let tor = Neighbor::new("left", "192.168.2.2", 64512).local("192.168.2.1");
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .on("seg-b", "192.168.3.1/24")
        .on("seg-a", "2001:db8:2::1/64")
        .bird(BirdConfig::new("192.168.2.1", 64513).neighbor(tor));
    topology.router("right").on("seg-b", "192.168.3.2/24").gateway("192.168.3.1");
    topology
}

pub(crate) fn machines_reach_each_other_through_the_router() -> Result<()> {
    let lab = two_sites().build()?;
    ping::reaches(lab.router("left")?, "192.168.3.2".parse()?)?;
    ping::reaches(lab.router("left")?, "2001:db8:2::1".parse()?)
}

pub(crate) fn bird_learns_and_forgets_a_route() -> Result<()> {
    let mut lab = two_sites().build()?;
    lab.bird("tor")?.wait_established(&["left"], SECONDS)?;
    let route = lab.bird("tor")?.wait_route("203.0.113.0/24", "left", SECONDS)?;
    ensure!(route.best && route.via == ["192.168.2.2 on eth0"], "{route:?}");
    let before = lab.bird("tor")?.log().len();
    let kernel = lab.router("tor")?.ip("route show proto bird")?;
    ensure!(kernel.contains("203.0.113.0/24 via 192.168.2.2"), "{kernel}");

    let config = lab.bird("left")?.config().clone().withdraw("203.0.113.0/24");
    lab.bird_mut("left")?.configure(config)?;
    lab.bird("tor")?.wait_no_route("203.0.113.0/24", SECONDS)?;
    let withdrawn = lab.bird("tor")?.withdrawals("left", before);
    ensure!(withdrawn.len() == 1, "{withdrawn:?}");
    Ok(())
}

fn reference_runtime() -> Runtime {
    let ipam = json!({"type": "host-local", "subnet": "10.99.0.0/24"});
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {"type": "ptp", "ipam": ipam},
            {"type": "tuning", "mtu": 1400},
        ],
    });
    Runtime::new(conflist, vec![programs::REFERENCE_PLUGINS.into()])
}

pub(crate) fn a_chain_of_plugins_gets_its_previous_result() -> Result<()> {
    let (host, pod) = (Namespace::create("host")?, Namespace::create("pod")?);
    let runtime = reference_runtime();
    let before = Snapshot::namespace(&host)?;
    let attachment = Attachment::pod("prod", "web", "0123abcd", "/run/netns/pod");
    let result = runtime.add(&host, &attachment)?;
    let addresses = cni::addresses(&result)?;
    ensure!(addresses.len() == 1, "{result}");
    ping::reaches(&host, addresses[0])?;
    ensure!(pod.ip("link show eth0")?.contains("mtu 1400"));
    runtime.check(&host, &attachment)?;
    runtime.del(&host, &attachment)?;
    let differences = before.differences(&Snapshot::namespace(&host)?);
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

pub(crate) fn a_failing_plugin_is_a_cni_error() -> Result<()> {
    let host = Namespace::create("host")?;
    let runtime = reference_runtime();
    let attachment = Attachment::pod("prod", "web", "0123abcd", "/run/netns/none");
    let error = runtime.add(&host, &attachment).err().context("ADD without a namespace")?;
    let error: CniError = error.downcast()?;
    ensure!(error.message.contains("/run/netns/none"), "{error}");
    Ok(())
}

pub(crate) fn lost_packets_are_counted() -> Result<()> {
    let lab = two_sites().build()?;
    let (left, right) = (lab.router("left")?, lab.router("right")?);
    let (there, back) = ("192.168.3.2".parse()?, "192.168.2.2".parse()?);
    let sources = || {
        vec![
            Source { name: "left", namespace: left, targets: vec![there] },
            Source { name: "right", namespace: right, targets: vec![back] },
        ]
    };
    let interval = Duration::from_millis(10);
    let pinger = Pinger::start(sources(), interval)?;
    ping::ping(left, there, 20, interval)?;
    for tally in pinger.stop()? {
        ensure!(tally.sent > 0 && tally.lost() == 0, "{tally}");
    }

    let pinger = Pinger::start(sources(), interval)?;
    lab.router("tor")?.sysctl("ipv4/ip_forward", "0")?;
    ping::ping(left, there, 20, interval)?;
    lab.router("tor")?.sysctl("ipv4/ip_forward", "1")?;
    wait_until("packets after the gap", SECONDS, || Ok(ping::reaches(left, there).is_ok()))?;
    for tally in pinger.stop()? {
        ensure!(tally.lost() > 0 && tally.received > 0, "{tally}");
        ensure!(tally.lost_between.is_some(), "{tally}");
    }
    Ok(())
}

pub(crate) fn a_lab_leaves_nothing() -> Result<()> {
    let before = Snapshot::host()?;
    let lab = two_sites().build()?;
    ensure!(!before.differences(&Snapshot::host()?).is_empty(), "the snapshot sees nothing");
    lab.remove()?;
    wait_for("the lab's end", SECONDS, || {
        let differences = before.differences(&Snapshot::host()?);
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    })
}

/// A whole lab that runs until it is killed.
pub(crate) fn lab_without_end() -> Result<()> {
    let _lab = two_sites().build()?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready")?;
    loop {
        thread::park();
    }
}

/// The process that a user knows is killed, or gets Ctrl-C: nothing inside may go on.
pub(crate) fn a_killed_sandbox_leaves_nothing() -> Result<()> {
    let before = Snapshot::host()?;
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        let mut child = suite::helper("kit::lab_without_end")?
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{line:?}");
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        match signal {
            Signal::SIGKILL => kill(pid, signal)?,
            _ => killpg(pid, signal)?,
        }
        ensure!(!child.wait()?.success(), "it ended well after {signal}");
        wait_for("the end of all inside", SECONDS, || {
            let differences = before.differences(&Snapshot::host()?);
            ensure!(differences.is_empty(), "{differences:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// FRR and GoBGP start in namespaces of their own and hear of each other's routes.
pub(crate) fn frr_and_gobgp_speak_with_each_other() -> Result<()> {
    let mut topology = Topology::new();
    topology.router("frr").on("seg-a", "192.168.2.1/24");
    topology.router("gobgp").on("seg-a", "192.168.2.2/24");
    let lab = topology.build()?;
    let bgpd = "router bgp 64513\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
                neighbor 192.168.2.2 remote-as 64514\n neighbor 192.168.2.2 timers connect 1\n \
                network 198.51.100.0/24\n";
    let frr = Frr::start(lab.router("frr")?, bgpd, &lab.dir().join("frr"))?;
    let yaml = "global: {config: {as: 64514, router-id: 192.168.2.2}}\nneighbors:\n\
                - config: {neighbor-address: 192.168.2.1, peer-as: 64513}\n  \
                timers: {config: {connect-retry: 1}}\n";
    let gobgp = Gobgp::start(lab.router("gobgp")?, yaml, &lab.dir().join("gobgp"))?;
    frr.wait_established(&["192.168.2.2"], LONG)?;
    gobgp.wait_established(&["192.168.2.1"], LONG)?;
    gobgp.wait_route("198.51.100.0/24", "192.168.2.1", LONG)?;
    gobgp.command(&["global", "rib", "add", "-a", "ipv4", "203.0.113.0/24"])?;
    frr.wait_route("203.0.113.0/24", "192.168.2.2", LONG)?;
    gobgp.command(&["global", "rib", "del", "-a", "ipv4", "203.0.113.0/24"])?;
    frr.wait_no_route("203.0.113.0/24", LONG)?;
    frr.configure(&["router bgp 64513", "no network 198.51.100.0/24"])?;
    gobgp.wait_no_route("198.51.100.0/24", LONG)
}
