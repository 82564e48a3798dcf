//! The cluster of the suite, and what the cases do to it.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    image,
    kubernetes::{BUSYBOX, Cluster, Kubectl, METRICS, Runtime, Tor},
    netns::Namespace,
    process::tail,
    wait::wait_for,
};

use super::LONG;

/// Those that the pool selects, and one that it does not. The second has the containerd of an old node.
pub(crate) const SELECTED: [&str; 2] = ["node1", "node2"];
pub(crate) const UNSELECTED: &str = "node3";
const FIRST: [(&str, Runtime); 3] =
    [(SELECTED[0], Runtime::Newest), (SELECTED[1], Runtime::Debian), (UNSELECTED, Runtime::Newest)];

/// Whom the router peers with. The last ones are there in few cases only.
const NODES: [&str; 5] = [SELECTED[0], SELECTED[1], UNSELECTED, DOOMED, OLD];
pub(crate) const DOOMED: &str = "node4";
pub(crate) const OLD: &str = "node5";

/// What a daemon may have of memory, KiB, as the kernel tells it: all of it, and what is its own. The rest are pages of the
/// program's file, which a build without optimization has many of (docs/adr/0024-install.md).
const MEMORY: [(&str, u64); 2] = [("VmRSS", 60 * 1024), ("RssAnon", 24 * 1024)];

/// The annotation that chooses pools.
pub(crate) const POOLS: &str = "cni.projectcalico.org/ipv4pools";

/// How long a pod and a node are gone before what they had is free.
pub(crate) const GONE_POD: Duration = Duration::from_secs(10);
pub(crate) const GONE_NODE: Duration = Duration::from_secs(12);

const RESOURCES: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: app}
spec: {cidr: 10.10.0.0/24, blockSize: 26, nodeSelector: env == 'prod'}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.168.0.1, asNumber: 64513}
---
apiVersion: projectcalico.org/v3
kind: IPAMConfiguration
metadata: {name: default}
spec: {strictAffinity: true}
";

/// A cluster with Twill on it.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    /// The image of the daemon.
    pub(crate) image: PathBuf,
}

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: IpAddr,
}

/// The site for one case. A case that failed has left its pods, and what it said of their namespace.
pub(crate) fn lock(site: &Mutex<Site>) -> Result<MutexGuard<'_, Site>> {
    let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
    site.cluster.alive()?;
    let left = site.kubectl().run(&["get", "deployments", "--output=name"])?;
    if !left.is_empty() {
        site.kubectl().run(&["annotate", "namespace", "default", &format!("{POOLS}-")])?;
        site.kubectl().run(&["delete", "deployments", "--all"])?;
        let gone = ["wait", "--for=delete", "pods", "--all", "--timeout=180s"];
        site.kubectl().run(&gone)?;
    }
    Ok(site)
}

impl Site {
    /// Starts the cluster, installs Twill, and waits until it is ready everywhere.
    pub(crate) fn start() -> Result<Self> {
        let neighbors = NODES.iter().enumerate().map(|(number, name)| {
            let address = format!("192.168.{}.10", number + 1);
            // One session for both families, as docs/bgp.md has it.
            let v6 = format!(
                "ipv6 {{ import all; export where source = RTS_STATIC; next hop address {}; }}",
                Tor::ADDRESS_V6
            );
            let neighbor = Neighbor::new(name, &address, 64512).local(Tor::ADDRESS).option(&v6);
            // Those that go without a word should be missed soon, and not be waited for.
            if [DOOMED, OLD].contains(name) {
                neighbor.option("hold time 9").option("graceful restart off")
            } else {
                neighbor
            }
        });
        let bird = BirdConfig::new(Tor::ADDRESS, 64513);
        let bird = neighbors.fold(bird, BirdConfig::neighbor);
        let mut cluster = Cluster::start("cluster", bird)?;
        let place = cluster.directory().join("images/twill");
        fs::create_dir_all(&place)?;
        let image = image::twill(&place)?;
        cluster.add_nodes(&FIRST, std::slice::from_ref(&image))?;
        let site = Self { cluster, image };
        for name in SELECTED {
            site.kubectl().run(&["label", "node", name, "env=prod"])?;
        }
        let settings = format!(
            "reconcile: {{intervalSeconds: 2, graceSeconds: {}}}\n\
             ipam: {{emptyBlockGraceSeconds: 5, goneNodeGraceSeconds: {}}}\n",
            GONE_POD.as_secs(),
            GONE_NODE.as_secs()
        );
        site.cluster.install_twill(&settings)?;
        wait_for("the kinds to be served", LONG, || site.apply(RESOURCES))?;
        site.wait_rollout()?;
        site.cluster.wait_controller()?;
        site.cluster.tor().bird().wait_established(&NODES[..3], LONG)?;
        Ok(site)
    }

