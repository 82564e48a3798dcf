//! The API server, the controller, and the process of the nodes, each in a network namespace of its own kind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    kubernetes::ApiServer,
    netns::Namespace,
    process::{Daemon, run},
    programs,
    sandbox::LABS,
    wait::{wait_for, wait_until},
};

use super::{Arguments, audit::Watches, fleet, report::Took};

/// The account of node daemons, and where it is.
pub(super) const ACCOUNT: &str = "twill-node";
pub(super) const NAMESPACE: &str = "twill-system";

/// The nodes' process says so when all have what they need, with the seconds that it took.
pub(super) const SETTLED: &str = "settled";

/// Where a token goes in the kubeconfig of a node.
pub(super) const TOKEN: &str = "TOKEN";

/// How the nodes reach the API server: through a link whose octets are counted.
const SEGMENT: &str = "nodes";
const ADDRESS: &str = "10.199.0.1";
const OWN_ADDRESS: &str = "10.199.0.2/24";

/// The end of that link on the nodes' side.
pub(super) const LINK: &str = "wire-api";

/// The lists that a node watches (docs/kubernetes.md).
const WATCHES: usize = 13;

/// How long the API server may take for what it does by itself.
const LONG: Duration = Duration::from_secs(60);

/// A cluster without kubelets.
pub(super) struct Site {
    arguments: Arguments,
    kubeconfigs: PathBuf,
    seed: u64,
    /// How often the controller ended and was started again, as a kubelet does: one whose Lease cannot be
    /// renewed ends itself.
    pub(super) controller_starts: u32,
    // In this order they end.
    pub(super) fleet: Option<Daemon>,
    pub(super) controller: Daemon,
    pub(super) api: ApiServer,
    network: Namespace,
}

impl Site {
    /// Starts all but the nodes.
    pub(super) fn start(arguments: &Arguments) -> Result<Self> {
        let directory = Path::new(LABS).join("scale");
        let api = ApiServer::start("scale-api", &directory)?;
        define(&api, arguments.mesh, arguments.nodes * arguments.blocks)?;
        let network = Namespace::create("scale-nodes")?;
        network.ip_batch(&format!(
            "link add {SEGMENT} type bridge\nlink set {SEGMENT} up\n\
             addr add {OWN_ADDRESS} dev {SEGMENT}\n"
        ))?;
        api.join(&network, SEGMENT, &format!("{ADDRESS}/24"))?;
        let kubeconfigs = directory.join("members");
        prepare(&api, arguments.nodes, &kubeconfigs)?;
        let controller = start_controller(&api)?;
        let (arguments, seed) = (arguments.clone(), arguments.seed);
        Ok(Self {
            arguments,
            kubeconfigs,
            seed,
            controller_starts: 1,
            fleet: None,
            controller,
            api,
            network,
        })
    }

    /// Starts all nodes at once, and waits until each has its blocks, has said that it works, and follows all
    /// that it watches: only then the start is paid for.
    pub(super) fn start_fleet(&mut self, patience: Duration) -> Result<Took> {
        let begun = Instant::now();
        let Arguments { nodes, blocks, seed, .. } = self.arguments;
        let log = self.api.directory().join("nodes.log");
        let _ = fs::remove_file(&log);
        let mut watches = Watches::from_now(&self.api)?;
        let mut command = Command::new(env::current_exe()?);
        command.arg("nodes").args([nodes.to_string(), blocks.to_string(), seed.to_string()]);
        command.arg(&self.kubeconfigs);
        self.fleet = Some(Daemon::start("nodes", &self.network, &mut command, &log)?);
        self.wait("the nodes to settle", patience, |site| {
            let log = site.fleet.as_ref().context("no nodes run")?.log();
            ensure!(log.lines().any(|line| line.starts_with(SETTLED)), "{log}");
            Ok(())
        })?;
        let settled = Some(begun.elapsed().as_secs_f64());
        let nodes = nodes as usize;
        // After a restart the condition is there from before.
        self.wait("every Node to be up", patience, |site| {
            let up = site.nodes_up()?;
            ensure!(up == nodes, "{up} of {nodes} are");
            Ok(())
        })?;
        self.wait("every node to watch", patience, |_| {
            let (begun, all) = (watches.count()?, nodes * WATCHES);
            ensure!(begun >= all, "{begun} of {all} watches have begun");
            Ok(())
        })?;
        Ok(Took { seconds: begun.elapsed().as_secs_f64(), settled })
    }

