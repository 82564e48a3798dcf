//! The plugin as a runtime calls it, on a node with a daemon and without one.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use twill_ipam_store::names_any;
use twill_tests::{
    cni::{self, Attachment, CniError, Runtime},
    lab::{Lab, Pod, Topology},
    netns::Namespace,
    ping, programs,
    snapshot::Snapshot,
    wait::wait_for,
};

use crate::SECONDS;

/// One node with one pool, its daemon running.
pub(crate) fn one_node() -> Result<Lab> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .label("rack", "rack1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24");
    topology.samples(&["ippool-app.yaml", "ipamconfig-default.yaml"])?;
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// A node outside any lab, with a link towards the world.
pub(crate) fn lone_node() -> Result<Namespace> {
    let node = Namespace::create("node")?;
    node.ip_batch(
        "link add uplink up type veth peer name cable\naddr add 192.168.2.11/24 dev uplink\n",
    )?;
    Ok(node)
}

/// A network without a daemon.
pub(crate) fn standalone(version: &str, run_dir: &Path, pools: &Value) -> Value {
    let ipam = json!({"type": "twill-ipam", "mode": "standalone", "pools": pools});
    json!({
        "cniVersion": version,
        "name": "lab",
        "plugins": [{"type": "twill", "runDir": run_dir, "ipam": ipam}],
    })
}

/// The error of a call that has to fail.
pub(crate) fn refusal<T>(result: Result<T>) -> Result<CniError> {
    let error = result.err().context("the call succeeded")?;
    error.downcast().context("not a CNI error")
}

pub(crate) fn a_pod_whose_namespace_is_gone_is_deleted() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let mut attachment = pod.attachment().clone();
    drop(pod);
    attachment.netns = String::new();
    let node = lab.node("node1")?;
    node.runtime().del(node.namespace(), &attachment)?;
    wait_for("no address in use", SECONDS, || {
        let ipam = node.ctl_json(&["ipam", "show", "--show-blocks"])?;
        ensure!(ipam["blocks"][0]["used"] == 0, "{ipam}");
        Ok(())
    })
}

/// A container was started again under its old id while no daemon ran, after an ADD without a link. The
/// runtime deletes both: the note of one DEL is not lost to that of the other.
pub(crate) fn dels_of_two_namespaces_wait_for_the_daemon() -> Result<()> {
    let mut lab = one_node()?;
    let (first, second) = (lab.add_pod("node1", "first")?, lab.bare_pod("node1", "second")?);
    let node = lab.node("node1")?;
    let link = node.namespace().route_to(first.address()?)?;
    let link = link.split(' ').find(|word| word.starts_with("twl")).context("no link")?;
    node.namespace().ip(&format!("link del {link}"))?;
    lab.node_mut("node1")?.kill9()?;
    let mut again = first.attachment().clone();
    again.netns = second.attachment().netns.clone();
    let node = lab.node("node1")?;
    for attachment in [first.attachment(), &again] {
        node.runtime().del(node.namespace(), attachment)?;
    }
    lab.node_mut("node1")?.start()?;
    let used = lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are in use");
    Ok(())
}

pub(crate) fn a_pod_gets_the_mtu_of_the_uplink() -> Result<()> {
    let mut lab = one_node()?;
    lab.node_mut("node1")?.stop()?;
    // Not what a link has by itself.
    lab.node("node1")?.namespace().ip("link set eth0 mtu 9000")?;
    lab.node_mut("node1")?.start()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["cniVersion"] = json!("1.1.0");
    runtime.set_conflist(conflist);
    let mut pod = lab.bare_pod("node1", "plain")?;
    let result = lab.attach(&mut pod)?;
    ensure!(pod.namespace().ip("link show eth0")?.contains("mtu 9000"));
    for end in [0, 1] {
        ensure!(result["interfaces"][end]["mtu"] == 9000, "{result}");
    }
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["mtu"] = json!(1400);
    runtime.set_conflist(conflist);
    let pod = lab.add_pod("node1", "small")?;
    ensure!(pod.namespace().ip("link show eth0")?.contains("mtu 1400"));
    Ok(())
}

/// The first pod that a node with this address gets has the MTU that its uplink had before the
/// daemon started; later ones have what it has by then.
fn mtu_of_pods(address: &str, pool: &str, conflist: impl FnOnce(&mut Value)) -> Result<()> {
    let mut topology = Topology::new();
    topology.node("node1").on("seg-a", address);
    topology.resource(
        "pool.yaml",
        &format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool}}\nspec: \
             {{cidr: \"{pool}\"}}\n"
        ),
    );
    let mut lab = topology.build()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut changed = runtime.conflist().clone();
    conflist(&mut changed);
    runtime.set_conflist(changed);
    lab.node("node1")?.namespace().ip_batch("link set eth0 mtu 9000\n")?;
    lab.start_all()?;
    let mut numbers = 0..;
    let mut mtu = |lab: &mut Lab| -> Result<String> {
        let pod = lab.add_pod("node1", &format!("p{}", numbers.next().unwrap_or(0)))?;
        let link = pod.namespace().ip("link show eth0")?;
        lab.delete_pod(pod)?;
        Ok(link)
    };
    let first = mtu(&mut lab)?;
    ensure!(first.contains("mtu 9000"), "{first}");
    lab.node("node1")?.namespace().ip_batch("link set eth0 mtu 4000\n")?;
    wait_for("a pod with the new MTU", SECONDS, || {
        let later = mtu(&mut lab)?;
        ensure!(later.contains("mtu 4000"), "{later}");
        Ok(())
    })
}

