//! D: what a DEL does.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use twill_tests::{netns::Namespace, ping, programs, snapshot::Snapshot, wait::wait_for};

use super::{Call, Site, delegate};
use crate::{
    SECONDS,
    plugin::{one_node, refusal},
};

pub(crate) fn d_01_a_namespace_that_is_gone_is_success() -> Result<()> {
    let mut site = Site::new()?;
    for gone in ["", "/run/netns/nobody"] {
        site.add()?;
        site.call("DEL")?.set("CNI_NETNS", gone).run()?.silent()?;
        site.as_new()?;
    }
    // With the link in it.
    site.add()?;
    let call = site.runtime.first_call("DEL", &site.attachment("c1"))?;
    site.pod = Namespace::create("next")?;
    let output =
        site.runtime.execute(&site.host, "twill", &call.environment, call.stdin().as_bytes())?;
    super::Answer(output).silent()?;
    site.as_new()
}

/// containerd takes a failed DEL for a success if its text has words like "no such file or directory" or
/// "not found". Whatever would make a plugin say that is a success here, to every runtime.
pub(crate) fn o_07_no_error_of_a_del_is_left_to_be_forgiven() -> Result<()> {
    let site = Site::new()?;
    let file = site.run_dir.path().join("no-namespace");
    fs::write(&file, "")?;
    let below = file.join("below");
    for gone in [Path::new("/run/netns/nobody"), Path::new("/proc/4194304/ns/net"), &file, &below] {
        site.add()?;
        let call = site.call("DEL")?.set("CNI_NETNS", &gone.display().to_string());
        let call = call.set("CNI_PATH", "/nowhere");
        for _ in 0..2 {
            let answer = call.run()?;
            answer.silent().with_context(|| gone.display().to_string())?;
            ensure!(answer.stderr().is_empty(), "{answer:?}");
        }
        site.as_new()?;
    }
    // Nor is there a directory of a store, as of a node that has just been set up.
    let call = site.call("DEL")?.config("/runDir", json!(site.run_dir.path().join("never")));
    call.run()?.silent()?;
    site.as_new()
}

pub(crate) fn d_02_what_is_missing_is_success() -> Result<()> {
    let site = Site::new()?;
    // The interface, from either end.
    site.add()?;
    site.pod.ip("link del eth0")?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()?;
    // The store.
    site.add()?;
    fs::remove_dir_all(site.run_dir.path().join("ipam"))?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()?;
    // The previous result; or it is of no use.
    for previous in [Value::Null, json!({}), json!("garbage"), json!({"ips": 7})] {
        site.add()?;
        site.call("DEL")?.config("/prevResult", previous).run()?.silent()?;
        site.as_new()?;
    }
    Ok(())
}

pub(crate) fn d_03_del_may_be_repeated() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    for _ in 0..4 {
        site.call("DEL")?.run()?.silent()?;
    }
    site.as_new()
}

pub(crate) fn d_04_an_unknown_container_is_success() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    site.call_for("DEL", &site.attachment("nobody"))?.run()?.silent()?;
    site.call("CHECK")?.config("/prevResult", result).run()?.silent()?;
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn d_05_an_address_of_a_pool_that_is_gone_is_given_back() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let pools = json!([{"cidr": "10.30.0.0/24"}, {"cidr": "fd00:30::/64"}]);
    site.call("DEL")?.config("/ipam/pools", pools).run()?.silent()?;
    site.as_new()?;
    // Or no pool at all, and another version.
    site.add()?;
    let call = site.call("DEL")?.config("/ipam/pools", Value::Null);
    call.config("/cniVersion", json!("0.3.1")).run()?.silent()?;
    site.as_new()
}

/// Without `mode`, the pools say that there is no daemon. A DEL finds that out without them, too.
pub(crate) fn d_05_a_store_without_daemon_is_known_without_its_pools() -> Result<()> {
    let site = Site::new()?;
    site.call("ADD")?.config("/ipam/mode", Value::Null).run()?.object()?;
    let call = site.call("DEL")?.config("/ipam/mode", Value::Null);
    call.config("/ipam/pools", Value::Null).run()?.silent()?;
    ensure!(!site.run_dir.path().join("spool").exists(), "it was left to a daemon");
    site.as_new()
}

