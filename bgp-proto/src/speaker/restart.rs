//! Restarts: of peers, whose routes are kept for a while, and of this node, whose old kernel routes
//! are (RFC 4724, RFC 8538, RFC 9494).
//!
//! What is kept of one family of a peer that is away goes through at most two phases:
//!
//! ```text
//!   session lost ──> stale ──(restart time)──> long-lived stale ──(long-lived stale time)──> gone
//!                      │                              │
//!                      └── back with F: until End-of-RIB; back without: gone at once
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use twill_types::Family;

use super::Speaker;
use crate::{
    Output, PeerEvent, PeerKey, SpeakerConfig, Time,
    adj_out::Messages,
    connection::Negotiated,
    peer::{Loss, Peer},
    rib::PeerFacts,
    wire::{cease, code},
};

/// A peer that is back but does not finish sending its routes keeps its stale ones no longer than
/// this (RFC 4724 section 4.2 asks for an upper bound).
const LONGEST_RESYNC: Duration = Duration::from_secs(360);
/// After our restart, a peer that is not to be waited for (RFC 4724 section 4.1) still has this long
/// to say what it has in hand: kernel routes that went before it would be back a moment later. FRR
/// gathers for a second before its first UPDATE. A start that has found no routes waits so long for
/// anyone at the most, since there is nothing to keep meanwhile.
const FIRST_ROUTES: Duration = Duration::from_secs(5);

/// After our restart, routes are passed on no later than this, whoever has not been heard: sooner than a peer that
/// has restarted, too, gives up what it has of ours from before ([`FIRST_ROUTES`]).
const PASSING: Duration = Duration::from_secs(4);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// How long a start may wait to have heard everything (the Selection_Deferral_Timer of RFC 4724
/// section 4.1).
pub(super) fn deferral(config: &SpeakerConfig) -> Duration {
    match config.forwarding.is_empty() {
        true => config.selection_deferral.min(FIRST_ROUTES),
        false => config.selection_deferral,
    }
}

/// How long a start may pass nothing on. What is passed on then may be a choice out of half of what there is: at a
/// peer it takes the place of a better path to the same prefix, kept from before, until that one is heard of again.
/// What a peer was not told again it gives up only at our End-of-RIB, which waits for the end of the start.
pub(super) fn passing(config: &SpeakerConfig) -> Duration {
    deferral(config).min(PASSING)
}

/// What is kept beside the session of a peer.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Families with stale paths.
    kept: BTreeMap<Family, Kept>,
    /// Families whose End-of-RIB has not come since the session is up.
    pub(super) awaited: BTreeSet<Family>,
    hold: Hold,
    /// Families of which the peer has asked for everything again while it had not taken what was sent.
    pub(super) asked: BTreeSet<Family>,
    /// Paths were left out since the session is up.
    pub(super) crowded: bool,
    /// Families whose End-of-RIB waits until this node has heard everything itself.
    owed: BTreeSet<Family>,
}

/// Why the stale paths of a family are still there, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// The peer is away. At the end they go, or stay for this long-lived stale time.
    Restart { until: Time, long_lived: Option<Duration> },
    /// The peer is back and sends its routes.
    Resync { until: Time },
    /// They are the last resort. The time goes on until the peer has sent everything, whatever its
    /// sessions do (RFC 9494 section 4.2).
    LongLived { until: Time },
    /// The same, but their time was over while the peer sent its routes: another loss is the end.
    Overdue { until: Time },
}

impl Kept {
    const fn timer(self) -> (Time, &'static str) {
        match self {
            Self::Restart { until, .. } => (until, "restart timer"),
            Self::Resync { until } | Self::Overdue { until } => (until, "resynchronization timer"),
            Self::LongLived { until } => (until, "long-lived stale timer"),
        }
    }
}

/// Whether the end of our start waits for a peer (RFC 4724 section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    No,
    /// Until it has sent everything.
    EndOfRib,
    /// The same, but not after this time.
    FirstRoutes(Time),
}

impl Exchange {
    /// That of a peer without a session; with `awaited` its routes are waited for.
    pub(super) fn new(awaited: bool) -> Self {
        let hold = if awaited { Hold::EndOfRib } else { Hold::No };
        Self { hold, ..Self::default() }
    }

    /// The peer is not waited for any more.
    pub(super) const fn release(&mut self) {
        self.hold = Hold::No;
    }

