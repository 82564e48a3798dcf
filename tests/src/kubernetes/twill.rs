//! Twill on a cluster: installed by an overlay of its manifest, and its daemons.

use std::fs;

use anyhow::{Context, Result};

use super::{Cluster, Node};
use crate::{process::tail, programs};

/// The port of the daemons' HTTP endpoint, by `conf/install/twilld.yaml`.
pub const METRICS: u16 = 9190;

const NAMESPACE: [&str; 2] = ["-n", "twill-system"];

/// How long kubectl waits for a rollout: daemons come one node after the other, each after its pod before has gone.
const ROLLOUT: &str = "--timeout=240s";

impl Cluster {
    /// Installs Twill by an overlay of `conf/install`, with `settings` behind the daemons' own.
    pub fn install_twill(&self, settings: &str) -> Result<()> {
        let directory = self.directory().join("install");
        let base = directory.join("base");
        fs::create_dir_all(&base)?;
        for file in ["kustomization.yaml", "twill.yaml"] {
            let from = programs::source("conf/install").join(file);
            fs::copy(&from, base.join(file))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let config = fs::read_to_string(programs::source("conf/install/twilld.yaml"))?;
        let config: String =
            (config + settings).lines().map(|line| format!("        {line}\n")).collect();
        let overlay = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [base]\n\
             patches:\n- patch: |\n    apiVersion: v1\n    kind: ConfigMap\n    \
             metadata: {{name: twill, namespace: twill-system}}\n    data:\n      \
             twilld.yaml: |\n{config}"
        );
        fs::write(directory.join("kustomization.yaml"), overlay)?;
        let apply = ["apply", "--server-side", "-k", &directory.to_string_lossy()];
        self.kubectl().run(&apply).map(drop)
    }

    /// Waits until every daemon is of the newest revision and ready.
    pub fn wait_rollout(&self) -> Result<()> {
        self.rollout("daemonset/twill-node")
    }

    /// Waits until the controller's pod is ready.
    pub fn wait_controller(&self) -> Result<()> {
        self.rollout("deployment/twill-controller")
    }

    /// Waits until all pods of `what` (`daemonset/NAME`) in Twill's namespace are of the newest revision and ready. What
    /// has become of them is in the error.
    pub fn rollout(&self, what: &str) -> Result<()> {
        let status = ["rollout", "status", what, ROLLOUT];
        let outcome = self.kubectl().run(&[&status[..], &NAMESPACE].concat());
        outcome.map(drop).or_else(|error| Err(error.context(self.pods_of_twill()?)))
    }

    /// The pods of Twill's namespace, and what was said there last, for people.
    fn pods_of_twill(&self) -> Result<String> {
        let pods = ["get", "pods", "-o", "wide"];
        let pods = self.kubectl().run(&[&pods[..], &NAMESPACE].concat())?;
        let events = ["get", "events", "--sort-by=.lastTimestamp"];
        let events = self.kubectl().run(&[&events[..], &NAMESPACE].concat())?;
        Ok(format!("{pods}{}", tail(&events, 20)))
    }

    /// The name of the daemon's pod on a node.
    pub fn daemon(&self, node: &str) -> Result<String> {
        let of_node = format!("spec.nodeName={node}");
        let get = ["get", "pods", "-l", "app.kubernetes.io/name=twill-node", "--field-selector"];
        let pods = self.kubectl().json(&[&get[..], &[&of_node], &NAMESPACE].concat())?;
        let name = pods["items"][0]["metadata"]["name"].as_str();
        name.map(str::to_owned).with_context(|| format!("{node} has no daemon"))
    }
}

impl Node {
    /// The process of the daemon on it, by its number there.
    pub fn daemon_pid(&self) -> Result<String> {
        let filter = "labels.\"io.kubernetes.container.name\"==twilld";
        let containers = self.ctr(&["containers", "list", "--quiet", filter])?;
        let tasks = self.ctr(&["tasks", "list"])?;
        // TASK PID STATUS
        let running = tasks.lines().filter(|line| line.contains("RUNNING"));
        let mut running = running.map(|line| line.split_whitespace());
        let found = running.find_map(|mut words| {
            let task = words.next()?;
            containers.lines().any(|id| id == task).then(|| words.next())?
        });
        found.map(str::to_owned).context("no daemon runs")
    }
}
