//! Which messages make the kernel have what the table wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_dataplane::fib::{FibChange, LearnedRoute, ObjectChange, ObjectId, Via};
use twill_types::{Family, Prefix, PrefixList};

use super::{
    entry::{Entry, Place, Wanted},
    groups::{Groups, Held},
    table::{SetId, Table},
    ways::Way,
};
use crate::config::Switch;

/// Routes that are written in one send.
const FEW: usize = 128;

/// Why the kernel did not make an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Somebody else has an object of this number.
    NumberTaken,
    /// It knows no such objects.
    Unknown,
    /// Another reason, which may pass.
    Other,
}

/// What is to happen to groups.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Where groups are to lead, those that are others than before and new ones.
    ways: BTreeMap<ObjectId, Way>,
    new: Vec<(ObjectId, SetId)>,
    /// Groups that go with all their routes.
    gone: Vec<ObjectId>,
}

impl Plan {
    /// The part that moves traffic from one way to another.
    pub(super) fn moves_only(self) -> Self {
        let Self { mut ways, new, .. } = self;
        ways.retain(|id, _| new.iter().all(|(new, _)| new != id));
        Self { ways, new: Vec::new(), gone: Vec::new() }
    }
}

impl Table {
    /// What is to happen to groups. It may be asked for again if a hop of it is refused.
    pub(super) fn plan(&mut self) -> Plan {
        let changed = self.refresh_ways();
        if !changed.is_empty() {
            self.mark_routes_of(&changed);
        }
        self.dirty.sort();
        self.adopt_groups();
        let mut plan = Plan { gone: self.take_over(), ..Plan::default() };
        for (id, held) in &self.groups.held {
            let Some(set) = held.set.and_then(|set| self.sets.get(&set)) else {
                continue;
            };
            if plan.gone.contains(id) {
                continue;
            }
            let way = set.way.as_held(held.guarded);
            if way.hops.is_empty() {
                plan.gone.push(*id);
            } else if way != held.way {
                plan.ways.insert(*id, way);
            }
        }
        self.plan_new(&mut plan);
        plan
    }

    /// Routes of these sets that do not hang on the set's group have to change with its way.
    fn mark_routes_of(&mut self, changed: &BTreeSet<SetId>) {
        let held = &self.groups.held;
        let hangs = |place: Place, set: SetId| match place {
            Place::Object(id) => held.get(&id).is_some_and(|held| held.set == Some(set)),
            _ => false,
        };
        let mut hanging: BTreeMap<SetId, usize> = BTreeMap::new();
        for held in held.values() {
            if let Some(set) = held.set {
                *hanging.entry(set).or_default() += held.routes;
            }
        }
        let stay =
            |set: &SetId| hanging.get(set).copied().unwrap_or_default() == self.wanting(*set);
        // What is still to be written may hang on a group and want another, which the numbers do not tell.
        let is_up_to_date = self.dirty.is_empty() && self.due.is_empty();
        if is_up_to_date && changed.iter().all(stay) {
            return;
        }
        for (prefix, entry) in self.entries.iter() {
            if let Wanted::Set(set) = entry.wanted()
                && changed.contains(&set)
                && !hangs(entry.place(), set)
            {
                self.dirty.push(prefix);
            }
        }
    }

    /// A group from the process before becomes that of the first set which leads the same way.
    fn adopt_groups(&mut self) {
        if self.mode == Switch::Off || self.groups.held.values().all(|held| held.set.is_some()) {
            return;
        }
        for prefix in self.dirty.iter() {
            let Some(entry) = self.entries.get(prefix) else {
                continue;
            };
            let Wanted::Set(id) = entry.wanted() else {
                continue;
            };
            let Some(set) = self.sets.get(&id) else {
                continue;
            };
            if self.group_of.contains_key(&id) || set.way.hops.is_empty() {
                continue;
            }
            let needs = self.needs_group(id);
            let same = |group: ObjectId, held: &Held| {
                let wanted = needs || entry.place() == Place::Object(group);
                let is_free = held.set.is_none() && held.routes > 0 && wanted;
                is_free
                    && held.family == set.key.family
                    && held.way == set.way.as_held(held.guarded)
            };
            // Others may lead the same way: best is the one that the route has already.
            let own = match entry.place() {
                Place::Object(group) => self.groups.held.get(&group).map(|held| (group, held)),
                _ => None,
            };
            let own = own.filter(|(group, held)| same(*group, held)).map(|(group, _)| group);
            let any = || {
                let mut all = self.groups.held.iter();
                all.find(|(group, held)| same(**group, held)).map(|(group, _)| *group)
            };
            if let Some(group) = own.or_else(any)
                && let Some(held) = self.groups.held.get_mut(&group)
            {
                held.set = Some(id);
                self.group_of.insert(id, group);
            }
        }
    }

