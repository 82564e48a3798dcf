//! Nexthop objects: what moves the traffic of many routes at once, and what others do to them.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    ping::{Pinger, Source},
    wait::wait_for,
    watch::RouteWatch,
};

use crate::{LONG, SECONDS};

/// Prefixes that each ToR announces.
const ROUTES: usize = 1000;

/// Addresses beyond both ToRs.
const BEYOND: [&str; 8] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
    "198.51.100.5",
    "198.51.100.6",
    "198.51.100.7",
    "198.51.100.8",
];

/// The ToRs: a segment, an address on it, and the node's address there.
const TORS: [(&str, &str, &str); 2] =
    [("tor1", "192.168.2.1", "192.168.2.11"), ("tor2", "192.168.3.1", "192.168.3.11")];

/// The fabric's end of the node's first wire: each ToR has one, then the node has two.
const NODE_WIRE: &str = "wire3";

/// What makes tor2 a backup instead of the other half.
const WORSE: &str = "bgp_path.prepend(64513);";

fn prefixes() -> impl Iterator<Item = String> {
    (0..ROUTES).map(|index| format!("10.{}.{}.0/24", 100 + index / 256, index % 256))
}

/// A node with a link to each of two ToRs, which announce the same.
fn two_tors(second: &str, option: &str, fib: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    for (tor, address, node) in TORS {
        let mut neighbor = Neighbor::new("node1", node, 64512).local(address).option(option);
        if tor == "tor2" {
            neighbor = neighbor.change(second);
        }
        let bird = BirdConfig::new(address, 64513).neighbor(neighbor).announce("198.51.100.0/24");
        let bird = prefixes().fold(bird, |bird, prefix| bird.announce(&prefix));
        let router = topology.router(tor).on(tor, &format!("{address}/24")).bird(bird);
        for beyond in BEYOND {
            router.local(&format!("{beyond}/32"));
        }
        let peer = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {tor}}}\n\
             spec: {{peerIP: {address:?}, asNumber: 64513}}\n"
        );
        topology.resource(&format!("{tor}.yaml"), &peer);
    }
    let settings = format!("fib: {{{fib}}}\nmetrics: {{listen: \"127.0.0.1:9190\"}}\n");
    let node = topology.node("node1").settings(&settings).log_level("info");
    for (tor, _, address) in TORS {
        node.on(tor, &format!("{address}/24"));
    }
    let mut lab = topology.build()?;
    // The node's packets have the address of its first link for a source, whichever way they go.
    lab.router("tor2")?.ip("route add 192.168.2.11 via 192.168.3.11")?;
    lab.router("tor1")?.ip("route add 192.168.3.11 via 192.168.2.11")?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&TORS.map(|(_, address, _)| address), LONG)?;
    Ok(lab)
}

/// The ToRs by which the kernel sends packets to addresses of all kinds of route.
fn ways(lab: &Lab) -> Result<Vec<String>> {
    let mut gateways = Vec::new();
    for index in (0..ROUTES).step_by(50) {
        for host in [1, 2, 3] {
            let to = IpAddr::from([
                10,
                u8::try_from(100 + index / 256)?,
                u8::try_from(index % 256)?,
                host,
            ]);
            let way = lab.node("node1")?.namespace().route_to(to)?;
            let gateway = way.split_whitespace().skip_while(|word| *word != "via").nth(1);
            gateways.push(gateway.with_context(|| format!("{to} goes {way}"))?.to_owned());
        }
    }
    gateways.sort_unstable();
    gateways.dedup();
    Ok(gateways)
}

fn wait_ways(lab: &Lab, what: &str, expected: &[&str], deadline: Duration) -> Result<()> {
    wait_for(what, deadline, || {
        let found = ways(lab)?;
        ensure!(found == expected, "the ways are {found:?}, not {expected:?}");
        Ok(())
    })
}

/// Waits until all routes are in the kernel, all by an object or none.
fn wait_routes(lab: &Lab, by_object: bool) -> Result<()> {
    wait_for("all routes", LONG, || {
        let text = lab.node("node1")?.namespace().ip("route show proto 116 metric 512")?;
        let routes: Vec<&str> = text.lines().filter(|line| line.starts_with("10.1")).collect();
        ensure!(routes.len() == ROUTES, "{} routes", routes.len());
        let other = routes.iter().find(|route| route.contains("nhid") != by_object);
        ensure!(other.is_none(), "{other:?}");
        Ok(())
    })
}

/// A counter of the daemon.
fn metric(lab: &Lab, name: &str) -> Result<u64> {
    let scrape = || -> Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9190")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = lab.node("node1")?.namespace().enter(scrape)??;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.map(str::trim).map(str::parse).transpose()?.unwrap_or(0))
}

/// Messages to the kernel so far, about nexthop objects and about routes.
fn messages(lab: &Lab) -> Result<(u64, u64)> {
    let count = |object| metric(lab, &format!("twill_fib_requests_total{{object=\"{object}\"}}"));
    Ok((count("nexthop")?, count("route")?))
}

