//! Restarts under traffic: of the daemon, of the router, of both, of all nodes at once.

mod long_lived;
mod others;

pub(crate) use long_lived::{
    a_node_that_stays_away_is_the_last_resort_of_frr,
    a_node_that_stays_away_is_the_last_resort_of_gobgp, frr_that_resets_a_session_keeps_its_routes,
    frr_that_stays_away_is_the_last_resort, gobgp_that_resets_a_session_keeps_its_routes,
    gobgp_that_stays_away_is_the_last_resort,
};
pub(crate) use others::{
    frr_keeps_the_routes_of_a_daemon_that_restarts, frr_that_dies_loses_no_packet,
    gobgp_keeps_the_routes_of_a_daemon_that_restarts, gobgp_that_dies_loses_no_packet,
    openbgpd_keeps_the_routes_of_a_daemon_that_restarts,
};

use std::{
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Node, Pod, Topology},
    ping::{self, Pinger, Source},
    process::check,
    wait::wait_for,
    watch::RouteWatch,
};

use crate::{LONG, SECONDS};

const NODE: &str = "192.168.2.11";
const TOR: &str = "192.168.2.1";
const OUTSIDE: &str = "198.51.100.0/24";
const NODE6: &str = "2001:db8:2::11";
const TOR6: &str = "2001:db8:2::1";
const OUTSIDE6: &str = "2001:db8:ff::/64";
const INTERVAL: Duration = Duration::from_millis(10);

const POOL: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
";

const POOL6: &str = "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: \"fd00:10::/112\", blockSize: 122}
";

/// A BGPPeer for the ToR; `more` is added to its spec.
fn peer(more: &str) -> String {
    peer_at(TOR, more)
}

fn peer_at(tor: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: tor}}\n\
         spec: {{peerIP: \"{tor}\", asNumber: 64513{more}}}\n"
    )
}

/// A ToR that restarts gracefully, and announces a prefix.
fn tor() -> BirdConfig {
    tor_with(&["graceful restart on"]).announce(OUTSIDE)
}

fn tor_with(options: &[&str]) -> BirdConfig {
    let neighbor = Neighbor::new("node1", NODE, 64512).local(TOR);
    let neighbor = options.iter().fold(neighbor, |neighbor, option| neighbor.option(option));
    BirdConfig::new(TOR, 64513).neighbor(neighbor)
}

/// A node with a pod, and a ToR that it has a session with.
struct Scene {
    lab: Lab,
    pod: Pod,
    /// What the node announces.
    block: String,
    /// The ToR's address of the session.
    tor: &'static str,
    /// What the ToR announces.
    outside: &'static str,
    /// Who is asked: the pod, and what is behind the ToR.
    targets: [IpAddr; 2],
}

impl Scene {
    fn new(tor: BirdConfig, more: &str) -> Result<Self> {
        let mut topology = Topology::new();
        topology.router("tor").on("seg-a", "192.168.2.1/24").local("198.51.100.1/24").bird(tor);
        topology.node("node1").on("seg-a", "192.168.2.11/24").gateway(TOR);
        topology.resource("pool.yaml", POOL).resource("tor.yaml", &peer(more));
        let mut lab = topology.build()?;
        lab.start_all()?;
        lab.node("node1")?.wait_established(&[TOR], LONG)?;
        let pod = lab.add_pod("node1", "web")?;
        let block = lab.node("node1")?.blocks()?.first().cloned().context("no block")?;
        lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
        let targets = [pod.address()?, "198.51.100.1".parse()?];
        wait_for("traffic", LONG, || ping::reaches(lab.router("tor")?, targets[0]))?;
        Ok(Self { lab, pod, block, tor: TOR, outside: OUTSIDE, targets })
    }

