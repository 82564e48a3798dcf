//! What a device has made the kernel do, seen from outside of it.

use std::{
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use twill_tests::netns::Namespace;

use super::stream::destination;

/// Between two looks; a look at 100,000 routes takes some milliseconds.
const PERIOD: Duration = Duration::from_millis(2);

/// IPv4 prefixes. To be called inside. The main table and the local one are one trie, whose numbers
/// are told for both, as long as nobody adds a rule.
fn prefixes_here() -> Result<u32> {
    let path = "/proc/thread-self/net/fib_triestat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut counts = text.lines().filter_map(|line| line.trim().strip_prefix("Prefixes:"));
    let count = counts.next().with_context(|| format!("{path} counts no prefixes"))?;
    Ok(count.trim().parse()?)
}

/// IPv4 prefixes of a namespace.
pub(crate) fn prefixes(namespace: &Namespace) -> Result<u32> {
    namespace.enter(prefixes_here)?
}

/// Waits until there are so many prefixes; says when.
pub(crate) fn wait_prefixes(
    namespace: &Namespace,
    count: u32,
    patience: Duration,
) -> Result<Instant> {
    namespace.enter(|| {
        let end = Instant::now() + patience;
        loop {
            let there = prefixes_here()?;
            let now = Instant::now();
            if there == count {
                return Ok(now);
            }
            ensure!(
                now < end,
                "the kernel has {there} of {count} prefixes after {} s",
                patience.as_secs()
            );
            thread::sleep(PERIOD);
        }
    })?
}

/// Looks up routes as packets do, at some destinations all over the table.
pub(crate) struct Ways {
    any: UdpSocket,
    near: UdpSocket,
    far: UdpSocket,
    destinations: Vec<Ipv4Addr>,
}

impl Ways {
    /// To be made in the device's namespace. The last ones are looked at more closely: most devices
    /// change routes in the order of prefixes.
    pub(crate) fn new(prefixes: u32) -> Result<Self> {
        let bound = |link: Option<&str>| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            if let Some(link) = link {
                setsockopt(&socket, BindToDevice, &link.into())?;
            }
            Ok(socket)
        };
        let spread = (0..prefixes).step_by((prefixes as usize / 200).max(1));
        let last = prefixes.saturating_sub(20)..prefixes;
        Ok(Self {
            any: bound(None)?,
            near: bound(Some("eth0"))?,
            far: bound(Some("eth1"))?,
            destinations: spread.chain(last).map(destination).collect(),
        })
    }

    /// Whether every destination is reached, by the other link, and none by the first.
    fn moved(&self) -> bool {
        // Connecting a datagram socket looks the route up, and sends nothing.
        let leads =
            |socket: &UdpSocket, to: Ipv4Addr| -> io::Result<()> { socket.connect((to, 9)) };
        self.destinations.iter().rev().all(|to| {
            leads(&self.near, *to).is_err()
                && leads(&self.far, *to).is_ok()
                && leads(&self.any, *to).is_ok()
        })
    }

    /// Whether every destination is reached by the first link, and by the other only if `both`.
    pub(crate) fn ready(&self, both: bool) -> bool {
        self.destinations.iter().all(|to| {
            self.near.connect((*to, 9)).is_ok() && self.far.connect((*to, 9)).is_ok() == both
        })
    }

    /// Waits until all traffic goes by the other link; says when. It looks all the time, since a few
    /// milliseconds are what is measured.
    pub(crate) fn wait_moved(&self, patience: Duration) -> Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            if self.moved() {
                return Ok(Instant::now());
            }
            if Instant::now() >= end {
                bail!("routes lead to the dead next hop after {} s", patience.as_secs());
            }
            thread::yield_now();
        }
    }
}
