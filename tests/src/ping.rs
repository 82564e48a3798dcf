//! Pings at short intervals from many namespaces at once, every packet accounted for.
//!
//! Raw ICMP sockets instead of `ping` processes: one thread per source, however many targets.

use std::{
    collections::BTreeMap,
    fmt,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use twill_sys::netns::Netns;

use crate::netns::Namespace;

/// How long the last replies may take, where each lost one counts.
const GRACE: Duration = Duration::from_secs(1);

/// How long a reply may take where it is asked for once: a neighbour who was asked a moment too early is asked again
/// after a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of one pair's packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Name of the source.
    pub from: String,
    /// The target.
    pub to: Option<IpAddr>,
    /// Echo requests sent.
    pub sent: u32,
    /// Different ones answered.
    pub received: u32,
    /// Requests that the source's own kernel refused (no route, unreachable route).
    pub refused: u32,
    /// Number of the first and the last lost request.
    pub lost_between: Option<(u32, u32)>,
    /// Longest round trip.
    pub slowest: Duration,
}

impl Tally {
    /// Requests without an answer.
    pub fn lost(&self) -> u32 {
        self.sent - self.received
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.map_or_else(String::new, |to| to.to_string());
        write!(f, "{} -> {to}: {} of {} answered", self.from, self.received, self.sent)?;
        if let Some((first, last)) = self.lost_between {
            write!(f, ", lost between {first} and {last}, {} refused", self.refused)?;
        }
        write!(f, ", slowest {:.1} ms", self.slowest.as_secs_f64() * 1e3)
    }
}

/// One source with its targets.
pub struct Source<'a> {
    /// Its name, for the report.
    pub name: &'a str,
    /// Where the packets start.
    pub namespace: &'a Namespace,
    /// Whom it asks.
    pub targets: Vec<IpAddr>,
}

/// Pings that run until [`Pinger::stop`].
pub struct Pinger {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Tally>>>>,
    /// How often each thread has asked all its targets.
    rounds: Vec<Arc<AtomicUsize>>,
}

impl Pinger {
    /// Starts one thread per source; each target gets a request every `interval`. Returns once
    /// all of them have sent their first.
    pub fn start(sources: Vec<Source<'_>>, interval: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut pinger = Self { stop, threads: Vec::new(), rounds: Vec::new() };
        for source in sources {
            let name = source.name.to_owned();
            let netns = Netns::open(source.namespace.path())?;
            // Sockets stay in the namespace in which they were made; the thread need not.
            let lanes = netns.enter(|| {
                source.targets.iter().map(|target| Lane::new(&name, *target)).collect::<Result<_>>()
            })??;
            let rounds = Arc::new(AtomicUsize::new(0));
            pinger.rounds.push(rounds.clone());
            let stop = pinger.stop.clone();
            let work = move || send_until(lanes, interval, &stop, &rounds);
            pinger.threads.push(thread::Builder::new().name(format!("ping-{name}")).spawn(work)?);
        }
        pinger.wait_rounds(1)?;
        Ok(pinger)
    }

