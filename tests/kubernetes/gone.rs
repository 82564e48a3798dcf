//! What becomes of what a node had that is gone: the controller frees it.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use twill_tests::{
    kubernetes::ApiServer,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    controller::{Controller, HASTY, TAKE_OVER, finalizers, wait_condition, with_log},
    nodes::{POOL, STRICT, Site, block_of},
};

/// How long the controller waits where a node has to be kept alive by kubectl, each call of which may take seconds on a
/// machine that is busy.
const LONG_GRACE: Duration = Duration::from_secs(15);

/// Two Nodes are removed. What the silent one had is freed after the grace period; the other's Lease is
/// renewed, so it keeps everything as long as that goes on.
pub(crate) fn what_a_node_that_is_gone_had_is_freed(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], HASTY, &[])?;
    for node in ["node1", "node2"] {
        site.lab.add_pod(node, node)?;
        wait_for("its status", LONG, || site.condition(node, "IPPool", "app"))?;
    }
    let owners = |site: &Site| -> Result<Vec<String>> {
        let mut owners: Vec<String> = site.claims()?.into_values().collect();
        owners.sort();
        Ok(owners)
    };
    ensure!(owners(&site)? == ["node1", "node2"], "{:?}", site.claims()?);
    let controller = Controller::start_patient(&site.api, "controller1", 9191, LONG_GRACE)?;
    let result = (|| {
        wait_condition(&site, ("ippool", "app", "Allocatable"), ("True", "Usable", ""))?;
        // A daemon whose pod is gone: its token is as well.
        site.lab.node_mut("node1")?.stop()?;
        site.lab.node_mut("node2")?.stop()?;
        while_renewed(&site, "node1", || {
            site.api.kubectl().run(&["delete", "node", "node1", "node2"])?;
            wait_until("what node2 had to be freed", TAKE_OVER, || {
                let leases = site.api.kubectl().run(&["get", "leases", "-n", "twill-system"])?;
                Ok(!leases.contains("twill-node-node2"))
            })?;
            ensure!(owners(&site)? == ["node1"], "{:?}", site.claims()?);
            let statuses = site.api.kubectl().run(&["get", "caliconodestatuses", "-o", "name"])?;
            ensure!(statuses.contains("node1") && !statuses.contains("node2"), "{statuses}");
            Ok(())
        })?;
        wait_until("what node1 had to be freed", TAKE_OVER, || {
            let statuses = site.api.kubectl().run(&["get", "caliconodestatuses", "-o", "name"])?;
            Ok(owners(&site)?.is_empty() && statuses.is_empty())
        })?;
        wait_until("the pool to be let go", LONG, || Ok(finalizers(&site, "app")?.is_empty()))?;
        let metrics = controller.get(&site, "/metrics")?;
        ensure!(
            metrics.contains("twill_controller_freed_total{kind=\"BlockAffinity\"} 2"),
            "{metrics}"
        );
        Ok(())
    })();
    with_log(&controller, result)
}