    pub(crate) fn kubectl(&self) -> Kubectl<'_> {
        self.cluster.kubectl()
    }

    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl().run_with_input(&["apply", "-f", "-"], manifest).map(drop)
    }

    /// Waits until every daemon is of the newest revision and ready.
    pub(crate) fn wait_rollout(&self) -> Result<()> {
        self.cluster.wait_rollout()
    }

    /// A deployment of pods that live, `more` in each pod's spec.
    pub(crate) fn deploy(&self, name: &str, replicas: usize, more: &str) -> Result<()> {
        self.deploy_annotated(name, replicas, "", more)
    }

    /// The same, `annotations` on each pod.
    pub(crate) fn deploy_annotated(
        &self,
        name: &str,
        replicas: usize,
        annotations: &str,
        more: &str,
    ) -> Result<()> {
        self.apply(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  \
             replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    \
             metadata: {{labels: {{app: {name}}}, annotations: {{{annotations}}}}}\n    spec:\n      \
             terminationGracePeriodSeconds: 0\n      automountServiceAccountToken: false\n      dnsPolicy: Default\n      \
             topologySpreadConstraints:\n      - maxSkew: 1\n        \
             topologyKey: kubernetes.io/hostname\n        whenUnsatisfiable: DoNotSchedule\n        \
             nodeAffinityPolicy: Honor\n        \
             labelSelector: {{matchLabels: {{app: {name}}}}}\n      \
             containers:\n      - name: main\n        image: {BUSYBOX}\n        \
             imagePullPolicy: Never\n      {more}\n"
        ))
    }

    pub(crate) fn scale(&self, name: &str, replicas: usize) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.kubectl().run(&["scale", "deployment", name, &replicas]).map(drop)
    }

    /// The pods of a deployment as the API server has them.
    pub(crate) fn pods(&self, name: &str) -> Result<Vec<Value>> {
        let pods = self.kubectl().json(&["get", "pods", "-l", &format!("app={name}")])?;
        Ok(pods["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a deployment has so many pods, all ready.
    pub(crate) fn wait_ready(&self, name: &str, count: usize) -> Result<Vec<Pod>> {
        self.wait_ready_within(name, count, LONG)
    }

    pub(crate) fn wait_ready_within(
        &self,
        name: &str,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<Pod>> {
        wait_for(&format!("{count} pods of {name}"), deadline, || {
            let pods = self.pods(name)?;
            ensure!(pods.len() == count, "there are {}", pods.len());
            pods.iter().map(ready).collect()
        })
        .or_else(|error| Err(error.context(self.events()?)))
    }

    /// What ways there are, for whoever has found none.
    pub(crate) fn ways(&self) -> Result<String> {
        let routes = |namespace: &Namespace| -> Result<String> {
            Ok(namespace.ip("route")? + &namespace.ip("-6 route")?)
        };
        let mut text = format!("tor:\n{}", routes(self.cluster.tor().namespace())?);
        for node in self.cluster.nodes() {
            let forwards = node.run("cat", &["/proc/sys/net/ipv4/ip_forward"])?;
            let routes = routes(node.namespace())?;
            text += &format!("{} (ip_forward {}):\n{routes}", node.name(), forwards.trim());
        }
        Ok(text)
    }

    /// Deletes pools, and waits until they are gone, and the claims of their blocks.
    pub(crate) fn delete_pools(&self, names: &[&str]) -> Result<()> {
        self.kubectl().run(&[&["delete", "ippools", "--wait=false"], names].concat())?;
        wait_for("the pools and their claims to go", LONG, || {
            for (kind, name) in [("ippools", "/metadata/name"), ("blockaffinities", "/spec/pool")] {
                let found = self.kubectl().json(&["get", kind])?;
                let mut left = found["items"].as_array().context("no list")?.iter();
                let is_theirs = |object: &&Value| {
                    let pool = object.pointer(name).and_then(Value::as_str);
                    pool.is_some_and(|pool| names.contains(&pool))
                };
                let left = left.find(is_theirs);
                ensure!(left.is_none(), "{left:?}");
            }
            Ok(())
        })
    }

    /// Fails unless an event of this very pod has this reason and this text.
    pub(crate) fn told_of(&self, pod: &Value, reason: &str, text: &str) -> Result<()> {
        let uid = pod["metadata"]["uid"].as_str().context("a pod without uid")?;
        let of_pod = format!("involvedObject.uid={uid},reason={reason}");
        let events = self.kubectl().json(&["get", "events", "--field-selector", &of_pod])?;
        let events = events["items"].as_array().context("no list of events")?;
        let is_told =
            |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(text));
        ensure!(events.iter().any(is_told), "no {reason} with {text:?} among {events:?}");
        Ok(())
    }

    /// What has been said of pods last.
    pub(crate) fn events(&self) -> Result<String> {
        let columns = "custom-columns=O:.involvedObject.name,R:.reason,M:.message";
        let get = ["get", "events", "--sort-by=.lastTimestamp", "--no-headers", "-o", columns];
        Ok(tail(&self.kubectl().run(&get)?, 8))
    }

    /// Removes a deployment, and waits until its pods and their addresses are gone.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.kubectl().run(&["delete", "deployment", name, "--ignore-not-found"])?;
        self.wait_gone(name)?;
        self.wait_used(0)
    }

    pub(crate) fn wait_gone(&self, name: &str) -> Result<()> {
        self.wait_gone_within(name, LONG)
    }

    pub(crate) fn wait_gone_within(&self, name: &str, deadline: Duration) -> Result<()> {
        wait_for(&format!("the pods of {name} to go"), deadline, || {
            let pods = self.pods(name)?;
            ensure!(pods.is_empty(), "there are {}", pods.len());
            Ok(())
        })
    }

    /// Waits until so many addresses are in use on all nodes.
    pub(crate) fn wait_used(&self, count: u64) -> Result<()> {
        wait_for(&format!("{count} addresses in use"), LONG, || {
            let used = self.used()?;
            ensure!(used == count, "there are {used}");
            Ok(())
        })
    }

    /// How many addresses are in use on all nodes, as their daemons say.
    pub(crate) fn used(&self) -> Result<u64> {
        let mut used = 0;
        for node in self.cluster.nodes() {
            used += self.metric(node.name(), "twill_ipam_addresses_in_use")?;
        }
        Ok(used)
    }

    /// The sum of a metric of a node's daemon.
    pub(crate) fn metric(&self, node: &str, name: &str) -> Result<u64> {
        let text = self.cluster.node(node)?.http(METRICS, "/metrics")?;
        let value = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<u64>().ok())?
        };
        Ok(text.lines().filter_map(value).sum())
    }

    /// The name of the daemon's pod on a node.
    pub(crate) fn daemon(&self, node: &str) -> Result<String> {
        self.cluster.daemon(node)
    }

    /// The process of the daemon on a node, by its number there.
    pub(crate) fn daemon_pid(&self, node: &str) -> Result<String> {
        self.cluster.node(node)?.daemon_pid()
    }

    /// What memory a node's daemon has, as the kernel tells it. More than [`MEMORY`] is an error.
    pub(crate) fn memory(&self, node: &str) -> Result<String> {
        let status = format!("/proc/{}/status", self.daemon_pid(node)?);
        let status = self.cluster.node(node)?.run("cat", &[&status])?;
        for (name, limit) in MEMORY {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|kib| kib.trim().strip_suffix(" kB")).context(name)?;
            let kib: u64 = kib.trim().parse()?;
            ensure!(kib <= limit, "the daemon of {node} has a {name} of {kib} KiB of {limit}");
        }
        let lines = status.lines().filter(|line| line.contains("RSS") || line.contains("RssAnon"));
        Ok(lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
            .join(", "))
    }

    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl().run(&[&["exec", pod, "--"], command].concat())
    }

    pub(crate) fn pings(&self, from: &Pod, to: &Pod) -> Result<()> {
        let to = to.address.to_string();
        self.exec(&from.name, &["ping", "-c", "1", "-W", "5", &to]).map(drop)
    }

    /// A node's condition Ready: its status, its message, and since when.
    pub(crate) fn node_ready(&self, node: &str) -> Result<(bool, String, String)> {
        let ready = self.condition(node, "Ready")?;
        let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        Ok((text("status") == "True", text("message"), text("lastTransitionTime")))
    }

    /// A condition of a node.
    pub(crate) fn condition(&self, node: &str, kind: &str) -> Result<Value> {
        let found = self.kubectl().json(&["get", "node", node])?;
        let mut conditions = found["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == kind);
        found.cloned().with_context(|| format!("{node} has no condition {kind}"))
    }
}

/// A pod that is ready.
fn ready(pod: &Value) -> Result<Pod> {
    let status = &pod["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.into_iter().filter(|c| c["type"] == "Ready");
    ensure!(ready.any(|c| c["status"] == "True"), "{status}");
    Ok(Pod {
        name: pod["metadata"]["name"].as_str().context("no name")?.to_owned(),
        node: pod["spec"]["nodeName"].as_str().context("no node")?.to_owned(),
        address: status["podIP"].as_str().context("no address")?.parse()?,
    })
}
