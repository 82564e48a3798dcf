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
use tracing::{debug, error, info, warn};
use twill_bgp_proto::{
    Conflict, ConnId, Explanation, Input, NextHopState, Output, Own, PeerConfig, PeerEvent,
    PeerKey, PeerSnapshot, Reflection, RefreshError, RouteChange, RouteSnapshot, Speaker,
    SpeakerConfig, Time,
};
use twill_sys::set_ttl_security;
use twill_types::{BgpNextHop, Family, Prefix};

use crate::{
    connection::{self, Connection, Event, Protection},
    grace::Grace,
    listener::{Accepted, Listener},
    password::Password,
    strangers::Strangers,
};

#[cfg(test)]
mod tests;

/// Inputs handled in one turn before outputs are carried out and other sources are looked at.
const BUDGET: usize = 64;
/// Octets handled in one turn, but for the last input: KEEPALIVEs that are due wait for the end of it.
const BUDGET_OCTETS: usize = 128 * 1024;

/// What the daemon asks of the speaker.
#[derive(Debug)]
pub enum Command {
    /// The sessions there are to be, all of them; the speaker works out the difference.
    SetPeers {
        /// By peer. What stands in `tcp_key` is replaced.
        peers: BTreeMap<PeerKey, PeerConfig>,
        /// With what segments are signed (RFC 2385), by the peer's address: the kernel knows no
        /// port. A session whose password changes begins again, and no other.
        passwords: BTreeMap<IpAddr, Password>,
    },
    /// What this node has, all of it.
    SetOwn(Own),
    /// Whose routes this node passes on as a route reflector.
    SetReflection(Option<Reflection>),
    /// Listen on this port from now on.
    Listen(u16),
    /// What became known of next hops that were asked for by [`Report::TrackNextHops`].
    NextHops(BTreeMap<BgpNextHop, NextHopState>),
    /// A picture for people.
    Snapshot(Pictured, oneshot::Sender<Snapshot>),
    /// All that is known of a prefix, or of the most specific one that covers it.
    Explain(Prefix, oneshot::Sender<Option<Explanation>>),
    /// Ask a peer for its routes of a family, or of all, again (RFC 2918); answered with the families
    /// that were asked for.
    Refresh(PeerKey, Option<Family>, oneshot::Sender<Result<Vec<Family>, RefreshError>>),
    /// The process ends: leave as for a restart, without NOTIFICATION, so that peers keep our
    /// routes (RFC 4724). Answered when it is done.
    Stop(oneshot::Sender<()>),
}

/// What a picture shows. Routes are many, and the speaker does nothing else while it copies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pictured {
    /// Sessions alone.
    Sessions,
    /// Sessions and routes.
    All,
}

/// A picture of all sessions and routes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When, on the clock that sessions are dated by.
    pub taken_at: Time,
    /// Sessions, by peer.
    pub peers: Vec<PeerSnapshot>,
    /// Every path, if asked for.
    pub routes: Vec<RouteSnapshot>,
    /// Callers that were refused as no peers since the speaker's start.
    pub strangers_refused: u64,
}

