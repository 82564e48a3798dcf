//! What a route reflector passes on (RFC 4456), and what filters say is passed on, and as what.
//!
//! Whether a peer is told of a path is a function of the path's source and of the peer's group, so nothing
//! is kept of it but counts. Only the peer that a path comes from, and one that the path leads to, are not
//! told of it. Messages are therefore made in parts, each for all members of a group but these, and each
//! part is encoded once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
};

use twill_types::{Family, Prefix};

use super::{AdjRibsOut, ExportView, Group, Messages, count_messages};
use crate::{
    NextHopMode, PeerKey,
    decision::DEFAULT_LOCAL_PREF,
    policy::{Direction, Place, Route, Verdict},
    rib::{Pass, PassedOn, Passing, Rib, Unpacked, Why},
    wire::{self, Community, PathAttributes},
};

/// Which members of a group are not told of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct But {
    /// Whose path it is.
    from: PeerKey,
    /// Where it leads to, as it is told: nobody is told to go to himself (RFC 4271 section 5.1.3).
    next_hop: IpAddr,
}

impl But {
    fn is(self, peer: PeerKey) -> bool {
        self.from == peer || self.next_hop == peer.address
    }
}

/// What policy changes of a path: for one source these are told alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Changes {
    by: Option<Place>,
    advertisements: Vec<usize>,
}

/// How many paths the members of a group were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    all: usize,
    /// By who is not told of them.
    but: BTreeMap<But, usize>,
}

impl Told {
    pub(super) fn to(&self, peer: PeerKey) -> usize {
        let untold = self.but.iter().filter(|(but, _)| but.is(peer)).map(|(_, count)| count);
        self.all.saturating_sub(untold.sum())
    }

    fn add(&mut self, but: But) {
        self.all += 1;
        *self.but.entry(but).or_default() += 1;
    }

    fn remove(&mut self, but: But) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.but.get_mut(&but) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.but.remove(&but);
            }
        }
    }
}

/// Messages in a row, each for all members of a group but some: encoded and counted once, for however
/// many members there are.
#[derive(Debug, Default)]
struct Row {
    bytes: Vec<u8>,
    count: u64,
    /// What is not for this peer, in order.
    without: BTreeMap<PeerKey, Vec<Part>>,
}

/// A part of a row.
#[derive(Debug)]
struct Part {
    octets: Range<usize>,
    messages: u64,
}

