//! The Loc-RIB: what is used (RFC 4271 section 3.2), and what of it the kernel was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use twill_types::Prefix;

use super::slab::{Id, Slab};
use crate::{Conflict, Own, PeerKey};

/// A set of next hops that destinations share.
#[derive(Debug)]
struct Set {
    next_hops: Arc<[IpAddr]>,
    destinations: usize,
}

/// What is used of each destination. Which paths these are is marked at the paths.
#[derive(Debug, Default)]
pub(super) struct LocRib {
    sets: Slab<Set>,
    by_next_hops: BTreeMap<Arc<[IpAddr]>, Id>,
    /// The set of each destination, parallel to the slab of these.
    selected: Vec<Option<Id>>,
    pub(super) own: Own,
    /// Prefixes with paths that would take something from `own`.
    conflicts: BTreeMap<Prefix, Conflict>,
    conflicts_changed: bool,
}

impl LocRib {
    /// The next hops that the kernel was told for a destination.
    pub(super) fn next_hops(&self, place: Id) -> &[IpAddr] {
        let selected = self.selected.get(place.index()).copied().flatten();
        selected.and_then(|id| self.sets.get(id)).map_or(&[], |set| &set.next_hops)
    }

    /// The next hops of a destination from now on, sorted; says whether these are others than before.
    pub(super) fn select(&mut self, place: Id, next_hops: &[IpAddr]) -> bool {
        if self.next_hops(place) == next_hops {
            return false;
        }
        let new = (!next_hops.is_empty()).then(|| self.acquire(next_hops));
        if self.selected.len() <= place.index() {
            self.selected.resize(place.index() + 1, None);
        }
        let entry = self.selected.get_mut(place.index());
        if let Some(old) = entry.and_then(|entry| std::mem::replace(entry, new)) {
            self.release(old);
        }
        true
    }

    fn acquire(&mut self, next_hops: &[IpAddr]) -> Id {
        if let Some(id) = self.by_next_hops.get(next_hops).copied()
            && let Some(set) = self.sets.get_mut(id)
        {
            set.destinations += 1;
            return id;
        }
        let next_hops: Arc<[IpAddr]> = next_hops.into();
        let id = self.sets.insert(Set { next_hops: Arc::clone(&next_hops), destinations: 1 });
        self.by_next_hops.insert(next_hops, id);
        id
    }

    fn release(&mut self, id: Id) {
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        set.destinations -= 1;
        if set.destinations == 0
            && let Some(gone) = self.sets.remove(id)
        {
            self.by_next_hops.remove(&gone.next_hops);
            if self.by_next_hops.is_empty() {
                self.selected = Vec::new();
            }
        }
    }

    /// What this node has from now on; says which prefixes came or went.
    pub(super) fn set_own(&mut self, own: Own) -> Vec<Prefix> {
        let old = std::mem::replace(&mut self.own, own);
        // Apart, because what is lent may be all of a block.
        let ours = |own: &Own| own.prefixes.keys().copied().collect::<BTreeSet<_>>();
        let (blocks, lent) = (&ours(&old) ^ &ours(&self.own), &old.lent ^ &self.own.lent);
        blocks.into_iter().chain(lent).collect()
    }

    /// Notes whether a prefix is this node's own; `announcer` is who announces it, if anyone does.
    pub(super) fn note_conflict(&mut self, prefix: Prefix, announcer: Option<PeerKey>) -> bool {
        let conflict = announcer
            .and_then(|peer| Some(Conflict { prefix, ours: self.own.covering(prefix)?, peer }));
        let is_own = conflict.is_some();
        if is_own || !self.conflicts.is_empty() {
            let before = match conflict.clone() {
                Some(conflict) => self.conflicts.insert(prefix, conflict),
                None => self.conflicts.remove(&prefix),
            };
            self.conflicts_changed |= before != conflict;
        }
        is_own
    }

    /// All conflicts, if they have changed since the last call.
    pub(super) fn take_conflicts(&mut self) -> Option<Vec<Conflict>> {
        std::mem::take(&mut self.conflicts_changed)
            .then(|| self.conflicts.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    impl super::LocRib {
        /// What there is of everything, to find what is left behind.
        pub(in crate::rib) fn sizes(&self) -> [usize; 4] {
            let selected = self.selected.len();
            [self.sets.len(), self.by_next_hops.len(), selected, self.conflicts.len()]
        }
    }
}
