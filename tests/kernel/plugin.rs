//! The plugin as a runtime calls it, on a node with a daemon and without one.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
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

/// The error of a call that has to fail.
pub(crate) fn refusal<T>(result: Result<T>) -> Result<CniError> {
    let error = result.err().context("the call succeeded")?;
    error.downcast().context("not a CNI error")
}

pub(crate) fn a_result_is_of_the_asked_version_and_true() -> Result<()> {
    let mut lab = one_node()?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let runtime = lab.node_mut("node1")?.runtime_mut();
        let mut conflist = runtime.conflist().clone();
        conflist["cniVersion"] = json!(version);
        conflist["cniVersions"] = json!([version]);
        runtime.set_conflist(conflist);

        let mut pod = lab.bare_pod("node1", &format!("v{}", version.replace('.', "-")))?;
        let result = lab.attach(&mut pod)?;
        ensure!(result["cniVersion"] == version, "{result}");
        let [host, inside] = result["interfaces"].as_array().context("no interfaces")?.as_slice()
        else {
            anyhow::bail!("not two interfaces: {result}")
        };
        ensure!(host.get("sandbox").is_none(), "{result}");
        ensure!(inside["name"] == "eth0", "{result}");
        ensure!(inside["sandbox"] == pod.attachment().netns.as_str(), "{result}");
        let address = result["ips"][0]["address"].as_str().context("no address")?;
        ensure!(address.ends_with("/32"), "{result}");
        ensure!(result["ips"][0]["gateway"] == "169.254.1.1", "{result}");
        ensure!(result["ips"][0]["interface"] == 1, "{result}");
        ensure!(host.get("mtu").is_some() == (version == "1.1.0"), "{result}");

        // The kernel says the same.
        let eth0 = &pod.namespace().ip_json("address show dev eth0")?[0];
        ensure!(eth0["address"] == inside["mac"], "{eth0} but {result}");
        ensure!(
            format!("{}/32", eth0["addr_info"][0]["local"].as_str().unwrap_or_default()) == address
        );
        let routes = pod.namespace().ip("route show")?;
        ensure!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
        let node = lab.node("node1")?.namespace();
        let name = host["name"].as_str().context("the host's interface has no name")?;
        let route = node.ip(&format!("route show {}", pod.address()?))?;
        ensure!(route.contains(&format!("dev {name}")), "{route}");
        let alias = node.ip(&format!("link show {name}"))?;
        ensure!(
            alias.contains("alias") && alias.contains(&pod.attachment().container_id),
            "{alias}"
        );
        ping::reaches(node, pod.address()?)?;
        lab.delete_pod(pod)?;
    }
    Ok(())
}

pub(crate) fn version_needs_no_network() -> Result<()> {
    let host = Namespace::create("host")?;
    let runtime = Runtime::new(json!({}), vec![programs::directory()?]);
    let environment = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())];
    let output = runtime.execute(&host, "twill", &environment, br#"{"cniVersion":"0.4.0"}"#)?;
    let answer = cni::parse("VERSION", "twill", &output)?;
    ensure!(answer["cniVersion"] == "0.4.0", "{answer}");
    let supported = answer["supportedVersions"].as_array().context("no versions")?;
    ensure!(supported.contains(&json!("1.1.0")) && supported.contains(&json!("0.3.1")), "{answer}");
    Ok(())
}

pub(crate) fn add_and_del_may_be_repeated() -> Result<()> {
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
    lab.detach(&pod)?;
    wait_for("the node to be as before, but for its block", SECONDS, || {
        let left = before.differences(&Snapshot::namespace(lab.node("node1")?.namespace())?);
        ensure!(left.len() == 1 && left[0].contains("unreachable"), "{left:#?}");
        Ok(())
    })
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

pub(crate) fn check_finds_what_was_changed() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let check = || node.runtime().check(node.namespace(), pod.attachment());
    check()?;
    let address = pod.address()?;
    node.namespace().ip(&format!("route del {address}"))?;
    let error = refusal(check())?;
    ensure!(error.message.contains(&address.to_string()), "{error}");
    let host = node.own_routes("-4")?;
    ensure!(host.iter().all(|route| route["dst"] != address.to_string()), "{host:?}");

    // Inside the pod.
    let other = lab.add_pod("node1", "api")?;
    other.namespace().ip("route del default")?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().check(node.namespace(), other.attachment()))?;
    ensure!(error.message.contains("default") || error.message.contains("0.0.0.0/0"), "{error}");
    Ok(())
}

pub(crate) fn sixteen_adds_at_once_get_sixteen_addresses() -> Result<()> {
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

pub(crate) fn a_pod_gets_the_mtu_of_the_uplink() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "plain")?;
    ensure!(pod.namespace().ip("link show eth0")?.contains("mtu 1500"));
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["mtu"] = json!(1400);
    runtime.set_conflist(conflist);
    let pod = lab.add_pod("node1", "small")?;
    ensure!(pod.namespace().ip("link show eth0")?.contains("mtu 1400"));
    Ok(())
}

