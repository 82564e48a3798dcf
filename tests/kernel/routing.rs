//! The speaker and the routes, with real routers as peers.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    ping::{self, Pinger, Source},
    rack,
    wait::wait_for,
    watch::RouteWatch,
};

use crate::{LONG, SECONDS, reconcile::metric};

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
";

pub(crate) const POOL6: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: \"fd00:10::/112\", blockSize: 122}
";

pub(crate) fn peer(name: &str, address: &str, asn: u32) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
         spec: {{peerIP: {address:?}, asNumber: {asn}}}\n"
    )
}

const NO_MESH: &str = "apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, nodeToNodeMeshEnabled: false}
";

/// One node and one ToR on a segment; `change` may add to the ToR's neighbor.
fn node_and_tor(change: impl FnOnce(Neighbor) -> Neighbor) -> Result<Topology> {
    let mut topology = Topology::new();
    let neighbor = change(Neighbor::new("node1", "192.168.2.11", 64512).local("192.168.2.1"));
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .local("198.51.100.1/24")
        .bird(BirdConfig::new("192.168.2.1", 64513).neighbor(neighbor).announce("198.51.100.0/24"));
    let node = topology.node("node1").on("seg-a", "192.168.2.11/24");
    node.settings("metrics: {listen: \"127.0.0.1:9190\"}\n");
    topology.resource("pool.yaml", POOL).resource("tor.yaml", &peer("tor", "192.168.2.1", 64513));
    Ok(topology)
}

fn up(topology: Topology) -> Result<Lab> {
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
    Ok(lab)
}

/// A route that is withdrawn goes from the kernel, one that comes back is there again.
pub(crate) fn routes_come_and_go_with_the_announcements() -> Result<()> {
    let mut lab = up(node_and_tor(|neighbor| neighbor)?)?;
    let route = lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    ensure!(route["gateway"] == "192.168.2.1" && route["prefsrc"] == "192.168.2.11", "{route}");
    ensure!(route["metric"] == 512, "{route}");
    let announced = lab.bird("tor")?.config().clone();
    lab.bird_mut("tor")?.configure(announced.clone().withdraw("198.51.100.0/24"))?;
    lab.node("node1")?.wait_no_route("198.51.100.0/24", LONG)?;
    lab.bird_mut("tor")?.configure(announced)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;

    // Somebody else's route to the same prefix is not ours to change.
    let node = lab.node("node1")?.namespace();
    node.ip("route add 198.51.100.0/24 via 192.168.2.1 metric 600 proto static")?;
    // And ours comes back when somebody deletes it.
    node.ip("route del 198.51.100.0/24 metric 512")?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    lab.node_mut("node1")?.stop()?;
    let left = lab.node("node1")?.namespace().ip("route show 198.51.100.0/24")?;
    ensure!(left.contains("metric 600") && left.contains("metric 512"), "{left}");
    Ok(())
}

/// Two ToRs announce the same: the kernel has one route with both, and one goes when a ToR does.
pub(crate) fn equal_paths_share_the_traffic() -> Result<()> {
    let mut topology = Topology::new();
    for (tor, address) in [("tor1", "192.168.2.1"), ("tor2", "192.168.2.2")] {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512)
            .local(address)
            .option("graceful restart off");
        topology
            .router(tor)
            .on("seg-a", &format!("{address}/24"))
            .bird(BirdConfig::new(address, 64513).neighbor(neighbor).announce("198.51.100.0/24"));
    }
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology
        .resource("pool.yaml", POOL)
        .resource("tor1.yaml", &peer("tor1", "192.168.2.1", 64513))
        .resource("tor2.yaml", &peer("tor2", "192.168.2.2", 64513));
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1", "192.168.2.2"], LONG)?;
    let gateways = |lab: &Lab| -> Result<Vec<String>> {
        let route = lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
        let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
        Ok(hops.iter().filter_map(|hop| hop["gateway"].as_str().map(str::to_owned)).collect())
    };
    wait_for("a route by both ToRs", LONG, || {
        let found = gateways(&lab)?;
        ensure!(found == ["192.168.2.1", "192.168.2.2"], "{found:?}");
        Ok(())
    })?;
    let watch = RouteWatch::start(&lab, "node1")?;
    lab.stop_bird("tor1")?;
    wait_for("the route by the other ToR alone", LONG, || {
        let found = gateways(&lab)?;
        ensure!(found == ["192.168.2.2"], "{found:?}");
        Ok(())
    })?;
    // Replaced, not deleted and added.
    watch.nothing_deleted()
}

