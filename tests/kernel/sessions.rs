//! What a session is kept from: a peer that announces too much, one that floods, and an administrator
//! who wants it stopped.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use twill_bgp_proto::wire::{
    self, AsPath, Capability, MessageType, Notification, Open, Origin, PathAttributes, Session,
    code, open_error,
};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    netns::Namespace,
    wait::wait_for,
};
use twill_types::{Asn, Family, Prefix};

use crate::{LONG, reconcile::metric};

fn bgp_peer(name: &str, address: &str, more: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
         spec: {{peerIP: {address}, asNumber: 64513{more}}}\n"
    )
}

/// A node with two ToRs, of which the first announces three prefixes and the second one.
fn lab(more: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    for (name, address, prefixes) in
        [("tor1", "192.168.2.1", &[100, 101, 102][..]), ("tor2", "192.168.2.2", &[110])]
    {
        let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local(address);
        let mut bird = BirdConfig::new(address, 64513).neighbor(neighbor);
        for third in prefixes {
            bird = bird.announce(&format!("198.51.{third}.0/24"));
        }
        topology.router(name).on("seg-a", &format!("{address}/24")).bird(bird);
    }
    let node = topology.node("node1").on("seg-a", "192.168.2.11/24");
    node.settings("metrics: {listen: \"127.0.0.1:9190\"}\n");
    topology.resource("tor1.yaml", &bgp_peer("tor1", "192.168.2.1", more));
    topology.resource("tor2.yaml", &bgp_peer("tor2", "192.168.2.2", ""));
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// A limit ends the session of the one that is over it, holds it, and leaves the others alone; a new
/// limit lets it in at once.
pub(crate) fn a_peer_over_its_limit_is_ended_alone() -> Result<()> {
    let lab = lab(", maxPrefixes: 2")?;
    let node = lab.node("node1")?;
    node.wait_established(&["192.168.2.2"], LONG)?;
    node.wait_route("198.51.110.0/24", LONG)?;
    let said = "more than 2 IPv4 prefixes";
    wait_for("the end of the session", LONG, || {
        let peer = node.peer("192.168.2.1")?;
        let info = peer["info"].as_str().unwrap_or_default();
        ensure!(peer["state"] == "Idle" && info.ends_with(said), "{peer}");
        let sent = peer["notifications"][0]["sent"].as_bool();
        ensure!(sent == Some(true), "{peer}");
        Ok(())
    })?;
    let name = "twill_bgp_notifications_total{peer=\"192.168.2.1\",direction=\"sent\",\
                code=\"6\",subcode=\"1\"}";
    let sent = metric(&lab, name)?;
    ensure!(sent >= 1.0, "{name} is {sent}");
    for third in [100, 101, 102] {
        node.wait_no_route(&format!("198.51.{third}.0/24"), LONG)?;
    }
    let told = lab.bird("tor1")?.log();
    ensure!(told.contains("Maximum number of prefixes reached"), "{told}");
    lab.write_resource("tor1.yaml", &bgp_peer("tor1", "192.168.2.1", ", maxPrefixes: 3"))?;
    node.wait_established(&["192.168.2.1"], LONG)?;
    node.wait_route("198.51.102.0/24", LONG)?;
    let other = node.peer("192.168.2.2")?;
    ensure!(other["state"] == "Established" && other["flaps"] == 0, "{other}");
    Ok(())
}

/// The text is read on both sides, the routes are gone, and nobody comes back before it is gone too.
pub(crate) fn a_session_is_stopped_with_a_text() -> Result<()> {
    let lab = lab("")?;
    let node = lab.node("node1")?;
    node.wait_established(&["192.168.2.1", "192.168.2.2"], LONG)?;
    node.wait_route("198.51.100.0/24", LONG)?;
    let stopped = bgp_peer("tor1", "192.168.2.1", ", shutdown: rack 7 is moved");
    lab.write_resource("tor1.yaml", &stopped)?;
    node.wait_no_route("198.51.100.0/24", LONG)?;
    let peers = node.ctl(&["bgp", "peers"])?;
    ensure!(peers.contains("Administrative Shutdown (6/2): \"rack 7 is moved\""), "{peers}");
    wait_for("the text at the peer", LONG, || {
        let log = lab.bird("tor1")?.log();
        ensure!(log.contains("rack 7 is moved"), "{log}");
        Ok(())
    })?;
    lab.write_resource("tor1.yaml", &bgp_peer("tor1", "192.168.2.1", ""))?;
    node.wait_established(&["192.168.2.1"], LONG)?;
    node.wait_route("198.51.100.0/24", LONG)?;
    Ok(())
}

/// A peer made of this suite's own bytes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    session: Session,
    received: Vec<u8>,
}