/// The address comes back as soon as anybody can use the store.
pub(crate) fn d_10_a_store_that_somebody_holds_costs_no_pod_and_no_address() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let lock = File::open(site.run_dir.path().join("ipam/owner.lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    site.call("DEL")?.config("/timeoutSeconds", json!(1)).run()?.silent()?;
    site.untouched()?;
    drop(lock);
    site.as_new()
}

/// The order does not matter to a caller; that the address comes back whatever the namespace is
/// does.
pub(crate) fn d_06_an_address_comes_back_without_the_namespace() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let file = site.run_dir.path().join("file");
    fs::write(&file, "")?;
    let call = site.call("DEL")?.set("CNI_NETNS", &file.display().to_string());
    call.run()?.silent()?;
    site.as_new()
}

/// Somebody has written over the alias of the link, which does not say any more whose it is: its name does.
pub(crate) fn d_06_an_overwritten_alias_keeps_no_link_with_an_address_that_is_free() -> Result<()> {
    let site = Site::new()?;
    let named = |host: &Namespace| -> Result<String> {
        let links = host.ip("-oneline link show type veth")?;
        let link = links.split([' ', '@']).find(|word| word.starts_with("twl"));
        link.map(str::to_owned).context("no link of a pod")
    };
    for netns in [None, Some("")] {
        site.add()?;
        site.host.ip(&format!("link set dev {} alias somebody", named(&site.host)?))?;
        let call = site.call("DEL")?;
        let call = netns.iter().fold(call, |call, netns| call.set("CNI_NETNS", netns));
        call.run()?.silent()?;
        site.as_new()?;
    }
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    node.namespace().ip(&format!("link set dev {} alias somebody", named(node.namespace())?))?;
    node.runtime().del(node.namespace(), pod.attachment())?;
    wait_for("the link to go", SECONDS, || {
        let links = node.namespace().ip("-oneline link show type veth")?;
        Ok((!links.contains("twl") && !links.contains("twd")).then_some(()))
    })?;
    ensure!(node.addresses_in_use()? == 0, "{} addresses are in use", node.addresses_in_use()?);
    Ok(())
}

pub(crate) fn d_07_a_late_del_leaves_the_next_sandbox_alone() -> Result<()> {
    let site = Site::new()?;
    let gone = Namespace::create("gone")?;
    let mut old = site.attachment("old");
    old.netns = gone.path().display().to_string();
    site.runtime.add(&site.host, &old)?;
    // The same pod, by name, has a new sandbox before the old one is deleted.
    let result = site.add()?;
    for _ in 0..2 {
        site.runtime.del(&site.host, &old)?;
    }
    site.call("CHECK")?.run()?.silent()?;
    ping::reaches(&site.host, twill_tests::cni::addresses(&result)?[0])?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}

/// The path of a process leads to the node's own namespace once another process has its number.
pub(crate) fn d_01_the_nodes_own_namespace_is_as_good_as_gone() -> Result<()> {
    let mut site = Site::new()?;
    // Where the pod's end would be looked for, if it were the pod's.
    site.host.ip_batch(
        "link add eth0 up type veth peer name router\naddr add 192.0.2.1/24 dev eth0\n",
    )?;
    site.before = Snapshot::namespace(&site.host)?;
    let own = site.host.path().display().to_string();
    site.add()?;
    for _ in 0..2 {
        site.call("DEL")?.set("CNI_NETNS", &own).run()?.silent()?;
        site.untouched()?;
    }
    site.as_new()?;
    // By a daemon, and by the IPAM plugin alone.
    let mut lab = one_node()?;
    let pods = [lab.add_pod("node1", "web")?, lab.add_pod("node1", "api")?];
    let node = lab.node("node1")?;
    let own = node.namespace().path().display().to_string();
    for (pod, program) in pods.iter().zip(["twill", "twill-ipam"]) {
        let call = Call::of(node.runtime(), node.namespace(), "DEL", pod.attachment())?;
        let call = call.set("CNI_NETNS", &own);
        let call = match program {
            "twill" => call,
            _ => call
                .config("/type", json!("ptp"))
                .config("/ipam/runDir", json!(node.dir().join("run"))),
        };
        call.run_as(Command::new(programs::find(program)?))?.silent()?;
    }
    let ipam = node.ctl_json(&["ipam", "show", "--show-blocks"])?;
    ensure!(ipam["blocks"][0]["used"] == 0, "{ipam}");
    Ok(())
}