/// Both ends dial at once, or one of them only listens: there is one session in the end.
pub(crate) fn a_session_comes_up_whoever_dials() -> Result<()> {
    for option in ["passive on", "connect delay time 0"] {
        let lab = up(node_and_tor(|neighbor| neighbor.option(option))?)?;
        lab.bird("tor")?.wait_established(&["node1"], LONG)?;
        lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    }
    // The node cannot reach the ToR's port and has to be called.
    let mut topology = node_and_tor(|neighbor| neighbor)?;
    topology.resource("tor.yaml", &peer("tor", "192.168.2.1:1790", 64513));
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.bird("tor")?.wait_established(&["node1"], LONG)
}

/// MP-BGP: an IPv6 block over a session of IPv6 addresses, with traffic.
pub(crate) fn ipv6_blocks_are_announced_and_reached() -> Result<()> {
    let mut topology = Topology::new();
    let v4 = Neighbor::new("node1", "192.168.2.11", 64512).local("192.168.2.1");
    let v6 = Neighbor::new("node1v6", "2001:db8:2::11", 64512).local("2001:db8:2::1");
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .on("seg-a", "2001:db8:2::1/64")
        .local("2001:db8:ff::1/64")
        .bird(
            BirdConfig::new("192.168.2.1", 64513)
                .neighbor(v4)
                .neighbor(v6)
                .announce("2001:db8:ff::/64"),
        );
    topology.node("node1").on("seg-a", "192.168.2.11/24").on("seg-a", "2001:db8:2::11/64");
    topology
        .resource("pool.yaml", POOL)
        .resource("pool6.yaml", POOL6)
        .resource("tor.yaml", &peer("tor", "192.168.2.1", 64513))
        .resource("tor6.yaml", &peer("tor6", "2001:db8:2::1", 64513));
    let mut lab = up(topology)?;
    lab.node("node1")?.wait_established(&["2001:db8:2::1"], LONG)?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["ipam"]["assignIPv6"] = true.into();
    runtime.set_conflist(conflist);
    let pod = lab.add_pod("node1", "dual")?;
    let [first, second] = pod.addresses() else {
        anyhow::bail!("not two addresses: {:?}", pod.addresses())
    };
    ensure!(first.is_ipv4() && second.is_ipv6(), "{:?}", pod.addresses());
    for block in lab.node("node1")?.blocks()? {
        let neighbor = if block.contains(':') { "node1v6" } else { "node1" };
        lab.bird("tor")?.wait_route(&block, neighbor, LONG)?;
    }
    let route = lab.node("node1")?.wait_route("2001:db8:ff::/64", LONG)?;
    ensure!(route["prefsrc"] == "2001:db8:2::11", "{route}");
    wait_for("traffic in both families", LONG, || {
        ping::reaches(lab.router("tor")?, *first)?;
        ping::reaches(lab.router("tor")?, *second)
    })?;
    ping::reaches(pod.namespace(), "2001:db8:ff::1".parse()?)
}