impl Raw {
    /// Opens a session from a machine to the node.
    pub(crate) fn establish(
        machine: &Namespace,
        identifier: Ipv4Addr,
        hold_time: u16,
    ) -> Result<Self> {
        let (mut raw, _) = Self::exchange(machine, identifier, hold_time)?;
        raw.stream.write_all(&wire::encode_keepalive())?;
        raw.confirmed()?;
        Ok(raw)
    }

    /// Connects, and exchanges OPENs with the node; the node's is given back.
    pub(crate) fn exchange(
        machine: &Namespace,
        identifier: Ipv4Addr,
        hold_time: u16,
    ) -> Result<(Self, Open)> {
        let mut raw = Self::connect(machine)?;
        let open = Self::open(identifier, hold_time)?;
        raw.stream.write_all(&wire::encode_open(&open))?;
        let theirs = raw.confirm(&open)?;
        Ok((raw, theirs))
    }

    /// Connects to the node.
    pub(crate) fn connect(machine: &Namespace) -> Result<Self> {
        let node = SocketAddr::from(([192, 168, 2, 11], 179));
        let stream = wait_for("the node to accept", LONG, || {
            Ok(machine.enter(|| TcpStream::connect_timeout(&node, LONG))??)
        })?;
        stream.set_read_timeout(Some(LONG))?;
        Ok(Self { stream, session: Session::default(), received: Vec::new() })
    }

    /// What it says of itself.
    pub(crate) fn open(identifier: Ipv4Addr, hold_time: u16) -> Result<Open> {
        let asn = Asn::new(64513)?;
        let capabilities =
            vec![Capability::MultiProtocol(Family::V4), Capability::FourOctetAs(asn)];
        Ok(Open { asn, hold_time, identifier, capabilities })
    }

    /// Reads the node's OPEN.
    pub(crate) fn confirm(&mut self, open: &Open) -> Result<Open> {
        let (kind, body) = self.message()?;
        ensure!(kind == MessageType::Open, "{kind:?} {body:?}");
        let theirs = wire::decode_open(&body).map_err(|refused| anyhow!("{refused}"))?;
        self.session = Session::negotiate(&open.capabilities, &theirs, false);
        Ok(theirs)
    }

    /// Reads the KEEPALIVE that confirms its OPEN.
    pub(crate) fn confirmed(&mut self) -> Result<()> {
        let (kind, _) = self.message()?;
        ensure!(kind == MessageType::Keepalive, "{kind:?}");
        Ok(())
    }

    /// The next message.
    pub(crate) fn message(&mut self) -> Result<(MessageType, Vec<u8>)> {
        self.poll()?.context("no message came")
    }

    /// The next message; `None` if there is none within the stream's timeout, and an error if it is a
    /// NOTIFICATION.
    pub(crate) fn poll(&mut self) -> Result<Option<(MessageType, Vec<u8>)>> {
        let message = self.read()?;
        if let Some((MessageType::Notification, body)) = &message {
            bail!("the node says {}", Notification::decode(body));
        }
        Ok(message)
    }

    /// The NOTIFICATION that ends the session, behind whatever comes before it.
    pub(crate) fn notification(&mut self) -> Result<Notification> {
        loop {
            let (kind, body) = self.read()?.context("no NOTIFICATION came")?;
            if kind == MessageType::Notification {
                return Ok(Notification::decode(&body));
            }
        }
    }

