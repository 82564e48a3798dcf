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
    listener::{Accepted, Listener},
    password::Password,
    strangers::Strangers,
};

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
            let wait = match self.speaker.poll_timeout() {
                Some((deadline, _why)) => deadline.since(self.now()),
                None => Duration::from_secs(3600),
            };
            // A timer of the runtime expires only when its driver is looked at, which a worker that
            // always finds a message does not do: a KEEPALIVE would wait for the end of a flood.
            if wait.is_zero() {
                self.hear().await;
                self.input(Input::Tick);
                self.carry_out().await;
                continue;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(done)) => {
                        self.leave();
                        let _ = done.send(());
                        return Ok(());
                    }
                    Some(command) => self.command(command)?,
                    None => {
                        self.leave();
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

    /// Hears what peers have said already, before a timer says that they said nothing: a process that was stopped,
    /// or had too much to do, finds the timer expired and the KEEPALIVE unread. Nothing else is read meanwhile, so
    /// a flood does not put a timer off.
    async fn hear(&mut self) {
        // Those who read from the sockets have their turn.
        tokio::task::yield_now().await;
        for _ in 0..self.event_queue.len() {
            match self.event_queue.try_recv() {
                Ok(event) => self.event(event),
                Err(_) => return,
            }
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.speaker.handle(now, input);
    }

    fn command(&mut self, command: Command) -> Result<(), ShellError> {
        match command {
            Command::SetPeers { peers, passwords } => self.set_peers(peers, passwords),
            Command::SetOwn(own) => self.input(Input::SetOwn(own)),
            Command::SetReflection(reflection) => self.input(Input::SetReflection(reflection)),
            Command::NextHops(states) => self.input(Input::NextHops(states)),
            Command::Listen(port) => self.listen(port)?,
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

    fn listen(&mut self, port: u16) -> Result<(), ShellError> {
        if self.listener.as_ref().is_some_and(|(current, _)| *current == port) {
            return Ok(());
        }
        match (Listener::bind(port, &self.keys.passwords, &self.accepted), &self.listener) {
            (Ok(listener), _) => {
                info!(port, "listening for BGP");
                self.listener = Some((port, listener));
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
    fn leave(&mut self) {
        self.listener = None;
        for (_, task) in std::mem::take(&mut self.dialling) {
            task.abort();
        }
        for (_, connection) in std::mem::take(&mut self.connections) {
            connection.abort();
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        io::{Read, Write},
        net::Ipv4Addr,
        sync::Arc,
    };

    use tokio::sync::Semaphore;
    use twill_bgp_proto::{PeerKind, State, wire};
    use twill_types::Asn;

    use super::*;

    #[test]
    fn a_changed_password_is_another_number_and_no_other_peer_has_one() {
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut keys = Keys::default();
        let mut set = |passwords: &[(IpAddr, &str)]| {
            let of = |text: &str| Password::new(text).unwrap();
            keys.replace(passwords.iter().map(|(peer, text)| (*peer, of(text))).collect());
            (keys.number(one), keys.number(two))
        };
        assert_eq!(set(&[]), (0, 0));
        assert_eq!(set(&[(one, "a"), (two, "b")]), (1, 2));
        assert_eq!(set(&[(one, "a"), (two, "c")]), (1, 3));
        assert_eq!(set(&[(two, "c")]), (0, 3));
        assert_eq!(set(&[(one, "a"), (two, "c")]), (4, 3));
    }

    fn config() -> SpeakerConfig {
        SpeakerConfig {
            router_id: Ipv4Addr::new(192, 0, 2, 1),
            asn: Asn::new(64512).unwrap(),
            hostname: String::new(),
            seed: 1,
            forwarding: BTreeSet::new(),
            selection_deferral: Duration::from_secs(60),
            max_paths: 16,
        }
    }

    /// Whether a NOTIFICATION is among these messages, of which the last may be cut off.
    fn has_notification(mut said: &[u8]) -> bool {
        while let Some(&[high, low, kind]) = said.get(16..19) {
            if kind == 3 {
                return true;
            }
            let length = usize::from(u16::from_be_bytes([high, low]));
            said = said.get(length.max(19)..).unwrap_or_default();
        }
        false
    }

    /// A peer that says every half second that it lives, until the node closes or the time is up; the answer is
    /// whether the node closed, and the connection, which stays open with it.
    fn lively_peer(
        listener: &std::net::TcpListener,
    ) -> std::io::Result<(bool, std::net::TcpStream)> {
        let (mut stream, _) = listener.accept()?;
        let open = wire::Open {
            asn: Asn::new(64513).unwrap(),
            hold_time: 3,
            identifier: Ipv4Addr::new(192, 0, 2, 2),
            capabilities: vec![wire::Capability::FourOctetAs(Asn::new(64513).unwrap())],
        };
        stream.write_all(&wire::encode_open(&open))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        for _ in 0..12 {
            stream.write_all(&wire::encode_keepalive())?;
            match stream.read(&mut buffer) {
                Ok(0) => return Ok((true, stream)),
                Ok(count) => {
                    said.extend_from_slice(&buffer[..count]);
                    if has_notification(&said) {
                        return Ok((true, stream));
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok((false, stream))
    }

    /// This process is stopped for longer than the hold time, and the peer is not: its KEEPALIVEs wait in the socket.
    #[tokio::test]
    async fn what_waits_in_the_socket_is_heard_before_the_hold_timer_expires() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let key = PeerKey {
            address: Ipv4Addr::LOCALHOST.into(),
            port: listener.local_addr().unwrap().port(),
        };
        let peer = std::thread::spawn(move || lively_peer(&listener));
        let (reports, _reported) = mpsc::unbounded_channel();
        let (handle, task) = start(config(), reports);
        let remote = PeerConfig::new("lively", PeerKind::Global, Asn::new(64513).unwrap());
        let remote = PeerConfig { hold_time: 3, takes_connections: false, ..remote };
        let (peers, passwords) = ([(key, remote)].into(), BTreeMap::new());
        handle.send(Command::SetPeers { peers, passwords }).await;
        let state = async || handle.snapshot(Pictured::Sessions).await.peers[0].state;
        while state().await != State::Established {
            assert!(!peer.is_finished(), "no session");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The one thread that the runtime of this test has: the stop itself, and no wait for anything.
        std::thread::sleep(Duration::from_millis(3300));
        let heard = tokio::task::spawn_blocking(move || peer.join().unwrap().unwrap());
        let (closed, _open) = heard.await.unwrap();
        assert!(!closed);
        assert_eq!(state().await, State::Established);
        handle.stop().await;
        task.await.unwrap().unwrap();
    }

    /// However much waits, and however little: what is due in between is done soon.
    #[tokio::test]
    async fn a_turn_is_bounded_in_octets_and_in_inputs() {
        for (length, handled) in [(64 * 1024, 2), (100 * 1024, 2), (BUDGET_OCTETS, 1), (19, BUDGET)]
        {
            let (reports, _reported) = mpsc::unbounded_channel();
            let mut shell = Shell::new(config(), reports);
            let waiting = Arc::new(Semaphore::new(2 * BUDGET));
            for _ in 0..2 * BUDGET {
                let permit = Arc::clone(&waiting).try_acquire_owned().unwrap();
                let bytes = vec![0xff; length];
                shell.events.try_send(Event::Received { conn: ConnId(1), bytes, permit }).unwrap();
            }
            let first = shell.event_queue.recv().await.unwrap();
            shell.events(first);
            assert_eq!(waiting.available_permits(), handled, "pieces of {length}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_ends_nothing_but_a_start() {
        let other = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let taken = other.local_addr().unwrap().port();
        let (reports, _reported) = mpsc::unbounded_channel();
        let mut shell = Shell::new(config(), reports);
        let refused = shell.listen(taken).unwrap_err();
        assert!(refused.to_string().contains(&format!("port {taken}; stop what uses it")));

        shell.listen(0).unwrap();
        shell.listen(taken).unwrap();
        assert_eq!(shell.listener.as_ref().map(|(port, _)| *port), Some(0));
        drop(other);
        shell.listen(taken).unwrap();
        assert_eq!(shell.listener.as_ref().map(|(port, _)| *port), Some(taken));
    }
}
