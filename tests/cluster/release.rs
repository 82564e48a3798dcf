//! Another release of Twill for an upgrade: its image, and a network configuration with one more plugin.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use twill_tests::{image, kubernetes::Node, process::run, programs};

use super::site::Site;

/// The network configuration: key of the ConfigMap, and file on the nodes.
pub(crate) const CONFLIST: &str = "05-twill.conflist";
const CHAINED: &str = "portmap";

/// What is to come onto the nodes.
pub(crate) struct Release {
    /// The plugin's checksum.
    plugin: String,
    conflist: String,
}

impl Release {
    /// Makes it, and gives every node its image and the plugin that its configuration chains.
    pub(crate) fn make(site: &Site) -> Result<Self> {
        let place = site.cluster.directory().join("images/next");
        fs::create_dir_all(&place)?;
        let archive = image::next_twill(&place)?;
        let chained = programs::go_tool("cni", CHAINED)?;
        for node in site.cluster.nodes() {
            node.import(&archive)?;
            let to = format!("/opt/cni/bin/{CHAINED}");
            node.run("cp", &[&chained.to_string_lossy(), &to])?;
        }
        let plugin = place.join("root").join(image::PLUGIN);
        let plugin = run(std::process::Command::new("sha256sum").arg(plugin))?;
        let conflist = fs::read_to_string(programs::source("conf/cni").join(CONFLIST))?;
        let mut conflist: Value = serde_json::from_str(&conflist)?;
        let plugins = conflist["plugins"].as_array_mut().context("no list of plugins")?;
        plugins.push(json!({"type": CHAINED, "capabilities": {"portMappings": true}}));
        Ok(Self { plugin: sum(&plugin), conflist: format!("{conflist:#}\n") })
    }

    /// Whether a node has its plugin and its configuration.
    pub(crate) fn is_on(&self, site: &Site, node: &str) -> Result<bool> {
        let node: &Node = site.cluster.node(node)?;
        let plugin = sum(&node.run("sha256sum", &["/opt/cni/bin/twill"])?);
        let conflist = node.run("cat", &[&format!("/etc/cni/net.d/{CONFLIST}")])?;
        Ok(plugin == self.plugin && conflist == self.conflist)
    }

    /// Upgrades the cluster, and waits until all nodes have it.
    pub(crate) fn roll_out(&self, site: &Site) -> Result<()> {
        let ours = ["-n", "twill-system"];
        let patch = json!({"data": {CONFLIST: self.conflist}}).to_string();
        let patch = ["patch", "configmap", "twill", "--type=merge", "-p", &patch];
        site.kubectl().run(&[&patch[..], &ours].concat())?;
        let images = ["install", "twilld"].map(|container| format!("{container}={}", image::NEXT));
        let set = ["set", "image", "daemonset/twill-node", &images[0], &images[1]];
        site.kubectl().run(&[&set[..], &ours].concat())?;
        site.wait_rollout()
    }
}

/// `SUM  FILE`
fn sum(said: &str) -> String {
    said.split(' ').next().unwrap_or_default().to_owned()
}
