//! Restarts: of peers, whose routes are kept for a while, and of this node, whose old kernel routes
//! are (RFC 4724, RFC 8538).

use std::{collections::BTreeSet, time::Duration};

use twill_types::Family;

use super::Speaker;
use crate::{
    Output, PeerEvent, PeerKey, Time,
    adj_out::Messages,
    connection::Negotiated,
    peer::{Loss, Peer},
    rib::PeerFacts,
    wire::{self, GracefulRestart, cease, code},
};

/// A peer that is back but does not finish sending its routes keeps its stale ones no longer than
/// this (RFC 4724 section 4.2 asks for an upper bound).
const LONGEST_RESYNC: Duration = Duration::from_secs(360);

/// What is kept beside the session of a peer.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// When its stale routes go.
    stale_until: Option<Time>,
    /// Families whose End-of-RIB has not come since the session is up.
    awaited: BTreeSet<Family>,
    /// After our restart its routes are waited for before old kernel routes go.
    pub(super) holds_convergence: bool,
}

impl Speaker {
    pub(super) fn tick(&mut self, now: Time) {
        let due: Vec<PeerKey> = self
            .peers
            .values()
            .filter(|peer| peer.next_deadline().is_some_and(|(deadline, _)| deadline <= now))
            .map(|peer| peer.key)
            .collect();
        for key in due {
            self.with_peer(now, key, Peer::tick);
        }
        let expired: Vec<PeerKey> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.stale_until.is_some_and(|deadline| deadline <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            self.flush_stale(key, &[Family::V4, Family::V6]);
        }
    }

    pub(super) fn up(&mut self, now: Time, key: PeerKey) {
        let Some((_, negotiated)) = self.peers.get(&key).and_then(Peer::established) else {
            return;
        };
        let facts = PeerFacts {
            external: !negotiated.session.internal,
            router_id: negotiated.open.identifier,
        };
        let families: BTreeSet<Family> = negotiated.families().collect();
        let restart = negotiated.graceful_restart().cloned();
        self.rib.set_peer(key, facts);
        // RFC 4724 section 4.2: what the peer did not keep forwarding for is not kept.
        let kept: Vec<Family> = kept_families(restart.as_ref());
        let lost: Vec<Family> =
            [Family::V4, Family::V6].into_iter().filter(|f| !kept.contains(f)).collect();
        let flushed = self.rib.flush_stale(key, &lost);
        self.report_flushed(key, flushed);
        let (_, stale) = self.rib.count(key);
        let waits = match &restart {
            // RFC 4724 section 4.1: one that has restarted too waits for us.
            Some(restart) => !restart.restarting,
            None => false,
        };
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.stale_until = (stale > 0).then(|| now + LONGEST_RESYNC);
            exchange.awaited = families.clone();
            exchange.holds_convergence &= waits;
        }
        let mut messages = match self.export_view(key) {
            Some(view) => self.adj_out.join(key, view),
            None => Messages::default(),
        };
        for family in &families {
            wire::encode_end_of_rib(*family, &mut messages.bytes);
            messages.count += 1;
        }
        self.send_established(now, key, messages);
    }

    /// The end of a session (RFC 4724 section 4.2, RFC 8538 section 4).
    pub(super) fn down(&mut self, now: Time, key: PeerKey, loss: &Loss, negotiated: &Negotiated) {
        let restart = negotiated.graceful_restart();
        let keeps = match loss {
            Loss::Connection(_) => true,
            Loss::Notification(n) => {
                negotiated.notification_restart
                    && !(n.code == code::CEASE && n.subcode == cease::HARD_RESET)
            }
            Loss::Stopped(_) => false,
        };
        let kept_for = restart
            .filter(|restart| keeps && restart.restart_time > 0)
            .map(|restart| Duration::from_secs(restart.restart_time.into()));
        match (kept_for, restart) {
            (Some(_), Some(restart)) => {
                let families: Vec<Family> = restart.families.iter().map(|f| f.family).collect();
                self.rib.keep_stale(key, &families);
            }
            _ => self.rib.flush(key),
        }
        self.adj_out.leave(key);
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.awaited.clear();
            exchange.stale_until = kept_for.map(|time| now + time);
        }
        let reason = match loss {
            Loss::Connection(reason) => reason.clone(),
            Loss::Notification(notification) => notification.to_string(),
            Loss::Stopped(reason) => reason.clone(),
        };
        self.outputs.push_back(Output::Event(key, PeerEvent::Down { reason, kept_for }));
    }

    /// The peer has sent all that it has of a family (RFC 4724 section 2).
    pub(super) fn synchronized(&mut self, key: PeerKey, family: Family) {
        self.flush_stale(key, &[family]);
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.awaited.remove(&family);
            exchange.holds_convergence &= !exchange.awaited.is_empty();
        }
    }

    pub(super) fn flush_stale(&mut self, key: PeerKey, families: &[Family]) {
        let count = self.rib.flush_stale(key, families);
        self.report_flushed(key, count);
        let (_, left) = self.rib.count(key);
        if let Some(exchange) = self.exchanges.get_mut(&key)
            && left == 0
        {
            exchange.stale_until = None;
        }
    }

    fn report_flushed(&mut self, key: PeerKey, count: usize) {
        if count > 0 {
            self.outputs.push_back(Output::Event(key, PeerEvent::StaleFlushed { count }));
        }
    }

    /// Ends the restart once nobody is waited for any more.
    pub(super) fn converge(&mut self, now: Time) {
        let Some(deadline) = self.converge_by else {
            return;
        };
        // A next hop that is still looked for stands for routes that are not out yet.
        let waiting = self.exchanges.values().any(|exchange| exchange.holds_convergence)
            || self.rib.has_unknown_next_hops();
        if (self.configured && !waiting) || deadline <= now {
            self.converge_by = None;
            self.outputs.push_back(Output::Converged);
        }
    }
}

/// The families for which the peer kept forwarding (the F bit).
fn kept_families(restart: Option<&GracefulRestart>) -> Vec<Family> {
    let families = restart.map(|restart| restart.families.as_slice()).unwrap_or_default();
    families.iter().filter(|entry| entry.forwarding).map(|entry| entry.family).collect()
}