    /// The end of our start waits for the peer.
    pub(super) const fn is_awaited(&self) -> bool {
        !matches!(self.hold, Hold::No)
    }

    /// The next family to tell again.
    pub(super) fn take_asked(&mut self) -> Option<Family> {
        let family = self.asked.difference(&self.owed).next().copied()?;
        self.asked.remove(&family);
        Some(family)
    }

    /// The timers that run.
    pub(super) fn timers(&self) -> impl Iterator<Item = (Time, &'static str)> {
        let hold = match self.hold {
            Hold::FirstRoutes(until) => Some((until, "selection deferral timer")),
            Hold::No | Hold::EndOfRib => None,
        };
        self.kept.values().map(|kept| kept.timer()).chain(hold)
    }

    /// When the first stale paths go or become long-lived.
    pub(super) fn stale_until(&self) -> Option<Time> {
        self.kept.values().map(|kept| kept.timer().0).min()
    }

    /// The same for those of one family.
    pub(super) fn kept_until(&self, family: Family) -> Option<Time> {
        self.kept.get(&family).map(|kept| kept.timer().0)
    }

    /// Some stale paths are the last resort.
    pub(super) fn is_long_lived(&self) -> bool {
        let last = |kept: &Kept| matches!(kept, Kept::LongLived { .. } | Kept::Overdue { .. });
        self.kept.values().any(last)
    }
}

impl Speaker {
    /// This speaker has started, and not heard everything yet (the R bit of RFC 4724 section 3). Whether
    /// forwarding went on before that is another matter (the F bits).
    pub(super) const fn is_restarting(&self) -> bool {
        self.converge_by.is_some()
    }

    /// Kernel routes of the process before wait for the end of the start.
    pub(super) fn keeps_old_routes(&self) -> bool {
        self.is_restarting() && !self.config.forwarding.is_empty()
    }

    pub(super) fn tick(&mut self, now: Time) {
        for key in self.lookup.due(now) {
            self.with_peer(now, key, Peer::tick);
        }
        self.tick_refreshes(now);
        let mut expired = Vec::new();
        for (key, exchange) in &mut self.exchanges {
            if matches!(exchange.hold, Hold::FirstRoutes(until) if until <= now) {
                exchange.hold = Hold::No;
            }
            let over = exchange.kept.iter().filter(|(_, kept)| kept.timer().0 <= now);
            expired.extend(over.map(|(family, kept)| (*key, *family, *kept)));
        }
        for (key, family, kept) in expired {
            self.expire(now, key, family, kept);
        }
    }

    /// The time of stale paths is over.
    fn expire(&mut self, now: Time, key: PeerKey, family: Family, kept: Kept) {
        let is_up = self.peers.get(&key).is_some_and(|peer| peer.established().is_some());
        match kept {
            Kept::Restart { long_lived: Some(time), .. } => {
                self.begin_long_lived(key, family);
                self.keep(key, family, Kept::LongLived { until: now + time });
            }
            // RFC 9494 section 4.2: what is about to be replaced stays until then.
            Kept::LongLived { .. } if is_up => {
                self.keep(key, family, Kept::Overdue { until: now + LONGEST_RESYNC });
            }
            _ => self.flush_stale(key, &[family]),
        }
    }

    fn begin_long_lived(&mut self, key: PeerKey, family: Family) {
        let dropped = self.rib.begin_long_lived(key, family);
        self.report_flushed(key, dropped);
        if self.rib.count_of(key, family).1 > 0 {
            self.outputs.push_back(Output::Event(key, PeerEvent::LongLived(family)));
        }
    }