/// SIGTERM is a restart: no NOTIFICATION, the ToR keeps the routes, and they are refreshed.
pub(crate) fn a_planned_stop_says_nothing_and_loses_nothing() -> Result<()> {
    let mut lab = up(node_and_tor(|neighbor| neighbor)?)?;
    let pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    let log = lab.bird("tor")?.log().len();
    let watches = ["tor", "node1"].map(|machine| RouteWatch::start(&lab, machine));
    let source =
        Source { name: "tor", namespace: lab.router("tor")?, targets: vec![pod.address()?] };
    let pinger = Pinger::start(vec![source], Duration::from_millis(10))?;
    lab.node_mut("node1")?.stop()?;
    wait_for("the ToR to help", SECONDS, || {
        ensure!(lab.bird("tor")?.is_helping("node1")?, "it does not");
        Ok(())
    })?;
    let said = lab.bird("tor")?.log()[log..].to_owned();
    ensure!(!said.contains("Received:"), "a NOTIFICATION came: {said}");
    lab.node_mut("node1")?.start()?;
    lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
    wait_for("the ToR's help to end", LONG, || {
        ensure!(!lab.bird("tor")?.is_helping("node1")?, "it goes on");
        Ok(())
    })?;
    pinger.wait_rounds(10)?;
    for tally in pinger.stop()? {
        ensure!(tally.lost() == 0, "{tally}");
    }
    ensure!(lab.bird("tor")?.withdrawals("node1", log).is_empty());
    for watch in watches {
        watch?.nothing_deleted()?;
    }
    Ok(())
}

/// A peer that is removed is told so, and its routes go at once.
pub(crate) fn a_removed_peer_is_told() -> Result<()> {
    let lab = up(node_and_tor(|neighbor| neighbor)?)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    lab.remove_resource("tor.yaml")?;
    wait_for("BIRD to be told", LONG, || {
        let log = lab.bird("tor")?.log();
        // Cease, Peer De-configured (RFC 4486).
        ensure!(log.contains("Received: Peer de-configured"), "{log}");
        Ok(())
    })?;
    lab.node("node1")?.wait_no_route("198.51.100.0/24", LONG)
}

/// The helping side: a ToR that crashes keeps its routes here until it is back, or for its
/// restart time.
pub(crate) fn a_restarting_tor_keeps_its_routes() -> Result<()> {
    let topology = node_and_tor(|neighbor| {
        neighbor.option("graceful restart on").option("graceful restart time 3")
    })?;
    let mut lab = up(topology)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    let watch = RouteWatch::start(&lab, "node1")?;
    lab.stop_bird("tor")?;
    wait_for("the session to go", SECONDS, || {
        let peer = lab.node("node1")?.peer("192.168.2.1")?;
        ensure!(peer["state"] != "Established", "{peer}");
        ensure!(peer["prefixesStale"] == 1, "{peer}");
        Ok(())
    })?;
    watch.nothing_deleted()?;
    // It does not come back.
    lab.node("node1")?.wait_no_route("198.51.100.0/24", LONG)
}

/// Without graceful restart on the other side, routes go with the session.
pub(crate) fn a_tor_without_graceful_restart_takes_its_routes_along() -> Result<()> {
    let mut lab = up(node_and_tor(|neighbor| neighbor.option("graceful restart off"))?)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    lab.stop_bird("tor")?;
    lab.node("node1")?.wait_no_route("198.51.100.0/24", SECONDS)
}

