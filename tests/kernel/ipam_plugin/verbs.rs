//! Every verb by the name of `twill-ipam`, in both families, with a daemon and without.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Attachment, Runtime},
    lab::Node,
    netns::Namespace,
    ping, programs,
    wait::wait_for,
};

use super::{as_ipam, in_use, ipam, use_plugin};
use crate::{
    SECONDS, crash,
    plugin::{lone_node, one_node, refusal},
};

/// A verb that is about no container, as a main plugin forwards it.
fn forwarded(node: &Node, verb: &str, netconf: &Value) -> Result<()> {
    let environment = [("CNI_COMMAND".to_owned(), verb.to_owned())];
    let stdin = netconf.to_string();
    let runtime = node.runtime();
    let output = runtime.execute(node.namespace(), "twill-ipam", &environment, stdin.as_bytes())?;
    cni::parse(verb, "twill-ipam", &output).map(drop)
}

/// The configuration of a GC that keeps these.
fn keeping(netconf: &Value, kept: &[&Attachment]) -> Value {
    let entry = |a: &&Attachment| json!({"containerID": a.container_id, "ifname": a.ifname});
    let mut netconf = netconf.clone();
    netconf["cni.dev/valid-attachments"] = kept.iter().map(entry).collect();
    netconf
}

pub(crate) fn gc_and_status_come_by_the_other_name() -> Result<()> {
    let mut lab = one_node()?;
    let mut ptp = json!({"cniVersion": "1.1.0", "name": "lan", "type": "ptp", "ipam": ipam(&lab)?});
    ptp["ipam"]["gcGraceSeconds"] = json!(0);
    let (kept, lost) = (lab.bare_pod("node1", "kept")?, lab.bare_pod("node1", "lost")?);
    let node = lab.node("node1")?;
    forwarded(node, "STATUS", &ptp)?;
    let given = as_ipam(node, "ADD", kept.attachment(), &ptp)?;
    as_ipam(node, "ADD", lost.attachment(), &ptp)?;
    ensure!(in_use(&lab)? == 2);

    let mut whole = given.clone();
    whole["interfaces"] = json!([{"name": "eth0", "sandbox": kept.attachment().netns}]);
    whole["ips"][0]["interface"] = json!(0);
    check_of_a_longer_list(&whole, |previous| {
        let mut netconf = ptp.clone();
        netconf["prevResult"] = previous.clone();
        as_ipam(node, "CHECK", kept.attachment(), &netconf)
    })?;

    let error = refusal(forwarded(node, "GC", &ptp))?;
    ensure!(error.code == 7 && error.message.contains("cni.dev/valid-attachments"), "{error}");
    let mut other = keeping(&ptp, &[]);
    other["name"] = json!("other");
    forwarded(node, "GC", &other)?;
    ensure!(in_use(&lab)? == 2, "freed without a list, or by another network's");
    forwarded(node, "GC", &keeping(&ptp, &[kept.attachment()]))?;
    ensure!(in_use(&lab)? == 1, "{} addresses are in use", in_use(&lab)?);
    let again = as_ipam(node, "ADD", kept.attachment(), &ptp)?;
    ensure!(again == given, "{again}, it had {given}");

    // What the main plugin has no place for stands in `ipam`.
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    forwarded(node, "STATUS", &ptp)?;
    let mut hurried = ptp.clone();
    hurried["ipam"]["statusGraceSeconds"] = json!(1);
    hurried["ipam"]["timeoutSeconds"] = json!(1);
    let error =
        wait_for("the grace to end", SECONDS, || refusal(forwarded(node, "STATUS", &hurried)))?;
    ensure!(error.code == 50 && error.message.contains("twilld.sock"), "{error}");
    let error = refusal(forwarded(node, "GC", &keeping(&hurried, &[])))?;
    ensure!(error.code == 11, "{error}");
    lab.node_mut("node1")?.start()?;
    ensure!(in_use(&lab)? == 1);
    forwarded(lab.node("node1")?, "GC", &keeping(&ptp, &[]))?;
    ensure!(in_use(&lab)? == 0);
    Ok(())
}

/// Fields that only 1.1.0 has, and only a route of ours.
const NEWER: [&str; 3] = ["mtu", "advmss", "priority"];

