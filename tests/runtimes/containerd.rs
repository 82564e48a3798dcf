//! containerd by CRI, as a kubelet calls it: sandboxes come up, reach each other, and go. Debian's
//! 1.6, which knows no STATUS, and 2.x, which asks for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use twill_tests::{
    cgroup::Cgroup,
    image, ping,
    process::{Daemon, check, run},
    programs,
    snapshot::Snapshot,
    wait::wait_for,
};

use crate::{
    LONG,
    tool::{Site, wait_host_as_before},
};

const IMAGE: &str = "localhost/busybox:test";

struct Containerd {
    // Ends before the node's namespaces.
    daemon: Daemon,
    site: Site,
    directory: PathBuf,
    /// `ctr` of the same release.
    ctr: PathBuf,
    cgroup: Cgroup,
}

/// A release: where its programs are, and the version of its configuration.
struct Release {
    daemon: PathBuf,
    ctr: PathBuf,
    config: u32,
}

impl Release {
    /// Debian's package.
    fn debian() -> Self {
        Self { daemon: "/usr/bin/containerd".into(), ctr: "/usr/bin/ctr".into(), config: 2 }
    }

    fn newest() -> Result<Self> {
        let program = |name| programs::go_tool("containerd", name);
        Ok(Self { daemon: program("containerd")?, ctr: program("ctr")?, config: 3 })
    }

    fn configuration(&self, directory: &Path, bin: &Path, lists: &Path) -> String {
        let (root, state) = (directory.join("root"), directory.join("state"));
        let socket = directory.join("sock");
        // Made at the start, below the machine's /opt where nothing else is said.
        let opt = directory.join("opt");
        let cri = match self.config {
            2 => format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image={IMAGE:?}\n\
                 restrict_oom_score_adj=true\ndisable_apparmor=true\nstream_server_port=\"0\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter=\"native\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir={bin:?}\nconf_dir={lists:?}\n"
            ),
            _ => format!(
                "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter=\"native\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox={IMAGE:?}\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj=true\n\
                 disable_apparmor=true\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
                 bin_dirs=[{bin:?}]\nconf_dir={lists:?}\n"
            ),
        };
        format!(
            "version={}\nroot={root:?}\nstate={state:?}\n[grpc]\naddress={socket:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath={opt:?}\n{cri}",
            self.config
        )
    }
}

impl Containerd {
    fn start(release: &Release) -> Result<Self> {
        let site = Site::new(|_| {})?;
        let directory = site.lab.node("node1")?.dir().join("containerd");
        fs::create_dir(&directory)?;
        let bin = directory.join("bin");
        fs::create_dir(&bin)?;
        let plugin = programs::find("twill")?;
        for (name, program) in
            [("twill", plugin), ("loopback", programs::go_tool("cni", "loopback")?)]
        {
            std::os::unix::fs::symlink(program, bin.join(name))?;
        }
        let config = directory.join("config.toml");
        fs::write(&config, release.configuration(&directory, &bin, site.list_directory()))?;
        let mut command = Command::new(&release.daemon);
        // The shim is found beside it.
        let own = release.daemon.parent().context("no directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg("--config").arg(&config).env("PATH", format!("{}:{path}", own.display()));
        let log = directory.join("containerd.log");
        let daemon = Daemon::start("containerd", site.node()?, &mut command, &log)?;
        let cgroup = Cgroup::new("containerd");
        let ctr = release.ctr.clone();
        let containerd = Self { daemon, site, directory, ctr, cgroup };
        wait_for("containerd", LONG, || containerd.crictl(&["version"]).map(drop))?;
        let tar = image::archive(&containerd.directory, IMAGE)?;
        let tar = tar.display().to_string();
        let mut import = vec!["-n", "k8s.io", "images", "import", "--snapshotter", "native", &tar];
        if release.config > 2 {
            // Unpacks by itself; the daemon's own service wants a platform for each snapshotter.
            import.push("--local");
        }
        containerd.ctr(&import)?;
        Ok(containerd)
    }

    fn crictl(&self, arguments: &[&str]) -> Result<String> {
        let endpoint = format!("unix://{}", self.directory.join("sock").display());
        let mut command = Command::new(programs::go_tool("crictl", "crictl")?);
        command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint]);
        command.args(["--timeout", "30s"]).args(arguments);
        check(&format!("crictl {arguments:?}"), &command.output()?)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.ctr);
        run(command.arg("--address").arg(self.directory.join("sock")).args(arguments))
    }

    /// A sandbox with these annotations; its id.
    fn sandbox(&self, name: &str, annotations: &Value) -> Result<String> {
        let config = json!({
            "metadata": {"name": name, "namespace": "prod", "uid": name, "attempt": 1},
            "annotations": annotations,
            "log_directory": self.directory,
            "linux": {"cgroup_parent": self.cgroup.path()},
        });
        let file = self.directory.join(format!("{name}.json"));
        fs::write(&file, config.to_string())?;
        Ok(self.crictl(&["runp", &file.display().to_string()])?.trim().to_owned())
    }

    /// What CRI says of a sandbox: its address and its namespace.
    fn inspect(&self, id: &str) -> Result<(std::net::IpAddr, PathBuf)> {
        let printed: Value = serde_json::from_str(&self.crictl(&["inspectp", id])?)?;
        let address = printed["status"]["network"]["ip"].as_str().context("no address")?;
        let namespaces = printed["info"]["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces.into_iter().flatten().find(|n| n["type"] == "network");
        let path = network.and_then(|n| n["path"].as_str()).context("no network namespace")?;
        Ok((address.parse()?, path.into()))
    }

    fn pings(&self, from: &Path, to: std::net::IpAddr) -> Result<()> {
        let netns = twill_sys::Netns::open(from)?;
        let mut command = Command::new(image::BUSYBOX);
        command.args(["ping", "-c", "1", "-W", "5", &to.to_string()]);
        let output = twill_sys::in_netns(&netns, || command.output())??;
        check(&format!("ping from {}", from.display()), &output).map(drop)
    }

    /// Whether CRI calls the network ready, and why not.
    fn network_ready(&self) -> Result<(bool, String)> {
        let printed: Value = serde_json::from_str(&self.crictl(&["info"])?)?;
        let conditions = printed["status"]["conditions"].as_array().into_iter().flatten();
        let network = conditions.into_iter().find(|c| c["type"] == "NetworkReady");
        let network = network.context("no condition NetworkReady")?;
        Ok((network["status"] == true, network["message"].to_string()))
    }
}

