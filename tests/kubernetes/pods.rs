//! Pods that the API server has, with their annotations, and what daemons write to their Nodes.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::CniError,
    kubernetes::ApiServer,
    lab::Pod,
    process::check,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    nodes::{ACCOUNT, PEER, POOL, STRICT, Site},
    permission::wait_right,
};

/// For those who ask for it.
const BLUE: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: blue}\n\
                    spec: {cidr: 10.20.0.0/26, blockSize: 27, assignmentMode: Manual, nodeSelector: all()}\n";
const GREEN: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: green}\n\
                     spec: {cidr: 10.30.0.0/26, blockSize: 27, assignmentMode: Manual, nodeSelector: all()}\n";

const CNI: &str = "cni.projectcalico.org";

/// A namespace with an account, which pods need.
fn namespace(site: &Site, name: &str, annotations: &Value) -> Result<()> {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace",
               "metadata": {"name": name, "annotations": annotations}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
               "metadata": {"name": "default", "namespace": name}}),
    ];
    objects.iter().try_for_each(|object| site.apply(&object.to_string()))
}

/// A pod on the API server; its uid.
fn create(site: &Site, node: &str, name: &str, annotations: &Value) -> Result<String> {
    let (namespace, name) = name.split_once('/').context("namespace/name")?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]}});
    site.apply(&pod.to_string())?;
    let pod = site.api.kubectl().json(&["get", "pod", "-n", namespace, name])?;
    Ok(pod["metadata"]["uid"].as_str().context("a pod without uid")?.to_owned())
}

fn delete(site: &Site, name: &str) -> Result<()> {
    let (namespace, name) = name.split_once('/').context("namespace/name")?;
    let arguments = ["delete", "pod", "-n", namespace, name, "--force", "--grace-period=0"];
    site.api.kubectl().run(&arguments).map(drop)
}

/// A sandbox as a kubelet's runtime has it, not attached yet.
fn sandbox(site: &mut Site, node: &str, name: &str, uid: &str) -> Result<Pod> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (namespace, name) = name.split_once('/').context("namespace/name")?;
    // A pod may have several one after the other.
    let mut pod = site.lab.bare_pod(node, &format!("{name}-{number}"))?;
    let args = &mut pod.attachment_mut().args;
    for (key, value) in args.iter_mut() {
        match key.as_str() {
            "K8S_POD_NAMESPACE" => namespace.clone_into(value),
            "K8S_POD_NAME" => name.clone_into(value),
            _ => {}
        }
    }
    args.push(("K8S_POD_UID".to_owned(), uid.to_owned()));
    Ok(pod)
}

/// Both; the pod runs.
fn run(site: &mut Site, node: &str, name: &str, annotations: &Value) -> Result<Pod> {
    let uid = create(site, node, name, annotations)?;
    let mut pod = sandbox(site, node, name, &uid)?;
    site.lab.attach(&mut pod)?;
    Ok(pod)
}

fn address(pod: &Pod) -> Result<String> {
    Ok(pod.address()?.to_string())
}

/// The error of an ADD that has to fail.
fn refused(site: &mut Site, name: &str, annotations: &Value) -> Result<CniError> {
    let uid = create(site, "node1", name, annotations)?;
    let mut pod = sandbox(site, "node1", name, &uid)?;
    let error = site.lab.attach(&mut pod).err().with_context(|| format!("{name} was attached"))?;
    error.downcast::<CniError>()
}

