//! Peers whose TCP does not do what it should: what comes of it stays with them. Beside each of them
//! another has the shortest hold time there is, and does not notice.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use twill_bgp_proto::wire::{self, MessageType};
use twill_tests::{lab::Lab, netns::Namespace, wait::wait_for};

use crate::{
    LONG,
    sessions::{Raw, silent_tors, stay_calm},
};

const TOR1: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
const TOR2: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
/// What the one that is contained announces, and the other one.
const ROUTE: &str = "198.51.120.0/24";
const CALM_ROUTE: &str = "198.51.100.0/24";

/// Does something to the node while another peer looks on.
fn beside_a_calm_peer(lab: &Lab, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let node = lab.node("node1")?;
    let mut calm = Raw::establish(lab.router("tor2")?, TOR2, 3)?;
    let route = calm.update(CALM_ROUTE.parse()?, TOR2.into(), 0)?;
    calm.stream.write_all(&route)?;
    node.wait_route(CALM_ROUTE, LONG)?;
    let ended = AtomicBool::new(false);
    let silence = thread::scope(|scope| -> Result<Duration> {
        let calm = scope.spawn(|| stay_calm(calm, &ended));
        let acted = act();
        let peer = node.peer("192.168.2.2");
        let route = node.wait_route(CALM_ROUTE, LONG);
        ended.store(true, Ordering::Relaxed);
        let silence = calm.join().map_err(|_| anyhow!("the calm peer panicked"))??;
        acted?;
        route?;
        let peer = peer?;
        ensure!(peer["state"] == "Established" && peer["flaps"] == 0, "{peer}");
        Ok(silence)
    })?;
    // One is due each second at the latest.
    ensure!(silence < Duration::from_secs(2), "the node said nothing for {silence:?}");
    Ok(())
}

/// Ends a connection: with an RST, which may overtake what was sent before it, or with a FIN behind it.
fn end(raw: Raw, is_reset: bool) -> Result<()> {
    if is_reset {
        setsockopt(&raw.stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    drop(raw);
    Ok(())
}

/// A session on which the node has said what it has to say, so that it is Established there too.
fn establish(machine: &Namespace) -> Result<Raw> {
    let mut raw = Raw::establish(machine, TOR1, 0)?;
    let (kind, body) = raw.message()?;
    ensure!(kind == MessageType::Update, "{kind:?} {body:?}");
    Ok(raw)
}

/// Breaks after each number of octets of an OPEN, and of an UPDATE. Nothing of what was not whole is
/// known afterwards, and the next connection is taken as if nothing had been.
pub(crate) fn a_peer_that_resets_at_every_octet_is_forgotten() -> Result<()> {
    let lab = silent_tors()?;
    let (node, tor) = (lab.node("node1")?, lab.router("tor1")?);
    beside_a_calm_peer(&lab, || {
        let open = wire::encode_open(&Raw::open(TOR1, 0)?);
        for (count, is_reset) in (0..=open.len()).flat_map(|count| [(count, true), (count, false)])
        {
            let mut raw = Raw::connect(tor)?;
            raw.stream.write_all(&open[..count])?;
            end(raw, is_reset)?;
        }
        let mut raw = establish(tor)?;
        let update = raw.update(ROUTE.parse()?, IpAddr::from(TOR1), 0)?;
        for (count, is_reset) in (0..update.len()).flat_map(|count| [(count, true), (count, false)])
        {
            raw.stream.write_all(&update[..count])?;
            end(raw, is_reset)?;
            raw = establish(tor)?;
        }
        let peer = node.peer("192.168.2.1")?;
        ensure!(peer["state"] == "Established" && peer["prefixesIn"] == 0, "{peer}");
        ensure!(peer["flaps"].as_u64() == u64::try_from(update.len() * 2).ok(), "{peer}");
        node.wait_no_route(ROUTE, LONG)?;
        raw.stream.write_all(&update)?;
        node.wait_route(ROUTE, LONG)?;
        end(raw, true)?;
        node.wait_no_route(ROUTE, LONG)
    })
}

/// Octets that never become a message are no sign of life.
pub(crate) fn a_peer_that_stalls_in_a_message_is_ended_by_the_hold_timer() -> Result<()> {
    let lab = silent_tors()?;
    let node = lab.node("node1")?;
    beside_a_calm_peer(&lab, || {
        let mut raw = Raw::establish(lab.router("tor1")?, TOR1, 3)?;
        let first = raw.update(ROUTE.parse()?, IpAddr::from(TOR1), 0)?;
        raw.stream.write_all(&first)?;
        node.wait_route(ROUTE, LONG)?;
        let begin = Instant::now();
        // An UPDATE of the longest kind, one octet at a time.
        raw.stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut octets = [0xff; 16].into_iter().chain([16, 0, 2]).chain(std::iter::repeat(0));
        let said = loop {
            ensure!(begin.elapsed() < LONG, "the session goes on");
            raw.stream.write_all(&[octets.next().unwrap_or_default()])?;
            match raw.poll() {
                Ok(_) => {}
                Err(said) => break said.to_string(),
            }
        };
        ensure!(said.contains("Hold Timer Expired (4/0)"), "{said}");
        ensure!(begin.elapsed() < Duration::from_secs(6), "after {:?}", begin.elapsed());
        node.wait_no_route(ROUTE, LONG)
    })
}

/// However TCP cuts it, it is the same.
pub(crate) fn a_peer_that_sends_single_octets_is_understood() -> Result<()> {
    let lab = silent_tors()?;
    let node = lab.node("node1")?;
    beside_a_calm_peer(&lab, || {
        let mut raw = Raw::connect(lab.router("tor1")?)?;
        raw.stream.set_nodelay(true)?;
        let open = Raw::open(TOR1, 0)?;
        let say = |raw: &mut Raw, bytes: &[u8]| -> Result<()> {
            bytes.iter().try_for_each(|octet| Ok(raw.stream.write_all(&[*octet])?))
        };
        say(&mut raw, &wire::encode_open(&open))?;
        raw.confirm(&open)?;
        say(&mut raw, &wire::encode_keepalive())?;
        raw.confirmed()?;
        let update = raw.update(ROUTE.parse()?, IpAddr::from(TOR1), 0)?;
        say(&mut raw, &update)?;
        node.wait_route(ROUTE, LONG)?;
        wait_for("three messages", LONG, || {
            let peer = node.peer("192.168.2.1")?;
            ensure!(peer["messagesIn"] == 3 && peer["flaps"] == 0, "{peer}");
            Ok(())
        })
    })
}