pub(crate) fn pods_follow_the_mtu_of_the_uplink() -> Result<()> {
    mtu_of_pods("192.168.2.11/24", "10.30.0.0/24", |_| {})?;
    mtu_of_pods("2001:db8:2::11/64", "fd00:30::/112", |conflist| {
        conflist["plugins"][0]["ipam"]["assignIPv4"] = json!(false);
        conflist["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
    })
}

pub(crate) fn standalone_mode_needs_no_daemon() -> Result<()> {
    let node = lone_node()?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let conflist = |pools| standalone("1.0.0", run_dir.path(), &pools);
    let small = json!([{"cidr": "10.20.0.0/30", "blockSize": 31}]);
    let runtime = Runtime::new(conflist(small), vec![programs::directory()?]);
    let before = Snapshot::namespace(&node)?;
    let mut pods = Vec::new();
    let mut seen = BTreeSet::new();
    for number in 0..4 {
        let pod = Namespace::create(format!("pod{number}"))?;
        let netns = pod.path().display().to_string();
        let attachment = Attachment::pod("prod", "web", &format!("{number:064x}"), &netns);
        let addresses = cni::addresses(&runtime.add(&node, &attachment)?)?;
        ping::reaches(&node, addresses[0])?;
        ensure!(seen.insert(addresses[0]), "{} twice", addresses[0]);
        pods.push((pod, attachment));
    }
    ping::reaches(&pods[0].0, *seen.last().context("no pods")?)?;

    let extra = Namespace::create("extra")?;
    let attachment = Attachment::pod("prod", "web", "f00", &extra.path().display().to_string());
    let error = refusal(runtime.add(&node, &attachment))?;
    ensure!(error.code == 101 && error.message.contains("10.20.0.0/30"), "{error}");
    runtime.check(&node, &pods[0].1)?;
    for (_, attachment) in &pods {
        runtime.del(&node, attachment)?;
    }
    let left = before.differences(&Snapshot::namespace(&node)?);
    let left: Vec<_> =
        left.iter().filter(|l| !l.contains("169.254.1.1") && !l.contains("anycast")).collect();
    ensure!(left.is_empty(), "{left:#?}");

    // Without pools it says what is missing.
    let nothing = Runtime::new(conflist(json!([])), vec![programs::directory()?]);
    let error = refusal(nothing.add(&node, &attachment))?;
    ensure!(error.code == 7 && error.message.contains("ipam.pools"), "{error}");
    Ok(())
}

/// The store is lost under running pods: what their links tell is enough to go on, without a daemon
/// too.
pub(crate) fn standalone_mode_rebuilds_a_lost_store() -> Result<()> {
    let node = lone_node()?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let pools = json!([{"cidr": "10.20.0.0/29", "blockSize": 29}]);
    let conflist = standalone("1.0.0", run_dir.path(), &pools);
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let namespaces = (0..4)
        .map(|number| Namespace::create(format!("pod{number}")))
        .collect::<Result<Vec<_>>>()?;
    let attachments: Vec<_> = namespaces
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let netns = pod.path().display().to_string();
            Attachment::pod("prod", "web", &format!("{number:064x}"), &netns)
        })
        .collect();
    let add = |number: usize| -> Result<std::net::IpAddr> {
        let addresses = cni::addresses(&runtime.add(&node, &attachments[number])?)?;
        ping::reaches(&node, addresses[0])?;
        Ok(addresses[0])
    };
    let mut given = BTreeSet::from([add(0)?, add(1)?]);
    let first = *given.first().context("no address")?;
    std::fs::remove_dir_all(run_dir.path().join("ipam"))?;
    given.insert(add(2)?);
    ensure!(add(0)? == first, "the first has another address than {first}");
    ensure!(given.len() == 3, "given twice: {given:?}");
    for (pod, address) in namespaces.iter().zip(&given) {
        let inside = pod.ip("address show eth0")?;
        ensure!(inside.contains(&address.to_string()), "{address}: {inside}");
        ping::reaches(&node, *address)?;
    }
    // Nor does a DEL or a CHECK with a lost store leave the others without their records.
    std::fs::remove_dir_all(run_dir.path().join("ipam"))?;
    runtime.check(&node, &attachments[0])?;
    runtime.del(&node, &attachments[1])?;
    given.insert(add(3)?);
    ensure!(given.len() == 4, "given twice: {given:?}");
    for attachment in &attachments {
        runtime.del(&node, attachment)?;
    }
    let links = node.ip("-oneline link show")?;
    ensure!(!links.contains("twl"), "a link is left: {links}");
    Ok(())
}

