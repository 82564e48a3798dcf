//! podman with its CNI backend: containers come up, reach each other, restart, and go.

use std::{
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cgroup::Cgroup, image, ping, process::check, programs, snapshot::Snapshot, wait::wait_for,
};

use crate::{
    LONG,
    tool::{Site, wait_host_as_before},
};

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
        self.start_with(name, &["--network", "twill"], &["/bin/sleep", "1000"])?;
        self.address(name)
    }

    /// A container with these options of `podman run`, which does this.
    fn start_with(&self, name: &str, options: &[&str], program: &[&str]) -> Result<()> {
        let group = self.cgroup.path();
        let own = ["run", "--detach", "--name", name, "--cgroup-parent", &group];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let image = ["localhost/busybox:test"];
        self.run(&[&own[..], &limits, options, &image, program].concat()).map(drop)
    }

    fn address(&self, name: &str) -> Result<IpAddr> {
        self.address_on("twill", name)
    }

    /// What podman was told by the plugin.
    fn address_on(&self, network: &str, name: &str) -> Result<IpAddr> {
        let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
        let printed = self.run(&["inspect", "--format", &format, name])?;
        printed.trim().parse().with_context(|| format!("{name} has the address {printed:?}"))
    }

    /// What the container sees of an interface.
    fn interface(&self, name: &str, interface: &str) -> Result<String> {
        self.run(&["exec", name, "/bin/ip", "address", "show", "dev", interface])
    }

    /// Ends these containers; nothing of them is left on the node, nor on the host.
    fn remove(&self, names: &[&str], (host, before): &(Snapshot, Snapshot)) -> Result<()> {
        self.run(&[&["rm", "--force", "--time", "0"], names].concat())?;
        self.site.wait_as_before(before)?;
        wait_host_as_before(host)?;
        ensure!(self.site.used()? == 0, "{} addresses are in use", self.site.used()?);
        Ok(())
    }

    fn before(&self) -> Result<(Snapshot, Snapshot)> {
        Ok((Snapshot::host()?, Snapshot::namespace(self.site.node()?)?))
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
    let (host, before) = podman.before()?;
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

/// What `runtimeConfig` has by the capabilities `ips` and `mac`, which the shipped list declares.
pub(crate) fn an_address_and_a_hardware_address_are_asked_for() -> Result<()> {
    const MAC: &str = "02:00:5e:10:00:07";
    let podman = Podman::new(|_| {})?;
    let before = podman.before()?;
    let options = ["--network", "twill", "--ip", "10.10.3.77", "--mac-address", MAC];
    podman.start_with("one", &options, &["/bin/sleep", "1000"])?;
    let inside = podman.interface("one", "eth0")?;
    ensure!(inside.contains("inet 10.10.3.77/32 ") && inside.contains(MAC), "{inside}");
    ensure!(podman.address("one")? == IpAddr::from([10, 10, 3, 77]));
    ping::reaches(podman.site.node()?, podman.address("one")?)?;
    let two = podman.start("two")?;
    podman.ping("one", two)?;
    podman.ping("two", podman.address("one")?)?;
    // Taken by somebody, who is named.
    let refused = podman.start_with("three", &options, &["/bin/sleep", "1000"]);
    let refused = format!("{:#}", refused.err().context("two have one address")?);
    ensure!(refused.contains("10.10.3.77 is in use by"), "{refused}");
    // The same once more, in another namespace.
    podman.run(&["restart", "--time", "0", "one"])?;
    let inside = podman.interface("one", "eth0")?;
    ensure!(inside.contains("inet 10.10.3.77/32 ") && inside.contains(MAC), "{inside}");
    podman.remove(&["one", "two", "three"], &before)
}

/// A port of the node by `portmap`, which comes next in the list.
pub(crate) fn a_port_leads_to_the_container() -> Result<()> {
    let podman = Podman::new(|list| {
        let portmap =
            json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}});
        if let Some(plugins) = list["plugins"].as_array_mut() {
            plugins.push(portmap);
        }
    })?;
    let before = podman.before()?;
    // To each caller it says who it is.
    let serve = "/bin/busybox nc -ll -p 80 -e /bin/ip address show dev eth0";
    let serve: Vec<&str> = serve.split(' ').collect();
    podman.start_with("web", &["--network", "twill", "--publish", "8080:80"], &serve)?;
    let own = format!("inet {}/32 ", podman.address("web")?);
    let tor = podman.site.lab.router("tor")?;
    let ask = || -> Result<String> {
        tor.enter(|| -> Result<String> {
            let to = SocketAddr::from(([192, 168, 2, 11], 8080));
            let mut stream = TcpStream::connect_timeout(&to, LONG)?;
            stream.set_read_timeout(Some(LONG))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        })?
    };
    let said = wait_for("the container's answer", LONG, &ask)?;
    ensure!(said.contains(&own), "{said}, not of {own}");
    podman.remove(&["web"], &before)?;
    ensure!(ask().is_err(), "the port leads somewhere still");
    let rules = podman.site.filter_with(&["8080"])?;
    ensure!(rules.is_empty(), "{rules:#?}");
    Ok(())
}

/// Two networks from the start, a second one later, and away again.
pub(crate) fn a_container_is_on_two_networks() -> Result<()> {
    let podman = Podman::new(|_| {})?;
    let directory = podman.site.list_directory();
    let mut blue: Value =
        serde_json::from_str(&fs::read_to_string(directory.join("05-twill.conflist"))?)?;
    blue["name"] = json!("blue");
    fs::write(directory.join("06-blue.conflist"), blue.to_string())?;
    let before = podman.before()?;
    podman.start_with("both", &["--network", "twill,blue"], &["/bin/sleep", "1000"])?;
    let later = podman.start("later")?;
    podman.run(&["network", "connect", "blue", "later"])?;
    let node = podman.site.node()?;
    for name in ["both", "later"] {
        let mut all = String::new();
        for interface in ["eth0", "eth1"] {
            all += &podman.interface(name, interface)?;
        }
        for network in ["twill", "blue"] {
            let address = podman.address_on(network, name)?;
            ensure!(
                all.contains(&format!("inet {address}/32 ")),
                "no {address} of {network}: {all}"
            );
            ping::reaches(node, address).with_context(|| format!("{name} on {network}"))?;
            let other = if name == "both" { "later" } else { "both" };
            podman.ping(other, address)?;
        }
    }
    ensure!(podman.site.used()? == 4, "{} addresses are in use", podman.site.used()?);
    podman.run(&["network", "disconnect", "blue", "later"])?;
    ensure!(podman.interface("later", "eth1").is_err(), "its second interface is there still");
    ping::reaches(node, later)?;
    podman.ping("both", later)?;
    podman.remove(&["both", "later"], &before)
}
