//! The paths of all peers, and what follows from them for the kernel.
//!
//! ```text
//!   UPDATE ──> AdjRibsIn ──(dirty destinations)──> decision ──> LocRib ──> routes for the kernel
//!                  │                                  ^            ^
//!                  └─> NextHops ──(reachable, how far)┘            └── Own: blocks, parts lent
//! ```
//!
//! What others are told is made of what the node originates, and not of these (`adj_out.rs`), unless the
//! node is a route reflector (`passed.rs`).

mod adj_in;
mod loc;
#[cfg(test)]
mod model;
mod next_hops;
mod passed;
mod slab;
mod unpacked;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use twill_types::{BgpNextHop, Family, Prefix, PrefixList};

use self::{
    adj_in::{AdjRibsIn, Destination, Path, Source, Table},
    loc::{Forwarding, LocRib},
    passed::Passed,
    slab::Id,
};
use crate::{
    Conflict, NextHopState, Own, PathKey, PeerKey, Reflection, RouteChange, RouteSnapshot,
    decision::{Candidate, decide, order},
    explain::{Explanation, Outcome, PathExplanation, Unusable},
    policy::RoutePolicy,
    wire::{Nlri, PathAttributes},
};

/// What the decision has to know of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerFacts {
    pub(crate) external: bool,
    pub(crate) router_id: Ipv4Addr,
    /// This node as a route reflector passes its routes on to all internal peers.
    pub(crate) client: bool,
}

/// Where what is passed on comes from.
#[derive(Debug, Clone)]
pub(crate) struct Passing {
    pub(crate) peer: PeerKey,
    pub(crate) facts: PeerFacts,
    pub(crate) attributes: Arc<PathAttributes>,
    /// The cluster of this node; `None` if it is no route reflector.
    pub(crate) cluster_id: Option<Ipv4Addr>,
    /// By whom and why.
    pub(crate) passed: PassedOn,
}

pub(crate) use self::{
    passed::{Pass, PassedOn, Why},
    unpacked::Unpacked,
};

/// Adj-RIBs-In and Loc-RIB.
#[derive(Debug, Default)]
pub(crate) struct Rib {
    adj_in: AdjRibsIn,
    loc: LocRib,
    passed: Passed,
    max_paths: usize,
    /// Peers whose paths all go with the next decision.
    lost: Vec<PeerKey>,
    /// How many of these [`Rib::surviving_next_hops`] has looked at.
    lost_told: usize,
}

impl Rib {
    pub(crate) fn new(max_paths: usize) -> Self {
        Self { max_paths, ..Self::default() }
    }

    /// What is known of a peer from now on, as its session comes up.
    pub(crate) fn set_peer(&mut self, peer: PeerKey, facts: PeerFacts) {
        if self.adj_in.set_facts(peer, facts) {
            // The same path may have to be told in another way.
            self.passed.tell_again();
        }
    }

    /// Whose routes this node passes on as a route reflector.
    pub(crate) fn set_reflection(&mut self, reflection: Option<Reflection>) {
        if self.passed.set(reflection) {
            self.adj_in.touch_all();
        }
    }

    /// Whether there are peers whose filters name what was learned from others.
    pub(crate) fn set_passed_by_filter(&mut self, by_filter: bool) {
        if self.passed.set_by_filter(by_filter) {
            self.adj_in.touch_all();
        }
    }

    /// Whether anything that was learned may be passed on.
    pub(crate) const fn passes_on(&self) -> bool {
        !self.passed.is_idle()
    }

    /// Passes nothing on until [`Rib::end_deferral`].
    pub(crate) const fn defer_passing_on(&mut self) {
        self.passed.defer();
    }

    /// Passes on what is the best from now on; says whether there is to be anything.
    pub(crate) fn end_deferral(&mut self) -> bool {
        let follows = self.passed.end_deferral();
        if follows {
            self.adj_in.touch_all();
        }
        follows
    }

    /// What is passed on to a destination.
    pub(crate) fn passed_on(&self, prefix: Prefix) -> Option<PassedOn> {
        self.adj_in.find(prefix).and_then(|(place, _)| self.passed.source(place))
    }

