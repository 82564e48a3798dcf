//! The nexthop objects in the kernel, and which messages make them different ones.

use std::collections::{BTreeMap, BTreeSet};

use twill_dataplane::{
    NextHop,
    fib::{Group, Object, ObjectChange, ObjectId},
};
use twill_types::Family;

use super::{
    entry::{Entry, Place},
    table::SetId,
    ways::Way,
};

/// A group that is in the kernel.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// Whose routes name it; `None` while it is left from the process before.
    pub(super) set: Option<SetId>,
    /// Of its routes.
    pub(super) family: Family,
    /// Where it leads.
    pub(super) way: Way,
    /// Whether it can have a backup, which stays for its life.
    pub(super) guarded: bool,
    /// How many routes name it.
    pub(super) routes: usize,
}

/// All objects of ours.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) held: BTreeMap<ObjectId, Held>,
    hops: BTreeMap<NextHop, ObjectId>,
    /// The number that was given last.
    last: ObjectId,
    /// Numbers that somebody else has taken.
    foreign: BTreeSet<ObjectId>,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            hops: BTreeMap::new(),
            last: ObjectId::MAX,
            foreign: BTreeSet::new(),
        }
    }
}

impl Groups {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.hops.is_empty()
    }

    /// A route is somewhere else from now on; answers where it was.
    pub(super) fn put(&mut self, entry: &mut Entry, new: Place) -> Place {
        if let Place::Object(id) = new
            && let Some(held) = self.held.get_mut(&id)
        {
            held.routes += 1;
        }
        let before = entry.place();
        entry.set_place(new);
        if let Place::Object(id) = before
            && let Some(held) = self.held.get_mut(&id)
        {
            held.routes = held.routes.saturating_sub(1);
        }
        before
    }

    /// A number that no object has; `None` if all are taken.
    pub(super) fn free_id(&mut self) -> Option<ObjectId> {
        let taken: BTreeSet<ObjectId> = self.hops.values().copied().collect();
        let range = ObjectId::LAST - ObjectId::FIRST;
        for _ in 0..=range {
            self.last = self.last.next();
            let known = [&taken, &self.foreign].iter().any(|ids| ids.contains(&self.last));
            if !known && !self.held.contains_key(&self.last) {
                return Some(self.last);
            }
        }
        None
    }

    /// Takes over what is in the kernel at a start. Answers objects that cannot be used, which can go:
    /// doubles of a hop, and the groups with one of these.
    pub(super) fn adopt(&mut self, found: &BTreeMap<ObjectId, Object>) -> Vec<ObjectId> {
        let mut strays = Vec::new();
        for (id, object) in found {
            if let Object::Hop(hop) = object
                && let Some(double) = self.hops.insert(*hop, *id)
            {
                strays.push(double);
            }
        }
        for (id, object) in found {
            let Object::Group(group) = object else {
                continue;
            };
            match self.way_of(group) {
                Some(way) => {
                    // Nobody has a use for one without routes, of whatever family.
                    let (set, family, routes) = (None, Family::V4, 0);
                    let held = Held { set, family, way, guarded: group.guarded, routes };
                    self.held.insert(*id, held);
                }
                None => strays.push(*id),
            }
        }
        strays
    }

    fn way_of(&self, group: &Group) -> Option<Way> {
        let hop = |id: ObjectId| self.hops.iter().find(|(_, known)| **known == id).map(|(h, _)| *h);
        let members: Option<BTreeSet<NextHop>> = group.members.iter().map(|id| hop(*id)).collect();
        let backup = match group.backup {
            Some(id) => Some(hop(id)?),
            None => None,
        };
        Some(Way::new(members?, backup))
    }

    /// Takes note of what is left in the kernel, which others, or a link that went down, may have
    /// changed; answers the groups that are gone with all their routes.
    pub(super) fn look(&mut self, found: &BTreeMap<ObjectId, Object>) -> Vec<ObjectId> {
        self.hops.retain(|hop, id| found.get(id) == Some(&Object::Hop(*hop)));
        let mut gone = Vec::new();
        let ids: Vec<ObjectId> = self.held.keys().copied().collect();
        for id in ids {
            let way = match found.get(&id) {
                Some(Object::Group(group)) => self.way_of(group),
                _ => None,
            };
            match (way, self.held.get_mut(&id)) {
                (Some(way), Some(held)) => held.way = way,
                _ => {
                    self.held.remove(&id);
                    gone.push(id);
                }
            }
        }
        gone
    }

    /// The hops that are to be made for these ways.
    pub(super) fn missing_hops(&mut self, ways: &BTreeMap<ObjectId, Way>) -> Vec<ObjectChange> {
        let wanted: BTreeSet<NextHop> = ways.values().flat_map(Way::all).collect();
        let missing: Vec<NextHop> =
            wanted.into_iter().filter(|hop| !self.hops.contains_key(hop)).collect();
        let create = |hop: NextHop| {
            let id = self.free_id()?;
            self.hops.insert(hop, id);
            Some(ObjectChange::Create(id, Object::Hop(hop)))
        };
        missing.into_iter().filter_map(create).collect()
    }

    /// Somebody else has taken a number of our range.
    pub(super) fn number_taken(&mut self, id: ObjectId) {
        self.foreign.insert(id);
    }

    /// The kernel refused to make an object; answers the hop that it was.
    pub(super) fn hop_refused(&mut self, id: ObjectId) -> Option<NextHop> {
        let hop = self.hops.iter().find(|(_, known)| **known == id).map(|(hop, _)| *hop)?;
        self.hops.remove(&hop);
        Some(hop)
    }

    /// Makes groups lead where `ways` says, the rest as before; all hops are there, also those of
    /// groups in `ways` that are yet to be made. A hop that no group
    /// has any more is deleted, by which the kernel takes it out of all groups in one message and
    /// without one for each route; only what cannot be done in this way is a message for a group.
    pub(super) fn change(&mut self, ways: &BTreeMap<ObjectId, Way>) -> Vec<ObjectChange> {
        let stay = self.held.iter().filter(|(id, _)| !ways.contains_key(id));
        let used: BTreeSet<NextHop> =
            stay.map(|(_, held)| &held.way).chain(ways.values()).flat_map(Way::all).collect();
        let dying: BTreeSet<NextHop> =
            self.hops.keys().filter(|hop| !used.contains(hop)).copied().collect();
        let mut changes = Vec::new();
        for (id, way) in ways {
            let Some(held) = self.held.get(id) else {
                continue;
            };
            if held.way.without(&dying) != *way {
                changes.push(ObjectChange::Replace(*id, self.group(way, held.guarded)));
            }
        }
        for (id, way) in ways {
            if let Some(held) = self.held.get_mut(id) {
                held.way = way.clone();
            }
        }
        changes.extend(self.delete_hops(&dying));
        changes
    }

    fn delete_hops(&mut self, dying: &BTreeSet<NextHop>) -> Vec<ObjectChange> {
        dying.iter().filter_map(|hop| self.hops.remove(hop)).map(ObjectChange::Delete).collect()
    }

    /// Makes a new group; all hops are there.
    pub(super) fn create(&mut self, id: ObjectId, held: Held) -> ObjectChange {
        let group = self.group(&held.way, held.guarded);
        self.held.insert(id, held);
        ObjectChange::Create(id, Object::Group(group))
    }

    /// The kernel refused to make a group; answers whose it was.
    pub(super) fn forget(&mut self, id: ObjectId) -> Option<SetId> {
        self.held.remove(&id)?.set
    }

    /// Removes groups, with all the routes that name them.
    pub(super) fn delete(&mut self, ids: &[ObjectId]) -> Vec<ObjectChange> {
        let held = ids.iter().filter(|id| self.held.remove(id).is_some());
        held.map(|id| ObjectChange::Delete(*id)).collect()
    }

    /// Removes what no route names.
    /// While what a process before has left is adopted, routes that are not known of may hang on its
    /// groups, and the kernel would take them along without a word.
    pub(super) fn sweep(&mut self, adopting: bool) -> Vec<ObjectChange> {
        let is_idle = |held: &Held| held.routes == 0 && !(adopting && held.set.is_none());
        let idle = self.held.iter().filter(|(_, held)| is_idle(held)).map(|(id, _)| *id);
        let mut changes = self.delete(&idle.collect::<Vec<_>>());
        let used: BTreeSet<NextHop> = self.held.values().flat_map(|held| held.way.all()).collect();
        let dying = self.hops.keys().filter(|hop| !used.contains(hop)).copied().collect();
        changes.extend(self.delete_hops(&dying));
        changes
    }

    fn group(&self, way: &Way, guarded: bool) -> Group {
        let id = |hop: &NextHop| self.hops.get(hop).copied();
        let members = way.hops.iter().filter_map(id).collect();
        Group { members, backup: way.backup.as_ref().and_then(id), guarded }
    }
}
