//! `cnitool`, and with it libcni, on a node of a lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    lab::{Lab, Machine, Topology},
    netns::Namespace,
    process::check,
    programs,
    snapshot::Snapshot,
    wait::wait_for,
};

use crate::LONG;

/// A node behind a ToR, and a network configuration list for it.
pub(crate) struct Site {
    pub(crate) lab: Lab,
    directory: PathBuf,
    /// What runtimes give to plugins that declare the capability.
    pub(crate) capabilities: Value,
}

impl Site {
    /// `change` gets the shipped list.
    pub(crate) fn new(change: impl FnOnce(&mut Value)) -> Result<Self> {
        let mut topology = Topology::new();
        Self::rack(&mut topology)?;
        Self::of(topology, change)
    }

    /// The same with IPv6 on the node, a pool of it, and both families in the list.
    pub(crate) fn dual_stack(change: impl FnOnce(&mut Value)) -> Result<Self> {
        let mut topology = Topology::new();
        Self::rack(&mut topology)?.on("rack", "2001:db8:2::11/64");
        topology.resource(
            "pool6.yaml",
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool6}\n\
             spec: {cidr: \"fd00:10::/112\", blockSize: 122}\n",
        );
        Self::of(topology, |list| {
            list["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
            change(list);
        })
    }

    /// The ToR, a pool, and the node.
    fn rack(topology: &mut Topology) -> Result<&mut Machine> {
        topology.router("tor").on("rack", "192.168.2.1/24");
        topology.samples(&["ippool-app.yaml"])?;
        Ok(topology.node("node1").label("env", "prod").on("rack", "192.168.2.11/24"))
    }

    fn of(topology: Topology, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let mut lab = topology.build()?;
        lab.start_all()?;
        let directory = lab.node("node1")?.dir().join("net.d");
        fs::create_dir(&directory)?;
        let site = Self { lab, directory, capabilities: json!({}) };
        site.configure(change)?;
        Ok(site)
    }

    /// Writes the list anew: the shipped one, with this node's directory, and `change`.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let shipped = fs::read_to_string(programs::source("conf/cni/05-twill.conflist"))?;
        let mut list: Value = serde_json::from_str(&shipped)?;
        list["plugins"][0]["runDir"] = json!(self.lab.node("node1")?.dir().join("run"));
        change(&mut list);
        Ok(fs::write(self.directory.join("05-twill.conflist"), list.to_string())?)
    }

    /// Where the list is.
    pub(crate) fn list_directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn node(&self) -> Result<&Namespace> {
        Ok(self.lab.node("node1")?.namespace())
    }

    /// One call of cnitool; its output, or an error with it.
    pub(crate) fn call(&self, verb: &str, netns: &Path) -> Result<String> {
        let plugins = programs::go_tool("cni", "ptp")?;
        let plugins = plugins.parent().context("a program without a directory")?;
        let mut command = Command::new(programs::go_tool("cni", "cnitool")?);
        command
            .args([verb, "twill"])
            .arg(netns)
            .env("CNI_PATH", format!("{}:{}", programs::directory()?.display(), plugins.display()))
            .env("NETCONFPATH", &self.directory)
            .env("CAP_ARGS", self.capabilities.to_string());
        check(&format!("cnitool {verb}"), &self.node()?.output(&mut command)?)
    }

    /// A pod with its result.
    pub(crate) fn add(&self, name: &str) -> Result<(Namespace, Value)> {
        let pod = Namespace::create(name)?;
        let printed = self.call("add", pod.path())?;
        let result = serde_json::from_str(&printed).context(printed)?;
        Ok((pod, result))
    }

    pub(crate) fn del(&self, pod: &Namespace) -> Result<()> {
        self.call("del", pod.path()).map(drop)
    }

    /// After the last DEL: waits until the node is as before, but for its block.
    pub(crate) fn wait_as_before(&self, before: &Snapshot) -> Result<()> {
        wait_for("the node to be as before", LONG, || {
            let left = before.differences(&Snapshot::namespace(self.node()?)?);
            ensure!(left.iter().all(|line| line.contains("unreachable")), "{left:#?}");
            Ok(())
        })
    }

    /// The node's packet filter, in both of its languages: the lines with one of these words.
    pub(crate) fn filter_with(&self, words: &[&str]) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for program in ["iptables-save", "nft"] {
            let mut command = Command::new(program);
            if program == "nft" {
                command.args(["list", "ruleset"]);
            }
            let text = check(program, &self.node()?.output(&mut command)?)?;
            let found = text.lines().filter(|line| words.iter().any(|word| line.contains(word)));
            lines.extend(found.map(|line| line.trim().to_owned()));
        }
        Ok(lines)
    }

    /// Addresses in use on the node.
    pub(crate) fn used(&self) -> Result<u64> {
        self.lab.node("node1")?.addresses_in_use()
    }
}

/// After a runtime's last container: waits until no process, mount or namespace of it is left.
pub(crate) fn wait_host_as_before(before: &Snapshot) -> Result<()> {
    // Directories that runtimes make once, and podman's own mount of the one with the namespaces,
    // which shows those of the lab a second time.
    let kept = [
        "file /run/runc",
        "file /run/containerd",
        "file /var/lib/cni/results",
        " /run/netns rw",
        " /run/netns/fabric rw",
        " /run/netns/tor rw",
        " /run/netns/node1 rw",
    ];
    wait_for("the host to be as before", LONG, || {
        let mut left = before.differences(&Snapshot::host()?);
        left.retain(|line| !kept.iter().any(|kept| line.contains(kept)));
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
}