    /// Waits until every target has got this many more requests.
    pub fn wait_rounds(&self, count: usize) -> Result<()> {
        let now = self.rounds.iter().map(|rounds| rounds.load(Ordering::Acquire));
        let goals: Vec<_> = now.map(|rounds| rounds + count).collect();
        for ((rounds, goal), thread) in self.rounds.iter().zip(goals).zip(&self.threads) {
            while rounds.load(Ordering::Acquire) < goal {
                ensure!(!thread.is_finished(), "a pinger ended early");
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Stops sending, waits for the last answers, and counts.
    pub fn stop(mut self) -> Result<Vec<Tally>> {
        self.stop.store(true, Ordering::Release);
        let mut tallies = Vec::new();
        for thread in self.threads.drain(..) {
            tallies.extend(thread.join().map_err(|_| anyhow!("a pinger panicked"))??);
        }
        Ok(tallies)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// `count` requests from a namespace to one target, `interval` apart.
pub fn ping(from: &Namespace, to: IpAddr, count: u32, interval: Duration) -> Result<Tally> {
    ping_for(from, to, count, interval, GRACE)
}

fn ping_for(
    from: &Namespace,
    to: IpAddr,
    count: u32,
    interval: Duration,
    grace: Duration,
) -> Result<Tally> {
    let lane = Netns::open(from.path())?.enter(|| Lane::new(from.name(), to))??;
    let mut lanes = [lane];
    let start = Instant::now();
    for number in 0..count {
        lanes[0].send();
        receive_until(&mut lanes, start + interval * (number + 1), |lanes| {
            number + 1 == count && lanes[0].complete()
        })?;
    }
    receive_until(&mut lanes, Instant::now() + grace, |lanes| lanes[0].complete())?;
    let [lane] = lanes;
    Ok(lane.finish())
}

/// One request, answered in five seconds.
pub fn reaches(from: &Namespace, to: IpAddr) -> Result<()> {
    let tally = ping_for(from, to, 1, Duration::ZERO, PATIENCE)?;
    ensure!(tally.received == 1, "no answer: {tally}");
    Ok(())
}

fn send_until(
    mut lanes: Vec<Lane>,
    interval: Duration,
    stop: &AtomicBool,
    rounds: &AtomicUsize,
) -> Result<Vec<Tally>> {
    let mut next = Instant::now();
    while !stop.load(Ordering::Acquire) {
        for lane in &mut lanes {
            lane.send();
        }
        rounds.fetch_add(1, Ordering::Release);
        next += interval;
        receive_until(&mut lanes, next, |_| false)?;
    }
    let complete = |lanes: &[Lane]| lanes.iter().all(Lane::complete);
    receive_until(&mut lanes, Instant::now() + GRACE, complete)?;
    Ok(lanes.into_iter().map(Lane::finish).collect())
}

/// Takes answers until the deadline or until `enough`. Looks once at least.
fn receive_until(
    lanes: &mut [Lane],
    deadline: Instant,
    enough: impl Fn(&[Lane]) -> bool,
) -> Result<()> {
    loop {
        for lane in lanes.iter_mut() {
            lane.receive()?;
        }
        let now = Instant::now();
        if enough(lanes) || now >= deadline {
            return Ok(());
        }
        thread::sleep((deadline - now).min(Duration::from_millis(1)));
    }
}

/// One source and one target.
struct Lane {
    tally: Tally,
    target: SocketAddr,
    socket: UdpSocket,
    ident: u16,
    waiting: BTreeMap<u32, Instant>,
}

impl Lane {
    /// Opens a socket in the calling thread's namespace.
    fn new(from: &str, target: IpAddr) -> Result<Self> {
        static IDENT: AtomicUsize = AtomicUsize::new(1);
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let raw = socket(family, SockType::Raw, flags, Some(protocol))
            .context("cannot open an ICMP socket")?;
        let ident = IDENT.fetch_add(1, Ordering::Relaxed) & 0xffff;
        let target = SocketAddr::new(target, 0);
        // std has no raw sockets; sending and receiving is the same for all kinds.
        let socket = UdpSocket::from(raw);
        // Spares each socket the packets of all others. Without a route it fails, then the
        // requests are refused one by one.
        let _ = socket.connect(target);
        Ok(Self {
            tally: Tally { from: from.to_owned(), to: Some(target.ip()), ..Tally::default() },
            target,
            socket,
            ident: u16::try_from(ident)?,
            waiting: BTreeMap::new(),
        })
    }

    fn send(&mut self) {
        let number = self.tally.sent;
        let [_, _, high, low] = number.to_be_bytes();
        let ident = self.ident.to_be_bytes();
        // Type, code, checksum, identifier, sequence number, the whole number.
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0, ident[0], ident[1], high, low];
        packet.extend(number.to_be_bytes());
        if self.target.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 alone.
            let sum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        self.tally.sent += 1;
        self.waiting.insert(number, Instant::now());
        if self.socket.send_to(&packet, self.target).is_err() {
            self.tally.refused += 1;
        }
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 256];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A pending error of an earlier packet; that packet stays unanswered.
                Err(_) => continue,
            };
            if let Some(number) = self.answer(&buffer[..length])
                && from.ip() == self.target.ip()
                && let Some(sent) = self.waiting.remove(&number)
            {
                self.tally.received += 1;
                self.tally.slowest = self.tally.slowest.max(sent.elapsed());
            }
        }
    }

    /// The number of our request that this packet answers.
    fn answer(&self, packet: &[u8]) -> Option<u32> {
        // A raw IPv4 socket gives the IP header too.
        let (header, reply) = match self.target {
            SocketAddr::V4(_) => (usize::from(packet.first()? & 0x0f) * 4, 0),
            SocketAddr::V6(_) => (0, 129),
        };
        let icmp = packet.get(header..)?;
        let ours = icmp.first() == Some(&reply) && icmp.get(4..6)? == self.ident.to_be_bytes();
        ours.then_some(())?;
        Some(u32::from_be_bytes(icmp.get(8..12)?.try_into().ok()?))
    }

    fn complete(&self) -> bool {
        self.waiting.is_empty()
    }

    fn finish(mut self) -> Tally {
        let mut numbers = self.waiting.keys();
        if let Some(first) = numbers.next() {
            self.tally.lost_between = Some((*first, *numbers.next_back().unwrap_or(first)));
        }
        self.tally
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}
