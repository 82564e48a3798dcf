//! The paths of all peers, and what follows from them for the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use twill_types::{Family, Prefix};

use crate::{
    Conflict, NextHopState, Own, PeerKey, RouteChange, RouteSnapshot,
    decision::{Candidate, decide, order},
    explain::{Explanation, Outcome, PathExplanation, Unusable},
    wire::PathAttributes,
};

/// One path of the Adj-RIB-In.
#[derive(Debug, Clone)]
struct Path {
    attributes: Arc<PathAttributes>,
    /// Kept over a restart of the peer (RFC 4724 section 4.2).
    stale: bool,
}

/// What the decision has to know of a peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerFacts {
    pub(crate) external: bool,
    pub(crate) router_id: Ipv4Addr,
}

/// All paths to one prefix.
#[derive(Debug, Default)]
struct Destination {
    paths: BTreeMap<PeerKey, Path>,
    /// The peers whose paths are used.
    used: Vec<PeerKey>,
    /// The next hops that the kernel was told.
    installed: Vec<IpAddr>,
}

/// Adj-RIBs-In and Loc-RIB.
#[derive(Debug, Default)]
pub(crate) struct Rib {
    destinations: BTreeMap<Prefix, Destination>,
    peers: BTreeMap<PeerKey, PeerFacts>,
    next_hops: BTreeMap<IpAddr, Option<NextHopState>>,
    /// Interned attribute sets: thousands of prefixes share one.
    attributes: BTreeSet<Arc<PathAttributes>>,
    dirty: BTreeSet<Prefix>,
    next_hops_changed: bool,
    own: Own,
    /// Prefixes with paths that would take something from `own`.
    conflicts: BTreeMap<Prefix, Conflict>,
    conflicts_changed: bool,
    max_paths: usize,
}

impl Rib {
    pub(crate) fn new(max_paths: usize) -> Self {
        Self { max_paths, ..Self::default() }
    }

    /// What is known of a peer from now on, as its session comes up.
    pub(crate) fn set_peer(&mut self, peer: PeerKey, facts: PeerFacts) {
        self.peers.insert(peer, facts);
        let prefixes = self.prefixes_of(peer, |_, _| true);
        self.dirty.extend(prefixes);
    }

    pub(crate) fn announce(
        &mut self,
        peer: PeerKey,
        attributes: PathAttributes,
        prefixes: impl IntoIterator<Item = Prefix>,
    ) {
        let attributes = self.intern(attributes);
        for prefix in prefixes {
            let path = Path { attributes: Arc::clone(&attributes), stale: false };
            self.destinations.entry(prefix).or_default().paths.insert(peer, path);
            self.dirty.insert(prefix);
        }
        let next_hop = attributes.next_hop;
        if let Entry::Vacant(unknown) = self.next_hops.entry(next_hop) {
            unknown.insert(None);
            self.next_hops_changed = true;
        }
    }

    fn intern(&mut self, attributes: PathAttributes) -> Arc<PathAttributes> {
        if let Some(known) = self.attributes.get(&attributes) {
            return Arc::clone(known);
        }
        let new = Arc::new(attributes);
        self.attributes.insert(Arc::clone(&new));
        new
    }

    pub(crate) fn withdraw(&mut self, peer: PeerKey, prefixes: impl IntoIterator<Item = Prefix>) {
        for prefix in prefixes {
            if let Some(destination) = self.destinations.get_mut(&prefix)
                && destination.paths.remove(&peer).is_some()
            {
                self.dirty.insert(prefix);
            }
        }
    }

    /// Marks a peer's paths of these families as stale, and drops the others and those that
    /// already were (RFC 4724 section 4.2: a second restart in a row keeps nothing twice).
    pub(crate) fn keep_stale(&mut self, peer: PeerKey, families: &[Family]) {
        let drop = self
            .prefixes_of(peer, |prefix, path| path.stale || !families.contains(&prefix.family()));
        self.withdraw(peer, drop);
        for destination in self.destinations.values_mut() {
            if let Some(path) = destination.paths.get_mut(&peer) {
                path.stale = true;
            }
        }
    }

    /// Drops a peer's stale paths of these families; says how many.
    pub(crate) fn flush_stale(&mut self, peer: PeerKey, families: &[Family]) -> usize {
        let stale = self
            .prefixes_of(peer, |prefix, path| path.stale && families.contains(&prefix.family()));
        let count = stale.len();
        self.withdraw(peer, stale);
        count
    }

