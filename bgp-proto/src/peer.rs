//! One neighbour: its one or two connections, its timers and its state (RFC 4271 section 8).
//!
//! Both connections of a collision live here, so it is resolved in one place. A peer knows nothing
//! of routes: what it learns about its session it tells by [`Session`] events.

use std::{net::SocketAddr, time::Duration};

use crate::{
    ConnId, Output, PeerConfig, PeerEvent, PeerKey, SpeakerConfig, State, Time,
    connection::{Connection, Direction, Message, Negotiated},
    time::Jitter,
    wire::{self, Notification, RouteRefresh, UpdateIn, cease, code},
};

/// The first attempt after a loss, and after it twice as long each time, up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// After a peer with a graceful restart in hand refused a connection as colliding, it has dropped
/// the old session, and takes the next one (seen with FRR): no back-off is due.
const RETRY_AFTER_COLLISION: Duration = Duration::from_millis(50);
/// A second connection on a session younger than this is a collision that was still on its way,
/// not a peer that has restarted.
const RACE: Duration = Duration::from_secs(1);

/// Why a session ended; what becomes of the peer's routes depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection went away without a word, or was replaced (RFC 4724 section 4.2).
    Connection(String),
    /// A NOTIFICATION ended it, theirs or ours (RFC 8538 section 4).
    Notification(Notification),
    /// The peer is no longer configured, or differently.
    Removed,
}

/// What a peer reports.
#[derive(Debug)]
pub(crate) enum Session {
    Up,
    Down { loss: Loss, negotiated: Box<Negotiated> },
    Update(UpdateIn),
    Refresh(RouteRefresh),
}

/// When and how the next connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// Nothing is to be done: passive, or a session stands.
    No,
    /// At this time. `Idle` while a failure is waited out, else `Active`.
    At(Time, State),
    /// Under way.
    Opening(ConnId),
}

/// Where a peer puts what it has to say.
pub(crate) struct Sink<'a> {
    pub(crate) speaker: &'a SpeakerConfig,
    pub(crate) now: Time,
    pub(crate) jitter: &'a mut Jitter,
    pub(crate) next_conn: &'a mut u64,
    pub(crate) outputs: &'a mut Vec<Output>,
    pub(crate) sessions: &'a mut Vec<Session>,
    /// Whether our OPENs say that we have restarted.
    pub(crate) restarting: bool,
}

/// One neighbour.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) key: PeerKey,
    pub(crate) config: PeerConfig,
    connections: Vec<Connection>,
    dial: Dial,
    failures: u32,
    pub(crate) since: Time,
    pub(crate) info: String,
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) flaps: u32,
}

impl Peer {
    pub(crate) fn new(key: PeerKey, config: PeerConfig, now: Time) -> Self {
        let dial = if config.passive { Dial::No } else { Dial::At(now, State::Active) };
        Self {
            key,
            config,
            connections: Vec::new(),
            dial,
            failures: 0,
            since: now,
            info: String::new(),
            messages_in: 0,
            messages_out: 0,
            flaps: 0,
        }
    }

    /// The state of the connection that is farthest.
    pub(crate) fn state(&self) -> State {
        let dialling = match self.dial {
            Dial::No => State::Active,
            Dial::At(_, state) => state,
            Dial::Opening(_) => State::Connect,
        };
        self.connections.iter().map(|connection| connection.state).max().unwrap_or(dialling)
    }

    /// The Established connection.
    pub(crate) fn established(&self) -> Option<(&Connection, &Negotiated)> {
        let connection = self.connections.iter().find(|c| c.state == State::Established)?;
        Some((connection, connection.negotiated.as_ref()?))
    }

    pub(crate) fn owns(&self, conn: ConnId) -> bool {
        self.dial == Dial::Opening(conn) || self.connections.iter().any(|c| c.id == conn)
    }

    pub(crate) fn next_deadline(&self) -> Option<(Time, &'static str)> {
        let dial = match self.dial {
            Dial::At(deadline, _) => Some((deadline, "connect retry timer")),
            Dial::No | Dial::Opening(_) => None,
        };
        self.connections.iter().filter_map(Connection::next_deadline).chain(dial).min()
    }