pub(crate) fn standalone_mode_needs_no_daemon() -> Result<()> {
    let node = Namespace::create("node")?;
    node.ip_batch(
        "link add uplink up type veth peer name cable\naddr add 192.168.2.11/24 dev uplink\n",
    )?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let conflist = |pools: Value, mode: &str| {
        let ipam = json!({"type": "twill-ipam", "mode": mode, "pools": pools});
        json!({
            "cniVersion": "1.0.0",
            "name": "lab",
            "plugins": [{"type": "twill", "runDir": run_dir.path(), "ipam": ipam}],
        })
    };
    let small = json!([{"cidr": "10.20.0.0/30", "blockSize": 31}]);
    let runtime = Runtime::new(conflist(small, "standalone"), vec![programs::directory()?]);
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
    let nothing = Runtime::new(conflist(json!([]), "standalone"), vec![programs::directory()?]);
    let error = refusal(nothing.add(&node, &attachment))?;
    ensure!(error.code == 7 && error.message.contains("ipam.pools"), "{error}");
    Ok(())
}

pub(crate) fn a_daemon_that_is_down_costs_no_pod_and_no_address() -> Result<()> {
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
    lab.delete_pod(pod)?;
    let spool: Vec<_> = std::fs::read_dir(node.dir().join("run/spool"))?
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

pub(crate) fn bad_calls_are_told_what_is_wrong() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let good = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "twill",
        "runDir": node.dir().join("run"),
        "ipam": {"type": "twill-ipam", "mode": "daemon"},
    });
    let with = |path: &str, value: Value| {
        let mut netconf = good.clone();
        netconf
            .pointer_mut(path.rsplit_once('/').map_or("", |(parent, _)| parent))
            .and_then(Value::as_object_mut)
            .map(|map| map.insert(path.rsplit('/').next().unwrap_or_default().to_owned(), value));
        netconf.to_string()
    };
    let environment = pod.attachment().environment("ADD", &[programs::directory()?]);
    let before = Snapshot::namespace(node.namespace())?;
    for (netconf, code, needles) in [
        (with("/mtu", json!("big")), 7, vec!["mtu", "\"big\"", "68 to 65535"]),
        (with("/ipam/mode", json!("deamon")), 7, vec!["ipam.mode", "deamon", "standalone"]),
        (with("/ipam/type", json!("no-such")), 7, vec!["ipam.type", "no-such", "CNI_PATH"]),
        (
            with("/ipam/pools", json!([{"cidr": "10.0.0.1/24"}])),
            7,
            vec!["ipam.pools[0].cidr", "10.0.0.0/24"],
        ),
        (with("/cniVersion", json!("9.9.9")), 1, vec!["9.9.9"]),
        (with("/name", json!("a b")), 7, vec!["network name", "a b"]),
        ("[1, 2]".to_owned(), 6, vec!["JSON object"]),
        ("{".to_owned(), 6, vec!["JSON object"]),
    ] {
        let output =
            node.runtime().execute(node.namespace(), "twill", &environment, netconf.as_bytes())?;
        let error = refusal(cni::parse("ADD", "twill", &output))?;
        ensure!(error.code == code, "{netconf}: {error}");
        for needle in needles {
            ensure!(format!("{error}").contains(needle), "{netconf}: no {needle:?} in {error}");
        }
    }
    // A key that nobody knows is no reason to fail a pod, and is told.
    let unknown = with("/ipam/asignIPv4", json!(true));
    let output =
        node.runtime().execute(node.namespace(), "twill", &environment, unknown.as_bytes())?;
    let result = cni::parse("ADD", "twill", &output)?;
    ensure!(!cni::addresses(&result)?.is_empty(), "{result}");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(stderr.contains("ipam.asignIPv4") && stderr.contains("assignIPv4"), "{stderr}");
    let environment = pod.attachment().environment("DEL", &[]);
    node.runtime().execute(node.namespace(), "twill", &environment, good.to_string().as_bytes())?;

    let mut nowhere = pod.attachment().clone();
    nowhere.netns = "/run/netns/nobody".to_owned();
    let error = refusal(node.runtime().add(node.namespace(), &nowhere))?;
    ensure!(error.code == 4 && error.message.contains("/run/netns/nobody"), "{error}");
    wait_for("no trace of the refused calls", SECONDS, || {
        let left = before.differences(&Snapshot::namespace(node.namespace())?);
        ensure!(left.iter().all(|line| line.contains("unreachable")), "{left:#?}");
        Ok(())
    })
}