    /// The same over IPv6, with a ToR that announces a prefix. Nothing else leads to that.
    fn ipv6() -> Result<Self> {
        let neighbor = Neighbor::new("node1", NODE6, 64512).local(TOR6);
        let bird = BirdConfig::new(TOR, 64513)
            .neighbor(neighbor.option("graceful restart on"))
            .announce(OUTSIDE6);
        let mut topology = Topology::new();
        let tor = topology.router("tor").on("seg-a", &format!("{TOR6}/64"));
        tor.on("seg-a", "192.168.2.1/24").local("2001:db8:ff::1/64").bird(bird);
        let node = topology.node("node1").on("seg-a", "192.168.2.11/24");
        node.on("seg-a", &format!("{NODE6}/64"));
        topology.resource("pool.yaml", POOL).resource("pool6.yaml", POOL6);
        topology.resource("tor.yaml", &peer_at(TOR6, ""));
        let mut lab = topology.build()?;
        lab.start_all()?;
        lab.node("node1")?.wait_established(&[TOR6], LONG)?;
        let runtime = lab.node_mut("node1")?.runtime_mut();
        let mut conflist = runtime.conflist().clone();
        conflist["plugins"][0]["ipam"]["assignIPv6"] = true.into();
        runtime.set_conflist(conflist);
        let pod = lab.add_pod("node1", "web")?;
        let inside = pod.addresses().iter().copied().find(IpAddr::is_ipv6).context("no IPv6")?;
        let blocks = lab.node("node1")?.blocks()?;
        let block = blocks.into_iter().find(|block| block.contains(':')).context("no block")?;
        lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
        lab.node("node1")?.wait_route(OUTSIDE6, LONG)?;
        let targets = [inside, "2001:db8:ff::1".parse()?];
        wait_for("traffic", LONG, || {
            ping::reaches(lab.router("tor")?, targets[0])?;
            ping::reaches(pod.namespace(), targets[1])
        })?;
        Ok(Self { lab, pod, block, tor: TOR6, outside: OUTSIDE6, targets })
    }

    /// The same with a ToR that announces a prefix, which the node has learned.
    fn with_outside(tor: BirdConfig, more: &str) -> Result<Self> {
        let scene = Self::new(tor, more)?;
        scene.lab.node("node1")?.wait_route(OUTSIDE, LONG)?;
        Ok(scene)
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node("node1")
    }

    fn node_mut(&mut self) -> Result<&mut Node> {
        self.lab.node_mut("node1")
    }
}

/// Traffic both ways, and what happens to routes meanwhile.
struct Observers {
    pinger: Pinger,
    watches: Vec<RouteWatch>,
    /// Where the ToR's log ended.
    log: usize,
}

impl Observers {
    fn start(scene: &Scene) -> Result<Self> {
        let watches = ["tor", "node1"].map(|machine| RouteWatch::start(&scene.lab, machine));
        let tor = scene.lab.router("tor")?;
        let [inside, outside] = scene.targets.map(|target| vec![target]);
        let inward = Source { name: "tor", namespace: tor, targets: inside };
        let outward = Source { name: "pod", namespace: scene.pod.namespace(), targets: outside };
        Ok(Self {
            watches: watches.into_iter().collect::<Result<_>>()?,
            log: scene.lab.bird("tor")?.log().len(),
            pinger: Pinger::start(vec![inward, outward], INTERVAL)?,
        })
    }

    /// No packet was lost, no kernel route deleted, no prefix withdrawn.
    fn saw_nothing(self, lab: &Lab) -> Result<()> {
        // What went wrong at the very end would be lost by now.
        self.pinger.wait_rounds(20)?;
        for tally in self.pinger.stop()? {
            ensure!(tally.lost() == 0, "{tally}");
        }
        for watch in &self.watches {
            watch.nothing_deleted()?;
        }
        let withdrawn = lab.bird("tor")?.withdrawals("node1", self.log);
        ensure!(withdrawn.is_empty(), "{withdrawn:#?}");
        Ok(())
    }
}