/// The path leads to another pod's namespace by then, as one of a process does whose number is used
/// again. The link went with the pod's own, so nothing but the path says whose the address is.
pub(crate) fn d_01_an_address_comes_back_when_its_path_has_another_namespace() -> Result<()> {
    let mut lab = one_node()?;
    let (pod, other) = (lab.bare_pod("node1", "web")?, lab.bare_pod("node1", "other")?);
    let node = lab.node("node1")?;
    for (program, kind) in [("twill", "twill"), ("twill-ipam", "ptp")] {
        let site = Site::new()?;
        let path = site.run_dir.path().join("netns");
        // By our other name it is another network.
        let run = |call: Call<'_>, run_dir: &Path| {
            let call = call.set("CNI_NETNS", &path.display().to_string());
            let call = call.config("/type", json!(kind)).config("/name", json!(kind));
            let call = call.config("/ipam/runDir", json!(run_dir));
            call.run_as(Command::new(programs::find(program)?))
        };
        let run_dir = node.dir().join("run");
        let alone = |verb, container: &str| -> Result<_> {
            run(site.call_for(verb, &site.attachment(container))?, site.run_dir.path())
        };
        let by_daemon = |verb| -> Result<_> {
            run(Call::of(node.runtime(), node.namespace(), verb, pod.attachment())?, &run_dir)
        };
        let gone = Namespace::create("gone")?;
        symlink(gone.path(), &path)?;
        for daemon in [false, true] {
            if daemon { by_daemon("ADD")? } else { alone("ADD", "c1")? }.object()?;
            if program == "twill" {
                gone.ip("link del eth0")?;
            }
        }
        let used = || node.addresses_in_use();
        ensure!(used()? == 1, "{} addresses are in use", used()?);
        drop(gone);
        fs::remove_file(&path)?;
        symlink(other.namespace().path(), &path)?;
        alone("DEL", "c1")?.silent()?;
        by_daemon("DEL")?.silent()?;
        ensure!(used()? == 0, "{} addresses are in use", used()?);
        // There is one beside the gateway.
        match program {
            "twill" => site.as_new()?,
            _ => drop(alone("ADD", "c2")?.object()?),
        }
    }
    Ok(())
}

/// The same container under the same name, in the namespace that it has left.
pub(crate) fn d_07_a_late_del_leaves_the_containers_next_sandbox_alone() -> Result<()> {
    let site = Site::new()?;
    let left = Namespace::create("left")?;
    let mut old = site.attachment("c1");
    old.netns = left.path().display().to_string();
    site.runtime.add(&site.host, &old)?;
    let late = site.call_for("DEL", &old)?;
    let result = site.add()?;
    for _ in 0..2 {
        late.run()?.silent()?;
        site.call("CHECK")?.run()?.silent()?;
        ping::reaches(&site.host, twill_tests::cni::addresses(&result)?[0])?;
    }
    site.call("DEL")?.run()?.silent()?;
    site.as_new()?;

    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let late = Call::of(node.runtime(), node.namespace(), "DEL", pod.attachment())?;
    let next = Namespace::create("next")?;
    let mut attachment = pod.attachment().clone();
    attachment.netns = next.path().display().to_string();
    let result = node.runtime().add(node.namespace(), &attachment)?;
    late.run()?.silent()?;
    node.runtime().check(node.namespace(), &attachment)?;
    ping::reaches(node.namespace(), twill_tests::cni::addresses(&result)?[0])?;
    // Where the path of the container's own is gone, nothing says any more that it is another's.
    let stranger = Namespace::create("stranger")?;
    let _alive = File::open(next.path())?;
    drop(next);
    late.set("CNI_NETNS", &stranger.path().display().to_string()).run()?.silent()?;
    let ipam = node.ctl_json(&["ipam", "show", "--show-blocks"])?;
    ensure!(ipam["blocks"][0]["used"] == 0, "{ipam}");
    Ok(())
}