/// The namespace's pool, the pod's before it, an address by name; and what cannot be had is said.
pub(crate) fn annotations_choose_pools_and_addresses(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, BLUE, GREEN, STRICT])?;
    namespace(&site, "plain", &json!({}))?;
    namespace(&site, "blue", &json!({"cni.projectcalico.org/ipv4pools": "[\"blue\"]"}))?;
    let of = |key: &str, value: &str| json!({format!("{CNI}/{key}"): value});

    let pod = run(&mut site, "node1", "plain/a", &json!({}))?;
    ensure!(address(&pod)?.starts_with("10.10.0."), "{pod:?}");
    let pod = run(&mut site, "node1", "blue/a", &json!({}))?;
    ensure!(address(&pod)?.starts_with("10.20.0."), "by its namespace: {pod:?}");
    let green = of("ipv4pools", "[\"10.30.0.0/26\"]");
    let pod = run(&mut site, "node1", "blue/b", &green)?;
    ensure!(address(&pod)?.starts_with("10.30.0."), "by itself: {pod:?}");
    let pod = run(&mut site, "node1", "plain/c", &of("ipAddrs", "[\"10.30.0.40\"]"))?;
    ensure!(address(&pod)? == "10.30.0.40", "{pod:?}");
    let hardware = of("hwAddr", "02:00:00:00:00:2a");
    let pod = run(&mut site, "node1", "plain/d", &hardware)?;
    let shown = pod.namespace().ip("link show dev eth0")?;
    ensure!(shown.contains("02:00:00:00:00:2a"), "{shown}");

    // An address outside of the pool that the namespace names.
    let error = refused(&mut site, "blue/c", &of("ipAddrs", "[\"10.30.0.41\"]"))?;
    ensure!(error.code == 7 && error.message.contains("no pool holds it"), "{error}");
    let error = refused(&mut site, "plain/e", &of("ipAddrs", "[\"10.30.0.40\"]"))?;
    ensure!(error.code == 103 && error.message.contains("10.30.0.40"), "{error}");
    let error = refused(&mut site, "plain/f", &of("ipv4pools", "[\"none\"]"))?;
    ensure!(error.code == 100 && error.message.contains("no such pool"), "{error}");
    let error = refused(&mut site, "plain/g", &of("ipv4pools", "[blue"))?;
    ensure!(error.code == 7 && error.message.contains("ipv4pools"), "{error}");
    let error = refused(&mut site, "plain/h", &of("floatingIPs", "[\"10.30.0.50\"]"))?;
    ensure!(error.code == 2 && error.message.contains("floatingIPs"), "{error}");
    let error = refused(&mut site, "plain/i", &of("ipAddrsNoIpam", "[\"192.0.2.5\"]"))?;
    ensure!(error.code == 2 && error.message.contains("featureControl"), "{error}");

    let mut conflist = site.lab.node("node1")?.runtime().conflist().clone();
    conflist["plugins"][0]["featureControl"] = json!({"ipAddrsNoIpam": true});
    site.lab.node_mut("node1")?.runtime_mut().set_conflist(conflist);
    let used = site.lab.node("node1")?.addresses_in_use()?;
    let pod = run(&mut site, "node1", "plain/j", &of("ipAddrsNoIpam", "[\"192.0.2.5\"]"))?;
    ensure!(address(&pod)? == "192.0.2.5", "{pod:?}");
    let node = site.lab.node("node1")?;
    ensure!(node.addresses_in_use()? == used, "nobody is to know of it");
    node.runtime().check(node.namespace(), pod.attachment())?;
    site.lab.delete_pod(pod)
}

/// A pool is for the namespaces that it selects, by the labels that they have at the time.
pub(crate) fn labels_of_a_namespace_choose_its_pool(_: &ApiServer) -> Result<()> {
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
             spec: {{cidr: {cidr}, blockSize: 27, nodeSelector: all(), namespaceSelector: team == '{name}'}}\n"
        )
    };
    let (red, gold) = (pool("red", "10.40.0.0/26"), pool("gold", "10.50.0.0/26"));
    let mut site = Site::start(&[&red, &gold, STRICT])?;
    namespace(&site, "shop", &json!({}))?;
    let label = |site: &Site, label: &str| {
        site.api.kubectl().run(&["label", "--overwrite", "namespace", "shop", label]).map(drop)
    };
    let error = refused(&mut site, "shop/none", &json!({}))?;
    let reason = "namespaceSelector team == 'red' does not match the pod's namespace (shop)";
    ensure!(error.code == 100 && error.message.contains(reason), "{error}");

    let mut number = 0;
    for (team, first) in [("red", "10.40.0."), ("gold", "10.50.0.")] {
        label(&site, &format!("team={team}"))?;
        // The daemon hears of it a moment after the API server has it.
        wait_for(&format!("an address of pool {team}"), LONG, || {
            number += 1;
            let pod = run(&mut site, "node1", &format!("shop/p{number}"), &json!({}))?;
            let address = address(&pod)?;
            site.lab.delete_pod(pod)?;
            ensure!(address.starts_with(first), "{address}");
            Ok(())
        })?;
    }
    label(&site, "team-")?;
    wait_for("no pool to be for the namespace", LONG, || {
        number += 1;
        let error = refused(&mut site, &format!("shop/p{number}"), &json!({}))?;
        ensure!(error.code == 100 && error.message.contains(reason), "{error}");
        Ok(())
    })
}

