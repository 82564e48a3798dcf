//! What an ADD costs on a real cluster: etcd, control plane, two nodes with a kubelet and containerd each, behind a router
//! with BIRD, and Twill as its manifest installs it.
//!
//! Promise: pods come one at a time, each is ready before the next; what is told of containerd is its own metric and
//! its own log; single executions of plugins are timed by a program in their place, in pods of their own, so that it
//! is in no other figure. A pod that does not come, or an address that is left, is no result but an error. Time never is.

mod histogram;
mod report;
mod sandboxes;
mod start;
mod timed;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    image,
    kubernetes::{self, BUSYBOX, Cluster, METRICS, Node, Runtime, Tor},
    programs,
    wait::wait_for,
};

use self::{histogram::Histogram, report::Report, timed::Calls};
use crate::machine::Machine;

/// How long what takes moments may take on a machine that is busy.
const LONG: Duration = Duration::from_secs(60);

const NODES: [&str; 2] = ["node1", "node2"];

/// containerd's, by its configuration.
const CONTAINERD_METRICS: u16 = 1338;

const RESOURCES: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: app}
spec: {cidr: 10.10.0.0/20, blockSize: 24, nodeSelector: all()}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.168.0.1, asNumber: 64513}
";

/// What an ADD costs on a real cluster.
#[derive(Debug, Parser)]
#[command(name = "twill-bench-cluster", version)]
struct Arguments {
    /// The plugin as it is shipped (make plugin).
    #[arg(long)]
    plugin: PathBuf,
    /// Rounds: of each figure the median of them is told as well.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Pods that start one after the other in each half of a round, on two nodes.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=200))]
    pods: u32,
    /// Seconds in which nothing is asked of the nodes, to see what their daemons ask by the clock.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Where markdown goes; nothing is written without.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// Half a round: pods that came one after the other, and went.
#[derive(Debug, Default)]
struct Half {
    metric: Histogram,
    /// Whole RunPodSandbox calls in milliseconds.
    sandboxes: Vec<f64>,
    /// Executions of plugins, where they are timed.
    calls: Calls,
    asked: Asked,
    /// Resident memory of each daemon in MiB, while the pods were there.
    memory: Vec<f64>,
}

/// What node daemons asked of the API server.
#[derive(Debug, Default)]
struct Asked {
    seconds: f64,
    /// By verb and resource.
    requests: BTreeMap<String, u64>,
}

/// A round.
#[derive(Debug)]
struct Round {
    /// As on any node.
    plain: Half,
    /// With the timing program in the plugins' place.
    timed: Half,
    /// From the start of a daemon's process until `/readyz` says yes, in milliseconds, once for each node.
    starts: Vec<f64>,
}

/// Runs the benchmark, or is the first process of one of its nodes.
pub fn main() -> ExitCode {
    if let Some(ended) = kubernetes::enter() {
        return ended;
    }
    match twill_tests::sandbox::enter().and_then(|()| run(&Arguments::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let program = timed::program()?;
    let cluster = start_cluster(&arguments.plugin)?;
    let bench = Bench { cluster, pods: arguments.pods, program };
    // The first pods of a node bring its block.
    bench.half("first", u32::try_from(NODES.len())?, false)?;
    let idle = bench.idle(Duration::from_secs(arguments.idle))?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        rounds.push(bench.round(number).with_context(|| format!("round {number}"))?);
    }
    let report = Report { machine: Machine::look()?, pods: arguments.pods, rounds, idle };
    report.print()?;
    arguments.out.as_ref().map_or(Ok(()), |directory| report.write(directory))
}

fn start_cluster(plugin: &Path) -> Result<Cluster> {
    let plugin = fs::canonicalize(plugin)
        .with_context(|| format!("cannot find {}; run make plugin", plugin.display()))?;
    let mut tor = BirdConfig::new(Tor::ADDRESS, 64513);
    for (number, name) in NODES.iter().enumerate() {
        let address = format!("192.168.{}.10", number + 1);
        tor = tor.neighbor(Neighbor::new(name, &address, 64512).local(Tor::ADDRESS));
    }
    let mut cluster = Cluster::start("bench", tor)?;
    let place = cluster.directory().join("images/twill");
    fs::create_dir_all(&place)?;
    let plugins = plugin.parent().context("the plugin has no directory")?.to_owned();
    let image = image::twill_of(&place, &[plugins, programs::directory()?])?;
    cluster.add_nodes(&NODES.map(|name| (name, Runtime::Newest)), &[image])?;
    cluster.install_twill("")?;
    let apply = ["apply", "-f", "-"];
    wait_for("the kinds to be served", LONG, || {
        cluster.kubectl().run_with_input(&apply, RESOURCES).map(drop)
    })?;
    cluster.wait_rollout()?;
    cluster.wait_controller()?;
    cluster.tor().bird().wait_established(&NODES, LONG)?;
    Ok(cluster)
}

/// The cluster, and what is done on it.
struct Bench {
    cluster: Cluster,
    pods: u32,
    /// Stands in the plugins' place.
    program: PathBuf,
}

impl Bench {
    fn round(&self, number: u32) -> Result<Round> {
        let plain = self.half(&format!("plain-{number}"), self.pods, false)?;
        let timed = self.half(&format!("timed-{number}"), self.pods, true)?;
        let starts = NODES.iter().map(|name| start::measure(&self.cluster, name));
        Ok(Round { plain, timed, starts: starts.collect::<Result<_>>()? })
    }

    /// Pods one after the other, then all go.
    fn half(&self, name: &str, pods: u32, is_timed: bool) -> Result<Half> {
        if is_timed {
            self.nodes().try_for_each(|node| timed::begin(node?, &self.program))?;
        }
        let before = (self.metric()?, self.sandboxes()?, self.requests()?.len());
        let begun = Instant::now();
        for pod in 0..pods {
            let node = NODES[pod as usize % NODES.len()];
            self.start_pod(&format!("{name}-{pod}"), node)?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let metric = self.metric()?.since(&before.0);
        let new = |(now, before): (&Vec<f64>, &Vec<f64>)| now[before.len()..].to_vec();
        let sandboxes: Vec<f64> = self.sandboxes()?.iter().zip(&before.1).flat_map(new).collect();
        let (wanted, found) = (pods as usize, sandboxes.len());
        ensure!(found == wanted, "{found} sandboxes were made for {wanted} pods");
        let asked = Asked { seconds, requests: tally(&self.requests()?[before.2..]) };
        let memory = self.memory()?;
        self.cluster.kubectl().run(&["delete", "pods", "-l", "app=bench"])?;
        self.wait_free()?;
        let mut calls = Calls::new();
        for node in self.nodes().filter(|_| is_timed) {
            for (kind, times) in timed::end(node?)? {
                calls.entry(kind).or_default().extend(times);
            }
        }
        Ok(Half { metric, sandboxes, calls, asked, memory })
    }

    fn nodes(&self) -> impl Iterator<Item = Result<&Node>> {
        NODES.iter().map(|name| self.cluster.node(name))
    }

    /// Starts a pod on a node, and waits until it is ready; without looking every moment, which would cost the
    /// nodes time.
    fn start_pod(&self, name: &str, node: &str) -> Result<()> {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: bench}}}}\nspec:\n  \
             nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  dnsPolicy: Default\n  \
             automountServiceAccountToken: false\n  \
             containers: [{{name: main, image: \"{BUSYBOX}\", imagePullPolicy: Never}}]\n"
        );
        self.cluster.kubectl().run_with_input(&["create", "-f", "-"], &pod)?;
        let wait = ["wait", "--for=condition=Ready", "--timeout=60s"];
        self.cluster.kubectl().run(&[&wait[..], &[&format!("pod/{name}")]].concat()).map(drop)
    }

    /// What all containerds have counted so far.
    fn metric(&self) -> Result<Histogram> {
        self.nodes().try_fold(Histogram::default(), |all, node| {
            Ok(all.and(&Histogram::read(&node?.http(CONTAINERD_METRICS, "/v1/metrics")?)?))
        })
    }

    /// All RunPodSandbox calls so far, in milliseconds, node by node.
    fn sandboxes(&self) -> Result<Vec<Vec<f64>>> {
        self.nodes().map(|node| sandboxes::durations(&node?.containerd_log())).collect()
    }

    fn requests(&self) -> Result<Vec<String>> {
        self.cluster.api().node_requests()
    }

    fn idle(&self, time: Duration) -> Result<Asked> {
        let before = self.requests()?.len();
        // What is measured is what happens in a given time.
        #[allow(clippy::disallowed_methods)]
        thread::sleep(time);
        let requests = tally(&self.requests()?[before..]);
        Ok(Asked { seconds: time.as_secs_f64(), requests })
    }

    /// Waits until no address is in use on any node.
    fn wait_free(&self) -> Result<()> {
        wait_for("all addresses to be free", LONG, || {
            for node in self.nodes() {
                let node = node?;
                let text = node.http(METRICS, "/metrics")?;
                let mut values =
                    text.lines().filter(|l| l.starts_with("twill_ipam_addresses_in_use"));
                ensure!(values.all(|line| line.ends_with(" 0")), "{} has some left", node.name());
            }
            Ok(())
        })
    }

    /// Resident memory of each daemon in MiB.
    fn memory(&self) -> Result<Vec<f64>> {
        let of_node = |node: Result<&Node>| -> Result<f64> {
            let node = node?;
            let status = node.run("cat", &[&format!("/proc/{}/status", node.daemon_pid()?)])?;
            let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = kib.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            Ok(kib.context("the daemon's memory is not told")? / 1024.0)
        };
        self.nodes().map(of_node).collect()
    }
}

fn tally(requests: &[String]) -> BTreeMap<String, u64> {
    let mut tally = BTreeMap::new();
    for request in requests {
        *tally.entry(request.clone()).or_default() += 1;
    }
    tally
}
