//! A: what an ADD does.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use twill_tests::{cni, lab::Pod, netns::Namespace, ping, snapshot::Snapshot, wait::wait_for};

use super::Site;
use crate::{SECONDS, plugin::one_node};

pub(crate) fn a_01_an_interface_that_is_there_is_an_error() -> Result<()> {
    let site = Site::new()?;
    site.pod.ip_batch("link add eth0 up type veth peer name foreign\n")?;
    let before = site.pod.ip("link show dev eth0")?;
    site.call("ADD")?.run()?.refused(103, &["eth0"])?;
    ensure!(site.pod.ip("link show dev eth0")? == before, "somebody else's eth0 was changed");
    site.call("DEL")?.run()?.silent()?;
    ensure!(site.pod.ip("link show dev eth0")? == before, "DEL took somebody else's eth0");
    site.pod.ip_batch("link del eth0\n")?;
    site.as_new()
}

pub(crate) fn a_02_a_name_that_the_kernel_would_change_is_an_error() -> Result<()> {
    let site = Site::new()?;
    // The kernel takes `%d` for "the next free number".
    for name in ["eth%d", "%d", "a%b"] {
        let call = |verb: &str| -> Result<_> { Ok(site.call(verb)?.set("CNI_IFNAME", name)) };
        let ipv4 = call("ADD")?.config("/ipam/assignIPv6", json!(false));
        ipv4.run()?.refused(4, &["CNI_IFNAME", name])?;
        call("ADD")?.run()?.refused(4, &["CNI_IFNAME", name])?;
        call("DEL")?.run()?.silent()?;
    }
    site.call("ADD")?.set("CNI_IFNAME", "lo").run()?.refused(103, &["lo"])?;
    site.as_new()
}

pub(crate) fn a_03_a_previous_result_is_not_dropped() -> Result<()> {
    let site = Site::new()?;
    let previous = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
    let answer = site.call("ADD")?.config("/prevResult", previous).run()?;
    answer.refused(7, &["prevResult", "first plugin"])?;
    site.as_new()
}

pub(crate) fn a_09_the_same_add_again_gives_the_same_answer() -> Result<()> {
    let mut lab = one_node()?;
    let before = Snapshot::namespace(lab.node("node1")?.namespace())?;
    let mut pod = lab.bare_pod("node1", "web")?;
    let first = lab.attach(&mut pod)?;
    let again = lab.attach(&mut pod)?;
    ensure!(first == again, "{first} is not {again}");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    lab.detach(&pod)?;
    lab.detach(&pod)?;
    // The same namespace and interface at once, while the old link may still be on its way out.
    let third = lab.attach(&mut pod)?;
    ensure!(third["ips"] != first["ips"], "an address that is just freed is used again: {third}");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    // The same container in another namespace keeps its address, and the old one loses it.
    let fresh = Namespace::create("fresh")?;
    let mut moved = pod.attachment().clone();
    moved.netns = fresh.path().display().to_string();
    let node = lab.node("node1")?;
    let fourth = node.runtime().add(node.namespace(), &moved)?;
    ensure!(fourth["ips"] == third["ips"], "{fourth} is not {third}");
    ping::reaches(node.namespace(), pod.address()?)?;
    ensure!(pod.namespace().ip("link show dev eth0").is_err(), "the old namespace has it still");
    node.runtime().del(node.namespace(), &moved)?;
    wait_for("the node to be as before, but for its block", SECONDS, || {
        let left = before.differences(&Snapshot::namespace(lab.node("node1")?.namespace())?);
        ensure!(left.len() == 1 && left[0].contains("unreachable"), "{left:#?}");
        Ok(())
    })
}

pub(crate) fn a_10_interfaces_of_one_container_are_apart() -> Result<()> {
    let site = Site::new()?;
    let first = site.add()?;
    let address = cni::addresses(&first)?[0];
    // In one namespace there can be one default route: the second is refused, the first stays.
    let answer = site.call("ADD")?.set("CNI_IFNAME", "eth1").run()?;
    answer.error()?;
    ensure!(site.pod.ip("link show dev eth1").is_err(), "eth1 is left");
    site.call("CHECK")?.run()?.silent()?;
    site.call("DEL")?.set("CNI_IFNAME", "eth1").run()?.silent()?;
    ping::reaches(&site.host, address)?;
    // Another namespace.
    let other = Namespace::create("another")?;
    let second = |verb: &str| -> Result<_> {
        let call = site.call(verb)?.set("CNI_IFNAME", "eth1");
        Ok(call.set("CNI_NETNS", &other.path().display().to_string()))
    };
    let result = second("ADD")?.run()?.object()?;
    ensure!(cni::addresses(&result)?[0] != address, "one address twice");
    second("DEL")?.run()?.silent()?;
    ping::reaches(&site.host, address)?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}

pub(crate) fn a_11_sixteen_adds_at_once_get_sixteen_addresses() -> Result<()> {
    let mut lab = one_node()?;
    let pods: Vec<_> =
        (0..16).map(|n| lab.bare_pod("node1", &format!("p{n}"))).collect::<Result<_>>()?;
    let node = lab.node("node1")?;
    let results: Vec<Result<Value>> = std::thread::scope(|scope| {
        let call = |pod: &'_ Pod| node.runtime().add(node.namespace(), pod.attachment());
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(move || call(pod))).collect();
        calls
            .into_iter()
            .map(|call| call.join().unwrap_or_else(|_| Err(anyhow!("a caller panicked"))))
            .collect()
    });
    let mut seen = BTreeSet::new();
    for result in results {
        for address in cni::addresses(&result?)? {
            ensure!(seen.insert(address), "{address} was given twice");
            ping::reaches(node.namespace(), address)?;
        }
    }
    ensure!(seen.len() == 16, "{seen:?}");
    Ok(())
}

pub(crate) fn a_12_a_failed_add_gives_its_address_back() -> Result<()> {
    let site = Site::new()?;
    site.pod.ip_batch("link add eth0 up type veth peer name foreign\n")?;
    // More often than there are addresses.
    for number in 0..5 {
        let attachment = site.attachment(&format!("failed{number}"));
        let answer = site.call_for("ADD", &attachment)?.run()?;
        answer.refused(103, &["eth0"])?;
        ensure!(!answer.stderr().contains("WARN"), "{answer:?}");
    }
    site.pod.ip_batch("link del eth0\n")?;
    site.as_new()
}

pub(crate) fn a_13_del_follows_a_failed_add() -> Result<()> {
    let site = Site::new()?;
    let broken = |verb: &str| -> Result<_> { Ok(site.call(verb)?.config("/mtu", json!("big"))) };
    broken("ADD")?.run()?.refused(7, &["mtu"])?;
    broken("DEL")?.run()?.silent()?;
    site.pod.ip_batch("link add eth0 up type veth peer name foreign\n")?;
    site.call("ADD")?.run()?.error().context("ADD beside another eth0")?;
    site.call("DEL")?.run()?.silent()?;
    site.pod.ip_batch("link del eth0\n")?;
    site.as_new()
}
