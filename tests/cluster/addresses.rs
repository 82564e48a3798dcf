//! Addresses, and the ways between them.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    sync::Mutex,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{kubernetes::Runtime, ping, wait::wait_for};

use super::{
    LONG,
    site::{Pod, SELECTED, Site, UNSELECTED, lock},
};

/// Pods that go where the pool is.
pub(crate) const ON_SELECTED: &str = "nodeSelector: {env: prod}";

/// The port of containerd's metrics.
const CONTAINERD_METRICS: u16 = 1338;

/// Sandboxes at a time are few on a machine of two processors.
const MANY: usize = 50;
const FEW: usize = 8;

/// A Deployment over two nodes gets addresses of the pool that selects them.
pub(crate) fn a_deployment_gets_addresses_of_the_pool_that_selects_its_nodes(
    site: &Mutex<Site>,
) -> Result<()> {
    let site = lock(site)?;
    site.deploy("app", 4, ON_SELECTED)?;
    let pods = site.wait_ready("app", 4)?;
    let pool: twill_types::Prefix = "10.10.0.0/24".parse()?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(nodes == BTreeSet::from(SELECTED), "{pods:?}");
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(addresses.len() == 4 && addresses.iter().all(|a| pool.contains(*a)), "{pods:?}");
    let claims = site.kubectl().json(&["get", "blockaffinities"])?;
    let claims = claims["items"].as_array().context("no list of claims")?;
    for pod in &pods {
        let is_of = |claim: &&Value| {
            let block: Option<twill_types::Prefix> =
                claim["spec"]["cidr"].as_str().and_then(|cidr| cidr.parse().ok());
            claim["spec"]["node"] == pod.node.as_str()
                && block.is_some_and(|block| block.contains(pod.address))
        };
        ensure!(claims.iter().any(|claim| is_of(&claim)), "{pod:?} is in no claim of its node");
    }
    site.remove("app")
}

/// Pods of two nodes reach each other, by routes that BGP brought.
pub(crate) fn pods_of_two_nodes_reach_each_other(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("app", 2, ON_SELECTED)?;
    let pods = site.wait_ready("app", 2)?;
    let [first, second] = &pods[..] else { anyhow::bail!("{pods:?}") };
    ensure!(first.node != second.node, "{pods:?}");
    for (from, to) in [(first, second), (second, first)] {
        wait_for("the pods to reach each other", LONG, || site.pings(from, to))
            .or_else(|error| Err(error.context(site.ways()?)))?;
        // A packet also comes there by the router alone, to which the default route leads.
        wait_for("the learned route", LONG, || {
            let namespace = site.cluster.node(&from.node)?.namespace();
            let way = namespace.ip(&format!("route show match {} proto 116", to.address))?;
            ensure!(way.contains("/26 via"), "no learned route leads to {to:?}: {way}");
            Ok(())
        })?;
    }
    site.remove("app")
}

/// The router reaches pods, and they reach it.
pub(crate) fn the_tor_reaches_pods(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("app", 2, ON_SELECTED)?;
    for pod in site.wait_ready("app", 2)? {
        let tor = site.cluster.tor();
        wait_for("the router to reach the pod", LONG, || {
            ping::reaches(tor.namespace(), pod.address)
        })
        .or_else(|error| Err(error.context(site.ways()?)))?;
        let routes = tor.bird().routes_from(&pod.node)?;
        let blocks = routes.iter().filter(|route| route.prefix.ends_with("/26")).count();
        ensure!(blocks == routes.len() && blocks > 0, "more than blocks is announced: {routes:?}");
    }
    site.remove("app")
}

/// A pod on a node that no pool selects waits, and its event says why.
pub(crate) fn a_pod_on_an_unselected_node_waits_and_says_why(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("app", 1, &format!("nodeName: {UNSELECTED}"))?;
    wait_for("the event, and the state", LONG, || {
        let pod = site.pods("app")?.into_iter().next().context("there is no pod")?;
        site.told_of(&pod, "FailedCreatePodSandBox", "no pool selects node node3")?;
        let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ensure!(state == "ContainerCreating", "{}", pod["status"]);
        Ok(())
    })?;
    site.remove("app")
}

/// From nothing to many pods and back: no address, link, route or namespace is left.
pub(crate) fn nothing_is_left_of_many_pods(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    let before = wait_for("nodes without a trace of pods before", LONG, || {
        let (now, again) = (traces(&site)?, traces(&site)?);
        ensure!(now == again, "{now:?}, then {again:?}");
        ensure!(now.iter().all(|[links, routes, _]| (*links, *routes) == (0, 0)), "{now:?}");
        Ok(now)
    })?;
    site.deploy("many", 0, ON_SELECTED)?;
    // One after the other, for the figures; then all the others at once. The first on each node may need a block.
    let mut requests = 0;
    for count in 1..=SELECTED.len() + FEW {
        site.scale("many", count)?;
        site.wait_ready("many", count)?;
        if count == SELECTED.len() {
            requests = site.cluster.api().node_requests()?.len();
        }
    }
    asked_nothing(&site, requests)?;
    tell_figures(&site)?;
    site.scale("many", MANY)?;
    let pods = site.wait_ready_within("many", MANY, LONG * 4)?;
    let addresses: BTreeSet<_> = pods.iter().map(|pod: &Pod| pod.address).collect();
    ensure!(addresses.len() == MANY, "{} addresses", addresses.len());
    site.wait_used(u64::try_from(MANY)?)?;
    for name in SELECTED {
        writeln!(io::stderr(), "{name}: {} with {MANY} pods on two nodes", site.memory(name)?)?;
    }
    site.scale("many", 0)?;
    site.wait_gone_within("many", LONG * 4)?;
    site.wait_used(0)?;
    wait_for("the nodes to be as before", LONG, || {
        let now = traces(&site)?;
        ensure!(now == before, "{now:?} instead of {before:?}");
        Ok(())
    })?;
    site.remove("many")
}

