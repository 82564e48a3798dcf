//! Routes in, until the kernel has them, and out again; and what a full table costs afterwards.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    config::{DEVICE, PEERS_AS, Plan, peer_address},
    device::{Device, Kind},
    figures::Step,
    kernel,
    peer::{self, Identity, Peer},
    stream::{Announcer, Table},
};

/// What came of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) receive: Step,
    pub(crate) withdraw: Step,
    pub(crate) peak_kib: u64,
}

/// A device with one external peer that announces.
struct Fed {
    device: Device,
    runtime: tokio::runtime::Runtime,
    peer: Peer,
    announcer: Announcer,
    /// Prefixes in the kernel before anything was announced.
    base: u32,
    patience: Duration,
}

impl Fed {
    fn start(kind: Kind, plan: Plan, patience: Duration) -> Result<Self> {
        let device = Device::start(kind, plan)?;
        let runtime = peer::runtime()?;
        let address = peer_address(0);
        let identity = Identity { address, asn: PEERS_AS, hold_time: 0 };
        let dial = || runtime.block_on(Peer::dial(identity, DEVICE));
        let peer = device.near()?.enter(dial)??;
        device.cpu_at_rest()?;
        let base = kernel::prefixes(device.namespace()?)?;
        let announcer = Announcer { address, asn: PEERS_AS, internal: false, prepended: 0 };
        Ok(Self { device, runtime, peer, announcer, base, patience })
    }

    /// From the first octet that is written until the kernel has `count` prefixes more.
    fn step(&mut self, bytes: &[u8], count: u32) -> Result<Step> {
        let before = self.device.cpu()?;
        let namespace = self.device.namespace()?;
        let (runtime, peer) = (&self.runtime, &mut self.peer);
        let start = Instant::now();
        let end = thread::scope(|scope| {
            let sender = scope.spawn(|| runtime.block_on(peer.send(bytes)));
            let end = kernel::wait_prefixes(namespace, self.base + count, self.patience)?;
            sender.join().map_err(|_| anyhow!("the sender panicked"))??;
            anyhow::Ok(end)
        })?;
        let cpu = self.device.cpu_at_rest()? - before;
        Ok(Step { wall: end - start, cpu })
    }
}

/// One round: all in, all out. With `objects_on` Twill's routes name nexthop objects.
pub(crate) fn measure(
    kind: Kind,
    table: Table,
    objects_on: bool,
    patience: Duration,
) -> Result<Received> {
    let plan = Plan { objects_on, ..Plan::with_peers(1, false) };
    let mut fed = Fed::start(kind, plan, patience)?;
    let announce = fed.announcer.announce(0, table)?;
    let withdraw = fed.announcer.withdraw(0, table.prefixes)?;
    let receive = fed.step(&announce, table.prefixes).context("announced")?;
    let peak_kib = fed.device.peak_kib()?;
    let withdraw = fed.step(&withdraw, 0).context("withdrawn")?;
    fed.device.finish()?;
    Ok(Received { receive, withdraw, peak_kib })
}

/// How much of a core a device takes that has a table and nothing to do, in percent.
pub(crate) fn idle(kind: Kind, table: Table, watched: Duration, patience: Duration) -> Result<f64> {
    // What Calico sets: BIRD looks at all kernel routes every two seconds.
    let plan = Plan { bird_scan: Some(2), ..Plan::with_peers(1, false) };
    let mut fed = Fed::start(kind, plan, patience)?;
    let announce = fed.announcer.announce(0, table)?;
    fed.step(&announce, table.prefixes)?;
    let before = fed.device.cpu()?;
    let start = Instant::now();
    // Time is what is measured here, not waited for.
    thread::sleep(watched);
    let used = fed.device.cpu()? - before;
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    fed.device.finish()?;
    Ok(share * 100.0)
}
