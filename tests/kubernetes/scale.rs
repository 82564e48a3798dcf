//! The short form of `make scale`: 30 nodes on an API server of their own, and what each asks of it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{kubernetes::ApiServer, process::run, programs, sandbox};

/// The name of the test, which runs with no other beside it. All its nodes start at once, and what each of them asks for
/// is counted: one that is not served in time asks again.
pub(crate) const NAME: &str = "scale::what_a_node_asks_for_does_not_grow_with_the_cluster";

const NODES: u64 = 30;
const BLOCKS: u64 = 4;

/// The lists that a node watches (docs/kubernetes.md).
const WATCHES: u64 = 13;

/// A node starts with one list and one watch of each thing, has its blocks by as many requests as it takes to
/// meet nobody, and then asks for nothing but its Lease. No report of another node's kubelet reaches it.
pub(crate) fn what_a_node_asks_for_does_not_grow_with_the_cluster(_: &ApiServer) -> Result<()> {
    let mut command = sandbox::nested(programs::find("twill-bench-scale")?);
    let (nodes, blocks) = (NODES.to_string(), BLOCKS.to_string());
    command.args(["--nodes", &nodes, "--blocks", &blocks, "--idle", "3", "--seed", "6", "--json"]);
    let text = run(&mut command)?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let phase = |name: &str| {
        let phases = report["phases"].as_array().into_iter().flatten();
        let found = phases.into_iter().find(|phase| phase["name"] == name);
        found.map(|phase| &phase["figures"]).with_context(|| format!("no {name} in {text}"))
    };
    for name in ["rollout", "restart of all nodes"] {
        let requests = requests(phase(name)?);
        let sum = |verb: &str| -> u64 {
            let of_it = requests.iter().filter(|(request, _)| request.starts_with(verb));
            of_it.map(|(_, count)| count).sum()
        };
        // All is asked once, or the phase has ended before it was paid for.
        for verb in ["list", "watch"] {
            ensure!(sum(verb) >= NODES * WATCHES, "{name}: {verb}: {requests:?}");
        }
        // On top, before its first claim, one of the claims of other sizes; all claims only after many losses.
        let lists = NODES * (WATCHES + u64::from(name == "rollout")) + NODES / 2;
        ensure!(sum("list") <= lists, "{name}: {requests:?}");
        // One that could not begin at once is tried again.
        ensure!(sum("watch") < 2 * NODES * WATCHES, "{name}: {requests:?}");
    }
    // All of a node's watches share one.
    ensure!(report["connections"] == NODES, "{} connections", report["connections"]);
    let idle = requests(phase("idle")?);
    let is_own = |request: &str| {
        // What a start leaves to be said a little later.
        request.ends_with(" leases") || request.contains("caliconodestatuses")
    };
    ensure!(idle.iter().all(|(request, _)| is_own(request)), "{idle:?}");
    // The Node of each that reports goes to that node, the controller, and the API server's own reader.
    let changes = report["changes"].as_u64().context("no changes")?;
    let events = &phase("nodes report")?["events"]["nodes"];
    let (count, octets) = (events[0].as_u64(), events[1].as_u64());
    ensure!(count.is_some_and(|count| count <= 4 * changes), "{events}");
    // The status, which is most of it, is for the API server's own reader alone.
    let whole = report["nodeObject"][0].as_u64().context("no size")?;
    ensure!(octets.is_some_and(|octets| octets < 2 * whole * changes), "{events} of {whole}");
    Ok(())
}

fn requests(figures: &Value) -> Vec<(String, u64)> {
    let requests = figures["requests"].as_object().into_iter().flatten();
    requests.map(|(request, count)| (request.clone(), count.as_u64().unwrap_or_default())).collect()
}
