//! What every input and every turn asks of all peers, kept up to date as peers change: with a thousand
//! sessions an input costs what it does with one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ConnId, PeerKey, Time, peer::Peer};

/// What was noted of one peer.
#[derive(Debug, Default)]
struct Noted {
    connections: Vec<ConnId>,
    deadline: Option<Time>,
}

/// Whose a connection is, and whose timer is next.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    noted: BTreeMap<PeerKey, Noted>,
    owners: BTreeMap<ConnId, PeerKey>,
    deadlines: BTreeSet<(Time, PeerKey)>,
}

impl Lookup {
    /// Takes note of a peer after anything that may have changed it.
    pub(super) fn note(&mut self, peer: &Peer) {
        let noted = self.noted.entry(peer.key).or_default();
        let deadline = peer.next_deadline().map(|(deadline, _)| deadline);
        if noted.deadline != deadline {
            if let Some(old) = noted.deadline {
                self.deadlines.remove(&(old, peer.key));
            }
            self.deadlines.extend(deadline.map(|new| (new, peer.key)));
            noted.deadline = deadline;
        }
        if !peer.conns().eq(noted.connections.iter().copied()) {
            for conn in noted.connections.drain(..) {
                self.owners.remove(&conn);
            }
            noted.connections.extend(peer.conns());
            self.owners.extend(noted.connections.iter().map(|conn| (*conn, peer.key)));
        }
    }

    /// Forgets a peer that is no peer any more.
    pub(super) fn forget(&mut self, key: PeerKey) {
        let Some(noted) = self.noted.remove(&key) else {
            return;
        };
        for conn in noted.connections {
            self.owners.remove(&conn);
        }
        if let Some(deadline) = noted.deadline {
            self.deadlines.remove(&(deadline, key));
        }
    }

    /// The peer that a connection belongs to.
    pub(super) fn owner(&self, conn: ConnId) -> Option<PeerKey> {
        self.owners.get(&conn).copied()
    }

    /// The peer whose timer is next.
    pub(super) fn next(&self) -> Option<PeerKey> {
        self.deadlines.first().map(|(_, key)| *key)
    }

    /// The peers whose timers have expired.
    pub(super) fn due(&self, now: Time) -> Vec<PeerKey> {
        self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::Speaker;

    impl Speaker {
        /// Holds what was noted against what the peers themselves say.
        pub(crate) fn check_lookup(&self) {
            let peers = || self.peers.values();
            let owners = peers().flat_map(|peer| peer.conns().map(|conn| (conn, peer.key)));
            assert_eq!(self.lookup.owners, owners.collect());
            let deadlines = peers().filter_map(|peer| Some((peer.next_deadline()?.0, peer.key)));
            assert_eq!(self.lookup.deadlines, deadlines.collect());
            assert_eq!(self.lookup.noted.len(), self.peers.len());
        }
    }
}