    /// Drops everything from a peer.
    pub(crate) fn flush(&mut self, peer: PeerKey) {
        let all = self.prefixes_of(peer, |_, _| true);
        self.withdraw(peer, all);
    }

    fn prefixes_of(&self, peer: PeerKey, wanted: impl Fn(Prefix, &Path) -> bool) -> Vec<Prefix> {
        self.destinations
            .iter()
            .filter(|(prefix, d)| d.paths.get(&peer).is_some_and(|path| wanted(**prefix, path)))
            .map(|(prefix, _)| *prefix)
            .collect()
    }

    /// What this node has from now on. Paths to parts of it stay, unused: it may be somebody else's
    /// the next time.
    pub(crate) fn set_own(&mut self, own: Own) {
        let old = std::mem::replace(&mut self.own, own);
        let before = old.prefixes.keys().chain(&old.lent);
        let after = self.own.prefixes.keys().chain(&self.own.lent);
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before.collect(), after.collect());
        for changed in before.symmetric_difference(&after) {
            let inside = self.destinations.range(**changed..).map(|(prefix, _)| *prefix);
            self.dirty.extend(inside.take_while(|prefix| changed.covers(*prefix)));
        }
    }

    /// What peers announce of what this node has, if that has changed since the last call.
    pub(crate) fn take_conflicts(&mut self) -> Option<Vec<Conflict>> {
        std::mem::take(&mut self.conflicts_changed)
            .then(|| self.conflicts.values().cloned().collect())
    }

    /// Notes whether a prefix with these paths is this node's own.
    fn note_conflict(&mut self, prefix: Prefix) {
        let conflict = self.destinations.get(&prefix).and_then(|destination| {
            let (peer, _) = destination.paths.first_key_value()?;
            Some(Conflict { prefix, ours: self.own.covering(prefix)?, peer: *peer })
        });
        let before = match conflict.clone() {
            Some(conflict) => self.conflicts.insert(prefix, conflict),
            None => self.conflicts.remove(&prefix),
        };
        self.conflicts_changed |= before != conflict;
    }

    /// What became known of next hops.
    pub(crate) fn set_next_hops(&mut self, states: BTreeMap<IpAddr, NextHopState>) {
        let mut changed = BTreeSet::new();
        for (address, state) in states {
            if let Some(known) = self.next_hops.get_mut(&address)
                && *known != Some(state)
            {
                *known = Some(state);
                changed.insert(address);
            }
        }
        if changed.is_empty() {
            return;
        }
        for (prefix, destination) in &self.destinations {
            if destination.paths.values().any(|path| changed.contains(&path.attributes.next_hop)) {
                self.dirty.insert(*prefix);
            }
        }
    }

    /// Decides anew for what has changed since the last time.
    pub(crate) fn recompute(&mut self) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return changes;
        }
        for prefix in dirty {
            self.note_conflict(prefix);
            let Some(destination) = self.destinations.get(&prefix) else {
                continue;
            };
            let is_own = self.conflicts.contains_key(&prefix);
            let mut used = if is_own { Vec::new() } else { self.candidates(destination) };
            decide(&mut used, self.max_paths, &mut |_| {});
            let peers: Vec<PeerKey> = used.iter().map(|candidate| candidate.peer).collect();
            let mut next_hops: Vec<IpAddr> =
                used.iter().map(|candidate| candidate.attributes.next_hop).collect();
            next_hops.sort_unstable();
            next_hops.dedup();
            let Some(destination) = self.destinations.get_mut(&prefix) else {
                continue;
            };
            destination.used = peers;
            if destination.installed != next_hops {
                destination.installed.clone_from(&next_hops);
                changes.push(RouteChange { prefix, next_hops });
            }
            if destination.paths.is_empty() {
                self.destinations.remove(&prefix);
            }
        }
        self.forget_unused();
        changes
    }

    /// The paths of a destination that could be used.
    fn candidates<'a>(&'a self, destination: &'a Destination) -> Vec<Candidate<'a>> {
        destination
            .paths
            .iter()
            .filter_map(|(peer, path)| self.candidate(*peer, path).ok())
            .collect()
    }

    fn candidate<'a>(&self, peer: PeerKey, path: &'a Path) -> Result<Candidate<'a>, Unusable> {
        let facts = self.peers.get(&peer).ok_or(Unusable::NextHopUnknown)?;
        let state = self.next_hops.get(&path.attributes.next_hop).copied().flatten();
        match state {
            None => Err(Unusable::NextHopUnknown),
            Some(NextHopState::Unreachable) => Err(Unusable::NextHopUnreachable),
            Some(NextHopState::Reachable { metric }) => Ok(Candidate {
                peer,
                attributes: &path.attributes,
                external: facts.external,
                metric,
                router_id: facts.router_id,
            }),
        }
    }

    /// Everything about the paths to this prefix.
    pub(crate) fn explain(&self, prefix: Prefix) -> Explanation {
        let mut explanation = Explanation::new(prefix, &self.own, self.max_paths);
        let Some(destination) = self.destinations.get(&prefix) else {
            return explanation;
        };
        explanation.next_hops.clone_from(&destination.installed);
        let mut used = self.candidates(destination);
        let mut losses = BTreeMap::new();
        decide(&mut used, self.max_paths, &mut |loss| {
            losses.insert(loss.peer, loss);
        });
        for (peer, path) in &destination.paths {
            let place = used.iter().position(|c| c.peer == *peer);
            let outcome = match (explanation.own, self.candidate(*peer, path)) {
                (Some(ours), _) => Outcome::Unusable(Unusable::Own(ours)),
                (None, Err(why)) => Outcome::Unusable(why),
                (None, Ok(candidate)) => match (place, losses.get(peer), used.first()) {
                    (Some(0), _, _) => Outcome::Best,
                    (Some(_), _, Some(best)) => {
                        Outcome::Equal { step: order(best, &candidate), against: best.peer }
                    }
                    (_, Some(loss), _) => Outcome::Lost { step: loss.step, against: loss.against },
                    _ => Outcome::Unusable(Unusable::NextHopUnknown),
                },
            };
            let facts = self.peers.get(peer);
            explanation.paths.push(PathExplanation {
                from: *peer,
                external: facts.is_some_and(|facts| facts.external),
                router_id: facts.map(|facts| facts.router_id),
                attributes: Arc::clone(&path.attributes),
                stale: path.stale,
                next_hop: self.next_hops.get(&path.attributes.next_hop).copied().flatten(),
                outcome,
            });
        }
        explanation.paths.sort_by_key(|path| path.outcome.place());
        explanation
    }

    /// The prefix of this node's own that covers this one.
    pub(crate) fn own_covering(&self, prefix: Prefix) -> Option<Prefix> {
        let ours = self.own.prefixes.range(..=prefix).next_back().map(|(ours, _)| *ours);
        ours.filter(|ours| ours.covers(prefix))
    }

    /// The most specific prefix that covers this one and has a path.
    pub(crate) fn covering(&self, prefix: Prefix) -> Option<Prefix> {
        (0..=prefix.length())
            .rev()
            .filter_map(|length| Prefix::masked(prefix.address(), length).ok())
            .find(|covering| self.destinations.contains_key(covering))
    }

    /// Attribute sets and next hops that no path has any more.
    fn forget_unused(&mut self) {
        let before = self.attributes.len();
        self.attributes.retain(|attributes| Arc::strong_count(attributes) > 1);
        if self.attributes.len() == before {
            return;
        }
        let in_use: BTreeSet<IpAddr> = self.attributes.iter().map(|a| a.next_hop).collect();
        let known = self.next_hops.len();
        self.next_hops.retain(|address, _| in_use.contains(address));
        self.next_hops_changed |= self.next_hops.len() != known;
    }

    /// Whether there are next hops of which nothing is known yet.
    pub(crate) fn has_unknown_next_hops(&self) -> bool {
        self.next_hops.values().any(Option::is_none)
    }

    /// The next hops to track, if that set has changed since the last call.
    pub(crate) fn take_next_hops(&mut self) -> Option<BTreeSet<IpAddr>> {
        std::mem::take(&mut self.next_hops_changed)
            .then(|| self.next_hops.keys().copied().collect())
    }

    /// Paths of a peer: all, and stale ones.
    pub(crate) fn count(&self, peer: PeerKey) -> (usize, usize) {
        let paths = self.destinations.values().filter_map(|d| d.paths.get(&peer));
        paths.fold((0, 0), |(all, stale), path| (all + 1, stale + usize::from(path.stale)))
    }

    pub(crate) fn snapshot(&self) -> impl Iterator<Item = RouteSnapshot> {
        self.destinations.iter().flat_map(|(prefix, destination)| {
            destination.paths.iter().map(|(peer, path)| RouteSnapshot {
                prefix: *prefix,
                from: Some(*peer),
                attributes: Some(Arc::clone(&path.attributes)),
                best: destination.used.contains(peer),
                stale: path.stale,
            })
        })
    }
}