/// What pods leave on nodes: how many links of ours, routes to pods, and namespaces.
fn traces(site: &Site) -> Result<Vec<[usize; 3]>> {
    let mut found = Vec::new();
    for name in SELECTED {
        let node = site.cluster.node(name)?;
        let links = node.namespace().ip("-oneline link")?;
        let links = links.lines().filter(|line| line.contains(": twl")).count();
        let routes = node.namespace().ip("route show proto 116")?;
        let routes = routes.lines().filter(|line| line.contains(" dev twl")).count();
        let namespaces = node.run("ls", &["/run/netns"])?;
        found.push([links, routes, namespaces.lines().count()]);
    }
    Ok(found)
}

/// How long the newest containerd has waited for ADDs so far.
fn tell_figures(site: &Site) -> Result<()> {
    for name in SELECTED {
        let node = site.cluster.node(name)?;
        if node.runtime() == Runtime::Newest {
            let text = node.http(CONTAINERD_METRICS, "/v1/metrics")?;
            let (half, count) = median(&text).context("containerd tells nothing of ADDs")?;
            writeln!(io::stderr(), "{name}: half of {count} ADDs took up to {half} s")?;
        }
    }
    Ok(())
}

/// What an ADD asks for if something is wrong: a block, or who the pod is. All else that daemons ask for comes by the
/// clock, with a change of the machine or with a watch that begins again.
const OF_ADDS: [&str; 4] = [" blockaffinities", " blockrequests", " pods", " namespaces"];

/// Fails if node daemons asked the API server for anything because of ADDs. `before` is how many requests there were.
fn asked_nothing(site: &Site, before: usize) -> Result<()> {
    let requests = site.cluster.api().node_requests()?;
    let requests = &requests[before..];
    let is_of_watch = |at: usize, request: &str| {
        let watch = request.strip_prefix("list ").map(|list| format!("watch {list}"));
        request.starts_with("watch") || watch.is_some_and(|watch| requests[at..].contains(&watch))
    };
    let asked = requests.iter().enumerate().filter(|(at, request)| {
        OF_ADDS.iter().any(|of| request.ends_with(of)) && !is_of_watch(*at, request)
    });
    let asked: Vec<_> = asked.map(|(_, request)| request).collect();
    // The watch of pods may be so late on a machine that is busy that one ADD asks; no second one does.
    let (late, asked): (Vec<_>, Vec<_>) = asked.into_iter().partition(|r| *r == "get pods");
    ensure!(asked.is_empty() && late.len() <= 1, "{FEW} ADDs made {asked:?} and {late:?}");
    let (late, others) = (late.len(), requests.len() - late.len());
    writeln!(io::stderr(), "API requests for {FEW} ADDs: {late}; others: {others}")?;
    Ok(())
}

/// The bound of the histogram's bucket in which the median ADD is, in seconds, and how many there were.
fn median(metrics: &str) -> Option<(&str, u64)> {
    const BUCKET: &str = "network_plugin_operations_duration_seconds_seconds_bucket";
    let buckets = metrics
        .lines()
        .filter(|line| line.contains(BUCKET) && line.contains("operation_type=\"set_up_pod\""));
    let parsed = buckets.filter_map(|line| {
        let (_, rest) = line.split_once("le=\"")?;
        let (bound, rest) = rest.split_once('"')?;
        Some((bound, rest.rsplit(' ').next()?.parse::<u64>().ok()?))
    });
    let buckets: Vec<_> = parsed.collect();
    let (_, count) = *buckets.last()?;
    let (bound, _) = buckets.iter().find(|(_, below)| below * 2 >= count)?;
    Some((bound, count))
}

/// A pool without a free address keeps pods waiting; one that is added lets them go on.
pub(crate) fn an_exhausted_pool_can_be_extended(site: &Mutex<Site>) -> Result<()> {
    let pool = |name: &str, range: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
             spec: {{cidr: {range}, blockSize: 30, nodeSelector: env == 'test'}}\n"
        )
    };
    let site = lock(site)?;
    site.kubectl().run(&["label", "node", UNSELECTED, "env=test"])?;
    site.apply(&pool("small", "10.20.0.0/30"))?;
    site.deploy("app", 6, "nodeSelector: {env: test}")?;
    wait_for("four pods, and the events of the others", LONG, || {
        let (running, waiting): (Vec<_>, Vec<_>) =
            site.pods("app")?.into_iter().partition(|pod| pod["status"]["phase"] == "Running");
        ensure!(running.len() == 4 && waiting.len() == 2, "{} run", running.len());
        let told = |pod| site.told_of(pod, "FailedCreatePodSandBox", "is in use");
        waiting.iter().try_for_each(told)
    })?;
    site.apply(&pool("more", "10.20.1.0/30"))?;
    let pods = site.wait_ready("app", 6)?;
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(addresses.len() == 6, "{pods:?}");
    site.remove("app")?;
    site.kubectl().run(&["label", "node", UNSELECTED, "env-"])?;
    site.delete_pools(&["small", "more"])
}