/// Waits until a daemon that started after `log` octets of its log has swept its old routes.
fn wait_converged(node: &Node, log: usize) -> Result<()> {
    wait_for("the end of the restart", LONG, || {
        let text = node.log();
        ensure!(text.get(log..).unwrap_or_default().contains("converged"), "still at it");
        Ok(())
    })
}

/// Waits until the ToR has everything from the node again.
fn wait_helped(lab: &Lab) -> Result<()> {
    lab.bird("tor")?.wait_established(&["node1"], LONG)?;
    wait_for("the ToR's help to end", LONG, || {
        ensure!(!lab.bird("tor")?.is_helping("node1")?, "it goes on");
        Ok(())
    })
}

/// Waits until no path of the ToR is stale at the node.
fn wait_fresh(node: &Node) -> Result<()> {
    wait_fresh_of(node, TOR)
}

fn wait_fresh_of(node: &Node, tor: &str) -> Result<()> {
    wait_for("fresh routes", LONG, || {
        let peer = node.peer(tor)?;
        ensure!(peer["state"] == "Established" && peer["prefixesStale"] == 0, "{peer}");
        Ok(())
    })
}

/// Waits until a session with the ToR is up that is not the one of `before`.
fn wait_another_session(node: &Node, before: &Value) -> Result<Value> {
    wait_for("another session", LONG, || {
        let peer = node.peer(TOR)?;
        ensure!(peer["flaps"] != before["flaps"] && peer["state"] == "Established", "{peer}");
        Ok(peer)
    })
}

/// Ends a node's daemon and starts another.
type End = fn(&mut Node) -> Result<()>;

fn ends() -> [(&'static str, End); 3] {
    [
        ("SIGKILL", |node| node.kill9().and_then(|()| node.start())),
        ("SIGTERM", |node| node.stop().and_then(|()| node.start())),
        ("upgrade", Node::upgrade),
    ]
}

/// SIGKILL, SIGTERM, an upgrade: peers and kernels notice nothing, and no NOTIFICATION is sent.
pub(crate) fn a_daemon_that_dies_or_is_replaced_loses_no_packet() -> Result<()> {
    end_daemons(Scene::with_outside(tor(), "")?)
}

/// The same with routes of IPv6, in a session over IPv6.
pub(crate) fn a_daemon_that_dies_or_is_replaced_loses_no_packet_of_ipv6() -> Result<()> {
    end_daemons(Scene::ipv6()?)
}

fn end_daemons(mut scene: Scene) -> Result<()> {
    let observers = Observers::start(&scene)?;
    for (name, end) in ends() {
        let log = scene.node()?.log().len();
        end(scene.node_mut()?).with_context(|| name.to_owned())?;
        scene.node()?.wait_established(&[scene.tor], LONG)?;
        wait_helped(&scene.lab)?;
        wait_converged(scene.node()?, log)?;
    }
    let said = scene.lab.bird("tor")?.log()[observers.log..].to_owned();
    ensure!(!said.contains("Received:"), "a NOTIFICATION came: {said}");
    observers.saw_nothing(&scene.lab)
}

/// A node that has learned nothing has forwarded all the same: its blocks show it.
pub(crate) fn a_peer_that_announces_nothing_keeps_our_routes() -> Result<()> {
    let mut scene = Scene::new(tor_with(&[]), "")?;
    let status = scene.node()?.status()?;
    ensure!(status["kernelRoutes"] == 0, "it has learned something: {status}");
    let observers = Observers::start(&scene)?;
    scene.node_mut()?.kill9()?;
    scene.node_mut()?.start()?;
    scene.node()?.wait_established(&[TOR], LONG)?;
    wait_helped(&scene.lab)?;
    observers.saw_nothing(&scene.lab)
}

/// A connection that is reset is no restart: the node comes back with F set, also one whose process
/// is the first since the boot.
pub(crate) fn a_session_that_breaks_is_no_restart() -> Result<()> {
    let scene = Scene::with_outside(tor(), "")?;
    let mut observers = Observers::start(&scene)?;
    let before = scene.node()?.peer(TOR)?;
    let connection = Connection::find(&scene.lab)?;
    // The node's packets on this connection are answered by a reset.
    nft(&scene.lab, &connection.rule("input", "reject with tcp reset"))?;
    // A route refresh is the quickest way to make the node send something.
    scene.lab.bird("tor")?.command("reload in node1")?;
    wait_another_session(scene.node()?, &before)?;
    wait_helped(&scene.lab)?;
    wait_fresh(scene.node()?)?;
    // BIRD itself clears F after a session that broke, so what the node has of it goes for a moment,
    // as RFC 4724 section 4.2 demands; a default route leads to the same place.
    observers.watches.truncate(1);
    observers.saw_nothing(&scene.lab)
}

/// One TCP connection between the ToR and the node.
#[derive(Debug)]
struct Connection {
    /// Port at the ToR.
    tor: String,
    /// Port at the node.
    node: String,
}

impl Connection {
    /// The established one.
    fn find(lab: &Lab) -> Result<Self> {
        let mut command = Command::new("ss");
        command.args(["-tnH", "state", "established"]);
        let text = check("ss", &lab.router("tor")?.output(&mut command)?)?;
        // `Recv-Q Send-Q Local:Port Peer:Port`
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, local, remote, ..] = words[..]
                && let Some((NODE, node)) = remote.rsplit_once(':')
                && let Some((_, tor)) = local.rsplit_once(':')
            {
                return Ok(Self { tor: tor.to_owned(), node: node.to_owned() });
            }
        }
        bail!("the ToR has no connection with the node: {text}")
    }

    /// A table with one rule about its packets, as the ToR sees them.
    fn rule(&self, hook: &str, verdict: &str) -> String {
        let (from, to) = match hook {
            "output" => (&self.tor, &self.node),
            _ => (&self.node, &self.tor),
        };
        format!(
            "table ip cut_{hook} {{ chain c {{ type filter hook {hook} priority 0; \
             tcp sport {from} tcp dport {to} {verdict}; }}; }}"
        )
    }
}