/// Neither a pod nor its namespace need have been told of when an ADD comes; one that there is not gets
/// nothing, and no pool of others.
pub(crate) fn a_pod_that_nothing_is_known_of_waits(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, BLUE, STRICT])?;
    let mut pod = sandbox(&mut site, "node1", "late/a", "11111111-2222-3333-4444-555555555555")?;
    let error = site.lab.attach(&mut pod).err().context("a pod of no namespace was attached")?;
    let error = error.downcast::<CniError>()?;
    ensure!(error.code == 11 && error.message.contains("late"), "{error}");
    ensure!(site.lab.node("node1")?.addresses_in_use()? == 0, "an address was given to it");

    namespace(&site, "late", &json!({"cni.projectcalico.org/ipv4pools": "[\"blue\"]"}))?;
    let error = site.lab.attach(&mut pod).err().context("a pod that there is not was attached")?;
    let error = error.downcast::<CniError>()?;
    ensure!(error.code == 11 && error.message.contains("has no pods/a"), "{error}");
    // Another pod has its name.
    let uid = create(&site, "node1", "late/a", &json!({}))?;
    let error = site.lab.attach(&mut pod).err().context("another pod was attached")?;
    let error = error.downcast::<CniError>()?;
    ensure!(error.code == 11 && error.message.contains("another uid"), "{error}");
    let mut pod = sandbox(&mut site, "node1", "late/a", &uid)?;
    site.lab.attach(&mut pod)?;
    ensure!(address(&pod)?.starts_with("10.20.0."), "{pod:?}");

    // The runtime has the uid of the static pod, the API server that of its mirror.
    let mirror = json!({"kubernetes.io/config.mirror": "5d1c0f"});
    create(&site, "node1", "late/static-node1", &mirror)?;
    let mut pod = sandbox(&mut site, "node1", "late/static-node1", "5d1c0f")?;
    site.lab.attach(&mut pod)?;

    // What the watch may not tell is asked for; a node that may not even ask gives nothing.
    let rights = ["patch", "clusterrole", "twill-node", "--type=json", "-p"];
    let role = site.api.kubectl().json(&["get", "clusterrole", "twill-node"])?;
    let rules = role["rules"].as_array().context("no rules")?;
    let index = rules.iter().position(|rule| {
        rule["resources"].as_array().is_some_and(|all| all.contains(&json!("pods")))
    });
    let index = index.context("no rule for pods")?;
    let patch = json!([{"op": "replace", "path": format!("/rules/{index}/resources"),
                        "value": ["namespaces"]}]);
    let patch = patch.to_string();
    site.api.kubectl().run(&[&rights[..], &[&patch]].concat())?;
    wait_right(&site.api, ACCOUNT, &["get", "pods"], false)?;
    site.lab.node_mut("node1")?.stop()?;
    site.lab.node_mut("node1")?.start()?;
    let error = refused(&mut site, "late/b", &json!({}))?;
    ensure!(error.code == 11 && error.message.contains("may not get pods"), "{error}");
    let status = site.lab.node("node1")?.status()?.to_string();
    ensure!(status.contains("may not list pods"), "{status}");
    // One that it knew before the restart is known by the copy.
    let mut again = sandbox(&mut site, "node1", "late/a", &uid)?;
    site.lab.attach(&mut again)?;
    ensure!(address(&again)?.starts_with("10.20.0."), "{again:?}");
    Ok(())
}

