//! What is to be in the kernel, and what is: pure, so that it can be tested without one.
//!
//! Routes with the same BGP next hops form a set. A set whose way has a second next hop has a group of
//! nexthop objects, which its routes name; what changes the way of a set is a message about its
//! group, not one for each route. Other sets have plain routes. Events mark what has to be looked at
//! (`dirty`), so that a turn costs as much as has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_dataplane::{
    NextHop,
    fib::{LearnedRoute, Object, ObjectId, Resolved, Via},
};
use twill_types::{BgpNextHop, Family, Prefix, PrefixList, PrefixMap};

use super::{
    Sources,
    due::Due,
    entry::{Entry, HopsId, Place, PlainHops, Wanted},
    groups::Groups,
    ways::{Reach, SetKey, Way},
};
use crate::config::Switch;

/// A set of routes, as the table calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetId(pub(super) u32);

/// Routes with the same BGP next hops.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) key: Arc<SetKey>,
    /// How many destinations want it.
    routes: usize,
    pub(super) way: Way,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) mode: Switch,
    pub(super) sources: Sources,
    pub(super) reach: Reach,
    pub(super) sets: BTreeMap<SetId, Set>,
    by_key: BTreeMap<Arc<SetKey>, SetId>,
    last_set: u32,
    pub(super) entries: PrefixMap<Entry>,
    /// What those entries name that are plain routes.
    pub(super) plain: PlainHops,
    /// Destinations whose route may have to change.
    pub(super) dirty: PrefixList,
    /// Those of them that a plan has seen, and whose routes are still to be written.
    pub(super) due: Due,
    /// Routes that the kernel refused, to be tried again when something changes in it.
    refused: BTreeSet<Prefix>,
    pub(super) groups: Groups,
    /// The group of each set that has one.
    pub(super) group_of: BTreeMap<SetId, ObjectId>,
    /// Sets whose group the kernel refused, until something changes.
    pub(super) ungrouped: BTreeSet<SetId>,
    /// Sets that may have a group again.
    pub(super) regroup: BTreeSet<SetId>,
    /// Objects from before that cannot be used.
    pub(super) strays: Vec<ObjectId>,
    /// Ways may be others than the sets have.
    pub(super) ways_stale: bool,
    pub(super) adopting: bool,
    /// Routes that others removed or changed and that were put back.
    pub(super) repairs: u64,
}

impl Table {
    /// A table that keeps these routes until the speaker has converged.
    pub(super) fn adopt(
        mode: Switch,
        routes: &BTreeMap<Prefix, LearnedRoute>,
        objects: &BTreeMap<ObjectId, Object>,
    ) -> Self {
        let mut groups = Groups::default();
        let strays = groups.adopt(objects);
        let mut sources = Sources::new();
        for route in routes.values() {
            if let Some(source) = route.source {
                sources.entry(route.prefix.family()).or_insert(source);
            }
        }
        let mut plain = PlainHops::default();
        let entry = |(prefix, route): (&Prefix, &LearnedRoute)| {
            let place = match &route.via {
                _ if route.source != sources.get(&prefix.family()).copied() => Place::Unknown,
                Via::Hops(hops) => Place::Plain(plain.id(hops)),
                Via::Object(id) if groups.held.contains_key(id) => Place::Object(*id),
                Via::Object(_) => Place::Unknown,
            };
            (*prefix, Entry::new(Wanted::Unsaid, place))
        };
        let entries: PrefixMap<Entry> = routes.iter().map(entry).collect();
        for (prefix, entry) in entries.iter() {
            if let Place::Object(id) = entry.place()
                && let Some(held) = groups.held.get_mut(&id)
            {
                held.family = prefix.family();
                held.routes += 1;
            }
        }
        Self {
            mode,
            sources,
            reach: Reach::default(),
            sets: BTreeMap::new(),
            by_key: BTreeMap::new(),
            last_set: 0,
            entries,
            plain,
            dirty: PrefixList::new(),
            due: Due::default(),
            refused: BTreeSet::new(),
            groups,
            group_of: BTreeMap::new(),
            ungrouped: BTreeSet::new(),
            regroup: BTreeSet::new(),
            strays,
            ways_stale: false,
            adopting: true,
            repairs: 0,
        }
    }

