//! A rolling update of the daemons, under traffic.

use std::{
    io::{self, Write},
    sync::Mutex,
};

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::{
    wait::{wait_for, wait_until},
    watch::RouteWatch,
};

use super::{
    LONG,
    addresses::ON_SELECTED,
    release::Release,
    site::{SELECTED, Site, UNSELECTED, lock},
    stream::{Sent, Stream},
    ways,
};

/// Every daemon is replaced by one of another release, with another plugin and another network configuration, while
/// numbers go from one pod to another: none is lost or late, no route is withdrawn at the router or taken out of
/// a node's kernel, the nodes stay ready all the time, and no EndpointSlice changes. What is new counts: the
/// configuration brings host ports.
pub(crate) fn an_upgrade_is_not_noticed(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("web", 2, ON_SELECTED)?;
    let pods = site.wait_ready("web", 2)?;
    ensure!(pods[0].node != pods[1].node, "{pods:?}");
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
    // To make an image and to give it to the nodes takes all of the machine for a while; that is not what is looked at.
    let release = Release::make(&site)?;
    let stream = Stream::start(&site, &pods[0], &pods[1])?;
    let (ready_before, slices_before, daemons_before) = (ready()?, slices()?, daemons()?);
    let log = site.cluster.tor().bird().log().len();
    for node in nodes {
        ensure!(!release.is_on(&site, node)?, "{node} has it before it was rolled out");
    }
    let directory = site.cluster.directory();
    let watch = |node: &&str| RouteWatch::of(node, site.cluster.node(node)?.namespace(), directory);
    let watches = SELECTED.iter().map(watch).collect::<Result<Vec<_>>>()?;
    stream.wait_more()?;

    release.roll_out(&site)?;
    for node in nodes {
        ensure!(release.is_on(&site, node)?, "{node} has another plugin or configuration");
    }

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

    let Sent { numbers, gap, overslept } = stream.finish()?;
    writeln!(
        io::stderr(),
        "{numbers} numbers were sent, no two more than {gap:?} apart; the sender overslept {overslept:?}"
    )?;
    for watch in watches {
        let ours = |line: &String| line.contains("proto 116");
        let deleted: Vec<_> = watch.deleted().into_iter().filter(ours).collect();
        ensure!(deleted.is_empty(), "{deleted:?}");
    }
    tell_memory(&site)?;
    site.kubectl().run(&["delete", "service", "web"])?;
    site.remove("web")?;
    a_host_port_leads_to_a_pod(&site)
}

/// By the plugin that is chained behind ours since.
fn a_host_port_leads_to_a_pod(site: &Site) -> Result<()> {
    let ports = format!("  ports: [{{containerPort: 8080, hostPort: 80}}]\n      {ON_SELECTED}");
    site.deploy("port", 1, &ports)?;
    let pods = site.wait_ready("port", 1)?;
    let httpd = ["/bin/busybox", "httpd", "-p", "8080", "-h", "/bin"];
    site.exec(&pods[0].name, &httpd)?;
    let address = site.cluster.node(&pods[0].node)?.address().to_string();
    wait_for("an answer at the node's own port", LONG, || {
        let answer = site.cluster.tor().namespace().enter(|| ways::get(&address))??;
        ensure!(answer.starts_with("HTTP/1."), "{answer}");
        Ok(())
    })?;
    site.remove("port")
}

/// What the new daemons have of memory.
fn tell_memory(site: &Site) -> Result<()> {
    for node in SELECTED {
        writeln!(io::stderr(), "{node}: {}", site.memory(node)?)?;
    }
    Ok(())
}