/// Garbage gets the right NOTIFICATION, which is counted and told, and other sessions do not notice.
pub(crate) fn garbage_gets_a_notification() -> Result<()> {
    let mut topology = node_and_tor(|neighbor| neighbor)?;
    // Each error makes a peer wait twice as long, so two share them.
    let peers = [("stranger", "192.168.2.66"), ("another", "192.168.2.67")];
    for (name, address) in peers {
        topology.router(name).on("seg-a", &format!("{address}/24"));
        topology.resource(&format!("{name}.yaml"), &peer(name, address, 64666));
    }
    let lab = up(topology)?;
    let before = lab.node("node1")?.peer("192.168.2.1")?;
    let header = |length: u16, kind: u8| {
        let mut bytes = vec![0xff; 16];
        bytes.extend(length.to_be_bytes());
        bytes.push(kind);
        bytes
    };
    let open = |version: u8, asn: u16, hold: u16| {
        let mut bytes = header(29, 1);
        bytes.push(version);
        bytes.extend(asn.to_be_bytes());
        bytes.extend(hold.to_be_bytes());
        bytes.extend([192, 168, 2, 66, 0]);
        bytes
    };
    let nameless = [&open(4, 64666, 90)[..24], &[0; 5]].concat();
    let cases = [
        ("not BGP at all", b"GET / HTTP/1.1\r\nHost: node1\r\n\r\n".to_vec(), 1, 1, &b""[..]),
        ("a length of 5", header(5, 4), 1, 2, &[0, 5]),
        ("a length of 5000", header(5000, 2), 1, 2, &[0x13, 0x88]),
        ("message type 9", header(19, 9), 1, 3, &[9]),
        ("a KEEPALIVE with a body", [header(20, 4), vec![0]].concat(), 1, 2, &[0, 20]),
        ("version 3", open(3, 64666, 90), 2, 1, &[0, 4]),
        ("another AS", open(4, 64999, 90), 2, 2, &64999_u32.to_be_bytes()),
        ("the identifier 0", nameless, 2, 3, &[0; 4]),
        ("a hold time of 2 s", open(4, 64666, 2), 2, 6, &[0, 2]),
        ("an UPDATE before the OPEN", [header(23, 2), vec![0; 4]].concat(), 5, 1, &[2]),
    ];
    let peers = peers.into_iter().cycle();
    for ((what, bytes, code, subcode, data), (name, address)) in cases.into_iter().zip(peers) {
        let node = lab.node("node1")?;
        let counter = format!(
            "twill_bgp_notifications_total{{peer=\"{address}\",direction=\"sent\",\
             code=\"{code}\",subcode=\"{subcode}\"}}"
        );
        // There is no counter before the first one.
        let (count, log) = (metric(&lab, &counter).unwrap_or_default(), node.log().len());
        let answer = lab.router(name)?.enter(|| call(&bytes))??;
        let notification = last_message(&answer);
        let expected = [&[3, code, subcode][..], data].concat();
        ensure!(
            notification.get(18..) == Some(&expected[..]),
            "{what}: {answer:02x?} instead of NOTIFICATION {code}/{subcode} {data:02x?}"
        );
        let counted = metric(&lab, &counter)?;
        ensure!(counted - count == 1.0, "{what}: {counter} went from {count} to {counted}");
        wait_for("a line in the log", LONG, || {
            let told = node.log().get(log..).unwrap_or_default().to_owned();
            let (sent, number) =
                (format!("peer={address} sent=true"), format!("({code}/{subcode})"));
            let mut lines = told.lines();
            ensure!(lines.any(|l| l.contains(&sent) && l.contains(&number)), "{what}: {told}");
            Ok(())
        })?;
    }
    let after = lab.node("node1")?.peer("192.168.2.1")?;
    ensure!(after["flaps"] == before["flaps"], "{before} became {after}");
    ensure!(lab.node("node1")?.status()?["inSync"] == true);
    Ok(())
}

/// A caller that is no peer is told so before it has said a word; all of them are counted, and the first is
/// told of in the log.
pub(crate) fn a_stranger_is_refused_counted_and_told_of() -> Result<()> {
    let mut topology = node_and_tor(|neighbor| neighbor)?;
    topology.router("stranger").on("seg-a", "192.168.2.67/24");
    let lab = up(topology)?;
    let counter = "twill_bgp_strangers_refused_total";
    for count in [1.0, 2.0, 3.0] {
        let answer = lab.router("stranger")?.enter(|| -> Result<Vec<u8>> {
            let mut stream = TcpStream::connect("192.168.2.11:179")?;
            stream.set_read_timeout(Some(LONG))?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })??;
        ensure!(answer.get(18..) == Some(&[3, 6, 5]), "{answer:02x?}");
        let counted = metric(&lab, counter)?;
        ensure!(counted == count, "{counter} is {counted} after {count} calls");
    }
    let lines = wait_for("a line in the log", LONG, || {
        let log = lab.node("node1")?.log();
        let about = |line: &&str| line.contains("remote=192.168.2.67") && line.contains("(6/5)");
        let lines = log.lines().filter(about).count();
        ensure!(lines > 0, "{log}");
        Ok(lines)
    })?;
    ensure!(lines == 1, "{lines} lines for calls within a minute");
    Ok(())
}

