//! A node daemon whose account lacks a right: it says so, and does not ask again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use twill_tests::{kubernetes::ApiServer, programs, wait::wait_for};

use super::{
    nodes::{ACCOUNT, POOL, STRICT, Site},
    permission::wait_right,
};

/// How soon what was refused may be asked for again.
const PAUSE: Duration = Duration::from_secs(30);

/// How long what waits for that twice may take.
const TWICE: Duration = Duration::from_secs(120);

/// Takes a right from the node daemons, and waits until that is so.
fn revoke(site: &Site, verb: &str, resource: &str) -> Result<()> {
    let kubectl = site.api.kubectl();
    let role = kubectl.json(&["get", "clusterrole", "twill-node"])?;
    let rules = role["rules"].as_array().context("no rules")?;
    let has = |list: &serde_json::Value, wanted: &str| {
        list.as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
    };
    let at = rules.iter().position(|rule| has(&rule["resources"], resource));
    let at = at.with_context(|| format!("no rule about {resource} in {role}"))?;
    let verbs = rules[at]["verbs"].as_array().into_iter().flatten();
    let verbs: Vec<_> = verbs.filter(|kept| *kept != verb).collect();
    // A rule without verbs would be refused.
    let verbs =
        if verbs.is_empty() { serde_json::json!(["get"]) } else { serde_json::json!(verbs) };
    let patch = format!(r#"[{{"op": "replace", "path": "/rules/{at}/verbs", "value": {verbs}}}]"#);
    kubectl.run(&["patch", "clusterrole", "twill-node", "--type=json", "-p", &patch])?;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let resource = format!("{resource}.projectcalico.org");
    let subresource = format!("--subresource={subresource}");
    wait_right(&site.api, ACCOUNT, &[verb, &resource, &subresource], false)
}

/// Gives the node daemons all their rights again.
fn grant(site: &Site) -> Result<()> {
    let account = programs::source("conf/rbac");
    site.api.kubectl().run(&["apply", "-f", &account.to_string_lossy()]).map(drop)
}

/// How often the API server has refused this, since `start` not more often than once in each [`PAUSE`].
fn refused(site: &Site, what: &str, start: Instant) -> Result<usize> {
    let refusals = site.api.node_refusals()?;
    let count = refusals.iter().filter(|refusal| refusal.starts_with(what)).count();
    let most = start.elapsed().as_secs() / PAUSE.as_secs() + 1;
    ensure!(u64::try_from(count)? <= most, "{count} in {:?}: {refusals:?}", start.elapsed());
    Ok(count)
}

fn wait_said(site: &Site, text: &str, is_said: bool) -> Result<()> {
    wait_for("what node1 says of its rights", TWICE, || {
        let status = site.lab.node("node1")?.status()?.to_string();
        ensure!(status.contains(text) == is_said, "{status}");
        Ok(())
    })
}

/// Whether ahead of need or for a pod, a claim that is refused is one request in half a minute.
pub(crate) fn a_claim_that_is_refused_is_said_and_not_repeated(_: &ApiServer) -> Result<()> {
    const MISSING: &str = "may not create blockaffinities";
    let pool = POOL.replace("blockSize: 27", "blockSize: 29");
    let mut site = Site::start(&[&pool, STRICT])?;
    let mut pods = vec![site.lab.add_pod("node1", "pod0")?];
    let start = Instant::now();
    revoke(&site, "create", "blockaffinities")?;
    for number in 1..8 {
        pods.push(site.lab.add_pod("node1", &format!("pod{number}"))?);
    }
    // Nobody has missed anything yet.
    wait_said(&site, MISSING, true)?;
    let mut late = site.lab.bare_pod("node1", "late")?;
    // It asks the daemon again and again, as long as it has time.
    let outcome = site.lab.attach(&mut late);
    let text = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(text.contains(MISSING), "{text:?}");
    let count = refused(&site, "create blockaffinities", start)?;
    ensure!(count > 0, "nothing was refused");
    grant(&site)?;
    wait_for("an address for the pod", TWICE, || site.lab.attach(&mut late))?;
    refused(&site, "create blockaffinities", start)?;
    wait_said(&site, MISSING, false)
}

/// A status that is refused is a problem of the node, and one request in half a minute, whatever changes meanwhile.
pub(crate) fn a_status_that_is_refused_is_said_and_not_repeated(_: &ApiServer) -> Result<()> {
    const MISSING: &str = "may not patch caliconodestatuses/node1/status";
    const REQUEST: &str = "patch caliconodestatuses/status node1";
    let site = Site::start(&[POOL, STRICT])?;
    site.wait_settled("node1")?;
    let start = Instant::now();
    revoke(&site, "patch", "caliconodestatuses/status")?;
    let another = |number: u8| {
        let pool = POOL.replace("name: app", &format!("name: pool{number}"));
        site.apply(&pool.replace("10.10.", &format!("10.2{number}.")))
    };
    another(0)?;
    wait_said(&site, MISSING, true)?;
    let mut number = 0;
    wait_for("the second attempt", TWICE, || {
        if number < 7 {
            number += 1;
            another(number)?;
        }
        // Too many of them end the test at once.
        let count = refused(&site, REQUEST, start);
        ensure!(!matches!(count, Ok(0 | 1)), "{count:?}");
        Ok(count)
    })??;
    grant(&site)?;
    wait_for("the condition of the last pool", TWICE, || {
        site.condition("node1", "IPPool", "pool7")
    })?;
    wait_said(&site, MISSING, false)
}
