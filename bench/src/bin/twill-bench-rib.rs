//! `twill-bench-rib`: time and memory of the speaker's tables, without a network.
//!
//! One speaker, fed with the bytes of many peers as its shell would feed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use twill_bgp_proto::{
    ConnId, Input, NextHopState, Output, Own, PeerConfig, PeerKey, PeerKind, Speaker,
    SpeakerConfig, Time,
    wire::{
        self, AsPath, Capability, GracefulRestart, GracefulRestartFamily, Open, Origin,
        PathAttributes, Session,
    },
};
use twill_types::{Asn, BgpNextHop, Family, Prefix};

/// What a read of the shell hands over at the most.
const READ: usize = 64 * 1024;
/// Prefixes that have the same attributes.
const SHARED: usize = 250;

/// Time and memory of the speaker's tables.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Prefixes that each large peer announces.
    #[arg(long, default_value_t = 100_000)]
    prefixes: u32,
    /// Peers that announce all of them.
    #[arg(long, default_value_t = 4)]
    large: u8,
    /// Peers that announce one prefix each.
    #[arg(long, default_value_t = 200)]
    small: u8,
}

/// What the peers negotiate.
fn session() -> Session {
    Session { four_octet_as: true, ipv4: true, ..Session::default() }
}

struct Bench {
    speaker: Speaker,
    now: Time,
    next_conn: u64,
    sessions: BTreeMap<PeerKey, ConnId>,
    /// Routes that the kernel would have.
    kernel: BTreeMap<Prefix, Vec<BgpNextHop>>,
    sent: usize,
    rows: Vec<(String, f64)>,
}

fn large(index: u8) -> PeerKey {
    PeerKey { address: Ipv4Addr::new(192, 0, 2, index + 1).into(), port: 179 }
}

fn small(index: u8) -> PeerKey {
    PeerKey { address: Ipv4Addr::new(198, 51, 100, index + 1).into(), port: 179 }
}

fn prefix(index: u32) -> Result<Prefix> {
    // /26 blocks from 10.0.0.0 on.
    Ok(Prefix::new(Ipv4Addr::from_bits(0x0a00_0000 + (index << 6)).into(), 26)?)
}

/// Kilobytes in memory.
fn resident() -> Result<f64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("statm is short")?.parse()?;
    Ok(pages * 4.0)
}

impl Bench {
    fn new() -> Result<Self> {
        let config = SpeakerConfig {
            router_id: Ipv4Addr::new(192, 0, 2, 254),
            asn: Asn::new(64512)?,
            hostname: String::new(),
            seed: 1,
            forwarding: BTreeSet::new(),
            selection_deferral: Duration::from_secs(60),
            max_paths: 16,
        };
        Ok(Self {
            speaker: Speaker::new(config, Time::ZERO),
            now: Time::ZERO,
            next_conn: u64::MAX,
            sessions: BTreeMap::new(),
            kernel: BTreeMap::new(),
            sent: 0,
            rows: Vec::new(),
        })
    }

    fn input(&mut self, input: Input) {
        self.speaker.handle(self.now, input);
        let mut inputs = Vec::new();
        while let Some(output) = self.speaker.poll_output() {
            match output {
                Output::Routes(changes) => {
                    for change in changes {
                        for prefix in change.prefixes.iter() {
                            match change.next_hops.is_empty() {
                                true => self.kernel.remove(&prefix),
                                false => self.kernel.insert(prefix, change.next_hops.to_vec()),
                            };
                        }
                    }
                }
                Output::TrackNextHops(addresses) => {
                    let state = NextHopState::Reachable { metric: 0 };
                    let states = addresses.into_iter().map(|address| (address, state)).collect();
                    inputs.push(Input::NextHops(states));
                }
                Output::Send { conn, bytes } => {
                    self.sent += bytes.len();
                    inputs.push(Input::Written { conn, count: bytes.len() });
                }
                _ => {}
            }
        }
        for input in inputs {
            self.input(input);
        }
    }

