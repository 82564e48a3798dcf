//! One TCP connection of a peer, from our OPEN to its end.

use std::{net::SocketAddr, time::Duration};

use twill_types::Family;

use crate::{
    ConnId, State, Time,
    offer::Offer,
    wire::{
        self, Capability, Fault, Frame, GracefulRestart, LongLivedFamily, MessageType,
        Notification, Open, Reset, Role, Session, code, open_error,
    },
};

/// The hold time while the peer's OPEN is awaited (RFC 4271 section 8.2.2 suggests 4 minutes).
const OPEN_HOLD: Duration = Duration::from_secs(240);

/// Without progress for this long, and never less than twice the hold time, a connection that does
/// not take our bytes is given up (RFC 9687 section 6 suggests both).
const SEND_HOLD: Duration = Duration::from_secs(480);

/// Who opened it; a collision is decided by it (RFC 4271 section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Outgoing,
    Incoming,
}

/// What the two OPENs agreed on.
#[derive(Debug, Clone)]
pub(crate) struct Negotiated {
    /// What the codec has to know.
    pub(crate) session: Session,
    /// Seconds; 0 is off.
    pub(crate) hold_time: u16,
    /// The peer's OPEN.
    pub(crate) open: Open,
    /// Both sides understand RFC 8538.
    pub(crate) notification_restart: bool,
    /// Families for which both sides have RFC 9494.
    pub(crate) long_lived: Vec<LongLivedFamily>,
    /// The peer answers a ROUTE-REFRESH (RFC 2918 section 2).
    pub(crate) route_refresh: bool,
    /// What the peer is to us, where both sides have said so (RFC 9234).
    pub(crate) role: Option<Role>,
}

impl Negotiated {
    pub(crate) fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.open.graceful_restart()
    }

    pub(crate) fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let session = self.session;
        [Family::V4, Family::V6].into_iter().filter(move |family| session.has(*family))
    }

    /// What the peer says that it is called.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.open.capabilities.iter().find_map(|capability| match capability {
            Capability::Fqdn { host, .. } if !host.is_empty() => Some(host.as_str()),
            _ => None,
        })
    }
}

/// A connection that TCP has opened.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) direction: Direction,
    pub(crate) local: SocketAddr,
    /// OpenSent, OpenConfirm or Established; Connect or Active while our OPEN is delayed.
    pub(crate) state: State,
    pub(crate) negotiated: Option<Negotiated>,
    /// When it came into its state.
    pub(crate) since: Time,
    /// The peer has sent what only an Established session carries: it is Established there too.
    pub(crate) heard: bool,
    /// It gives way to an Established one at this time, unless the peer decides before.
    pub(crate) yields_at: Option<Time>,
    /// What our OPEN offers, or will offer.
    offered: Option<Vec<Capability>>,
    /// When our OPEN goes out without waiting for the peer's (DelayOpenTimer).
    delay_open: Option<Time>,
    /// What has come in.
    buffer: Vec<u8>,
    /// How many octets of it are of messages that were taken out already.
    taken: usize,
    hold: Option<Time>,
    keepalive: Option<Time>,
    /// Bytes handed over that the kernel has not taken yet.
    unsent: usize,
    send_hold: Option<Time>,
}

/// Why what came in ends the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the peer is told.
    pub(crate) notification: Notification,
    /// What was wrong in an UPDATE, and its body.
    pub(crate) fault: Option<(Fault, Vec<u8>)>,
}

impl From<Notification> for Failure {
    fn from(notification: Notification) -> Self {
        Self { notification, fault: None }
    }
}

impl Failure {
    fn of_update(Reset { fault, notification }: Reset, body: &[u8]) -> Self {
        Self { notification, fault: Some((fault, body.to_vec())) }
    }
}

/// A message that came in, as far as the state of the connection allows it.
#[derive(Debug)]
pub(crate) enum Message {
    Open(Open),
    Keepalive,
    /// With its body, if anything was wrong with it (RFC 7606 section 6).
    Update(wire::UpdateIn, Vec<u8>),
    RouteRefresh(Option<wire::RouteRefresh>),
    Notification(Notification),
}

impl Connection {
    /// One that waits to send its OPEN until `delay_open` (RFC 4271 section 8.1.1).
    pub(crate) fn new(
        id: ConnId,
        direction: Direction,
        local: SocketAddr,
        now: Time,
        delay_open: Time,
    ) -> Self {
        Self {
            id,
            direction,
            local,
            state: match direction {
                Direction::Outgoing => State::Connect,
                Direction::Incoming => State::Active,
            },
            negotiated: None,
            since: now,
            heard: false,
            yields_at: None,
            offered: None,
            delay_open: Some(delay_open),
            buffer: Vec::new(),
            taken: 0,
            hold: None,
            keepalive: None,
            unsent: 0,
            send_hold: None,
        }
    }