impl Row {
    /// Adds what `encode` writes, which is for all but these peers.
    fn add<T>(
        &mut self,
        but: impl Iterator<Item = PeerKey>,
        encode: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> T {
        let start = self.bytes.len();
        let result = encode(&mut self.bytes);
        let octets = start..self.bytes.len();
        let messages = count_messages(self.bytes.get(start..).unwrap_or_default());
        self.count += messages;
        for peer in but {
            let parts = self.without.entry(peer).or_default();
            match parts.last_mut() {
                Some(last) if last.octets.end == start => {
                    last.octets.end = octets.end;
                    last.messages += messages;
                }
                _ => parts.push(Part { octets: octets.clone(), messages }),
            }
        }
        result
    }

    /// Appends what is for a peer.
    fn write_for(&self, peer: PeerKey, messages: &mut Messages) {
        let mut at = 0;
        let mut append = |octets: Range<usize>| {
            messages.bytes.extend_from_slice(self.bytes.get(octets).unwrap_or_default());
        };
        messages.count += self.count;
        for part in self.without.get(&peer).into_iter().flatten() {
            append(at..part.octets.start);
            at = part.octets.end;
            messages.count -= part.messages;
        }
        append(at..self.bytes.len());
    }
}

/// What the members of a group are told.
#[derive(Debug, Default)]
struct Parts {
    withdrawals: Row,
    announcements: Row,
    /// Withdrawals for one peer alone.
    only: BTreeMap<PeerKey, Vec<u8>>,
}

impl Parts {
    /// What one peer is told: withdrawals first, so that it never has more routes than it will have.
    fn to(&self, peer: PeerKey) -> Messages {
        let mut messages = Messages::default();
        messages.bytes.reserve_exact(self.withdrawals.bytes.len() + self.announcements.bytes.len());
        self.withdrawals.write_for(peer, &mut messages);
        if let Some(only) = self.only.get(&peer) {
            messages.extend(only);
        }
        self.announcements.write_for(peer, &mut messages);
        messages
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
        let view = &self.view;
        let mut unpacked = Unpacked::default();
        let mut told = |passed: Option<PassedOn>, prefix: Prefix| {
            view.told_but(&rib.passing(passed?, &mut unpacked)?, prefix)
        };
        let mut gone: BTreeMap<But, Both> = BTreeMap::new();
        let mut only: BTreeMap<PeerKey, Both> = BTreeMap::new();
        let mut new: Vec<(PassedOn, Prefix)> = Vec::new();
        for pass in passes {
            let old = told(pass.old, pass.prefix);
            if let Some(old) = old {
                self.told.remove(old);
            }
            match (old, told(pass.new, pass.prefix).zip(pass.new)) {
                (None, None) => {}
                (Some(old), None) => push(gone.entry(old).or_default(), pass.prefix),
                (old, Some((but, passed))) => {
                    self.told.add(but);
                    new.push((passed, pass.prefix));
                    // Who is not told of this one was perhaps told of the one before.
                    if let Some(old) = old.filter(|old| *old != but) {
                        let left = untold(&self.members, but).filter(|peer| !old.is(*peer));
                        left.for_each(|peer| push(only.entry(peer).or_default(), pass.prefix));
                    }
                }
            }
        }
        let announcements = view.announce(rib, new, &self.members, &mut gone);
        let mut withdrawals = Row::default();
        for (but, both) in &gone {
            withdrawals.add(untold(&self.members, *but), |bytes| view.withdraw(both, bytes));
        }
        let withdrawn = |both: &Both| {
            let mut bytes = Vec::new();
            view.withdraw(both, &mut bytes);
            bytes
        };
        Parts {
            withdrawals,
            announcements,
            only: only.iter().map(|(peer, both)| (*peer, withdrawn(both))).collect(),
        }
    }
}

/// The members of a group that are not told of a path.
fn untold(members: &BTreeSet<PeerKey>, but: But) -> impl Iterator<Item = PeerKey> {
    let first = PeerKey { address: but.next_hop, port: 0 };
    let at = members.range(first..).take_while(move |key| key.address == but.next_hop);
    let from = members.get(&but.from).filter(|from| from.address != but.next_hop);
    at.chain(from).copied()
}

impl ExportView {
    /// Who is not told of a path of all peers of this view; `None` if none of them is told.
    fn told_but(&self, passing: &Passing, prefix: Prefix) -> Option<But> {
        let next_hop = self.tells(passing, prefix)?;
        Some(But { from: passing.peer, next_hop })
    }

    /// Counts what is passed on to peers of this view.
    pub(super) fn count_passed(&self, rib: &Rib) -> Told {
        let (mut told, mut unpacked) = (Told::default(), Unpacked::default());
        for (prefix, passed) in rib.all_passed() {
            let passing = rib.passing(passed, &mut unpacked);
            if let Some(but) = passing.and_then(|p| self.told_but(&p, prefix)) {
                told.add(but);
            }
        }
        told
    }

    /// Everything that is passed on to a peer, of these families.
    pub(super) fn all_passed(&self, rib: &Rib, peer: PeerKey, families: &[Family]) -> Vec<u8> {
        let mut unpacked = Unpacked::default();
        let mut is_told = |passed: PassedOn, prefix: Prefix| {
            let passing = rib.passing(passed, &mut unpacked);
            passing.is_some_and(|passing| self.is_told(&passing, prefix, peer))
        };
        let all: Vec<(PassedOn, Prefix)> = rib
            .all_passed()
            .filter(|(prefix, id)| families.contains(&prefix.family()) && is_told(*id, *prefix))
            .map(|(prefix, id)| (id, prefix))
            .collect();
        // What cannot be encoded was not told before either.
        self.announce(rib, all, &BTreeSet::new(), &mut BTreeMap::new()).bytes
    }

    /// Whether one peer of this view is told of a path.
    fn is_told(&self, passing: &Passing, prefix: Prefix, peer: PeerKey) -> bool {
        self.told_but(passing, prefix).is_some_and(|but| !but.is(peer))
    }

