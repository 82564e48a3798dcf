//! podman with its CNI backend: containers come up, reach each other, restart, and go.

use std::{fs, net::IpAddr, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{ping, process::check, programs, snapshot::Snapshot, wait::wait_for};

use crate::{LONG, cgroup::Cgroup, image, tool::Site};

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

    fn ping(&self, from: &str, to: IpAddr) -> Result<String> {
        self.run(&["exec", from, "/bin/ping", "-c", "1", "-W", "5", &to.to_string()])
    }
}

pub(crate) fn containers_live_with_the_daemon() -> Result<()> {
    let podman = Podman::new(|_| {})?;
    let before = Snapshot::namespace(podman.site.node()?)?;
    let (one, two) = (podman.start("one")?, podman.start("two")?);
    podman.ping("one", two)?;
    podman.ping("two", one)?;
    ping::reaches(podman.site.lab.node("node1")?.namespace(), one)?;
    // The same container id and interface name, in another namespace, at once.
    podman.run(&["restart", "--time", "0", "one"])?;
    let again = podman.address("one")?;
    podman.ping("two", again)?;
    ensure!(podman.site.used()? == 2, "{} addresses are in use", podman.site.used()?);
    podman.run(&["rm", "--force", "--time", "0", "one", "two"])?;
    ensure!(podman.site.used()? == 0, "{} addresses are in use", podman.site.used()?);
    wait_for("the node to be as before", LONG, || {
        let left = before.differences(&Snapshot::namespace(podman.site.node()?)?);
        ensure!(left.iter().all(|line| line.contains("unreachable")), "{left:#?}");
        Ok(())
    })
}

pub(crate) fn containers_live_without_a_daemon() -> Result<()> {
    let mut podman = Podman::new(|list| {
        list["plugins"][0]["ipam"] =
            json!({"mode": "standalone", "pools": [{"cidr": "10.30.0.0/29", "blockSize": 30}]});
    })?;
    podman.site.lab.node_mut("node1")?.stop()?;
    let before = Snapshot::namespace(podman.site.node()?)?;
    for _ in 0..2 {
        let (one, two) = (podman.start("one")?, podman.start("two")?);
        podman.ping("one", two)?;
        podman.ping("two", one)?;
        podman.run(&["rm", "--force", "--time", "0", "one", "two"])?;
        let left = before.differences(&Snapshot::namespace(podman.site.node()?)?);
        ensure!(left.is_empty(), "{left:#?}");
    }
    Ok(())
}
