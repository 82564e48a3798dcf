//! Paths that their peer does not vouch for now: it is away (RFC 4724 section 4.2), and perhaps for long
//! (RFC 9494 section 4.2), or it tells everything again (RFC 7313 section 4).

use std::collections::BTreeMap;

use twill_types::Family;

use super::{AdjRibsIn, Id, PeerKey, index};
use crate::wire::Community;

impl AdjRibsIn {
    /// Marks a peer's paths of these families as stale, and drops the others. Paths that were stale
    /// already are dropped as well (RFC 4724 section 4.2: nothing is kept over two restarts), but for
    /// those of families in `again` (RFC 9494 section 4.2: their time goes on).
    pub(in crate::rib) fn keep_stale(
        &mut self,
        key: PeerKey,
        families: &[Family],
        again: &[Family],
    ) {
        let is_lost = |family: Family, stale: bool| {
            !families.contains(&family) || stale && !again.contains(&family)
        };
        let counts = self.counts(key);
        let lost = [Family::V4, Family::V6].into_iter().any(|family| {
            let (all, stale) = counts[index(family)];
            stale > 0 && is_lost(family, true) || all > 0 && is_lost(family, false)
        });
        if lost {
            self.drop_paths(key, is_lost);
        }
        for family in [Family::V4, Family::V6] {
            self.mark_stale(key, family);
        }
    }

    /// Marks all of a peer's paths of a family as stale, those included that already were: a refresh
    /// that begins anew vouches for nothing of the one before (RFC 7313 section 4).
    pub(in crate::rib) fn mark_stale(&mut self, key: PeerKey, family: Family) {
        let Some(peer) = self.by_key.get(&key).copied() else {
            return;
        };
        let Some(table) = self.peers.get_mut(peer) else {
            return;
        };
        let family_index = index(family);
        let mixed = table.stale[family_index] > 0;
        table.stale[family_index] = table.count[family_index];
        let round = table.round[family_index];
        // The bit tells two rounds apart; where some of an older one stay, each path is marked.
        if mixed {
            self.set_rounds(peer, family, !round);
        } else {
            table.round[family_index] = !round;
        }
    }

    /// Takes a peer's stale paths of a family for good ones.
    pub(in crate::rib) fn freshen(&mut self, key: PeerKey, family: Family) {
        if self.count_of(key, family).1 == 0 {
            return;
        }
        let Some(peer) = self.by_key.get(&key).copied() else {
            return;
        };
        if let Some(table) = self.peers.get_mut(peer) {
            table.stale[index(family)] = 0;
            let round = table.round[index(family)];
            self.set_rounds(peer, family, round);
        }
    }

    /// Makes every path of a peer and a family one of this round.
    fn set_rounds(&mut self, peer: Id, family: Family, round: bool) {
        for place in self.take_places(peer) {
            let mut start = 0;
            while let Some(position) = self.next_position(peer, place, start) {
                if let Some(destination) = self.destinations.get_mut(place)
                    && destination.family() == family
                    && let Some(path) = destination.paths.get_mut(position)
                {
                    path.round = round;
                }
                start = position + 1;
            }
            self.give_place(peer, place);
        }
    }

    /// Drops a peer's stale paths of these families; says how many.
    pub(in crate::rib) fn flush_stale(&mut self, key: PeerKey, families: &[Family]) -> usize {
        let counts = self.counts(key);
        match families.iter().any(|family| counts[index(*family)].1 > 0) {
            true => self.drop_paths(key, |family, stale| stale && families.contains(&family)),
            false => 0,
        }
    }

    /// A peer's stale paths of a family are to stay for long (RFC 9494 section 4.2): they get the
    /// community LLGR_STALE, which makes the decision prefer any other. Those that must not stay so
    /// (NO_LLGR) are dropped; says how many.
    pub(in crate::rib) fn begin_long_lived(&mut self, key: PeerKey, family: Family) -> usize {
        let Some(peer) = self.by_key.get(&key).copied() else {
            return 0;
        };
        let mut marked = BTreeMap::new();
        let mut dropped = 0;
        for place in self.take_places(peer) {
            let mut start = 0;
            while let Some(position) = self.next_position(peer, place, start) {
                let stale = self.stale_source(peer, place, position, family);
                match stale.map(|source| self.long_lived(peer, source, &mut marked)) {
                    Some(None) => {
                        self.remove(peer, place, position);
                        dropped += 1;
                    }
                    Some(Some(source)) => {
                        self.put_under(place, position, source);
                        start = position + 1;
                    }
                    None => start = position + 1,
                }
            }
            self.give_place(peer, place);
        }
        for id in marked.into_keys() {
            self.release(id, 1);
        }
        dropped
    }

    /// The source of a peer's path at a destination of this family, if it is stale.
    fn stale_source(&self, peer: Id, place: Id, position: usize, family: Family) -> Option<Id> {
        let destination = self.destinations.get(place)?;
        let path = destination.paths.get(position)?;
        let round = self.peers.get(peer)?.round[index(family)];
        let wanted = destination.family() == family && path.round != round;
        wanted.then_some(path.source)
    }

    /// The source with LLGR_STALE in the place of another; `None` if the path must not stay.
    fn long_lived(
        &mut self,
        peer: Id,
        id: Id,
        marked: &mut BTreeMap<Id, Option<Id>>,
    ) -> Option<Id> {
        if let Some(known) = marked.get(&id) {
            return *known;
        }
        let source = self.sources.get(id)?;
        let (imported, path_id) = (source.imported.clone(), source.path_id);
        let new = if imported.attributes().unpack()?.has_community(Community::NO_LLGR) {
            None
        } else if imported.received().unpack()?.has_community(Community::LLGR_STALE) {
            Some(id)
        } else {
            let with = imported.with_community(Community::LLGR_STALE)?;
            Some(self.intern(peer, path_id, &with))
        };
        // Its name is not given to another source while it is among those that were looked at.
        self.hold(id);
        marked.insert(id, new);
        new
    }

    /// Gives a path another source.
    pub(super) fn put_under(&mut self, place: Id, position: usize, new: Id) {
        let destination = self.destinations.get_mut(place);
        let Some(path) = destination.and_then(|found| found.paths.get_mut(position)) else {
            return;
        };
        let old = std::mem::replace(&mut path.source, new);
        if old == new {
            return;
        }
        if let Some(source) = self.sources.get_mut(new) {
            source.paths += 1;
        }
        self.release(old, 1);
        self.touch(place);
    }

    pub(super) fn take_places(&mut self, peer: Id) -> Vec<Id> {
        self.peers.get_mut(peer).map(|table| std::mem::take(&mut table.places)).unwrap_or_default()
    }

    pub(super) fn give_place(&mut self, peer: Id, place: Id) {
        if let Some(table) = self.peers.get_mut(peer) {
            table.places.push(place);
        }
    }
}