/// Sends bytes to the node's BGP port, and reads until it closes.
fn call(bytes: &[u8]) -> Result<Vec<u8>> {
    wait_for("an answer", LONG, || {
        let mut stream = TcpStream::connect("192.168.2.11:179")?;
        stream.set_read_timeout(Some(SECONDS))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        // A reset after the last byte is an end, too.
        let _ = stream.read_to_end(&mut answer);
        // While our own call to it is being refused there is a moment in which it takes none.
        ensure!(!answer.is_empty(), "it said nothing");
        ensure!(last_message(&answer).get(18..21) != Some(&[3, 6, 5]), "rejected");
        Ok(answer)
    })
}

/// The last whole message of a stream.
fn last_message(mut stream: &[u8]) -> &[u8] {
    let mut last: &[u8] = &[];
    while let Some(length) = stream.get(16..18) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).max(19);
        let Some((message, rest)) = stream.split_at_checked(length) else {
            break;
        };
        (last, stream) = (message, rest);
    }
    last
}

/// A peer whose process died without a FIN that arrives is back on a new connection: the old
/// session gives way at once (RFC 4724 section 4.2).
pub(crate) fn a_peer_whose_end_was_not_seen_is_let_in_at_once() -> Result<()> {
    let mut topology = node_and_tor(|neighbor| neighbor)?;
    topology.router("returns").on("seg-a", "192.168.2.66/24");
    topology.resource("returns.yaml", &peer("returns", "192.168.2.66", 64666));
    let lab = up(topology)?;
    // What stays open here is as good as a FIN that was dropped.
    let mut old = lab.router("returns")?.enter(|| greet("192.168.2.66"))??;
    lab.node("node1")?.wait_established(&["192.168.2.66"], LONG)?;
    let since = Instant::now();
    // A second connection within a second is a collision, not a return.
    wait_for("a session that is no longer fresh", LONG, || {
        ensure!(since.elapsed() > Duration::from_millis(1500));
        Ok(())
    })?;
    let back = Instant::now();
    let _new = lab.router("returns")?.enter(|| greet("192.168.2.66"))??;
    let took = back.elapsed();
    ensure!(took < SECONDS, "let in after {took:?}");
    old.read_to_end(&mut Vec::new()).context("the old connection is not closed")?;
    lab.node("node1")?.wait_established(&["192.168.2.66"], LONG)?;
    let status = lab.node("node1")?.peer("192.168.2.66")?;
    ensure!(status["flaps"] == 1, "{status}");
    Ok(())
}

/// Opens a connection to the node as `identifier`, with graceful restart, and returns when the node
/// has confirmed it.
fn greet(identifier: &str) -> Result<TcpStream> {
    let mut stream = wait_for("a connection that is taken", LONG, || {
        let mut stream = TcpStream::connect("192.168.2.11:179")?;
        stream.set_read_timeout(Some(SECONDS))?;
        // An OPEN is the first that it says; it says nothing while it refuses us.
        stream.read_exact(&mut [0; 1])?;
        Ok(stream)
    })?;
    // Multiprotocol IPv4, 4-octet AS 64666, graceful restart of 120 s.
    let capabilities = [1, 4, 0, 1, 0, 1, 65, 4, 0, 0, 0xfc, 0x9a, 64, 6, 0, 120, 0, 1, 1, 0x80];
    let mut open = vec![0xff; 16];
    open.extend([0, 29 + 22, 1, 4, 0xfc, 0x9a, 0, 90]);
    open.extend(identifier.parse::<std::net::Ipv4Addr>()?.octets());
    open.extend([22, 2, 20]);
    open.extend(capabilities);
    let mut keepalive = vec![0xff; 16];
    keepalive.extend([0, 19, 4]);
    stream.write_all(&open)?;
    stream.write_all(&keepalive)?;
    // Its OPEN, whose first octet is read, and then its KEEPALIVE.
    let mut header = [0xff; 19];
    stream.read_exact(&mut header[1..])?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    ensure!(header[18] == 1, "not an OPEN: {header:02x?}");
    stream.read_exact(&mut vec![0; length - 19])?;
    stream.read_exact(&mut header)?;
    ensure!(header[18] == 4, "not a KEEPALIVE: {header:02x?}");
    Ok(stream)
}

