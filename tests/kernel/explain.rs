//! `twillctl bgp explain`: what the decision makes of real routers' paths.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    wait::wait_for,
};

use crate::LONG;

const SHARED: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor1}
spec: {peerIP: 192.168.2.1, asNumber: 64513}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor2}
spec: {peerIP: 192.168.2.2, asNumber: 64513}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: core}
spec: {peerIP: 192.168.2.3, asNumber: 64512}
";

/// The second ToR, worse than the first in one respect for each prefix.
const WORSE: &str = "if net = 198.51.100.0/24 then bgp_path.prepend(64999); \
                     if net = 198.51.101.0/24 then bgp_origin = ORIGIN_INCOMPLETE; \
                     if net = 198.51.102.0/24 then bgp_med = 10; \
                     if net = 198.51.106.0/24 then bgp_next_hop = 203.0.113.9; \
                     bgp_community.add((64513,7));";

/// An internal router, whose LOCAL_PREF decides before anything else.
const INTERNAL: &str = "bgp_path.prepend(64513); bgp_local_pref = 100; \
                        if net = 198.51.104.0/24 then bgp_local_pref = 200;";

fn lab() -> Result<Lab> {
    let mut topology = Topology::new();
    for (name, address, asn, change, prefixes) in [
        ("tor1", "192.168.2.1", 64513, "", &[100, 101, 102, 103, 104, 105][..]),
        ("tor2", "192.168.2.2", 64513, WORSE, &[100, 101, 102, 103, 106]),
        ("core", "192.168.2.3", 64512, INTERNAL, &[104, 105]),
    ] {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local(address).change(change);
        let mut bird = BirdConfig::new(address, asn).neighbor(neighbor);
        for third in prefixes {
            bird = bird.announce(&format!("198.51.{third}.0/24"));
        }
        topology.router(name).on("seg-a", &format!("{address}/24")).bird(bird);
    }
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("shared.yaml", SHARED);
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1", "192.168.2.2", "192.168.2.3"], LONG)?;
    Ok(lab)
}

/// `(from, used, step, against)` of each path.
fn fates(answer: &Value) -> Vec<String> {
    let paths = answer["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let fate = |path: &Value| {
        let used = if path["used"] == true { "used" } else { "unused" };
        [text(&path["from"]), used.to_owned(), text(&path["step"]), text(&path["against"])]
            .join("|")
    };
    paths.iter().map(fate).collect()
}

/// For each prefix another step decides, and explain names it; an address finds its route; the node's
/// own block and the unknown have an answer, too.
pub(crate) fn each_path_says_why_it_is_used_or_not() -> Result<()> {
    let mut lab = lab()?;
    for (prefix, expected) in [
        (
            "198.51.100.0/24",
            &["192.168.2.1|used|-|-", "192.168.2.2|unused|shorter AS_PATH|192.168.2.1"][..],
        ),
        (
            "198.51.101.0/24",
            &["192.168.2.1|used|-|-", "192.168.2.2|unused|better ORIGIN|192.168.2.1"],
        ),
        ("198.51.102.0/24", &["192.168.2.1|used|-|-", "192.168.2.2|unused|lower MED|192.168.2.1"]),
        (
            "198.51.103.0/24",
            &["192.168.2.1|used|-|-", "192.168.2.2|used|lower router id|192.168.2.1"],
        ),
        (
            "198.51.104.0/24",
            &["192.168.2.3|used|-|-", "192.168.2.1|unused|higher LOCAL_PREF|192.168.2.3"],
        ),
        (
            "198.51.105.0/24",
            &["192.168.2.1|used|-|-", "192.168.2.3|unused|external over internal|192.168.2.1"],
        ),
        ("198.51.106.0/24", &["192.168.2.2|unused|-|-"]),
    ] {
        wait_for(&format!("the decision on {prefix}"), LONG, || {
            let answer = lab.node("node1")?.ctl_json(&["bgp", "explain", prefix])?;
            ensure!(fates(&answer) == expected, "{answer:#}");
            let wanted = prefix != "198.51.106.0/24";
            ensure!(answer["installed"] == wanted, "{answer:#}");
            Ok(())
        })?;
    }
    let answer = lab.node("node1")?.ctl_json(&["bgp", "explain", "198.51.100.7"])?;
    ensure!(answer["prefix"] == "198.51.100.0/24", "{answer:#}");
    let worse = &answer["paths"][1];
    ensure!(worse["asPath"] == "64513 64999" && worse["communities"][0] == "64513:7", "{worse:#}");
    ensure!(worse["nextHop"]["reachable"] == true, "{worse:#}");
    ensure!(worse["nextHop"]["device"].is_string(), "{worse:#}");
    let text = lab.node("node1")?.ctl(&["bgp", "explain", "198.51.100.7"])?;
    ensure!(text.contains("lost to 192.168.2.1 by shorter AS_PATH"), "{text}");
    let text = lab.node("node1")?.ctl(&["bgp", "explain", "198.51.106.0/24"])?;
    ensure!(text.contains("next hop unreachable"), "{text}");

    let _pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    wait_for("the block to be announced", LONG, || {
        let text = lab.node("node1")?.ctl(&["bgp", "explain", &block])?;
        ensure!(text.contains("is this node's own and announced"), "{text}");
        Ok(())
    })?;
    let text = lab.node("node1")?.ctl(&["bgp", "explain", "192.0.2.1"])?;
    ensure!(text.contains("No route covers 192.0.2.1/32"), "{text}");
    let wrong = lab.node("node1")?.ctl_output(&["bgp", "explain", "198.51.100.7/24"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    Ok(())
}