fn nft(lab: &Lab, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.arg(rules);
    check("nft (package nftables)", &lab.router("tor")?.output(&mut command)?)?;
    Ok(())
}

/// RFC 4724 section 4.2: the node still takes the old session for a good one, and lets the router's
/// new connection take its place.
pub(crate) fn a_router_whose_fins_are_dropped_is_back_at_once() -> Result<()> {
    let config = tor_with(&["graceful restart on", "connect delay time 0"]).announce(OUTSIDE);
    let mut scene = Scene::with_outside(config, "")?;
    let observers = Observers::start(&scene)?;
    let since = Instant::now();
    // A second connection within a second is a collision, not a return.
    wait_for("a session that is no longer fresh", LONG, || {
        ensure!(since.elapsed() > Duration::from_millis(1500));
        Ok(())
    })?;
    let connection = Connection::find(&scene.lab)?;
    nft(&scene.lab, &connection.rule("output", "drop"))?;
    let before = scene.node()?.peer(TOR)?;
    let config = scene.lab.stop_bird("tor")?;
    let silent = scene.node()?.peer(TOR)?;
    ensure!(silent["state"] == "Established", "the end was seen: {silent}");
    scene.lab.return_bird("tor", config)?;
    wait_for("the router to call", LONG, || {
        let log = scene.lab.bird("tor")?.log();
        ensure!(log[observers.log..].contains("Connecting to"), "it does not");
        Ok(())
    })?;
    let back = Instant::now();
    let peer = wait_another_session(scene.node()?, &before)?;
    let took = back.elapsed();
    // Else it waits for the hold time, 90 s.
    ensure!(took < SECONDS, "Established after {took:?}: {peer}");
    wait_fresh(scene.node()?)?;
    observers.saw_nothing(&scene.lab)
}

