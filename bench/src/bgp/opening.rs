//! From the start of the device's program until a session that it opens itself is Established.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    config::{PEERS_AS, Plan, peer_address},
    device::{Device, Kind},
    peer::{self, Identity, Peer},
};

/// One round: the peer listens before the device is started.
pub(crate) fn measure(kind: Kind) -> Result<Duration> {
    let plan = Plan { dials: true, ..Plan::with_peers(1, false) };
    let mut device = Device::prepare(kind, plan)?;
    let runtime = peer::runtime()?;
    let identity = Identity { address: peer_address(0), asn: PEERS_AS, hold_time: 0 };
    let listener = device.near()?.enter(|| runtime.block_on(Peer::listen(identity)))??;
    let start = Instant::now();
    device.launch()?;
    let _peer = runtime.block_on(Peer::accept(identity, &listener))?;
    let wall = start.elapsed();
    device.finish()?;
    Ok(wall)
}
