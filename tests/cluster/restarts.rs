//! What ends and comes back under pods that go on.

use std::{
    io::{self, Write},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use twill_tests::wait::{wait_for, wait_until};

use super::{
    LONG,
    addresses::ON_SELECTED,
    site::{GONE_POD, Pod, SELECTED, Site, lock},
    stream::Stream,
};

/// Between two looks at what must not change.
const LOOK: Duration = Duration::from_millis(500);

/// How long pods may take after the API server was away: kubelets, the scheduler and the controllers ask for it again
/// after pauses that have grown to half a minute by then.
const AFTER_OUTAGE: Duration = Duration::from_secs(180);

/// Two pods that have to stay as they are, one on each node.
struct Kept(Vec<Pod>);

impl Kept {
    fn deploy(site: &Site) -> Result<Self> {
        site.deploy("kept", 2, ON_SELECTED)?;
        let kept = Self(site.wait_ready("kept", 2)?);
        wait_for("the pods to reach each other", LONG, || kept.reach(site))?;
        Ok(kept)
    }

    fn reach(&self, site: &Site) -> Result<()> {
        site.pings(&self.0[0], &self.0[1])
    }

    /// Kills their sandboxes, and waits until each has another one: DEL and ADD.
    fn replace_sandboxes(&self, site: &Site) -> Result<()> {
        for pod in &self.0 {
            let node = site.cluster.node(&pod.node)?;
            let before = node.running_sandboxes(&pod.name)?;
            for sandbox in &before {
                node.ctr(&["tasks", "kill", "--signal", "SIGKILL", sandbox])?;
            }
            wait_for(&format!("another sandbox of {}", pod.name), LONG, || {
                let running = node.running_sandboxes(&pod.name)?;
                ensure!(running.iter().any(|id| !before.contains(id)), "{running:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Numbers from the one to the other, to see that what is done to nodes disturbs no packet.
    fn stream(&self, site: &Site) -> Result<Stream> {
        let stream = Stream::start(site, &self.0[0], &self.0[1])?;
        stream.wait_more()?;
        Ok(stream)
    }

    /// They are the same, have never been started again, and reach each other; a new one on each node
    /// gets another address, and gives it back.
    fn check(&self, site: &Site) -> Result<()> {
        let (mut before, mut now) = (self.0.clone(), site.wait_ready("kept", 2)?);
        before.sort();
        now.sort();
        ensure!(before == now, "{now:?} instead of {before:?}");
        for pod in site.pods("kept")? {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            ensure!(*restarts == 0, "{pod}");
        }
        wait_for("the pods to reach each other", LONG, || self.reach(site))?;
        site.deploy("new", 2, ON_SELECTED)?;
        let new = site.wait_ready("new", 2)?;
        let has = |pod: &Pod| self.0.iter().any(|kept| kept.address == pod.address);
        ensure!(!new.iter().any(has), "{new:?} beside {:?}", self.0);
        site.kubectl().run(&["delete", "deployment", "new"])?;
        site.wait_gone("new")?;
        site.wait_used(2)
    }
}

/// Kubelets that start again find their pods.
pub(crate) fn a_kubelet_starts_again(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    let kept = Kept::deploy(&site)?;
    let stream = kept.stream(&site)?;
    for node in SELECTED {
        let node = site.cluster.node_mut(node)?;
        node.kill_kubelet()?;
        node.start_kubelet()?;
    }
    kept.check(&site)?;
    stream.finish()?;
    site.remove("kept")
}

/// containerd of either release that starts again reads the network configuration and goes on with its sandboxes.
pub(crate) fn a_containerd_starts_again(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    let kept = Kept::deploy(&site)?;
    let stream = kept.stream(&site)?;
    for node in SELECTED {
        let node = site.cluster.node_mut(node)?;
        node.kill_containerd()?;
        node.start_containerd()?;
    }
    kept.check(&site)?;
    stream.finish()?;
    site.remove("kept")
}

/// A daemon that is killed comes back by its kubelet; meanwhile no byte is lost, and the router keeps its
/// routes.
pub(crate) fn a_killed_daemon_comes_back(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    let kept = Kept::deploy(&site)?;
    let log = site.cluster.tor().bird().log().len();
    let stream = kept.stream(&site)?;
    kill_daemon(&site, SELECTED[0])?;
    site.wait_rollout()?;
    kept.check(&site)?;
    stream.wait_more()?;
    stream.finish()?;
    let withdrawn = site.cluster.tor().bird().withdrawals(SELECTED[0], log);
    ensure!(withdrawn.is_empty(), "{withdrawn:?}");
    site.remove("kept")
}

/// A daemon's pod that is replaced after pods were made frees nothing of theirs.
pub(crate) fn a_replaced_daemon_frees_nothing(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    let kept = Kept::deploy(&site)?;
    for node in SELECTED {
        let before = site.daemon(node)?;
        site.kubectl().run(&["delete", "pod", "-n", "twill-system", &before])?;
        wait_until("another daemon", LONG, || Ok(site.daemon(node)? != before))?;
        site.wait_rollout()?;
        site.wait_used(2)?;
    }
    // Long enough for both to have looked again at what was gone when they came.
    let past = Instant::now() + GONE_POD + GONE_POD / 2;
    while Instant::now() < past {
        // A daemon that does not answer at the moment has not freed anything by that.
        if let Ok(used) = site.used() {
            ensure!(used == 2, "{used} addresses in use");
        }
        thread::sleep(LOOK);
    }
    site.wait_used(2)?;
    kept.check(&site)?;
    site.remove("kept")
}

/// Kills the daemon of a node, and waits for the next one.
fn kill_daemon(site: &Site, node: &str) -> Result<()> {
    let before = site.daemon_pid(node)?;
    site.cluster.node(node)?.run("kill", &["-KILL", &before])?;
    wait_until("another daemon", LONG, || Ok(site.daemon_pid(node)? != before))
}

/// Waits until every node's kubelet has been heard of again.
fn wait_nodes(site: &Site) -> Result<()> {
    for node in site.cluster.nodes() {
        wait_for(&format!("{} to be ready", node.name()), AFTER_OUTAGE, || {
            let (is_ready, message, _) = site.node_ready(node.name())?;
            ensure!(is_ready, "{message}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The API server goes for a minute (or `TWILL_OUTAGE_SECONDS`) while pods are being made. The kubelets go on with
/// what they know, and sandboxes that die are made again, over and over, also after a daemon has died: the next one has its
/// copy alone. The router keeps all routes, and all is well once the server is back.
pub(crate) fn pods_come_and_go_without_the_api_server(site: &Mutex<Site>) -> Result<()> {
    const PODS: usize = 10;
    const OUTAGE: Duration = Duration::from_secs(60);
    let mut site = lock(site)?;
    let kept = Kept::deploy(&site)?;
    // Nothing is done to these, so what they say to each other goes on.
    site.deploy("calm", 2, ON_SELECTED)?;
    let calm = site.wait_ready("calm", 2)?;
    let stream = Stream::start(&site, &calm[0], &calm[1])?;
    stream.wait_more()?;
    site.deploy("churn", PODS, ON_SELECTED)?;
    wait_until("pods to be placed", LONG, || {
        let pods = site.pods("churn")?;
        Ok(pods.len() == PODS && pods.iter().all(|pod| pod["spec"]["nodeName"].is_string()))
    })?;
    let outage = match std::env::var("TWILL_OUTAGE_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse().context("TWILL_OUTAGE_SECONDS")?),
        Err(_) => OUTAGE,
    };
    let log = site.cluster.tor().bird().log().len();
    site.cluster.api_mut().kill_server()?;
    let end = Instant::now() + outage;
    kept.replace_sandboxes(&site)?;
    kill_daemon(&site, SELECTED[1])?;
    let mut replaced = 1;
    while replaced < 2 || Instant::now() < end {
        kept.replace_sandboxes(&site)?;
        replaced += 1;
    }
    site.cluster.api_mut().start_server()?;
    stream.wait_more()?;
    let sent = stream.finish()?;
    writeln!(io::stderr(), "a stream beside the outage: {sent:?}")?;
    writeln!(io::stderr(), "the sandboxes of 2 pods were made again {replaced} times")?;
    wait_nodes(&site)?;
    for (name, count) in [("churn", PODS), ("kept", 2)] {
        site.wait_ready_within(name, count, AFTER_OUTAGE)?;
    }
    wait_for("the pods to reach each other", LONG, || {
        let again = site.wait_ready("kept", 2)?;
        site.pings(&again[0], &again[1])
    })?;
    let still = site.wait_ready_within("calm", 2, AFTER_OUTAGE)?;
    ensure!(still == calm, "the calm pods are others: {still:?}");
    site.wait_used(u64::try_from(PODS + 4)?)?;
    for node in SELECTED {
        let withdrawn = site.cluster.tor().bird().withdrawals(node, log);
        ensure!(withdrawn.is_empty(), "{withdrawn:?}");
    }
    for name in ["kept", "calm"] {
        site.kubectl().run(&["delete", "deployment", name])?;
        site.wait_gone(name)?;
    }
    site.remove("churn")
}