/// The helping side: stale while the router is away, fresh when it is back, forwarded all the time.
pub(crate) fn a_router_that_dies_loses_no_packet() -> Result<()> {
    end_router(Scene::with_outside(tor(), "")?)
}

/// The same with routes of IPv6, in a session over IPv6.
pub(crate) fn a_router_that_dies_loses_no_packet_of_ipv6() -> Result<()> {
    end_router(Scene::ipv6()?)
}

fn end_router(mut scene: Scene) -> Result<()> {
    let observers = Observers::start(&scene)?;
    let config = scene.lab.stop_bird("tor")?;
    wait_for("stale routes", SECONDS, || {
        let peer = scene.node()?.peer(scene.tor)?;
        ensure!(peer["prefixesStale"] == 1, "{peer}");
        let left = peer["staleForMs"].as_u64().context("no time is left")?;
        ensure!(left > 100_000 && left <= 120_000, "BIRD asked for 120 s: {peer}");
        Ok(())
    })?;
    let explained = scene.node()?.ctl(&["bgp", "explain", scene.outside])?;
    ensure!(explained.contains("best, stale for "), "{explained}");
    scene.lab.return_bird("tor", config)?;
    wait_helped(&scene.lab)?;
    wait_fresh_of(scene.node()?, scene.tor)?;
    observers.saw_nothing(&scene.lab)
}

/// Neither can help the other, and both kernels go on.
pub(crate) fn both_ends_restart_at_once_and_lose_no_packet() -> Result<()> {
    let mut scene = Scene::with_outside(tor(), "")?;
    let observers = Observers::start(&scene)?;
    let log = scene.node()?.log().len();
    let config = scene.lab.stop_bird("tor")?;
    scene.node_mut()?.kill9()?;
    scene.node_mut()?.start()?;
    wait_for("who is waited for to be shown", SECONDS, || {
        let status = scene.node()?.ctl(&["node", "status"])?;
        ensure!(status.contains(&format!("old kernel routes wait for {TOR}.")), "{status}");
        Ok(())
    })?;
    scene.lab.return_bird("tor", config)?;
    scene.node()?.wait_established(&[TOR], LONG)?;
    wait_converged(scene.node()?, log)?;
    wait_helped(&scene.lab)?;
    scene.lab.bird("tor")?.wait_route(&scene.block, "node1", LONG)?;
    observers.saw_nothing(&scene.lab)
}

/// Its routes stay for its restart time, and no longer.
pub(crate) fn a_router_that_stays_away_loses_its_routes_in_time() -> Result<()> {
    let config = tor_with(&["graceful restart on", "graceful restart time 3"]).announce(OUTSIDE);
    let mut scene = Scene::with_outside(config, "")?;
    let gone = Instant::now();
    scene.lab.stop_bird("tor")?;
    scene.node()?.wait_no_route(OUTSIDE, LONG)?;
    let took = gone.elapsed();
    ensure!(took >= Duration::from_secs(3) && took < SECONDS, "gone after {took:?}");
    Ok(())
}

/// RFC 9494: after the restart time of 2 s the routes stay for 10 s more, marked.
pub(crate) fn long_lived_stale_routes_are_the_last_to_go() -> Result<()> {
    let config = tor_with(&[
        "graceful restart on",
        "graceful restart time 2",
        "long lived graceful restart on",
        "long lived stale time 10",
    ])
    .announce(OUTSIDE);
    let mut scene = Scene::with_outside(config, ", longLivedRestartTime: {ipv4: 60}")?;
    let gone = Instant::now();
    scene.lab.stop_bird("tor")?;
    wait_for("long-lived stale routes", SECONDS, || {
        let peer = scene.node()?.peer(TOR)?;
        ensure!(peer["longLivedStale"] == true && peer["prefixesStale"] == 1, "{peer}");
        Ok(())
    })?;
    ensure!(gone.elapsed() >= Duration::from_secs(2), "too early: {:?}", gone.elapsed());
    let explained = scene.node()?.ctl(&["bgp", "explain", OUTSIDE, "-o", "wide"])?;
    ensure!(explained.contains("65535:6"), "no LLGR_STALE: {explained}");
    scene.node()?.wait_route(OUTSIDE, SECONDS)?;
    scene.node()?.wait_no_route(OUTSIDE, LONG)?;
    let took = gone.elapsed();
    ensure!((12..12 + 10).contains(&took.as_secs()), "gone after {took:?}");
    Ok(())
}