    /// The speaker's word on destinations; no next hops for no route.
    pub(super) fn want(
        &mut self,
        prefixes: &PrefixList,
        next_hops: &Arc<[BgpNextHop]>,
        backup: Option<BgpNextHop>,
    ) {
        let mut last = None;
        for prefix in prefixes.iter() {
            let family = prefix.family();
            let wanted = match last {
                Some((known, wanted)) if known == family => wanted,
                _ if next_hops.is_empty() => Wanted::Nothing,
                _ => {
                    let next_hops = Arc::clone(next_hops);
                    Wanted::Set(self.set(SetKey { family, next_hops, backup }))
                }
            };
            last = Some((family, wanted));
            self.want_one(prefix, wanted);
        }
    }

    fn want_one(&mut self, prefix: Prefix, wanted: Wanted) {
        let new = || Entry::new(Wanted::Nothing, Place::Absent);
        let entry = self.entries.get_or_insert_with(prefix, new);
        let before = entry.wanted();
        entry.set_wanted(wanted);
        // What is the same goes on being the same, and what there never was is forgotten.
        if before == wanted && (wanted != Wanted::Nothing || entry.place() != Place::Absent) {
            return;
        }
        self.count(before, false);
        self.count(wanted, true);
        self.dirty.push(prefix);
    }

    fn set(&mut self, key: SetKey) -> SetId {
        if let Some(known) = self.by_key.get(&key) {
            return *known;
        }
        self.last_set += 1;
        let id = SetId(self.last_set);
        let way = self.reach.way(&key);
        let key = Arc::new(key);
        self.by_key.insert(Arc::clone(&key), id);
        self.sets.insert(id, Set { key, routes: 0, way });
        id
    }

    /// How many destinations want a set.
    pub(super) fn wanting(&self, id: SetId) -> usize {
        self.sets.get(&id).map_or(0, |set| set.routes)
    }

    fn count(&mut self, wanted: Wanted, more: bool) {
        if let Wanted::Set(id) = wanted
            && let Some(set) = self.sets.get_mut(&id)
        {
            set.routes = if more { set.routes + 1 } else { set.routes.saturating_sub(1) };
        }
    }

    /// Forgets the ways that no plain route has, now and then.
    pub(super) fn forget_plain(&mut self) {
        if self.plain.is_full() {
            let hops = |entry: &Entry| match entry.place() {
                Place::Plain(hops) => Some(hops),
                _ => None,
            };
            let used = self.entries.iter().filter_map(|(_, entry)| hops(entry));
            self.plain.retain(&used.collect::<BTreeSet<HopsId>>());
        }
    }

    /// Forgets sets that no destination wants; their groups are gone already.
    pub(super) fn forget_sets(&mut self) {
        let idle = self.sets.iter().filter(|(_, set)| set.routes == 0).map(|(id, _)| *id);
        for id in idle.collect::<Vec<_>>() {
            if let Some(set) = self.sets.remove(&id) {
                self.by_key.remove(&set.key);
            }
            self.group_of.remove(&id);
            self.ungrouped.remove(&id);
        }
        let Reach { resolved, leaving, .. } = &mut self.reach;
        let used = |set: &Set, address: &BgpNextHop| {
            set.key.next_hops.contains(address) || set.key.backup.as_ref() == Some(address)
        };
        leaving.retain(|address| {
            let used = self.sets.values().any(|set| used(set, address));
            if !used {
                resolved.remove(address);
            }
            used
        });
    }

    /// The speaker has said all: what it did not name can go.
    pub(super) fn converged(&mut self) {
        self.adopting = false;
        for (prefix, entry) in self.entries.iter_mut() {
            if entry.wanted() == Wanted::Unsaid {
                entry.set_wanted(Wanted::Nothing);
                self.dirty.push(prefix);
            }
        }
    }

