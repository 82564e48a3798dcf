//! What the policy of a peer makes of its paths.
//!
//! Paths stay as they came, those that are refused among them, so that another policy needs nothing from
//! the peer. What policy makes of a path is part of its source: prefixes with the same attributes that it
//! treats alike share one, and a peer without a policy pays nothing.

use std::sync::Arc;

use twill_types::Prefix;

use super::{AdjRibsIn, Id, PeerKey, Source, Table};
use crate::{
    policy::{Direction, Route, RoutePolicy},
    wire::PathAttributes,
};

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Imported {
    /// It is taken as it is.
    AsReceived,
    /// It is taken with these attributes.
    Changed(Arc<PathAttributes>),
    /// It is not used.
    Refused,
}

/// The policy of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rib) struct Importer {
    policy: Arc<RoutePolicy>,
    /// The session is within one AS.
    internal: bool,
}

impl Importer {
    fn route<'a>(&self, prefix: Prefix, attributes: &'a PathAttributes) -> Route<'a> {
        Route { prefix, attributes, learned: true, internal: self.internal }
    }

    pub(super) fn import(&self, prefix: Prefix, attributes: &PathAttributes) -> Imported {
        let route = self.route(prefix, attributes);
        let verdict = self.policy.verdict(Direction::Import, &route);
        if verdict.is_rejected() {
            return Imported::Refused;
        }
        let changed = self.policy.imported(verdict, &route);
        changed.map_or(Imported::AsReceived, |changed| Imported::Changed(Arc::new(changed)))
    }

    fn refusal(&self, prefix: Prefix, attributes: &PathAttributes) -> Option<String> {
        let verdict = self.policy.verdict(Direction::Import, &self.route(prefix, attributes));
        self.policy.refusal(Direction::Import, prefix.family(), verdict)
    }
}

impl Table {
    /// The source of these attributes of which this became.
    pub(super) fn find(
        &self,
        path_id: u32,
        attributes: &Arc<PathAttributes>,
        imported: &Imported,
    ) -> Option<Id> {
        if *imported == Imported::AsReceived {
            return self.sources.get(&path_id)?.get(attributes).copied();
        }
        let key = (path_id, Arc::clone(attributes), imported.clone());
        self.filtered.get(&key).copied()
    }

    pub(super) fn note(
        &mut self,
        path_id: u32,
        attributes: &Arc<PathAttributes>,
        imported: Imported,
        id: Id,
    ) {
        let attributes = Arc::clone(attributes);
        if imported == Imported::AsReceived {
            self.sources.entry(path_id).or_default().insert(attributes, id);
        } else {
            self.filtered.insert((path_id, attributes, imported), id);
        }
    }

    pub(super) fn forget(&mut self, gone: Source) {
        if gone.imported != Imported::AsReceived {
            self.filtered.remove(&(gone.path_id, gone.received, gone.imported));
        } else if let Some(sources) = self.sources.get_mut(&gone.path_id) {
            sources.remove(&gone.received);
            if sources.is_empty() {
                self.sources.remove(&gone.path_id);
            }
        }
    }

    /// Which rule refuses a path with this source, for people.
    pub(in crate::rib) fn refusal(&self, source: &Source, prefix: Prefix) -> Option<String> {
        let importer = self.importer.as_ref().filter(|_| source.is_refused());
        importer.and_then(|importer| importer.refusal(prefix, &source.received))
    }
}

impl Source {
    /// What becomes of the same path with a community more.
    pub(super) fn with_community(
        &self,
        community: crate::wire::Community,
    ) -> (Arc<PathAttributes>, Imported) {
        let imported = match &self.imported {
            Imported::Changed(attributes) => {
                Imported::Changed(Arc::new(attributes.with_community(community)))
            }
            same @ (Imported::AsReceived | Imported::Refused) => same.clone(),
        };
        (Arc::new(self.received.with_community(community)), imported)
    }
}

impl AdjRibsIn {
    /// What is taken from a peer from now on; what is there is looked at again.
    pub(in crate::rib) fn set_import(
        &mut self,
        key: PeerKey,
        policy: Option<&Arc<RoutePolicy>>,
        internal: bool,
    ) {
        let policy = policy.filter(|policy| policy.has_import());
        let importer = policy.map(|policy| Importer { policy: Arc::clone(policy), internal });
        let known = self.by_key.get(&key).and_then(|peer| self.peers.get(*peer));
        if known.and_then(|table| table.importer.as_ref()) == importer.as_ref() {
            return;
        }
        let peer = self.peer(key);
        if let Some(table) = self.peers.get_mut(peer) {
            table.importer.clone_from(&importer);
        }
        for place in self.take_places(peer) {
            let mut start = 0;
            while let Some(position) = self.next_position(peer, place, start) {
                if let Some(source) = self.imported_again(peer, place, position, importer.as_ref())
                {
                    self.put_under(place, position, source);
                }
                start = position + 1;
            }
            self.give_place(peer, place);
        }
    }

    /// The source of a path by another policy.
    fn imported_again(
        &mut self,
        peer: Id,
        place: Id,
        position: usize,
        importer: Option<&Importer>,
    ) -> Option<Id> {
        let (prefix, destination) = self.destination(place)?;
        let source = self.sources.get(destination.paths.get(position)?.source)?;
        let (path_id, received) = (source.path_id, Arc::clone(&source.received));
        let imported =
            importer.map_or(Imported::AsReceived, |importer| importer.import(prefix, &received));
        Some(self.intern(peer, path_id, &received, imported))
    }

    /// How many paths of a peer its policy refuses.
    pub(in crate::rib) fn refused(&self, key: PeerKey) -> usize {
        let table = self.by_key.get(&key).and_then(|peer| self.peers.get(*peer));
        let filtered = table.into_iter().flat_map(|table| &table.filtered);
        let refused = filtered.filter(|((_, _, imported), _)| *imported == Imported::Refused);
        let sources = refused.filter_map(|(_, id)| self.sources.get(*id));
        sources.map(|source| source.paths).sum()
    }
}