    /// Takes what has come in. Nothing is copied unless a part of a message waits for the rest.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        if self.buffer.is_empty() {
            self.buffer = bytes;
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// Forgets the messages that were taken out, once for all of a read. What is left is less than a
    /// message, so a connection that waits holds no more than that.
    fn compact(&mut self) {
        self.buffer = match self.buffer.get(self.taken..) {
            Some(rest) if !rest.is_empty() => rest.to_vec(),
            _ => Vec::new(),
        };
        self.taken = 0;
    }

    /// The next whole message, decoded; `None` when more bytes are needed.
    pub(crate) fn next_message(&mut self, now: Time) -> Result<Option<Message>, Failure> {
        let max =
            self.negotiated.as_ref().map_or(wire::MAX_MESSAGE, |n| n.session.longest_received());
        let Some(frame) = wire::frame(self.buffer.get(self.taken..).unwrap_or_default(), max)?
        else {
            self.compact();
            return Ok(None);
        };
        let length = frame.length;
        let message = self.decode(frame)?;
        self.taken += length;
        // RFC 4271 section 8.2.2: KEEPALIVE and UPDATE restart the hold timer.
        if matches!(message, Message::Keepalive | Message::Update(..)) {
            self.restart_hold(now);
        }
        Ok(Some(message))
    }

    fn decode(&self, frame: Frame<'_>) -> Result<Message, Failure> {
        match (frame.kind, self.state, &self.negotiated) {
            (MessageType::Notification, ..) => {
                Ok(Message::Notification(Notification::decode(frame.body)))
            }
            (MessageType::Open, State::Connect | State::Active | State::OpenSent, _) => {
                Ok(Message::Open(wire::decode_open(frame.body)?))
            }
            (MessageType::Keepalive, State::OpenConfirm | State::Established, _) => {
                Ok(Message::Keepalive)
            }
            (MessageType::Update, State::Established, Some(negotiated)) => {
                let update = wire::decode_update(frame.body, &negotiated.session)
                    .map_err(|reset| Failure::of_update(reset, frame.body))?;
                let body = if update.faults.is_empty() { Vec::new() } else { frame.body.to_vec() };
                Ok(Message::Update(update, body))
            }
            (MessageType::RouteRefresh, State::Established, Some(negotiated)) => {
                let refresh = wire::decode_route_refresh(frame.body, &negotiated.session)?;
                Ok(Message::RouteRefresh(refresh))
            }
            (kind, state, _) => Err(unexpected(kind, state).into()),
        }
    }

    /// What our OPEN says: the same however often it is asked for.
    fn offered(&mut self, offer: &Offer<'_>) -> &[Capability] {
        self.offered.get_or_insert_with(|| offer.capabilities())
    }

    /// What our OPEN has said, if it is out or was compared with the peer's.
    pub(crate) fn has_offered(&self) -> &[Capability] {
        self.offered.as_deref().unwrap_or_default()
    }

    /// Our OPEN.
    pub(crate) fn open(&mut self, offer: &Offer<'_>) -> Vec<u8> {
        wire::encode_open(&Open {
            asn: offer.peer.local_asn(offer.speaker),
            hold_time: offer.peer.hold_time,
            identifier: offer.speaker.router_id,
            capabilities: self.offered(offer).to_vec(),
        })
    }

    /// Checks the peer's OPEN and keeps what it agrees on with ours (RFC 4271 section 6.2).
    pub(crate) fn negotiate(
        &mut self,
        mut open: Open,
        offer: &Offer<'_>,
    ) -> Result<(), Notification> {
        if open.asn != offer.peer.asn {
            return Err(Notification::bad_peer_as(open.asn));
        }
        let internal = offer.internal();
        // RFC 6286 section 2.3: unique within an AS.
        if internal && open.identifier == offer.speaker.router_id {
            return Err(Notification::new(code::OPEN, open_error::BAD_IDENTIFIER)
                .with_data(&open.identifier.octets()));
        }
        if let Some(role) = offer.role() {
            open.check_role(role, false)?;
        }
        let ours = self.offered(offer);
        let session = Session::negotiate(ours, &open, internal);
        if !session.ipv4 && !session.ipv6 {
            return Err(no_family(ours));
        }
        // What we do not say of ourselves does not count from the peer either (RFC 5492 section 3).
        let has = |wanted: fn(&Capability) -> bool| ours.iter().any(wanted);
        if !has(|c| matches!(c, Capability::GracefulRestart(_))) {
            open.capabilities.retain(|c| !matches!(c, Capability::GracefulRestart(_)));
        }
        let has_role = has(|c| matches!(c, Capability::Role(_)));
        let has_long_lived = |family: Family| {
            let of_it = |entry: &LongLivedFamily| entry.family == family;
            ours.iter().any(
                |c| matches!(c, Capability::LongLivedGracefulRestart(all) if all.iter().any(of_it)),
            )
        };
        let hold_time = offer.peer.hold_time.min(open.hold_time);
        self.negotiated = Some(Negotiated {
            session: Session { as_sets: offer.peer.policy.as_sets, ..session },
            hold_time,
            long_lived: open
                .long_lived_restart()
                .iter()
                .filter(|theirs| has_long_lived(theirs.family))
                .copied()
                .collect(),
            notification_restart: open.graceful_restart().is_some_and(|r| r.notification),
            route_refresh: open.capabilities.contains(&Capability::RouteRefresh),
            role: open.role()?.filter(|_| has_role),
            open,
        });
        Ok(())
    }