    /// The cluster that this node reflects routes for.
    pub(crate) fn cluster_id(&self) -> Option<Ipv4Addr> {
        self.passed.reflection().map(|reflection| reflection.cluster_id)
    }

    /// Destinations of which peers are to be told something else than before. What they name stays
    /// known until [`Rib::forget_passes`].
    pub(crate) fn take_passes(&mut self) -> Vec<Pass> {
        self.passed.take()
    }

    /// Peers were told.
    pub(crate) fn forget_passes(&mut self, passes: &[Pass]) {
        for pass in passes.iter().filter(|pass| pass.old != pass.new) {
            if let Some(old) = pass.old {
                self.adj_in.release(old.source, 1);
            }
        }
        self.adj_in.remove_forgotten();
        // A next hop that only these paths had is used no more.
        self.adj_in.next_hops.forget_unused();
    }

    /// Everything that is passed on, by prefix.
    pub(crate) fn all_passed(&self) -> impl Iterator<Item = (Prefix, PassedOn)> {
        self.adj_in
            .places()
            .filter_map(|(prefix, place)| Some((prefix, self.passed.source(place)?)))
    }

    /// What is passed on.
    pub(crate) fn passing(&self, passed: PassedOn, unpacked: &mut Unpacked) -> Option<Passing> {
        let source = self.adj_in.sources.get(passed.source)?;
        let table = self.adj_in.peers.get(source.peer)?;
        Some(Passing {
            peer: table.key,
            facts: table.facts?,
            attributes: unpacked.get(passed.source, source.attributes())?,
            cluster_id: self.cluster_id(),
            passed,
        })
    }

    /// What is taken from a peer. What it has announced is looked at again.
    pub(crate) fn set_import(
        &mut self,
        peer: PeerKey,
        policy: Option<&Arc<RoutePolicy>>,
        internal: bool,
    ) {
        self.adj_in.set_import(peer, policy, internal);
    }

    /// Paths of a peer that its policy refuses.
    pub(crate) fn refused(&self, peer: PeerKey) -> usize {
        if self.lost.contains(&peer) { 0 } else { self.adj_in.refused(peer) }
    }

    /// Drops everything from a peer that is no peer any more.
    pub(crate) fn forget_peer(&mut self, peer: PeerKey) {
        self.adj_in.forget(peer);
    }

    /// Takes in paths of a peer; says how many were left out, as there were too many to their prefix.
    pub(crate) fn announce(
        &mut self,
        peer: PeerKey,
        attributes: PathAttributes,
        routes: impl IntoIterator<Item = Nlri>,
    ) -> usize {
        self.flush_lost();
        self.adj_in.announce(peer, attributes, routes)
    }

    pub(crate) fn withdraw(&mut self, peer: PeerKey, routes: impl IntoIterator<Item = Nlri>) {
        self.adj_in.withdraw(peer, routes);
    }

    /// Marks a peer's paths of these families as stale, and drops the others and those that already
    /// were, but for those of families in `again` (RFC 4724 section 4.2, RFC 9494 section 4.2).
    pub(crate) fn keep_stale(&mut self, peer: PeerKey, families: &[Family], again: &[Family]) {
        self.adj_in.keep_stale(peer, families, again);
    }

    /// Gives a peer's stale paths of a family the community LLGR_STALE, and drops those that must
    /// not be kept so; says how many (RFC 9494 section 4.2).
    pub(crate) fn begin_long_lived(&mut self, peer: PeerKey, family: Family) -> usize {
        self.adj_in.begin_long_lived(peer, family)
    }

    /// Marks all paths of a peer of one family as stale, those included that already were (RFC 7313
    /// section 4).
    pub(crate) fn mark_stale(&mut self, peer: PeerKey, family: Family) {
        self.adj_in.mark_stale(peer, family);
    }

    /// Takes a peer's stale paths of one family for good ones.
    pub(crate) fn freshen(&mut self, peer: PeerKey, family: Family) {
        self.adj_in.freshen(peer, family);
    }

    /// Drops a peer's stale paths of these families; says how many.
    pub(crate) fn flush_stale(&mut self, peer: PeerKey, families: &[Family]) -> usize {
        self.adj_in.flush_stale(peer, families)
    }

