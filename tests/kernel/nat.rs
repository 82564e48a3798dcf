//! The pods' way out of the pools: `natOutgoing`, with a destination behind the ToR that has no route
//! back to any pool.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Pod, Topology},
    netns::Namespace,
    ping,
    process::check,
    wait::wait_for,
};

use crate::{LONG, SECONDS};

/// The nodes with their addresses, and the ToR's on the same segment.
const NODES: [(&str, &str, [&str; 2], [&str; 2]); 2] = [
    ("node1", "seg-a", ["192.168.2.11", "2001:db8:2::11"], ["192.168.2.1", "2001:db8:2::1"]),
    ("node2", "seg-b", ["192.168.3.12", "2001:db8:3::12"], ["192.168.3.1", "2001:db8:3::1"]),
];

/// Behind the ToR.
const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8:ff::2"];

fn pools(nat: bool) -> [(&'static str, String); 2] {
    [("pool4.yaml", "10.10.0.0/20", 26), ("pool6.yaml", "fd00:10::/112", 122)].map(
        |(file, cidr, size)| {
            let name = file.trim_end_matches(".yaml");
            let text = format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
                 spec: {{cidr: {cidr:?}, blockSize: {size}, natOutgoing: {nat}}}\n"
            );
            (file, text)
        },
    )
}

/// Two nodes on segments of their own, a ToR between them, and `outside`, which knows the segments alone.
pub(crate) fn up(nat: bool) -> Result<Lab> {
    let mut topology = Topology::new();
    let mut bird = BirdConfig::new("192.168.2.1", 64513);
    for (node, _, addresses, tors) in NODES {
        for ((suffix, address), tor) in ["4", "6"].into_iter().zip(addresses).zip(tors) {
            let name = format!("{node}v{suffix}");
            bird = bird.neighbor(Neighbor::new(&name, address, 64512).local(tor));
            topology.resource(
                &format!("{name}.yaml"),
                &format!(
                    "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
                     spec: {{node: {node}, peerIP: {tor:?}, asNumber: 64513}}\n"
                ),
            );
        }
    }
    let tor = topology.router("tor");
    for (_, segment, _, [tor4, tor6]) in NODES {
        tor.on(segment, &format!("{tor4}/24")).on(segment, &format!("{tor6}/64"));
    }
    tor.on("seg-out", "203.0.113.1/24").on("seg-out", "2001:db8:ff::1/64").bird(bird);
    let outside = topology.router("outside");
    outside
        .on("seg-out", &format!("{}/24", OUTSIDE[0]))
        .on("seg-out", &format!("{}/64", OUTSIDE[1]));
    for (node, segment, [v4, v6], tors) in NODES {
        let machine = topology.node(node);
        machine.on(segment, &format!("{v4}/24")).on(segment, &format!("{v6}/64"));
        for tor in tors {
            machine.gateway(tor);
        }
    }
    for (file, text) in pools(nat) {
        topology.resource(file, &text);
    }
    let mut lab = topology.build()?;
    lab.router("outside")?.ip_batch(
        "route add 192.168.0.0/16 via 203.0.113.1\n\
         route add 2001:db8:2::/47 via 2001:db8:ff::1\n",
    )?;
    for (node, ..) in NODES {
        let runtime = lab.node_mut(node)?.runtime_mut();
        let mut conflist = runtime.conflist().clone();
        conflist["plugins"][0]["ipam"]["assignIPv6"] = true.into();
        runtime.set_conflist(conflist);
    }
    lab.start_all()?;
    for (node, _, _, tors) in NODES {
        lab.node(node)?.wait_established(&tors, LONG)?;
    }
    Ok(lab)
}

fn nft(namespace: &Namespace, arguments: &str) -> Result<String> {
    let output = namespace.output(Command::new("nft").args(arguments.split_whitespace()))?;
    check(&format!("nft {arguments}"), &output)
}

/// Whether pods leave the pools of both families by the node's address.
fn has_way_out(lab: &Lab, node: &str) -> Result<()> {
    let table = nft(lab.node(node)?.namespace(), "list table inet twill")?;
    ensure!(table.matches("masquerade").count() == 2, "{table}");
    Ok(())
}

fn has_none(lab: &Lab, node: &str) -> Result<()> {
    let tables = nft(lab.node(node)?.namespace(), "list tables")?;
    ensure!(!tables.contains("inet twill"), "{tables}");
    Ok(())
}