/// What the runtime hands over is not asked for, so a static pod starts before it has a mirror. Its
/// namespace's annotations count as ever.
pub(crate) fn annotations_of_the_runtime_need_no_pod(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, BLUE, GREEN, STRICT])?;
    namespace(&site, "blue", &json!({"cni.projectcalico.org/ipv4pools": "[\"blue\"]"}))?;
    let green = "[\"green\"]";
    for (number, (annotations, start)) in [
        (json!({"kubernetes.io/config.source": "file"}), "10.20.0."),
        (json!({format!("{CNI}/ipv4pools"): green}), "10.30.0."),
        (
            json!({format!("{CNI}/ipv4pools"): green, format!("{CNI}/ipAddrs"): "[\"10.30.0.40\"]"}),
            "10.30.0.40",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let runtime = site.lab.node_mut("node1")?.runtime_mut();
        let mut conflist = runtime.conflist().clone();
        conflist["plugins"][0]["runtimeConfig"] =
            json!({"io.kubernetes.cri.pod-annotations": annotations});
        runtime.set_conflist(conflist);
        let (name, uid) = (format!("blue/static{number}-node1"), format!("5d1c0f{number}"));
        let mut pod = sandbox(&mut site, "node1", &name, &uid)?;
        site.lab.attach(&mut pod).with_context(|| format!("with {annotations}"))?;
        ensure!(address(&pod)?.starts_with(start), "with {annotations}: {pod:?}");
    }
    Ok(())
}

/// Pods that the watch has told of, with the uid that a kubelet knows them by.
pub(crate) fn an_add_for_a_pod_of_the_cluster_asks_for_nothing(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, STRICT])?;
    namespace(&site, "plain", &json!({}))?;
    let mut uids = Vec::new();
    for number in 0..8 {
        uids.push(create(&site, "node1", &format!("plain/p{number}"), &json!({}))?);
    }
    let first = run(&mut site, "node1", "plain/first", &json!({}))?;
    site.wait_all_settled()?;
    let before = site.api.node_requests()?;
    for (number, uid) in uids.iter().enumerate() {
        let mut pod = sandbox(&mut site, "node1", &format!("plain/p{number}"), uid)?;
        site.lab.attach(&mut pod)?;
        site.lab.delete_pod(pod)?;
    }
    let after = site.api.node_requests()?;
    let new: Vec<_> = after[before.len()..]
        .iter()
        // The lease is renewed and numbers are told by the clock, and a watch that ends is taken up again.
        .filter(|request| !request.ends_with(" leases") && !request.starts_with("watch"))
        .filter(|request| !request.ends_with(" caliconodestatuses"))
        .collect();
    ensure!(new.is_empty(), "8 ADDs and DELs made {new:?}");
    site.lab.delete_pod(first)
}

