//! What others take away of what pods need on the node comes back, by events of the kernel.

use std::fs;

use anyhow::{Context, Result, ensure};
use twill_tests::{lab::Lab, netns::Namespace, ping, wait::wait_for};

use crate::{LONG, SECONDS, nat};

/// What pods need of a node, a line each, in order.
fn state(node: &Namespace, link: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for what in [
        "-4 route show table all proto 116",
        "-6 route show table all proto 116",
        &format!("-oneline -6 address show dev {link}"),
    ] {
        lines.extend(node.ip(what)?.lines().map(|line| line.trim().to_owned()));
    }
    for key in [
        "ipv4/ip_forward".to_owned(),
        "ipv6/conf/all/forwarding".to_owned(),
        format!("ipv4/conf/{link}/forwarding"),
        format!("ipv4/conf/{link}/proxy_arp"),
        format!("ipv4/conf/{link}/rp_filter"),
    ] {
        let value = node.enter(|| fs::read_to_string(format!("/proc/sys/net/{key}")))??;
        lines.push(format!("{key} {}", value.trim()));
    }
    lines.sort();
    Ok(lines)
}

/// The host end of the one pod.
fn pods_link(lab: &Lab) -> Result<String> {
    let links = lab.node("node1")?.namespace().ip_json("link show type veth")?;
    let mut names = links.iter().filter_map(|link| link["ifname"].as_str());
    Ok(names.find(|name| name.starts_with("twl")).context("no pod's link")?.to_owned())
}

pub(crate) fn what_others_take_from_pods_comes_back() -> Result<()> {
    let mut lab = nat::up(false)?;
    let pod = lab.add_pod("node1", "web")?;
    let link = pods_link(&lab)?;
    let [v4, v6] = pod.addresses() else {
        anyhow::bail!("not two addresses: {:?}", pod.addresses())
    };
    let reached = |lab: &Lab| -> Result<()> {
        let tor = lab.router("tor")?;
        ping::reaches(tor, *v4)?;
        ping::reaches(tor, *v6)
    };
    wait_for("the pod", LONG, || reached(&lab))?;
    let before = state(lab.node("node1")?.namespace(), &link)?;
    let is_as_before = |lab: &Lab, what: &str| {
        wait_for(&format!("what {what} took"), SECONDS, || {
            let after = state(lab.node("node1")?.namespace(), &link)?;
            ensure!(after == before, "{before:#?}\n{after:#?}");
            Ok(())
        })?;
        reached(lab)
    };
    for commands in [
        format!("route delete {v4} dev {link}\n"),
        format!("route delete {v6} dev {link}\n"),
        format!("address delete fe80::1/64 dev {link}\n"),
        "route delete 169.254.1.1 dev lo\n".to_owned(),
        format!("link set {link} down\nlink set {link} up\n"),
        "-4 route flush proto 116\n".to_owned(),
        "-6 route flush proto 116\n".to_owned(),
    ] {
        for command in commands.lines() {
            lab.node("node1")?.namespace().ip(command)?;
        }
        is_as_before(&lab, &commands)?;
    }
    for (key, value) in [
        ("ipv4/ip_forward".to_owned(), "0"),
        ("ipv6/conf/all/forwarding".to_owned(), "0"),
        (format!("ipv4/conf/{link}/forwarding"), "0"),
        (format!("ipv4/conf/{link}/proxy_arp"), "0"),
        (format!("ipv4/conf/{link}/rp_filter"), "0"),
        // systemd-sysctl writes this to each new link, by the defaults that systemd brings.
        (format!("ipv4/conf/{link}/rp_filter"), "2"),
    ] {
        lab.node("node1")?.namespace().sysctl(&key, value)?;
        is_as_before(&lab, &format!("{key} = {value}"))?;
    }
    // What goes while no daemon runs, the next one finds.
    lab.node_mut("node1")?.stop()?;
    lab.node("node1")?.namespace().ip(&format!("route delete {v4} dev {link}"))?;
    lab.node_mut("node1")?.start()?;
    is_as_before(&lab, "somebody without a daemon")?;

    // And a DEL takes all of it away for good.
    lab.delete_pod(pod)?;
    wait_for("the link to go", SECONDS, || {
        ensure!(pods_link(&lab).is_err());
        Ok(())
    })?;
    let left = lab.node("node1")?.namespace().ip("route show table all proto 116")?;
    ensure!(!left.contains("twl"), "{left}");
    ensure!(lab.node("node1")?.status()?["problems"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}