/// A result of `twill-ipam` as a version has it: two addresses with their gateways, and the configuration's
/// route of each family; no interface anywhere.
fn is_of_version(result: &Value, version: &str) -> Result<()> {
    ensure!(result["cniVersion"] == version, "{result}");
    let object = result.as_object().context("no object")?;
    ensure!(!object.contains_key("interfaces"), "{result}");
    let families = [
        ("ip4", "4", "10.20.0.5/31", "10.20.0.4", "0.0.0.0/0"),
        ("ip6", "6", "fd00:20::5/127", "fd00:20::4", "::/0"),
    ];
    let is_old = version < "0.3.0";
    ensure!(object.contains_key("ip4") == is_old, "{result}");
    ensure!(object.contains_key("ips") != is_old, "{result}");
    ensure!(object.contains_key("routes") != is_old, "{result}");
    for (index, (key, family, address, gateway, to)) in families.into_iter().enumerate() {
        let (ip, routes) = if is_old {
            (&result[key], &result[key]["routes"])
        } else {
            (&result["ips"][index], &result["routes"])
        };
        ensure!(ip[if is_old { "ip" } else { "address" }] == address, "{result}");
        ensure!(ip["gateway"] == gateway, "{result}");
        ensure!(ip.get("interface").is_none(), "{result}");
        let told = ("0.3.0".."1.0.0").contains(&version).then(|| json!(family));
        ensure!(ip.get("version") == told.as_ref(), "{result}");
        let routes = routes.as_array().with_context(|| format!("no routes: {result}"))?;
        ensure!(routes.len() == if is_old { 1 } else { 2 }, "{result}");
        let route = routes.iter().find(|route| route["dst"] == to);
        let route = route.with_context(|| format!("no route to {to}: {result}"))?;
        for newer in NEWER {
            ensure!(route.get(newer).is_some() == (version == "1.1.0"), "{newer}: {result}");
        }
    }
    Ok(())
}

/// C-03: what later plugins have added is none of ours. Each family that we gave has to be there all the same.
fn check_of_a_longer_list(previous: &Value, check: impl Fn(&Value) -> Result<Value>) -> Result<()> {
    let more = ["198.51.100.7/24", "2001:db8:51::7/64"];
    let ips = previous["ips"].as_array().context("no addresses")?;
    let given = ips.len();
    let mut previous = previous.clone();
    let added = more.map(|address| json!({"address": address, "interface": 0}));
    previous["ips"] = ips.iter().cloned().chain(added).collect();
    check(&previous)?;
    for index in 0..given {
        let mut lacking = previous.clone();
        lacking["ips"].as_array_mut().context("no addresses")?.remove(index);
        let error = refusal(check(&lacking))?;
        ensure!(error.code == 102, "{lacking}: {error}");
    }
    Ok(())
}

/// Under main plugins of every age: `bridge` and `ptp` hand on what comes in the version of their own configuration.
pub(crate) fn i_02_a_result_has_the_version_of_its_caller_and_no_interfaces() -> Result<()> {
    let host = lone_node()?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let pod = Namespace::create("pod")?;
    let route = |to: &str| json!({"dst": to, "mtu": 1400, "advmss": 1360, "priority": 10});
    let netconf = json!({"name": "lan", "type": "bridge", "ipam": {
        "type": "twill-ipam",
        "mode": "standalone",
        "runDir": run_dir.path(),
        "assignIPv6": true,
        // One address of each family beside the gateway's.
        "pools": [{"cidr": "10.20.0.4/31", "blockSize": 31}, {"cidr": "fd00:20::4/127", "blockSize": 127}],
        "routes": [route("0.0.0.0/0"), route("::/0")],
    }});
    let runtime = Runtime::new(json!({}), vec![programs::directory()?]);
    let attachment = Attachment::pod("prod", "web", "c1", &pod.path().display().to_string());
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let call = |verb: &str, previous: Option<&Value>| -> Result<Value> {
            let mut netconf = netconf.clone();
            netconf["cniVersion"] = json!(version);
            if let Some(previous) = previous {
                netconf["prevResult"] = previous.clone();
            }
            let environment = attachment.environment(verb, &[]);
            let stdin = netconf.to_string();
            let output = runtime.execute(&host, "twill-ipam", &environment, stdin.as_bytes())?;
            cni::parse(verb, "twill-ipam", &output)
        };
        let result = call("ADD", None)?;
        is_of_version(&result, version)?;
        ensure!(call("ADD", None)? == result, "another answer in {version}");
        // What the main plugin makes of it.
        let mut whole = result;
        whole["interfaces"] = json!([{"name": "eth0", "sandbox": attachment.netns}]);
        for ip in whole["ips"].as_array_mut().into_iter().flatten() {
            ip["interface"] = json!(0);
        }
        if version >= "0.4.0" {
            call("CHECK", Some(&whole))?;
            check_of_a_longer_list(&whole, |previous| call("CHECK", Some(previous)))?;
        }
        call("DEL", Some(&whole))?;
        if version >= "0.4.0" {
            let error = refusal(call("CHECK", Some(&whole)))?;
            ensure!(error.code == 102, "{error}");
        }
        call("DEL", None)?;
    }
    Ok(())
}