/// What the speaker tells the daemon.
#[derive(Debug)]
pub enum Report {
    /// What should be in the kernel has changed.
    Routes(Vec<RouteChange>),
    /// The next hops whose reachability the speaker has to know, all of them.
    TrackNextHops(BTreeSet<BgpNextHop>),
    /// After a start: every peer that had something to say has said it, or will not be waited for.
    Converged {
        /// Peers that had not said everything when the time for it was over; none if there was nothing of
        /// theirs to keep.
        unheard: Vec<PeerKey>,
    },
    /// What peers announce of what this node has, all of it.
    Conflicts(Vec<Conflict>),
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
    pub async fn snapshot(&self, of: Pictured) -> Snapshot {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot(of, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// All that is known of a prefix, or of the most specific one that covers it.
    pub async fn explain(&self, prefix: Prefix) -> Option<Explanation> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Explain(prefix, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Asks a peer for its routes of a family, or of all, again; which were asked for. A speaker that is
    /// gone has no peers.
    pub async fn refresh(
        &self,
        peer: PeerKey,
        family: Option<Family>,
    ) -> Result<Vec<Family>, RefreshError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Refresh(peer, family, reply)).await;
        answer.await.unwrap_or(Err(RefreshError::NoPeer))
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
    keys: Keys,
    /// Over how many links packets of a peer may come (RFC 5082), by its address.
    hops: BTreeMap<IpAddr, u8>,
    next_accepted: u64,
    grace: Grace,
    strangers: Strangers,
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
            keys: Keys::default(),
            hops: BTreeMap::new(),
            next_accepted: 0,
            grace: Grace::default(),
            strangers: Strangers::default(),
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
            let wait = self.wait();
            // A timer of the runtime expires only when its driver is looked at, which a worker that
            // always finds a message does not do: a KEEPALIVE would wait for the end of a flood.
            if wait.is_zero() {
                self.input(Input::Tick);
                self.carry_out().await;
                continue;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(done)) => {
                        self.leave().await;
                        let _ = done.send(());
                        return Ok(());
                    }
                    Some(command) => self.command(command).await?,
                    None => {
                        self.leave().await;
                        return Ok(());
                    }
                },
                Some(event) = self.event_queue.recv() => self.events(event),
                Some(accepted) = self.accepted_queue.recv() => self.accepted(accepted),
                // What is due is done in the next turn.
                () = tokio::time::sleep(wait) => continue,
            }
            self.carry_out().await;
        }
    }

    /// How long inputs may be waited for: until a timer is due, and where that is the hold timer, a little longer.
    fn wait(&mut self) -> Duration {
        let now = self.now();
        let wait = match self.speaker.poll_timeout() {
            Some((deadline, _why)) => deadline.since(now),
            None => Duration::from_secs(3600),
        };
        let has_expired = wait.is_zero() && self.speaker.has_expired_hold(now);
        wait.max(self.grace.left(has_expired, Instant::now()))
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.speaker.handle(now, input);
    }

    async fn command(&mut self, command: Command) -> Result<(), ShellError> {
        match command {
            Command::SetPeers { peers, passwords } => self.set_peers(peers, passwords),
            Command::SetOwn(own) => self.input(Input::SetOwn(own)),
            Command::SetReflection(reflection) => self.input(Input::SetReflection(reflection)),
            Command::NextHops(states) => self.input(Input::NextHops(states)),
            Command::Listen(port) => self.listen(port).await?,
            Command::Snapshot(of, reply) => {
                let snapshot = Snapshot {
                    taken_at: self.now(),
                    peers: self.speaker.peers(),
                    routes: match of {
                        Pictured::Sessions => Vec::new(),
                        Pictured::All => self.speaker.routes(),
                    },
                    strangers_refused: self.strangers.refused(),
                };
                let _ = reply.send(snapshot);
            }
            Command::Explain(prefix, reply) => {
                let _ = reply.send(self.speaker.explain(self.now(), prefix));
            }
            Command::Refresh(peer, family, reply) => {
                let _ = reply.send(self.speaker.request_refresh(self.now(), peer, family));
            }
            // Handled by the loop, which it ends.
            Command::Stop(_) => {}
        }
        Ok(())
    }

    fn set_peers(
        &mut self,
        mut peers: BTreeMap<PeerKey, PeerConfig>,
        passwords: BTreeMap<IpAddr, Password>,
    ) {
        // Before the speaker closes what was signed with another key: the peer is back at once.
        if let Some((_, listener)) = &mut self.listener {
            listener.change_passwords(&self.keys.passwords, &passwords);
        }
        self.keys.replace(passwords);
        self.hops.clear();
        for (peer, config) in &mut peers {
            config.tcp_key = self.keys.number(peer.address);
            if let Some(hops) = config.ttl_security {
                self.hops.insert(peer.address, hops);
            }
        }
        self.input(Input::SetPeers(peers));
    }

    async fn listen(&mut self, port: u16) -> Result<(), ShellError> {
        if self.listener.as_ref().is_some_and(|(current, _)| *current == port) {
            return Ok(());
        }
        match (Listener::bind(port, &self.keys.passwords, &self.accepted), &self.listener) {
            (Ok(listener), _) => {
                info!(port, "listening for BGP");
                if let Some((_, before)) = self.listener.replace((port, listener)) {
                    before.close().await;
                }
                Ok(())
            }
            // No session goes down for a mistake in a setting.
            (Err(error), Some((current, _))) => {
                error!(%error, port, current, "cannot listen for BGP there, so on the port before");
                Ok(())
            }
            (Err(source), None) => Err(ShellError::Listen { port, source }),
        }
    }

    fn accepted(&mut self, accepted: Accepted) {
        // Counted down from the top; the speaker counts its own up from 1.
        let conn = ConnId(u64::MAX - self.next_accepted);
        self.next_accepted += 1;
        let Accepted { stream, local, remote } = accepted;
        if self.listener.as_ref().is_some_and(|(_, listener)| !listener.trusts(remote.ip())) {
            return;
        }
        // Not on the listening socket, which is that of all peers.
        if let Some(hops) = self.hops.get(&remote.ip())
            && let Err(error) = set_ttl_security(&stream, remote.is_ipv6(), *hops)
        {
            warn!(peer = %remote.ip(), %error, "cannot demand a TTL, so its connection is not taken");
            return;
        }
        self.connections.insert(conn, Connection::start(conn, stream, self.events.clone()));
        self.input(Input::Accepted { conn, local, remote });
    }

    /// Takes what is there, up to a budget, so that packed UPDATEs are decided on together.
    fn events(&mut self, first: Event) {
        let mut octets = first.octets();
        self.event(first);
        for _ in 1..BUDGET {
            if octets >= BUDGET_OCTETS {
                return;
            }
            let Ok(event) = self.event_queue.try_recv() else {
                return;
            };
            octets += event.octets();
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connected { conn, local, stream } => {
                // One that was given up in the meantime is closed by being dropped.
                if self.dialling.remove(&conn).is_some() {
                    let connection = Connection::start(conn, stream, self.events.clone());
                    self.connections.insert(conn, connection);
                    self.input(Input::Connected { conn, local });
                }
            }
            Event::ConnectFailed { conn, reason } => {
                if self.dialling.remove(&conn).is_some() {
                    self.input(Input::ConnectFailed { conn, reason });
                }
            }
            // The permit goes with the event: only now may the peer's next bytes come.
            Event::Received { conn, bytes, permit: _permit } => {
                if self.connections.contains_key(&conn) {
                    self.input(Input::Received { conn, bytes });
                }
            }
            Event::Written { conn, count } => self.input(Input::Written { conn, count }),
            Event::Closed { conn, reason } => {
                if let Some(connection) = self.connections.remove(&conn) {
                    connection.abort();
                    self.input(Input::Closed { conn, reason });
                }
            }
        }
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.speaker.poll_output() {
            match output {
                Output::Connect { conn, remote, local } => {
                    let protection = Protection {
                        password: self.keys.passwords.get(&remote.ip()).cloned(),
                        hops: self.hops.get(&remote.ip()).copied(),
                    };
                    let events = self.events.clone();
                    let task = connection::connect(conn, local, remote, protection, events);
                    self.dialling.insert(conn, task);
                }
                Output::Send { conn, bytes } => {
                    if let Some(connection) = self.connections.get(&conn) {
                        connection.send(bytes);
                    }
                }
                Output::Close { conn } => {
                    if let Some(connection) = self.connections.remove(&conn) {
                        connection.finish();
                    }
                    if let Some(task) = self.dialling.remove(&conn) {
                        task.abort();
                    }
                }
                Output::Abort { conn } => {
                    if let Some(connection) = self.connections.remove(&conn) {
                        connection.reset();
                    }
                }
                Output::Routes(changes) => self.report(Report::Routes(changes)),
                Output::TrackNextHops(next_hops) => {
                    self.report(Report::TrackNextHops(next_hops));
                    // Whoever moves traffic off a lost one was woken on this thread, and would wait for
                    // the end of the decision, which the next output may be behind.
                    tokio::task::yield_now().await;
                }
                Output::Converged { unheard } => self.report(Report::Converged { unheard }),
                Output::Conflicts(conflicts) => self.report(Report::Conflicts(conflicts)),
                Output::Event(peer, event) => log(peer, &event),
                Output::Refused { remote } => self.strangers.refuse(remote, Instant::now()),
            }
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens only while the process ends.
        let _ = self.reports.send(report);
    }

    /// Closes everything as a crash would: no NOTIFICATION, so that peers keep our routes.
    async fn leave(&mut self) {
        for (_, task) in std::mem::take(&mut self.dialling) {
            task.abort();
        }
        for (_, connection) in std::mem::take(&mut self.connections) {
            connection.abort();
        }
        // The next speaker of this process listens on the same port.
        if let Some((_, listener)) = self.listener.take() {
            listener.close().await;
        }
    }
}