/// RFC 9494 the other way round: a node that is away for longer than its restart time stays reachable,
/// as the last resort, and comes back without a loss.
pub(crate) fn a_node_that_stays_away_is_the_last_resort() -> Result<()> {
    let more = ", maxRestartTime: 1s, longLivedRestartTime: {ipv4: 60}";
    let mut scene = Scene::with_outside(tor(), more)?;
    let observers = Observers::start(&scene)?;
    scene.node_mut()?.stop()?;
    wait_for("a long-lived stale route", SECONDS, || {
        let routes = scene.lab.bird("tor")?.routes(&scene.block)?;
        ensure!(routes.iter().any(|route| route.text.contains("(65535,6)")), "{routes:?}");
        Ok(())
    })?;
    scene.node_mut()?.start()?;
    scene.node()?.wait_established(&[TOR], LONG)?;
    wait_helped(&scene.lab)?;
    let routes = scene.lab.bird("tor")?.routes(&scene.block)?;
    ensure!(routes.iter().all(|route| !route.text.contains("(65535,6)")), "{routes:?}");
    observers.saw_nothing(&scene.lab)
}

/// A mesh whose daemons all die and return together: no packet between pods is lost, and nobody
/// waits for somebody in vain.
pub(crate) fn nodes_that_restart_together_lose_no_packet() -> Result<()> {
    const NODES: [&str; 5] = ["node1", "node2", "node3", "node4", "node5"];
    let address = |index: usize| format!("192.168.2.{}", 11 + index);
    let mut topology = Topology::new();
    for (index, name) in NODES.iter().enumerate() {
        topology.node(name).on("seg-a", &format!("{}/24", address(index)));
    }
    topology.resource("pool.yaml", POOL);
    let mut lab = topology.build()?;
    lab.start_all()?;
    let pods: Vec<Pod> =
        NODES.iter().map(|node| lab.add_pod(node, &format!("on-{node}"))).collect::<Result<_>>()?;
    let sources = || -> Result<Vec<Source<'_>>> {
        pods.iter()
            .map(|pod| {
                let others = pods.iter().filter(|other| other.name() != pod.name());
                let targets = others.map(Pod::address).collect::<Result<_>>()?;
                Ok(Source { name: pod.name(), namespace: pod.namespace(), targets })
            })
            .collect()
    };
    for source in sources()? {
        for target in source.targets {
            wait_for("traffic", LONG, || ping::reaches(source.namespace, target))?;
        }
    }
    let pinger = Pinger::start(sources()?, INTERVAL)?;
    let logs: Vec<usize> = lab.nodes().map(|node| node.log().len()).collect();
    for node in NODES {
        lab.node_mut(node)?.kill9()?;
    }
    lab.start_all()?;
    for (index, node) in NODES.iter().enumerate() {
        let others = (0..NODES.len()).filter(|other| *other != index).map(address);
        let others: Vec<String> = others.collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        lab.node(node)?.wait_established(&others, LONG)?;
    }
    for (node, log) in lab.nodes().zip(logs) {
        wait_converged(node, log)?;
        let said = node.log()[log..].to_owned();
        ensure!(!said.contains("converged without"), "somebody was waited for: {said}");
    }
    pinger.wait_rounds(20)?;
    for tally in pinger.stop()? {
        ensure!(tally.lost() == 0, "{tally}");
    }
    Ok(())
}
