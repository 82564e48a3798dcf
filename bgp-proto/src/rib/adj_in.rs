//! The Adj-RIBs-In: what each peer has announced, as it came (RFC 4271 section 3.2).
//!
//! A path is eight octets: which source, and two flags. A source is one set of attributes from one
//! peer under one path identifier (RFC 7911); thousands of prefixes share it. Paths stand with their destination, because that is where
//! they are compared. Each peer has a list of the destinations that it may have a path to, so that the
//! end of its session costs as much as it has announced, however large the others' tables are.

mod destination;
mod imported;
mod paths;
mod stale;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_types::{BgpNextHop, Family, Prefix, PrefixMap};

pub(super) use self::destination::Destination;
use self::{
    destination::LongPrefixes,
    imported::{Filtered, Imported, Importer},
};
use super::{
    next_hops::NextHops,
    slab::{Id, Slab},
};
use crate::{
    NextHopState, PathKey, PeerKey,
    rib::PeerFacts,
    wire::{Nlri, Packed, PathAttributes},
};

/// The most paths that one peer may have to one prefix (RFC 7911 sets no bound). They are compared with
/// each other, and sixteen next hops are the most that a route uses.
const MOST_PATHS: usize = 64;

/// What a source takes beside its attributes, in octets: itself, its entries among those of its peer and of
/// its next hop, and the head of the attributes.
const WEIGHT_OF_A_SOURCE: usize = 128;

/// One set of attributes from one peer, under one of its path identifiers.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) peer: Id,
    /// 0 without ADD-PATH.
    pub(super) path_id: u32,
    /// What the peer's policy makes of them, and as they came.
    imported: Imported,
    /// What is known of the next hop, as in [`NextHops`].
    pub(super) next_hop: Option<NextHopState>,
    /// How many paths have it, and destinations that pass it on.
    paths: u32,
}

impl Source {
    /// What tells a path with this source from the others to its prefix.
    pub(super) const fn key(&self, table: &Table) -> PathKey {
        PathKey { peer: table.key, path_id: self.path_id }
    }

    /// What the decision looks at; of what policy refuses, as it came.
    pub(super) fn attributes(&self) -> &Packed {
        self.imported.attributes()
    }

    /// Whether the peer's policy refuses it.
    pub(super) fn is_refused(&self) -> bool {
        self.imported.is_refused()
    }
}

/// One path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) source: Id,
    /// The family's bit of the peer's [`Table::round`] when it came.
    round: bool,
    /// The Loc-RIB has it.
    pub(super) used: bool,
}

/// What is kept of one peer.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) key: PeerKey,
    /// `None` until its first session.
    pub(super) facts: Option<PeerFacts>,
    /// By family. Changes when what is there becomes stale: a path of another round is (`stale.rs`).
    round: [bool; 2],
    /// Paths of each family: all, and stale ones.
    count: [usize; 2],
    stale: [usize; 2],
    /// By path identifier, of which there is but 0 without ADD-PATH.
    sources: BTreeMap<u32, BTreeMap<Packed, Id>>,
    /// Those that policy refuses or changes.
    filtered: BTreeMap<(u32, Arc<Filtered>), Id>,
    /// What is taken from it; `None` if that is everything as it comes.
    importer: Option<Importer>,
    /// What all these take, in octets.
    weight: usize,
    /// Where it may have a path; some more than once, some no more.
    places: Vec<Id>,
}

/// The tables of all peers.
#[derive(Debug, Default)]
pub(super) struct AdjRibsIn {
    pub(super) peers: Slab<Table>,
    by_key: BTreeMap<PeerKey, Id>,
    pub(super) sources: Slab<Source>,
    pub(super) destinations: Slab<Destination>,
    by_prefix: PrefixMap<Id>,
    long: LongPrefixes,
    pub(super) next_hops: NextHops,
    /// Destinations to be decided on anew.
    dirty: Vec<Id>,
    /// Peers that are none any more, as long as what they announced is still withdrawn from others.
    forgotten: Vec<Id>,
}

