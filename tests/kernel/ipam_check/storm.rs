//! Checks that mend, all the time, while pods come and go.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Attachment, CniError},
    lab::{Lab, Node},
    netns::Namespace,
    ping,
    random::Random,
    wait::wait_for,
};

use crate::{LONG, SECONDS, crash};

const WORKERS: u64 = 6;

/// ADDs of each worker.
const LIVES: usize = 25;

/// As short as can be: with the usual one, nothing would be mended as long as the storm lasts.
const SETTINGS: &str = "reconcile: {intervalSeconds: 3600, graceSeconds: 1}\n";

/// A pod that should live.
struct Living {
    attachment: Attachment,
    addresses: Vec<std::net::IpAddr>,
    _namespace: Namespace,
}

/// projectcalico/calico#5044: what looks for leaks must not take what lives.
pub(crate) fn a_living_pod_keeps_its_address_whatever_is_mended_meanwhile() -> Result<()> {
    let random = Random::from_environment();
    let lab = crash::node_with(SETTINGS)?;
    storm(&lab, &random).with_context(|| format!("in the storm; {random}"))
}

fn storm(lab: &Lab, random: &Random) -> Result<()> {
    let node = lab.node("node1")?;
    let (over, abandoned) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mended, living) = thread::scope(|scope| -> Result<_> {
        let mender = scope.spawn(|| mend(node, &over));
        let workers: Vec<_> = (1..=WORKERS)
            .map(|number| {
                let random = random.fork(number);
                let abandoned = &abandoned;
                scope.spawn(move || work(node, number, random, abandoned))
            })
            .collect();
        let mut living = Vec::new();
        let mut first_error = None;
        for worker in workers {
            match worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked"))) {
                Ok(kept) => living.extend(kept),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        over.store(true, Ordering::Release);
        let mended = mender.join().unwrap_or_else(|_| Err(anyhow!("the mender panicked")));
        first_error.map_or(Ok((mended?, living)), Err)
    })?;
    let abandoned = abandoned.load(Ordering::Relaxed);
    ensure!(mended.0 > 2 && abandoned > 5, "too mild: {mended:?}, {abandoned} abandoned");
    let used = living.iter().map(|pod| pod.addresses.len() as u64).sum::<u64>();
    wait_for("nothing but the living", LONG, || {
        let report = fix(node)?;
        ensure!(report["counts"] == json!({}), "{report}");
        let found = node.addresses_in_use()?;
        ensure!(found == used, "{found} addresses in use, not {used}: {report}");
        Ok(())
    })?;
    for pod in &living {
        node.runtime().check(node.namespace(), &pod.attachment)?;
        for address in &pod.addresses {
            wait_for("an answer", SECONDS, || ping::reaches(node.namespace(), *address))?;
        }
    }
    Ok(())
}

fn fix(node: &Node) -> Result<Value> {
    let output = node.ctl_output(&["ipam", "check", "--fix", "-o", "json"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).with_context(|| said)
}

/// How often it mended, and how much.
fn mend(node: &Node, over: &AtomicBool) -> Result<(usize, usize)> {
    let (mut rounds, mut mended) = (0, 0);
    while !over.load(Ordering::Acquire) {
        let report = fix(node)?;
        let fixed = report["fixed"].as_array().context("no report")?;
        let wrong = fixed.iter().find(|fixed| {
            !["leakedAddress", "publishedDiffers"].contains(&fixed["kind"].as_str().unwrap_or(""))
        });
        ensure!(wrong.is_none(), "there was nothing else to mend: {report:#}");
        rounds += 1;
        mended += fixed.len();
    }
    Ok((rounds, mended))
}

fn work(
    node: &Node,
    number: u64,
    mut random: Random,
    abandoned: &AtomicUsize,
) -> Result<Vec<Living>> {
    let (runtime, host) = (node.runtime(), node.namespace());
    let mut living: Vec<Living> = Vec::new();
    for life in 0..LIVES {
        let name = format!("check-{number}-{life}");
        let namespace = Namespace::create(&name)?;
        let netns = namespace.path().display().to_string();
        let attachment = Attachment::pod("prod", &name, &name, &netns);
        // An ADD that takes longer than the short grace counts as dead, and is told to try again.
        let is_told = |error: &anyhow::Error| {
            error.downcast_ref::<CniError>().is_some_and(|error| error.code == 11)
        };
        let mut result = runtime.add(host, &attachment);
        let end = Instant::now() + LONG;
        while Instant::now() < end && result.as_ref().is_err_and(is_told) {
            runtime.del(host, &attachment)?;
            result = runtime.add(host, &attachment);
        }
        let addresses = cni::addresses(&result?)?;
        living.push(Living { attachment, addresses, _namespace: namespace });
        if living.len() > 2 {
            let pod = living.swap_remove(random.below(living.len()));
            // Up to its end it has what it was given.
            runtime.check(host, &pod.attachment)?;
            if random.one_in(4) {
                abandoned.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            runtime.del(host, &pod.attachment)?;
        }
    }
    Ok(living)
}