/// Where no store says for which namespace the link was made: another plugin gave its addresses, or no daemon runs.
pub(crate) fn d_07_a_late_del_leaves_it_alone_also_where_no_store_can_be_asked() -> Result<()> {
    let site = Site::new()?;
    let directory = delegate::plugin(&site, delegate::WITNESS)?;
    let left = Namespace::create("left")?;
    let mut old = site.attachment("c1");
    old.netns = left.path().display().to_string();
    let by_another = |call: Call<'_>| {
        let call = call.config("/ipam", json!({"type": "witness"}));
        call.set("CNI_PATH", &directory.display().to_string()).run()
    };
    by_another(site.call_for("ADD", &old)?)?.object()?;
    by_another(site.call("ADD")?)?.object()?;
    by_another(site.call_for("DEL", &old)?)?.silent()?;
    ping::reaches(&site.host, [10, 79, 0, 5].into())?;
    let calls = fs::read_to_string(directory.join("calls"))?;
    ensure!(!calls.contains("DEL"), "its address was given back: {calls}");
    by_another(site.call("DEL")?)?.silent()?;
    site.as_new()?;
    // Amid the ADD of the newer sandbox: the result of the one before is the runtime's still, and the link has no
    // routes yet; or no alias.
    let before = by_another(site.call_for("ADD", &old)?)?.object()?;
    let newer = by_another(site.call("ADD")?)?.object()?;
    let late = || {
        Ok::<_, anyhow::Error>(site.call_for("DEL", &old)?.config("/prevResult", before.clone()))
    };
    let link = newer["interfaces"][0]["name"].as_str().context("no name")?;
    for change in ["route del 10.79.0.5", &format!("link set dev {link} alias \"\"")] {
        site.host.ip_batch(&format!("{change}\n"))?;
        by_another(late()?)?.silent()?;
        site.host.ip(&format!("link show {link}"))?;
    }
    by_another(site.call("DEL")?)?.silent()?;
    site.as_new()?;
    // An annotation gave its address.
    let by_nobody = |call: Call<'_>| {
        let key = "cni.projectcalico.org/ipAddrsNoIpam";
        let asked = json!({"io.kubernetes.cri.pod-annotations": {key: "[\"192.0.2.5\"]"}});
        let call = call.config("/featureControl", json!({"ipAddrsNoIpam": true}));
        call.config("/runtimeConfig", asked).run()
    };
    by_nobody(site.call_for("ADD", &old)?)?.object()?;
    by_nobody(site.call("ADD")?)?.object()?;
    by_nobody(site.call_for("DEL", &old)?)?.silent()?;
    ping::reaches(&site.host, [192, 0, 2, 5].into())?;
    by_nobody(site.call("DEL")?)?.silent()?;
    site.as_new()?;
    // The pod has moved its end on, which the runtime's memory of the result tells from a newer sandbox.
    let result = by_another(site.call("ADD")?)?.object()?;
    let nested = Namespace::create("nested")?;
    site.pod.ip(&format!("link set eth0 netns {}", nested.name()))?;
    by_another(site.call("DEL")?)?.silent()?;
    ensure!(
        site.host.ip("-o link show type veth")?.contains("@if"),
        "nobody could know it, and it is gone"
    );
    by_another(site.call("DEL")?.config("/prevResult", result))?.silent()?;
    let calls = fs::read_to_string(directory.join("calls"))?;
    ensure!(calls.ends_with("ADD\nDEL\n"), "its address was not given back: {calls}");
    site.as_new()?;

    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let next = Namespace::create("next")?;
    let mut attachment = pod.attachment().clone();
    attachment.netns = next.path().display().to_string();
    let result = node.runtime().add(node.namespace(), &attachment)?;
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    let late = Call::of(node.runtime(), node.namespace(), "DEL", pod.attachment())?;
    late.config("/timeoutSeconds", json!(1)).run()?.silent()?;
    ping::reaches(node.namespace(), twill_tests::cni::addresses(&result)?[0])?;
    lab.node_mut("node1")?.start()?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), &attachment)?;
    node.runtime().del(node.namespace(), &attachment)?;
    ensure!(node.addresses_in_use()? == 0, "{} addresses are in use", node.addresses_in_use()?);
    Ok(())
}