    /// Drops everything from a peer with the next decision. What that costs is in proportion to its
    /// table, and [`Rib::surviving_next_hops`] can be told before.
    pub(crate) fn flush(&mut self, peer: PeerKey) {
        if !self.lost.contains(&peer) {
            self.lost.push(peer);
        }
    }

    fn flush_lost(&mut self) {
        self.lost_told = 0;
        for peer in std::mem::take(&mut self.lost) {
            self.adj_in.flush(peer);
        }
    }

    /// The next hops to track from now on, if some go with the peers that were lost since the last
    /// decision. [`Rib::take_next_hops`] tells them again after it.
    pub(crate) fn surviving_next_hops(&mut self) -> Option<BTreeSet<BgpNextHop>> {
        if self.lost_told == self.lost.len() {
            return None;
        }
        self.lost_told = self.lost.len();
        self.adj_in.next_hops_without(&self.lost)
    }

    /// What this node has from now on. Paths to parts of it stay, unused: it may be somebody else's
    /// the next time.
    pub(crate) fn set_own(&mut self, own: Own) {
        for changed in self.loc.set_own(own) {
            let inside: Vec<Id> = self.adj_in.within(changed).collect();
            for place in inside {
                self.adj_in.touch(place);
            }
        }
    }

    /// What peers announce of what this node has, if that has changed since the last call.
    pub(crate) fn take_conflicts(&mut self) -> Option<Vec<Conflict>> {
        self.loc.take_conflicts()
    }

    /// What became known of next hops.
    pub(crate) fn set_next_hops(&mut self, states: BTreeMap<BgpNextHop, NextHopState>) {
        self.adj_in.set_next_hops(states);
    }

    /// Decides anew for what has changed since the last time.
    pub(crate) fn recompute(&mut self) -> Vec<RouteChange> {
        self.flush_lost();
        // By the set of next hops that they have now.
        let mut changed: BTreeMap<Option<Id>, PrefixList> = BTreeMap::new();
        let mut selection = Selection::default();
        for place in self.adj_in.take_dirty() {
            let Some((prefix, destination)) = self.adj_in.destination(place) else {
                continue;
            };
            let is_own = self.loc.note_conflict(prefix, self.announcer(destination));
            if !selection.is_of(destination) {
                selection = self.selection(destination);
            }
            let best = selection.best.filter(|_| !is_own);
            if self.passed.note(place, prefix, best)
                && let Some(source) = best
            {
                self.adj_in.hold(source);
            }
            let none = Forwarding::default();
            let forwarding = if is_own { &none } else { &selection.forwarding };
            if self.loc.select(place, forwarding) {
                changed.entry(self.loc.set(place)).or_default().push(prefix);
            }
            if let Some(destination) = self.adj_in.destinations.get_mut(place) {
                for (path, used) in destination.paths.iter_mut().zip(&selection.used) {
                    path.used = *used && !is_own;
                }
            }
            self.adj_in.remove_empty(place);
        }
        self.adj_in.next_hops.forget_unused();
        let change = |(set, prefixes)| {
            let Forwarding { next_hops, backup } =
                self.loc.forwarding(set).cloned().unwrap_or_default();
            RouteChange { prefixes, next_hops, backup }
        };
        changed.into_iter().map(change).collect()
    }

    fn selection(&self, destination: &Destination) -> Selection {
        let usable = self.usable(destination);
        let mut candidates: Vec<Candidate<'_>> = usable.iter().map(Usable::candidate).collect();
        decide(&mut candidates, self.max_paths, &mut |_| {});
        let next_hops: BTreeSet<BgpNextHop> = candidates.iter().map(Candidate::next_hop).collect();
        let next_hops: Arc<[BgpNextHop]> = next_hops.into_iter().collect();
        let backup = match next_hops[..] {
            [only] => self.best_without(&usable, only),
            _ => None,
        };
        let paths: BTreeSet<PathKey> = candidates.iter().map(|candidate| candidate.path).collect();
        let is_used = |path: &Path| {
            let origin = self.adj_in.origin(*path);
            origin.is_some_and(|(source, table)| paths.contains(&source.key(table)))
        };
        let best = candidates.first().map(|best| best.path);
        let is_best = |path: &&Path| {
            let origin = self.adj_in.origin(**path);
            origin.is_some_and(|(source, table)| Some(source.key(table)) == best)
        };
        Selection {
            best: destination.paths.iter().find(is_best).map(|path| path.source),
            sources: destination.paths.iter().map(|path| path.source).collect(),
            used: destination.paths.iter().map(is_used).collect(),
            forwarding: Forwarding { next_hops, backup },
        }
    }

