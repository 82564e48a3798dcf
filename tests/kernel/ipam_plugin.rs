//! `twill-ipam` under other main plugins, and `twill` over other IPAM plugins, with traffic.

mod verbs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    cni::{self, Attachment},
    lab::{Lab, Node, Pod, Topology},
    ping,
    snapshot::Snapshot,
    wait::wait_for,
};

pub(crate) use self::verbs::{
    another_main_plugin_needs_no_daemon, bridge_gets_both_families_from_us,
    g_09_a_gc_amid_an_add_of_another_plugin_takes_no_address, gc_and_status_come_by_the_other_name,
    i_02_a_result_has_the_version_of_its_caller_and_no_interfaces,
};
use crate::{
    LONG, SECONDS,
    plugin::{one_node, refusal},
};

/// Makes node1's runtime call this plugin alone.
fn use_plugin(lab: &mut Lab, plugin: Value, version: &str) -> Result<()> {
    let conflist = json!({"cniVersion": version, "name": "lan", "plugins": [plugin]});
    lab.node_mut("node1")?.runtime_mut().set_conflist(conflist);
    Ok(())
}

/// The `ipam` section of a main plugin that is not ours.
fn ipam(lab: &Lab) -> Result<Value> {
    let run_dir = lab.node("node1")?.dir().join("run");
    Ok(json!({"type": "twill-ipam", "mode": "daemon", "runDir": run_dir}))
}

/// A call as a main plugin makes it: its own configuration, by our other name.
fn as_ipam(node: &Node, verb: &str, attachment: &Attachment, netconf: &Value) -> Result<Value> {
    let environment = attachment.environment(verb, &[]);
    let stdin = netconf.to_string();
    let runtime = node.runtime();
    let output = runtime.execute(node.namespace(), "twill-ipam", &environment, stdin.as_bytes())?;
    cni::parse(verb, "twill-ipam", &output)
}

fn in_use(lab: &Lab) -> Result<u64> {
    lab.node("node1")?.addresses_in_use()
}

