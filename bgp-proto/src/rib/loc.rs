//! The Loc-RIB: what is used (RFC 4271 section 3.2), and what of it the kernel was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_types::{BgpNextHop, Prefix};

use super::slab::{Id, Slab};
use crate::{Conflict, Own, PeerKey};

/// What the kernel is told of a destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Forwarding {
    /// Sorted; none if there is no way.
    pub(super) next_hops: Arc<[BgpNextHop]>,
    /// What takes the place of a single next hop that is lost.
    pub(super) backup: Option<BgpNextHop>,
}

/// Next hops that destinations share.
#[derive(Debug)]
struct Set {
    forwarding: Arc<Forwarding>,
    destinations: usize,
}

/// What is used of each destination. Which paths these are is marked at the paths.
#[derive(Debug, Default)]
pub(super) struct LocRib {
    sets: Slab<Set>,
    by_forwarding: BTreeMap<Arc<Forwarding>, Id>,
    /// The set of each destination, parallel to the slab of these.
    selected: Vec<Option<Id>>,
    pub(super) own: Own,
    /// Prefixes with paths that would take something from `own`.
    conflicts: BTreeMap<Prefix, Conflict>,
    conflicts_changed: bool,
}

impl LocRib {
    /// The next hops that the kernel was told for a destination.
    pub(super) fn next_hops(&self, place: Id) -> &[BgpNextHop] {
        self.forwarding(self.set(place)).map_or(&[], |forwarding| &forwarding.next_hops)
    }

    /// The set that a destination has; `None` without a way.
    pub(super) fn set(&self, place: Id) -> Option<Id> {
        self.selected.get(place.index()).copied().flatten()
    }

    /// What is in a set.
    pub(super) fn forwarding(&self, set: Option<Id>) -> Option<&Forwarding> {
        set.and_then(|id| self.sets.get(id)).map(|set| &*set.forwarding)
    }

    /// The next hops of a destination from now on; says whether these are others than before.
    pub(super) fn select(&mut self, place: Id, new: &Forwarding) -> bool {
        let wanted = (!new.next_hops.is_empty()).then_some(new);
        if self.forwarding(self.set(place)) == wanted {
            return false;
        }
        let new = wanted.map(|wanted| self.acquire(wanted));
        if self.selected.len() <= place.index() {
            self.selected.resize(place.index() + 1, None);
        }
        let entry = self.selected.get_mut(place.index());
        if let Some(old) = entry.and_then(|entry| std::mem::replace(entry, new)) {
            self.release(old);
        }
        true
    }

    fn acquire(&mut self, wanted: &Forwarding) -> Id {
        if let Some(id) = self.by_forwarding.get(wanted).copied()
            && let Some(set) = self.sets.get_mut(id)
        {
            set.destinations += 1;
            return id;
        }
        let forwarding = Arc::new(wanted.clone());
        let id = self.sets.insert(Set { forwarding: Arc::clone(&forwarding), destinations: 1 });
        self.by_forwarding.insert(forwarding, id);
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
            self.by_forwarding.remove(&gone.forwarding);
            if self.by_forwarding.is_empty() {
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
        let anycast = &old.anycast ^ &self.own.anycast;
        blocks.into_iter().chain(lent).chain(anycast).collect()
    }

    /// Notes whether a prefix is this node's own, so that no path to it is used; `announcer` is who
    /// announces it, if anyone does.
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
        is_own || self.own.anycast.contains(&prefix)
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
            [self.sets.len(), self.by_forwarding.len(), selected, self.conflicts.len()]
        }
    }
}