    /// Where all routes of a group want something else, the group goes along with most of them, and
    /// with it all of them by one message. Answers groups of which no route is wanted any more.
    fn take_over(&mut self) -> Vec<ObjectId> {
        if self.groups.held.is_empty() {
            return Vec::new();
        }
        let mut moves: BTreeMap<ObjectId, BTreeMap<Option<SetId>, usize>> = BTreeMap::new();
        for prefix in self.dirty.iter() {
            let Some(entry) = self.entries.get(prefix) else {
                continue;
            };
            let to = match entry.wanted() {
                Wanted::Unsaid => continue,
                Wanted::Nothing => None,
                Wanted::Set(set) => Some(set),
            };
            if let Place::Object(id) = entry.place()
                && self.groups.held.get(&id).is_some_and(|held| to.is_none() || held.set != to)
            {
                *moves.entry(id).or_default().entry(to).or_default() += 1;
            }
        }
        let mut gone = Vec::new();
        for (id, moves) in moves {
            let Some(held) = self.groups.held.get_mut(&id) else {
                continue;
            };
            if moves.values().sum::<usize>() != held.routes {
                continue;
            }
            let goals = moves.iter().filter_map(|(to, count)| Some((*count, (*to)?)));
            let usable =
                |set: &SetId| self.sets.get(set).is_some_and(|set| !set.way.hops.is_empty());
            match goals.filter(|(_, set)| usable(set)).max() {
                // Few routes go to the group that there is already.
                Some((count, set)) if count <= FEW && self.group_of.contains_key(&set) => {}
                Some((_, set)) if self.mode != Switch::Off => {
                    held.set = Some(set);
                    self.group_of.retain(|_, known| *known != id);
                    self.group_of.entry(set).or_insert(id);
                }
                Some(_) => {}
                // Others that are not known of may hang on it.
                None if self.adopting && held.set.is_none() => {}
                None => gone.push(id),
            }
        }
        gone
    }

    /// Groups for sets that need one.
    fn plan_new(&mut self, plan: &mut Plan) {
        // A set whose own group went may have taken over another one.
        for (id, held) in self.groups.held.iter().filter(|(id, _)| !plan.gone.contains(id)) {
            if let Some(set) = held.set
                && self.group_of.get(&set).is_none_or(|known| plan.gone.contains(known))
            {
                self.group_of.insert(set, *id);
            }
        }
        let lacks = |set: &SetId| self.group_of.get(set).is_none_or(|id| plan.gone.contains(id));
        let wanting = self.sets.keys().copied().filter(|set| self.wanting(*set) > 0);
        let new: Vec<SetId> = wanting.filter(lacks).filter(|set| self.needs_group(*set)).collect();
        for set in new {
            let Some(way) = self.sets.get(&set).map(|set| set.way.clone()) else {
                continue;
            };
            // Without a free number its routes are plain.
            if let Some(id) = self.groups.free_id() {
                let way = way.as_held(is_guarded(&way));
                plan.ways.insert(id, way);
                plan.new.push((id, set));
            }
        }
    }

    fn needs_group(&self, id: SetId) -> bool {
        self.sets.get(&id).is_some_and(|set| match self.mode {
            _ if self.ungrouped.contains(&id) => false,
            Switch::On => !set.way.hops.is_empty(),
            Switch::Auto => set.way.has_second(),
            Switch::Off => false,
        })
    }

    /// The hops that the plan lacks. If one is refused, [`Table::hop_refused`] and a new plan follow.
    pub(super) fn missing_hops(&mut self, plan: &Plan) -> Vec<ObjectChange> {
        self.groups.missing_hops(&plan.ways)
    }

    /// The kernel refused to make a hop.
    pub(super) fn hop_refused(&mut self, id: ObjectId, why: Refusal) {
        if let Some(hop) = self.groups.hop_refused(id) {
            self.ways_stale = true;
            match why {
                Refusal::NumberTaken => self.groups.number_taken(id),
                Refusal::Unknown => self.mode = Switch::Off,
                Refusal::Other => drop(self.reach.refused.insert(hop)),
            }
        }
    }

    /// The kernel refused to make a group. Where only its number was the reason there is another one in
    /// the next turn; else the routes of its set are plain until something changes.
    pub(super) fn group_refused(&mut self, id: ObjectId, why: Refusal) {
        let set = self.groups.forget(id);
        if why == Refusal::NumberTaken {
            self.groups.number_taken(id);
            self.ways_stale = true;
            self.regroup.extend(set);
        } else {
            self.ungrouped.extend(set);
        }
        self.group_gone(&[id]);
    }

