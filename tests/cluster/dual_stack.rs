//! Pods of two families.

use std::{net::IpAddr, sync::Mutex};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{kubernetes::Node, ping, wait::wait_for};
use twill_types::Prefix;

use super::{
    LONG,
    addresses::ON_SELECTED,
    release::CONFLIST,
    site::{Pod, SELECTED, Site, lock},
};

const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: app6}\n\
                    spec: {cidr: 'fd10:10::/112', blockSize: 122, nodeSelector: env == 'prod'}\n";
const RANGES: [&str; 2] = ["10.10.0.0/24", "fd10:10::/112"];

const OURS: [&str; 2] = ["-n", "twill-system"];

/// With a pool of each family and a network configuration that asks for both, the API server has an address of
/// each for every pod. The router learns the nodes' blocks of IPv6 in the sessions that it has, and reaches the pods,
/// which reach each other.
pub(crate) fn pods_have_an_address_of_each_family(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    let before = conflist(&site)?;
    let mut both: Value = serde_json::from_str(&before)?;
    both["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
    site.apply(POOL)?;
    let outcome = install(&site, &format!("{both:#}\n")).and_then(|()| both_families(&site));
    // Without the pool, pods of later cases would have no address of IPv6, and none at all.
    install(&site, &before).and(outcome)?;
    site.delete_pools(&["app6"])?;
    for node in SELECTED {
        wait_for("the router to hear of no block of IPv6", LONG, || {
            let blocks = blocks(&site, node)?;
            ensure!(blocks.is_empty(), "{blocks:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn both_families(site: &Site) -> Result<()> {
    site.deploy("app", 2, ON_SELECTED)?;
    let pods = site.wait_ready("app", 2)?;
    let [v4, v6] = RANGES.map(str::parse::<Prefix>);
    let (v4, v6) = (v4?, v6?);
    let mut of_v6 = Vec::new();
    for pod in &pods {
        let addresses = addresses(site, pod)?;
        let [first, second] = addresses[..] else { anyhow::bail!("{pod:?} has {addresses:?}") };
        ensure!(first == pod.address && v4.contains(first) && v6.contains(second), "{addresses:?}");
        of_v6.push(Pod { address: second, ..pod.clone() });
    }
    let tor = site.cluster.tor();
    for pod in pods.iter().chain(&of_v6) {
        wait_for("the router to reach the pod", LONG, || {
            ping::reaches(tor.namespace(), pod.address)
        })
        .or_else(|error| Err(error.context(site.ways()?)))?;
    }
    for pod in &of_v6 {
        let blocks = blocks(site, &pod.node)?;
        ensure!(blocks.iter().any(|block| block.contains(pod.address)), "{pod:?}: {blocks:?}");
        ensure!(blocks.iter().all(|block| block.length() == 122), "more than blocks: {blocks:?}");
    }
    let [first, second] = &of_v6[..] else { anyhow::bail!("{of_v6:?}") };
    ensure!(first.node != second.node, "{of_v6:?}");
    for (from, to) in [(first, second), (second, first)] {
        wait_for("the pods to reach each other", LONG, || site.pings(from, to))?;
        // A packet also comes there by the router alone, to which the default route leads.
        wait_for("the learned route", LONG, || {
            let namespace = site.cluster.node(&from.node)?.namespace();
            let way = namespace.ip(&format!("-6 route show match {} proto 116", to.address))?;
            ensure!(way.contains("/122 via"), "no learned route leads to {to:?}: {way}");
            Ok(())
        })?;
    }
    site.remove("app")
}

/// The addresses of a pod, as the API server has them.
fn addresses(site: &Site, pod: &Pod) -> Result<Vec<IpAddr>> {
    let found = site.kubectl().json(&["get", "pod", &pod.name])?;
    let all = found["status"]["podIPs"].as_array().context("no podIPs")?;
    let address = |of: &Value| Ok(of["ip"].as_str().context("no ip")?.parse()?);
    all.iter().map(address).collect()
}

/// The blocks of IPv6 that the router has from a node.
fn blocks(site: &Site, node: &str) -> Result<Vec<Prefix>> {
    let routes = site.cluster.tor().bird().routes_from(node)?;
    let of_v6 = routes.iter().filter(|route| route.prefix.contains(':'));
    of_v6.map(|route| Ok(route.prefix.parse()?)).collect()
}

/// The network configuration that the daemons' pods bring onto their nodes.
fn conflist(site: &Site) -> Result<String> {
    let found = site.kubectl().json(&[&["get", "configmap", "twill"][..], &OURS].concat())?;
    let text = found["data"][CONFLIST].as_str();
    text.map(str::to_owned).with_context(|| format!("no {CONFLIST} in {found}"))
}

/// Changes it, has it brought, and waits until the new daemons speak with the router.
fn install(site: &Site, conflist: &str) -> Result<()> {
    let patch = json!({"data": {CONFLIST: conflist}}).to_string();
    let patch = ["patch", "configmap", "twill", "--type=merge", "-p", &patch];
    site.kubectl().run(&[&patch[..], &OURS].concat())?;
    let restart = ["rollout", "restart", "daemonset/twill-node"];
    site.kubectl().run(&[&restart[..], &OURS].concat())?;
    site.wait_rollout()?;
    for node in site.cluster.nodes() {
        let found = node.run("cat", &[&format!("/etc/cni/net.d/{CONFLIST}")])?;
        ensure!(found == conflist, "{} has {found}", node.name());
    }
    let nodes: Vec<_> = site.cluster.nodes().iter().map(Node::name).collect();
    site.cluster.tor().bird().wait_established(&nodes, LONG)
}