pub(crate) fn d_09_del_fails_only_where_it_has_to() -> Result<()> {
    let site = Site::new()?;
    for (pointer, value) in [
        ("/mtu", json!("big")),
        ("/logLevel", json!("loud")),
        ("/timeoutSeconds", json!(-1)),
        ("/dns", json!([])),
        ("/ipam/assignIPv4", json!(7)),
        ("/ipam/pools", json!([{"cidr": "10.0.0.1/24"}])),
        ("/prevResult", json!({"cniVersion": "9.9.9"})),
    ] {
        site.add()?;
        site.call("DEL")?.config(pointer, value).run()?.silent()?;
        site.untouched()?;
    }
    site.add()?;
    // Another directory or mode would leave the address where it is.
    let call = site.call("DEL")?.config("/runDir", json!(7));
    call.run()?.refused(7, &["runDir"])?;
    let call = site.call("DEL")?.config("/ipam/mode", json!("alone"));
    call.run()?.refused(7, &["ipam.mode"])?;
    site.call("DEL")?.config("/ipam", json!(7)).run()?.refused(7, &["ipam is 7"])?;
    site.call("DEL")?.config("/ipam/type", json!(7)).run()?.refused(7, &["ipam.type"])?;
    // Under another main plugin the directory stands in `ipam`.
    let call = site.call("DEL")?.config("/type", json!("ptp")).config("/ipam/runDir", json!(7));
    call.run_as(Command::new(programs::find("twill-ipam")?))?.refused(7, &["ipam.runDir"])?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}

pub(crate) fn d_10_a_daemon_that_is_down_costs_no_pod_and_no_address() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let late = lab.bare_pod("node1", "late")?;
    lab.node_mut("node1")?.kill9()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let patient = runtime.conflist().clone();
    let mut hurried = patient.clone();
    hurried["plugins"][0]["timeoutSeconds"] = json!(1);
    runtime.set_conflist(hurried);

    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), late.attachment()))?;
    ensure!(error.code == 11 && error.message.contains("twilld.sock"), "{error}");
    let address = pod.address()?;
    let start = Instant::now();
    lab.delete_pod(pod)?;
    ensure!(start.elapsed() < SECONDS, "DEL took {:?}", start.elapsed());
    let spool: Vec<_> = fs::read_dir(node.dir().join("run/spool"))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.as_ref().is_ok_and(|name| !name.starts_with('.')))
        .collect::<std::io::Result<_>>()?;
    ensure!(spool.len() == 1, "{spool:?}");
    let route = node.namespace().ip(&format!("route get {address}"));
    ensure!(route.is_err(), "the deleted pod has a route still: {route:?}");

    lab.node_mut("node1")?.start()?;
    let node = lab.node("node1")?;
    wait_for("the spool to be worked off", SECONDS, || {
        let ipam = node.ctl_json(&["ipam", "show", "--show-blocks"])?;
        ensure!(ipam["blocks"][0]["used"] == 0, "{ipam}");
        Ok(())
    })?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(patient);
    let node = lab.node("node1")?;
    node.runtime().add(node.namespace(), late.attachment())?;
    node.runtime().del(node.namespace(), late.attachment())
}
