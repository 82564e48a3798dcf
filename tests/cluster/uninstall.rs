//! Twill leaves the nodes, and another network comes.

use std::{path::Path, sync::Mutex};

use anyhow::{Result, ensure};
use twill_tests::{kubernetes::Node, programs, wait::wait_for};

use super::{
    LONG,
    addresses::ON_SELECTED,
    site::{SELECTED, Site, lock},
};

/// Everything but the definitions: that is how the documentation has it.
const GONE: [&str; 3] = ["delete", "daemonset/twill-node", "deployment/twill-controller"];
const OURS: [&str; 2] = ["-n", "twill-system"];

/// A node with pods is left alone. Once they are gone nothing of Twill is on it, and pods of another network come
/// and reach each other.
pub(crate) fn the_next_network_finds_nodes_that_work(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    let manifest = programs::source("conf/uninstall");
    let manifest = manifest.to_string_lossy();
    site.deploy("app", 2, ON_SELECTED)?;
    site.wait_ready("app", 2)?;
    site.kubectl().run(&[&GONE[..], &OURS, &["--wait=true"]].concat())?;
    site.kubectl().run(&["apply", "-k", &manifest])?;
    wait_for("the refusals", LONG, || {
        let get = ["get", "pods", "-l", "app.kubernetes.io/name=twill-uninstall", "-o", "yaml"];
        let pods = site.kubectl().run(&[&get[..], &OURS].concat())?;
        let refusals = pods.matches("1 pods have their network from Twill").count();
        ensure!(refusals >= 2, "{refusals} refusals");
        Ok(())
    })?;
    for name in SELECTED {
        let left = traces(site.cluster.node(name)?)?;
        ensure!(left.len() > 3 && left.iter().any(|trace| trace.contains(" dev twl")), "{left:?}");
    }
    // Without a daemon the DEL waits on the node; the link goes with the pod's namespace.
    site.kubectl().run(&["delete", "deployment", "app"])?;
    site.wait_gone("app")?;
    // The kubelet waits longer each time before it tries again, pods that are new do not.
    site.kubectl().run(
        &[&["delete", "pods", "-l", "app.kubernetes.io/name=twill-uninstall"][..], &OURS].concat(),
    )?;
    site.cluster.rollout("daemonset/twill-uninstall")?;
    for node in site.cluster.nodes() {
        let left = traces(node)?;
        ensure!(left.is_empty(), "{}: {left:?}", node.name());
    }
    site.kubectl().run(&["delete", "-k", &manifest])?;

    for (number, node) in site.cluster.nodes().iter().enumerate() {
        bring_another(node, number)?;
    }
    site.deploy("next", 4, ON_SELECTED)?;
    // The nodes were not ready without a network, and are found to be so again.
    let pods = site.wait_ready_within("next", 4, LONG * 2)?;
    for name in SELECTED {
        let of_node: Vec<_> = pods.iter().filter(|pod| pod.node == name).collect();
        let [first, second] = &of_node[..] else { anyhow::bail!("{pods:?}") };
        ensure!(first.address.to_string().starts_with("10.77."), "{first:?}");
        wait_for("the pods to reach each other", LONG, || site.pings(first, second))?;
    }
    site.kubectl().run(&["delete", "deployment", "next"])?;
    site.wait_gone("next")
}

/// Files, links, routes, objects and tables of Twill on a node.
fn traces(node: &Node) -> Result<Vec<String>> {
    let files = ["/etc/cni/net.d", "/opt/cni/bin", "/run/twill", "/var/lib/twill"];
    let mut found = node.run("find", &[&files[..], &["-not", "-type", "d"]].concat())?;
    found += &node.namespace().ip("-oneline link")?;
    for what in ["route show table all", "-6 route show table all", "nexthop"] {
        found += &node.namespace().ip(what)?;
    }
    found += &node.run("nft", &["list", "tables"])?;
    let is_ours =
        |line: &&str| ["twill", "proto 116", ": twl", ": twd"].iter().any(|own| line.contains(own));
    Ok(found.lines().filter(is_ours).map(str::to_owned).collect())
}

/// Puts the reference plugins and a configuration of theirs onto a node.
fn bring_another(node: &Node, number: usize) -> Result<()> {
    for plugin in ["ptp", "host-local"] {
        let from = Path::new(programs::REFERENCE_PLUGINS).join(plugin);
        node.run("cp", &[&from.to_string_lossy(), &format!("/opt/cni/bin/{plugin}")])?;
    }
    let conflist = format!(
        r#"{{"cniVersion": "1.0.0", "name": "next", "plugins": [{{"type": "ptp", "ipam":
           {{"type": "host-local", "subnet": "10.77.{number}.0/24", "dataDir": "/run/next",
           "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
    );
    let write = "printf '%s' \"$1\" > /etc/cni/net.d/10-next.conflist";
    node.run("sh", &["-c", write, "sh", &conflist]).map(drop)
}
