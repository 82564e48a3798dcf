//! The RIB beside a model that keeps all paths in one list and decides everything anew, from the
//! definitions, after each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::prelude::*;
use twill_types::{Asn, BgpNextHop, Family, Prefix};

use super::{PeerFacts, Rib};
use crate::{
    Conflict, NextHopState, Outcome, Own, PathExplanation, PathKey, PeerKey, Unusable,
    any_policy::policies,
    policy::{Direction, Route, RoutePolicy},
    wire::{AsPath, Community, Nlri, Origin, PathAttributes},
};

const PEERS: u8 = 4;
const PREFIXES: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/25",
    "10.0.0.128/25",
    "10.0.1.0/24",
    "10.0.2.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:2::/48",
];

/// Indexes of prefixes, each with a path identifier.
type Named = BTreeSet<(usize, u32)>;

#[derive(Debug, Clone)]
enum Step {
    Up(u8, PeerFacts),
    Announce(u8, PathAttributes, Named),
    Withdraw(u8, Named),
    KeepStale(u8, Vec<Family>, Vec<Family>),
    BeginLongLived(u8, Family),
    MarkStale(u8, Family),
    Freshen(u8, Family),
    FlushStale(u8, Vec<Family>),
    Flush(u8),
    Forget(u8),
    /// Of the next hop of this number, as this peer means it.
    NextHop(u8, u8, NextHopState),
    Own(Own),
    Import(u8, Option<RoutePolicy>),
    /// Withdrawn and announced again before anything is decided.
    Replace(u8, PathAttributes, Named),
    Decide,
}

fn key(peer: u8) -> PeerKey {
    PeerKey { address: IpAddr::from([192, 0, 2, peer]), port: 179 }
}