/// Waits until the speaker has told all that follows from a next hop that is gone.
fn wait_withdrawn(lab: &Lab, tor: &str) -> Result<()> {
    wait_for(&format!("the speaker to drop {tor}"), LONG, || {
        let explained = lab.node("node1")?.ctl(&["bgp", "explain", "10.100.7.0/24"])?;
        ensure!(
            !explained.contains(&format!("{tor} ")) || explained.contains("unreachable"),
            "{explained}"
        );
        Ok(())
    })
}

/// Carrier lost, link down, session lost; with both ToRs in use, or one as the backup of the other.
fn each_cause(second: &str, both: &[&str], compat: &str) -> Result<()> {
    let settings = format!("nexthopCompat: {compat}");
    let mut lab = two_tors(second, "graceful restart off", &settings)?;
    wait_routes(&lab, true)?;
    wait_ways(&lab, "all ways", both, LONG)?;
    let survivor = ["192.168.3.1"];
    for (what, down, up) in [
        ("carrier", format!("link set {} down", NODE_WIRE), format!("link set {} up", NODE_WIRE)),
        ("link", "link set eth0 down".to_owned(), "link set eth0 up".to_owned()),
    ] {
        let namespace = |lab: &Lab| match what {
            "carrier" => lab.fabric().ip(&down).map(drop),
            _ => lab.node("node1")?.namespace().ip(&down).map(drop),
        };
        let before = messages(&lab)?;
        namespace(&lab)?;
        wait_ways(&lab, &format!("failover: {what}"), &survivor, SECONDS)?;
        match what {
            "carrier" => lab.fabric().ip(&up)?,
            _ => lab.node("node1")?.namespace().ip(&up)?,
        };
        wait_ways(&lab, &format!("{what} back"), both, LONG)?;
        let after = messages(&lab)?;
        ensure!(after.1 == before.1, "{what}: {} messages about routes", after.1 - before.1);
        // Nothing to move the traffic away, which the kernel does; a hop and a group to bring it back,
        // and once more each if the way was tried too early.
        ensure!(after.0 - before.0 <= 4, "{what}: {before:?} became {after:?}");
    }
    let before = messages(&lab)?;
    lab.stop_bird("tor1")?;
    wait_ways(&lab, "failover: peer", &survivor, SECONDS)?;
    wait_withdrawn(&lab, "192.168.2.1")?;
    let after = messages(&lab)?;
    ensure!((after.0 - before.0, after.1) == (1, before.1), "peer: {before:?} became {after:?}");
    // The other one too.
    lab.stop_bird("tor2")?;
    lab.node("node1")?.wait_no_route("10.100.7.0/24", SECONDS)?;
    wait_for("the objects to go", SECONDS, || {
        let left = lab.node("node1")?.namespace().ip("nexthop show")?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// Both ToRs share the traffic: each cause, no message for a route.
pub(crate) fn equal_paths_fail_over_at_once() -> Result<()> {
    for compat in ["on", "off"] {
        each_cause("", &["192.168.2.1", "192.168.3.1"], compat)?;
    }
    Ok(())
}

/// One ToR is the backup of the other.
pub(crate) fn a_backup_takes_over_at_once() -> Result<()> {
    for compat in ["on", "off"] {
        each_cause(WORSE, &["192.168.2.1"], compat)?;
    }
    Ok(())
}

/// No packet is lost when a peer goes, and few when a link does.
pub(crate) fn traffic_survives_a_next_hop() -> Result<()> {
    let mut lab = two_tors("", "graceful restart off", "nexthopObjects: on")?;
    wait_routes(&lab, true)?;
    let targets: Vec<IpAddr> = BEYOND.iter().map(|a| a.parse()).collect::<Result<_, _>>()?;
    // Where the kernel sees the link go, a ping each 10 ms is lost until it has moved the routes: on a
    // busy machine the program that sets the link down may be stopped in between.
    for (cause, allowed) in [("link", 30), ("peer", 0)] {
        let source = Source {
            name: "node1",
            namespace: lab.node("node1")?.namespace(),
            targets: targets.clone(),
        };
        let pinger = Pinger::start(vec![source], Duration::from_millis(10))?;
        pinger.wait_rounds(20)?;
        match cause {
            // Of the second link: the first has the address that the pings come from.
            "link" => _ = lab.node("node1")?.namespace().ip("link set eth1 down")?,
            _ => _ = lab.stop_bird("tor2")?,
        }
        wait_ways(&lab, cause, &["192.168.2.1"], SECONDS)?;
        pinger.wait_rounds(20)?;
        for tally in pinger.stop()? {
            ensure!(tally.lost() <= allowed, "{cause}: {tally}");
        }
        if cause == "link" {
            lab.node("node1")?.namespace().ip("link set eth1 up")?;
            wait_ways(&lab, "both again", &["192.168.2.1", "192.168.3.1"], LONG)?;
        }
    }
    Ok(())
}

/// Others flush objects and routes of ours: all comes back, is counted, and theirs is left alone.
pub(crate) fn what_others_flush_comes_back() -> Result<()> {
    let lab = two_tors("", "graceful restart on", "nexthopObjects: auto")?;
    wait_routes(&lab, true)?;
    let node = lab.node("node1")?.namespace();
    node.ip("nexthop add id 7 via 192.168.2.77 dev eth0 proto static")?;
    node.ip("route add 203.0.113.0/24 nhid 7 proto static")?;
    node.ip("route add 10.100.7.0/24 via 192.168.2.77 metric 600 proto static")?;
    let foreign = (node.ip("nexthop show id 7")?, node.ip("route show proto static")?);
    let flush = prefixes().map(|prefix| format!("route del {prefix} proto 116\n"));
    for (commands, repaired) in [
        ("nexthop flush proto 116\n".to_owned(), ROUTES),
        (flush.collect(), ROUTES),
        ("route del 10.100.9.0/24 proto 116\n".to_owned(), 1),
        ("route replace 10.100.9.0/24 via 192.168.2.99 proto 116 metric 512\n".to_owned(), 1),
    ] {
        let before = metric(&lab, "twill_routes_repaired_total")?;
        node.ip_batch(&commands)?;
        let what = commands.lines().next().unwrap_or_default();
        wait_for(&format!("repair after {what}"), LONG, || {
            let count = metric(&lab, "twill_routes_repaired_total")? - before;
            ensure!(count >= u64::try_from(repaired)?, "{count} repairs");
            Ok(())
        })?;
        wait_routes(&lab, true)?;
        wait_ways(&lab, what, &["192.168.2.1", "192.168.3.1"], SECONDS)?;
    }
    let after = (node.ip("nexthop show id 7")?, node.ip("route show proto static")?);
    ensure!(foreign == after, "{foreign:?} became {after:?}");
    let routes = lab.node("node1")?.ctl_json(&["bgp", "routes"])?;
    let missing = routes.as_array().into_iter().flatten().find(|r| r["installed"] != true);
    ensure!(missing.is_none(), "{missing:?}");
    Ok(())
}

/// A daemon that was killed finds its objects, and uses them; what a link that flapped took away
/// meanwhile comes back.
pub(crate) fn a_new_daemon_adopts_the_objects() -> Result<()> {
    let mut lab = two_tors("", "graceful restart on", "nexthopObjects: auto")?;
    wait_routes(&lab, true)?;
    let watch = RouteWatch::start(&lab, "node1")?;
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    lab.node("node1")?.wait_established(&TORS.map(|(_, address, _)| address), LONG)?;
    wait_for("convergence", LONG, || {
        ensure!(lab.node("node1")?.log().contains("converged"), "not yet");
        Ok(())
    })?;
    wait_routes(&lab, true)?;
    wait_ways(&lab, "both", &["192.168.2.1", "192.168.3.1"], LONG)?;
    watch.nothing_deleted()?;
    wait_for("stale objects to go", SECONDS, || {
        let node = lab.node("node1")?.namespace();
        let objects = node.ip_json("nexthop show")?;
        let (groups, hops): (Vec<_>, Vec<_>) =
            objects.iter().partition(|object| object["group"].is_array());
        ensure!(hops.len() == 2, "{hops:?}");
        let routes = node.ip("route show proto 116")?;
        for group in groups {
            ensure!(routes.contains(&format!(" nhid {} ", group["id"])), "no route by {group}");
        }
        Ok(())
    })?;
    lab.node_mut("node1")?.kill9()?;
    for link in ["eth0", "eth1"] {
        lab.node("node1")?.namespace().ip(&format!("link set {link} down"))?;
        lab.node("node1")?.namespace().ip(&format!("link set {link} up"))?;
    }
    let left = lab.node("node1")?.namespace().ip("route show proto 116 metric 512")?;
    ensure!(left.is_empty(), "the kernel kept them: {left}");
    lab.node_mut("node1")?.start()?;
    wait_routes(&lab, true)?;
    wait_ways(&lab, "both", &["192.168.2.1", "192.168.3.1"], LONG)
}

/// With one next hop routes are plain, and a carrier that flaps while the daemon is down costs nothing.
pub(crate) fn plain_routes_outlive_a_flap() -> Result<()> {
    let mut lab = two_tors("reject;", "graceful restart on", "nexthopObjects: auto")?;
    wait_routes(&lab, false)?;
    lab.node_mut("node1")?.kill9()?;
    let flap = format!("link set {} down\nlink set {0} up\n", NODE_WIRE);
    lab.fabric().ip_batch(&flap)?;
    wait_routes(&lab, false)?;
    lab.node_mut("node1")?.start()?;
    wait_routes(&lab, false)
}
