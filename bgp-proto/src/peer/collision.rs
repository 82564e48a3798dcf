//! Two connections of one peer, and which of them stays (RFC 4271 section 6.8, RFC 4724 section 4.2).
//!
//! Both sides have to close the same one. What they know differs: one may be Established on a
//! connection that the other has already given up for the second. So a connection that the other
//! side may prefer is not closed before it is clear what the other side does: either it sends an
//! UPDATE on the first (it is Established there too), or a KEEPALIVE on the second (it has chosen).

use std::time::Duration;

use super::{Loss, Peer, Sink};
use crate::{
    ConnId, Output, State,
    connection::{Connection, Direction},
    wire::{Notification, cease, code},
};

/// A second connection on a session younger than this is a collision that was still on its way,
/// not a peer that has restarted. A peer confirms an OPEN, and closes what collides, well within it.
const RACE: Duration = Duration::from_secs(1);

/// What becomes of a connection whose OPEN came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It goes on alone.
    Stay,
    /// It goes on, and this one is closed with a Cease.
    Dump(ConnId),
    /// It goes on in place of this one, which the peer has lost: no NOTIFICATION.
    Replace(ConnId),
    /// It waits for what the peer does.
    Wait,
    /// It is closed with a Cease.
    End,
}

fn collision() -> Notification {
    Notification::new(code::CEASE, cease::COLLISION)
}

impl Peer {
    /// Goes on with a connection whose OPEN is in, unless it has to give way.
    pub(super) fn decide(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if let Some(connection) = self.find(conn) {
            connection.yields_at = None;
        }
        match self.verdict(conn, sink) {
            Verdict::Stay => {}
            Verdict::Dump(rival) => self.fail(rival, collision(), sink),
            Verdict::Replace(rival) => self.replace(rival, sink),
            Verdict::Wait => {
                if let Some(connection) = self.find(conn) {
                    connection.yields_at = Some(sink.now + RACE);
                }
                return;
            }
            Verdict::End => return self.fail(conn, collision(), sink),
        }
        self.accept_open(conn, sink);
    }

    fn verdict(&self, conn: ConnId, sink: &Sink<'_>) -> Verdict {
        let Some(new) = self.connections.iter().find(|c| c.id == conn) else {
            return Verdict::End;
        };
        let rivals = self.connections.iter().filter(|c| c.id != conn);
        let rivals = rivals.filter(|c| c.state >= State::OpenConfirm);
        let Some(rival) = rivals.max_by_key(|c| c.state) else {
            return Verdict::Stay;
        };
        let fresh = sink.now.since(rival.since) < RACE;
        // The peer does not dial twice: it has lost the first, or closes it.
        let again = new.direction == rival.direction;
        let new_wins = !again && new.direction == self.winner(new, sink);
        if rival.state == State::Established {
            let restarts =
                rival.negotiated.as_ref().is_some_and(|n| n.graceful_restart().is_some());
            return match (fresh, restarts) {
                // RFC 4724 section 4.2: the peer has restarted before its old connection was seen
                // to break. Its routes are kept.
                (false, true) => Verdict::Replace(rival.id),
                // RFC 4271 section 6.8: a collision with an Established one.
                (false, false) => Verdict::End,
                (true, _) if again || new_wins && !rival.heard => Verdict::Wait,
                (true, _) => Verdict::End,
            };
        }
        if again || !fresh {
            // One that is alive would have sent its KEEPALIVE by now.
            Verdict::Replace(rival.id)
        } else if new_wins {
            Verdict::Dump(rival.id)
        } else {
            Verdict::End
        }
    }

    /// The connection stays that the side with the higher identifier opened; of equal ones, the
    /// side with the higher AS number (RFC 6286 section 2.3).
    fn winner(&self, connection: &Connection, sink: &Sink<'_>) -> Direction {
        let ours = (sink.speaker.router_id, self.config.local_asn(sink.speaker));
        let theirs = connection.negotiated.as_ref().map(|n| (n.open.identifier, self.config.asn));
        match theirs.is_none_or(|theirs| ours > theirs) {
            true => Direction::Outgoing,
            false => Direction::Incoming,
        }
    }

    /// After one became Established: what else is there goes, or waits for the peer to say so.
    pub(super) fn dump_others(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        let Some(winner) = self.established().map(|(c, _)| self.winner(c, sink)) else {
            return;
        };
        let others: Vec<(ConnId, bool)> = self
            .connections
            .iter()
            .filter(|c| c.id != conn)
            .map(|c| (c.id, c.state == State::OpenSent && c.direction == winner))
            .collect();
        for (id, waits) in others {
            match self.find(id) {
                Some(connection) if waits => connection.yields_at = Some(sink.now + RACE),
                _ => self.fail(id, collision(), sink),
            }
        }
    }

    /// The peer is Established on this connection too: it will not choose another.
    pub(super) fn heard(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        let Some(connection) = self.find(conn) else {
            return;
        };
        if std::mem::replace(&mut connection.heard, true) {
            return;
        }
        let direction = connection.direction;
        let others: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|c| c.yields_at.is_some() && c.direction != direction)
            .map(|c| c.id)
            .collect();
        for id in others {
            self.fail(id, collision(), sink);
        }
    }

    /// The peer has confirmed a connection that waited: it has given up the Established one.
    pub(super) fn preferred(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if let Some(connection) = self.find(conn) {
            connection.yields_at = None;
        }
        if let Some(id) = self.established().map(|(connection, _)| connection.id) {
            self.replace(id, sink);
        }
        self.accept_open(conn, sink);
    }

    /// What waited for an Established connection goes on without it.
    pub(super) fn resume(&mut self, sink: &mut Sink<'_>) {
        while self.established().is_none()
            && let Some(waiting) = self.connections.iter_mut().find(|c| c.yields_at.is_some())
        {
            waiting.yields_at = None;
            let (id, state) = (waiting.id, waiting.state);
            if state == State::OpenConfirm {
                self.decide(id, sink);
            }
        }
    }

    fn replace(&mut self, conn: ConnId, sink: &mut Sink<'_>) {
        if let Some(connection) = self.forget(conn) {
            sink.outputs.push(Output::Close { conn });
            let reason = "the peer opened a new connection".to_owned();
            self.ended(connection, Loss::Connection(reason.clone()), reason, sink);
        }
    }
}