    /// What a peer is to be told about what is passed on, now that it is of this view and was of another:
    /// withdrawals, and what is new to it or has other attributes.
    pub(super) fn passed_since(
        &self,
        rib: &Rib,
        peer: PeerKey,
        before: &Self,
    ) -> (Vec<u8>, Vec<u8>) {
        let (mut gone, mut other) = (Both::default(), Vec::new());
        let mut unpacked = Unpacked::default();
        for (prefix, passed) in rib.all_passed() {
            let Some(passing) = rib.passing(passed, &mut unpacked) else { continue };
            let was_told = before.is_told(&passing, prefix, peer);
            let is_same = || {
                was_told
                    && before.passed_attributes(&passing, prefix)
                        == self.passed_attributes(&passing, prefix)
            };
            match self.is_told(&passing, prefix, peer) {
                true if !is_same() => other.push((passed, prefix)),
                false if was_told => push(&mut gone, prefix),
                true | false => {}
            }
        }
        let mut unfit = BTreeMap::new();
        let announced = self.announce(rib, other, &BTreeSet::new(), &mut unfit).bytes;
        // What has no room in a message with its new attributes is withdrawn with the rest.
        for both in unfit.into_values() {
            both.into_iter().flatten().for_each(|prefix| push(&mut gone, prefix));
        }
        let mut withdrawn = Vec::new();
        self.withdraw(&gone, &mut withdrawn);
        (withdrawn, announced)
    }

    /// Which rule keeps what was learned from the peers of this view, and who it was learned from.
    pub(super) fn passed_refusal(
        &self,
        rib: &Rib,
        prefix: Prefix,
    ) -> Option<(String, Option<PeerKey>)> {
        let policy = self.policy.as_ref()?;
        let passing = rib.passing(rib.passed_on(prefix)?, &mut Unpacked::default())?;
        self.is_passed_by(&passing, Verdict::Unmatched).then_some(())?;
        let verdict = self.verdict(&passing, prefix);
        let why = policy.refusal(Direction::Export, prefix.family(), verdict)?;
        Some((why, Some(passing.peer)))
    }

    fn withdraw(&self, both: &Both, bytes: &mut Vec<u8>) {
        for (family, gone) in [Family::V4, Family::V6].into_iter().zip(both) {
            if !gone.is_empty() {
                wire::encode_withdrawals(family, gone, &self.session, bytes);
            }
        }
    }

    /// Messages for paths, each for all members but those that are not told of it. Paths whose attributes
    /// leave no room for them in a message are withdrawn (RFC 4271 section 9.2).
    fn announce(
        &self,
        rib: &Rib,
        mut paths: Vec<(PassedOn, Prefix)>,
        members: &BTreeSet<PeerKey>,
        gone: &mut BTreeMap<But, Both>,
    ) -> Row {
        // What shares its attributes shares messages.
        paths.sort_unstable_by_key(|(passed, to)| (passed.source, to.family(), *to));
        let (mut row, mut unpacked) = (Row::default(), Unpacked::default());
        let is_alike = |a: &(PassedOn, Prefix), b: &(PassedOn, Prefix)| {
            (a.0.source, a.1.family()) == (b.0.source, b.1.family())
        };
        for run in paths.chunk_by(is_alike) {
            let Some((passed, first)) = run.first() else { continue };
            let Some(passing) = rib.passing(*passed, &mut unpacked) else { continue };
            let family = first.family();
            let prefixes = run.iter().map(|(_, prefix)| *prefix).collect();
            for prefixes in self.by_changes(&passing, prefixes) {
                let Some(attributes) =
                    prefixes.first().and_then(|first| self.passed_attributes(&passing, *first))
                else {
                    continue;
                };
                let encode = |bytes: &mut Vec<u8>| {
                    wire::encode_updates(&attributes, family, &prefixes, &self.session, bytes)
                };
                let but = But { from: passing.peer, next_hop: attributes.next_hop };
                if !row.add(untold(members, but), encode) {
                    let both = gone.entry(but).or_default();
                    prefixes.into_iter().for_each(|prefix| push(both, prefix));
                }
            }
        }
        row
    }

