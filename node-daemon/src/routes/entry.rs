//! What the table keeps of one destination. There are as many as routes, so it is small.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_dataplane::{NextHop, fib::ObjectId};

use super::table::SetId;

/// What the speaker has said of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing yet: the route is from the process before, and stays until the speaker has converged.
    Unsaid,
    /// That there is no route.
    Nothing,
    /// Its next hops.
    Set(SetId),
}

/// What the kernel has for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No route of ours.
    Absent,
    /// Perhaps one, and perhaps not the one that was written.
    Unknown,
    /// A route with its own next hops.
    Plain(HopsId),
    /// A route that names a group.
    Object(ObjectId),
}

/// One destination: eight octets, where the two as they are would take sixteen.
#[derive(Debug)]
pub(super) struct Entry {
    /// 0 is [`Wanted::Unsaid`], 1 is [`Wanted::Nothing`], others are two more than their set.
    wanted: u32,
    /// 0 is [`Place::Absent`], 1 is [`Place::Unknown`], those with [`PLAIN`] are plain routes, others objects.
    place: u32,
}

/// No object has this bit, nor do so many ways get a name.
const PLAIN: u32 = 1 << 31;

impl Entry {
    pub(super) const fn new(wanted: Wanted, place: Place) -> Self {
        let mut entry = Self { wanted: 0, place: 0 };
        entry.set_wanted(wanted);
        entry.set_place(place);
        entry
    }

    pub(super) const fn wanted(&self) -> Wanted {
        match self.wanted {
            0 => Wanted::Unsaid,
            1 => Wanted::Nothing,
            number => Wanted::Set(SetId(number - 2)),
        }
    }

    pub(super) const fn set_wanted(&mut self, wanted: Wanted) {
        self.wanted = match wanted {
            Wanted::Unsaid => 0,
            Wanted::Nothing => 1,
            Wanted::Set(SetId(number)) => number + 2,
        };
    }

    pub(super) const fn place(&self) -> Place {
        match self.place {
            0 => Place::Absent,
            number if number & PLAIN != 0 => Place::Plain(HopsId(number & !PLAIN)),
            number => match ObjectId::new(number) {
                Some(id) => Place::Object(id),
                None => Place::Unknown,
            },
        }
    }

    pub(super) const fn set_place(&mut self, place: Place) {
        self.place = match place {
            Place::Absent => 0,
            Place::Unknown => 1,
            Place::Plain(HopsId(number)) => number | PLAIN,
            Place::Object(id) => id.number(),
        };
    }

    pub(super) const fn is_installed(&self) -> bool {
        matches!(self.place(), Place::Plain(_) | Place::Object(_))
    }
}

/// The name of a way of plain routes among [`PlainHops`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HopsId(u32);

/// So many ways that no route has are kept before anybody looks for them.
const IDLE: usize = 64;

/// The next hops of plain routes, each set once.
#[derive(Debug, Default)]
pub(super) struct PlainHops {
    by_hops: BTreeMap<Arc<BTreeSet<NextHop>>, HopsId>,
    last: u32,
    /// As many as were in use when that was last looked at.
    used: usize,
}

impl PlainHops {
    /// The name of these next hops, from now on.
    pub(super) fn id(&mut self, hops: &Arc<BTreeSet<NextHop>>) -> HopsId {
        *self.by_hops.entry(Arc::clone(hops)).or_insert_with(|| {
            self.last = (self.last + 1) % PLAIN;
            HopsId(self.last)
        })
    }

    /// The name of these next hops, if a route may have them.
    pub(super) fn known(&self, hops: &BTreeSet<NextHop>) -> Option<HopsId> {
        self.by_hops.get(hops).copied()
    }

    /// The names of all that one of these hops is in.
    pub(super) fn with(&self, which: impl Fn(&NextHop) -> bool) -> BTreeSet<HopsId> {
        let with = self.by_hops.iter().filter(|(hops, _)| hops.iter().any(&which));
        with.map(|(_, id)| *id).collect()
    }

    /// Whether so many have come that some may be idle.
    pub(super) fn is_full(&self) -> bool {
        self.by_hops.len() > 2 * self.used + IDLE
    }

    /// Forgets all others.
    pub(super) fn retain(&mut self, used: &BTreeSet<HopsId>) {
        self.by_hops.retain(|_, id| used.contains(id));
        self.used = self.by_hops.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_keeps_what_it_was_given() {
        assert_eq!(size_of::<Entry>(), 8);
        let wanted =
            [Wanted::Unsaid, Wanted::Nothing, Wanted::Set(SetId(0)), Wanted::Set(SetId(7))];
        let objects = [ObjectId::FIRST, ObjectId::LAST].map(|n| ObjectId::new(n).unwrap());
        let plain = [HopsId(0), HopsId(1), HopsId(PLAIN - 1)].map(Place::Plain);
        let places = [Place::Absent, Place::Unknown].into_iter();
        for place in places.chain(objects.map(Place::Object)).chain(plain) {
            for wanted in wanted {
                let entry = Entry::new(wanted, place);
                assert_eq!((entry.wanted(), entry.place()), (wanted, place));
            }
        }
    }

    #[test]
    fn hops_have_one_name_until_they_are_forgotten() {
        let hops =
            |ifindex| Arc::new(BTreeSet::from([NextHop { gateway: None, ifindex, onlink: false }]));
        let mut plain = PlainHops::default();
        let (first, second) = (plain.id(&hops(1)), plain.id(&hops(2)));
        assert_ne!(first, second);
        assert_eq!((plain.id(&hops(1)), plain.known(&hops(2))), (first, Some(second)));
        assert_eq!(plain.with(|hop| hop.ifindex == 2), BTreeSet::from([second]));
        for ifindex in 0..100 {
            plain.id(&hops(ifindex));
        }
        assert!(plain.is_full());
        plain.retain(&BTreeSet::from([second]));
        assert_eq!((plain.known(&hops(1)), plain.known(&hops(2))), (None, Some(second)));
        assert!(!plain.is_full());
        assert_ne!(plain.id(&hops(1)), first, "nobody takes it for what it was");
    }
}
