//! What the policy of a peer makes of its paths.
//!
//! Paths stay as they came, those that are refused among them, so that another policy needs nothing from
//! the peer. What policy makes of a path is part of its source: prefixes with the same attributes that it
//! treats alike share one, and a peer without a policy pays nothing.

use std::sync::Arc;

use twill_types::{BgpNextHop, Prefix};

use super::{AdjRibsIn, Id, PeerKey, Source, Table};
use crate::{
    policy::{Direction, Route, RoutePolicy},
    wire::{Community, Packed, PathAttributes},
};

/// The attributes of a path as they came, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Imported {
    /// It is taken as it is.
    AsReceived(Packed),
    /// Policy refuses or changes it. This stands apart, so that the others are no larger for it.
    Filtered(Arc<Filtered>),
}

/// What policy does not leave as it came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Filtered {
    received: Packed,
    /// It is taken with these attributes; `None` if it is not used.
    changed: Option<Packed>,
}

impl Imported {
    fn filtered(received: Packed, changed: Option<Packed>) -> Self {
        Self::Filtered(Arc::new(Filtered { received, changed }))
    }

    pub(super) fn received(&self) -> &Packed {
        match self {
            Self::AsReceived(received) => received,
            Self::Filtered(filtered) => &filtered.received,
        }
    }

    /// What it is taken with; of what is refused, as it came.
    pub(super) fn attributes(&self) -> &Packed {
        match self {
            Self::AsReceived(received) => received,
            Self::Filtered(filtered) => filtered.changed.as_ref().unwrap_or(&filtered.received),
        }
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Filtered(filtered) if filtered.changed.is_none())
    }

    /// Where it leads to, as it came from `peer`. Nobody goes by what is refused, and policy changes no next
    /// hop.
    pub(super) fn next_hop(&self, peer: PeerKey) -> Option<BgpNextHop> {
        let address = self.received().next_hop().filter(|_| !self.is_refused())?;
        Some(BgpNextHop::new(address, peer.address))
    }

    /// What becomes of the same path with a community more.
    pub(super) fn with_community(&self, community: Community) -> Option<Self> {
        let with = |packed: &Packed| Some(Packed::new(&packed.unpack()?.with_community(community)));
        let received = with(self.received())?;
        Some(match self {
            Self::AsReceived(_) => Self::AsReceived(received),
            Self::Filtered(filtered) => match &filtered.changed {
                Some(changed) => Self::filtered(received, Some(with(changed)?)),
                None => Self::filtered(received, None),
            },
        })
    }
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

    /// What becomes of a path with these attributes, which are `received`.
    pub(super) fn import(
        &self,
        prefix: Prefix,
        attributes: &PathAttributes,
        received: &Packed,
    ) -> Imported {
        let route = self.route(prefix, attributes);
        let verdict = self.policy.verdict(Direction::Import, &route);
        if verdict.is_rejected() {
            return Imported::filtered(received.clone(), None);
        }
        match self.policy.imported(verdict, &route) {
            None => Imported::AsReceived(received.clone()),
            Some(changed) => Imported::filtered(received.clone(), Some(Packed::new(&changed))),
        }
    }

    fn refusal(&self, prefix: Prefix, attributes: &PathAttributes) -> Option<String> {
        let verdict = self.policy.verdict(Direction::Import, &self.route(prefix, attributes));
        self.policy.refusal(Direction::Import, prefix.family(), verdict)
    }
}

impl Table {
    /// The source of these attributes of which this became.
    pub(super) fn find(&self, path_id: u32, imported: &Imported) -> Option<Id> {
        match imported {
            Imported::AsReceived(received) => self.sources.get(&path_id)?.get(received).copied(),
            Imported::Filtered(filtered) => {
                self.filtered.get(&(path_id, Arc::clone(filtered))).copied()
            }
        }
    }

    pub(super) fn note(&mut self, path_id: u32, imported: Imported, id: Id) {
        match imported {
            Imported::AsReceived(received) => {
                self.sources.entry(path_id).or_default().insert(received, id);
            }
            Imported::Filtered(filtered) => {
                self.filtered.insert((path_id, filtered), id);
            }
        }
    }

    pub(super) fn forget(&mut self, gone: Source) {
        match gone.imported {
            Imported::Filtered(filtered) => {
                self.filtered.remove(&(gone.path_id, filtered));
            }
            Imported::AsReceived(received) => {
                if let Some(sources) = self.sources.get_mut(&gone.path_id) {
                    sources.remove(&received);
                    if sources.is_empty() {
                        self.sources.remove(&gone.path_id);
                    }
                }
            }
        }
    }

    /// Which rule refuses a path with this source, for people.
    pub(in crate::rib) fn refusal(&self, source: &Source, prefix: Prefix) -> Option<String> {
        let importer = self.importer.as_ref().filter(|_| source.is_refused())?;
        importer.refusal(prefix, &source.imported.received().unpack()?)
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
        let mut last = None;
        for place in self.take_places(peer) {
            let mut start = 0;
            while let Some(position) = self.next_position(peer, place, start) {
                let again = self.imported_again(place, position, importer.as_ref(), &mut last);
                if let Some((path_id, imported)) = again {
                    let source = self.intern(peer, path_id, &imported);
                    self.put_under(place, position, source);
                }
                start = position + 1;
            }
            self.give_place(peer, place);
        }
    }

    /// What becomes of a path by another policy, and its identifier. `last` is what the path before came
    /// with: mostly that is the same.
    fn imported_again(
        &self,
        place: Id,
        position: usize,
        importer: Option<&Importer>,
        last: &mut Option<(Packed, PathAttributes)>,
    ) -> Option<(u32, Imported)> {
        let (prefix, destination) = self.destination(place)?;
        let source = self.sources.get(destination.paths.get(position)?.source)?;
        let received = source.imported.received();
        let Some(importer) = importer else {
            return Some((source.path_id, Imported::AsReceived(received.clone())));
        };
        if last.as_ref().is_none_or(|(known, _)| known != received) {
            *last = Some((received.clone(), received.unpack()?));
        }
        let (_, attributes) = last.as_ref()?;
        Some((source.path_id, importer.import(prefix, attributes, received)))
    }

    /// How many paths of a peer its policy refuses.
    pub(in crate::rib) fn refused(&self, key: PeerKey) -> usize {
        let table = self.by_key.get(&key).and_then(|peer| self.peers.get(*peer));
        let filtered = table.into_iter().flat_map(|table| table.filtered.values());
        let sources = filtered.filter_map(|id| self.sources.get(*id));
        let refused = sources.filter(|source| source.is_refused());
        refused.map(|source| source.paths as usize).sum()
    }
}
