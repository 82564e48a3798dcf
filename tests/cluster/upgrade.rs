//! A rolling update of the daemons, under traffic.

use std::{
    io::{self, Write},
    sync::Mutex,
};

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::wait::wait_until;

use super::{
    LONG,
    addresses::ON_SELECTED,
    site::{SELECTED, Site, UNSELECTED, lock},
    stream::Stream,
};

/// Every daemon is replaced while numbers go from one pod to another: none is lost, no route is withdrawn at
/// the router, the nodes stay ready all the time, and no EndpointSlice changes.
pub(crate) fn an_upgrade_is_not_noticed(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("web", 2, ON_SELECTED)?;
    let pods = site.wait_ready("web", 2)?;
    ensure!(pods[0].node != pods[1].node, "{pods:?}");
    let stream = Stream::start(&site, &pods[0], &pods[1])?;
    site.kubectl().run(&["expose", "deployment", "web", "--port=80"])?;
    let slices = || -> Result<Vec<Value>> {
        let found = site.kubectl().json(&["get", "endpointslices", "-A"])?;
        Ok(found["items"].as_array().cloned().unwrap_or_default())
    };
    wait_until("the EndpointSlice of two", LONG, || {
        let of_web =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web";
        let found = slices()?;
        let endpoints = found.iter().find(of_web).and_then(|slice| slice["endpoints"].as_array());
        Ok(endpoints
            .is_some_and(|e| e.len() == 2 && e.iter().all(|e| e["conditions"]["ready"] == true)))
    })?;

    let nodes = [SELECTED[0], SELECTED[1], UNSELECTED];
    let ready = || nodes.iter().map(|node| site.node_ready(node)).collect::<Result<Vec<_>>>();
    let daemons = || nodes.iter().map(|node| site.daemon(node)).collect::<Result<Vec<_>>>();
    let (ready_before, slices_before, daemons_before) = (ready()?, slices()?, daemons()?);
    let log = site.cluster.tor().bird().log().len();
    stream.wait_more()?;

    site.kubectl().run(&["rollout", "restart", "daemonset/twill-node", "-n", "twill-system"])?;
    site.wait_rollout()?;

    let daemons = daemons()?;
    let is_old = |daemon: &String| daemons_before.contains(daemon);
    ensure!(!daemons.iter().any(is_old), "{daemons:?} after {daemons_before:?}");
    site.cluster.tor().bird().wait_established(&nodes, LONG)?;
    stream.wait_more()?;
    for node in nodes {
        let withdrawn = site.cluster.tor().bird().withdrawals(node, log);
        ensure!(withdrawn.is_empty(), "{withdrawn:?}");
    }
    let ready_after = ready()?;
    ensure!(ready_after == ready_before, "{ready_after:?} after {ready_before:?}");
    ensure!(ready_after.iter().all(|(is_ready, ..)| *is_ready), "{ready_after:?}");
    ensure!(slices()? == slices_before, "an EndpointSlice has changed");

    let numbers = stream.finish()?;
    writeln!(io::stderr(), "{numbers} numbers were sent")?;
    tell_memory(&site)?;
    site.kubectl().run(&["delete", "service", "web"])?;
    site.remove("web")
}

/// What the new daemons have of memory.
fn tell_memory(site: &Site) -> Result<()> {
    for node in SELECTED {
        writeln!(io::stderr(), "{node}: {}", site.memory(node)?)?;
    }
    Ok(())
}