/// Some hold on a link alone.
fn next_hop(number: u8) -> IpAddr {
    match number {
        0 | 1 => IpAddr::from([198, 51, 100, number]),
        _ => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// An address of a link belongs to who announced it; others are the same for all.
fn meant(address: IpAddr, by: PeerKey) -> BgpNextHop {
    BgpNextHop { address, peer: address.is_ipv6().then_some(by.address) }
}

fn prefix(index: usize) -> Prefix {
    PREFIXES[index].parse().unwrap()
}

fn routes(some: &Named) -> Vec<Nlri> {
    some.iter().map(|(index, path_id)| Nlri { prefix: prefix(*index), path_id: *path_id }).collect()
}

fn attributes() -> impl Strategy<Value = PathAttributes> {
    let small = prop::option::weighted(0.3, 99_u32..102);
    let aigp = prop::option::weighted(0.2, 0_u64..3);
    let med = prop::option::weighted(0.5, 0_u32..3);
    let path = prop::collection::vec(1_u32..4, 0..3);
    let communities = prop::sample::subsequence(
        vec![Community(0x0001_0001), Community::LLGR_STALE, Community::NO_LLGR],
        0..=2,
    );
    let originator = prop::option::weighted(0.3, 1_u8..4);
    (small, med, path, originator, 0_usize..3, 0_u8..4, 0_u8..8, aigp, communities).prop_map(
        |(local_pref, med, path, originator, clusters, next, origin, aigp, communities)| {
            let asns = path.into_iter().map(|number| Asn::new(number).unwrap());
            let origin = if origin == 0 { Origin::Egp } else { Origin::Igp };
            let path = AsPath::sequence(asns);
            let mut attributes = PathAttributes::new(origin, path, next_hop(next));
            attributes.local_pref = local_pref;
            attributes.aigp = aigp;
            attributes.communities = communities;
            attributes.med = med;
            attributes.originator_id = originator.map(|last| Ipv4Addr::new(10, 0, 0, last));
            attributes.cluster_list = vec![Ipv4Addr::LOCALHOST; clusters];
            attributes
        },
    )
}

fn facts() -> impl Strategy<Value = PeerFacts> {
    (prop::bool::weighted(0.7), 1_u8..4).prop_map(|(external, last)| PeerFacts {
        client: false,
        external,
        router_id: Ipv4Addr::new(10, 0, 0, last),
    })
}

fn families() -> impl Strategy<Value = Vec<Family>> {
    prop::sample::subsequence(vec![Family::V4, Family::V6], 0..=2)
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn own() -> impl Strategy<Value = Own> {
    let ours = ["10.0.0.0/24", "10.0.1.0/24", "2001:db8:1::/48"];
    let lent = ["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24"];
    let anycast = ["10.0.2.0/24", "10.0.0.0/24", "10.0.0.0/16"];
    let some = |all: [&'static str; 3]| prop::sample::subsequence(all.to_vec(), 0..=3);
    let parsed = |all: Vec<&str>| all.iter().map(|prefix| prefix.parse().unwrap()).collect();
    (some(ours), some(lent), some(anycast)).prop_map(move |(ours, lent, anycast)| Own {
        prefixes: ours.iter().map(|prefix| (prefix.parse().unwrap(), true)).collect(),
        lent: parsed(lent),
        anycast: parsed(anycast),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0..PEERS;
    let id = || prop_oneof![3 => Just(0_u32), 2 => 1_u32..3];
    let some = || prop::collection::btree_set((0..PREFIXES.len(), id()), 0..5);
    let state = prop_oneof![
        4 => (0_u32..3).prop_map(|metric| NextHopState::Reachable { metric }),
        1 => Just(NextHopState::Unreachable),
    ];
    prop_oneof![
        2 => (peer(), facts()).prop_map(|(peer, facts)| Step::Up(peer, facts)),
        8 => (peer(), attributes(), some()).prop_map(|(p, a, s)| Step::Announce(p, a, s)),
        3 => (peer(), some()).prop_map(|(p, s)| Step::Withdraw(p, s)),
        2 => (peer(), families(), families()).prop_map(|(p, f, again)| {
            Step::KeepStale(p, f, again)
        }),
        1 => (peer(), family()).prop_map(|(p, f)| Step::BeginLongLived(p, f)),
        2 => (peer(), family()).prop_map(|(p, f)| Step::MarkStale(p, f)),
        1 => (peer(), family()).prop_map(|(p, f)| Step::Freshen(p, f)),
        2 => (peer(), families()).prop_map(|(p, f)| Step::FlushStale(p, f)),
        1 => peer().prop_map(Step::Flush),
        1 => peer().prop_map(Step::Forget),
        7 => (peer(), 0_u8..4, state).prop_map(|(p, n, s)| Step::NextHop(p, n, s)),
        2 => own().prop_map(Step::Own),
        3 => (peer(), prop::option::weighted(0.7, policies(&PREFIXES)))
            .prop_map(|(peer, policy)| Step::Import(peer, policy)),
        2 => (peer(), attributes(), some()).prop_map(|(p, a, s)| Step::Replace(p, a, s)),
        6 => Just(Step::Decide),
    ]
}

/// A path of the model.
#[derive(Debug, Clone)]
struct Known {
    prefix: Prefix,
    peer: PeerKey,
    path_id: u32,
    attributes: PathAttributes,
    stale: bool,
}

impl Known {
    const fn key(&self) -> PathKey {
        PathKey { peer: self.peer, path_id: self.path_id }
    }

    fn next_hop(&self) -> BgpNextHop {
        meant(self.attributes.next_hop, self.peer)
    }
}

#[derive(Debug, Default, Clone)]
struct Model {
    /// As they came.
    paths: Vec<Known>,
    policies: BTreeMap<PeerKey, RoutePolicy>,
    facts: BTreeMap<PeerKey, PeerFacts>,
    /// Of the next hops that the RIB said it tracks.
    states: BTreeMap<BgpNextHop, NextHopState>,
    tracked: BTreeSet<BgpNextHop>,
    own: Own,
}

impl Model {
    fn announce(&mut self, peer: PeerKey, attributes: &PathAttributes, routes: Vec<Nlri>) {
        for Nlri { prefix, path_id } in routes {
            self.paths.retain(|p| (p.peer, p.path_id, p.prefix) != (peer, path_id, prefix));
            let attributes = attributes.clone();
            self.paths.push(Known { prefix, peer, path_id, attributes, stale: false });
        }
        let of_it = |path: &Known| path.peer == peer;
        self.track(of_it);
    }

    /// Next hops are told at once where they come, and forgotten with the next decision.
    fn track(&mut self, of: impl Fn(&Known) -> bool) {
        let taken = self.imported().paths;
        let new = taken.iter().filter(|path| of(path)).map(Known::next_hop);
        self.tracked.extend(new);
    }

    /// With the paths that policies leave, as these make them.
    fn imported(&self) -> Self {
        let import = |path: &Known| {
            let Some(policy) = self.policies.get(&path.peer) else {
                return Some(path.clone());
            };
            let (prefix, attributes) = (path.prefix, &path.attributes);
            let route = Route { prefix, attributes, learned: true, internal: false };
            let verdict = policy.verdict(Direction::Import, &route);
            let changed = policy.imported(verdict, &route);
            let attributes = changed.unwrap_or_else(|| attributes.clone());
            (!verdict.is_rejected()).then(|| Known { attributes, ..path.clone() })
        };
        Self { paths: self.paths.iter().filter_map(import).collect(), ..self.clone() }
    }

    fn set_stale(&mut self, peer: u8, family: Family, stale: bool) {
        let of_it = |path: &&mut Known| path.peer == key(peer) && path.prefix.family() == family;
        self.paths.iter_mut().filter(of_it).for_each(|path| path.stale = stale);
    }

    /// Runs a step; whether the peer was never up is for the caller to see to.
    fn run(&mut self, step: &Step) {
        let held = |path: &Known, peer: &u8| path.peer == key(*peer);
        match step {
            Step::Up(peer, facts) => _ = self.facts.insert(key(*peer), *facts),
            Step::Announce(peer, attributes, some) => {
                self.announce(key(*peer), attributes, routes(some));
            }
            Step::Withdraw(peer, some) => {
                let gone = routes(some);
                self.paths.retain(|p| {
                    let nlri = Nlri { prefix: p.prefix, path_id: p.path_id };
                    !held(p, peer) || !gone.contains(&nlri)
                });
            }
            Step::Replace(peer, attributes, some) => {
                self.announce(key(*peer), attributes, routes(some));
            }
            Step::KeepStale(peer, families, again) => {
                let kept = |p: &Known| {
                    let family = p.prefix.family();
                    families.contains(&family) && (!p.stale || again.contains(&family))
                };
                self.paths.retain(|path| !held(path, peer) || kept(path));
                self.paths.iter_mut().filter(|p| held(p, peer)).for_each(|p| p.stale = true);
            }
            Step::MarkStale(peer, family) => self.set_stale(*peer, *family, true),
            Step::Freshen(peer, family) => self.set_stale(*peer, *family, false),
            Step::BeginLongLived(peer, family) => {
                let concerned =
                    |p: &Known| held(p, peer) && p.stale && p.prefix.family() == *family;
                let no_llgr = |p: &Known| p.attributes.communities.contains(&Community::NO_LLGR);
                self.paths.retain(|path| !concerned(path) || !no_llgr(path));
                for path in self.paths.iter_mut().filter(|path| concerned(path)) {
                    let mut all: BTreeSet<_> = path.attributes.communities.drain(..).collect();
                    all.insert(Community::LLGR_STALE);
                    path.attributes.communities = all.into_iter().collect();
                }
            }
            Step::FlushStale(peer, families) => {
                let gone = |p: &Known| p.stale && families.contains(&p.prefix.family());
                self.paths.retain(|path| !held(path, peer) || !gone(path));
            }
            Step::Flush(peer) => self.paths.retain(|path| !held(path, peer)),
            Step::Forget(peer) => {
                self.paths.retain(|path| !held(path, peer));
                self.facts.remove(&key(*peer));
                self.policies.remove(&key(*peer));
            }
            Step::NextHop(peer, number, state) => {
                let next_hop = meant(next_hop(*number), key(*peer));
                if self.tracked.contains(&next_hop) {
                    self.states.insert(next_hop, *state);
                }
            }
            Step::Own(own) => self.own = own.clone(),
            Step::Import(peer, policy) => {
                self.policies.remove(&key(*peer));
                self.policies.extend(policy.clone().map(|policy| (key(*peer), policy)));
                self.track(|path| held(path, peer));
            }
            Step::Decide => {
                let taken = self.imported().paths;
                self.tracked = taken.iter().map(Known::next_hop).collect();
                self.states.retain(|next_hop, _| self.tracked.contains(next_hop));
            }
        }
    }

    fn ours(&self, prefix: Prefix) -> Option<Prefix> {
        if self.own.lent.iter().any(|lent| lent.covers(prefix)) {
            return None;
        }
        self.own.prefixes.keys().find(|ours| ours.covers(prefix)).copied()
    }

    fn metric(&self, path: &Known) -> Option<u32> {
        match self.states.get(&path.next_hop()) {
            Some(NextHopState::Reachable { metric }) => Some(*metric),
            _ => None,
        }
    }

    /// Whether one path is better than another before the tie is broken, MED left out.
    fn better(&self, a: &Known, b: &Known, with_external: bool) -> bool {
        let first = |p: &Known| {
            let preference = u32::MAX - p.attributes.local_pref.unwrap_or(100);
            let cost = u64::from(self.metric(p).unwrap_or(0));
            let aigp = p.attributes.aigp.map_or(u64::MAX, |metric| metric + cost);
            let stale = p.attributes.communities.contains(&Community::LLGR_STALE);
            (stale, preference, aigp, p.attributes.as_path.hops(), p.attributes.origin)
        };
        let then = |p: &Known| (!self.facts[&p.peer].external, self.metric(p));
        match with_external {
            false => first(a) < first(b),
            true => (first(a), then(a)) < (first(b), then(b)),
        }
    }

    /// The paths that are used, best first: those that no other path removes.
    fn used(&self, prefix: Prefix, max_paths: usize) -> Vec<PathKey> {
        self.used_without(prefix, None, max_paths)
    }

    /// The same, if no path had the next hop `lost`.
    fn used_without(
        &self,
        prefix: Prefix,
        lost: Option<BgpNextHop>,
        max_paths: usize,
    ) -> Vec<PathKey> {
        if self.ours(prefix).is_some() || self.own.anycast.contains(&prefix) {
            return Vec::new();
        }
        let to_it = self.paths.iter().filter(|path| path.prefix == prefix);
        let usable: Vec<&Known> = to_it
            .filter(|path| self.metric(path).is_some() && self.facts.contains_key(&path.peer))
            .filter(|path| Some(path.next_hop()) != lost)
            .collect();
        let survive = |all: &[&Known], beats: &dyn Fn(&Known, &Known) -> bool| -> Vec<Known> {
            let left = all.iter().filter(|p| !all.iter().any(|other| beats(other, p)));
            left.map(|path| Known::clone(path)).collect()
        };
        let left = survive(&usable, &|a, b| self.better(a, b, false));
        let left = survive(&left.iter().collect::<Vec<_>>(), &|a, b| {
            a.attributes.as_path.neighbor() == b.attributes.as_path.neighbor()
                && a.attributes.med.unwrap_or(0) < b.attributes.med.unwrap_or(0)
        });
        let mut left = survive(&left.iter().collect::<Vec<_>>(), &|a, b| self.better(a, b, true));
        left.sort_by_key(|path| {
            let router = self.facts[&path.peer].router_id;
            let router = path.attributes.originator_id.unwrap_or(router);
            (router, path.attributes.cluster_list.len(), path.key())
        });
        let mut ways: Vec<BgpNextHop> = Vec::new();
        let within = |path: &Known| {
            let way = path.next_hop();
            if ways.contains(&way) {
                return true;
            }
            let room = ways.len() < max_paths;
            if room {
                ways.push(way);
            }
            room
        };
        let mut within = within;
        left.into_iter().filter(|path| within(path)).map(|path| path.key()).collect()
    }

    fn next_hops(&self, prefix: Prefix, used: &[PathKey]) -> Vec<BgpNextHop> {
        let paths = self.paths.iter().filter(|p| p.prefix == prefix && used.contains(&p.key()));
        let set: BTreeSet<BgpNextHop> = paths.map(Known::next_hop).collect();
        set.into_iter().collect()
    }

    /// What takes the place of a single next hop.
    fn backup(&self, prefix: Prefix, next_hops: &[BgpNextHop]) -> Option<BgpNextHop> {
        let [only] = next_hops else {
            return None;
        };
        let best = *self.used_without(prefix, Some(*only), 1).first()?;
        self.next_hops(prefix, &[best]).first().copied()
    }

    fn conflicts(&self) -> Vec<Conflict> {
        let mut all: BTreeMap<Prefix, Conflict> = BTreeMap::new();
        for path in &self.paths {
            if let Some(ours) = self.ours(path.prefix) {
                let new = Conflict { prefix: path.prefix, ours, peer: path.peer };
                let entry = all.entry(path.prefix).or_insert(new);
                entry.peer = entry.peer.min(path.peer);
            }
        }
        all.into_values().collect()
    }
}

/// The RIB, and what the outside has made of its words.
struct Run {
    rib: Rib,
    model: Model,
    max_paths: usize,
    kernel: BTreeMap<Prefix, (Vec<BgpNextHop>, Option<BgpNextHop>)>,
    conflicts: Vec<Conflict>,
}

impl Run {
    fn new(max_paths: usize) -> Self {
        let (kernel, conflicts) = (BTreeMap::new(), Vec::new());
        Self { rib: Rib::new(max_paths), model: Model::default(), max_paths, kernel, conflicts }
    }

    fn step(&mut self, step: Step) {
        self.model.run(&step);
        let rib = &mut self.rib;
        match step {
            Step::Up(peer, facts) => rib.set_peer(key(peer), facts),
            Step::Announce(peer, attributes, some) => {
                let _ = rib.announce(key(peer), attributes, routes(&some));
            }
            Step::Withdraw(peer, some) => rib.withdraw(key(peer), routes(&some)),
            Step::Replace(peer, attributes, some) => {
                rib.withdraw(key(peer), routes(&some));
                let _ = rib.announce(key(peer), attributes, routes(&some));
            }
            Step::KeepStale(peer, families, again) => {
                rib.keep_stale(key(peer), &families, &again);
            }
            Step::BeginLongLived(peer, family) => _ = rib.begin_long_lived(key(peer), family),
            Step::MarkStale(peer, family) => rib.mark_stale(key(peer), family),
            Step::Freshen(peer, family) => rib.freshen(key(peer), family),
            Step::FlushStale(peer, families) => _ = rib.flush_stale(key(peer), &families),
            Step::Flush(peer) => rib.flush(key(peer)),
            Step::Forget(peer) => rib.forget_peer(key(peer)),
            Step::NextHop(peer, number, state) => {
                let next_hop = meant(next_hop(number), key(peer));
                rib.set_next_hops(BTreeMap::from([(next_hop, state)]));
            }
            Step::Own(own) => rib.set_own(own),
            Step::Import(peer, policy) => {
                rib.set_import(key(peer), policy.map(Arc::new).as_ref(), false);
            }
            Step::Decide => self.decide(),
        }
    }

    fn decide(&mut self) {
        for change in self.rib.recompute() {
            let now = (change.next_hops.to_vec(), change.backup);
            for prefix in change.prefixes.iter() {
                let before = match now.0.is_empty() {
                    true => self.kernel.remove(&prefix),
                    false => self.kernel.insert(prefix, now.clone()),
                };
                assert_ne!(before.unwrap_or_default(), now, "a change that is none");
            }
        }
        if let Some(conflicts) = self.rib.take_conflicts() {
            self.conflicts = conflicts;
        }
        if let Some(tracked) = self.rib.take_next_hops() {
            assert_eq!(tracked, self.model.tracked);
        }
        self.compare();
    }

    fn compare(&self) {
        let model = &self.model.imported();
        assert_eq!(self.conflicts, model.conflicts());
        let unknown = model.tracked.iter().any(|next_hop| !model.states.contains_key(next_hop));
        assert_eq!(self.rib.has_unknown_next_hops(), unknown);
        let mut kernel = BTreeMap::new();
        let mut best = BTreeSet::new();
        for prefix in (0..PREFIXES.len()).map(prefix) {
            let used = model.used(prefix, self.max_paths);
            let next_hops = model.next_hops(prefix, &used);
            best.extend(used.iter().map(|path| (prefix, *path)));
            self.compare_explanation(model, prefix, &used, &next_hops);
            if !next_hops.is_empty() {
                let backup = model.backup(prefix, &next_hops);
                kernel.insert(prefix, (next_hops, backup));
            }
        }
        assert_eq!(self.kernel, kernel);
        let known = |p: &Known| {
            let is_best = best.contains(&(p.prefix, p.key()));
            (p.prefix, p.key(), p.attributes.clone(), p.stale, is_best)
        };
        let mut expected: BTreeSet<_> = model.paths.iter().map(known).collect();
        let named: BTreeSet<_> = model.paths.iter().map(|p| (p.prefix, p.key())).collect();
        let refused = self.model.paths.iter().filter(|p| !named.contains(&(p.prefix, p.key())));
        expected.extend(refused.clone().map(known));
        let routes = self.rib.snapshot();
        let found: Vec<_> = routes
            .map(|r| {
                let key = PathKey { peer: r.from.unwrap(), path_id: r.path_id };
                (r.prefix, key, (*r.attributes.unwrap()).clone(), r.stale, r.best)
            })
            .collect();
        assert_eq!(found.len(), expected.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        for peer in (0..PEERS).map(key) {
            let of_it = refused.clone().filter(|path| path.peer == peer).count();
            assert_eq!(self.rib.refused(peer), of_it);
            let all = self.model.paths.iter().filter(|path| path.peer == peer);
            let stale = all.clone().filter(|path| path.stale).count();
            assert_eq!(self.rib.count(peer), (all.count(), stale));
        }
    }

    /// What is explained is what is done, and every path has a reason.
    fn compare_explanation(
        &self,
        model: &Model,
        prefix: Prefix,
        used: &[PathKey],
        next_hops: &[BgpNextHop],
    ) {
        let explanation = self.rib.explain(prefix);
        assert_eq!(explanation.next_hops, next_hops);
        assert_eq!(explanation.own, self.model.ours(prefix));
        let paths = &explanation.paths;
        let key = |path: &PathExplanation| PathKey { peer: path.from, path_id: path.path_id };
        let best = paths.iter().find(|path| path.outcome == Outcome::Best).map(key);
        assert_eq!(best, used.first().copied());
        let told: BTreeSet<_> =
            paths.iter().filter(|path| path.outcome.is_used()).map(key).collect();
        assert_eq!(told, used.iter().copied().collect());
        for path in paths {
            let unreachable = path.next_hop == Some(NextHopState::Unreachable);
            match path.outcome {
                Outcome::Unusable(Unusable::NextHopUnreachable) => assert!(unreachable),
                Outcome::Unusable(Unusable::Filtered) => {
                    let is_it = |p: &Known| p.prefix == prefix && p.key() == key(path);
                    assert!(!model.paths.iter().any(is_it));
                    assert!(path.refused_by.is_some());
                }
                Outcome::Unusable(Unusable::NextHopUnknown) => assert_eq!(path.next_hop, None),
                Outcome::Unusable(Unusable::Own(ours)) => assert!(ours.covers(prefix)),
                Outcome::Unusable(Unusable::Anycast) => {
                    assert!(self.model.own.anycast.contains(&prefix));
                }
                Outcome::Lost { against, .. } => assert_ne!(against, key(path)),
                Outcome::Best | Outcome::Equal { .. } => assert!(!unreachable),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_rib_does_what_a_naive_one_does(
        max_paths in 1_usize..4,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut run = Run::new(max_paths);
        for peer in 0..PEERS {
            let router_id = Ipv4Addr::new(10, 0, 0, peer + 1);
            run.step(Step::Up(peer, PeerFacts { external: true, router_id, client: false }));
        }
        for step in steps {
            let (peer, forgotten) = match &step {
                Step::Announce(peer, ..) | Step::Replace(peer, ..) => {
                    (*peer, !run.model.facts.contains_key(&key(*peer)))
                }
                _ => (0, false),
            };
            // Nobody announces before a session is up.
            if forgotten {
                let router_id = Ipv4Addr::new(10, 0, 0, 9);
                run.step(Step::Up(peer, PeerFacts { external: false, router_id, client: false }));
            }
            run.step(step);
        }
        run.step(Step::Decide);
        // Everything withdrawn leaves nothing behind.
        for peer in 0..PEERS {
            let step = if peer % 2 == 0 { Step::Flush(peer) } else { Step::Forget(peer) };
            run.step(step);
        }
        run.step(Step::Decide);
        prop_assert!(run.kernel.is_empty());
        prop_assert_eq!(run.rib.adj_in.sizes(), [0; 5]);
        prop_assert_eq!(run.rib.loc.sizes(), [0; 4]);
    }
}
