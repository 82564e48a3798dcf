//! What a route reflector passes on (RFC 4456), and as what.
//!
//! Whether a peer is told of a path is a function of the path's source and of the peer's group, so nothing
//! is kept of it but counts. Only the peer that a path comes from is not told of it. Messages are therefore
//! made in parts, each for all members of a group but one, and each part is encoded once.

use std::{collections::BTreeMap, net::IpAddr};

use twill_types::{Family, Prefix};

use super::{AdjRibsOut, ExportView, Group, Messages, count_messages};
use crate::{
    PeerKey,
    decision::DEFAULT_LOCAL_PREF,
    rib::{Id, Pass, Passing, Rib},
    wire::{self, Community, PathAttributes},
};

/// How many paths the members of a group were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    all: usize,
    /// Those that come from this peer, which is not told of them.
    from: BTreeMap<PeerKey, usize>,
}

impl Told {
    pub(super) fn to(&self, peer: PeerKey) -> usize {
        self.all.saturating_sub(self.from.get(&peer).copied().unwrap_or_default())
    }

    fn add(&mut self, from: PeerKey) {
        self.all += 1;
        *self.from.entry(from).or_default() += 1;
    }

    fn remove(&mut self, from: PeerKey) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.from.get_mut(&from) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.from.remove(&from);
            }
        }
    }
}

/// Messages for the members of a group, but for one peer each.
#[derive(Debug, Default)]
struct Parts {
    withdrawals: Vec<(PeerKey, Vec<u8>)>,
    announcements: Vec<(PeerKey, Vec<u8>)>,
    /// Withdrawals for one peer alone.
    only: BTreeMap<PeerKey, Vec<u8>>,
}

impl Parts {
    /// What one peer is told: withdrawals first, so that it never has more routes than it will have.
    fn to(&self, peer: PeerKey) -> Messages {
        let others = |parts: &[(PeerKey, Vec<u8>)], bytes: &mut Vec<u8>| {
            for (_, part) in parts.iter().filter(|(but, _)| *but != peer) {
                bytes.extend_from_slice(part);
            }
        };
        let mut bytes = Vec::new();
        others(&self.withdrawals, &mut bytes);
        bytes.extend(self.only.get(&peer).into_iter().flatten());
        others(&self.announcements, &mut bytes);
        Messages { count: count_messages(&bytes), bytes }
    }
}

/// Prefixes of both families, IPv4 first.
type Both = [Vec<Prefix>; 2];

fn push(both: &mut Both, prefix: Prefix) {
    both[usize::from(prefix.family() == Family::V6)].push(prefix);
}

impl AdjRibsOut {
    /// What to send to whom when other paths are passed on than before.
    pub(crate) fn pass(&mut self, rib: &Rib, passes: &[Pass]) -> Vec<(PeerKey, Messages)> {
        let mut sends = Vec::new();
        for group in &mut self.groups {
            let parts = group.pass(rib, passes);
            let messages = group.members.iter().map(|peer| (*peer, parts.to(*peer)));
            sends.extend(messages.filter(|(_, messages)| messages.count > 0));
        }
        sends
    }
}

impl Group {
    fn pass(&mut self, rib: &Rib, passes: &[Pass]) -> Parts {
        let view = self.view;
        let told = |id: Option<Id>, prefix: Prefix| {
            rib.passing(id?).filter(|passing| view.tells(passing, prefix.family()))
        };
        let mut gone: BTreeMap<PeerKey, Both> = BTreeMap::new();
        let mut only: BTreeMap<PeerKey, Both> = BTreeMap::new();
        let mut new: Vec<(Id, Prefix)> = Vec::new();
        for pass in passes {
            let old = told(pass.old, pass.prefix);
            if let Some(old) = &old {
                self.told.remove(old.peer);
            }
            match (&old, told(pass.new, pass.prefix).zip(pass.new)) {
                (None, None) => {}
                (Some(old), None) => push(gone.entry(old.peer).or_default(), pass.prefix),
                (old, Some((passing, id))) => {
                    self.told.add(passing.peer);
                    new.push((id, pass.prefix));
                    // Whose path it is now was told of the one before.
                    if old.is_some_and(|old| old.peer != passing.peer)
                        && self.members.contains(&passing.peer)
                    {
                        push(only.entry(passing.peer).or_default(), pass.prefix);
                    }
                }
            }
        }
        let announcements = view.announce(rib, new, &mut gone);
        Parts {
            withdrawals: gone.iter().map(|(but, both)| (*but, view.withdraw(both))).collect(),
            announcements,
            only: only.iter().map(|(peer, both)| (*peer, view.withdraw(both))).collect(),
        }
    }
}

impl ExportView {
    /// Counts what is passed on to peers of this view.
    pub(super) fn count_passed(&self, rib: &Rib) -> Told {
        let mut told = Told::default();
        for (prefix, id) in rib.all_passed() {
            if let Some(passing) = rib.passing(id).filter(|p| self.tells(p, prefix.family())) {
                told.add(passing.peer);
            }
        }
        told
    }

    /// Everything that is passed on to a peer, of these families.
    pub(super) fn all_passed(&self, rib: &Rib, peer: PeerKey, families: &[Family]) -> Vec<u8> {
        let is_told = |id: Id, family: Family| {
            let passing = rib.passing(id);
            passing.is_some_and(|passing| passing.peer != peer && self.tells(&passing, family))
        };
        let all: Vec<(Id, Prefix)> = rib
            .all_passed()
            .filter(|(prefix, id)| {
                families.contains(&prefix.family()) && is_told(*id, prefix.family())
            })
            .map(|(prefix, id)| (id, prefix))
            .collect();
        // What cannot be encoded was not told before either.
        let parts = self.announce(rib, all, &mut BTreeMap::new());
        parts.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }

