//! One neighbour: its one or two connections, its timers and its state (RFC 4271 section 8).
//!
//! `docs/bgp-fsm.md` has every state and event. Both connections of a collision live here, so it is
//! resolved in one place (`collision`). A peer knows nothing of routes: what it learns about its
//! session it tells by [`Session`] events.

use std::{net::SocketAddr, time::Duration};

use twill_types::Family;

use crate::{
    ConnId, Output, PeerConfig, PeerEvent, PeerKey, SpeakerConfig, State, Time,
    connection::{Connection, Direction, Failure, Message, Negotiated},
    offer::{Offer, OwnRestart, Withheld},
    time::Jitter,
    wire::{self, Fault, Notification, RouteRefresh, UpdateIn, cease, code},
};

mod collision;
mod ending;
mod tally;

use self::tally::Tally;

#[cfg(test)]
mod tests;

/// An attempt to open a connection is given up after this time at the earliest. A peer that drops
/// SYNs must not hold up the retry for the two minutes that a kernel would try.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(5);

/// Why a session ended; what becomes of the peer's routes depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection went away without a word, or was replaced (RFC 4724 section 4.2).
    Connection(String),
    /// A NOTIFICATION ended it, theirs or ours (RFC 8538 section 4).
    Notification(Notification),
    /// The peer is no longer configured, or differently, or stopped: what it was told.
    Stopped(String),
}

/// What a peer reports.
#[derive(Debug)]
pub(crate) enum Session {
    Up,
    Down { loss: Loss, negotiated: Box<Negotiated> },
    Update(UpdateIn),
    Refresh(RouteRefresh),
}

/// What is done about the next connection of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// Idle: stopped, or not started yet. The peer's connections are refused.
    Stopped,
    /// Idle until the IdleHoldTimer expires. The peer's connections are refused.
    Held(Time),
    /// Active, without a timer: we are passive, or a connection is there.
    Listen,
    /// Active until the ConnectRetryTimer expires.
    Retry(Time),
    /// Connect: under way, until the ConnectRetryTimer expires.
    Opening(ConnId, Time),
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

/// What an OPEN of ours has in it. Of some fields of a peer, since its connections change meanwhile.
fn offer<'a>(
    sink: &'a Sink<'_>,
    peer: &'a PeerConfig,
    forwarding: bool,
    withheld: &'a Withheld,
) -> Offer<'a> {
    let restart = OwnRestart { restarting: sink.restarting, forwarding };
    Offer { speaker: sink.speaker, peer, restart, withheld }
}

/// One neighbour.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) key: PeerKey,
    pub(crate) config: PeerConfig,
    connections: Vec<Connection>,
    dial: Dial,
    /// What the peer has refused to see in an OPEN.
    withheld: Withheld,
    pub(crate) tally: Tally,
    /// Attempts without a session since the last one (ConnectRetryCounter): back-off of the
    /// ConnectRetryTimer.
    attempts: u32,
    /// Errors without a session that lasted since: back-off of the IdleHoldTimer.
    oscillations: u32,
    /// It has been Established in the life of this process.
    was_up: bool,
    pub(crate) since: Time,
    pub(crate) info: String,
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) flaps: u32,
}

impl Peer {
    /// One that is not started yet.
    pub(crate) fn new(key: PeerKey, config: PeerConfig, now: Time) -> Self {
        Self {
            key,
            config,
            connections: Vec::new(),
            dial: Dial::Stopped,
            withheld: Withheld::default(),
            tally: Tally::default(),
            attempts: 0,
            oscillations: 0,
            was_up: false,
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
            Dial::Stopped | Dial::Held(_) => State::Idle,
            Dial::Listen | Dial::Retry(_) => State::Active,
            Dial::Opening(..) => State::Connect,
        };
        self.connections.iter().map(|connection| connection.state).max().unwrap_or(dialling)
    }

    /// The Established connection.
    pub(crate) fn established(&self) -> Option<(&Connection, &Negotiated)> {
        let connection = self.connections.iter().find(|c| c.state == State::Established)?;
        Some((connection, connection.negotiated.as_ref()?))
    }

    /// Its connections: the one that is being opened, and those that are open.
    pub(crate) fn conns(&self) -> impl Iterator<Item = ConnId> {
        let opening = match self.dial {
            Dial::Opening(conn, _) => Some(conn),
            Dial::Stopped | Dial::Held(_) | Dial::Listen | Dial::Retry(_) => None,
        };
        opening.into_iter().chain(self.connections.iter().map(|connection| connection.id))
    }