    /// The next hops that the speaker tracks, all of them; answers those of which nothing is known.
    pub(super) fn track(&mut self, addresses: &BTreeSet<BgpNextHop>) -> Vec<BgpNextHop> {
        let known = &self.reach.resolved;
        let leaving: BTreeSet<BgpNextHop> =
            known.keys().filter(|address| !addresses.contains(address)).copied().collect();
        self.ways_stale |= leaving != self.reach.leaving;
        let back = |address: &BgpNextHop| self.reach.leaving.contains(address);
        let new = addresses.iter().filter(|a| !known.contains_key(a) || back(a)).copied().collect();
        self.reach.leaving = leaving;
        new
    }

    /// The next hops that the speaker tracks, and where they are.
    pub(super) fn tracked(&self) -> impl Iterator<Item = (BgpNextHop, Option<&Resolved>)> {
        let known = self.reach.resolved.iter().map(|(address, way)| (*address, way.as_ref()));
        known.filter(|(address, _)| !self.reach.leaving.contains(address))
    }

    /// Where next hops are; answers those of which something else is known now.
    pub(super) fn resolve(
        &mut self,
        found: BTreeMap<BgpNextHop, Option<Resolved>>,
    ) -> BTreeMap<BgpNextHop, Option<Resolved>> {
        let mut changed = BTreeMap::new();
        for (address, way) in found {
            if self.reach.resolved.get(&address) != Some(&way) {
                self.reach.resolved.insert(address, way.clone());
                changed.insert(address, way);
            }
        }
        self.ways_stale |= !changed.is_empty();
        changed
    }

    /// The state of a link.
    pub(super) fn link(&mut self, ifindex: u32, live: bool) {
        self.ways_stale |= match live {
            true => self.reach.dead_links.remove(&ifindex),
            false => self.reach.dead_links.insert(ifindex),
        };
    }

    /// Whether there is something to do without anything having changed.
    pub(super) fn is_behind(&self) -> bool {
        !self.due.is_empty() || !self.regroup.is_empty()
    }

    /// All links that carry nothing.
    pub(super) fn set_dead_links(&mut self, dead: BTreeSet<u32>) {
        self.ways_stale |= self.reach.dead_links != dead;
        self.reach.dead_links = dead;
    }

    /// A link is gone, and nothing leads by it any more.
    pub(super) fn forget_link(&mut self, ifindex: u32) {
        self.reach.dead_links.remove(&ifindex);
    }

    /// Something in the kernel has changed, so what it refused may work now.
    pub(super) fn retry(&mut self) {
        self.regroup.append(&mut self.ungrouped);
        self.ways_stale |= !self.reach.refused.is_empty() || !self.regroup.is_empty();
        self.reach.refused.clear();
        self.dirty.extend(std::mem::take(&mut self.refused));
    }

    /// Others removed or changed a route of ours.
    pub(super) fn touched(&mut self, prefix: Prefix) {
        let Some(entry) = self.entries.get(prefix) else {
            return;
        };
        if entry.is_installed() {
            self.repairs += u64::from(matches!(entry.wanted(), Wanted::Set(_)));
            self.put(prefix, Place::Unknown);
            self.dirty.push(prefix);
        }
    }

    /// Plain routes by this link are gone, or some of them: a link that goes down says nothing of them.
    pub(super) fn link_lost(&mut self, ifindex: u32) {
        let by_link = |hops: &BTreeSet<NextHop>| hops.iter().any(|hop| hop.ifindex == ifindex);
        // Routes that are still to be written may lead by a way that their set had before.
        let is_up_to_date = !self.adopting && self.dirty.is_empty() && self.due.is_empty();
        if is_up_to_date && !self.sets.values().any(|set| by_link(&set.way.hops)) {
            return;
        }
        let lost = self.plain.with(|hop| hop.ifindex == ifindex);
        self.suspect(
            |_, entry| matches!(entry.place(), Place::Plain(hops) if lost.contains(&hops)),
        );
    }