/// A pod goes while no daemon runs and no DEL comes: it is freed long before the grace period of those of
/// which no cluster tells is over. One whose sandbox lives keeps its address, and that is said.
pub(crate) fn a_pod_that_is_gone_is_freed_soon(_: &ApiServer) -> Result<()> {
    // Two minutes, as without settings.
    let mut site = Site::start(&[POOL, STRICT])?;
    namespace(&site, "plain", &json!({}))?;
    let gone = run(&mut site, "node1", "plain/gone", &json!({}))?;
    let kept = run(&mut site, "node1", "plain/kept", &json!({}))?;
    // Its pod is there.
    let dying = run(&mut site, "node1", "plain/dying", &json!({}))?;
    site.lab.node_mut("node1")?.stop()?;
    let (gone_address, dying_address) = (address(&gone)?, address(&dying)?);
    drop((gone, dying));
    for name in ["plain/gone", "plain/kept"] {
        delete(&site, name)?;
    }
    site.lab.node_mut("node1")?.start()?;

    let node = site.lab.node("node1")?;
    let leaks = || -> Result<Vec<(String, bool)>> {
        let output = node.ctl_output(&["ipam", "check", "-o", "json"])?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let leak = |finding: &Value| {
            let address = finding["addresses"][0].as_str()?.to_owned();
            (finding["kind"] == "leakedAddress").then(|| (address, finding["confirmed"] == true))
        };
        Ok(report["findings"].as_array().into_iter().flatten().filter_map(leak).collect())
    };
    let kept_address = address(&kept)?;
    wait_for("the pods that are gone to be told", LONG, || {
        let found = leaks()?;
        let is_told = |address: &String| found.iter().any(|(leak, _)| leak == address);
        ensure!(is_told(&gone_address) && is_told(&kept_address), "{found:?}");
        Ok(())
    })?;
    wait_until("the pod that is gone to be freed", LONG, || Ok(node.addresses_in_use()? == 2))?;
    let found = leaks()?;
    ensure!(found.contains(&(kept_address.clone(), false)), "its sandbox lives: {found:?}");
    let log = node.log();
    ensure!(log.contains("plain/gone") && log.contains("released: the pod is gone"), "{log}");
    let held = node.ctl(&["ipam", "show", "--ip", &dying_address])?;
    ensure!(held.contains("plain/dying"), "its pod is there, so its grace is the usual: {held}");
    let held = node.ctl(&["ipam", "show", "--ip", &kept_address])?;
    ensure!(held.contains("plain/kept"), "its sandbox lives: {held}");
    site.lab.delete_pod(kept)
}

fn node(site: &Site, name: &str) -> Result<Value> {
    site.api.kubectl().json(&["get", "node", name])
}

fn condition(site: &Site, name: &str, kind: &str) -> Result<Value> {
    let node = node(site, name)?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|c| c["type"] == kind);
    found.with_context(|| format!("no condition {kind} on {name}"))
}

fn unavailable(site: &Site, name: &str) -> Result<Value> {
    condition(site, name, "NetworkUnavailable")
}

