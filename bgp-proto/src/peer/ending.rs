//! How connections end, and what is done then: damping and back-off.

use std::time::Duration;

use super::{Dial, Loss, Peer, Session, Sink};
use crate::{
    ConnId, Output, PeerEvent, State,
    connection::{Connection, Direction},
    wire::{self, Notification, cease, code},
};

/// The first attempt after a loss, and after it twice as long each time, up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// After a peer with a graceful restart in hand refused a connection as colliding, it has dropped
/// the old session, and takes the next one (seen with FRR). One that goes on refusing waits for its
/// hold timer, and should not wait for us after that.
const FIRST_AFTER_COLLISION: Duration = Duration::from_millis(50);
const LONGEST_AFTER_COLLISION: Duration = Duration::from_secs(1);
/// A peer with more prefixes than it may have needs an operator, not another try at once: the first
/// wait, and the longest, as it doubles.
const FIRST_AFTER_LIMIT: Duration = Duration::from_secs(60);
const LONGEST_AFTER_LIMIT: Duration = Duration::from_secs(3600);
/// A session that lasted this long has not oscillated.
const STABLE: Duration = Duration::from_secs(60);

/// The wait after so many failures in a row, without jitter.
pub(super) fn back_off(failures: u32) -> Duration {
    doubled(FIRST_RETRY, failures).min(LONGEST_RETRY)
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(10))
}

fn is_collision(loss: &Loss) -> bool {
    matches!(loss, Loss::Notification(n) if n.code == code::CEASE && n.subcode == cease::COLLISION)
}

/// Whether one side had more than the other takes.
fn is_limit(loss: &Loss) -> bool {
    let Loss::Notification(notification) = loss else {
        return false;
    };
    let inner = notification.inner();
    let reason = inner.as_ref().unwrap_or(notification);
    reason.code == code::CEASE && matches!(reason.subcode, cease::MAX_PREFIXES | cease::RESOURCES)
}

/// After a session that is not to come back soon the peer shall not keep our routes: one that would is
/// told so by a Hard Reset around what is said (RFC 8538 section 3.1).
fn goodbye(notification: &Notification, connection: &Connection) -> Notification {
    let last = matches!(
        notification.subcode,
        cease::DECONFIGURED | cease::SHUTDOWN | cease::MAX_PREFIXES | cease::RESOURCES
    );
    if !last || !connection.negotiated.as_ref().is_some_and(|n| n.notification_restart) {
        return notification.clone();
    }
    notification.clone().into_hard_reset()
}

impl Peer {
    /// A connection broke (event 18).
    pub(crate) fn closed(&mut self, conn: ConnId, reason: &str, sink: &mut Sink<'_>) {
        if let Some(connection) = self.forget(conn) {
            let loss = Loss::Connection(reason.to_owned());
            self.ended(connection, loss, reason.to_owned(), sink);
        }
    }

    /// A NOTIFICATION came (events 24 and 25). It is never answered (RFC 4271 section 6.4).
    pub(super) fn notified(
        &mut self,
        conn: ConnId,
        notification: Notification,
        sink: &mut Sink<'_>,
    ) {
        self.report(false, &notification, sink);
        sink.outputs.push(Output::Close { conn });
        let Some(connection) = self.forget(conn) else {
            return;
        };
        let changed = self.withheld.learn(&notification, connection.has_offered());
        let reason = format!("received {notification}");
        self.ended(connection, Loss::Notification(notification), reason, sink);
        if changed {
            self.info = format!("{}; the next OPEN goes {}", self.info, self.withheld);
        }
    }

    /// Counts a NOTIFICATION, and tells it.
    fn report(&mut self, sent: bool, notification: &Notification, sink: &mut Sink<'_>) {
        self.tally.notification(sent, notification);
        let event = PeerEvent::Notification { sent, notification: notification.clone() };
        sink.outputs.push(Output::Event(self.key, event));
    }

    /// Ends the session of a peer that announces more than it may (event 8; RFC 4486 section 4).
    pub(crate) fn contain(&mut self, said: &Notification, sink: &mut Sink<'_>) {
        if let Some((connection, _)) = self.established() {
            let said = goodbye(said, connection);
            self.fail(connection.id, said, sink);
        }
    }

    /// Ends a connection with a NOTIFICATION of ours, also one whose OPEN is delayed
    /// (SendNOTIFICATIONwithoutOPEN of RFC 4271 section 8.1.1).
    pub(super) fn fail(&mut self, conn: ConnId, notification: Notification, sink: &mut Sink<'_>) {
        self.send(conn, wire::encode_notification(&notification), sink);
        // RFC 9687 section 4: what the peer does not take is not waited for.
        sink.outputs.push(match notification.code {
            code::SEND_HOLD_TIMER => Output::Abort { conn },
            _ => Output::Close { conn },
        });
        self.report(true, &notification, sink);
        if let Some(connection) = self.forget(conn) {
            let reason = format!("sent {notification}");
            self.ended(connection, Loss::Notification(notification), reason, sink);
        }
    }

    /// Ends a connection before Established without a word.
    pub(super) fn remove(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if self.forget(conn).is_some() {
            sink.outputs.push(Output::Close { conn });
        }
    }