    /// The addresses that packets of the node itself come from.
    pub(super) fn set_sources(&mut self, sources: Sources) {
        let before = std::mem::replace(&mut self.sources, sources);
        for family in [Family::V4, Family::V6] {
            if before.get(&family) != self.sources.get(&family) {
                self.source_lost(family);
            }
        }
    }

    /// The source of this family's routes has come or gone: with it the kernel removes IPv4 routes, and
    /// leaves others with what they had.
    pub(super) fn source_lost(&mut self, family: Family) {
        self.suspect(|prefix, entry| prefix.family() == family && entry.is_installed());
    }

    fn suspect(&mut self, which: impl Fn(&Prefix, &Entry) -> bool) {
        for (prefix, entry) in self.entries.iter_mut() {
            if which(&prefix, entry) {
                self.groups.put(entry, Place::Unknown);
                self.dirty.push(prefix);
            }
        }
    }

    /// What is left of the objects in the kernel; `others` says whether somebody else changed them.
    pub(super) fn look(&mut self, found: &BTreeMap<ObjectId, Object>, others: bool) {
        let gone = self.groups.look(found);
        self.ways_stale = true;
        let lost = self.group_gone(&gone);
        if others {
            self.repairs += lost;
        }
    }

    /// Events were lost: what is really in the kernel.
    pub(super) fn reload(
        &mut self,
        routes: &BTreeMap<Prefix, LearnedRoute>,
        objects: &BTreeMap<ObjectId, Object>,
    ) {
        self.look(objects, false);
        for (prefix, route) in routes {
            let source = self.sources.get(&prefix.family()).copied();
            // One that is not known has our protocol number and metric, and nobody who wants it.
            let wanted = if self.adopting { Wanted::Unsaid } else { Wanted::Nothing };
            let new = || Entry::new(wanted, Place::Unknown);
            let entry = self.entries.get_or_insert_with(*prefix, new);
            let same = route.source == source
                && match (entry.place(), &route.via) {
                    (Place::Plain(known), Via::Hops(found)) => {
                        self.plain.known(found) == Some(known)
                    }
                    (Place::Object(known), Via::Object(found)) => known == *found,
                    _ => false,
                };
            if !same {
                self.put(*prefix, Place::Unknown);
                self.dirty.push(*prefix);
            }
        }
        let lost: Vec<Prefix> = self
            .entries
            .iter()
            .filter(|(prefix, entry)| entry.is_installed() && !routes.contains_key(prefix))
            .map(|(prefix, _)| prefix)
            .collect();
        for prefix in lost {
            self.put(prefix, Place::Absent);
            self.dirty.push(prefix);
        }
    }

    /// These groups are gone, and their routes with them; answers how many of these are wanted.
    pub(super) fn group_gone(&mut self, gone: &[ObjectId]) -> u64 {
        let mut lost = 0;
        self.group_of.retain(|_, id| !gone.contains(id));
        if gone.is_empty() {
            return lost;
        }
        for (prefix, entry) in self.entries.iter_mut() {
            if matches!(entry.place(), Place::Object(id) if gone.contains(&id)) {
                entry.set_place(Place::Absent);
                lost += u64::from(matches!(entry.wanted(), Wanted::Set(_)));
                self.dirty.push(prefix);
            }
        }
        lost
    }

    /// What the kernel has for a destination from now on.
    pub(super) fn put(&mut self, prefix: Prefix, place: Place) {
        let Some(entry) = self.entries.get_mut(prefix) else {
            return;
        };
        self.groups.put(entry, place);
    }

    /// The kernel refused to write a route.
    pub(super) fn refuse(&mut self, prefix: Prefix) {
        self.put(prefix, Place::Unknown);
        self.refused.insert(prefix);
    }

    /// Works out the ways of all sets; answers which are others than before.
    pub(super) fn refresh_ways(&mut self) -> BTreeSet<SetId> {
        let mut changed = std::mem::take(&mut self.regroup);
        if std::mem::take(&mut self.ways_stale) {
            for (id, set) in &mut self.sets {
                let way = self.reach.way(&set.key);
                if set.way != way {
                    set.way = way;
                    changed.insert(*id);
                }
            }
        }
        changed
    }
}