const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl AdjRibsIn {
    /// The table of a peer, which is empty at first.
    fn peer(&mut self, key: PeerKey) -> Id {
        *self.by_key.entry(key).or_insert_with(|| {
            self.peers.insert(Table {
                key,
                facts: None,
                round: [false; 2],
                count: [0; 2],
                stale: [0; 2],
                sources: BTreeMap::new(),
                filtered: BTreeMap::new(),
                importer: None,
                weight: 0,
                places: Vec::new(),
            })
        })
    }

    /// What the decision has to know of a peer from now on; says whether that is another.
    pub(super) fn set_facts(&mut self, key: PeerKey, facts: PeerFacts) -> bool {
        let peer = self.peer(key);
        let Some(table) = self.peers.get_mut(peer).filter(|table| table.facts != Some(facts))
        else {
            return false;
        };
        table.facts = Some(facts);
        for place in table.places.clone() {
            self.touch(place);
        }
        true
    }

    /// Drops everything of a peer, and the peer.
    pub(super) fn forget(&mut self, key: PeerKey) {
        self.drop_paths(key, |_, _| true);
        self.forgotten.extend(self.by_key.remove(&key));
    }

    /// Removes what was kept of peers that are none any more.
    pub(super) fn remove_forgotten(&mut self) {
        for peer in std::mem::take(&mut self.forgotten) {
            self.peers.remove(peer);
        }
    }

    /// Has everything decided on anew.
    pub(super) fn touch_all(&mut self) {
        for place in self.by_prefix.iter().map(|(_, place)| *place).collect::<Vec<_>>() {
            self.touch(place);
        }
    }

    pub(super) fn touch(&mut self, place: Id) {
        if let Some(destination) = self.destinations.get_mut(place)
            && !destination.dirty
        {
            destination.dirty = true;
            self.dirty.push(place);
        }
    }

    /// The destinations that changed since the last call.
    pub(super) fn take_dirty(&mut self) -> Vec<Id> {
        let dirty = std::mem::take(&mut self.dirty);
        for place in &dirty {
            if let Some(destination) = self.destinations.get_mut(*place) {
                destination.dirty = false;
            }
        }
        dirty
    }

    /// Takes in paths; says how many were not taken because there were [`MOST_PATHS`] to their prefix
    /// already.
    pub(super) fn announce(
        &mut self,
        key: PeerKey,
        attributes: PathAttributes,
        routes: impl IntoIterator<Item = Nlri>,
    ) -> usize {
        let mut refused = 0;
        let peer = self.peer(key);
        let received = Packed::new(&attributes);
        let importer = self.peers.get(peer).and_then(|table| table.importer.clone());
        let mut last: Option<(u32, Imported, Id)> = None;
        for Nlri { prefix, path_id } in routes {
            let place = *self.by_prefix.get_or_insert_with(prefix, || {
                self.destinations.insert(Destination::new(prefix, &mut self.long))
            });
            if self.is_crowded(peer, path_id, place) {
                refused += 1;
                continue;
            }
            // Most messages have one identifier for all, and most peers no policy.
            let imported = match &importer {
                None => Imported::AsReceived(received.clone()),
                Some(importer) => importer.import(prefix, &attributes, &received),
            };
            let source = match &last {
                Some((id, same, source)) if (*id, same) == (path_id, &imported) => *source,
                _ => self.intern(peer, path_id, &imported),
            };
            last = Some((path_id, imported, source));
            // The same again, as after a restart of the peer, decides nothing anew.
            if self.put(peer, source, place) {
                self.touch(place);
            }
        }
        refused
    }

    /// Whether a destination has as many paths of a peer as it may have, and none of this identifier.
    fn is_crowded(&self, peer: Id, path_id: u32, place: Id) -> bool {
        let Some(destination) = self.destinations.get(place) else {
            return false;
        };
        if destination.paths.len() < MOST_PATHS {
            return false;
        }
        let is_from = |path: &&Path| self.sources.get(path.source).is_some_and(|s| s.peer == peer);
        destination.paths.iter().filter(is_from).count() >= MOST_PATHS
            && self.position(peer, path_id, place).is_none()
    }

    /// The source of this name; it has to get a path.
    fn intern(&mut self, peer: Id, path_id: u32, imported: &Imported) -> Id {
        let known = self.peers.get(peer).and_then(|table| table.find(path_id, imported));
        if let Some(known) = known {
            return known;
        }
        let source = self.sources.insert(Source {
            peer,
            path_id,
            imported: imported.clone(),
            next_hop: None,
            paths: 0,
        });
        let next_hop = self.peers.get(peer).and_then(|table| imported.next_hop(table.key));
        let state = next_hop.and_then(|next_hop| self.next_hops.add(next_hop, source));
        if let Some(new) = self.sources.get_mut(source) {
            new.next_hop = state;
        }
        if let Some(table) = self.peers.get_mut(peer) {
            table.weight += WEIGHT_OF_A_SOURCE + imported.received().length();
            table.note(path_id, imported.clone(), source);
        }
        source
    }

    /// Keeps a source that is passed on.
    pub(super) fn hold(&mut self, id: Id) {
        if let Some(source) = self.sources.get_mut(id) {
            source.paths += 1;
        }
    }

    /// Ends the use of a source by some paths.
    pub(super) fn release(&mut self, id: Id, paths: u32) {
        let Some(source) = self.sources.get_mut(id) else {
            return;
        };
        source.paths -= paths;
        if source.paths == 0
            && let Some(gone) = self.sources.remove(id)
            && let Some(table) = self.peers.get_mut(gone.peer)
        {
            if let Some(next_hop) = gone.imported.next_hop(table.key) {
                self.next_hops.remove(next_hop, id);
            }
            table.weight -= WEIGHT_OF_A_SOURCE + gone.imported.received().length();
            table.forget(gone);
        }
    }

    /// Where a destination has a peer's path of this identifier.
    fn position(&self, peer: Id, path_id: u32, place: Id) -> Option<usize> {
        let is_it = |path: &Path| {
            let source = self.sources.get(path.source);
            source.is_some_and(|source| source.peer == peer && source.path_id == path_id)
        };
        self.destinations.get(place)?.paths.iter().position(is_it)
    }

    /// Where a destination has a path of a peer, from `start` on.
    fn next_position(&self, peer: Id, place: Id, start: usize) -> Option<usize> {
        let is_from = |path: &Path| self.sources.get(path.source).is_some_and(|s| s.peer == peer);
        let paths = self.destinations.get(place)?.paths.get(start..)?;
        Some(start + paths.iter().position(is_from)?)
    }

    /// Puts a peer's path in the place of the one before; says whether it is another.
    fn put(&mut self, peer: Id, source: Id, place: Id) -> bool {
        let path_id = self.sources.get(source).map_or(0, |source| source.path_id);
        let position = self.position(peer, path_id, place);
        let (Some(table), Some(destination)) =
            (self.peers.get_mut(peer), self.destinations.get_mut(place))
        else {
            return false;
        };
        if let Some(source) = self.sources.get_mut(source) {
            source.paths += 1;
        }
        let family = index(destination.family());
        let round = table.round[family];
        let new = Path { source, round, used: false };
        match position.and_then(|position| destination.paths.get_mut(position)) {
            Some(path) => {
                table.stale[family] -= usize::from(path.round != round);
                // Until the next decision the old one counts as what is in the Loc-RIB.
                let old = std::mem::replace(path, Path { used: path.used, ..new });
                self.release(old.source, 1);
                old.source != source
            }
            None => {
                table.count[family] += 1;
                table.places.push(place);
                destination.paths.push(new);
                self.tidy_places(peer);
                true
            }
        }
    }

    /// Keeps the list of places in proportion to the paths.
    fn tidy_places(&mut self, peer: Id) {
        let Some(table) = self.peers.get_mut(peer) else {
            return;
        };
        if table.places.len() <= 64 + 2 * (table.count[0] + table.count[1]) {
            return;
        }
        let mut places = std::mem::take(&mut table.places);
        places.sort_unstable();
        places.dedup();
        places.retain(|place| self.next_position(peer, *place, 0).is_some());
        if let Some(table) = self.peers.get_mut(peer) {
            table.places = places;
        }
    }

    /// Removes a peer's path.
    fn remove(&mut self, peer: Id, place: Id, position: usize) {
        let (Some(destination), Some(table)) =
            (self.destinations.get_mut(place), self.peers.get_mut(peer))
        else {
            return;
        };
        let family = index(destination.family());
        let Some(path) = destination.paths.remove(position) else {
            return;
        };
        table.count[family] -= 1;
        table.stale[family] -= usize::from(path.round != table.round[family]);
        self.release(path.source, 1);
        self.touch(place);
    }

    pub(super) fn withdraw(&mut self, key: PeerKey, routes: impl IntoIterator<Item = Nlri>) {
        let Some(peer) = self.by_key.get(&key).copied() else {
            return;
        };
        for Nlri { prefix, path_id } in routes {
            if let Some(place) = self.by_prefix.get(prefix).copied()
                && let Some(position) = self.position(peer, path_id, place)
            {
                self.remove(peer, place, position);
            }
        }
    }

    /// Drops those of a peer's paths that are wanted so by family and staleness; says how many.
    fn drop_paths(&mut self, key: PeerKey, is_wanted: impl Fn(Family, bool) -> bool) -> usize {
        let Some(peer) = self.by_key.get(&key).copied() else {
            return 0;
        };
        let Some(table) = self.peers.get_mut(peer) else {
            return 0;
        };
        let round = table.round;
        let mut places = std::mem::take(&mut table.places);
        let mut dropped = 0;
        places.retain(|place| {
            let (mut kept, mut start) = (false, 0);
            while let Some(position) = self.next_position(peer, *place, start) {
                let found = self.destinations.get(*place);
                let wanted = found.is_some_and(|destination| {
                    let family = destination.family();
                    let path = destination.paths.get(position);
                    let stale = path.is_some_and(|path| path.round != round[index(family)]);
                    is_wanted(family, stale)
                });
                if wanted {
                    self.remove(peer, *place, position);
                    dropped += 1;
                    start = position;
                } else {
                    kept = true;
                    start = position + 1;
                }
            }
            kept
        });
        places.shrink_to_fit();
        if let Some(table) = self.peers.get_mut(peer) {
            table.places = places;
        }
        dropped
    }

    /// Drops everything from a peer.
    pub(super) fn flush(&mut self, key: PeerKey) {
        self.drop_paths(key, |_, _| true);
    }

    /// The next hops that are left without these peers, if these are others than now.
    pub(super) fn next_hops_without(&mut self, lost: &[PeerKey]) -> Option<BTreeSet<BgpNextHop>> {
        let lost: Vec<Id> = lost.iter().filter_map(|key| self.by_key.get(key).copied()).collect();
        let is_lost =
            |source: Id| self.sources.get(source).is_none_or(|source| lost.contains(&source.peer));
        self.next_hops.without(is_lost)
    }

    /// A peer's paths of each family: all, and stale ones.
    pub(super) fn counts(&self, key: PeerKey) -> [(usize, usize); 2] {
        let table = self.by_key.get(&key).and_then(|peer| self.peers.get(*peer));
        table.map_or([(0, 0); 2], |table| {
            [(table.count[0], table.stale[0]), (table.count[1], table.stale[1])]
        })
    }

    /// What the attributes of a peer's paths take, in octets.
    pub(super) fn weight(&self, key: PeerKey) -> usize {
        let table = self.by_key.get(&key).and_then(|peer| self.peers.get(*peer));
        table.map_or(0, |table| table.weight)
    }

    /// A peer's paths of a family: all, and stale ones.
    pub(super) fn count_of(&self, key: PeerKey, family: Family) -> (usize, usize) {
        self.counts(key)[index(family)]
    }

    /// A peer's paths: all, and stale ones.
    pub(super) fn count(&self, key: PeerKey) -> (usize, usize) {
        let [v4, v6] = self.counts(key);
        (v4.0 + v6.0, v4.1 + v6.1)
    }

    /// What became known of next hops. What a change costs is in proportion to the tables of the peers
    /// that announce with this next hop.
    pub(super) fn set_next_hops(&mut self, states: BTreeMap<BgpNextHop, NextHopState>) {
        let mut peers = BTreeSet::new();
        // By place in the slab: it is asked once for each path of these peers.
        let mut concerned = Vec::new();
        for (next_hop, state) in states {
            for id in self.next_hops.learn(next_hop, state) {
                if let Some(source) = self.sources.get_mut(id) {
                    source.next_hop = Some(state);
                    peers.insert(source.peer);
                    concerned.resize(concerned.len().max(id.index() + 1), false);
                    concerned[id.index()] = true;
                }
            }
        }
        let is_concerned = |path: &Path| concerned.get(path.source.index()) == Some(&true);
        for peer in peers {
            let places = self.peers.get_mut(peer).map(|table| std::mem::take(&mut table.places));
            let places = places.unwrap_or_default();
            for place in &places {
                if let Some(destination) = self.destinations.get_mut(*place)
                    && !destination.dirty
                    && destination.paths.iter().any(is_concerned)
                {
                    destination.dirty = true;
                    self.dirty.push(*place);
                }
            }
            if let Some(table) = self.peers.get_mut(peer) {
                table.places = places;
            }
        }
    }

    /// Removes a destination that has no path.
    pub(super) fn remove_empty(&mut self, place: Id) {
        if self.destinations.get(place).is_some_and(|destination| destination.paths.is_empty())
            && let Some(gone) = self.destinations.remove(place)
        {
            if let Some(prefix) = gone.prefix(&self.long) {
                self.by_prefix.remove(prefix);
            }
            if let Some(long) = gone.long() {
                self.long.remove(long);
            }
        }
    }

    /// The prefix of a destination, and what there is to it.
    pub(super) fn destination(&self, place: Id) -> Option<(Prefix, &Destination)> {
        let destination = self.destinations.get(place)?;
        Some((destination.prefix(&self.long)?, destination))
    }

    pub(super) fn find(&self, prefix: Prefix) -> Option<(Id, &Destination)> {
        let place = *self.by_prefix.get(prefix)?;
        Some((place, self.destinations.get(place)?))
    }

    /// The destinations that a prefix covers.
    pub(super) fn within(&self, prefix: Prefix) -> impl Iterator<Item = Id> {
        self.by_prefix.within(prefix).map(|(_, place)| *place)
    }

    /// Where each destination is, by prefix.
    pub(super) fn places(&self) -> impl Iterator<Item = (Prefix, Id)> {
        self.by_prefix.iter().map(|(prefix, place)| (prefix, *place))
    }

    /// All destinations, by prefix.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Prefix, &Destination)> {
        self.places().filter_map(|(prefix, place)| Some((prefix, self.destinations.get(place)?)))
    }

    /// The source of a path, and the table of the peer that it is from.
    pub(super) fn origin(&self, path: Path) -> Option<(&Source, &Table)> {
        let source = self.sources.get(path.source)?;
        Some((source, self.peers.get(source.peer)?))
    }

    /// Whether a path of this family is kept over a restart of its peer, or a refresh.
    pub(super) const fn is_stale(path: Path, family: Family, table: &Table) -> bool {
        path.round != table.round[index(family)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_small_and_no_larger_for_policy() {
        assert_eq!(size_of::<Imported>(), size_of::<Packed>());
        assert_eq!(size_of::<Source>(), 40);
    }

    impl AdjRibsIn {
        /// What there is of everything, to find what is left behind: sources (twice), destinations (twice)
        /// and next hops. Lists of places may hold some more than there are.
        pub(in crate::rib) fn sizes(&self) -> [usize; 5] {
            let tables = || self.by_key.values().filter_map(|peer| self.peers.get(*peer));
            for table in tables() {
                let paths = table.count[0] + table.count[1];
                assert!(table.places.len() <= 65 + 2 * paths, "{} for {paths}", table.places.len());
            }
            let interned = tables()
                .flat_map(|table| table.sources.values())
                .map(|sources| sources.len())
                .chain(tables().map(|table| table.filtered.len()))
                .sum();
            let (places, prefixes) = (self.destinations.len(), self.by_prefix.len());
            let long = self.places().filter(|(prefix, _)| prefix.address().is_ipv6()).count();
            assert_eq!(self.long.len(), long);
            [self.sources.len(), interned, places, prefixes, self.next_hops.len()]
        }
    }
}