    fn receive(&mut self, peer: PeerKey, bytes: &[u8]) {
        let Some(conn) = self.sessions.get(&peer).copied() else {
            return;
        };
        for chunk in bytes.chunks(READ) {
            self.input(Input::Received { conn, bytes: chunk.to_vec() });
        }
    }

    fn configure(&mut self, peers: &[PeerKey]) -> Result<()> {
        let config = PeerConfig {
            passive: true,
            hold_time: 0,
            families: [Family::V4].into(),
            ..PeerConfig::new("", PeerKind::Global, Asn::new(64513)?)
        };
        self.input(Input::SetPeers(peers.iter().map(|key| (*key, config.clone())).collect()));
        Ok(())
    }

    /// Brings a session up; with graceful restart if asked to.
    fn open(&mut self, peer: PeerKey, restart: bool) -> Result<()> {
        let conn = ConnId(self.next_conn);
        self.next_conn -= 1;
        self.sessions.insert(peer, conn);
        let local = SocketAddr::from(([192, 0, 2, 254], 179));
        let remote = SocketAddr::new(peer.address, 40000);
        self.input(Input::Accepted { conn, local, remote });
        let IpAddr::V4(identifier) = peer.address else {
            anyhow::bail!("an IPv6 peer");
        };
        let asn = Asn::new(64513)?;
        let mut capabilities =
            vec![Capability::MultiProtocol(Family::V4), Capability::FourOctetAs(asn)];
        if restart {
            let family = GracefulRestartFamily { family: Family::V4, forwarding: true };
            capabilities.push(Capability::GracefulRestart(GracefulRestart {
                restarting: false,
                notification: false,
                restart_time: 120,
                families: vec![family],
            }));
        }
        let open = Open { asn, hold_time: 0, identifier, capabilities };
        self.receive(peer, &wire::encode_open(&open));
        self.receive(peer, &wire::encode_keepalive());
        Ok(())
    }

    fn close(&mut self, peer: PeerKey) {
        if let Some(conn) = self.sessions.remove(&peer) {
            self.input(Input::Closed { conn, reason: "gone".to_owned() });
        }
        // Passive peers wait before they accept again.
        self.now = self.now + Duration::from_secs(1);
        self.input(Input::Tick);
    }

    fn timed(&mut self, what: &str, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        act(self)?;
        self.rows.push((what.to_owned(), start.elapsed().as_secs_f64() * 1e3));
        Ok(())
    }
}

/// All prefixes in UPDATEs of one peer.
fn table(peer: PeerKey, count: u32) -> Result<Vec<u8>> {
    let all = (0..count).map(prefix).collect::<Result<Vec<_>>>()?;
    let mut bytes = Vec::new();
    for (index, some) in (1_u32..).zip(all.chunks(SHARED)) {
        let path = AsPath::sequence([Asn::new(64513)?, Asn::new(100_000 + index)?]);
        let attributes = PathAttributes::new(Origin::Igp, path, peer.address);
        let fits = wire::encode_updates(&attributes, Family::V4, some, &session(), &mut bytes);
        ensure!(fits, "attributes too long");
    }
    Ok(bytes)
}

fn end_of_rib() -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_end_of_rib(Family::V4, &mut bytes);
    bytes
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let tables = (0..arguments.large)
        .map(|index| table(large(index), arguments.prefixes))
        .collect::<Result<Vec<_>>>()?;
    let mut bench = Bench::new()?;
    let grown = fill(&mut bench, &arguments, &tables)?;
    change(&mut bench, &arguments, &tables)?;
    let mut out = std::io::stdout().lock();
    for (what, ms) in &bench.rows {
        writeln!(out, "{what:<48} {ms:>10.1} ms")?;
    }
    let paths = f64::from(arguments.prefixes) * f64::from(arguments.large);
    writeln!(out, "{:<48} {:>10.1} MiB", "memory of the tables", grown / 1024.0)?;
    writeln!(out, "{:<48} {:>10.0} bytes", "of each path", grown * 1024.0 / paths)?;
    writeln!(out, "{:<48} {:>10} bytes", "sent", bench.sent)?;
    Ok(())
}

