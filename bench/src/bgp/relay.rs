//! Routes in from one client of a route reflector, out to others.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use tokio::task::JoinSet;

use super::{
    config::{DEVICE, DEVICE_AS, PEERS_AS, Plan, peer_address},
    device::{Device, Kind},
    figures::Step,
    kernel,
    peer::{self, Identity, Peer},
    stream::{Announcer, Table},
};

/// How long a device may take to pass on one route until it is taken for one that passes on none.
const PROBE: Duration = Duration::from_secs(20);

/// Sessions that are being opened at a time: BIRD's queue of callers holds eight, OpenBGPD's five, and a
/// SYN that it drops comes again after seconds.
const DIALLING: usize = 5;

/// What came of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relayed {
    pub(crate) step: Step,
    pub(crate) peak_kib: u64,
}

fn client(index: u16) -> (Identity, Announcer) {
    let address = peer_address(index);
    let identity = Identity { address, asn: DEVICE_AS, hold_time: 0 };
    (identity, Announcer { address, asn: DEVICE_AS, internal: true, prepended: 0 })
}

fn end(patience: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + patience
}

/// Whether a device passes routes on at all.
pub(crate) fn probe(kind: Kind) -> Result<()> {
    one_to_one(kind, Table { prefixes: 1, shared: 1 }, false, PROBE).map(drop)
}

/// From the first octet that is written until the last prefix is read at the other client. With
/// `kernel_off` BIRD and FRR write none of it to the kernel; [`Kind::Bare`] never does.
pub(crate) fn one_to_one(
    kind: Kind,
    table: Table,
    kernel_off: bool,
    patience: Duration,
) -> Result<Relayed> {
    let device = Device::start(kind, Plan { kernel_off, ..Plan::with_peers(2, true) })?;
    let relayed = device.with_its_words(relay(&device, table, patience))?;
    device.finish()?;
    Ok(relayed)
}

fn relay(device: &Device, table: Table, patience: Duration) -> Result<Relayed> {
    let runtimes = [peer::runtime()?, peer::runtime()?];
    let (sender, announcer) = client(0);
    let (receiver, _) = client(1);
    let near = device.near()?;
    let dial = |at: usize, who| near.enter(|| runtimes[at].block_on(Peer::dial(who, DEVICE)));
    let (mut from, mut to) = (dial(0, sender)??, dial(1, receiver)??);
    let bytes = announcer.announce(0, table)?;
    let before = device.cpu_at_rest()?;
    let start = Instant::now();
    let wall = thread::scope(|scope| {
        let sending = scope.spawn(|| runtimes[0].block_on(from.send(&bytes)));
        let all = u64::from(table.prefixes);
        runtimes[1].block_on(to.receive(end(patience), |tally| tally.announced >= all))?;
        let wall = start.elapsed();
        sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        anyhow::Ok(wall)
    })?;
    let cpu = device.cpu_at_rest()? - before;
    let peak_kib = device.peak_kib()?;
    Ok(Relayed { step: Step { wall, cpu }, peak_kib })
}

/// Many sessions at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowd {
    pub(crate) sessions: u16,
    /// Prefixes of each.
    pub(crate) prefixes: u32,
    pub(crate) patience: Duration,
}

/// What came of one round with many sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowded {
    /// Until all are Established.
    pub(crate) established: Step,
    /// From the first announcement until everybody, or the kernel, has everything; `None` if that is the
    /// kernel, and the device writes nothing to it.
    pub(crate) converged: Option<Step>,
    pub(crate) peak_kib: u64,
}

impl Crowd {
    /// All announce, and the routes of all go to the kernel; nothing is passed on. That is a node in a
    /// full mesh.
    pub(crate) fn into_kernel(self, kind: Kind) -> Result<Crowded> {
        self.run(kind, false)
    }

    /// All announce, and everybody is told of the routes of all others.
    pub(crate) fn fan_out(self, kind: Kind) -> Result<Crowded> {
        self.run(kind, true)
    }

    fn run(self, kind: Kind, reflects: bool) -> Result<Crowded> {
        let device = Device::start(kind, Plan::with_peers(self.sessions, reflects))?;
        let crowded = device.with_its_words(self.measure(&device, reflects))?;
        device.finish()?;
        Ok(crowded)
    }

    fn measure(self, device: &Device, reflects: bool) -> Result<Crowded> {
        let near = device.near()?;
        let runtime = peer::runtime()?;
        let before = device.cpu_at_rest()?;
        let start = Instant::now();
        let peers = near.enter(|| runtime.block_on(self.dial(reflects)))??;
        let wall = start.elapsed();
        let rested = device.cpu_at_rest()?;
        let established = Step { wall, cpu: rested - before };
        let base = kernel::prefixes(device.namespace()?)?;
        let messages = (0..self.sessions)
            .map(|index| self.messages(index, reflects))
            .collect::<Result<Vec<_>>>()?;
        let sum = u32::from(self.sessions) * self.prefixes;
        let expected = if reflects { u64::from(sum - self.prefixes) } else { 0 };
        let start = Instant::now();
        let _peers = runtime.block_on(self.exchange(peers, messages, expected))?;
        let last = if reflects {
            Some(Instant::now())
        } else if device.kind().writes_kernel_routes() {
            Some(kernel::wait_prefixes(device.namespace()?, base + sum, self.patience)?)
        } else {
            None
        };
        let cpu = device.cpu_at_rest()? - rested;
        let converged = last.map(|last| Step { wall: last - start, cpu });
        let peak_kib = device.peak_kib()?;
        Ok(Crowded { established, converged, peak_kib })
    }

    async fn dial(self, reflects: bool) -> Result<Vec<Peer>> {
        let mut dialling = JoinSet::new();
        let mut indices = 0..self.sessions;
        let mut peers = Vec::new();
        loop {
            while dialling.len() < DIALLING
                && let Some(index) = indices.next()
            {
                let (mut identity, _) = client(index);
                identity.asn = if reflects { DEVICE_AS } else { PEERS_AS };
                dialling.spawn(async move { (index, Peer::dial(identity, DEVICE).await) });
            }
            let Some(dialled) = dialling.join_next().await else {
                break;
            };
            let (index, peer) = dialled?;
            peers.push((index, peer?));
        }
        peers.sort_by_key(|(index, _)| *index);
        Ok(peers.into_iter().map(|(_, peer)| peer).collect())
    }

    fn messages(self, index: u16, reflects: bool) -> Result<Vec<u8>> {
        let (_, mut announcer) = client(index);
        if !reflects {
            (announcer.asn, announcer.internal) = (PEERS_AS, false);
        }
        let table = Table { prefixes: self.prefixes, shared: self.prefixes };
        announcer.announce(u32::from(index) * self.prefixes, table)
    }

    /// Gives the peers back: as long as they live, so do their sessions.
    async fn exchange(
        self,
        peers: Vec<Peer>,
        messages: Vec<Vec<u8>>,
        expected: u64,
    ) -> Result<Vec<Peer>> {
        let end = end(self.patience);
        let mut tasks = JoinSet::new();
        for (mut peer, bytes) in peers.into_iter().zip(messages) {
            tasks.spawn(async move {
                peer.send(&bytes).await?;
                peer.receive(end, |tally| tally.announced >= expected).await?;
                anyhow::Ok(peer)
            });
        }
        let mut done = Vec::new();
        while let Some(peer) = tasks.join_next().await {
            done.push(peer?.with_context(|| format!("of {} sessions", self.sessions))?);
        }
        Ok(done)
    }
}