    fn read(&mut self) -> Result<Option<(MessageType, Vec<u8>)>> {
        let mut piece = [0; 4096];
        loop {
            let frame = wire::frame(&self.received, wire::MAX_MESSAGE);
            if let Some(frame) = frame.map_err(|broken| anyhow!("{broken}"))? {
                let (kind, body, length) = (frame.kind, frame.body.to_vec(), frame.length);
                self.received.drain(..length);
                return Ok(Some((kind, body)));
            }
            match self.stream.read(&mut piece) {
                Ok(0) => bail!("the node closed the connection"),
                Ok(count) => {
                    self.received.extend_from_slice(piece.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // A machine that was stopped for a moment ends waits that have a limit.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn update(&self, prefix: Prefix, next_hop: IpAddr, med: u32) -> Result<Vec<u8>> {
        let mut attributes =
            PathAttributes::new(Origin::Igp, AsPath::sequence([Asn::new(64513)?]), next_hop);
        attributes.med = Some(med);
        let mut bytes = Vec::new();
        let fits =
            wire::encode_updates(&attributes, Family::V4, &[prefix], &self.session, &mut bytes);
        ensure!(fits, "no room for one route");
        Ok(bytes)
    }
}

/// A capability that a router refuses by its number (RFC 5492 section 5) is missing from the next OPEN,
/// and the operator reads why.
pub(crate) fn a_refused_capability_is_left_out() -> Result<()> {
    let identifier = Ipv4Addr::new(192, 168, 2, 1);
    let mut topology = Topology::new();
    topology.router("tor1").on("seg-a", "192.168.2.1/24");
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("tor1.yaml", &bgp_peer("tor1", "192.168.2.1", ", passive: true"));
    let mut lab = topology.build()?;
    lab.start_all()?;
    let (tor1, node) = (lab.router("tor1")?, lab.node("node1")?);
    let offers =
        |open: &Open| open.capabilities.iter().any(|c| matches!(c, Capability::AddPath(_)));

    let (mut raw, theirs) = Raw::exchange(tor1, identifier, 90)?;
    ensure!(offers(&theirs), "{theirs:?}");
    let add_path = Notification::new(code::OPEN, open_error::CAPABILITY).with_data(&[69, 0]);
    raw.stream.write_all(&wire::encode_notification(&add_path))?;
    wait_for("the refusal to be told", LONG, || {
        let peer = node.peer("192.168.2.1")?;
        let info = peer["info"].as_str().unwrap_or_default();
        ensure!(
            info.starts_with("received OPEN Message Error/Unsupported Capability (2/7)"),
            "{peer}"
        );
        ensure!(info.ends_with("the next OPEN goes without capability 69"), "{peer}");
        Ok(())
    })?;
    // For as long as the node holds the peer, it closes what it is offered.
    let (mut raw, theirs) = wait_for("another OPEN", LONG, || Raw::exchange(tor1, identifier, 90))?;
    ensure!(!offers(&theirs), "{theirs:?}");
    raw.stream.write_all(&wire::encode_keepalive())?;
    raw.confirmed()?;
    node.wait_established(&["192.168.2.1"], LONG)?;
    // It cannot be asked for its routes again.
    for (arguments, why) in [
        (&["192.168.2.1"][..], "the peer has not announced route refresh (RFC 2918)"),
        (&["192.168.2.9", "--family", "ipv6"], "there is no such session on this node"),
    ] {
        let output = node.ctl_output(&[&["bgp", "refresh"], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(why), "{said}");
    }
    Ok(())
}

/// A number that the kernel counts for TCP in a namespace (`nstat` shows it as `TcpExt` and this name).
pub(crate) fn tcp_counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))??;
    // Names in one line, numbers in the next.
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut counters = names.split_whitespace().zip(numbers.split_whitespace());
    let found = counters.find(|(counter, _)| *counter == name);
    Ok(found.with_context(|| format!("the kernel counts no {name}"))?.1.parse()?)
}

/// With `ttlSecurity: 1`, what comes with the TTL of someone farther away is not heard, though the
/// connection is there: the same octets are, once they come with 255 (RFC 5082).
pub(crate) fn a_peer_with_a_low_ttl_is_not_heard() -> Result<()> {
    let mut topology = Topology::new();
    topology.router("tor1").on("seg-a", "192.168.2.1/24");
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    let near = bgp_peer("tor1", "192.168.2.1", ", passive: true, ttlSecurity: 1");
    topology.resource("tor1.yaml", &near);
    let mut lab = topology.build()?;
    lab.start_all()?;
    let node = lab.node("node1")?;
    // Until the node has its configuration, all are strangers to it.
    wait_for("the node to have its peer", LONG, || node.peer("192.168.2.1"))?;
    let before = tcp_counter(node.namespace(), "TCPMinTTLDrop")?;
    let mut raw = Raw::connect(lab.router("tor1")?)?;
    raw.stream.set_ttl(64)?;
    let open = Raw::open(Ipv4Addr::new(192, 168, 2, 1), 90)?;
    // Before the node has taken the connection, nobody looks at a TTL. Now it has.
    raw.confirm(&open)?;
    raw.stream.write_all(&wire::encode_open(&open))?;
    raw.stream.write_all(&wire::encode_keepalive())?;
    wait_for("segments to be dropped for their TTL", LONG, || {
        let dropped = tcp_counter(node.namespace(), "TCPMinTTLDrop")?;
        // Acknowledgements of the node's OPEN, and what it was to be told.
        ensure!(dropped > before + 3, "{before} became {dropped}");
        Ok(())
    })?;
    let peer = node.peer("192.168.2.1")?;
    ensure!(peer["state"] == "OpenSent" && peer["messagesIn"] == 0, "{peer}");
    // They are sent again until they are acknowledged.
    raw.stream.set_ttl(255)?;
    raw.confirmed()?;
    node.wait_established(&["192.168.2.1"], LONG)
}

/// So many messages are the flood.
const FLOOD: u32 = 300_000;

/// Announces a thousand prefixes over and over, each time with other attributes, as fast as the node
/// takes it. Gives the connection back, which has to be kept open.
fn flood(raw: Raw) -> JoinHandle<Result<Raw>> {
    thread::spawn(move || {
        let mut raw = raw;
        let next_hop = IpAddr::from([192, 168, 2, 1]);
        let mut bytes = Vec::new();
        for n in 0..FLOOD {
            let address = Ipv4Addr::from_bits(0x0b00_0000 + ((n % 1000) << 8));
            bytes.extend(raw.update(Prefix::new(address.into(), 24)?, next_hop, n / 1000)?);
        }
        raw.stream.write_all(&bytes)?;
        Ok(raw)
    })
}

/// How often the calm peer says that it is there.
const CALM: Duration = Duration::from_millis(500);

/// Sends KEEPALIVEs until `ended`; gives the longest time in which the node said nothing.
pub(crate) fn stay_calm(mut raw: Raw, ended: &AtomicBool) -> Result<Duration> {
    raw.stream.set_read_timeout(Some(CALM))?;
    let (mut longest, mut heard, mut said) = (Duration::ZERO, Instant::now(), Instant::now());
    // How long this thread was not woken though it was time, because the machine was busy.
    let mut overslept = Duration::ZERO;
    while !ended.load(Ordering::Relaxed) {
        if said.elapsed() >= CALM {
            raw.stream.write_all(&wire::encode_keepalive())?;
            said = Instant::now();
        }
        let asleep = Instant::now();
        let message = raw.poll()?;
        overslept += asleep.elapsed().saturating_sub(CALM);
        longest = longest.max(heard.elapsed().saturating_sub(overslept));
        if message.is_some() {
            (heard, overslept) = (Instant::now(), Duration::ZERO);
        }
    }
    Ok(longest)
}

/// A node with two ToRs on which nothing runs; it waits for them.
pub(crate) fn silent_tors() -> Result<Lab> {
    let mut topology = Topology::new();
    for (name, address) in [("tor1", "192.168.2.1"), ("tor2", "192.168.2.2")] {
        topology.router(name).on("seg-a", &format!("{address}/24"));
        let resource = bgp_peer(name, address, ", passive: true");
        topology.resource(&format!("{name}.yaml"), &resource);
    }
    let node = topology.node("node1").on("seg-a", "192.168.2.11/24").log_level("warn");
    node.settings("metrics: {listen: \"127.0.0.1:9190\"}\n");
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// While one peer sends 300,000 UPDATEs of churn, another with the shortest hold time keeps its session:
/// KEEPALIVEs go both ways in time, and its route is in the kernel when the flood is over at the latest.
pub(crate) fn a_flood_starves_nobody() -> Result<()> {
    let lab = silent_tors()?;
    let tor1 = Raw::establish(lab.router("tor1")?, Ipv4Addr::new(192, 168, 2, 1), 0)?;
    let mut tor2 = Raw::establish(lab.router("tor2")?, Ipv4Addr::new(192, 168, 2, 2), 3)?;
    let node = lab.node("node1")?;
    node.wait_established(&["192.168.2.1", "192.168.2.2"], LONG)?;
    let ended = AtomicBool::new(false);
    let (silence, _flooder) = thread::scope(|scope| -> Result<(Duration, Raw)> {
        let flood = flood(tor1);
        let route = tor2.update("198.51.100.0/24".parse()?, IpAddr::from([192, 168, 2, 2]), 0)?;
        tor2.stream.write_all(&route)?;
        let ended = &ended;
        let calm = scope.spawn(move || stay_calm(tor2, ended));
        let flooder = flood.join().map_err(|_| anyhow!("the flood panicked"));
        let all = wait_for("all of the flood", LONG, || {
            let peer = node.peer("192.168.2.1")?;
            ensure!(peer["messagesIn"].as_u64() >= Some(FLOOD.into()), "{peer}");
            node.wait_route("198.51.100.0/24", LONG)
        });
        let peers = ["192.168.2.1", "192.168.2.2"].map(|address| node.peer(address));
        ended.store(true, Ordering::Relaxed);
        let silence = calm.join().map_err(|_| anyhow!("the calm peer panicked"))??;
        all?;
        for peer in peers {
            let peer = peer?;
            ensure!(peer["state"] == "Established" && peer["flaps"] == 0, "{peer}");
        }
        Ok((silence, flooder??))
    })?;
    // One is due each second at the latest.
    ensure!(silence < Duration::from_secs(2), "the node said nothing for {silence:?}");
    Ok(())
}
