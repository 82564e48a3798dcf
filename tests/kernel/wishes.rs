//! What a pod may ask for: addresses, hardware address, pools, routes; and both families.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{lab::Lab, ping, wait::wait_for};

use crate::{
    SECONDS, crash,
    plugin::{one_node, refusal},
};

/// Changes the one plugin of node1's network.
fn configure(lab: &mut Lab, change: impl FnOnce(&mut Value)) -> Result<()> {
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    change(&mut conflist["plugins"][0]);
    runtime.set_conflist(conflist);
    Ok(())
}

fn annotations(list: &[(&str, &str)]) -> Value {
    let list = list
        .iter()
        .map(|(key, value)| (format!("cni.projectcalico.org/{key}"), Value::from(*value)));
    json!({"io.kubernetes.cri.pod-annotations": list.collect::<serde_json::Map<_, _>>()})
}

pub(crate) fn an_address_is_asked_for_in_each_of_the_places() -> Result<()> {
    let mut lab = one_node()?;
    let asked = [
        ("runtime", json!({"runtimeConfig": {"ips": ["10.10.7.5/20"]}}), "10.10.7.5"),
        ("args", json!({"args": {"cni": {"ips": ["10.10.7.6"]}}}), "10.10.7.6"),
        (
            "annotation",
            json!({"runtimeConfig": annotations(&[("ipAddrs", "[\"10.10.7.7\"]")])}),
            "10.10.7.7",
        ),
    ];
    for (name, config, address) in asked {
        let plain = lab.node("node1")?.runtime().conflist().clone();
        configure(&mut lab, |plugin| {
            for (key, value) in config.as_object().into_iter().flatten() {
                plugin[key] = value.clone();
            }
        })?;
        let pod = lab.add_pod("node1", name)?;
        ensure!(pod.address()?.to_string() == address, "{name}: {}", pod.address()?);
        ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
        // The second who asks is told who has it.
        let other = lab.bare_pod("node1", &format!("{name}-2"))?;
        let node = lab.node("node1")?;
        let error = refusal(node.runtime().add(node.namespace(), other.attachment()))?;
        ensure!(error.code == 103 && error.message.contains(address), "{error}");
        ensure!(error.message.contains(&pod.attachment().container_id), "{error}");
        lab.node_mut("node1")?.runtime_mut().set_conflist(plain);
        lab.delete_pod(pod)?;
    }
    // All in one block of the node, which was claimed for the first of them.
    ensure!(lab.node("node1")?.blocks()? == ["10.10.7.0/26"], "{:?}", lab.node("node1")?.blocks()?);

    let mut pod = lab.bare_pod("node1", "by-args")?;
    pod.attachment_mut().args.push(("IP".into(), "10.10.7.9".into()));
    pod.attachment_mut().args.push(("MAC".into(), "02:00:00:00:00:09".into()));
    lab.attach(&mut pod)?;
    ensure!(pod.address()?.to_string() == "10.10.7.9");
    let link = pod.namespace().ip("link show eth0")?;
    ensure!(link.contains("02:00:00:00:00:09"), "{link}");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;

    let outside = lab.bare_pod("node1", "outside")?;
    let mut attachment = outside.attachment().clone();
    attachment.args.push(("IP".into(), "192.0.2.9".into()));
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), &attachment))?;
    ensure!(error.code == 7 && error.message.contains("192.0.2.9"), "{error}");
    Ok(())
}

/// A freed address can be had again as soon as its old link is gone, and the ADD waits for that.
pub(crate) fn a_pod_takes_its_address_along() -> Result<()> {
    let mut lab = one_node()?;
    configure(&mut lab, |plugin| plugin["runtimeConfig"] = json!({"ips": ["10.10.7.5"]}))?;
    for name in ["first", "second", "third"] {
        let pod = lab.add_pod("node1", name)?;
        ensure!(pod.address()?.to_string() == "10.10.7.5");
        lab.delete_pod(pod)?;
    }
    Ok(())
}

