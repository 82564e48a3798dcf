//! How long a daemon takes from its start until it is ready.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use twill_tests::kubernetes::{Cluster, METRICS, Node};

use super::LONG;

/// Between two questions, which is how exact the answer's time is.
const PERIOD: Duration = Duration::from_millis(2);

/// In what the kernel tells when a process began.
const TICKS: f64 = 100.0;

/// Replaces the daemon's pod of a node, whose copy of the datastore stays. Milliseconds from the beginning of the next one's
/// process, which the kernel tells in steps of 10, until its `/readyz` says yes.
pub(super) fn measure(cluster: &Cluster, name: &str) -> Result<f64> {
    let node = cluster.node(name)?;
    let before = node.daemon_pid()?;
    let pod = cluster.daemon(name)?;
    cluster.kubectl().run(&["delete", "pod", "-n", "twill-system", "--wait=false", &pod])?;
    wait_ready(node, false)?;
    let ready = wait_ready(node, true)?;
    let pid = node.daemon_pid()?;
    ensure!(pid != before, "the daemon of {name} is still the same");
    let stat = node.run("cat", &[&format!("/proc/{pid}/stat")])?;
    // Behind the name, which may hold anything, in parentheses; there it is the 20th.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let began = fields.split_whitespace().nth(19).context("no start in the daemon's stat")?;
    let began: f64 = began.parse().with_context(|| format!("no number: {began}"))?;
    cluster.wait_rollout()?;
    Ok((ready - began / TICKS) * 1e3)
}

/// Asks until the answer is this one; the time since the boot, in seconds.
fn wait_ready(node: &Node, wanted: bool) -> Result<f64> {
    let end = Instant::now() + LONG;
    while node.http(METRICS, "/readyz").is_ok() != wanted {
        ensure!(Instant::now() < end, "ready is not {wanted} on {}", node.name());
        #[allow(clippy::disallowed_methods)]
        thread::sleep(PERIOD);
    }
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).as_secs_f64())
}
