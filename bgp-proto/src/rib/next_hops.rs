use std::collections::{BTreeMap, BTreeSet};

use twill_types::BgpNextHop;

use super::slab::Id;
use crate::NextHopState;

/// One next hop.
#[derive(Debug, Default)]
struct Tracked {
    /// `None` until the kernel was asked.
    state: Option<NextHopState>,
    /// The sources that have it.
    sources: BTreeSet<Id>,
}

/// The next hops of all paths, and what is known of each.
#[derive(Debug, Default)]
pub(super) struct NextHops {
    tracked: BTreeMap<BgpNextHop, Tracked>,
    /// Of these no source was left at some time since the last [`NextHops::forget_unused`].
    idle: Vec<BgpNextHop>,
    /// How many have no state.
    unknown: usize,
    /// The set is not the one that was told last.
    changed: bool,
}

impl NextHops {
    /// A source with this next hop is there; says what is known of it.
    pub(super) fn add(&mut self, next_hop: BgpNextHop, source: Id) -> Option<NextHopState> {
        let tracked = self.tracked.entry(next_hop).or_insert_with(|| {
            self.unknown += 1;
            self.changed = true;
            Tracked::default()
        });
        tracked.sources.insert(source);
        tracked.state
    }

    /// A source is gone. Its next hop stays known until the end of the turn: what is withdrawn and
    /// announced again at once is not looked up anew, and keeps its route.
    pub(super) fn remove(&mut self, next_hop: BgpNextHop, source: Id) {
        if let Some(tracked) = self.tracked.get_mut(&next_hop) {
            tracked.sources.remove(&source);
            if tracked.sources.is_empty() {
                self.idle.push(next_hop);
            }
        }
    }

    /// Ends the tracking of those that no source has.
    pub(super) fn forget_unused(&mut self) {
        for next_hop in std::mem::take(&mut self.idle) {
            if self.tracked.get(&next_hop).is_some_and(|tracked| tracked.sources.is_empty())
                && let Some(gone) = self.tracked.remove(&next_hop)
            {
                self.unknown -= usize::from(gone.state.is_none());
                self.changed = true;
            }
        }
    }

    /// What is left to track when these sources go, if that is another set than now; it counts as one
    /// that has changed then.
    pub(super) fn without(&mut self, is_lost: impl Fn(Id) -> bool) -> Option<BTreeSet<BgpNextHop>> {
        let stays = |tracked: &Tracked| {
            tracked.sources.is_empty() || tracked.sources.iter().any(|source| !is_lost(*source))
        };
        let left = self.tracked.iter().filter(|(_, tracked)| stays(tracked));
        let left: BTreeSet<BgpNextHop> = left.map(|(next_hop, _)| *next_hop).collect();
        if left.len() == self.tracked.len() {
            return None;
        }
        self.changed = true;
        Some(left)
    }

    /// Takes note of a state; says which sources it matters to, which are none if nothing changed.
    pub(super) fn learn(&mut self, next_hop: BgpNextHop, state: NextHopState) -> Vec<Id> {
        let Some(tracked) = self.tracked.get_mut(&next_hop) else {
            return Vec::new();
        };
        if tracked.state == Some(state) {
            return Vec::new();
        }
        self.unknown -= usize::from(tracked.state.is_none());
        tracked.state = Some(state);
        tracked.sources.iter().copied().collect()
    }

    pub(super) const fn has_unknown(&self) -> bool {
        self.unknown > 0
    }

    /// All of them, if the set has changed since the last call.
    pub(super) fn take(&mut self) -> Option<BTreeSet<BgpNextHop>> {
        std::mem::take(&mut self.changed).then(|| self.tracked.keys().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    impl super::NextHops {
        pub(in crate::rib) fn len(&self) -> usize {
            self.tracked.len()
        }
    }
}