/// The main plugin has its addresses and is at work with them: nothing here shows whether it goes on.
pub(crate) fn g_09_a_gc_amid_an_add_of_another_plugin_takes_no_address() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.bare_pod("node1", "young")?;
    let node = lab.node("node1")?;
    let alone_in = tempfile::tempdir_in("/run")?;
    let pools = json!([{"cidr": "10.20.0.7/32", "blockSize": 32}]);
    let alone = json!({"type": "twill-ipam", "mode": "standalone", "runDir": alone_in.path(),
        "gateway": false, "pools": pools});
    for ipam in [ipam(&lab)?, alone] {
        let ptp = json!({"cniVersion": "1.1.0", "name": "lan", "type": "ptp", "ipam": ipam});
        as_ipam(node, "ADD", pod.attachment(), &ptp)?;
        let gc = |grace: Option<u64>| -> Result<String> {
            let log = alone_in.path().join("log");
            fs::write(&log, "")?;
            let mut told = keeping(&ptp, &[]);
            told["ipam"]["logLevel"] = json!("info");
            told["ipam"]["logFile"] = json!(log);
            if let Some(grace) = grace {
                told["ipam"]["gcGraceSeconds"] = json!(grace);
            }
            forwarded(node, "GC", &told)?;
            Ok(fs::read_to_string(&log)?)
        };
        for grace in [None, Some(3600), None] {
            let said = gc(grace)?;
            ensure!(said.contains("left alone") && !said.contains("removed"), "{said}");
        }
        let said = gc(Some(0))?;
        ensure!(said.contains("removed"), "{said}");
        let said = gc(Some(0))?;
        ensure!(!said.contains("removed"), "{said}");
    }
    Ok(())
}

/// The default route of each family is by the gateway, and addresses have these lengths.
fn is_in_its_subnets(pod: &Namespace, gateways: [&str; 2], lengths: [&str; 2]) -> Result<()> {
    for (family, gateway, length) in
        [("-4", gateways[0], lengths[0]), ("-6", gateways[1], lengths[1])]
    {
        let routes = pod.ip(&format!("{family} route show default"))?;
        ensure!(routes.contains(&format!("via {gateway} ")), "no {gateway}: {routes}");
        let shown = pod.ip(&format!("{family} -oneline address show dev eth0 scope global"))?;
        ensure!(shown.contains(length), "no {length}: {shown}");
    }
    Ok(())
}

/// Both addresses of a pod answer.
fn answers(from: &Namespace, result: &Value) -> Result<()> {
    let addresses = cni::addresses(result)?;
    ensure!(addresses.len() == 2, "{result}");
    addresses
        .into_iter()
        .try_for_each(|address| wait_for("an answer", SECONDS, || ping::reaches(from, address)))
}

