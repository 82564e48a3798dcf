//! Where BGP next hops are: on which link, and by which routers.

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    ping,
    wait::wait_for,
};

use crate::{
    LONG,
    routing::{POOL6, peer},
};

/// The hops of a route in the kernel, as `gateway dev link`.
fn hops(lab: &Lab, prefix: &str) -> Result<Vec<String>> {
    let route = lab.node("node1")?.wait_route(prefix, LONG)?;
    let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let hop = |hop: &Value| format!("{} dev {}", text(&hop["gateway"]), text(&hop["dev"]));
    Ok(hops.iter().map(hop).collect())
}

fn wait_hops(lab: &Lab, prefix: &str, expected: &[&str]) -> Result<()> {
    wait_for(&format!("the hops of {prefix}"), LONG, || {
        let found = hops(lab, prefix)?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
}

/// Two ToRs, each on a link of its own, say that they are fe80::1, as each pod's link has it, too. Their
/// routes lead to them, and to no pod.
pub(crate) fn a_link_local_next_hop_is_on_the_link_of_its_peer() -> Result<()> {
    let mut topology = Topology::new();
    for (number, segment) in [(2, "seg-a"), (3, "seg-b")] {
        let (address, node) = (format!("2001:db8:{number}::1"), format!("2001:db8:{number}::11"));
        let neighbor =
            Neighbor::new("node1", &node, 64512).local(&address).change("bgp_next_hop = fe80::1;");
        let (own, shared) = (format!("2001:db8:f{number}::/64"), "2001:db8:ff::/64");
        let bird = BirdConfig::new(&format!("192.168.{number}.1"), 64513).neighbor(neighbor);
        topology
            .router(&format!("tor{number}"))
            .on(segment, &format!("{address}/64"))
            .on(segment, "fe80::1/64")
            .local(&format!("2001:db8:f{number}::1/64"))
            .bird(bird.announce(&own).announce(shared));
        let name = format!("tor{number}");
        topology.resource(&format!("{name}.yaml"), &peer(&name, &address, 64513));
    }
    topology
        .node("node1")
        .on("seg-a", "192.168.2.11/24")
        .on("seg-a", "2001:db8:2::11/64")
        .on("seg-b", "2001:db8:3::11/64");
    topology.resource("pool6.yaml", POOL6);
    let mut lab = topology.build()?;
    // A pod's link is there before the routes are.
    lab.node_mut("node1")?.start()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["ipam"]["assignIPv4"] = false.into();
    conflist["plugins"][0]["ipam"]["assignIPv6"] = true.into();
    runtime.set_conflist(conflist);
    let pod = lab.add_pod("node1", "six")?;
    lab.node("node1")?.wait_established(&["2001:db8:2::1", "2001:db8:3::1"], LONG)?;
    wait_hops(&lab, "2001:db8:f2::/64", &["fe80::1 dev eth0"])?;
    wait_hops(&lab, "2001:db8:f3::/64", &["fe80::1 dev eth1"])?;
    wait_hops(&lab, "2001:db8:ff::/64", &["fe80::1 dev eth0", "fe80::1 dev eth1"])?;
    for beyond in ["2001:db8:f2::1", "2001:db8:f3::1"] {
        wait_for(&format!("traffic to {beyond}"), LONG, || {
            ping::reaches(pod.namespace(), beyond.parse()?)
        })?;
    }
    let answer = lab.node("node1")?.ctl_json(&["bgp", "explain", "2001:db8:ff::/64"])?;
    for path in answer["paths"].as_array().into_iter().flatten() {
        let device = if path["from"] == "2001:db8:2::1" { "eth0" } else { "eth1" };
        let next_hop = &path["nextHop"];
        ensure!(next_hop["address"] == "fe80::1" && next_hop["device"] == device, "{path:#}");
    }
    Ok(())
}

/// A router beyond two ToRs, to which the node has one route with both: what it announces is reached by both,
/// and by one of them while the link to the other is down.
pub(crate) fn a_next_hop_behind_two_routers_is_reached_by_both() -> Result<()> {
    let mut topology = Topology::new();
    let tors = [("tor1", "seg-a", "192.168.2", 2), ("tor2", "seg-b", "192.168.3", 3)];
    for (name, segment, net, last) in tors {
        let tor = topology.router(name).on(segment, &format!("{net}.1/24"));
        tor.on("seg-c", &format!("192.168.5.{last}/24"));
    }
    let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local("192.168.5.1");
    topology
        .router("core")
        .on("seg-c", "192.168.5.1/24")
        .local("198.51.100.1/24")
        .bird(BirdConfig::new("192.168.5.1", 64513).neighbor(neighbor).announce("198.51.100.0/24"));
    topology.node("node1").on("seg-a", "192.168.2.11/24").on("seg-b", "192.168.3.11/24");
    topology.resource("core.yaml", &peer("core", "192.168.5.1", 64513));
    let mut lab = topology.build()?;
    for (name, _, net, last) in tors {
        lab.router("core")?.ip(&format!("route add {net}.0/24 via 192.168.5.{last}"))?;
        lab.router(name)?.ip("route add 198.51.100.0/24 via 192.168.5.1")?;
    }
    lab.node("node1")?
        .namespace()
        .ip("route add 192.168.5.0/24 nexthop via 192.168.2.1 nexthop via 192.168.3.1")?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.5.1"], LONG)?;
    let both = ["192.168.2.1 dev eth0", "192.168.3.1 dev eth1"];
    wait_hops(&lab, "198.51.100.0/24", &both)?;
    ping::reaches(lab.namespace("node1")?, "198.51.100.1".parse()?)?;
    let answer = lab.node("node1")?.ctl_json(&["bgp", "explain", "198.51.100.0/24"])?;
    let next_hop = &answer["paths"][0]["nextHop"];
    ensure!(next_hop["gateway"] == "192.168.2.1" && next_hop["metric"] == 1, "{next_hop:#}");
    ensure!(next_hop["others"][0]["device"] == "eth1", "{next_hop:#}");
    lab.namespace("node1")?.ip("link set eth1 down")?;
    wait_hops(&lab, "198.51.100.0/24", &both[..1])?;
    ping::reaches(lab.namespace("node1")?, "198.51.100.1".parse()?)?;
    lab.namespace("node1")?.ip("link set eth1 up")?;
    wait_hops(&lab, "198.51.100.0/24", &both)
}
