//! C and S: CHECK and STATUS.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use twill_ipam_store::boot_id;
use twill_tests::{netns::Namespace, wait::wait_for};

use super::{Call, Site};
use crate::{SECONDS, plugin::one_node};

pub(crate) fn c_01_check_needs_version_0_4() -> Result<()> {
    let site = Site::of_version("1.0.0")?;
    site.add()?;
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1"] {
        let answer = site.call("CHECK")?.config("/cniVersion", json!(version)).run()?;
        answer.refused(1, &["config version does not allow CHECK", version])?;
    }
    site.call("CHECK")?.run()?.silent()
}

pub(crate) fn c_02_check_needs_a_previous_result() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let call = site.call("CHECK")?.config("/prevResult", Value::Null);
    call.run()?.refused(7, &["prevResult"])
}

pub(crate) fn c_03_check_finds_what_is_missing_and_bears_what_is_added() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    // What later plugins in a list do.
    site.pod.ip_batch(
        "addr add 198.51.100.7/24 dev eth0\nroute add 203.0.113.0/24 dev eth0\n\
         link set eth0 mtu 1400\nlink set eth0 address 02:00:00:00:00:07\n",
    )?;
    site.call("CHECK")?.run()?.silent()?;
    // What nobody may do.
    for (changes, word) in [
        ("addr flush dev eth0 scope global", "lacks its address"),
        ("route del default", "0.0.0.0/0"),
        ("-6 route del default", "::/0"),
        ("link set eth0 down", "down"),
        ("link set eth0 down\nlink set eth0 name eth9", "no interface eth0"),
        ("link del eth0", "no link"),
    ] {
        site.call("DEL")?.run()?.silent()?;
        site.add()?;
        site.call("CHECK")?.run()?.silent()?;
        changes.lines().try_for_each(|change| site.pod.ip(change).map(drop))?;
        site.call("CHECK")?.run()?.refused(102, &[word])?;
    }
    Ok(())
}

/// A later plugin may take away what it also takes out of the result, and add what is none of ours.
pub(crate) fn c_03_check_demands_what_the_previous_result_lists() -> Result<()> {
    let site = Site::new()?;
    let mut result = site.add()?;
    site.pod.ip("route del default")?;
    let check = |result: &Value| site.call("CHECK")?.config("/prevResult", result.clone()).run();
    check(&result)?.refused(102, &["0.0.0.0/0"])?;
    let routes = result["routes"].as_array_mut().context("routes")?;
    routes.retain(|route| route["dst"] != "0.0.0.0/0");
    check(&result)?.silent()?;
    // Another default route has taken its place.
    site.pod.ip_batch("addr add 198.51.100.7/24 dev eth0\nroute add default via 198.51.100.1\n")?;
    result["routes"]
        .as_array_mut()
        .context("routes")?
        .push(json!({"dst": "0.0.0.0/0", "gw": "198.51.100.1"}));
    let ips = result["ips"].as_array_mut().context("ips")?;
    ips.push(json!({"address": "198.51.100.7/24", "interface": 1}));
    check(&result)?.silent()?;
    // An address, and then all of them.
    let address = twill_tests::cni::addresses(&result)?[0];
    site.pod.ip(&format!("addr del {address}/32 dev eth0"))?;
    check(&result)?.refused(102, &[&address.to_string()])?;
    // An entry need not say of which interface it is.
    let mut bare = result.clone();
    bare["ips"][0].as_object_mut().context("an entry")?.remove("interface");
    check(&bare)?.refused(102, &[&address.to_string()])?;
    result["ips"].as_array_mut().context("ips")?.remove(0);
    check(&result)?.silent()?;
    result["ips"] = json!([]);
    check(&result)?.silent()?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}

pub(crate) fn c_04_check_looks_at_the_node_and_the_store() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    let address = twill_tests::cni::addresses(&result)?[0].to_string();
    let link = result["interfaces"][0]["name"].as_str().context("no link")?;
    for (taken, word) in [
        // Each by itself, and the next one with it.
        (format!("address del fe80::1/64 dev {link}"), "lacks the gateway's address fe80::1"),
        ("route del 169.254.1.1".to_owned(), "no route to 169.254.1.1"),
        (format!("route del {address}"), address.as_str()),
    ] {
        site.host.ip(&taken)?;
        site.call("CHECK")?.run()?.refused(102, &[word])?;
    }

    // The address is given back by the IPAM plugin alone, and the link stays.
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    let ipam = json!({"type": "twill-ipam", "mode": "daemon", "runDir": node.dir().join("run")});
    let netconf = json!({"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": ipam});
    let del = pod.attachment().environment("DEL", &[]);
    let given_back = node.runtime().execute(
        node.namespace(),
        "twill-ipam",
        &del,
        netconf.to_string().as_bytes(),
    )?;
    twill_tests::cni::parse("DEL", "twill-ipam", &given_back)?;
    let call = Call::of(node.runtime(), node.namespace(), "CHECK", pod.attachment())?;
    call.run()?.refused(102, &["has no address allocated"])?;

    // A daemon that is away is no fault of the pod.
    let pod = lab.add_pod("node1", "api")?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    let call = Call::of(node.runtime(), node.namespace(), "CHECK", pod.attachment())?;
    call.run()?.refused(11, &["twilld.sock"])
}

