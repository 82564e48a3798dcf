//! podman with its CNI backend: containers come up, reach each other, restart, and go.

use std::{fs, net::IpAddr, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{cgroup::Cgroup, image, ping, process::check, programs, snapshot::Snapshot};

use crate::tool::{Site, wait_host_as_before};

struct Podman {
    site: Site,
    directory: PathBuf,
    cgroup: Cgroup,
}

impl Podman {
    fn new(change: impl FnOnce(&mut Value)) -> Result<Self> {
        let site = Site::new(change)?;
        let directory = site.lab.node("node1")?.dir().join("podman");
        fs::create_dir(&directory)?;
        let plugins = programs::go_tool("cni", "ptp")?;
        let dirs = [programs::directory()?, plugins.parent().context("no directory")?.to_owned()];
        let config = format!(
            "[network]\nnetwork_backend=\"cni\"\ncni_plugin_dirs={:?}\nnetwork_config_dir={:?}\n\
             [engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n",
            dirs,
            site.list_directory()
        );
        fs::write(directory.join("containers.conf"), config)?;
        fs::write(
            directory.join("policy.json"),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )?;
        let podman = Self { site, directory, cgroup: Cgroup::new("podman") };
        let tar = image::root(&podman.directory)?;
        podman.run(&["import", &tar.display().to_string(), "localhost/busybox:test"])?;
        Ok(podman)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        for (flag, directory) in
            [("--root", "root-store"), ("--runroot", "run"), ("--tmpdir", "tmp")]
        {
            command.arg(flag).arg(self.directory.join(directory));
        }
        command
            .args(["--storage-driver", "vfs", "--runtime", "runc"])
            .args(arguments)
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .env("TMPDIR", &self.directory);
        if arguments.first() == Some(&"import") {
            command.arg("--signature-policy").arg(self.directory.join("policy.json"));
        }
        check(&format!("podman {arguments:?}"), &self.site.node()?.output(&mut command)?)
    }

    fn start(&self, name: &str) -> Result<IpAddr> {
        self.run(&[
            "run",
            "--cgroup-parent",
            &self.cgroup.path(),
            "--detach",
            "--name",
            name,
            "--network",
            "twill",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
            "localhost/busybox:test",
            "/bin/sleep",
            "1000",
        ])?;
        self.address(name)
    }

    fn address(&self, name: &str) -> Result<IpAddr> {
        let format = "{{(index .NetworkSettings.Networks \"twill\").IPAddress}}";
        let printed = self.run(&["inspect", "--format", format, name])?;
        printed.trim().parse().with_context(|| format!("{name} has the address {printed:?}"))
    }

    /// The container's id, and where its network namespace is.
    fn place(&self, name: &str) -> Result<(String, String)> {
        let format = "{{.Id}} {{.NetworkSettings.SandboxKey}}";
        let printed = self.run(&["inspect", "--format", format, name])?;
        let (id, namespace) = printed.trim().split_once(' ').context("two words")?;
        Ok((id.to_owned(), namespace.to_owned()))
    }

    fn ping(&self, from: &str, to: IpAddr) -> Result<String> {
        self.run(&["exec", from, "/bin/ping", "-c", "1", "-W", "5", &to.to_string()])
    }
}

/// Containers come up, reach each other and the node, restart, and leave nothing.
fn containers_live(podman: &Podman) -> Result<()> {
    let node = podman.site.node()?;
    let (host, before) = (Snapshot::host()?, Snapshot::namespace(node)?);
    let (mut one, two) = (podman.start("one")?, podman.start("two")?);
    for restart in 0..3 {
        podman.ping("one", two)?;
        podman.ping("two", one)?;
        ping::reaches(node, one)?;
        // The same container id and interface name, at once, in another namespace.
        let was = podman.place("one")?;
        podman.run(&["restart", "--time", "0", "one"])?;
        let is = podman.place("one")?;
        ensure!(was.0 == is.0 && was.1 != is.1, "restart {restart}: {was:?}, then {is:?}");
        one = podman.address("one")?;
    }
    podman.ping("two", one)?;
    let links = node.ip_json("link show type veth")?;
    let links = links.iter().filter_map(|link| link["ifname"].as_str());
    let links: Vec<_> = links.filter(|name| name.starts_with("twl")).collect();
    ensure!(links.len() == 2, "two containers have {links:?}");
    podman.run(&["rm", "--force", "--time", "0", "one", "two"])?;
    podman.site.wait_as_before(&before)?;
    wait_host_as_before(&host)
}

pub(crate) fn containers_live_with_the_daemon() -> Result<()> {
    let podman = Podman::new(|_| {})?;
    containers_live(&podman)?;
    ensure!(podman.site.used()? == 0, "{} addresses are in use", podman.site.used()?);
    Ok(())
}

/// Twice, with fewer addresses than containers, counted with their restarts.
pub(crate) fn containers_live_without_a_daemon() -> Result<()> {
    let mut podman = Podman::new(|list| {
        list["plugins"][0]["ipam"] =
            json!({"mode": "standalone", "pools": [{"cidr": "10.30.0.0/30", "blockSize": 30}]});
    })?;
    podman.site.lab.node_mut("node1")?.stop()?;
    let before = Snapshot::namespace(podman.site.node()?)?;
    containers_live(&podman)?;
    containers_live(&podman)?;
    // Nobody announces blocks here, so there is not even a route for one.
    let left = before.differences(&Snapshot::namespace(podman.site.node()?)?);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