/// Two pods reach each other and the node; after DEL nothing is in use.
fn two_pods(lab: &mut Lab, before: &Snapshot) -> Result<()> {
    let (one, two) = (lab.add_pod("node1", "one")?, lab.add_pod("node1", "two")?);
    let node = lab.node("node1")?;
    for pod in [&one, &two] {
        ping::reaches(node.namespace(), pod.address()?)?;
        node.runtime().check(node.namespace(), pod.attachment())?;
    }
    ping::reaches(one.namespace(), two.address()?)?;
    ping::reaches(two.namespace(), one.address()?)?;
    ensure!(in_use(lab)? == 2, "{} addresses are in use", in_use(lab)?);
    for pod in [one, two] {
        lab.delete_pod(pod)?;
    }
    ensure!(in_use(lab)? == 0, "{} addresses are still in use", in_use(lab)?);
    let left = before.differences(&Snapshot::namespace(lab.node("node1")?.namespace())?);
    let left: Vec<_> = left.iter().filter(|line| !expected(line)).collect();
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// The block of the network, and the bridge that its plugin leaves.
fn expected(line: &str) -> bool {
    line.contains("unreachable") || line.contains("cni0") || line.contains("anycast")
}

pub(crate) fn ptp_gets_addresses_from_us() -> Result<()> {
    let mut lab = one_node()?;
    let before = Snapshot::namespace(lab.node("node1")?.namespace())?;
    let ipam = ipam(&lab)?;
    use_plugin(&mut lab, json!({"type": "ptp", "ipam": ipam.clone()}), "1.0.0")?;
    two_pods(&mut lab, &before)?;
    // What the other plugin takes for an MTU is its own business.
    let mut call = lab.node("node1")?.runtime().conflist()["plugins"][0].clone();
    call["name"] = json!("lan");
    call["cniVersion"] = json!("1.0.0");
    let pod = lab.bare_pod("node1", "other")?;
    let node = lab.node("node1")?;
    for mtu in [json!("auto"), json!(-1), json!(100_000)] {
        call["mtu"] = mtu;
        for verb in ["ADD", "DEL"] {
            as_ipam(node, verb, pod.attachment(), &call)?;
        }
    }
    Ok(())
}

pub(crate) fn bridge_gets_a_subnet_with_a_gateway_from_us() -> Result<()> {
    let mut lab = one_node()?;
    let before = Snapshot::namespace(lab.node("node1")?.namespace())?;
    let mut ipam = ipam(&lab)?;
    ipam["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
    use_plugin(&mut lab, bridge, "1.0.0")?;
    let pod = lab.add_pod("node1", "first")?;
    let block = lab.node("node1")?.blocks()?.first().context("no block")?.clone();
    let gateway = block.split('/').next().context("no address")?.to_owned();
    let routes = pod.namespace().ip("route show default")?;
    ensure!(routes.contains(&format!("via {gateway}")), "{routes}, and the block is {block}");
    lab.delete_pod(pod)?;
    two_pods(&mut lab, &before)
}

/// A pod on the rack's own segment: the ToR is its gateway, and no route leads through the node.
pub(crate) fn macvlan_pods_are_neighbours_of_the_tor() -> Result<()> {
    let mut topology = Topology::new();
    topology.router("tor").on("seg-a", "192.168.2.1/24");
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource(
        "lan.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: lan}\nspec: {cidr: \
         192.168.2.128/25, blockSize: 27}\n",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    let mut ipam = ipam(&lab)?;
    ipam["prefixLength"] = json!(24);
    ipam["gateway"] = json!("192.168.2.1");
    // One network has a gateway of its own on that segment.
    ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "192.168.2.254"}]);
    let macvlan = json!({"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam});
    use_plugin(&mut lab, macvlan, "1.0.0")?;
    let (one, two) = (lab.add_pod("node1", "one")?, lab.add_pod("node1", "two")?);
    ping::reaches(lab.router("tor")?, one.address()?)?;
    ping::reaches(one.namespace(), "192.168.2.1".parse()?)?;
    ping::reaches(one.namespace(), two.address()?)?;
    let address = one.namespace().ip("addr show dev eth0")?;
    ensure!(address.contains("/24"), "{address}");
    for (to, gateway) in [("default", "192.168.2.1"), ("10.0.0.0/8", "192.168.2.254")] {
        let routes = one.namespace().ip(&format!("route show {to}"))?;
        ensure!(routes.contains(&format!("via {gateway} dev eth0")), "{routes}");
    }
    for pod in [one, two] {
        lab.delete_pod(pod)?;
    }
    ensure!(in_use(&lab)? == 0);
    Ok(())
}

/// A node with one pool, and a ToR that it has a session with.
fn node_of_a_tor() -> Result<Lab> {
    let mut topology = Topology::new();
    let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local("192.168.2.1");
    let bird = BirdConfig::new("192.168.2.1", 64513).neighbor(neighbor);
    topology.router("tor").on("seg-a", "192.168.2.1/24").bird(bird);
    topology.node("node1").label("env", "prod").on("seg-a", "192.168.2.11/24");
    topology.samples(&["ippool-app.yaml"])?;
    topology.resource(
        "tor.yaml",
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec: {peerIP: \
         192.168.2.1, asNumber: 64513}\n",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// Blocks of such a network are announced only if it says so; those of our own pods always are.
pub(crate) fn a_foreign_networks_blocks_are_its_own() -> Result<()> {
    let mut lab = node_of_a_tor()?;
    let ours = lab.node("node1")?.runtime().conflist().clone();
    let first = lab.add_pod("node1", "ours")?;
    // What the ToR has of the node is to be these blocks.
    let mut known = lab.node("node1")?.blocks()?;
    let mut announced = known.clone();
    let tor_has = |lab: &Lab, blocks: &[String]| {
        wait_for("the ToR to have what is announced", LONG, || {
            let routes = lab.bird("tor")?.routes_from("node1")?;
            let mut has: Vec<_> = routes.iter().map(|route| route.prefix.clone()).collect();
            has.sort();
            ensure!(has == blocks, "it has {has:?}, not {blocks:?}");
            Ok(())
        })
    };
    tor_has(&lab, &announced)?;
    for (advertise, blocks) in [(false, 2), (true, 3)] {
        let mut ipam = ipam(&lab)?;
        ipam["advertise"] = json!(advertise);
        use_plugin(&mut lab, json!({"type": "ptp", "ipam": ipam}), "1.0.0")?;
        let pod = lab.add_pod("node1", &format!("theirs-{advertise}"))?;
        let node = lab.node("node1")?;
        let owned = node.blocks()?;
        ensure!(owned.len() == blocks, "{owned:?}");
        if advertise {
            // By the time that this one is there, the other one would be, too.
            announced.extend(owned.iter().filter(|block| !known.contains(block)).cloned());
            announced.sort();
        }
        known = owned;
        let routes = node.ctl_json(&["bgp", "routes"])?;
        let own = routes.as_array().into_iter().flatten();
        let own = own.filter(|route| route["from"].is_null()).count();
        ensure!(own == announced.len(), "{routes}");
        tor_has(&lab, &announced)?;
        // A restart reads it from the claim.
        lab.node_mut("node1")?.kill9()?;
        lab.node_mut("node1")?.start()?;
        lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
        tor_has(&lab, &announced)?;
        lab.delete_pod(pod)?;
    }
    lab.node_mut("node1")?.runtime_mut().set_conflist(ours);
    lab.delete_pod(first)
}

/// The runtime reuses container id and interface name at once, and the first DEL comes late.
pub(crate) fn a_late_del_of_another_namespace_frees_nothing() -> Result<()> {
    let mut lab = one_node()?;
    let ipam = ipam(&lab)?;
    use_plugin(&mut lab, json!({"type": "ptp", "ipam": ipam}), "1.0.0")?;
    let mut ptp = lab.node("node1")?.runtime().conflist()["plugins"][0].clone();
    ptp["name"] = json!("lan");
    ptp["cniVersion"] = json!("1.0.0");
    let (old, new) = (lab.bare_pod("node1", "old")?, lab.bare_pod("node1", "new")?);
    let node = lab.node("node1")?;
    let call = |verb: &str, netns: &Pod| -> Result<Value> {
        let mut attachment = old.attachment().clone();
        attachment.netns = netns.attachment().netns.clone();
        as_ipam(node, verb, &attachment, &ptp)
    };
    let first = call("ADD", &old)?;
    let second = call("ADD", &new)?;
    ensure!(first["ips"] == second["ips"], "{first} {second}");
    ensure!(first.get("interfaces").is_none(), "{first}");
    ensure!(first["ips"][0].get("interface").is_none(), "{first}");
    call("DEL", &old)?;
    ensure!(in_use(&lab)? == 1, "the late DEL freed the address");
    call("DEL", &new)?;
    ensure!(in_use(&lab)? == 0);
    Ok(())
}

/// What a runtime hands over by a capability is for the plugin that gives the addresses, and judged by that.
pub(crate) fn another_ipam_plugin_reads_what_the_runtime_sends() -> Result<()> {
    let mut lab = one_node()?;
    let run_dir = lab.node("node1")?.dir().join("run");
    for (number, (ipam, runtime, expected)) in [
        (
            json!({"type": "host-local"}),
            json!({"ipRanges": [[{"subnet": "10.77.0.0/24"}]]}),
            vec!["10.77.0.2"],
        ),
        (
            json!({"type": "static"}),
            json!({"ips": ["10.78.0.5/24", "10.78.0.6/24"]}),
            vec!["10.78.0.5", "10.78.0.6"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let twill = json!({"type": "twill", "runDir": run_dir, "ipam": ipam,
            "capabilities": {"ipRanges": true, "ips": true}, "runtimeConfig": runtime});
        use_plugin(&mut lab, twill, "1.0.0")?;
        let pod = lab.add_pod("node1", &format!("p{number}"))?;
        let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
        ensure!(addresses == expected, "{addresses:?}");
        let node = lab.node("node1")?;
        node.runtime().check(node.namespace(), pod.attachment())?;
        for address in pod.addresses() {
            ping::reaches(node.namespace(), *address)?;
        }
        lab.delete_pod(pod)?;
    }
    Ok(())
}

/// `twill` makes the link, another plugin gives the address: executed by the rules for delegation.
pub(crate) fn addresses_come_from_another_ipam_plugin() -> Result<()> {
    let mut lab = one_node()?;
    // No daemon is needed for that.
    lab.node_mut("node1")?.stop()?;
    let run_dir = lab.node("node1")?.dir().join("run");
    let before = Snapshot::namespace(lab.node("node1")?.namespace())?;
    let host_local = json!({
        "type": "host-local",
        "subnet": "10.77.0.0/24",
        "routes": [{"dst": "192.0.2.0/24"}],
    });
    let fixed = json!({"type": "static", "addresses": [{"address": "10.78.0.5/24"}]});
    for (ipam, version, address) in [
        (host_local.clone(), "0.2.0", "10.77.0.2"),
        (host_local.clone(), "0.4.0", "10.77.0.3"),
        (host_local.clone(), "1.0.0", "10.77.0.4"),
        (fixed, "1.0.0", "10.78.0.5"),
    ] {
        use_plugin(&mut lab, json!({"type": "twill", "runDir": run_dir, "ipam": ipam}), version)?;
        let mut pod = lab.bare_pod("node1", &format!("p{}", version.replace('.', "-")))?;
        let node = lab.node("node1")?;
        let result = node.runtime().add(node.namespace(), pod.attachment())?;
        let printed = match version {
            "0.2.0" => result["ip4"]["ip"].clone(),
            _ => result["ips"][0]["address"].clone(),
        };
        ensure!(printed == format!("{address}/32"), "{result}");
        ping::reaches(node.namespace(), address.parse()?)?;
        let routes = pod.namespace().ip("route show")?;
        let extra = routes.contains("192.0.2.0/24 via 169.254.1.1");
        ensure!(extra == (ipam["type"] == "host-local"), "{routes}");
        if version != "0.2.0" {
            node.runtime().check(node.namespace(), pod.attachment())?;
        }
        if version != "0.2.0" && extra {
            pod.namespace().ip("route del 192.0.2.0/24")?;
            let error = refusal(node.runtime().check(node.namespace(), pod.attachment()))?;
            ensure!(error.message.contains("192.0.2.0/24"), "{error}");
        }
        lab.detach(&pod)?;
        if version == "1.0.0" && ipam["type"] == "host-local" {
            // A DEL and an ADD at once, in the same namespace.
            lab.attach(&mut pod)?;
            lab.detach(&pod)?;
        }
    }
    let left = before.differences(&Snapshot::namespace(lab.node("node1")?.namespace())?);
    ensure!(left.is_empty(), "{left:#?}");
    // Its errors are passed on as they are.
    let broken = json!({"type": "host-local", "subnet": "10.77.0.0/24", "rangeStart": "x"});
    use_plugin(&mut lab, json!({"type": "twill", "runDir": run_dir, "ipam": broken}), "1.0.0")?;
    let pod = lab.bare_pod("node1", "refused")?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
    ensure!(error.message.starts_with("host-local: "), "{error}");
    wait_for("no link of the refused call", SECONDS, || {
        let left = before.differences(&Snapshot::namespace(node.namespace())?);
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
}
