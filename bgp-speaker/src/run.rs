use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tracing::{debug, info, warn};
use twill_bgp_proto::{
    ConnId, Input, NextHopState, Output, PeerConfig, PeerEvent, PeerKey, PeerSnapshot,
    RouteChange, RouteSnapshot, Speaker, SpeakerConfig, Time,
};
use twill_types::Prefix;

use crate::{
    connection::{self, Connection, Event},
    listener::{Accepted, Listener},
};

/// Inputs handled in one turn before outputs are carried out and other sources are looked at.
const BUDGET: usize = 64;

/// What the daemon asks of the speaker.
#[derive(Debug)]
pub enum Command {
    /// The sessions there are to be, all of them; the speaker works out the difference.
    SetPeers(BTreeMap<PeerKey, PeerConfig>),
    /// The prefixes that this node announces, all of them.
    SetOriginated(BTreeSet<Prefix>),
    /// Listen on this port from now on.
    Listen(u16),
    /// What became known of next hops that were asked for by [`Report::TrackNextHops`].
    NextHops(BTreeMap<IpAddr, NextHopState>),
    /// A picture for people.
    Snapshot(oneshot::Sender<Snapshot>),
    /// The process ends: leave as for a restart, without NOTIFICATION, so that peers keep our
    /// routes (RFC 4724). Answered when it is done.
    Stop(oneshot::Sender<()>),
}

/// A picture of all sessions and routes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Sessions, by peer.
    pub peers: Vec<PeerSnapshot>,
    /// Every path.
    pub routes: Vec<RouteSnapshot>,
}

/// What the speaker tells the daemon.
#[derive(Debug)]
pub enum Report {
    /// What should be in the kernel has changed.
    Routes(Vec<RouteChange>),
    /// The next hops whose reachability the speaker has to know, all of them.
    TrackNextHops(BTreeSet<IpAddr>),
    /// After a restart: every peer that had something to say has said it.
    Converged,
    /// A peer announces what this node owns.
    OriginConflict {
        /// What it announces.
        prefix: Prefix,
        /// The prefix of ours that it lies in.
        ours: Prefix,
        /// Which peer.
        peer: PeerKey,
    },
}

/// Why the speaker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The listening socket cannot be had.
    #[error("cannot listen for BGP on port {port}; stop what uses it, or set bgp.listenPort")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The way to a running speaker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Hands a command over. A speaker that is gone takes the process down on its own, so nothing
    /// is to be done about it here.
    pub async fn send(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// A picture of all sessions and routes; empty if the speaker is gone.
    pub async fn snapshot(&self) -> Snapshot {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Leaves all sessions as for a restart.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stop(reply)).await;
        let _ = answer.await;
    }
}

/// Starts a speaker. The task ends only after [`Command::Stop`], or with an error.
pub fn start(
    config: SpeakerConfig,
    reports: mpsc::UnboundedSender<Report>,
) -> (Handle, JoinHandle<Result<(), ShellError>>) {
    let (commands, command_queue) = mpsc::channel(64);
    let task = tokio::spawn(Shell::new(config, reports).run(command_queue));
    (Handle { commands }, task)
}

struct Shell {
    speaker: Speaker,
    epoch: Instant,
    connections: BTreeMap<ConnId, Connection>,
    dialling: BTreeMap<ConnId, JoinHandle<()>>,
    listener: Option<(u16, Listener)>,
    next_accepted: u64,
    events: mpsc::Sender<Event>,
    event_queue: mpsc::Receiver<Event>,
    accepted: mpsc::Sender<Accepted>,
    accepted_queue: mpsc::Receiver<Accepted>,
    reports: mpsc::UnboundedSender<Report>,
}

impl Shell {
    fn new(config: SpeakerConfig, reports: mpsc::UnboundedSender<Report>) -> Self {
        let (events, event_queue) = mpsc::channel(1024);
        let (accepted, accepted_queue) = mpsc::channel(64);
        Self {
            speaker: Speaker::new(config, Time::ZERO),
            epoch: Instant::now(),
            connections: BTreeMap::new(),
            dialling: BTreeMap::new(),
            listener: None,
            next_accepted: 0,
            events,
            event_queue,
            accepted,
            accepted_queue,
            reports,
        }
    }

    fn now(&self) -> Time {
        Time::from_millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), ShellError> {
        loop {
            let wait = match self.speaker.poll_timeout() {
                Some((deadline, _why)) => deadline.since(self.now()),
                None => Duration::from_secs(3600),
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(done)) => {
                        self.stop();
                        let _ = done.send(());
                        return Ok(());
                    }
                    Some(command) => self.command(command)?,
                    None => {
                        self.stop();
                        return Ok(());
                    }
                },
                Some(event) = self.event_queue.recv() => self.events(event),
                Some(accepted) = self.accepted_queue.recv() => self.accepted(accepted),
                () = tokio::time::sleep(wait) => {
                    let now = self.now();
                    self.speaker.handle(now, Input::Tick);
                }
            }
            self.carry_out();
        }
    }
}