    /// The next hop of the path that would be the best if none had the next hop `lost`. The decision
    /// is made anew: a path that lost by MED may win where the one that beat it is gone.
    fn best_without(&self, usable: &[Usable], lost: BgpNextHop) -> Option<BgpNextHop> {
        let all = usable.iter().map(Usable::candidate);
        let mut left: Vec<Candidate<'_>> = all.filter(|path| path.next_hop() != lost).collect();
        decide(&mut left, 1, &mut |_| {});
        left.first().map(Candidate::next_hop)
    }

    /// Who announces a destination; the first of several by address.
    fn announcer(&self, destination: &Destination) -> Option<PeerKey> {
        let origins = destination.paths.iter().filter_map(|path| self.adj_in.origin(*path));
        origins.filter(|(source, _)| !source.is_refused()).map(|(_, table)| table.key).min()
    }

    /// The paths of a destination that could be used.
    fn usable(&self, destination: &Destination) -> Vec<Usable> {
        let usable = |path: &Path| {
            let (source, table) = self.adj_in.origin(*path)?;
            usable(source, table).ok()
        };
        destination.paths.iter().filter_map(usable).collect()
    }

    /// Everything about the paths to this prefix.
    pub(crate) fn explain(&self, prefix: Prefix) -> Explanation {
        let mut explanation = Explanation::new(prefix, &self.loc.own, self.max_paths);
        let Some((place, destination)) = self.adj_in.find(prefix) else {
            return explanation;
        };
        explanation.next_hops = self.loc.next_hops(place).to_vec();
        let candidates = self.usable(destination);
        let mut used: Vec<Candidate<'_>> = candidates.iter().map(Usable::candidate).collect();
        let mut losses = BTreeMap::new();
        decide(&mut used, self.max_paths, &mut |loss| {
            losses.insert(loss.path, loss);
        });
        let fate = |source: &Source, table: &Table| {
            if source.is_refused() {
                return Outcome::Unusable(Unusable::Filtered);
            }
            if let Some(ours) = explanation.own {
                return Outcome::Unusable(Unusable::Own(ours));
            }
            if self.loc.own.anycast.contains(&prefix) {
                return Outcome::Unusable(Unusable::Anycast);
            }
            let usable = match usable(source, table) {
                Ok(usable) => usable,
                Err(why) => return Outcome::Unusable(why),
            };
            let candidate = usable.candidate();
            match (losses.get(&candidate.path), used.first()) {
                (Some(loss), _) => Outcome::Lost { step: loss.step, against: loss.against },
                (None, Some(best)) if best.path != candidate.path => {
                    Outcome::Equal { step: order(best, &candidate), against: best.path }
                }
                (None, _) => Outcome::Best,
            }
        };
        let explained = |path: &Path| {
            let (source, table) = self.adj_in.origin(*path)?;
            Some(PathExplanation {
                from: table.key,
                path_id: source.path_id,
                external: table.facts.is_some_and(|facts| facts.external),
                router_id: table.facts.map(|facts| facts.router_id),
                attributes: Arc::new(source.attributes().unpack()?),
                stale: AdjRibsIn::is_stale(*path, prefix.family(), table),
                stale_for: None,
                next_hop: source.next_hop,
                refused_by: table.refusal(source, prefix),
                outcome: fate(source, table),
            })
        };
        explanation.paths = destination.paths.iter().filter_map(explained).collect();
        explanation.paths.sort_by_key(|path| (path.outcome.place(), path.from, path.path_id));
        explanation
    }

    /// The prefix of this node's own that covers this one.
    pub(crate) fn own_covering(&self, prefix: Prefix) -> Option<Prefix> {
        let own = &self.loc.own;
        let ours = own.prefixes.range(..=prefix).next_back().map(|(ours, _)| *ours);
        // These may lie in each other.
        let shared = own.anycast.iter().copied().filter(|ours| ours.covers(prefix)).max();
        ours.filter(|ours| ours.covers(prefix)).max(shared)
    }