    /// Timers (RFC 4271 events 9 to 13, RFC 9687).
    pub(crate) fn tick(&mut self, sink: &mut Sink<'_>) {
        if let Dial::At(deadline, _) = self.dial
            && deadline <= sink.now
        {
            self.connect(sink);
        }
        let due: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
        for id in due {
            let Some(connection) = self.connections.iter().find(|c| c.id == id) else {
                continue;
            };
            if connection.hold_expired(sink.now) {
                self.fail(id, Notification::new(code::HOLD_TIMER, 0), sink);
            } else if connection.send_hold_expired(sink.now) {
                self.fail(id, Notification::new(code::SEND_HOLD_TIMER, 0), sink);
            } else if connection.keepalive_due(sink.now) {
                self.send(id, wire::encode_keepalive(), sink);
                self.schedule_keepalive(id, sink);
            }
        }
    }

    fn connect(&mut self, sink: &mut Sink<'_>) {
        let conn = ConnId(*sink.next_conn);
        *sink.next_conn += 1;
        self.dial = Dial::Opening(conn);
        sink.outputs.push(Output::Connect {
            conn,
            remote: self.key.socket(),
            local: self.config.local_address,
        });
    }

    /// Our connection is open (event 16).
    pub(crate) fn connected(&mut self, conn: ConnId, local: SocketAddr, sink: &mut Sink<'_>) {
        self.dial = Dial::No;
        self.start(conn, Direction::Outgoing, local, sink);
    }

    /// Our connection could not be opened (event 18).
    pub(crate) fn connect_failed(&mut self, reason: String, sink: &mut Sink<'_>) {
        self.info = format!("cannot connect: {reason}");
        self.retry(State::Active, sink);
    }