/// Sandboxes come up, reach each other and the node, and leave nothing.
fn pods_live(containerd: &Containerd) -> Result<()> {
    let node = containerd.site.node()?;
    wait_for("the network", LONG, || {
        let (ready, why) = containerd.network_ready()?;
        ensure!(ready, "{why}");
        Ok(())
    })?;
    let (host, before) = (Snapshot::host()?, Snapshot::namespace(node)?);
    let sandbox = |name| containerd.sandbox(name, &json!({}));
    let (one, two) = (sandbox("one")?, sandbox("two")?);
    let ((here, first), (there, second)) = (containerd.inspect(&one)?, containerd.inspect(&two)?);
    containerd.pings(&first, there)?;
    containerd.pings(&second, here)?;
    ping::reaches(node, here)?;
    // The pod's name leads to its link.
    node.ip("link show dev one.prod")?;
    // One namespace goes before its pod: DEL comes with an empty CNI_NETNS.
    umount2(&second, MntFlags::MNT_DETACH)?;
    fs::remove_file(&second)?;
    for id in [&one, &two] {
        containerd.crictl(&["stopp", id])?;
        // A second time, when the other's namespace is gone, too.
        containerd.crictl(&["stopp", id])?;
        containerd.crictl(&["rmp", id])?;
    }
    ensure!(containerd.site.used()? == 0, "{} addresses are in use", containerd.site.used()?);
    containerd.site.wait_as_before(&before)?;
    wait_host_as_before(&host)
}

/// What a pod asks for comes from the runtime alone: the datastore here is of files, without pods.
fn annotations_count(containerd: &Containerd) -> Result<()> {
    let (address, mac) = ("10.10.3.77", "02:00:00:00:00:2a");
    let asked = json!({
        "cni.projectcalico.org/ipAddrs": format!("[{address:?}]"),
        "cni.projectcalico.org/hwAddr": mac,
        "example.com/other": "x",
    });
    let id = containerd.sandbox("asks", &asked)?;
    let (given, netns) = containerd.inspect(&id)?;
    ensure!(given.to_string() == address, "{given} instead of {address}");
    ping::reaches(containerd.site.node()?, given)?;
    let netns = twill_sys::Netns::open(&netns)?;
    let mut command = Command::new("ip");
    let shown = twill_sys::in_netns(&netns, || run(command.args(["link", "show", "eth0"])))??;
    ensure!(shown.contains(mac), "{shown}");
    for verb in ["stopp", "rmp"] {
        containerd.crictl(&[verb, &id])?;
    }
    ensure!(containerd.site.used()? == 0, "{} addresses are in use", containerd.site.used()?);
    Ok(())
}

pub(crate) fn debians_sandboxes_live() -> Result<()> {
    let containerd = Containerd::start(&Release::debian())?;
    pods_live(&containerd)?;
    annotations_count(&containerd)
}

/// It asks STATUS each time that the kubelet asks it: a daemon that restarts must not make the
/// node NotReady, and one that stays away has to.
pub(crate) fn the_newest_asks_for_status() -> Result<()> {
    let mut containerd = Containerd::start(&Release::newest()?)?;
    pods_live(&containerd)?;
    annotations_count(&containerd)?;
    containerd.site.lab.node_mut("node1")?.kill9()?;
    let (ready, why) = containerd.network_ready()?;
    ensure!(ready, "a daemon that is away for a moment: {why}");

    containerd.site.configure(|list| list["plugins"][0]["statusGraceSeconds"] = json!(1))?;
    wait_for("the network not to be ready", LONG, || {
        let (ready, why) = containerd.network_ready()?;
        ensure!(!ready && why.contains("twilld.sock"), "ready: {ready}, {why}");
        Ok(())
    })?;
    containerd.daemon.alive()?;
    containerd.site.lab.node_mut("node1")?.start()?;
    pods_live(&containerd)
}
