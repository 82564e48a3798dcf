//! A connection from one pod to another that must not lose a byte.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use twill_sys::{Netns, in_netns};
use twill_tests::wait::wait_for;

use super::{
    LONG,
    site::{Pod, Site},
};

const PORT: u16 = 9000;

/// Between two numbers.
const PERIOD: Duration = Duration::from_millis(2);

/// The longest time without a number, beside what the machine itself was late. A connection outlives a lost route: who
/// lost one would see the numbers come late, after as long as TCP waits before it sends again, twice as long each time.
const GAP: Duration = Duration::from_secs(2);

/// What went over a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) numbers: u64,
    /// The longest time between two that came.
    pub(crate) gap: Duration,
    /// The longest time that the sender slept beyond [`PERIOD`], because the machine was busy.
    pub(crate) overslept: Duration,
}

/// Numbers that go from one pod to another, one after the other, over one connection.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    /// The last number that came.
    last: Arc<AtomicU64>,
    sender: JoinHandle<Result<(u64, Duration)>>,
    receiver: JoinHandle<Result<Duration>>,
}

impl Stream {
    /// Begins, once the connection is there: the receiver's may be the first address of a block, of which
    /// other nodes hear a moment later.
    pub(crate) fn start(site: &Site, from: &Pod, to: &Pod) -> Result<Self> {
        let namespace = |pod: &Pod| -> Result<Netns> {
            Ok(Netns::open(site.cluster.node(&pod.node)?.pod_namespace(&pod.name)?)?)
        };
        let (here, there) = (namespace(from)?, namespace(to)?);
        let listener = in_netns(&there, || TcpListener::bind(("0.0.0.0", PORT)))??;
        let address = to.address;
        let connection = wait_for("a connection between the pods", LONG, || {
            Ok(in_netns(&here, || {
                TcpStream::connect_timeout(&(address, PORT).into(), Duration::from_secs(1))
            })??)
        })?;
        let (accepted, _) = listener.accept().context("no connection has come")?;
        let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let told = Arc::clone(&stop);
        let sender = thread::spawn(move || send(connection, &told));
        let seen = Arc::clone(&last);
        let receiver = thread::spawn(move || receive(accepted, &seen));
        Ok(Self { stop, last, sender, receiver })
    }

    /// Waits until a hundred more numbers have come.
    pub(crate) fn wait_more(&self) -> Result<()> {
        let before = self.last.load(Ordering::Relaxed);
        wait_for("more numbers", LONG, || {
            let now = self.last.load(Ordering::Relaxed);
            ensure!(now >= before + 100, "{} came", now - before);
            Ok(())
        })
    }

    /// Ends it, and says what went. Fails if a number did not come, or came late.
    pub(crate) fn finish(self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |_| anyhow!("a thread of the stream panicked");
        let (numbers, overslept) = self.sender.join().map_err(ended)??;
        let gap = self.receiver.join().map_err(ended)??;
        let last = self.last.load(Ordering::Relaxed);
        ensure!(last == numbers, "{numbers} numbers were sent, {last} came");
        ensure!(
            gap < GAP + overslept,
            "no number came for {gap:?}; the sender overslept {overslept:?}"
        );
        Ok(Sent { numbers, gap, overslept })
    }
}

/// How many numbers went, and the longest time slept beyond [`PERIOD`].
fn send(mut connection: TcpStream, stop: &AtomicBool) -> Result<(u64, Duration)> {
    connection.set_nodelay(true)?;
    let (mut number, mut overslept) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        writeln!(connection, "{number}").context("the connection broke")?;
        let asleep = Instant::now();
        thread::sleep(PERIOD);
        overslept = overslept.max(asleep.elapsed().saturating_sub(PERIOD));
    }
    Ok((number, overslept))
}

/// The longest time between two numbers.
fn receive(connection: TcpStream, last: &AtomicU64) -> Result<Duration> {
    let (mut gap, mut came) = (Duration::ZERO, Instant::now());
    for line in BufReader::new(connection).lines() {
        let number: u64 = line.context("the connection broke")?.parse()?;
        let before = last.swap(number, Ordering::Relaxed);
        ensure!(number == before + 1, "{number} came after {before}");
        gap = gap.max(came.elapsed());
        came = Instant::now();
    }
    Ok(gap)
}
