//! A node of the cluster: its daemon, its CLI, its container runtime.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    cni::Runtime,
    netns::Namespace,
    process::{Daemon, check},
    programs,
    wait::wait_for,
};

/// How long a daemon may take until it answers, or until it has ended after SIGTERM: longer than its own pause of half
/// a minute after a request that failed.
const PATIENCE: Duration = Duration::from_secs(45);

/// Where the daemon gets the resources from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// The directory with the manifests.
    Files,
    /// The API server that `<node>.kubeconfig` in a directory leads to.
    Kubernetes(&'a Path),
}

/// A node with the files of its own: `twilld.yaml`, `run/`, `state/`, `twilld.log`.
#[derive(Debug)]
pub struct Node {
    name: String,
    daemon: Option<Daemon>,
    namespace: Namespace,
    dir: PathBuf,
    resources: PathBuf,
    runtime: Runtime,
}

impl Node {
    pub(super) fn new(
        name: &str,
        namespace: Namespace,
        dir: &Path,
        (resources, source): (&Path, Source<'_>),
        settings: &str,
    ) -> Result<Self> {
        for sub in ["run", "state"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let datastore = match source {
            Source::Files => format!(
                "datastore:\n  type: file\n  directory: {}\n  shared: true\n",
                resources.display()
            ),
            Source::Kubernetes(path) => {
                let path = path.join(format!("{name}.kubeconfig"));
                format!("datastore:\n  type: kubernetes\n  kubeconfig: {}\n", path.display())
            }
        };
        let config = format!(
            "nodeName: {name}\nstateDir: {dir}/state\nrunDir: {dir}/run\n{datastore}{settings}",
            dir = dir.display(),
        );
        fs::write(dir.join("twilld.yaml"), config)?;
        let ipam = json!({"type": "twill-ipam", "mode": "daemon"});
        let conflist = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": "pods",
            "plugins": [{"type": "twill", "runDir": dir.join("run"), "ipam": ipam}],
        });
        Ok(Self {
            name: name.to_owned(),
            daemon: None,
            namespace,
            dir: dir.to_owned(),
            resources: resources.to_owned(),
            runtime: Runtime::new(
                conflist,
                vec![programs::directory()?, programs::REFERENCE_PLUGINS.into()],
            ),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The daemon's configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("twilld.yaml")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/twilld.sock")
    }

    /// Its container runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The same, to give it another network configuration.
    pub fn runtime_mut(&mut self) -> &mut Runtime {
        &mut self.runtime
    }

    /// The running daemon.
    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().with_context(|| format!("twilld does not run on {}", self.name))
    }

    /// Starts the daemon and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the daemon.
    pub fn launch(&mut self) -> Result<()> {
        self.launch_by(&[])
    }

    /// Starts the daemon by a program that becomes it (`unshare --mount`).
    pub fn launch_by(&mut self, wrapper: &[&str]) -> Result<()> {
        ensure!(self.daemon.is_none(), "twilld runs already on {}", self.name);
        let daemon = programs::find("twilld")?;
        let mut command = match wrapper {
            [] => Command::new(daemon),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(daemon);
                command
            }
        };
        command.arg("--config").arg(self.config());
        let name = format!("twilld of {}", self.name);
        let log = self.dir.join("twilld.log");
        self.daemon = Some(Daemon::start(&name, &self.namespace, &mut command, &log)?);
        Ok(())
    }