/// Labels decide who is a peer, without a restart and without touching other sessions.
pub(crate) fn selectors_follow_the_labels() -> Result<()> {
    let mut lab = rack::up()?;
    let mesh = lab.node("node3")?.peer("192.168.2.11")?;
    let manifest = std::fs::read_to_string(lab.resource("node3.yaml"))?;
    lab.write_resource("node3.yaml", &manifest.replace("rack1", "rack2"))?;
    wait_for("node3 to leave the ToR", LONG, || {
        ensure!(lab.node("node3")?.peer("192.168.2.1").is_err(), "it has the peer still");
        Ok(())
    })?;
    // With the label that the pool wants it gets addresses, too.
    let wanted = manifest.replace("labels:\n", "labels:\n    env: prod\n");
    lab.write_resource("node3.yaml", &wanted)?;
    lab.node("node3")?.wait_established(&["192.168.2.1"], LONG)?;
    let pod = wait_for("a pod on node3", LONG, || lab.add_pod("node3", "web"))?;
    lab.bird("tor")?.wait_route(
        lab.node("node3")?.blocks()?.first().context("no block")?,
        "node3",
        LONG,
    )?;
    wait_for("traffic", LONG, || ping::reaches(lab.router("tor")?, pod.address()?))?;
    let after = lab.node("node3")?.peer("192.168.2.11")?;
    ensure!(mesh["flaps"] == after["flaps"], "the mesh was reset: {mesh} {after}");
    Ok(())
}

/// The switch of `bgppeer-tor-switch.yaml`: a peer of all nodes, in the same AS.
pub(crate) fn the_tor_switch_sample_works_as_it_stands() -> Result<()> {
    let mut topology = Topology::new();
    let mut bird = BirdConfig::new("192.168.1.254", 64512).announce("198.51.100.0/24");
    for (node, address) in [("node1", "192.168.1.11"), ("node2", "192.168.1.12")] {
        bird = bird.neighbor(Neighbor::new(node, address, 64512).local("192.168.1.254"));
        topology.node(node).label("env", "prod").on("seg-a", &format!("{address}/24"));
    }
    topology.router("switch").on("seg-a", "192.168.1.254/24").local("198.51.100.1/24").bird(bird);
    topology.samples(&["bgppeer-tor-switch.yaml", "ippool-app.yaml"])?;
    topology.resource("no-mesh.yaml", NO_MESH);
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.bird("switch")?.wait_established(&["node1", "node2"], LONG)?;
    for node in ["node1", "node2"] {
        lab.node(node)?.wait_established(&["192.168.1.254"], LONG)?;
        lab.node(node)?.wait_route("198.51.100.0/24", LONG)?;
        let peers = lab.node(node)?.ctl_json(&["bgp", "peers"])?;
        ensure!(peers.as_array().is_some_and(|peers| peers.len() == 1), "{peers}");
    }
    let pod = lab.add_pod("node2", "web")?;
    let block = lab.node("node2")?.blocks()?.first().cloned().context("no block")?;
    lab.bird("switch")?.wait_route(&block, "node2", LONG)?;
    wait_for("traffic", LONG, || ping::reaches(lab.router("switch")?, pod.address()?))
}