pub(crate) fn annotations_choose_the_pool_and_the_hardware_address() -> Result<()> {
    let mut lab = one_node()?;
    lab.write_resource(
        "blue.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: blue}\nspec: {cidr: \
         10.20.0.0/24, blockSize: 28, nodeSelector: \"env == 'blue'\"}\n",
    )?;
    let wanted = [("ipv4pools", "[\"blue\"]"), ("hwAddr", "02:00:00:00:00:07")];
    configure(&mut lab, |plugin| plugin["runtimeConfig"] = annotations(&wanted))?;
    let mut pod = lab.bare_pod("node1", "web")?;
    let result = wait_for("the new pool", SECONDS, || lab.attach(&mut pod))?;
    ensure!(pod.address()?.to_string().starts_with("10.20.0."), "{result}");
    ensure!(result["interfaces"][1]["mac"] == "02:00:00:00:00:07", "{result}");

    // A namespace among the manifests says it for its pods.
    configure(&mut lab, |plugin| plugin["runtimeConfig"] = json!({}))?;
    lab.write_resource(
        "prod.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: prod\n  annotations: \
         {cni.projectcalico.org/ipv4pools: '[\"blue\"]'}\n",
    )?;
    wait_for("the namespace's pool", SECONDS, || {
        let pod = lab.add_pod("node1", "by-namespace")?;
        let address = pod.address()?.to_string();
        lab.delete_pod(pod)?;
        ensure!(address.starts_with("10.20.0."), "{address}");
        Ok(())
    })
}

pub(crate) fn an_address_without_ipam_is_behind_a_switch() -> Result<()> {
    let mut lab = one_node()?;
    let wanted = annotations(&[("ipAddrsNoIpam", "[\"192.0.2.5\"]")]);
    configure(&mut lab, |plugin| plugin["runtimeConfig"] = wanted.clone())?;
    let pod = lab.bare_pod("node1", "refused")?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
    ensure!(error.code == 2 && error.message.contains("featureControl.ipAddrsNoIpam"), "{error}");
    configure(&mut lab, |plugin| plugin["feature_control"] = json!({"ip_addrs_no_ipam": true}))?;
    let pod = lab.add_pod("node1", "web")?;
    ensure!(pod.address()?.to_string() == "192.0.2.5");
    let node = lab.node("node1")?;
    ping::reaches(node.namespace(), pod.address()?)?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    lab.delete_pod(pod)?;
    // It is the addresses alone that no pool is asked for.
    configure(&mut lab, |plugin| plugin["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24"}]))?;
    let pod = lab.add_pod("node1", "routed")?;
    let routes = pod.namespace().ip("route show 198.51.100.0/24")?;
    ensure!(routes.contains("via 169.254.1.1"), "{routes}");
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    lab.delete_pod(pod)
}

