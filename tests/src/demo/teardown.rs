//! Back to nothing, step by step, each with its proof.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::Screen;
use crate::{
    lab::{Lab, Pod},
    rack,
    snapshot::Snapshot,
    wait::wait_for,
};

/// What the nodes' namespaces had before their daemons started.
pub(super) struct Clean(Vec<(String, Snapshot)>);

impl Clean {
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let snapshot = |node: &crate::lab::Node| {
            Ok((node.name().to_owned(), Snapshot::namespace(node.namespace())?))
        };
        Ok(Self(lab.nodes().map(snapshot).collect::<Result<_>>()?))
    }
}

pub(super) fn run(mut lab: Lab, pods: Vec<Pod>, clean: &Clean, screen: &Screen) -> Result<()> {
    let start = Instant::now();
    let count = pods.len();
    for pod in pods {
        lab.delete_pod(pod)?;
    }
    screen.good(format_args!(
        "DEL of {count} pods, {:.1} ms each",
        start.elapsed().as_secs_f64() * 1e3 / f64::from(u32::try_from(count)?)
    ));
    for (name, _) in rack::NODES {
        wait_for(&format!("the pods' links to go from {name}"), rack::CONVERGENCE, || {
            let links = lab.node(name)?.namespace().ip("-oneline link show type veth")?;
            ensure!(links.lines().count() == 1, "{links}");
            Ok(())
        })?;
        let used = lab.node(name)?.addresses_in_use()?;
        ensure!(used == 0, "{name} still has {used} addresses in use");
    }
    screen.good("no veth and no allocation is left on any node");

    for file in rack::MANIFESTS {
        lab.remove_resource(file)?;
    }
    for (name, _) in rack::NODES {
        wait_for(&format!("the ToR's session with {name} to end"), rack::CONVERGENCE, || {
            let protocol = lab.bird("tor")?.protocol(name)?;
            ensure!(!protocol.info.starts_with("Established"), "{protocol:?}");
            let routes = lab.bird("tor")?.routes_from(name)?;
            ensure!(routes.is_empty(), "{routes:?}");
            Ok(())
        })?;
    }
    screen.good("pool and peer removed: sessions closed with a NOTIFICATION, no route at the ToR");
    for (name, before) in &clean.0 {
        wait_for(&format!("{name} to be as before"), rack::CONVERGENCE, || {
            let now = Snapshot::namespace(lab.node(name)?.namespace())?;
            let left = before.differences(&now);
            // What belongs to a node that forwards, and stays as long as it is one: the
            // pods' gateway, and the kernel's own subnet-router anycast.
            let left: Vec<_> = left
                .iter()
                .filter(|line| !line.contains("169.254.1.1") && !line.contains("anycast"))
                .collect();
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })?;
    }
    screen.good("links, addresses, routes and rules of every node: as before its daemon started");
    for (name, _) in rack::NODES {
        lab.node_mut(name)?.stop()?;
    }
    screen.good("the daemons ended at SIGTERM, with status 0");
    lab.remove()
}