/// A node announces what it owns and nothing else: it is no way from one ToR to another.
pub(crate) fn a_node_is_no_transit() -> Result<()> {
    let mut topology = Topology::new();
    for (tor, segment, address, node, asn, announced) in [
        ("tor1", "seg-a", "192.168.2.1", "192.168.2.11", 64513, "198.51.100.0/24"),
        ("tor2", "seg-b", "192.168.3.1", "192.168.3.11", 64514, "203.0.113.0/24"),
    ] {
        let neighbor = Neighbor::new("node1", node, 64512).local(address);
        topology
            .router(tor)
            .on(segment, &format!("{address}/24"))
            .bird(BirdConfig::new(address, asn).neighbor(neighbor).announce(announced));
    }
    topology.node("node1").on("seg-a", "192.168.2.11/24").on("seg-b", "192.168.3.11/24");
    let source_free =
        peer("tor2", "192.168.3.1", 64514).replace("spec: {", "spec: {sourceAddress: None, ");
    topology
        .resource("pool.yaml", POOL)
        .resource("tor1.yaml", &peer("tor1", "192.168.2.1", 64513))
        .resource("tor2.yaml", &source_free);
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1", "192.168.3.1"], LONG)?;
    for prefix in ["198.51.100.0/24", "203.0.113.0/24"] {
        lab.node("node1")?.wait_route(prefix, LONG)?;
    }
    let _pod = lab.add_pod("node1", "web")?;
    let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
    for tor in ["tor1", "tor2"] {
        lab.bird(tor)?.wait_route(&block, "node1", LONG)?;
        let routes = lab.bird(tor)?.routes_from("node1")?;
        ensure!(routes.len() == 1, "{tor} got more than the block: {routes:?}");
    }
    Ok(())
}

/// With a cluster id a node passes the routes to the pools on (RFC 4456), with the next hops that they
/// have, to BIRDs in its AS and to the ToR of another; its restart costs none of them a route.
pub(crate) fn a_route_reflector_passes_pool_routes_on() -> Result<()> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .annotation("projectcalico.org/RouteReflectorClusterID", "10.0.0.1")
        .on("seg-a", "192.168.2.11/24")
        .label("env", "prod");
    let routers = [
        ("rack1", "192.168.2.1", 64512, "10.10.0.64/26"),
        ("rack2", "192.168.2.2", 64512, "198.51.100.0/24"),
        ("tor", "192.168.2.3", 64513, "203.0.113.0/24"),
    ];
    for (name, address, asn, announced) in routers {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local(address);
        topology
            .router(name)
            .on("seg-a", &format!("{address}/24"))
            .bird(BirdConfig::new(address, asn).neighbor(neighbor).announce(announced));
        topology.resource(&format!("{name}.yaml"), &peer(name, address, asn));
    }
    topology.resource("pool.yaml", POOL);
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&routers.map(|(_, address, ..)| address), LONG)?;
    for router in ["rack2", "tor"] {
        let route = lab.bird(router)?.wait_route("10.10.0.64/26", "node1", LONG)?;
        ensure!(route.via == ["192.168.2.1 on eth0"], "{router}: {route:?}");
    }
    // Not beyond the pools, and not back.
    for (name, _, _, announced) in routers {
        for prefix in ["198.51.100.0/24", "203.0.113.0/24", announced] {
            let told = lab.bird(name)?.routes_from("node1")?;
            ensure!(told.iter().all(|route| route.prefix != prefix), "{name}: {told:?}");
        }
    }
    let before = lab.bird("rack2")?.log().len();
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    lab.node("node1")?.wait_established(&routers.map(|(_, address, ..)| address), LONG)?;
    lab.node("node1")?.wait_route("10.10.0.64/26", LONG)?;
    wait_for("the end of the restart", LONG, || {
        ensure!(!lab.bird("rack2")?.is_helping("node1")?);
        Ok(())
    })?;
    let gone = lab.bird("rack2")?.withdrawals("node1", before);
    ensure!(gone.is_empty(), "{gone:?}");
    // What goes is withdrawn.
    let plain = lab.bird("rack1")?.config().clone().withdraw("10.10.0.64/26");
    lab.bird_mut("rack1")?.configure(plain)?;
    for router in ["rack2", "tor"] {
        lab.bird(router)?.wait_no_route("10.10.0.64/26", LONG)?;
    }
    Ok(())
}