    /// Waits until the daemon has read its first full configuration and answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let name = self.name.clone();
        wait_for(&format!("twilld of {name}"), PATIENCE, || {
            let daemon = self.daemon.as_mut();
            let daemon = daemon.with_context(|| format!("twilld does not run on {name}"))?;
            if let Err(ended) = daemon.alive() {
                return Ok(Err(ended));
            }
            UnixStream::connect(&socket)
                .with_context(|| format!("cannot connect to {}", socket.display()))?;
            let status = self.status()?;
            ensure!(status["inSync"] == true, "not in sync: {status}");
            Ok(Ok(()))
        })?
    }

    /// SIGKILL for the daemon.
    pub fn kill9(&mut self) -> Result<()> {
        let daemon = self.daemon.take();
        daemon.with_context(|| format!("twilld does not run on {}", self.name))?.kill9()
    }

    /// SIGTERM for the daemon; waits until it has ended, and well.
    pub fn stop(&mut self) -> Result<()> {
        let daemon = self.daemon.take();
        let mut daemon = daemon.with_context(|| format!("twilld does not run on {}", self.name))?;
        daemon.signal(Signal::SIGTERM)?;
        let status = daemon.wait(PATIENCE)?;
        ensure!(status.success(), "twilld of {} ended with {status}", self.name);
        Ok(())
    }

    /// Starts another daemon, which waits for what the running one owns, and then stops that one:
    /// what an upgrade does. Waits until the new one serves.
    pub fn upgrade(&mut self) -> Result<()> {
        let old = self.daemon.take();
        let mut old = old.with_context(|| format!("twilld does not run on {}", self.name))?;
        self.launch()?;
        old.signal(Signal::SIGTERM)?;
        let status = old.wait(PATIENCE)?;
        ensure!(status.success(), "twilld of {} ended with {status}", self.name);
        self.wait_ready()
    }

    /// All that its daemons logged.
    pub fn log(&self) -> String {
        crate::process::read_lossy(&self.dir.join("twilld.log"))
    }

    /// `twillctl ARGUMENTS` against this node, whatever its exit status.
    pub fn ctl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(programs::find("twillctl")?);
        command.arg("--socket").arg(self.socket()).arg("--resources").arg(&self.resources);
        command.args(arguments);
        self.namespace.output(&mut command)
    }

    /// `twillctl ARGUMENTS` against this node: what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ctl_output(arguments)?;
        check(&format!("twillctl {} on {}", arguments.join(" "), self.name), &output)
    }

    /// The same with `-o json`.
    pub fn ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ctl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("twillctl {} printed no JSON: {text}", arguments.join(" ")))
    }

    /// `twillctl node status`.
    pub fn status(&self) -> Result<Value> {
        self.ctl_json(&["node", "status"])
    }

    /// The session with a peer, as `twillctl bgp peers` has it.
    pub fn peer(&self, address: &str) -> Result<Value> {
        let peers = self.ctl_json(&["bgp", "peers"])?;
        let found = peers.as_array().into_iter().flatten().find(|p| p["address"] == address);
        found.cloned().with_context(|| format!("{} has no peer {address}: {peers}", self.name))
    }

    /// Waits until the sessions with all of these peers are established.
    pub fn wait_established(&self, peers: &[&str], deadline: Duration) -> Result<()> {
        for address in peers {
            wait_for(&format!("{}'s session with {address}", self.name), deadline, || {
                let peer = self.peer(address)?;
                ensure!(peer["state"] == "Established", "{peer}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// How many addresses of its blocks are in use.
    pub fn addresses_in_use(&self) -> Result<u64> {
        Ok(self.own_blocks()?.iter().filter_map(|block| block["used"].as_u64()).sum())
    }

    /// The blocks that it owns.
    pub fn blocks(&self) -> Result<Vec<String>> {
        let blocks = self.own_blocks()?;
        Ok(blocks.iter().filter_map(|b| b["block"].as_str().map(str::to_owned)).collect())
    }

    /// The blocks that its store has, as `twillctl ipam show` has them.
    fn own_blocks(&self) -> Result<Vec<Value>> {
        let ipam = self.ctl_json(&["ipam", "show", "--show-blocks"])?;
        let blocks = ipam["blocks"].as_array().with_context(|| format!("no blocks in {ipam}"))?;
        let own = blocks
            .iter()
            .filter(|b| b["node"] == self.name.as_str() && b["assignable"].is_boolean());
        Ok(own.cloned().collect())
    }

    /// Kernel routes of the daemon's own protocol number (`ip -json route`).
    pub fn own_routes(&self, family: &str) -> Result<Vec<Value>> {
        let protocol = twill_types::ROUTE_PROTOCOL;
        self.namespace.ip_json(&format!("{family} route show table all proto {protocol}"))
    }

    /// Waits until the kernel has a learned route to exactly this prefix.
    pub fn wait_route(&self, prefix: &str, deadline: Duration) -> Result<Value> {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        wait_for(&format!("{}'s route to {prefix}", self.name), deadline, || {
            let routes = self.own_routes(family)?;
            let found = routes.iter().find(|r| r["dst"] == prefix && r["type"] != "unreachable");
            found.cloned().with_context(|| format!("it has {routes:?}"))
        })
    }

    /// Waits until the kernel has no route of the daemon's to this prefix.
    pub fn wait_no_route(&self, prefix: &str, deadline: Duration) -> Result<()> {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        wait_for(&format!("{}'s route to {prefix} to go", self.name), deadline, || {
            let routes = self.own_routes(family)?;
            ensure!(!routes.iter().any(|route| route["dst"] == prefix), "it has {routes:?}");
            Ok(())
        })
    }
}