/// The passwords, and a number for each that the speaker compares in their place: it never has
/// them.
#[derive(Debug, Default)]
struct Keys {
    passwords: BTreeMap<IpAddr, Password>,
    numbers: BTreeMap<IpAddr, u64>,
    last: u64,
}

impl Keys {
    fn replace(&mut self, passwords: BTreeMap<IpAddr, Password>) {
        for (peer, password) in &passwords {
            if self.passwords.get(peer) != Some(password) {
                self.last += 1;
                self.numbers.insert(*peer, self.last);
            }
        }
        self.numbers.retain(|peer, _| passwords.contains_key(peer));
        self.passwords = passwords;
    }

    /// Another one after each change; 0 without a password.
    fn number(&self, peer: IpAddr) -> u64 {
        self.numbers.get(&peer).copied().unwrap_or(0)
    }
}

fn log(peer: PeerKey, event: &PeerEvent) {
    match event {
        PeerEvent::Up => info!(%peer, "session up"),
        PeerEvent::Down { reason, kept_for: Some(time) } => {
            warn!(%peer, reason, kept_seconds = time.as_secs(), "session down, its routes are kept");
        }
        PeerEvent::Down { reason, kept_for: None } => warn!(%peer, reason, "session down"),
        PeerEvent::Failed { reason } => info!(%peer, reason, "no session"),
        PeerEvent::BadUpdate { text, routes, message } => {
            // What is not known is left out.
            let [routes, message] =
                [routes, message].map(|text| Some(text.as_str()).filter(|text| !text.is_empty()));
            warn!(%peer, text, routes, message, "bad UPDATE");
        }
        PeerEvent::MoreBadUpdates { count } => {
            warn!(%peer, count, "more bad UPDATEs in the last minute");
        }
        PeerEvent::LongLived(family) => {
            warn!(%peer, %family, "still away: its routes are the last resort");
        }
        PeerEvent::EndOfRib(family) => debug!(%peer, %family, "End-of-RIB"),
        PeerEvent::StaleFlushed { count } => info!(%peer, count, "stale routes removed"),
        PeerEvent::Notification { sent, notification } => {
            info!(%peer, sent, %notification, "NOTIFICATION");
        }
    }
}
