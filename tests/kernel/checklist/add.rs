//! A: what an ADD does.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Runtime},
    lab::Pod,
    netns::Namespace,
    ping, programs,
    snapshot::Snapshot,
    wait::wait_for,
};

use super::Site;
use crate::{
    SECONDS,
    plugin::{one_node, refusal},
};

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

/// Both interfaces answer for their own addresses, whichever has the default route.
fn both_answer(host: &Namespace, results: [&Value; 2]) -> Result<()> {
    for result in results {
        for address in cni::addresses(result)? {
            wait_for("an answer", SECONDS, || ping::reaches(host, address))
                .with_context(|| format!("of {address}"))?;
        }
    }
    Ok(())
}

/// The pod's rules that are not the kernel's own.
fn rules(pod: &Namespace) -> Result<Vec<String>> {
    let own = ["0:", "32766:", "32767:"];
    let mut rules = Vec::new();
    for family in ["-4", "-6"] {
        let shown = pod.ip(&format!("{family} rule show"))?;
        let others = shown.lines().filter(|line| !own.iter().any(|own| line.starts_with(own)));
        rules.extend(others.map(str::to_owned));
    }
    Ok(rules)
}

/// Multus: the second interface of a pod is in the first one's namespace, where there is a default route.
pub(crate) fn a_10_a_second_interface_in_one_namespace_works() -> Result<()> {
    let site = Site::new()?;
    let (eth0, mut net1) = (site.attachment("c1"), site.attachment("c1"));
    net1.ifname = "net1".to_owned();
    let add = |attachment| site.runtime.add(&site.host, attachment);
    let (first, second) = (add(&eth0)?, add(&net1)?);
    both_answer(&site.host, [&first, &second])?;
    ensure!(add(&net1)? == second, "the same ADD again: {second}");
    let check = |attachment| site.runtime.check(&site.host, attachment);
    check(&eth0)?;
    check(&net1)?;
    // The first one is the way out, but for what comes from the second one's addresses.
    let address = cni::addresses(&second)?[0];
    for (from, link) in [(String::new(), "dev eth0"), (format!(" from {address}"), "dev net1")] {
        let way = site.pod.ip(&format!("route get 192.0.2.1{from}"))?;
        ensure!(way.contains(link), "{way}");
    }
    let metrics = |result: &Value| -> Vec<bool> {
        let routes = result["routes"].as_array().into_iter().flatten();
        routes.map(|route| route["priority"].is_u64()).collect()
    };
    ensure!(metrics(&first) == [false; 2] && metrics(&second) == [true; 2], "{first} {second}");

    let rule = format!("from {address}");
    let of_address = |rules: Vec<String>| rules.into_iter().find(|line| line.contains(&rule));
    ensure!(of_address(rules(&site.pod)?).is_some(), "no rule for {address}");
    site.pod.ip(&format!("rule del {rule}"))?;
    let error = refusal(check(&net1))?;
    ensure!(error.code == 102 && error.message.contains(&address.to_string()), "{error}");

    // Each goes by itself, and the other is the way out then.
    let del = |attachment| site.runtime.del(&site.host, attachment);
    del(&net1)?;
    ensure!(rules(&site.pod)?.is_empty(), "left: {:?}", rules(&site.pod)?);
    both_answer(&site.host, [&first, &first])?;
    let second = add(&net1)?;
    del(&eth0)?;
    both_answer(&site.host, [&second, &second])?;
    let way = site.pod.ip("route get 192.0.2.1")?;
    ensure!(way.contains("dev net1"), "{way}");
    let first = add(&eth0)?;
    both_answer(&site.host, [&first, &second])?;
    del(&eth0)?;
    del(&net1)?;
    ensure!(rules(&site.pod)?.is_empty(), "left: {:?}", rules(&site.pod)?);
    site.as_new()
}

/// What makes a router of a namespace, in each family.
const ROUTER: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

/// A container that somebody has made a router goes on as one when it gets a second interface. Its first
/// interface makes none of it, whatever else is there and not up.
pub(crate) fn a_10_a_second_interface_leaves_a_router_one() -> Result<()> {
    let site = Site::new()?;
    let is = |key: &str| -> Result<String> {
        let file = Path::new("/proc/sys/net").join(key);
        Ok(site.pod.enter(|| fs::read_to_string(&file))??.trim().to_owned())
    };
    for key in ROUTER {
        site.pod.sysctl(key, "1")?;
    }
    // Tunnel drivers leave links like these in every namespace.
    site.pod.ip_batch("link add spare0 type veth peer name spare1\n")?;
    let (eth0, mut net1) = (site.attachment("c1"), site.attachment("c1"));
    net1.ifname = "net1".to_owned();
    let first = site.runtime.add(&site.host, &eth0)?;
    for key in ROUTER.into_iter().chain(["ipv4/conf/eth0/forwarding"]) {
        ensure!(is(key)? == "0", "the pod is a router by {key}");
    }
    site.pod.ip_batch("link del spare0\n")?;

    // A machine behind it that the node reaches through it.
    let behind = Namespace::create("behind")?;
    site.pod.ip_batch("link add inside up type veth peer name outside netns behind\n")?;
    site.pod.ip_batch("addr add 192.0.2.1/24 dev inside\n")?;
    behind.ip_batch("addr add 192.0.2.2/24 dev outside\nlink set outside up\n")?;
    behind.ip_batch("route add default via 192.0.2.1\n")?;
    let name = first["interfaces"][0]["name"].as_str().context("no name")?;
    let gateway = cni::addresses(&first)?[0];
    site.host.ip(&format!("route add 192.0.2.0/24 via {gateway} dev {name}"))?;
    for key in ROUTER {
        site.pod.sysctl(key, "1")?;
    }
    let machine = "192.0.2.2".parse()?;
    wait_for("the machine behind the pod", SECONDS, || ping::reaches(&site.host, machine))?;
    let second = site.runtime.add(&site.host, &net1)?;
    ping::reaches(&site.host, machine)?;
    // Nor is the new interface one that does not take part.
    for key in ROUTER.into_iter().chain(["ipv4/conf/eth0/forwarding", "ipv4/conf/net1/forwarding"])
    {
        ensure!(is(key)? == "1", "{key} is {}", is(key)?);
    }
    both_answer(&site.host, [&first, &second])?;
    site.host.ip("route del 192.0.2.0/24")?;
    site.runtime.del(&site.host, &net1)?;
    site.runtime.del(&site.host, &eth0)?;
    site.pod.ip_batch("link del inside\n")?;
    site.as_new()
}