    pub(crate) fn enter(&mut self, state: State, now: Time) {
        self.state = state;
        self.since = now;
        match state {
            State::OpenSent => {
                self.delay_open = None;
                self.hold = Some(now + OPEN_HOLD);
            }
            // Without a hold time the KEEPALIVE is still not waited for without end.
            State::OpenConfirm if self.keepalive_interval().is_none() => {
                self.hold = Some(now + OPEN_HOLD);
            }
            State::OpenConfirm | State::Established => self.restart_hold(now),
            State::Idle | State::Connect | State::Active => {}
        }
    }

    fn restart_hold(&mut self, now: Time) {
        let hold_time = self.negotiated.as_ref().map_or(0, |n| n.hold_time);
        self.hold = (hold_time > 0).then(|| now + Duration::from_secs(hold_time.into()));
    }

    /// The interval between KEEPALIVEs: a third of the hold time (RFC 4271 section 10).
    pub(crate) fn keepalive_interval(&self) -> Option<Duration> {
        let hold_time = self.negotiated.as_ref()?.hold_time;
        (hold_time > 0).then(|| Duration::from_millis(u64::from(hold_time) * 1000 / 3))
    }

    pub(crate) fn set_keepalive(&mut self, deadline: Option<Time>) {
        self.keepalive = deadline;
    }

    pub(crate) fn keepalive_due(&self, now: Time) -> bool {
        self.keepalive.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn delay_expired(&self, now: Time) -> bool {
        self.delay_open.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn yield_expired(&self, now: Time) -> bool {
        self.yields_at.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn hold_expired(&self, now: Time) -> bool {
        self.hold.is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn send_hold_expired(&self, now: Time) -> bool {
        self.send_hold.is_some_and(|deadline| deadline <= now)
    }

    fn send_hold_time(&self) -> Duration {
        let hold_time = self.negotiated.as_ref().map_or(0, |n| n.hold_time);
        SEND_HOLD.max(Duration::from_secs(u64::from(hold_time) * 2))
    }

    /// Notes bytes on their way out.
    pub(crate) fn sent(&mut self, count: usize, now: Time) {
        self.unsent += count;
        if self.send_hold.is_none() {
            self.send_hold = Some(now + self.send_hold_time());
        }
    }

    pub(crate) const fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Notes bytes that the kernel took: progress restarts the send hold timer.
    pub(crate) fn written(&mut self, count: usize, now: Time) {
        self.unsent = self.unsent.saturating_sub(count);
        self.send_hold = (self.unsent > 0).then(|| now + self.send_hold_time());
    }

    /// The timers that run.
    pub(crate) fn timers(&self) -> impl Iterator<Item = (Time, &'static str)> + use<> {
        [
            (self.delay_open, "delay open timer"),
            (self.hold, "hold timer"),
            (self.keepalive, "keepalive timer"),
            (self.send_hold, "send hold timer"),
            (self.yields_at, "collision timer"),
        ]
        .into_iter()
        .filter_map(|(deadline, why)| Some((deadline?, why)))
    }
}

/// A session that could not carry a route (RFC 5492 section 3). The data is what is missed.
fn no_family(ours: &[Capability]) -> Notification {
    let mut data = Vec::new();
    for capability in ours.iter().filter(|c| matches!(c, Capability::MultiProtocol(_))) {
        capability.encode(&mut data);
    }
    Notification::new(code::OPEN, open_error::CAPABILITY).with_data(&data)
}

/// A message that has no place in this state (RFC 4271 section 6.6, subcodes by RFC 6608).
fn unexpected(kind: MessageType, state: State) -> Notification {
    let subcode = match state {
        State::OpenSent => wire::fsm_error::IN_OPEN_SENT,
        State::OpenConfirm => wire::fsm_error::IN_OPEN_CONFIRM,
        State::Established => wire::fsm_error::IN_ESTABLISHED,
        State::Idle | State::Connect | State::Active => 0,
    };
    Notification::new(code::FSM, subcode).with_data(&[kind.code()])
}