pub(crate) fn routes_and_name_servers_of_the_configuration() -> Result<()> {
    let mut lab = one_node()?;
    configure(&mut lab, |plugin| {
        plugin["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "mtu": 1400, "priority": 7}]);
        plugin["dns"] = json!({"nameservers": ["10.96.0.10"]});
    })?;
    let mut pod = lab.bare_pod("node1", "web")?;
    let result = lab.attach(&mut pod)?;
    ensure!(result["dns"]["nameservers"][0] == "10.96.0.10", "{result}");
    ensure!(
        result["routes"][1]
            == json!({"dst": "192.0.2.0/24", "gw": "169.254.1.1", "mtu": 1400, "priority": 7}),
        "{result}"
    );
    let routes = pod.namespace().ip("route show 192.0.2.0/24")?;
    ensure!(routes.contains("via 169.254.1.1") && routes.contains("mtu 1400"), "{routes}");
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    pod.namespace().ip("route del 192.0.2.0/24")?;
    let error = refusal(node.runtime().check(node.namespace(), pod.attachment()))?;
    ensure!(error.message.contains("192.0.2.0/24"), "{error}");
    configure(&mut lab, |plugin| {
        plugin["ipam"]["routes"] = json!([{"dst": "192.0.2.1/24", "gw": "10.0.0.1"}]);
        plugin["runtimeConfig"] = json!({"dns": {"servers": ["192.0.2.53"]}});
    })?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
    for needle in ["ipam.routes[0].dst", "192.0.2.0/24", "ipam.routes[0].gw"] {
        ensure!(error.message.contains(needle), "no {needle} in {error}");
    }
    configure(&mut lab, |plugin| plugin["ipam"]["routes"] = json!([]))?;
    let mut other = lab.bare_pod("node1", "dns")?;
    let result = lab.attach(&mut other)?;
    ensure!(result["dns"]["nameservers"][0] == "192.0.2.53", "{result}");
    Ok(())
}

/// Both families, and IPv6 alone: no wait for duplicate address detection on either end.
pub(crate) fn ipv6_pods_answer_the_first_packet() -> Result<()> {
    let mut lab = crash::node()?;
    for (name, ipv4, count) in [("dual", true, 2), ("six", false, 1)] {
        configure(&mut lab, |plugin| {
            plugin["ipam"]["assignIPv4"] = json!(ipv4);
            plugin["ipam"]["assignIPv6"] = json!(true);
        })?;
        let mut pod = lab.bare_pod("node1", name)?;
        let result = lab.attach(&mut pod)?;
        ensure!(pod.addresses().len() == count, "{result}");
        let six = *pod.addresses().last().context("no address")?;
        ping::reaches(lab.node("node1")?.namespace(), six)?;
        let addresses = pod.namespace().ip("-6 addr show dev eth0")?;
        ensure!(!addresses.contains("tentative"), "{addresses}");
        let forwarding = pod
            .namespace()
            .enter(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding"))??;
        ensure!(forwarding.trim() == "0", "the pod is a router");
        let gateway: IpAddr = "fe80::1".parse()?;
        let routes = pod.namespace().ip("-6 route show default")?;
        ensure!(routes.contains(&format!("via {gateway}")), "{routes}");
        let node = lab.node("node1")?;
        node.runtime().check(node.namespace(), pod.attachment())?;
        lab.delete_pod(pod)?;
    }
    // With detection on either end the first packet would wait for a second at least, so none may
    // take as long. The target is for the median, as the machine may be busy with other things.
    let mut waits = Vec::new();
    for number in 0..7 {
        let mut pod = lab.bare_pod("node1", &format!("pod{number}"))?;
        lab.attach(&mut pod)?;
        let added = Instant::now();
        let six = *pod.addresses().last().context("no address")?;
        ping::reaches(lab.node("node1")?.namespace(), six)?;
        waits.push(added.elapsed());
        lab.delete_pod(pod)?;
    }
    waits.sort();
    ensure!(waits[3] < Duration::from_millis(50), "the first answers came after {waits:?}");
    ensure!(waits[6] < Duration::from_secs(1), "an end was in detection: {waits:?}");
    // Both or none: without an IPv6 pool, no IPv4 address is taken either.
    lab.remove_resource("pool6.yaml")?;
    configure(&mut lab, |plugin| plugin["ipam"]["assignIPv4"] = json!(true))?;
    wait_for("the pool to be gone", SECONDS, || {
        let pools = lab.node("node1")?.ctl_json(&["ipam", "show"])?["pools"].clone();
        ensure!(pools.as_array().is_some_and(|pools| pools.len() == 1), "{pools}");
        Ok(())
    })?;
    let pod = lab.bare_pod("node1", "none")?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
    ensure!(error.code == 100 && error.message.contains("IPv6"), "{error}");
    let used = node.addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are in use");
    Ok(())
}