    /// What is passed on to a peer of this view, and not to one of another.
    pub(super) fn passed_beside(&self, rib: &Rib, peer: PeerKey, other: &Self) -> Vec<u8> {
        let mut gone = Both::default();
        for (prefix, id) in rib.all_passed() {
            if let Some(passing) = rib.passing(id).filter(|passing| passing.peer != peer)
                && self.tells(&passing, prefix.family())
                && !other.tells(&passing, prefix.family())
            {
                push(&mut gone, prefix);
            }
        }
        self.withdraw(&gone)
    }

    fn withdraw(&self, both: &Both) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (family, gone) in [Family::V4, Family::V6].into_iter().zip(both) {
            if !gone.is_empty() {
                wire::encode_withdrawals(family, gone, &self.session, &mut bytes);
            }
        }
        bytes
    }

    /// Messages for paths, in parts by the peer that each is from. Those whose attributes leave no room for
    /// them in a message are withdrawn (RFC 4271 section 9.2).
    fn announce(
        &self,
        rib: &Rib,
        mut paths: Vec<(Id, Prefix)>,
        gone: &mut BTreeMap<PeerKey, Both>,
    ) -> Vec<(PeerKey, Vec<u8>)> {
        // What shares its attributes shares messages.
        paths.sort_unstable_by_key(|(id, prefix)| (*id, prefix.family(), *prefix));
        let mut parts: Vec<(PeerKey, Vec<u8>)> = Vec::new();
        for run in paths.chunk_by(|a, b| (a.0, a.1.family()) == (b.0, b.1.family())) {
            let Some((id, first)) = run.first() else { continue };
            let Some(passing) = rib.passing(*id) else { continue };
            let Some(attributes) = self.passed_attributes(&passing, first.family()) else {
                continue;
            };
            let prefixes: Vec<Prefix> = run.iter().map(|(_, prefix)| *prefix).collect();
            if parts.last().is_none_or(|(but, _)| *but != passing.peer) {
                parts.push((passing.peer, Vec::new()));
            }
            let Some((_, bytes)) = parts.last_mut() else { continue };
            let family = first.family();
            if !wire::encode_updates(&attributes, family, &prefixes, &self.session, bytes) {
                let both = gone.entry(passing.peer).or_default();
                prefixes.into_iter().for_each(|prefix| push(both, prefix));
            }
        }
        parts
    }

    /// Whether a peer of this view is told of a path, unless it is its own.
    fn tells(&self, passing: &Passing<'_>, family: Family) -> bool {
        let has = |community| passing.attributes.communities.binary_search(&community).is_ok();
        // RFC 4456 section 6: what comes from no client goes to clients alone.
        let by_rank =
            !self.session.internal || passing.facts.external || passing.facts.client || self.client;
        // RFC 1997.
        let stays_inside = has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED);
        by_rank
            // RFC 9234 section 5.
            && !(self.no_customer && passing.attributes.only_to_customer.is_some())
            // RFC 9494 section 4.3.
            && (self.long_lived || !has(Community::LLGR_STALE))
            && self.session.has(family)
            && self.passed_next_hop(passing, family).is_some()
            && !has(Community::NO_ADVERTISE)
            && (self.session.internal || !stays_inside)
    }

    /// The next hop of a path as it is passed on: its own inside the AS (RFC 4456 section 10), and outside
    /// where the peer is on one link with it (RFC 4271 section 5.1.3); else this node's.
    fn passed_next_hop(&self, passing: &Passing<'_>, family: Family) -> Option<IpAddr> {
        let next_hop = passing.attributes.next_hop;
        let shared = self.on_link.is_some_and(|link| link.contains(next_hop));
        if !self.session.internal && !shared {
            return self.next_hop(family);
        }
        let is_expressible = match (family, next_hop) {
            (Family::V4, IpAddr::V6(_)) => self.session.extended_next_hop,
            (Family::V6, IpAddr::V4(_)) => false,
            _ => true,
        };
        is_expressible.then_some(next_hop)
    }

    /// The attributes of a path as it is passed on (RFC 4271 section 5.1, RFC 4456 section 8).
    fn passed_attributes(&self, passing: &Passing<'_>, family: Family) -> Option<PathAttributes> {
        let mut attributes = passing.attributes.clone();
        attributes.next_hop = self.passed_next_hop(passing, family)?;
        // It holds on the link that it came by.
        attributes.link_local = None;
        if !self.session.internal {
            attributes.as_path = attributes.as_path.prepended(self.asn);
            attributes.local_pref = None;
            attributes.med = None;
            attributes.aigp = None;
            attributes.originator_id = None;
            attributes.cluster_list = Vec::new();
            if self.only_to_customer {
                attributes.only_to_customer.get_or_insert(self.asn.get());
            }
            return Some(attributes);
        }
        attributes.local_pref = attributes.local_pref.or(Some(DEFAULT_LOCAL_PREF));
        if !passing.facts.external {
            attributes.originator_id = attributes.originator_id.or(Some(passing.facts.router_id));
            attributes.cluster_list.insert(0, passing.cluster_id);
        }
        Some(attributes)
    }
}

#[cfg(test)]
mod tests;