pub(crate) fn c_06_the_previous_result_is_of_this_namespace() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let other = Namespace::create("other")?.path().display().to_string();
    let call = site.call("CHECK")?.config("/prevResult/interfaces/1/sandbox", json!(other));
    call.run()?.refused(7, &["prevResult", "CNI_NETNS"])?;
    let call = site.call("CHECK")?.config("/prevResult/interfaces/1/name", json!("eth1"));
    call.run()?.refused(7, &["prevResult", "eth0"])
}

pub(crate) fn s_01_status_needs_version_1_1() -> Result<()> {
    for version in ["0.1.0", "0.4.0", "1.0.0"] {
        let answer = Site::of_version(version)?.call("STATUS")?.run()?;
        answer.refused(1, &["config version does not allow STATUS", version])?;
    }
    Ok(())
}

pub(crate) fn s_02_status_says_whether_an_add_would_succeed() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let status = |node: &twill_tests::lab::Node| {
        Call::of(node.runtime(), node.namespace(), "STATUS", pod.attachment())?.run()
    };
    status(node)?.silent()?;
    // A restart of the daemon is no reason to call the node not ready ...
    let heartbeat = node.dir().join("run/heartbeat");
    wait_for("the daemon's heartbeat", SECONDS, || {
        ensure!(fs::read_to_string(&heartbeat)?.trim() == boot_id()?, "another boot's");
        Ok(())
    })?;
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    status(node)?.silent()?;
    let beaten_at = |time: SystemTime| -> Result<()> {
        Ok(File::options().write(true).open(&heartbeat)?.set_modified(time)?)
    };
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    // The clock was set back since, by less than would tell.
    beaten_at(now + Duration::from_secs(60))?;
    status(node)?.silent()?;
    // An older daemon writes nothing into it.
    fs::write(&heartbeat, "")?;
    status(node)?.silent()?;
    // ... but that it is down for minutes is, whatever became of the clock, or that none ran since the node did.
    for time in [now - hour, now + hour] {
        beaten_at(time)?;
        status(node)?.refused(50, &["twilld.sock", "it was ready last"])?;
    }
    fs::write(&heartbeat, "5f6a9c1e-0000-4000-8000-2b1d4f3e7a90")?;
    status(node)?.refused(50, &["twilld.sock", "before the node started"])?;
    fs::remove_file(&heartbeat)?;
    status(node)?.refused(50, &["twilld.sock"])
}

/// It is there, and asks its peers to keep the node ready; but no ADD can speak with it.
pub(crate) fn s_02_a_daemon_of_another_release_is_told() -> Result<()> {
    let site = Site::new()?;
    let run_dir = site.run_dir.path();
    let listener = UnixListener::bind(run_dir.join("twilld.sock"))?;
    fs::write(run_dir.join("heartbeat"), "")?;
    let call =
        site.call("STATUS")?.config("/ipam", json!({"type": "twill-ipam", "mode": "daemon"}));
    let answer = thread::scope(|scope| {
        let daemon = scope.spawn(|| -> Result<()> {
            let (mut caller, _) = listener.accept()?;
            let welcome = json!({"protocol": 65535, "daemon": "9.0.0", "node": "n"}).to_string();
            caller.write_all(&u32::try_from(welcome.len())?.to_be_bytes())?;
            Ok(caller.write_all(welcome.as_bytes())?)
        });
        let answer = call.run();
        // It waits for a caller still, if there was none.
        drop(UnixStream::connect(run_dir.join("twilld.sock")));
        daemon.join().map_err(|_| anyhow!("the daemon panicked"))??;
        answer
    })?;
    answer.refused(50, &["9.0.0", "65535", "one release"])
}

pub(crate) fn s_03_a_full_node_is_ready() -> Result<()> {
    let site = Site::new()?;
    let other = Namespace::create("other")?;
    site.add()?;
    let mut second = site.attachment("c2");
    second.netns = other.path().display().to_string();
    site.runtime.add(&site.host, &second)?;
    site.call_for("ADD", &site.attachment("c3"))?.run()?.refused(101, &[])?;
    site.call("STATUS")?.run()?.silent()?;
    let status = site.call("STATUS")?.config("/statusOnExhaustion", json!(true));
    status.run()?.refused(50, &["add a pool"])?;
    site.call("DEL")?.run()?.silent()?;
    status.run()?.silent()
}