/// The address from which a datagram arrives.
fn source_at(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<IpAddr> {
    let socket = to.enter(|| UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(SECONDS))?;
    let target = socket.local_addr()?;
    let any = match address {
        IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        IpAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    from.enter(|| UdpSocket::bind(any)?.send_to(b"who am I", target))??;
    let (_, source) = socket
        .recv_from(&mut [0; 64])
        .with_context(|| format!("nothing of {} at {target}", from.name()))?;
    Ok(source.ip())
}

/// What the destination outside sees of a pod's traffic in each family.
fn seen_outside(lab: &Lab, pod: &Pod) -> Result<[String; 2]> {
    let outside = lab.router("outside")?;
    let seen = |address: &str| -> Result<String> {
        Ok(source_at(pod.namespace(), outside, address.parse()?)?.to_string())
    };
    Ok([seen(OUTSIDE[0])?, seen(OUTSIDE[1])?])
}

fn reaches_outside(pod: &Pod) -> Result<()> {
    for address in OUTSIDE {
        ping::reaches(pod.namespace(), address.parse()?)?;
    }
    Ok(())
}

fn write_pools(lab: &Lab, nat: bool) -> Result<()> {
    pools(nat).into_iter().try_for_each(|(file, text)| lab.write_resource(file, &text))
}

pub(crate) fn pods_leave_the_pools_by_their_nodes_address() -> Result<()> {
    let mut lab = up(false)?;
    let node = lab.node("node1")?.namespace();
    nft(node, "add table ip other")?;
    nft(node, "add chain ip other mine")?;
    let foreign = nft(node, "list table ip other")?;
    let pod = lab.add_pod("node1", "web")?;
    let other = lab.add_pod("node2", "api")?;
    let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();

    // Without it the pod's own address arrives, and no answer comes back.
    wait_for("a way out", LONG, || seen_outside(&lab, &pod))?;
    ensure!(seen_outside(&lab, &pod)?[..] == addresses[..]);
    reaches_outside(&pod).err().context("an answer found its way back to a pool")?;
    has_none(&lab, "node1")?;

    write_pools(&lab, true)?;
    for (name, ..) in NODES {
        wait_for("the table", SECONDS, || has_way_out(&lab, name))?;
    }
    reaches_outside(&pod)?;
    reaches_outside(&other)?;
    for (pod, (_, _, node, _)) in [&pod, &other].into_iter().zip(NODES) {
        ensure!(seen_outside(&lab, pod)? == node, "not by {node:?}");
    }
    // From pod to pod, over the nodes, everybody is who he is.
    for (address, own) in other.addresses().iter().zip(&addresses) {
        let seen = wait_for("the other pod", LONG, || {
            source_at(pod.namespace(), other.namespace(), *address)
        })?;
        ensure!(seen.to_string() == *own, "{seen} instead of {own}");
    }
    // Nobody needs the daemon for it.
    lab.node_mut("node1")?.kill9()?;
    reaches_outside(&pod)?;
    lab.node_mut("node1")?.start()?;
    reaches_outside(&pod)?;
    lab.node_mut("node1")?.stop()?;
    reaches_outside(&pod)?;
    lab.node_mut("node1")?.start()?;

    // A pool that gives no addresses any more still has pods.
    for (file, text) in pools(true) {
        lab.write_resource(file, &text.replace("natOutgoing", "disabled: true, natOutgoing"))?;
    }
    wait_for("the pools to be disabled", SECONDS, || {
        let status = lab.node("node1")?.ctl_json(&["ipam", "show"])?;
        ensure!(status["pools"].to_string().contains("disabled"), "{status}");
        Ok(())
    })?;
    has_way_out(&lab, "node1")?;
    reaches_outside(&pod)?;

    write_pools(&lab, false)?;
    wait_for("the table to go", SECONDS, || has_none(&lab, "node1"))?;
    ensure!(nft(lab.node("node1")?.namespace(), "list table ip other")? == foreign);
    ensure!(lab.node("node1")?.status()?["problems"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}

/// Others cannot take the table away while the daemon runs, and what they do when it does not is mended.
pub(crate) fn a_way_out_that_others_take_away_comes_back() -> Result<()> {
    let mut lab = up(true)?;
    let pod = lab.add_pod("node1", "web")?;
    wait_for("the table", SECONDS, || has_way_out(&lab, "node1"))?;
    wait_for("a way out", LONG, || reaches_outside(&pod))?;
    nft(lab.node("node1")?.namespace(), "flush ruleset")?;
    has_way_out(&lab, "node1")?;
    reaches_outside(&pod)?;

    lab.node_mut("node1")?.stop()?;
    let node = lab.node("node1")?.namespace();
    nft(node, "flush ruleset")?;
    has_none(&lab, "node1")?;
    // Somebody else's table by our name is told, left alone, and ours made as soon as it is gone.
    nft(node, "add table inet twill")?;
    lab.node_mut("node1")?.start()?;
    wait_for("word of it", SECONDS, || {
        let status = lab.node("node1")?.status()?;
        let told = status["problems"].to_string();
        ensure!(told.contains("table `inet twill` that Twill did not make"), "{told}");
        Ok(())
    })?;
    let node = lab.node("node1")?.namespace();
    ensure!(!nft(node, "list ruleset")?.contains("masquerade"));
    nft(node, "delete table inet twill")?;
    wait_for("the table", SECONDS, || has_way_out(&lab, "node1"))?;
    reaches_outside(&pod)?;
    wait_for("no problem any more", SECONDS, || {
        let status = lab.node("node1")?.status()?;
        ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })
}