    /// Notes why stale paths are kept, if there are any.
    fn keep(&mut self, key: PeerKey, family: Family, kept: Kept) {
        let any = self.rib.count_of(key, family).1 > 0;
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            match any {
                true => exchange.kept.insert(family, kept),
                false => exchange.kept.remove(&family),
            };
        }
    }

    pub(super) fn up(&mut self, now: Time, key: PeerKey) {
        // After the end of the session that this one may replace.
        self.outputs.push_back(Output::Event(key, PeerEvent::Up));
        let Some((_, negotiated)) = self.peers.get(&key).and_then(Peer::established) else {
            return;
        };
        let negotiated = negotiated.clone();
        let facts = PeerFacts {
            external: !negotiated.session.internal,
            router_id: negotiated.open.identifier,
            client: self.peers.get(&key).is_some_and(|peer| peer.config.client),
        };
        let families: BTreeSet<Family> = negotiated.families().collect();
        // What others were told of the peer's paths was told of the peer as it was.
        self.settle(now);
        self.rib.set_peer(key, facts);
        self.resume_kept(now, key, &negotiated);
        let restart = negotiated.graceful_restart();
        let keeps_nothing = !self.keeps_old_routes();
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.awaited.clone_from(&families);
            // RFC 4724 section 4.1: without graceful restart it sends no End-of-RIB, and one that has
            // restarted too may wait for ours first.
            let is_left_out = restart.is_none_or(|restart| restart.restarting);
            if families.is_empty() || is_left_out && keeps_nothing {
                exchange.release();
            } else if exchange.is_awaited() && is_left_out {
                exchange.hold = Hold::FirstRoutes(now + FIRST_ROUTES);
            }
        }
        let mut messages = match self.export_view(key) {
            Some(view) => self.adj_out.join(&self.rib, key, view),
            None => Messages::default(),
        };
        // After a start who passes routes on does not know yet which, and tells none. Until it says that
        // this is all, the peer keeps what it was told before.
        let owes = self.rib.passes_on() && self.is_restarting();
        match self.exchanges.get_mut(&key).filter(|_| owes) {
            Some(exchange) => exchange.owed = families,
            None => messages.end(&families),
        }
        self.send_established(now, key, messages);
    }

    /// A peer is back: what it did not keep forwarding for is not kept (RFC 4724 section 4.2, RFC 9494
    /// section 4.2).
    fn resume_kept(&mut self, now: Time, key: PeerKey, negotiated: &Negotiated) {
        let kept = self.exchanges.get(&key).map(|exchange| exchange.kept.clone());
        let kept = kept.unwrap_or_default();
        for family in FAMILIES {
            let forwarded = negotiated.session.has(family)
                && match kept.get(&family) {
                    Some(Kept::LongLived { .. } | Kept::Overdue { .. }) => negotiated
                        .long_lived
                        .iter()
                        .any(|entry| entry.family == family && entry.forwarding),
                    _ => negotiated.graceful_restart().is_some_and(|restart| {
                        restart.families.iter().any(|f| f.family == family && f.forwarding)
                    }),
                };
            match kept.get(&family) {
                Some(Kept::Restart { .. }) if forwarded => {
                    self.keep(key, family, Kept::Resync { until: now + LONGEST_RESYNC });
                }
                Some(_) if forwarded => {}
                _ => self.flush_stale(key, &[family]),
            }
        }
    }

    /// The end of a session (RFC 4724 section 4.2, RFC 8538 section 4, RFC 9494 section 4.2).
    pub(super) fn down(&mut self, now: Time, key: PeerKey, loss: &Loss, negotiated: &Negotiated) {
        self.abandon_refreshes(key);
        let keeps = match loss {
            Loss::Connection(_) => true,
            Loss::Notification(n) => {
                negotiated.notification_restart
                    && !(n.code == code::CEASE && n.subcode == cease::HARD_RESET)
            }
            Loss::Stopped(_) => false,
        };
        let before = self.exchanges.get_mut(&key).map(|exchange| {
            exchange.awaited.clear();
            exchange.owed.clear();
            exchange.asked.clear();
            exchange.crowded = false;
            std::mem::take(&mut exchange.kept)
        });
        let before = before.unwrap_or_default();
        let phases: BTreeMap<Family, Kept> = FAMILIES
            .into_iter()
            .filter(|_| keeps)
            .filter_map(|family| {
                // Its time goes on, and so do the paths that it is about.
                let running = before.get(&family).filter(|k| matches!(k, Kept::LongLived { .. }));
                let kept = running.copied().or_else(|| phase(now, family, negotiated))?;
                Some((family, kept))
            })
            .collect();
        let families: Vec<Family> = phases.keys().copied().collect();
        let last = |kept: &Kept| matches!(kept, Kept::LongLived { .. });
        let again: Vec<Family> =
            before.iter().filter(|(_, kept)| last(kept)).map(|(family, _)| *family).collect();
        match families.is_empty() {
            true => self.rib.flush(key),
            false => self.rib.keep_stale(key, &families, &again),
        }
        self.adj_out.leave(key);
        for (family, kept) in &phases {
            if last(kept) {
                self.begin_long_lived(key, *family);
            }
            self.keep(key, *family, *kept);
        }
        let reason = match loss {
            Loss::Connection(reason) => reason.clone(),
            Loss::Notification(notification) => notification.to_string(),
            Loss::Stopped(reason) => reason.clone(),
        };
        let kept_for = phases.values().map(|kept| longest(now, *kept)).max();
        self.outputs.push_back(Output::Event(key, PeerEvent::Down { reason, kept_for }));
    }

    /// The peer has sent all that it has of a family (RFC 4724 section 2).
    pub(super) fn synchronized(&mut self, key: PeerKey, family: Family) {
        // What a refresh has marked waits for its own end.
        if !self.is_refreshing(key, family) {
            self.flush_stale(key, &[family]);
        }
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.awaited.remove(&family);
            if exchange.awaited.is_empty() {
                exchange.release();
            }
        }
    }

    pub(super) fn flush_stale(&mut self, key: PeerKey, families: &[Family]) {
        let count = self.rib.flush_stale(key, families);
        self.report_flushed(key, count);
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.kept.retain(|family, _| !families.contains(family));
        }
    }

    fn report_flushed(&mut self, key: PeerKey, count: usize) {
        if count > 0 {
            self.outputs.push_back(Output::Event(key, PeerEvent::StaleFlushed { count }));
        }
    }

    /// Ends the start once nobody is waited for any more. What is passed on is told then, and that this
    /// was all (RFC 4724 section 4.1).
    pub(super) fn converge(&mut self, now: Time) {
        if self.pass_by.is_some_and(|deadline| deadline <= now) {
            self.end_deferral(now);
        }
        let Some(deadline) = self.converge_by else {
            return;
        };
        let awaited = self.exchanges.iter().filter(|(_, exchange)| exchange.is_awaited());
        let unheard: Vec<PeerKey> = awaited.map(|(key, _)| *key).collect();
        // A next hop that is still looked for stands for routes that are not out yet.
        let waiting = !unheard.is_empty() || self.rib.has_unknown_next_hops();
        if (self.configured && !waiting) || deadline <= now {
            let unheard = if self.keeps_old_routes() { unheard } else { Vec::new() };
            self.converge_by = None;
            self.outputs.push_back(Output::Converged { unheard });
            self.end_deferral(now);
            self.send_owed(now);
        }
    }

    /// Tells what is passed on, if nothing was yet.
    fn end_deferral(&mut self, now: Time) {
        self.pass_by = None;
        if self.rib.end_deferral() {
            self.settle(now);
        }
    }

    /// Tells peers that this was all.
    fn send_owed(&mut self, now: Time) {
        let owed = self.exchanges.iter_mut().map(|(key, e)| (*key, std::mem::take(&mut e.owed)));
        for (key, families) in owed.filter(|(_, owed)| !owed.is_empty()).collect::<Vec<_>>() {
            let mut messages = Messages::default();
            messages.end(&families);
            self.send_established(now, key, messages);
            self.answer_refresh(now, key);
        }
    }
}

/// What becomes of a peer's routes of a family when it is lost; `None` when they go.
fn phase(now: Time, family: Family, negotiated: &Negotiated) -> Option<Kept> {
    let restart = negotiated.graceful_restart()?;
    let seconds = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    let covered = restart.families.iter().any(|entry| entry.family == family);
    let time = seconds(restart.restart_time.into()).filter(|_| covered);
    let long_lived = negotiated.long_lived.iter().find(|entry| entry.family == family);
    let long_lived = long_lived.and_then(|entry| seconds(entry.stale_time));
    match (time, long_lived) {
        (Some(time), long_lived) => Some(Kept::Restart { until: now + time, long_lived }),
        // RFC 9494 section 4.2: a restart time of zero, or a family that it does not cover.
        (None, Some(time)) => Some(Kept::LongLived { until: now + time }),
        (None, None) => None,
    }
}

/// How long routes are kept from now on if the peer does not come back.
fn longest(now: Time, kept: Kept) -> Duration {
    let then = match kept {
        Kept::Restart { long_lived, .. } => long_lived.unwrap_or_default(),
        Kept::Resync { .. } | Kept::LongLived { .. } | Kept::Overdue { .. } => Duration::ZERO,
    };
    kept.timer().0.since(now) + then
}