    /// Waits for what the nodes do. If they end that is a failure; the controller is started again.
    fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut is_so: impl FnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        wait_for(what, patience, || {
            if let Err(error) = self.fleet.as_mut().context("no nodes run")?.alive() {
                return Ok(Err(error));
            }
            if self.controller.alive().is_err() {
                self.controller = start_controller(&self.api)?;
                self.controller_starts += 1;
            }
            is_so(self).map(Ok)
        })?
    }

    fn nodes_up(&self) -> Result<usize> {
        let path = "jsonpath={range .items[*]}{.status.conditions[?(@.reason==\"TwillIsUp\")].status} {end}";
        let found = self.api.kubectl().run(&["get", "nodes", "-o", path])?;
        Ok(found.split_whitespace().count())
    }

    /// All nodes die at once.
    pub(super) fn kill_fleet(&mut self) -> Result<()> {
        self.fleet.take().context("no nodes run")?.kill9()
    }

    /// How many blocks are claimed. No two claims can be of one block.
    pub(super) fn claims(&self) -> Result<usize> {
        let found = self.api.kubectl().run(&["get", "blockaffinities", "-o", "name"])?;
        Ok(found.lines().count())
    }

    /// Watches a cluster in which nothing happens.
    pub(super) fn idle(&mut self, time: Duration) -> Result<f64> {
        let begun = Instant::now();
        // What is measured is what happens in a given time.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(time);
        let fleet = self.fleet.as_mut().context("no nodes run")?;
        fleet.alive()?;
        self.controller.alive()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Some kubelets say that they live.
    pub(super) fn report_nodes(&mut self, count: u32) -> Result<f64> {
        let begun = Instant::now();
        self.seed += 1;
        let (nodes, count) = (self.arguments.nodes.to_string(), count.to_string());
        let kubeconfig = self.api.kubeconfig();
        let mut command = part("heartbeat")?;
        command.arg(kubeconfig).args([nodes, count, self.seed.to_string()]);
        self.api.namespace().enter(|| run(&mut command))??;
        self.settle()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Some claims are changed, each a little.
    pub(super) fn change_claims(&mut self, count: u32) -> Result<f64> {
        let begun = Instant::now();
        let found = self.api.kubectl().run(&["get", "blockaffinities", "-o", "name"])?;
        for claim in found.lines().take(count as usize) {
            let seen = format!("seen={}", self.seed);
            self.api.kubectl().run(&["annotate", "--overwrite", claim, &seen])?;
        }
        self.settle()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Waits until the API server has told everybody what it has to tell: it uses no more processor time
    /// than what comes by itself.
    fn settle(&self) -> Result<()> {
        let mut before = self.octets()?;
        wait_until("the API server to have told it", LONG, || {
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(500));
            let now = self.octets()?;
            let is_quiet = now.saturating_sub(before) < 2000 * u64::from(self.arguments.nodes);
            before = now;
            Ok(is_quiet)
        })
    }

    /// Octets that the API server has sent to the nodes so far, headers and encryption included.
    pub(super) fn octets(&self) -> Result<u64> {
        let path = format!("/sys/class/net/{LINK}/statistics/rx_bytes");
        let found = self.network.ip_json(&format!("-s link show dev {LINK}"))?;
        let octets = found.first().and_then(|link| link["stats64"]["rx"]["bytes"].as_u64());
        octets.with_context(|| format!("no {path}"))
    }

    /// How large one Node is on the API server, in octets: whole, and its metadata alone.
    pub(super) fn size_of_a_node(&self) -> Result<[usize; 2]> {
        let path = format!("/api/v1/nodes/{}", fleet::name(0));
        let text = self.api.kubectl().run(&["get", "--raw", &path])?;
        let node: Value = serde_json::from_str(&text)?;
        Ok([text.len(), node["metadata"].to_string().len()])
    }
}

fn part(name: &str) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(name);
    Ok(command)
}

/// Definitions, rights, a pool with twice the blocks that are wanted, and whether there is a mesh.
fn define(api: &ApiServer, mesh: bool, blocks: u32) -> Result<()> {
    let kubectl = api.kubectl();
    for place in ["conf/crds", "conf/rbac"] {
        let path = programs::source(place);
        kubectl.run(&["create", "-f", &path.to_string_lossy()])?;
    }
    let crds = programs::source("conf/crds");
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f"];
    kubectl.run(&[&wait[..], &[&crds.to_string_lossy()]].concat())?;
    let length = 26 - (blocks * 2).next_power_of_two().ilog2();
    let manifests = format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: app}}\n\
         spec: {{cidr: 10.64.0.0/{length}, blockSize: 26, nodeSelector: all()}}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asNumber: 64512, nodeToNodeMeshEnabled: {mesh}}}\n"
    );
    // Established is said a moment before the server answers for the kind.
    wait_for("the kinds to be served", LONG, || {
        kubectl.run_with_input(&["apply", "-f", "-"], &manifests).map(drop)
    })
}

/// Makes the Nodes, and a kubeconfig for each.
fn prepare(api: &ApiServer, nodes: u32, to: &Path) -> Result<()> {
    // One that is made by hand shows what belongs into it.
    let account = api.write_account_kubeconfig(ACCOUNT)?;
    let text = fs::read_to_string(&account)?.replace("127.0.0.1", ADDRESS);
    let (before, token) = text.split_once("token: \"").context("the kubeconfig has no token")?;
    let (_, after) = token.split_once('"').context("the token has no end")?;
    let template = account.with_extension("template");
    fs::write(&template, format!("{before}token: \"{TOKEN}\"{after}"))?;
    let mut command = part("prepare")?;
    command.arg(api.kubeconfig()).arg(nodes.to_string()).arg(&template).arg(to);
    api.namespace().enter(|| run(&mut command))?.map(drop)
}

fn start_controller(api: &ApiServer) -> Result<Daemon> {
    let kubeconfig = api.write_account_kubeconfig("twill-controller")?;
    let path = api.directory().join("controller.yaml");
    let text = format!(
        "nodeName: controller\nstateDir: /nonexistent\nrunDir: /nonexistent\n\
         datastore: {{type: kubernetes, kubeconfig: {}}}\nlog: {{format: text}}\n",
        kubeconfig.display()
    );
    fs::write(&path, text)?;
    let mut command = Command::new(programs::find("twilld")?);
    command.args(["--role", "controller", "--config"]).arg(&path);
    let log = api.directory().join("controller.log");
    Daemon::start("controller", api.namespace(), &mut command, &log)
}
