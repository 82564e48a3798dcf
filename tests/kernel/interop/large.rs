//! Ten thousand routes each way: into the kernel of a node, and out of a speaker.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::{mpsc, oneshot};
use twill_bgp_proto::{Own, PeerConfig, PeerKey, PeerKind, SpeakerConfig};
use twill_bgp_speaker::Command;
use twill_tests::{netns::Namespace, wait::wait_for};
use twill_types::{Asn, Family, Prefix};

use super::{
    rig::{Rig, bgp_peer, lab},
    router::{NODE, Peering, ROUTER, Router, small_network},
};
use crate::LONG;

const MANY: u32 = 10_000;

/// All that the router announces is in the node's kernel; what it withdraws goes from there, and the rest
/// with the session.
pub(super) fn large_table_in<R: Router>() -> Result<()> {
    let mut rig = Rig::<R>::up(Peering { more: MANY, ..Peering::default() })?;
    let learned = |rig: &Rig<R>, wanted: usize| {
        wait_for(&format!("{wanted} routes in the node's kernel"), LONG * 2, || {
            let routes = rig.node()?.own_routes("-4")?;
            let found = routes.iter().filter(|route| route["gateway"] == ROUTER).count();
            ensure!(found == wanted, "{found}");
            Ok(())
        })
    };
    learned(&rig, usize::try_from(MANY)? + 1)?;
    let before = rig.peer()?;
    rig.router.withdraw_more(&Peering::default())?;
    learned(&rig, 1)?;
    let after = rig.peer()?;
    ensure!(before["flaps"] == after["flaps"], "{before} became {after}");
    rig.router.shut_down("enough")?;
    learned(&rig, 0)
}

/// All that the node has is at the router. A node with so many blocks would be one of a whole
/// cluster, so the speaker is asked without its daemon.
pub(super) fn large_table_out<R: Router>() -> Result<()> {
    let peering = Peering::default();
    let lab = lab(&peering, &bgp_peer(&peering, ""))?;
    let router = R::start(lab.router("router")?, &lab.dir().join("router"), &peering)?;
    let own = (0..MANY).map(|index| small_network([10, 64, 0, 0], index).parse::<Prefix>());
    let own = Own::announced(own.collect::<Result<Vec<_>, _>>()?);
    let speaker = Speaker::start(lab.node("node1")?.namespace(), own)?;
    router.wait_up()?;
    let many = usize::try_from(MANY)?;
    let counted = |wanted: usize| {
        wait_for(&format!("{wanted} routes of the speaker at the router"), LONG * 2, || {
            let prefixes = router.prefixes()?;
            ensure!(prefixes == wanted, "{prefixes}");
            Ok(())
        })
    };
    counted(many)?;
    speaker.set_own(Own::default())?;
    counted(0)?;
    speaker.stop()
}

/// A speaker without a daemon, on a thread of its own in the node's namespace.
struct Speaker {
    stop: oneshot::Sender<()>,
    own: mpsc::UnboundedSender<Own>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Speaker {
    fn start(namespace: &Namespace, own: Own) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (owns, owned) = mpsc::unbounded_channel();
        owns.send(own)?;
        let path = namespace.path().to_owned();
        let thread = thread::spawn(move || -> Result<()> {
            let netns = twill_sys::Netns::open(path)?;
            twill_sys::in_netns(&netns, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(speak(owned, stopped))
            })?
        });
        Ok(Self { stop, own: owns, thread })
    }

    /// What it announces from now on.
    fn set_own(&self, own: Own) -> Result<()> {
        self.own.send(own).context("the speaker has ended")
    }

    fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the speaker panicked"))?
    }
}

/// Speaks with the router as the node would, until it is told to stop.
async fn speak(
    mut owned: mpsc::UnboundedReceiver<Own>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let config = SpeakerConfig {
        router_id: NODE.parse()?,
        asn: Asn::new(64512)?,
        seed: 1,
        hostname: String::new(),
        forwarding: BTreeSet::new(),
        selection_deferral: Duration::from_secs(60),
        max_paths: 16,
    };
    let router = PeerConfig {
        local_address: Some(NODE.parse()?),
        families: [Family::V4].into(),
        ..PeerConfig::new("router", PeerKind::Global, Asn::new(64513)?)
    };
    let address: IpAddr = ROUTER.parse()?;
    let peers = BTreeMap::from([(PeerKey { address, port: 179 }, router)]);
    // What it reports is for a kernel that there is not.
    let (reports, _reported) = mpsc::unbounded_channel();
    let (handle, speaker) = twill_bgp_speaker::start(config, reports);
    let own = owned.recv().await.context("the test went away")?;
    handle.send(Command::SetOwn(own)).await;
    handle.send(Command::SetPeers { peers, passwords: BTreeMap::new() }).await;
    handle.send(Command::Listen(179)).await;
    loop {
        tokio::select! {
            Some(own) = owned.recv() => handle.send(Command::SetOwn(own)).await,
            told = &mut stopped => break told.context("the test went away")?,
        }
    }
    handle.stop().await;
    Ok(speaker.await??)
}
