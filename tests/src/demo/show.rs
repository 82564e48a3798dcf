//! What the demo shows while all is well.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::Screen;
use crate::{
    cni::CniError,
    lab::{Lab, Pod},
    ping::{Pinger, Source, Tally},
    rack,
};

/// The rack as a picture.
pub(super) const TOPOLOGY: &str = r"
                     +---------------------------+
                     |  tor   AS 64513   (BIRD)  |
                     |  198.51.100.0/24 outside  |
                     +---+-------------------+---+
              192.168.2.1|                   |192.168.3.1
        seg-a            |                   |        seg-b
       ------+-----------+-------+---       -+------+------
             |.11                |.13               |.12
      +------+------+     +------+------+    +------+------+
      |    node1    |     |    node3    |    |    node2    |    AS 64512, full mesh,
      | rack=rack1  |     | rack=rack1  |    | rack=rack1  |    each node peers with
      | env=prod    |     |             |    | env=prod    |    the ToR by rack=rack1
      +-------------+     +-------------+    +-------------+
       pods: web api db    pods: none         pods: web api db
";

/// Three pods on node1 and node2.
pub(super) fn add_pods(lab: &mut Lab, screen: &Screen) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for node in ["node1", "node2"] {
        for name in ["web", "api", "db"] {
            let mut pod = lab.bare_pod(node, &format!("{name}-{}", &node[4..]))?;
            let start = Instant::now();
            lab.attach(&mut pod)?;
            screen.good(format_args!(
                "ADD of {:<6} on {node}: {:<12} in {:.1} ms",
                pod.name(),
                pod.address()?,
                start.elapsed().as_secs_f64() * 1e3
            ));
            pods.push(pod);
        }
    }
    Ok(pods)
}

/// `twillctl` on node1 and node2.
pub(super) fn status(lab: &Lab, screen: &Screen) -> Result<()> {
    for node in ["node1", "node2"] {
        screen.output(
            &format!("twillctl node status        # on {node}"),
            &lab.node(node)?.ctl(&["node", "status"])?,
        );
    }
    let blocks = lab.node("node1")?.ctl(&["ipam", "show", "--show-blocks"])?;
    screen.output("twillctl ipam show --show-blocks        # on node1", &blocks);
    screen.output(
        "twillctl bgp routes        # on node1",
        &lab.node("node1")?.ctl(&["bgp", "routes"])?,
    );
    for node in ["node1", "node2"] {
        let used = lab.node(node)?.addresses_in_use()?;
        ensure!(used == 3, "{node} has {used} addresses in use instead of 3");
    }
    for (node, address) in rack::NODES {
        let route = lab.node(node)?.wait_route(rack::OUTSIDE.0, rack::CONVERGENCE)?;
        ensure!(route["prefsrc"] == address, "the preferred source is not {address}: {route}");
    }
    screen.good("the ToR's prefix is in every node's kernel, with the node's address as source");
    Ok(())
}

/// The ToR's routes, in BIRD and in its kernel.
pub(super) fn tor(lab: &Lab, screen: &Screen) -> Result<()> {
    let routes = lab.bird("tor")?.command("show route where source = RTS_BGP")?;
    screen.output("birdc show route where source = RTS_BGP        # on tor", &routes);
    let kernel = lab.router("tor")?.ip("route show")?;
    screen.output("ip route        # on tor", &kernel);
    for (node, address) in rack::NODES {
        for block in lab.node(node)?.blocks()? {
            let gateway = format!("{block} via {address} ");
            ensure!(kernel.contains(&gateway), "the ToR's kernel has no route {gateway}");
        }
    }
    screen.good("each block goes to the node that owns it");
    Ok(())
}

/// Every pod and the ToR to every pod, and pods to the outside.
pub(super) fn sources<'a>(lab: &'a Lab, pods: &'a [Pod]) -> Result<Vec<Source<'a>>> {
    let outside: IpAddr = rack::OUTSIDE.1.parse().context("not an address")?;
    let mut sources = Vec::new();
    for pod in pods {
        let others = pods.iter().filter(|other| other.name() != pod.name());
        let mut targets = others.map(Pod::address).collect::<Result<Vec<_>>>()?;
        targets.push(outside);
        sources.push(Source { name: pod.name(), namespace: pod.namespace(), targets });
    }
    let targets = pods.iter().map(Pod::address).collect::<Result<_>>()?;
    sources.push(Source { name: "tor", namespace: lab.router("tor")?, targets });
    Ok(sources)
}

/// Pings everything, and prints the slowest round trip of each pair.
pub(super) fn matrix(lab: &Lab, pods: &[Pod], screen: &Screen) -> Result<()> {
    let pinger = Pinger::start(sources(lab, pods)?, Duration::from_millis(10))?;
    pinger.wait_rounds(10)?;
    let tallies = pinger.stop()?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_FULL_CONDENSED);
    let names: Vec<_> = pods.iter().map(Pod::name).collect();
    table.set_header([&["from \\ to"], names.as_slice(), &["outside"]].concat());
    for from in names.iter().chain(&["tor"]) {
        let mut row = vec![Cell::new(from)];
        for pod in pods {
            let of_pair = tallies
                .iter()
                .find(|t| t.from == *from && t.to == pod.addresses().first().copied());
            row.push(cell(of_pair));
        }
        let to_outside = |t: &&Tally| {
            t.from == *from && !pods.iter().any(|p| p.addresses().first().copied() == t.to)
        };
        row.push(cell(tallies.iter().find(to_outside)));
        table.add_row(row);
    }
    screen.say(format_args!("{table}\n  (slowest answer of a pair, ms)"));
    lossless(&tallies)?;
    screen.good(format_args!("{} pairs, no packet lost", tallies.len()));
    Ok(())
}

fn cell(tally: Option<&Tally>) -> Cell {
    let text = match tally {
        None => "-".to_owned(),
        Some(tally) if tally.lost() > 0 => format!("{} lost", tally.lost()),
        Some(tally) => format!("{:.2}", tally.slowest.as_secs_f64() * 1e3),
    };
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Fails with the pairs that lost packets.
pub(super) fn lossless(tallies: &[Tally]) -> Result<()> {
    let lossy: Vec<_> = tallies.iter().filter(|t| t.lost() > 0).map(ToString::to_string).collect();
    ensure!(lossy.is_empty(), "packets were lost:\n{}", lossy.join("\n"));
    Ok(())
}

/// ADD on a node that no pool selects.
pub(super) fn refused(lab: &mut Lab, screen: &Screen) -> Result<()> {
    let mut pod = lab.bare_pod("node3", "web-3")?;
    let error = lab.attach(&mut pod).err().context("node3 gave an address")?;
    let error: CniError = error.downcast().context("no CNI error")?;
    screen.output("twill ADD        # on node3", &error.to_string());
    ensure!(
        error.message.contains("pool") && format!("{error}").contains("node3"),
        "the error does not name pool and node"
    );
    lab.detach(&pod)?;
    let links = lab.node("node3")?.namespace().ip("-oneline link show type veth")?;
    // eth0 is the node's own.
    ensure!(links.lines().count() == 1, "links are left on node3: {links}");
    screen.good("a CNI error that says what to do; no link, no address is left");
    Ok(())
}