/// What stops pods' packets on a node is a condition of its Node, and in what it says of itself.
pub(crate) fn what_is_in_the_way_of_pods_is_a_condition(_: &ApiServer) -> Result<()> {
    let site = Site::start(&[POOL, PEER, STRICT])?;
    let ready = "TwillDataplaneReady";
    let is = |status: &str, reason: &str| {
        wait_for(&format!("{ready} to be {status}"), LONG, || {
            let found = condition(&site, "node1", ready)?;
            ensure!(found["status"] == status && found["reason"] == reason, "{found}");
            let own = site.conditions("node1", "Node", "node1")?;
            let own = own.iter().find(|c| c["type"] == ready).context("it says nothing of it")?;
            ensure!(own["status"] == status && own["message"] == found["message"], "{own}");
            Ok(found)
        })
    };
    let shell = |command: &str| {
        let namespace = site.lab.node("node1")?.namespace();
        check(command, &namespace.output(Command::new("sh").args(["-c", command]))?).map(drop)
    };
    // Docker and others do this.
    let rules = "nft add table ip guard; nft 'add chain ip guard forward { type filter hook forward priority 0; \
                 policy drop; }'";
    let source_check = "/proc/sys/net/ipv4/conf/all/rp_filter";
    let [loose, off] = [2, 0].map(|value| format!("echo {value} > {source_check}"));
    let start = is("True", "ChecksPass")?;
    for (breaks, mends, expected) in [
        (rules, "nft delete table ip guard", "forward-policy: chain forward of table ip guard"),
        (&loose, &off, "pod-source-check: net.ipv4.conf.all.rp_filter is 2"),
    ] {
        shell(breaks)?;
        let found = is("False", "ChecksFailed")?;
        let message = found["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with(expected), "{message}");
        ensure!(found["lastTransitionTime"] != start["lastTransitionTime"], "{found}");
        let told = site.api.kubectl().run(&["describe", "node", "node1"])?;
        ensure!(told.contains(ready) && told.contains("ChecksFailed"), "{told}");
        shell(mends)?;
        is("True", "ChecksPass")?;
    }
    Ok(())
}

/// An address that nobody has written is found by the kubelet's and by the link that has it; one that
/// stands there stays. The network is said to work once, also where Calico said that it does not.
pub(crate) fn a_node_says_where_it_is_and_that_it_works(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, PEER, STRICT])?;
    wait_for("node1 to be up", LONG, || unavailable(&site, "node1"))?;
    site.lab.node_mut("node1")?.stop()?;
    let kubectl = site.api.kubectl();
    kubectl.run(&["annotate", "node", "node1", "projectcalico.org/IPv4Address-"])?;
    let status = |name: &str, patch: Value| {
        let patch = json!({"status": patch}).to_string();
        let arguments = ["patch", "node", name, "--subresource=status", "-p", &patch];
        site.api.kubectl().run(&arguments).map(drop)
    };
    let internal =
        |address: &str| json!({"addresses": [{"type": "InternalIP", "address": address}]});
    status("node1", internal("192.168.2.11"))?;
    let down = json!({"conditions": [{"type": "NetworkUnavailable", "status": "True",
                                      "reason": "CalicoIsDown", "message": "shutting down"}]});
    status("node1", down)?;
    // Where node2 says that it is was written by hand.
    let before = node(&site, "node2")?["metadata"]["annotations"].clone();
    let was_up = wait_for("node2 to be up", LONG, || unavailable(&site, "node2"))?;
    status("node2", internal("192.168.2.99"))?;

    site.lab.node_mut("node1")?.start()?;
    let key = "projectcalico.org/IPv4Address";
    wait_for("node1 to say where it is", LONG, || {
        let annotations = node(&site, "node1")?["metadata"]["annotations"].clone();
        ensure!(annotations[key] == "192.168.2.11/24", "{annotations}");
        Ok(())
    })?;
    site.lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
    wait_for("node1 to say that it works", LONG, || {
        let condition = unavailable(&site, "node1")?;
        ensure!(
            condition["status"] == "False" && condition["reason"] == "TwillIsUp",
            "{condition}"
        );
        Ok(())
    })?;

    // A restart writes neither again.
    site.lab.node_mut("node2")?.stop()?;
    site.lab.node_mut("node2")?.start()?;
    site.lab.node("node2")?.wait_established(&["192.168.2.1"], LONG)?;
    let after = node(&site, "node2")?["metadata"]["annotations"].clone();
    ensure!(after == before, "{before} became {after}");
    let is_up = unavailable(&site, "node2")?;
    ensure!(is_up == was_up, "{was_up} became {is_up}");

    let tunnel = "projectcalico.org/IPv4IPIPTunnelAddr=10.10.0.1";
    site.api.kubectl().run(&["annotate", "node", "node2", tunnel])?;
    wait_for("node2 to say that it makes no tunnel", LONG, || {
        let status = site.api.kubectl().json(&["get", "caliconodestatus", "node2"])?.to_string();
        ensure!(status.contains("no tunnel is made; the pods of this node"), "{status}");
        Ok(())
    })
}