pub(crate) fn s_02_a_store_that_cannot_be_used_is_told() -> Result<()> {
    let site = Site::new()?;
    let file = site.run_dir.path().join("file");
    fs::write(&file, "")?;
    let call = site.call("STATUS")?.config("/runDir", json!(file));
    call.run()?.refused(50, &["no pod can get an address; start twilld, or repair runDir"])?;
    site.call("STATUS")?.run()?.silent()
}

/// It has the store for as long as it lives, so no ADD of this configuration could succeed. Calls without a
/// daemon take turns.
pub(crate) fn s_02_standalone_mode_beside_a_daemon_is_told() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let call = |verb: &str| -> Result<Call<'_>> {
        let call = Call::of(node.runtime(), node.namespace(), verb, pod.attachment())?;
        let call = call.config("/ipam/pools", json!([{"cidr": "10.20.0.0/24"}]));
        Ok(call.config("/ipam/mode", json!("standalone")).config("/timeoutSeconds", json!(1)))
    };
    call("ADD")?.run()?.refused(11, &["twilld of node"])?;
    call("STATUS")?.run()?.refused(50, &["ipam.mode", "\"daemon\"", "twilld of node"])?;

    let site = Site::new()?;
    site.add()?;
    let mut file = File::options().write(true).open(site.run_dir.path().join("ipam/owner.lock"))?;
    file.set_len(0)?;
    write!(file, "twill, standalone, pid 1")?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    site.call("STATUS")?.run()?.silent()
}

/// What a node without a daemon has left on its disk is no reason to think that it has none now.
pub(crate) fn s_02_a_node_that_lost_its_pools_waits_for_a_daemon() -> Result<()> {
    let site = Site::new()?;
    let call = |verb: &str, container: &str| -> Result<Call<'_>> {
        let call = site.call_for(verb, &site.attachment(container))?;
        Ok(call.config("/ipam/mode", Value::Null).config("/timeoutSeconds", json!(1)))
    };
    let result = call("ADD", "c1")?.run()?.object()?;
    let poor = |verb, container| {
        Ok::<_, anyhow::Error>(call(verb, container)?.config("/ipam/pools", Value::Null))
    };
    poor("ADD", "c2")?.run()?.refused(11, &["twilld.sock"])?;
    poor("STATUS", "c2")?.run()?.refused(50, &["twilld.sock"])?;
    // What it has given is known to it all the same.
    poor("CHECK", "c1")?.config("/prevResult", result).run()?.silent()?;
    let mut gc = poor("GC", "c1")?;
    gc.netconf["cni.dev/valid-attachments"] = json!([]);
    gc.run()?.silent()?;
    site.as_new()
}

/// By the very configuration with which STATUS is an error.
pub(crate) fn s_05_verbs_work_whatever_status_said() -> Result<()> {
    let site = Site::new()?;
    let other = Namespace::create("second")?;
    let call = |verb: &str, container: &str| -> Result<Call<'_>> {
        let mut attachment = site.attachment(container);
        if container != "c1" {
            attachment.netns = other.path().display().to_string();
        }
        let mut call = site.call_for(verb, &attachment)?;
        call.netconf["statusOnExhaustion"] = json!(true);
        Ok(call)
    };
    let results = [call("ADD", "c1")?.run()?.object()?, call("ADD", "c2")?.run()?.object()?];
    let full = || call("STATUS", "c1")?.run()?.refused(50, &["add a pool"]);
    full()?;
    ensure!(call("ADD", "c1")?.run()?.object()? == results[0], "another answer");
    for (container, result) in ["c1", "c2"].into_iter().zip(&results) {
        call("CHECK", container)?.config("/prevResult", result.clone()).run()?.silent()?;
    }
    let mut gc = call("GC", "c1")?;
    gc.netconf["cni.dev/valid-attachments"] = json!([
        {"containerID": "c1", "ifname": "eth0"},
        {"containerID": "c2", "ifname": "eth0"},
    ]);
    gc.run()?.silent()?;
    full()?;
    call("DEL", "c2")?.run()?.silent()?;
    // And an ADD needs no STATUS that has said so.
    call("ADD", "c3")?.run()?.object()?;
    full()?;
    for container in ["c3", "c1"] {
        call("DEL", container)?.run()?.silent()?;
    }
    site.as_new()
}

pub(crate) fn s_06_status_is_about_no_container() -> Result<()> {
    let site = Site::new()?;
    let mut call = site.call("STATUS")?;
    let container = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
    call.environment.retain(|variable, _| !container.contains(&variable.as_str()));
    call.run()?.silent()?;
    ensure!(call.set("CNI_IFNAME", "..").run()?.0.status.success(), "it looked at the name");
    Ok(())
}