/// The same with a daemon, which deletes links later, and from another pod; a third one, too.
pub(crate) fn a_10_interfaces_of_one_pod_are_reached_from_another() -> Result<()> {
    let mut lab = one_node()?;
    let other = lab.add_pod("node1", "other")?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let attachments = ["eth0", "net1", "net2"].map(|ifname| {
        let mut attachment = pod.attachment().clone();
        ifname.clone_into(&mut attachment.ifname);
        attachment
    });
    for _ in 0..2 {
        for attachment in &attachments {
            let result = node.runtime().add(node.namespace(), attachment)?;
            both_answer(other.namespace(), [&result, &result])?;
            both_answer(node.namespace(), [&result, &result])?;
        }
        for attachment in &attachments {
            node.runtime().check(node.namespace(), attachment)?;
            node.runtime().del(node.namespace(), attachment)?;
        }
        ensure!(rules(pod.namespace())?.is_empty(), "left: {:?}", rules(pod.namespace())?);
    }
    ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    Ok(())
}

/// Another plugin's interface is the pod's way out, and ours an additional one.
pub(crate) fn a_10_a_link_stands_beside_another_plugins_default_route() -> Result<()> {
    let site = Site::new()?;
    let data = site.run_dir.path().join("theirs");
    let ipam = json!({"type": "host-local", "dataDir": data, "subnet": "10.77.0.0/24",
        "routes": [{"dst": "0.0.0.0/0"}]});
    let theirs = json!({"cniVersion": "1.0.0", "name": "theirs",
        "plugins": [{"type": "ptp", "ipam": ipam}]});
    let theirs = Runtime::new(theirs, vec![programs::REFERENCE_PLUGINS.into()]);
    let (eth0, mut net1) = (site.attachment("c1"), site.attachment("c1"));
    net1.ifname = "net1".to_owned();
    let first = theirs.add(&site.host, &eth0)?;
    let second = site.runtime.add(&site.host, &net1)?;
    both_answer(&site.host, [&first, &second])?;
    theirs.check(&site.host, &eth0)?;
    site.runtime.check(&site.host, &net1)?;
    let way = site.pod.ip("route get 192.0.2.1")?;
    ensure!(way.contains("dev eth0"), "{way}");
    site.runtime.del(&site.host, &net1)?;
    both_answer(&site.host, [&first, &first])?;
    theirs.del(&site.host, &eth0)?;
    ensure!(rules(&site.pod)?.is_empty(), "left: {:?}", rules(&site.pod)?);
    Ok(())
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
    // The kernel refuses the second route in the pod. Nothing was done for the node then.
    let twice = json!([{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]);
    let call = site.call("ADD")?.config("/ipam/routes", twice);
    call.run()?.refused(104, &["192.0.2.0/24"])?;
    let left = site.before.differences(&Snapshot::namespace(&site.host)?);
    ensure!(left.is_empty(), "{left:#?}");
    site.as_new()
}

/// The same where the daemon gives addresses, which are its own to take back.
pub(crate) fn a_12_a_daemon_gets_the_address_of_a_failed_add_back() -> Result<()> {
    let mut lab = one_node()?;
    let living = lab.add_pod("node1", "living")?;
    let mut pod = lab.bare_pod("node1", "web")?;
    pod.namespace().ip_batch("link add eth0 up type veth peer name foreign\n")?;
    let foreign = pod.namespace().ip("link show dev eth0")?;
    let node = lab.node("node1")?;
    let before = Snapshot::namespace(node.namespace())?;
    for _ in 0..3 {
        let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
        ensure!(error.code == 103 && error.message.contains("eth0"), "{error}");
        ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    }
    // Answers to what was never given: A-13.
    for _ in 0..2 {
        node.runtime().del(node.namespace(), pod.attachment())?;
    }
    ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    ensure!(
        pod.namespace().ip("link show dev eth0")? == foreign,
        "somebody else's eth0 was changed"
    );
    wait_for("the node to be as before", SECONDS, || {
        let left = before.differences(&Snapshot::namespace(node.namespace())?);
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })?;
    pod.namespace().ip_batch("link del eth0\n")?;
    lab.attach(&mut pod)?;
    ping::reaches(living.namespace(), pod.address()?)?;
    lab.delete_pod(pod)?;
    let used = lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 1, "{used} addresses are in use");
    Ok(())
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