    /// What the filters say of a path.
    fn verdict(&self, passing: &Passing, prefix: Prefix) -> Verdict {
        let Some(policy) = &self.policy else { return Verdict::Unmatched };
        let (attributes, internal) = (&passing.attributes, self.session.internal);
        policy.verdict(Direction::Export, &Route { prefix, attributes, learned: true, internal })
    }

    /// The prefixes of one path's source, apart by what policy changes of them.
    fn by_changes(&self, passing: &Passing, prefixes: Vec<Prefix>) -> Vec<Vec<Prefix>> {
        let Some(policy) = &self.policy else { return vec![prefixes] };
        let mut alike: BTreeMap<Changes, Vec<Prefix>> = BTreeMap::new();
        for prefix in prefixes {
            let changes = Changes {
                by: self.verdict(passing, prefix).accepted_by(),
                advertisements: policy.advertisements_of(prefix),
            };
            alike.entry(changes).or_default().push(prefix);
        }
        alike.into_values().collect()
    }

    /// Whether a path is passed on to peers of this view after what their filters say of it.
    fn is_passed_by(&self, passing: &Passing, verdict: Verdict) -> bool {
        let (from, internal, why) = (passing.facts, self.session.internal, passing.passed.why);
        // RFC 4456 section 6: what comes from no client goes to clients alone.
        let within = from.external || why != Why::Filter && (from.client || self.client);
        match verdict {
            Verdict::Rejected(_) | Verdict::Closed => false,
            // Within the AS nobody but a reflector passes on what comes from inside, whatever a filter
            // says (RFC 4271 section 9.2): nothing would end a loop.
            Verdict::Accepted { learned: true, .. } => !internal || within,
            // What is learned outside stays inside: a reflector is no way from one rack to another.
            Verdict::Accepted { learned: false, .. } | Verdict::Unmatched => {
                why == Why::Reflected && if internal { within } else { !from.external }
            }
        }
    }

    /// The next hop with which peers of this view are told of a path; `None` if they are not.
    fn tells(&self, passing: &Passing, prefix: Prefix) -> Option<IpAddr> {
        let has = |community| passing.attributes.communities.binary_search(&community).is_ok();
        let (internal, family) = (self.session.internal, prefix.family());
        // RFC 1997; RFC 9774 section 3 about sets, also where they are accepted from whom they come.
        let stays_here = has(Community::NO_ADVERTISE) || passing.attributes.as_path.has_set();
        let stays_inside = has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED);
        let is_told = self.session.has(family)
            // RFC 9234 section 5.
            && !(self.no_customer && passing.attributes.only_to_customer.is_some())
            // RFC 9494 section 4.3.
            && (self.long_lived || !has(Community::LLGR_STALE))
            && !stays_here
            && (internal || !stays_inside)
            && self.is_passed_by(passing, self.verdict(passing, prefix));
        is_told.then(|| self.passed_next_hop(passing, family)).flatten()
    }

    /// The next hop of a path as it is passed on: its own inside the AS (RFC 4456 section 10), and outside
    /// where the peer is on one link with it (RFC 4271 section 5.1.3); else this node's. One that holds on a
    /// link alone means nothing elsewhere.
    fn passed_next_hop(&self, passing: &Passing, family: Family) -> Option<IpAddr> {
        let next_hop = passing.attributes.next_hop;
        let shared = self.on_link.is_some_and(|link| link.contains(next_hop));
        let is_link_local = match next_hop {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let is_own = match self.next_hop_mode {
            NextHopMode::Auto => !self.session.internal && !shared,
            NextHopMode::Own => true,
            NextHopMode::Keep => false,
        };
        if is_link_local || is_own {
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
    fn passed_attributes(&self, passing: &Passing, prefix: Prefix) -> Option<PathAttributes> {
        let mut attributes = PathAttributes::clone(&passing.attributes);
        attributes.next_hop = self.passed_next_hop(passing, prefix.family())?;
        if let Some(policy) = &self.policy {
            policy.export(self.verdict(passing, prefix), prefix, &mut attributes);
        }
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
            attributes.cluster_list.splice(0..0, passing.cluster_id);
        }
        Some(attributes)
    }
}

#[cfg(test)]
mod tests;