    /// The peer has connected (event 17).
    pub(crate) fn accepted(&mut self, conn: ConnId, local: SocketAddr, sink: &mut Sink<'_>) {
        // A second one from the same side takes the place of a first that is still opening: a
        // peer that lost its end dials again before we notice.
        let stale: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|c| c.direction == Direction::Incoming && c.state != State::Established)
            .map(|c| c.id)
            .collect();
        for id in stale {
            self.remove(id, sink);
        }
        self.start(conn, Direction::Incoming, local, sink);
    }

    fn start(
        &mut self,
        conn: ConnId,
        direction: Direction,
        local: SocketAddr,
        sink: &mut Sink<'_>,
    ) {
        self.connections.push(Connection::new(conn, direction, local, sink.now));
        let open = Connection::open(sink.speaker, &self.config, sink.restarting);
        self.send(conn, open, sink);
    }

    pub(crate) fn written(&mut self, conn: ConnId, count: usize, now: Time) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            connection.written(count, now);
        }
    }

    /// A connection broke (event 18).
    pub(crate) fn closed(&mut self, conn: ConnId, reason: &str, sink: &mut Sink<'_>) {
        let Some(connection) = self.forget(conn) else {
            return;
        };
        self.ended(connection, Loss::Connection(reason.to_owned()), sink);
    }

    pub(crate) fn received(&mut self, conn: ConnId, bytes: &[u8], sink: &mut Sink<'_>) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            connection.push(bytes);
        }
        // Each message may close the connection.
        while let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            match connection.next_message(sink.now) {
                Ok(Some(message)) => {
                    self.messages_in += 1;
                    self.message(conn, message, sink);
                }
                Ok(None) => return,
                Err(notification) => return self.fail(conn, notification, sink),
            }
        }
    }

    fn message(&mut self, conn: ConnId, message: Message, sink: &mut Sink<'_>) {
        match message {
            Message::Open(open) => self.opened(conn, open, sink),
            Message::Keepalive => self.confirmed(conn, sink),
            Message::Update(update) => sink.sessions.push(Session::Update(update)),
            Message::RouteRefresh(refresh) => {
                sink.sessions.extend(refresh.map(Session::Refresh));
            }
            Message::Notification(notification) => self.notified(conn, notification, sink),
        }
    }

    /// The peer's OPEN (event 19), and the collision that it may show (section 6.8).
    fn opened(&mut self, conn: ConnId, open: wire::Open, sink: &mut Sink<'_>) {
        let config = self.config.clone();
        let identifier = open.identifier;
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) else {
            return;
        };
        if let Err(notification) = connection.opened(open, sink.speaker, &config, sink.now) {
            return self.fail(conn, notification, sink);
        }
        let direction = connection.direction;
        let rival = self.connections.iter().find(|c| c.id != conn && c.state >= State::OpenConfirm);
        if let Some(rival) = rival {
            let (rival_id, rival_direction) = (rival.id, rival.direction);
            let old = rival.state == State::Established
                && sink.now.since(rival.established_at) >= RACE
                && rival.negotiated.as_ref().is_some_and(|n| n.graceful_restart().is_some());
            let established = rival.state == State::Established;
            // The connection that the higher identifier opened stays.
            let outgoing_stays = sink.speaker.router_id > identifier;
            let new_stays = (direction == Direction::Outgoing) == outgoing_stays
                && direction != rival_direction;
            if old {
                // RFC 4724 section 4.2: the peer has restarted before its old connection was
                // seen to break. No NOTIFICATION, and its routes are kept.
                if let Some(connection) = self.forget(rival_id) {
                    sink.outputs.push(Output::Close { conn: rival_id });
                    let loss = Loss::Connection("the peer opened a new connection".to_owned());
                    self.ended(connection, loss, sink);
                }
            } else if established || !new_stays {
                return self.fail(conn, Notification::new(code::CEASE, cease::COLLISION), sink);
            } else {
                self.fail(rival_id, Notification::new(code::CEASE, cease::COLLISION), sink);
            }
        }
        self.send(conn, wire::encode_keepalive(), sink);
        self.schedule_keepalive(conn, sink);
    }

    /// A KEEPALIVE (event 26): in OpenConfirm it makes the session.
    fn confirmed(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) else {
            return;
        };
        if connection.state != State::OpenConfirm {
            return;
        }
        connection.state = State::Established;
        connection.established_at = sink.now;
        let others: Vec<ConnId> =
            self.connections.iter().map(|c| c.id).filter(|id| *id != conn).collect();
        for id in others {
            self.fail(id, Notification::new(code::CEASE, cease::COLLISION), sink);
        }
        if let Dial::Opening(conn) = self.dial {
            sink.outputs.push(Output::Close { conn });
        }
        self.dial = Dial::No;
        self.failures = 0;
        self.since = sink.now;
        self.info = "Established".to_owned();
        sink.outputs.push(Output::Event(self.key, PeerEvent::Up));
        sink.sessions.push(Session::Up);
    }

    /// A NOTIFICATION came (events 24 and 25).
    fn notified(&mut self, conn: ConnId, notification: Notification, sink: &mut Sink<'_>) {
        let event = PeerEvent::Notification { sent: false, notification: notification.clone() };
        sink.outputs.push(Output::Event(self.key, event));
        sink.outputs.push(Output::Close { conn });
        if let Some(connection) = self.forget(conn) {
            self.ended(connection, Loss::Notification(notification), sink);
        }
    }

    /// Ends a connection with a NOTIFICATION of ours.
    fn fail(&mut self, conn: ConnId, notification: Notification, sink: &mut Sink<'_>) {
        self.send(conn, wire::encode_notification(&notification), sink);
        sink.outputs.push(Output::Close { conn });
        let event = PeerEvent::Notification { sent: true, notification: notification.clone() };
        sink.outputs.push(Output::Event(self.key, event));
        if let Some(connection) = self.forget(conn) {
            self.ended(connection, Loss::Notification(notification), sink);
        }
    }

    /// Ends a connection without a word.
    fn remove(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if self.forget(conn).is_some() {
            sink.outputs.push(Output::Close { conn });
        }
    }

    fn forget(&mut self, conn: ConnId) -> Option<Connection> {
        let index = self.connections.iter().position(|c| c.id == conn)?;
        Some(self.connections.swap_remove(index))
    }

    /// A connection is no more: what it was decides what is reported, and when the next try is.
    fn ended(&mut self, connection: Connection, loss: Loss, sink: &mut Sink<'_>) {
        let reason = match &loss {
            Loss::Connection(reason) => reason.clone(),
            Loss::Notification(notification) => notification.to_string(),
            Loss::Removed => "removed from the configuration".to_owned(),
        };
        let collision = matches!(
            &loss,
            Loss::Notification(n) if n.code == code::CEASE && n.subcode == cease::COLLISION
        );
        let quick = matches!(loss, Loss::Connection(_)) || collision;
        match (connection.state, connection.negotiated) {
            (State::Established, Some(negotiated)) => {
                self.info = reason;
                self.since = sink.now;
                self.flaps += 1;
                let negotiated = Box::new(negotiated);
                sink.sessions.push(Session::Down { loss, negotiated });
            }
            _ if collision => {}
            _ => {
                self.info.clone_from(&reason);
                sink.outputs.push(Output::Event(self.key, PeerEvent::Failed { reason }));
            }
        }
        if !self.connections.is_empty() || matches!(self.dial, Dial::Opening(_)) {
            return;
        }
        if collision {
            self.schedule(RETRY_AFTER_COLLISION, State::Active, sink);
        } else {
            self.retry(if quick { State::Active } else { State::Idle }, sink);
        }
    }

    /// Tries again after a time that doubles, with jitter (section 8.1.1, IdleHoldTime).
    fn retry(&mut self, state: State, sink: &mut Sink<'_>) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let wait = sink.jitter.apply(wait);
        self.schedule(wait, state, sink);
    }

    fn schedule(&mut self, wait: Duration, state: State, sink: &Sink<'_>) {
        self.dial = if self.config.passive { Dial::No } else { Dial::At(sink.now + wait, state) };
    }

    /// Takes a changed configuration; a session that it does not concern stays.
    pub(crate) fn reconfigure(&mut self, config: PeerConfig, sink: &mut Sink<'_>) {
        let reset = self.config.needs_reset(&config);
        self.config = config;
        if reset {
            let subcode = cease::CONFIGURATION;
            self.end_all(&Notification::new(code::CEASE, subcode), sink);
            self.failures = 0;
            self.schedule(Duration::ZERO, State::Active, sink);
        } else if self.dial == Dial::No && self.connections.is_empty() {
            self.schedule(Duration::ZERO, State::Active, sink);
        }
    }

    /// Says goodbye to a peer that is no longer configured (event 2; RFC 4486 subcode 3).
    pub(crate) fn deconfigure(&mut self, sink: &mut Sink<'_>) {
        self.end_all(&Notification::new(code::CEASE, cease::DECONFIGURED), sink);
    }

    fn end_all(&mut self, notification: &Notification, sink: &mut Sink<'_>) {
        if let Dial::Opening(conn) = self.dial {
            sink.outputs.push(Output::Close { conn });
        }
        self.dial = Dial::No;
        for connection in std::mem::take(&mut self.connections) {
            let bytes = wire::encode_notification(notification);
            sink.outputs.push(Output::Send { conn: connection.id, bytes });
            sink.outputs.push(Output::Close { conn: connection.id });
            self.messages_out += 1;
            if let (State::Established, Some(negotiated)) =
                (connection.state, connection.negotiated)
            {
                self.since = sink.now;
                self.flaps += 1;
                let negotiated = Box::new(negotiated);
                sink.sessions.push(Session::Down { loss: Loss::Removed, negotiated });
            }
        }
        self.info = notification.to_string();
    }

    fn schedule_keepalive(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            let interval = connection.keepalive_interval();
            let deadline = interval.map(|interval| sink.now + sink.jitter.apply(interval));
            connection.set_keepalive(deadline);
        }
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, conn: ConnId, bytes: Vec<u8>, sink: &mut Sink<'_>) {
        self.send_many(conn, bytes, 1, sink);
    }

    /// Sends `count` messages in one piece.
    pub(crate) fn send_many(
        &mut self,
        conn: ConnId,
        bytes: Vec<u8>,
        count: u64,
        sink: &mut Sink<'_>,
    ) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            connection.sent(bytes.len(), sink.now);
            self.messages_out += count;
            sink.outputs.push(Output::Send { conn, bytes });
        }
    }
}