/// The token of node1's daemon tries what is not its own.
pub(crate) fn a_node_writes_of_its_node_only_what_it_should(_: &ApiServer) -> Result<()> {
    let site = Site::start(&[POOL, STRICT])?;
    wait_for("node1 to be up", LONG, || unavailable(&site, "node1"))?;
    let kubeconfig = site.api.node_kubeconfigs().join("node1.kubeconfig").display().to_string();
    let patch = |node: &str, status: bool, patch: Value, expected: &str| -> Result<()> {
        let mut arguments = vec!["--kubeconfig", &kubeconfig];
        let mut input = String::new();
        let text = patch.to_string();
        if status {
            // A patch by kubectl reads the status first, which a node may not.
            let mut object = patch;
            object["apiVersion"] = "v1".into();
            object["kind"] = "Node".into();
            object["metadata"]["name"] = node.into();
            input = object.to_string();
            let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status"];
            arguments.extend(apply.into_iter().chain(["-f", "-"]));
        } else {
            arguments.extend(["patch", "node", node, "-p", &text]);
        }
        if expected.is_empty() {
            return site.api.kubectl().run_with_input(&arguments, &input).map(drop);
        }
        let said = site.api.kubectl().refused(&arguments, &input)?;
        ensure!(said.contains("orbidden") && said.contains(expected), "{text}: {said}");
        Ok(())
    };
    let annotation = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    let other = "may not write what is of node node2";
    let [v4, v6] = ["projectcalico.org/IPv4Address", "projectcalico.org/IPv6Address"];
    wait_for("the policy", LONG, || patch("node2", false, annotation(v6, "fd00::12"), other))?;
    let say = |kind: &str, status: &str| json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "Test"}]}});
    patch("node2", true, say("NetworkUnavailable", "True"), other)?;

    let adds = "adds addresses that are missing";
    patch("node1", false, annotation(v4, "192.168.2.77/24"), adds)?;
    patch("node1", false, json!({"metadata": {"annotations": {v4: null}}}), adds)?;
    patch("node1", false, annotation("example.com/other", "x"), adds)?;
    let labels = "changes no labels";
    patch("node1", false, json!({"metadata": {"labels": {"role": "admin"}}}), labels)?;
    patch("node1", false, json!({"spec": {"unschedulable": true}}), labels)?;
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    patch("node1", false, taint, labels)?;
    let nothing_else = "NetworkUnavailable and TwillDataplaneReady, and nothing else";
    for kind in ["Ready", "DiskPressure", "TwillDataplane", "TwillDataplaneReadyToo"] {
        patch("node1", true, say(kind, "True"), nothing_else)?;
    }
    patch("node2", true, say("TwillDataplaneReady", "False"), other)?;
    // One that is its own does not bring another along.
    let both = ["TwillDataplaneReady", "Ready"].map(|kind| json!({"type": kind, "status": "True"}));
    patch("node1", true, json!({"status": {"conditions": both}}), nothing_else)?;
    patch("node1", true, json!({"status": {"capacity": {"cpu": "64"}}}), nothing_else)?;
    let addresses =
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}});
    patch("node1", true, addresses, nothing_else)?;
    patch("node1", true, json!({"status": {"phase": "Terminated"}}), nothing_else)?;
    // A write of the status may bring metadata with it.
    for key in [v6, "projectcalico.org/ASNumber", "example.com/other"] {
        patch("node1", true, annotation(key, "64512"), adds)?;
    }
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "node2", "uid": "1"}]);
    for metadata in [
        json!({"labels": {"role": "admin"}}),
        json!({"finalizers": ["example.com/forever"]}),
        json!({"ownerReferences": owner}),
    ] {
        patch("node1", true, json!({"metadata": metadata}), labels)?;
    }

    patch("node1", false, annotation(v6, "fd00::11/64"), "")?;
    // Beside what a kubelet has written.
    let image = |n: usize| json!({"names": [format!("registry.example/{n}@sha256:{n:064x}")], "sizeBytes": n});
    let images: Vec<Value> = (0..50).map(image).collect();
    let kubelet = json!({"status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        "capacity": {"cpu": "2", "memory": "4Gi"}, "allocatable": {"cpu": "2"},
        "images": images,
        "addresses": [{"type": "InternalIP", "address": "192.168.2.11"}]}});
    let kubelet = kubelet.to_string();
    let arguments = ["patch", "node", "node1", "--subresource=status", "-p", &kubelet];
    site.api.kubectl().run(&arguments)?;
    patch("node1", true, say("NetworkUnavailable", "True"), "")?;
    let status = unavailable(&site, "node1")?;
    ensure!(status["reason"] == "Test", "{status}");
    patch("node1", true, say("TwillDataplaneReady", "Unknown"), "")?;
    Ok(())
}
