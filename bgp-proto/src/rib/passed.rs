//! What is passed on: the best path to each destination, inside the pools by a route reflector (RFC 4456),
//! and everywhere if some peer's filters name what was learned.
//!
//! Kept is one source for each destination, and nothing for each peer: whether a peer is told of a path
//! follows from the source and from the peer, so it follows for the source before as well.

use std::collections::BTreeSet;

use twill_types::Prefix;

use super::slab::Id;
use crate::Reflection;

/// What is passed on to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassedOn {
    pub(crate) source: Id,
    pub(crate) why: Why,
}

/// Why something is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// This node is a route reflector, and the destination lies inside the pools: peers are told without
    /// a filter that says so.
    Reflected,
    /// A filter may say so. This node is a route reflector beside that.
    FilterOfReflector,
    /// A filter may say so.
    Filter,
}

/// A destination whose best path is another, or has to be told again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    pub(crate) prefix: Prefix,
    /// What peers have been told, as far as it concerns them.
    pub(crate) old: Option<PassedOn>,
    /// What they are to be told.
    pub(crate) new: Option<PassedOn>,
}

/// The sources of what is passed on.
#[derive(Debug, Default)]
pub(super) struct Passed {
    reflection: Option<Reflection>,
    /// There are peers whose filters name what was learned.
    by_filter: bool,
    /// By place in the slab of destinations.
    sources: Vec<Option<Id>>,
    /// By the same place: an octet, which beside the source would take four.
    why: Vec<Why>,
    changes: Vec<Pass>,
    /// What is decided on until [`Passed::take`] is told even where it stays the same.
    again: bool,
    /// Nothing is passed on yet: too little has been heard to choose from.
    deferred: bool,
}

impl Passed {
    /// Sets whose routes are passed on; says whether anything follows from that.
    pub(super) fn set(&mut self, reflection: Option<Reflection>) -> bool {
        let reflection = reflection.map(|mut reflection| {
            reflection.pools = outermost(&reflection.pools);
            reflection
        });
        if self.reflection == reflection {
            return false;
        }
        let cluster = |reflection: &Option<Reflection>| reflection.as_ref().map(|r| r.cluster_id);
        self.again |= cluster(&self.reflection) != cluster(&reflection);
        self.reflection = reflection;
        true
    }

    /// Sets whether filters name what was learned; says whether anything follows from that.
    pub(super) const fn set_by_filter(&mut self, by_filter: bool) -> bool {
        std::mem::replace(&mut self.by_filter, by_filter) != by_filter
    }

    /// Passes nothing on until [`Passed::end_deferral`]. To be called before anything is.
    pub(super) const fn defer(&mut self) {
        self.deferred = true;
    }

    /// Ends what [`Passed::defer`] began; says whether anything follows from that.
    pub(super) const fn end_deferral(&mut self) -> bool {
        std::mem::replace(&mut self.deferred, false) && !self.is_idle()
    }

    pub(super) const fn reflection(&self) -> Option<&Reflection> {
        self.reflection.as_ref()
    }

    /// Has what is decided on next told again.
    pub(super) const fn tell_again(&mut self) {
        self.again = true;
    }

    /// Whether routes to this prefix are passed on.
    fn covers(&self, prefix: Prefix) -> bool {
        let pools = self.reflection.as_ref().map(|reflection| &reflection.pools);
        let pool = pools.and_then(|pools| pools.range(..=prefix).next_back());
        pool.is_some_and(|pool| pool.covers(prefix))
    }

    /// Notes the source of a destination's best path. `true` asks the caller to take hold of it: it has to
    /// stay until [`Passed::take`] has named it as the old one.
    pub(super) fn note(&mut self, place: Id, prefix: Prefix, best: Option<Id>) -> bool {
        if self.deferred || self.is_idle() && self.sources.is_empty() {
            return false;
        }
        let why = match (self.covers(prefix), self.reflection.is_some()) {
            (true, _) => Why::Reflected,
            (false, true) => Why::FilterOfReflector,
            (false, false) => Why::Filter,
        };
        let is_passed = why == Why::Reflected || self.by_filter;
        let new = best.filter(|_| is_passed).map(|source| PassedOn { source, why });
        let old = self.source(place);
        let changed = old != new;
        if changed || self.again && new.is_some() {
            self.changes.push(Pass { prefix, old, new });
        }
        if changed {
            if self.sources.len() <= place.index() {
                self.sources.resize(place.index() + 1, None);
                self.why.resize(place.index() + 1, why);
            }
            if let (Some(source), Some(known)) =
                (self.sources.get_mut(place.index()), self.why.get_mut(place.index()))
            {
                (*source, *known) = (new.map(|new| new.source), why);
            }
        }
        changed && new.is_some()
    }

    /// What is passed on to a destination.
    pub(super) fn source(&self, place: Id) -> Option<PassedOn> {
        let source = self.sources.get(place.index()).copied().flatten()?;
        Some(PassedOn { source, why: *self.why.get(place.index())? })
    }

    /// All changes since the last call.
    pub(super) fn take(&mut self) -> Vec<Pass> {
        self.again = false;
        if self.is_idle() {
            (self.sources, self.why) = (Vec::new(), Vec::new());
        }
        std::mem::take(&mut self.changes)
    }

    /// Nothing is passed on.
    pub(super) const fn is_idle(&self) -> bool {
        self.reflection.is_none() && !self.by_filter
    }
}

/// The prefixes that no other one of these covers.
fn outermost(prefixes: &BTreeSet<Prefix>) -> BTreeSet<Prefix> {
    let mut outer: BTreeSet<Prefix> = BTreeSet::new();
    // What covers a prefix comes before it.
    for prefix in prefixes {
        if !outer.last().is_some_and(|last| last.covers(*prefix)) {
            outer.insert(*prefix);
        }
    }
    outer
}
