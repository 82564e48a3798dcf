//! The speaker alone, without its daemon and without a kernel: what BIRD is with its kernel routes off.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::Command as Program,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use twill_bgp_proto::{NextHopState, PeerConfig, PeerKey, PeerKind, Reflection, SpeakerConfig};
use twill_bgp_speaker::{Command, Report};
use twill_types::{Asn, Family};

use super::config::{DEVICE, DEVICE_AS, peer_address};

/// The argument with which this program is that speaker.
const ROLE: &str = "bare-speaker";

/// The program with which a device runs a speaker that reflects the routes of so many clients.
pub(super) fn program(clients: u16) -> Result<Program> {
    let mut program = Program::new(env::current_exe().context("cannot find my own program file")?);
    program.arg(ROLE).arg(clients.to_string());
    Ok(program)
}

/// What came of this program's run as a speaker without a daemon, if that is what it was started as. To be
/// called first in `main`.
pub fn bare_speaker() -> Option<Result<()>> {
    let mut arguments = env::args().skip(1);
    (arguments.next()? == ROLE).then(|| {
        let clients = arguments.next().context("how many clients?")?.parse()?;
        twill_sys::share_heap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build()?;
        runtime.block_on(speak(clients))
    })
}

/// Speaks until the process is ended. Each next hop is taken for reachable, as there is no kernel to ask.
async fn speak(clients: u16) -> Result<()> {
    let asn = Asn::new(DEVICE_AS)?;
    let config = SpeakerConfig {
        router_id: DEVICE,
        asn,
        seed: 1,
        hostname: String::new(),
        forwarding: BTreeSet::new(),
        selection_deferral: Duration::from_secs(30),
        max_paths: 16,
    };
    let peer = |index: u16| {
        let address = peer_address(index).into();
        let config = PeerConfig {
            local_address: Some(DEVICE.into()),
            families: [Family::V4].into(),
            passive: true,
            client: true,
            ..PeerConfig::new("client", PeerKind::Global, asn)
        };
        (PeerKey { address, port: 179 }, config)
    };
    let (reports, mut reported) = mpsc::unbounded_channel();
    let (handle, speaker) = twill_bgp_speaker::start(config, reports);
    let pools = ["8.0.0.0/5".parse()?].into();
    handle.send(Command::SetReflection(Some(Reflection { cluster_id: DEVICE, pools }))).await;
    let peers: BTreeMap<PeerKey, PeerConfig> = (0..clients).map(peer).collect();
    handle.send(Command::SetPeers { peers, passwords: BTreeMap::new() }).await;
    handle.send(Command::Listen(179)).await;
    while let Some(report) = reported.recv().await {
        if let Report::TrackNextHops(addresses) = report {
            let state = NextHopState::Reachable { metric: 0 };
            let states = addresses.into_iter().map(|address| (address, state)).collect();
            handle.send(Command::NextHops(states)).await;
        }
    }
    Ok(speaker.await??)
}
