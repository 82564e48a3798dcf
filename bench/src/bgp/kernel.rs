//! What a device has made the kernel do, seen from outside of it.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
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
    netlink: OwnedFd,
    near: u32,
    far: u32,
    destinations: Vec<Ipv4Addr>,
}

impl Ways {
    /// To be made in the device's namespace. The last ones are looked at more closely: most devices
    /// change routes in the order of prefixes.
    pub(crate) fn new(prefixes: u32) -> Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("cannot open a netlink socket")?;
        let spread = (0..prefixes).step_by((prefixes as usize / 200).max(1));
        let last = prefixes.saturating_sub(20)..prefixes;
        Ok(Self {
            netlink,
            near: if_nametoindex("eth0").context("there is no eth0")?,
            far: if_nametoindex("eth1").context("there is no eth1")?,
            destinations: spread.chain(last).map(destination).collect(),
        })
    }

    /// The link by which a destination is reached, if it is.
    fn link(&self, to: Ipv4Addr) -> Result<Option<u32>> {
        send(self.netlink.as_raw_fd(), &get_route(to), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        outgoing_link(answer.get(..length).unwrap_or_default())
            .with_context(|| format!("the kernel's answer about {to} is cut off"))
    }

    /// Whether every destination is reached by the other link.
    fn moved(&self) -> Result<bool> {
        for to in self.destinations.iter().rev() {
            if self.link(*to)? != Some(self.far) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every destination is reached: by the first link, or by both where they share.
    pub(crate) fn ready(&self, shared: bool) -> Result<bool> {
        let links: Vec<_> =
            self.destinations.iter().map(|to| self.link(*to)).collect::<Result<_>>()?;
        let through = |link| links.iter().filter(|found| **found == Some(link)).count();
        let (near, far) = (through(self.near), through(self.far));
        Ok(near + far == links.len() && near > 0 && shared == (far > 0))
    }

    /// Waits until all traffic goes by the other link; says when, or `None` if some does not after
    /// `patience`. It looks all the time, since a few milliseconds are what is measured.
    pub(crate) fn wait_moved(&self, patience: Duration) -> Result<Option<Instant>> {
        let end = Instant::now() + patience;
        loop {
            if self.moved()? {
                return Ok(Some(Instant::now()));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            thread::yield_now();
        }
    }
}

/// `RTM_GETROUTE` of one destination (rtnetlink(7)): `nlmsghdr`, `rtmsg`, `RTA_DST`.
fn get_route(to: Ipv4Addr) -> [u8; 36] {
    const GET_ROUTE: u16 = 26;
    const REQUEST: u16 = 1;
    const DESTINATION: u16 = 1;
    const INET: u8 = 2;
    let mut message = [0; 36];
    message[..4].copy_from_slice(&36_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&GET_ROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message[16..18].copy_from_slice(&[INET, 32]);
    message[28..30].copy_from_slice(&8_u16.to_ne_bytes());
    message[30..32].copy_from_slice(&DESTINATION.to_ne_bytes());
    message[32..].copy_from_slice(&to.octets());
    message
}

/// The link of a route that the kernel tells of; an outer `None` if that is no whole message, an
/// inner one if there is no route.
fn outgoing_link(answer: &[u8]) -> Option<Option<u32>> {
    const NEW_ROUTE: u16 = 24;
    const OUTGOING: u16 = 4;
    let short = |at: usize| Some(u16::from_ne_bytes(*answer.get(at..)?.first_chunk()?));
    if short(4)? != NEW_ROUTE {
        return Some(None);
    }
    let mut at = 28;
    while at < answer.len() {
        let (length, kind) = (usize::from(short(at)?), short(at + 2)?);
        if kind == OUTGOING {
            return Some(Some(u32::from_ne_bytes(*answer.get(at + 4..)?.first_chunk()?)));
        }
        // Attributes begin at multiples of four octets, and have a header of as many.
        at += length.max(4).next_multiple_of(4);
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_read_from_an_answer() {
        let mut answer = get_route(Ipv4Addr::new(10, 0, 0, 1)).to_vec();
        assert_eq!(outgoing_link(&answer), Some(None), "a request is no route");
        answer[4..6].copy_from_slice(&24_u16.to_ne_bytes());
        assert_eq!(outgoing_link(&answer), Some(None), "a route without a link");
        answer.extend([8_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
        assert_eq!(outgoing_link(&answer), None, "cut off");
        answer.extend(7_u32.to_ne_bytes());
        assert_eq!(outgoing_link(&answer), Some(Some(7)));
    }
}