/// What a node that is gone had borrowed comes back by its owner, and what it had lent stays until it comes
/// back.
pub(crate) fn what_a_node_that_is_gone_had_borrowed_returns(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], HASTY, &[])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (own, _) = block_of(&site, &pod)?;
    // Nobody but the controller writes from here on; the Nodes stay.
    for node in ["node1", "node2"] {
        site.lab.node_mut(node)?.stop()?;
    }
    let [(first, first_half), (second, second_half)] =
        [("10.10.0.0/27", "10.10.0.16/28"), ("10.10.0.32/27", "10.10.0.48/28")];
    let (half, quarter, other, other_half) = match own == first {
        true => (first_half, "10.10.0.8/29", second, second_half),
        false => (second_half, "10.10.0.40/29", first, first_half),
    };
    let name = |block: &str| -> Result<String> {
        let block = block.parse::<twill_types::Block>();
        Ok(block.map_err(|error| anyhow::anyhow!("{error}"))?.claim_name())
    };
    let (own, other_name) = (name(&own)?, name(other)?);
    // As daemons write them.
    let request = |name: &str, node: &str, owner: &str, block: &str| {
        format!(
            "---\napiVersion: projectcalico.org/v3\nkind: BlockRequest\n\
             metadata: {{name: {name}, finalizers: [twill.projectcalico.org/request]}}\n\
             spec: {{node: {node}, owner: {owner}, block: {block}, pool: app, length: 29}}\n"
        )
    };
    let own_block = if other == first { second } else { first };
    site.apply(&format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\n\
         metadata: {{name: {other_name}, finalizers: [twill.projectcalico.org/claim]}}\n\
         spec: {{node: ghost, cidr: {other}, pool: app, delegations: \
         [{{cidr: {other_half}, node: node2, request: lent}}]}}\n{}{}{}{}{}",
        request("granted", "ghost", "node1", own_block),
        request("asked", "ghost", "node1", own_block),
        request("both-gone", "ghost", "phantom", "10.10.0.0/28"),
        request("lent", "node2", "ghost", other),
        request("unanswered", "node2", "ghost", other),
    ))?;
    let patch = format!(
        r#"{{"spec": {{"delegations": [
            {{"cidr": "{half}", "node": "ghost", "request": "lost"}},
            {{"cidr": "{quarter}", "node": "ghost", "request": "granted"}}]}}}}"#
    );
    let merge = |arguments: &[&str], patch: &str| {
        let all = [&["patch"], arguments, &["--type=merge", "-p", patch]].concat();
        site.api.kubectl().run(&all).map(drop)
    };
    merge(&["blockaffinity", &own], &patch)?;

    let controller = Controller::start(&site, "controller1", 9191)?;
    let list = |what: &str| site.api.kubectl().run(&["get", what, "-o", "name"]);
    let status = |name: &str, status: &str| {
        let patch = format!(r#"{{"status": {status}}}"#);
        merge(&["blockrequest", name, "--subresource=status"], &patch)
    };
    let result = (|| {
        wait_for("the parts to be given up", TAKE_OVER, || {
            let granted = site.api.kubectl().json(&["get", "blockrequest", "granted"])?;
            ensure!(granted["status"]["returned"] == true, "{granted}");
            let claim = site.api.kubectl().json(&["get", "blockaffinity", &own])?;
            let parts = claim["spec"]["delegations"].as_array().cloned().unwrap_or_default();
            ensure!(parts.len() == 1 && parts[0]["request"] == "granted", "{claim}");
            let requests = list("blockrequests")?;
            ensure!(!requests.contains("/both-gone"), "{requests}");
            // The other owner lives: the last word is its own, also where nothing was granted.
            let asked = site.api.kubectl().json(&["get", "blockrequest", "asked"])?;
            ensure!(asked["status"]["returned"] == true, "{asked}");
            ensure!(asked["metadata"]["deletionTimestamp"].is_null(), "{asked}");
            Ok(())
        })?;
        ensure!(list("blockaffinities")?.contains(&other_name), "node2 has a part of it");
        let unanswered = site.api.kubectl().json(&["get", "blockrequest", "unanswered"])?;
        ensure!(unanswered["status"]["refused"].is_null(), "the claim is there: {unanswered}");
        for (name, said) in [
            ("unanswered", ("Unknown", "Waiting", "ghost has not answered node2 yet")),
            ("granted", ("False", "Returned", "node1 takes it back")),
        ] {
            wait_condition(&site, ("blockrequest", name, "Granted"), said)?;
        }
        status("lent", r#"{"returned": true}"#)?;
        wait_until("the block of the node that is gone", TAKE_OVER, || {
            Ok(!list("blockaffinities")?.contains(&other_name))
        })?;
        wait_for("those that asked it to be answered", TAKE_OVER, || {
            for name in ["lent", "unanswered"] {
                let request = site.api.kubectl().json(&["get", "blockrequest", name])?;
                ensure!(request["status"]["refused"].is_string(), "{request}");
            }
            Ok(())
        })?;
        // The owner takes its part back, and says so.
        merge(&["blockaffinity", &own], r#"{"spec": {"delegations": null}}"#)?;
        for name in ["granted", "asked"] {
            status(name, r#"{"refused": "it was returned, and taken back"}"#)?;
        }
        wait_for("the last requests of the node that is gone", TAKE_OVER, || {
            let requests = list("blockrequests")?;
            ensure!(!requests.contains("/granted") && !requests.contains("/asked"), "{requests}");
            ensure!(requests.contains("/lent"), "node2's are its own to remove: {requests}");
            let metrics = controller.get(&site, "/metrics")?;
            ensure!(metrics.contains("twill_controller_gone_nodes 0"), "{metrics}");
            Ok(())
        })?;
        ensure!(list("blockaffinities")?.contains(&own), "node1 is not gone");
        Ok(())
    })();
    with_log(&controller, result)
}

/// Does something while the Lease of a node is renewed all the time, as if its daemon still ran.
fn while_renewed(site: &Site, node: &str, task: impl FnOnce() -> Result<()>) -> Result<()> {
    /// A part of [`LONG_GRACE`].
    const PERIOD: Duration = Duration::from_secs(1);
    // The thread ends when the sender goes, also if the task panics.
    let (task_runs, task_ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let renewing = scope.spawn(move || -> Result<()> {
            let mut number = 0;
            loop {
                number += 1;
                renew(site, node, number)?;
                if task_ended.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return Ok(());
                }
            }
        });
        let outcome = task();
        drop(task_runs);
        // A renewal that failed does not hide what the task says.
        let renewed = renewing.join().map_err(|_| anyhow!("the renewals panicked"))?;
        outcome.and(renewed)
    })
}

/// What a daemon does that still runs.
fn renew(site: &Site, node: &str, number: u32) -> Result<()> {
    let (minutes, seconds) = (number / 60 % 60, number % 60);
    let patch = format!(
        r#"{{"spec": {{"renewTime": "2026-01-01T00:{minutes:02}:{seconds:02}.000000Z"}}}}"#
    );
    let lease = format!("twill-node-{node}");
    let arguments = ["patch", "lease", "-n", "twill-system", &lease, "--type=merge", "-p", &patch];
    site.api.kubectl().run(&arguments).map(drop)
}
