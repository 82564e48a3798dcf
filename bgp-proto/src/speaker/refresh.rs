//! Route refresh, both ways (RFC 2918, RFC 7313).

use std::time::Duration;

use twill_types::Family;

use super::{Speaker, restart::Exchange};
use crate::{
    PeerKey, RefreshError, Time,
    peer::Peer,
    wire::{Notification, RouteRefresh, cease, code},
};

/// A peer that begins a refresh and does not end it keeps what it has not told again for this long
/// (RFC 7313 section 4 leaves the bound to us).
const LONGEST_REFRESH: Duration = Duration::from_secs(360);

impl Speaker {
    pub(super) fn refresh(&mut self, now: Time, key: PeerKey, refresh: RouteRefresh) {
        match refresh.subtype {
            RouteRefresh::REQUEST => {
                if let Some(exchange) = self.exchanges.get_mut(&key) {
                    exchange.asked.insert(refresh.family);
                }
                self.answer_refresh(now, key);
            }
            RouteRefresh::BEGIN => self.begin_refresh(now, key, refresh.family),
            RouteRefresh::END => self.end_refresh(key, refresh.family),
            // The codec lets no other pass.
            _ => {}
        }
    }

    /// Tells again what was asked for, one family after the other, and each once the peer has taken what
    /// was sent before: one that asks faster than it reads is not answered more often than that. Before
    /// our End-of-RIB nothing of it can begin (RFC 7313 section 4).
    pub(super) fn answer_refresh(&mut self, now: Time, key: PeerKey) {
        while self.peers.get(&key).is_some_and(|peer| !peer.has_unsent()) {
            let exchange = self.exchanges.get_mut(&key);
            let Some(family) = exchange.and_then(Exchange::take_asked) else {
                return;
            };
            let messages = self.adj_out.refresh(&self.rib, key, family);
            self.send_established(now, key, messages);
        }
    }

    /// A BoRR: what is not told again until the EoRR is gone.
    fn begin_refresh(&mut self, now: Time, key: PeerKey, family: Family) {
        let established = self.peers.get(&key).and_then(Peer::established);
        let restarts = established.is_some_and(|(_, n)| n.graceful_restart().is_some());
        let awaited = self.exchanges.get(&key).is_some_and(|e| e.awaited.contains(&family));
        // RFC 7313 section 4: before the End-of-RIB of a peer with graceful restart it is ignored.
        if established.is_none() || restarts && awaited {
            return;
        }
        self.rib.mark_stale(key, family);
        self.refreshes.insert((key, family), now + LONGEST_REFRESH);
    }

    /// An EoRR. One without a BoRR is ignored.
    fn end_refresh(&mut self, key: PeerKey, family: Family) {
        if self.refreshes.remove(&(key, family)).is_some() {
            self.flush_stale(key, &[family]);
        }
    }

    pub(super) fn is_refreshing(&self, key: PeerKey, family: Family) -> bool {
        self.refreshes.contains_key(&(key, family))
    }

    /// The session is lost in the middle of a refresh: what was not told again yet is as good as what
    /// was, for graceful restart.
    pub(super) fn abandon_refreshes(&mut self, key: PeerKey) {
        for family in [Family::V4, Family::V6] {
            if self.refreshes.remove(&(key, family)).is_some() {
                self.rib.freshen(key, family);
            }
        }
    }

    /// Ends refreshes that took too long.
    pub(super) fn tick_refreshes(&mut self, now: Time) {
        let late = self.refreshes.iter().filter(|(_, deadline)| **deadline <= now);
        let late: Vec<(PeerKey, Family)> = late.map(|(refresh, _)| *refresh).collect();
        for (key, family) in late {
            self.end_refresh(key, family);
        }
    }

    /// Asks a peer for its routes of a family again, or of all that the session has (RFC 2918 section
    /// 4); returns which were asked for. What the peer does not tell again stays, unless it says where its
    /// answer begins and ends (RFC 7313).
    pub fn request_refresh(
        &mut self,
        now: Time,
        key: PeerKey,
        family: Option<Family>,
    ) -> Result<Vec<Family>, RefreshError> {
        let peer = self.peers.get(&key).ok_or(RefreshError::NoPeer)?;
        let (_, negotiated) =
            peer.established().ok_or_else(|| RefreshError::NotEstablished(peer.state()))?;
        if !negotiated.route_refresh {
            return Err(RefreshError::NoRouteRefresh);
        }
        let has = |family: &Family| negotiated.session.has(*family);
        let families: Vec<Family> = match family {
            Some(family) if !has(&family) => return Err(RefreshError::NoFamily(family)),
            Some(family) => vec![family],
            None => [Family::V4, Family::V6].into_iter().filter(has).collect(),
        };
        self.with_peer(now, key, |peer, sink| {
            for family in &families {
                peer.ask_again(*family, sink);
            }
        });
        Ok(families)
    }

    /// Asks a peer for everything again. One that cannot be asked gets a new session.
    pub(super) fn ask_again(&mut self, now: Time, key: PeerKey) {
        self.with_peer(now, key, |peer, sink| {
            if peer.established().is_none() {
                return;
            }
            let asked = [Family::V4, Family::V6].map(|family| peer.ask_again(family, sink));
            if asked.contains(&false) {
                peer.restart(&Notification::new(code::CEASE, cease::CONFIGURATION), sink);
            }
        });
    }
}
