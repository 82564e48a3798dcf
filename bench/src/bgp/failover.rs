//! A next hop dies, and all routes by it lead to the other one.

use std::{
    fmt,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use twill_tests::wait::wait_until;

use super::{
    config::{DEVICE, OTHER, PEERS_AS, Plan, Session, peer_address},
    device::{Device, Kind},
    kernel::Ways,
    peer::{self, Identity, Peer},
    stream::{Announcer, Table},
};

/// The peer on the other link.
const FAR: Ipv4Addr = Ipv4Addr::new(172, 17, 1, 1);

/// How long a device may take until it has both tables in the kernel.
const SETTLE: Duration = Duration::from_secs(60);

/// How a next hop dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its process ends, and TCP with it.
    PeerKilled,
    /// The other end of the wire goes down.
    CarrierLost,
    /// The device's own link is set down.
    LinkSetDown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerKilled => "peer killed",
            Self::CarrierLost => "carrier lost",
            Self::LinkSetDown => "link set down",
        })
    }
}

/// All causes.
pub(crate) const CAUSES: [Cause; 3] = [Cause::PeerKilled, Cause::CarrierLost, Cause::LinkSetDown];

/// Whether the routes share the traffic between both next hops before, or one stands by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failover {
    pub(crate) cause: Cause,
    pub(crate) shared: bool,
    /// `net.ipv4.nexthop_compat_mode`: the kernel tells every route of a changed next hop object.
    pub(crate) compatible: bool,
}

impl Failover {
    /// From the cause until no route leads to the dead next hop; `None` if some do after `patience`.
    pub(crate) fn measure(
        self,
        kind: Kind,
        table: Table,
        patience: Duration,
    ) -> Result<Option<Duration>> {
        let near = Session { peer: peer_address(0), local: DEVICE, asn: PEERS_AS };
        let far = Session { peer: FAR, local: OTHER, asn: PEERS_AS };
        let plan = Plan { sessions: vec![near, far], ..Plan::default() };
        let mut device = Device::prepare(kind, plan)?;
        let mode = if self.compatible { "1" } else { "0" };
        device.namespace()?.sysctl("ipv4/nexthop_compat_mode", mode)?;
        device.launch()?;
        device.wait_ready()?;
        let runtime = peer::runtime()?;
        let first = self.feed(&device, &runtime, near, 0, table)?;
        let prepended = if self.shared { 0 } else { 2 };
        let _second = self.feed(&device, &runtime, far, prepended, table)?;
        let namespace = device.namespace()?;
        let ways = namespace.enter(|| Ways::new(table.prefixes))??;
        wait_until("both next hops to have their part", SETTLE, || ways.ready(self.shared))
            .with_context(|| format!("{kind}"))?;
        device.cpu_at_rest()?;
        let start = Instant::now();
        match self.cause {
            Cause::PeerKilled => drop(first),
            Cause::CarrierLost => device.cut()?,
            Cause::LinkSetDown => drop(namespace.ip("link set eth0 down")?),
        }
        let moved = ways.wait_moved(patience)?;
        device.finish()?;
        Ok(moved.map(|moved| moved - start))
    }

    fn feed(
        self,
        device: &Device,
        runtime: &tokio::runtime::Runtime,
        session: Session,
        prepended: usize,
        table: Table,
    ) -> Result<Peer> {
        let identity = Identity { address: session.peer, asn: session.asn, hold_time: 0 };
        let namespace = if session.local == DEVICE { device.near()? } else { device.far()? };
        let mut peer =
            namespace.enter(|| runtime.block_on(Peer::dial(identity, session.local)))??;
        let announcer =
            Announcer { address: session.peer, asn: session.asn, internal: false, prepended };
        runtime.block_on(peer.send(&announcer.announce(0, table)?))?;
        Ok(peer)
    }
}