/// A store of the plugin's own under `bridge`: two families, lengths and gateways by configuration.
pub(crate) fn another_main_plugin_needs_no_daemon() -> Result<()> {
    let host = lone_node()?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let ipam = json!({
        "type": "twill-ipam",
        "mode": "standalone",
        "runDir": run_dir.path(),
        "gcGraceSeconds": 0,
        "assignIPv6": true,
        "pools": [{"cidr": "10.20.0.4/30", "blockSize": 30}, {"cidr": "fd00:20::4/126", "blockSize": 126}],
        "prefixLength": 24,
        "prefixLengthIPv6": 64,
        "gateway": ["10.20.0.5", "fd00:20::5"],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
    let list = json!({"cniVersion": "1.0.0", "name": "lan", "plugins": [bridge]});
    let path = vec![programs::directory()?, programs::REFERENCE_PLUGINS.into()];
    let runtime = Runtime::new(list, path);
    let pods = (0..4)
        .map(|number| Namespace::create(format!("pod{number}")))
        .collect::<Result<Vec<_>>>()?;
    let attachment = |number: usize| {
        let netns = pods[number].path().display().to_string();
        Attachment::pod("prod", "web", &format!("c{number}"), &netns)
    };
    let mut results = Vec::new();
    for (number, pod) in pods.iter().enumerate().take(3) {
        let result = runtime.add(&host, &attachment(number))?;
        answers(&host, &result)?;
        is_in_its_subnets(pod, ["10.20.0.5", "fd00:20::5"], ["/24", "/64"])?;
        runtime.check(&host, &attachment(number))?;
        results.push(result);
    }
    answers(&pods[0], &results[2])?;
    // The gateway is nobody's, so three of four are all there are.
    let error = refusal(runtime.add(&host, &attachment(3)))?;
    ensure!(error.code == 101 && error.message.contains("10.20.0.4/30"), "{error}");
    // A runtime's DEL follows; what the main plugin has left is in the way else.
    runtime.del(&host, &attachment(3))?;

    // As the newest versions of main plugins call it.
    let plugin = |verb: &str, change: &dyn Fn(&mut Value)| -> Result<()> {
        let mut netconf = runtime.conflist()["plugins"][0].clone();
        netconf["name"] = json!("lan");
        netconf["cniVersion"] = json!("1.1.0");
        change(&mut netconf);
        let environment = [("CNI_COMMAND".to_owned(), verb.to_owned())];
        let stdin = netconf.to_string();
        let output = runtime.execute(&host, "twill-ipam", &environment, stdin.as_bytes())?;
        cni::parse(verb, "twill-ipam", &output).map(drop)
    };
    plugin("STATUS", &|_| {})?;
    let kept = attachment(1);
    plugin("GC", &|netconf| *netconf = keeping(netconf, &[&kept]))?;
    runtime.check(&host, &kept)?;
    let next = runtime.add(&host, &attachment(3))?;
    answers(&host, &next)?;
    for number in [1, 3] {
        runtime.del(&host, &attachment(number))?;
    }
    plugin("STATUS", &|netconf| netconf["ipam"]["statusOnExhaustion"] = json!(true))
}

/// With the daemon: the first address of each block is the gateway.
pub(crate) fn bridge_gets_both_families_from_us() -> Result<()> {
    let mut lab = crash::node()?;
    let mut ipam = ipam(&lab)?;
    ipam["assignIPv6"] = json!(true);
    ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
    use_plugin(&mut lab, bridge, "1.0.0")?;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let mut pod = lab.bare_pod("node1", name)?;
        let result = lab.attach(&mut pod)?;
        let node = lab.node("node1")?;
        answers(node.namespace(), &result)?;
        node.runtime().check(node.namespace(), pod.attachment())?;
        pods.push((pod, result));
    }
    let blocks = lab.node("node1")?.blocks()?;
    let mut gateways = Vec::new();
    for ip in pods[0].1["ips"].as_array().context("no ips")? {
        let gateway = ip["gateway"].as_str().context("no gateway")?;
        let is_first = |block: &String| block.split('/').next() == Some(gateway);
        ensure!(blocks.iter().any(is_first), "{gateway}, and the blocks are {blocks:?}");
        gateways.push(gateway.to_owned());
    }
    ensure!(gateways.len() == 2, "{gateways:?}");
    is_in_its_subnets(pods[0].0.namespace(), [&gateways[0], &gateways[1]], ["/26", "/122"])?;
    answers(pods[0].0.namespace(), &pods[1].1)?;
    for (pod, _) in pods {
        lab.delete_pod(pod)?;
    }
    ensure!(in_use(&lab)? == 0, "{} addresses are in use", in_use(&lab)?);
    Ok(())
}