    /// Carries the plan out on the table: the messages about groups, first those that move traffic.
    pub(super) fn change_groups(&mut self, plan: &Plan) -> Vec<ObjectChange> {
        let mut changes = self.groups.change(&plan.ways);
        changes.extend(self.groups.delete(&plan.gone));
        self.group_gone(&plan.gone);
        for (id, set) in &plan.new {
            let Some(way) = plan.ways.get(id).cloned() else {
                continue;
            };
            let Some(family) = self.sets.get(set).map(|set| set.key.family) else {
                continue;
            };
            let guarded = is_guarded(&way);
            let held = Held { set: Some(*set), family, way, guarded, routes: 0 };
            changes.push(self.groups.create(*id, held));
            self.group_of.insert(*set, *id);
        }
        changes
    }

    /// Carries it out for routes that do not follow their group, at most `limit` of them. The rest are
    /// [`Table::due`], and until they are written no object is idle.
    pub(super) fn change_routes(&mut self, limit: usize) -> Vec<FibChange> {
        // Routes of groups that are gone have come to it.
        self.due.add(std::mem::take(&mut self.dirty));
        let mut changes = Vec::with_capacity(limit.min(self.due.at_most()));
        let sets: Vec<SetId> = self.sets.keys().copied().collect();
        let ways: BTreeMap<SetId, (Option<Via>, Place)> =
            sets.into_iter().map(|set| (set, self.way_of(set))).collect();
        let none = (None, Place::Absent);
        while changes.len() < limit {
            let Some(prefix) = self.due.next() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(prefix) else {
                continue;
            };
            let (via, place) = match entry.wanted() {
                Wanted::Unsaid => continue,
                Wanted::Nothing => &none,
                Wanted::Set(set) => {
                    let way = ways.get(&set).unwrap_or(&none);
                    if is_placed(&self.groups, entry.place(), set, way.1) {
                        continue;
                    }
                    way
                }
            };
            let before = self.groups.put(entry, *place);
            match via.clone() {
                Some(via) => {
                    let source = self.sources.get(&prefix.family()).copied();
                    changes.push(FibChange::Replace(LearnedRoute { prefix, via, source }));
                }
                None => {
                    if before != Place::Absent {
                        changes.push(FibChange::Delete(prefix));
                    }
                    if entry.wanted() == Wanted::Nothing {
                        self.entries.remove(prefix);
                    }
                }
            }
        }
        changes
    }

    /// By what the routes of a set lead, and where that puts them.
    fn way_of(&mut self, set: SetId) -> (Option<Via>, Place) {
        if let Some(id) = self.group_of.get(&set) {
            return (Some(Via::Object(*id)), Place::Object(*id));
        }
        match self.sets.get(&set).map(|set| &set.way.hops) {
            Some(hops) if !hops.is_empty() => {
                (Some(Via::Hops(Arc::clone(hops))), Place::Plain(self.plain.id(hops)))
            }
            _ => (None, Place::Absent),
        }
    }

    /// Removes objects that no route needs any more.
    pub(super) fn sweep(&mut self) -> Vec<ObjectChange> {
        let mut changes = self.groups.sweep(self.adopting);
        let held = &self.groups.held;
        self.group_of.retain(|_, id| held.contains_key(id));
        if !self.adopting {
            changes.extend(self.strays.drain(..).map(ObjectChange::Delete));
        }
        self.forget_sets();
        self.forget_plain();
        changes
    }

    /// Learned routes in the kernel, in order, and how many that are wanted are not.
    pub(super) fn installed(&self) -> (PrefixList, usize) {
        let there = |family| {
            let of_family =
                |prefix: Prefix, entry: &Entry| prefix.family() == family && entry.is_installed();
            self.entries.iter().filter(|(prefix, entry)| of_family(*prefix, entry)).count()
        };
        let mut installed = PrefixList::with_capacity(there(Family::V4), there(Family::V6));
        let mut missing = 0;
        for (prefix, entry) in self.entries.iter() {
            if entry.is_installed() {
                installed.push(prefix);
            } else {
                missing += usize::from(matches!(entry.wanted(), Wanted::Set(_)));
            }
        }
        (installed, missing)
    }
}

/// Whether a route is where those of its set belong: by a group of the set, or at `place`.
fn is_placed(groups: &Groups, known: Place, set: SetId, place: Place) -> bool {
    match known {
        Place::Object(id) => groups.held.get(&id).is_some_and(|held| held.set == Some(set)),
        Place::Plain(_) => known == place,
        Place::Absent | Place::Unknown => false,
    }
}

/// A group of several members needs no backup: the kernel lets the others take over. One of a single
/// member has to be able to get one.
fn is_guarded(way: &Way) -> bool {
    way.hops.len() == 1
}