/// An ADD that comes while the daemon restarts waits for it instead of failing.
pub(crate) fn an_add_waits_for_a_daemon_that_starts() -> Result<()> {
    let mut lab = one_node()?;
    lab.node_mut("node1")?.stop()?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let mut netconf = node.runtime().conflist()["plugins"][0].clone();
    netconf["cniVersion"] = json!("1.0.0");
    netconf["name"] = json!("pods");
    let mut command = Command::new(programs::find("twill")?);
    command
        .envs(pod.attachment().environment("ADD", &[]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut call = node.namespace().spawn(&mut command)?;
    let mut stdin = call.stdin.take().context("no input")?;
    stdin.write_all(netconf.to_string().as_bytes())?;
    drop(stdin);
    // It waits in a pause between two attempts: asleep, with all its input read.
    let state = format!("/proc/{}/stat", call.id());
    wait_for("the call to wait", SECONDS, || {
        let stat = std::fs::read_to_string(&state)?;
        ensure!(stat.contains(") S "), "{stat}");
        Ok(())
    })?;
    lab.node_mut("node1")?.start()?;
    let result = cni::parse("ADD", "twill", &call.wait_with_output()?)?;
    let address = cni::addresses(&result)?[0];
    ping::reaches(lab.node("node1")?.namespace(), address)
}

/// The default mode with pools of its own: who has the store is asked, also by a DEL, while it is away or starts.
pub(crate) fn automatic_mode_leaves_the_store_to_its_daemon() -> Result<()> {
    let mut lab = one_node()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    let ipam = json!({"type": "twill-ipam", "pools": [{"cidr": "10.20.0.0/24"}]});
    conflist["plugins"][0]["ipam"] = ipam;
    runtime.set_conflist(conflist.clone());
    let is_of_the_daemon = |pod: &Pod| -> Result<()> {
        let address = pod.address()?.to_string();
        ensure!(!address.starts_with("10.20."), "{address} is of the configuration's pools");
        Ok(())
    };
    let first = lab.add_pod("node1", "first")?;
    is_of_the_daemon(&first)?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), first.attachment())?;

    // It was killed, so its socket is there still.
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.runtime_mut().set_timeout(1);
    let mut second = lab.bare_pod("node1", "second")?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), second.attachment()))?;
    ensure!(error.code == 11 && error.message.contains("twilld.sock"), "{error}");
    lab.delete_pod(first)?;
    let run_dir = lab.node("node1")?.dir().join("run");
    ensure!(!run_dir.join("ipam/standalone").exists(), "the store was used without its daemon");
    ensure!(names_any(&run_dir.join("spool"), "")?, "no note for the daemon");

    // One that starts has the lock, and has no socket before it has read the spool.
    lab.node_mut("node1")?.start()?;
    lab.node_mut("node1")?.stop()?;
    ensure!(!run_dir.join("twilld.sock").exists(), "its socket is there after its end");
    let open = |path: &str| File::options().write(true).open(run_dir.join(path));
    let lock = |path: &str| -> Result<Flock<File>> {
        let locked = Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock);
        Ok(locked.map_err(|(_, errno)| errno)?)
    };
    let reading = lock("spool/.lock")?;
    lab.node_mut("node1")?.launch()?;
    wait_for("the daemon to own the store", SECONDS, || match lock("ipam/owner.lock") {
        Ok(_) => bail!("nobody has the lock"),
        Err(_) => Ok(()),
    })?;
    let log = run_dir.join("twill.log");
    let plugin = &mut conflist["plugins"][0];
    plugin["timeoutSeconds"] = json!(20);
    plugin["logLevel"] = json!("trace");
    plugin["logFile"] = json!(log);
    lab.node_mut("node1")?.runtime_mut().set_conflist(conflist);
    thread::scope(|scope| {
        let adding = scope.spawn(|| lab.attach(&mut second));
        let tried = wait_for("the call to try the lock again", SECONDS, || {
            let tries = std::fs::read_to_string(&log)?.matches("opening the address store").count();
            ensure!(tries > 1, "{tries} tries");
            Ok(())
        });
        drop(reading);
        let added = adding.join().map_err(|_| anyhow!("the ADD panicked"))?;
        tried.and(added.map(drop))
    })?;
    is_of_the_daemon(&second)?;
    lab.node_mut("node1")?.wait_ready()?;
    let used = lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 1, "{used} addresses are in use");
    Ok(())
}