/// The blocks that the node has itself.
fn blocks() -> Result<Vec<Prefix>> {
    (0..64).map(|n| prefix(0x10_0000 + n)).collect()
}

fn peers(arguments: &Arguments) -> Vec<PeerKey> {
    (0..arguments.large).map(large).chain((0..arguments.small).map(small)).collect()
}

/// Brings all sessions up and all tables in; says how many kilobytes these take.
fn fill(bench: &mut Bench, arguments: &Arguments, tables: &[Vec<u8>]) -> Result<f64> {
    let peers = peers(arguments);
    bench.configure(&peers)?;
    bench.input(Input::SetOwn(Own::announced(blocks()?)));
    for peer in &peers {
        bench.open(*peer, true)?;
    }
    let before = resident()?;
    for (index, bytes) in (0..arguments.large).zip(tables) {
        bench.timed(&format!("table of peer {} in", index + 1), |bench| {
            bench.receive(large(index), bytes);
            bench.receive(large(index), &end_of_rib());
            Ok(())
        })?;
    }
    // The bench's own list of routes, and the copy by which its size is found.
    let start = resident()?;
    let copy = bench.kernel.clone();
    let grown = resident()? - before - 2.0 * (resident()? - start);
    drop(copy);
    ensure!(bench.kernel.len() == arguments.prefixes as usize, "{} routes", bench.kernel.len());
    for index in 0..arguments.small {
        let address = small(index).address;
        let path = AsPath::sequence([Asn::new(64513)?]);
        let attributes = PathAttributes::new(Origin::Igp, path, address);
        let mut bytes = Vec::new();
        let one = [prefix(0x20_0000 + u32::from(index))?];
        ensure!(wire::encode_updates(&attributes, Family::V4, &one, &session(), &mut bytes));
        bytes.extend(end_of_rib());
        bench.receive(small(index), &bytes);
    }
    Ok(grown)
}

/// What happens to full tables, until they are empty.
fn change(bench: &mut Bench, arguments: &Arguments, tables: &[Vec<u8>]) -> Result<()> {
    let peers = peers(arguments);
    bench.timed("small peers flap, all of them", |bench| {
        for index in 0..arguments.small {
            bench.close(small(index));
            bench.open(small(index), true)?;
            bench.receive(small(index), &end_of_rib());
        }
        Ok(())
    })?;
    bench.timed("a large peer restarts, its table comes again", |bench| {
        bench.close(large(0));
        bench.open(large(0), true)?;
        bench.receive(large(0), &tables[0]);
        bench.receive(large(0), &end_of_rib());
        Ok(())
    })?;
    bench.timed("a next hop gets far and near again", |bench| {
        for metric in [1, 0] {
            let state = NextHopState::Reachable { metric };
            bench.input(Input::NextHops(BTreeMap::from([(large(1).address.into(), state)])));
        }
        Ok(())
    })?;
    bench.timed("another block, told to all peers, 20 times", |bench| {
        for round in 0..20 {
            let more = prefix(0x11_0000 + round)?;
            bench.input(Input::SetOwn(Own::announced(blocks()?.into_iter().chain([more]))));
        }
        Ok(())
    })?;
    bench.timed("a picture of all peers", |bench| {
        ensure!(bench.speaker.peers().len() == peers.len());
        Ok(())
    })?;
    bench.timed("a large peer goes for good", |bench| {
        bench.configure(&peers.iter().copied().filter(|peer| *peer != large(0)).collect::<Vec<_>>())
    })?;
    bench.timed("the other large peers go", |bench| {
        bench.configure(&peers[usize::from(arguments.large)..])
    })?;
    ensure!(bench.kernel.is_empty(), "{} routes are left", bench.kernel.len());
    Ok(())
}