    pub(crate) fn next_deadline(&self) -> Option<(Time, &'static str)> {
        self.timers().min()
    }

    /// Whether it has said nothing for the hold time on one of its connections.
    pub(crate) fn has_expired_hold(&self, now: Time) -> bool {
        self.connections.iter().any(|connection| connection.hold_expired(now))
    }

    /// The timers that run.
    fn timers(&self) -> impl Iterator<Item = (Time, &'static str)> {
        let dial = match self.dial {
            Dial::Held(deadline) => Some((deadline, "idle hold timer")),
            Dial::Retry(deadline) | Dial::Opening(_, deadline) => {
                Some((deadline, "connect retry timer"))
            }
            Dial::Stopped | Dial::Listen => None,
        };
        let report = self.tally.deadline().map(|deadline| (deadline, "error report timer"));
        self.connections.iter().flat_map(Connection::timers).chain(dial).chain(report)
    }

    fn find(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|c| c.id == conn)
    }

    /// Starts a peer that is not stopped by its administrator (events 1 and 4); one that waits in
    /// Idle starts now. Elsewhere a start changes nothing.
    pub(crate) fn start(&mut self, sink: &mut Sink<'_>) {
        if let Some(text) = &self.config.shutdown {
            self.info = Notification::cease_with_text(cease::SHUTDOWN, text).to_string();
        } else if matches!(self.dial, Dial::Stopped | Dial::Held(_)) {
            self.attempts = 0;
            self.oscillations = 0;
            self.begin(sink);
        }
    }

    fn begin(&mut self, sink: &mut Sink<'_>) {
        if self.config.passive {
            self.dial = Dial::Listen;
        } else {
            self.connect(sink);
        }
    }

    /// Timers (events 9 to 13; RFC 9687 has another).
    pub(crate) fn tick(&mut self, sink: &mut Sink<'_>) {
        match self.dial {
            Dial::Held(deadline) if deadline <= sink.now => self.begin(sink),
            Dial::Retry(deadline) if deadline <= sink.now => self.connect(sink),
            Dial::Opening(conn, deadline) if deadline <= sink.now => {
                "cannot connect: no answer".clone_into(&mut self.info);
                sink.outputs.push(Output::Close { conn });
                // It may have become passive in the meantime.
                self.begin(sink);
            }
            Dial::Stopped | Dial::Listen | Dial::Held(_) | Dial::Retry(_) | Dial::Opening(..) => {}
        }
        if let Some(count) = self.tally.expire(sink.now) {
            sink.outputs.push(Output::Event(self.key, PeerEvent::MoreBadUpdates { count }));
        }
        let ids: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
        for id in ids {
            self.tick_connection(id, sink);
        }
    }

    fn tick_connection(&mut self, id: ConnId, sink: &mut Sink<'_>) {
        let now = sink.now;
        // What was done for another connection may have ended this one.
        let Some(connection) = self.find(id) else {
            return;
        };
        if connection.hold_expired(now) {
            self.fail(id, Notification::new(code::HOLD_TIMER, 0), sink);
        } else if connection.send_hold_expired(now) {
            self.fail(id, Notification::new(code::SEND_HOLD_TIMER, 0), sink);
        } else if connection.yield_expired(now) {
            self.fail(id, Notification::new(code::CEASE, cease::COLLISION), sink);
        } else if connection.delay_expired(now) {
            self.send_open(id, sink);
        } else if connection.keepalive_due(now) {
            self.send_keepalive(id, sink);
        }
    }

    fn connect(&mut self, sink: &mut Sink<'_>) {
        let conn = ConnId(*sink.next_conn);
        *sink.next_conn += 1;
        let time = ending::back_off(self.attempts).max(SHORTEST_ATTEMPT);
        self.dial = Dial::Opening(conn, sink.now + sink.jitter.apply(time));
        sink.outputs.push(Output::Connect {
            conn,
            remote: self.key.socket(),
            local: self.config.local_address,
        });
    }

    /// Our connection is open (event 16).
    pub(crate) fn connected(&mut self, conn: ConnId, local: SocketAddr, sink: &mut Sink<'_>) {
        if matches!(self.dial, Dial::Opening(opening, _) if opening == conn) {
            self.dial = Dial::Listen;
            self.take_up(conn, Direction::Outgoing, local, sink);
        }
    }

    /// Our connection could not be opened (event 18).
    pub(crate) fn connect_failed(&mut self, conn: ConnId, reason: &str, sink: &mut Sink<'_>) {
        if matches!(self.dial, Dial::Opening(opening, _) if opening == conn) {
            self.info = format!("cannot connect: {reason}");
            self.dial = Dial::Listen;
            self.retry(sink);
        }
    }

    /// The peer has connected (events 14 and 17).
    pub(crate) fn accepted(&mut self, conn: ConnId, local: SocketAddr, sink: &mut Sink<'_>) {
        // RFC 4271 section 8.2.2: Idle refuses. Without a NOTIFICATION, which many a peer takes as
        // a reason to stay away for a minute.
        if matches!(self.dial, Dial::Stopped | Dial::Held(_)) {
            sink.outputs.push(Output::Close { conn });
            return;
        }
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
        self.take_up(conn, Direction::Incoming, local, sink);
    }

    fn take_up(
        &mut self,
        conn: ConnId,
        direction: Direction,
        local: SocketAddr,
        sink: &mut Sink<'_>,
    ) {
        let delay = self.config.delay_open;
        let connection = Connection::new(conn, direction, local, sink.now, sink.now + delay);
        self.connections.push(connection);
        if delay.is_zero() {
            self.send_open(conn, sink);
        }
    }

    /// Our OPEN goes out, and theirs is awaited (event 12, or at once).
    fn send_open(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        let offer = offer(sink, &self.config, self.was_up, &self.withheld);
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) else {
            return;
        };
        let open = connection.open(&offer);
        self.send(conn, open, sink);
        if let Some(connection) = self.find(conn) {
            connection.enter(State::OpenSent, sink.now);
        }
    }

    /// Whether the session has something on its way that the kernel has not taken yet.
    pub(crate) fn has_unsent(&self) -> bool {
        self.established().is_some_and(|(connection, _)| connection.has_unsent())
    }

    /// The kernel took bytes: the send hold timer starts again, or stops (RFC 9687).
    pub(crate) fn written(&mut self, conn: ConnId, count: usize, now: Time) {
        if let Some(connection) = self.find(conn) {
            connection.written(count, now);
        }
    }

    pub(crate) fn received(&mut self, conn: ConnId, bytes: Vec<u8>, sink: &mut Sink<'_>) {
        if let Some(connection) = self.find(conn) {
            connection.push(bytes);
        }
        // Each message may close the connection.
        while let Some(connection) = self.find(conn) {
            match connection.next_message(sink.now) {
                Ok(Some(message)) => {
                    self.messages_in += 1;
                    self.message(conn, message, sink);
                }
                Ok(None) => return,
                Err(Failure { notification, fault }) => {
                    if let Some((fault, body)) = &fault {
                        self.bad_update(fault, None, body, sink);
                    }
                    self.fail(conn, notification, sink);
                    if let Some((fault, _)) = fault {
                        self.info = format!("{}: {fault}", self.info);
                    }
                    return;
                }
            }
        }
    }

    /// Counts an error in an UPDATE, and tells it unless there were many just now: with the routes that the
    /// UPDATE was about, if they could be read, and with its first 4096 octets (RFC 7606 section 6 asks for all).
    fn bad_update(
        &mut self,
        fault: &Fault,
        update: Option<&wire::UpdateIn>,
        body: &[u8],
        sink: &mut Sink<'_>,
    ) {
        if self.tally.update_error(fault, sink.now) {
            let text = format!("{fault} ({})", fault.disposition.name());
            let routes = update.map(tally::named_routes).unwrap_or_default();
            let message = tally::evidence(body);
            let event = PeerEvent::BadUpdate { text, routes, message };
            sink.outputs.push(Output::Event(self.key, event));
        }
    }

    fn message(&mut self, conn: ConnId, message: Message, sink: &mut Sink<'_>) {
        match message {
            Message::Open(open) => self.opened(conn, open, sink),
            Message::Keepalive => self.confirmed(conn, sink),
            Message::Update(update, body) => {
                self.heard(conn, sink);
                for fault in &update.faults {
                    self.bad_update(fault, Some(&update), &body, sink);
                }
                sink.sessions.push(Session::Update(update));
            }
            Message::RouteRefresh(refresh) => {
                self.heard(conn, sink);
                sink.sessions.extend(refresh.map(Session::Refresh));
            }
            Message::Notification(notification) => self.notified(conn, notification, sink),
        }
    }

    /// The peer's OPEN (events 19 and 20), and the collision that it may show.
    fn opened(&mut self, conn: ConnId, open: wire::Open, sink: &mut Sink<'_>) {
        let offer = offer(sink, &self.config, self.was_up, &self.withheld);
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) else {
            return;
        };
        if let Err(notification) = connection.negotiate(open, &offer) {
            return self.fail(conn, notification, sink);
        }
        if connection.state != State::OpenSent {
            self.send_open(conn, sink);
        }
        if let Some(connection) = self.find(conn) {
            connection.enter(State::OpenConfirm, sink.now);
        }
        self.decide(conn, sink);
    }

    /// Accepts the peer's OPEN. Another connection of ours would only collide.
    fn accept_open(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if matches!(self.dial, Dial::Retry(_)) {
            self.dial = Dial::Listen;
        }
        self.send_keepalive(conn, sink);
    }

    /// A KEEPALIVE (event 26): in OpenConfirm it makes the session.
    fn confirmed(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        let Some(connection) = self.find(conn) else {
            return;
        };
        if connection.state != State::OpenConfirm {
            return;
        }
        if connection.yields_at.is_some() {
            self.preferred(conn, sink);
        }
        // What waited beside it may have been chosen over it.
        let Some(connection) = self.find(conn) else {
            return;
        };
        connection.enter(State::Established, sink.now);
        self.dump_others(conn, sink);
        if let Dial::Opening(conn, _) = self.dial {
            sink.outputs.push(Output::Close { conn });
        }
        self.dial = Dial::Listen;
        self.attempts = 0;
        self.since = sink.now;
        self.was_up = true;
        self.info = "Established".to_owned();
        sink.sessions.push(Session::Up);
    }

    /// Takes a changed configuration; a session that it does not concern stays.
    pub(crate) fn reconfigure(&mut self, config: PeerConfig, sink: &mut Sink<'_>) {
        let reset = self.config.needs_reset(&config);
        let keeps = self.config.keeps_paths(&config);
        let shutdown = config.shutdown != self.config.shutdown;
        let passive = config.passive && !self.config.passive;
        // What ended the session at the old limit may be right by the new one.
        let limit = config.policy.max_prefixes != self.config.policy.max_prefixes;
        self.config = config;
        match &self.config.shutdown {
            Some(text) if shutdown => {
                let text = text.clone();
                let said = Notification::cease_with_text(cease::SHUTDOWN, &text);
                return self.stop(&said, false, sink);
            }
            Some(_) => return,
            None => {}
        }
        if reset {
            self.withheld = Withheld::default();
        }
        if limit && matches!(self.dial, Dial::Held(_)) {
            return self.start(sink);
        }
        if reset && self.dial != Dial::Stopped {
            // Events 8 and 3: what was wrong may be right now, so nothing is waited for.
            self.stop(&Notification::new(code::CEASE, cease::CONFIGURATION), keeps, sink);
        }
        if self.dial == Dial::Stopped {
            return self.start(sink);
        }
        if passive && matches!(self.dial, Dial::Retry(_)) {
            self.dial = Dial::Listen;
        } else if self.dial == Dial::Listen && self.connections.is_empty() {
            self.begin(sink);
        }
    }

    /// Asks the peer for all its routes of a family again (RFC 2918 section 4); false if it cannot be
    /// asked.
    pub(crate) fn ask_again(&mut self, family: Family, sink: &mut Sink<'_>) -> bool {
        let Some((connection, negotiated)) = self.established() else {
            return false;
        };
        let (conn, can) = (connection.id, negotiated.route_refresh);
        if can && negotiated.session.has(family) {
            let request = RouteRefresh { family, subtype: RouteRefresh::REQUEST };
            self.send(conn, wire::encode_route_refresh(request), sink);
        }
        can
    }

    fn send_keepalive(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        self.send(conn, wire::encode_keepalive(), sink);
        let jitter = &mut *sink.jitter;
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
            let interval = connection.keepalive_interval();
            connection.set_keepalive(interval.map(|interval| sink.now + jitter.apply(interval)));
        }
    }

    /// Sends one message.
    fn send(&mut self, conn: ConnId, bytes: Vec<u8>, sink: &mut Sink<'_>) {
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
        if let Some(connection) = self.find(conn) {
            connection.sent(bytes.len(), sink.now);
            self.messages_out += count;
            sink.outputs.push(Output::Send { conn, bytes });
        }
    }
}