    pub(super) fn forget(&mut self, conn: ConnId) -> Option<Connection> {
        let index = self.connections.iter().position(|c| c.id == conn)?;
        Some(self.connections.swap_remove(index))
    }

    /// Stops until it is started again (event 2). With `keeps` the peer's paths are still good, and stay
    /// as they would for a NOTIFICATION of any kind (RFC 8538 section 4).
    pub(super) fn stop(&mut self, notification: &Notification, keeps: bool, sink: &mut Sink<'_>) {
        if let Dial::Opening(conn, _) = self.dial {
            sink.outputs.push(Output::Close { conn });
        }
        self.dial = Dial::Stopped;
        self.attempts = 0;
        self.oscillations = 0;
        for connection in std::mem::take(&mut self.connections) {
            let said = goodbye(notification, &connection);
            let bytes = wire::encode_notification(&said);
            sink.outputs.push(Output::Send { conn: connection.id, bytes });
            sink.outputs.push(Output::Close { conn: connection.id });
            self.report(true, &said, sink);
            self.messages_out += 1;
            if let (State::Established, Some(negotiated)) =
                (connection.state, connection.negotiated)
            {
                self.since = sink.now;
                self.flaps += 1;
                let negotiated = Box::new(negotiated);
                let loss = match keeps {
                    true => Loss::Notification(said),
                    false => Loss::Stopped(notification.to_string()),
                };
                sink.sessions.push(Session::Down { loss, negotiated });
            }
        }
        self.info = notification.to_string();
    }

    /// Ends the session for a new one at once: what was wrong is right now (events 8 and 3).
    pub(crate) fn restart(&mut self, notification: &Notification, sink: &mut Sink<'_>) {
        self.stop(notification, true, sink);
        self.start(sink);
    }

    /// Says goodbye to a peer that is no longer configured (event 2; RFC 4486 subcode 3).
    pub(crate) fn deconfigure(&mut self, sink: &mut Sink<'_>) {
        self.stop(&Notification::new(code::CEASE, cease::DECONFIGURED), false, sink);
    }

    /// A connection is no more: what it was decides what is reported, and when the next try is.
    /// `reason` is for people, and says which side ended it.
    pub(super) fn ended(
        &mut self,
        connection: Connection,
        loss: Loss,
        reason: String,
        sink: &mut Sink<'_>,
    ) {
        let (collision, wordless) = (is_collision(&loss), matches!(loss, Loss::Connection(_)));
        let limit = is_limit(&loss);
        let established = connection.state == State::Established;
        let lasted = established && sink.now.since(connection.since) >= STABLE;
        if let (true, Some(negotiated)) = (established, connection.negotiated) {
            self.info = reason;
            self.since = sink.now;
            self.flaps += 1;
            let negotiated = Box::new(negotiated);
            sink.sessions.push(Session::Down { loss, negotiated });
        } else if !collision {
            self.info.clone_from(&reason);
            sink.outputs.push(Output::Event(self.key, PeerEvent::Failed { reason }));
        }
        if lasted {
            self.oscillations = 0;
        }
        if established {
            self.resume(sink);
        }
        let busy = matches!(self.dial, Dial::Opening(..))
            || self
                .connections
                .iter()
                .any(|c| c.direction == Direction::Outgoing || c.state >= State::OpenConfirm);
        if busy {
            return;
        }
        if !collision && !wordless && self.connections.is_empty() {
            return self.hold_idle(limit, sink);
        }
        if matches!(self.dial, Dial::Retry(_)) {
            return;
        }
        if collision {
            let wait = doubled(FIRST_AFTER_COLLISION, self.attempts).min(LONGEST_AFTER_COLLISION);
            self.attempts = self.attempts.saturating_add(1);
            self.wait(wait, sink);
        } else if wordless && established {
            // Most likely it restarts, and is let in at any time; only our attempts are damped.
            self.wait(back_off(self.oscillations), sink);
            self.oscillations = self.oscillations.saturating_add(1);
        } else {
            self.retry(sink);
        }
    }

    /// Tries again in Active, after a time that doubles, with jitter (ConnectRetryTime).
    pub(super) fn retry(&mut self, sink: &mut Sink<'_>) {
        let wait = back_off(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        self.wait(wait, sink);
    }

    fn wait(&mut self, wait: Duration, sink: &mut Sink<'_>) {
        self.dial = match self.config.passive {
            true => Dial::Listen,
            false => Dial::Retry(sink.now + sink.jitter.apply(wait)),
        };
    }

    /// Waits in Idle, for a time that doubles, with jitter: DampPeerOscillations (RFC 4271 section
    /// 8.1.1, IdleHoldTime).
    fn hold_idle(&mut self, limit: bool, sink: &mut Sink<'_>) {
        let wait = match limit {
            true => doubled(FIRST_AFTER_LIMIT, self.oscillations).min(LONGEST_AFTER_LIMIT),
            false => back_off(self.oscillations),
        };
        let wait = sink.jitter.apply(wait);
        self.oscillations = self.oscillations.saturating_add(1);
        self.dial = Dial::Held(sink.now + wait);
    }
}