    /// The most specific prefix that covers this one and has a path.
    pub(crate) fn covering(&self, prefix: Prefix) -> Option<Prefix> {
        (0..=prefix.length())
            .rev()
            .filter_map(|length| Prefix::masked(prefix.address(), length).ok())
            .find(|covering| self.adj_in.find(*covering).is_some())
    }

    /// Whether there are next hops of which nothing is known yet.
    pub(crate) const fn has_unknown_next_hops(&self) -> bool {
        self.adj_in.next_hops.has_unknown()
    }

    /// The next hops to track, if that set has changed since the last call.
    pub(crate) fn take_next_hops(&mut self) -> Option<BTreeSet<BgpNextHop>> {
        self.adj_in.next_hops.take()
    }

    /// Paths of a peer: all, and stale ones.
    pub(crate) fn count(&self, peer: PeerKey) -> (usize, usize) {
        if self.lost.contains(&peer) { (0, 0) } else { self.adj_in.count(peer) }
    }

    /// What the attributes of a peer's paths take, in octets.
    pub(crate) fn weight(&self, peer: PeerKey) -> usize {
        if self.lost.contains(&peer) { 0 } else { self.adj_in.weight(peer) }
    }

    /// Paths of a peer of one family: all, and stale ones.
    pub(crate) fn count_of(&self, peer: PeerKey, family: Family) -> (usize, usize) {
        if self.lost.contains(&peer) { (0, 0) } else { self.adj_in.count_of(peer, family) }
    }

    pub(crate) fn snapshot(&self) -> impl Iterator<Item = RouteSnapshot> {
        let mut unpacked = Unpacked::default();
        self.adj_in.iter().flat_map(move |(prefix, destination)| {
            let snapshot = |path: &Path| {
                let (source, table) = self.adj_in.origin(*path)?;
                Some(RouteSnapshot {
                    prefix,
                    from: Some(table.key),
                    path_id: source.path_id,
                    attributes: Some(unpacked.get(path.source, source.attributes())?),
                    best: path.used,
                    stale: AdjRibsIn::is_stale(*path, prefix.family(), table),
                })
            };
            let mut all: Vec<_> = destination.paths.iter().filter_map(snapshot).collect();
            all.sort_by_key(|route| (route.from, route.path_id));
            all
        })
    }
}

/// What was decided on one destination, which holds for each other with paths of the same sources:
/// nothing else goes into the decision, and the prefixes of one UPDATE have them in common.
#[derive(Debug, Default)]
struct Selection {
    sources: Vec<Id>,
    /// Whether each of the paths is used.
    used: Vec<bool>,
    /// The source of the best.
    best: Option<Id>,
    forwarding: Forwarding,
}

impl Selection {
    fn is_of(&self, destination: &Destination) -> bool {
        destination.paths.iter().map(|path| path.source).eq(self.sources.iter().copied())
    }
}

/// A path that could be used.
struct Usable {
    path: PathKey,
    attributes: PathAttributes,
    facts: PeerFacts,
    metric: u32,
}

impl Usable {
    /// As the decision sees it.
    const fn candidate(&self) -> Candidate<'_> {
        Candidate {
            path: self.path,
            attributes: &self.attributes,
            external: self.facts.external,
            metric: self.metric,
            router_id: self.facts.router_id,
        }
    }
}

/// A path that can be used, or why it cannot (RFC 4271 section 9.1.2).
fn usable(source: &Source, table: &Table) -> Result<Usable, Unusable> {
    if source.is_refused() {
        return Err(Unusable::Filtered);
    }
    let facts = table.facts.ok_or(Unusable::NextHopUnknown)?;
    match source.next_hop {
        None => Err(Unusable::NextHopUnknown),
        Some(NextHopState::Unreachable) => Err(Unusable::NextHopUnreachable),
        Some(NextHopState::Reachable { metric }) => {
            let attributes = source.attributes().unpack().ok_or(Unusable::NextHopUnknown)?;
            Ok(Usable { path: source.key(table), attributes, facts, metric })
        }
    }
}
