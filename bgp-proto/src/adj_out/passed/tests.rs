//! The Adj-RIBs-Out of a reflector against what follows from the definition, whatever happens.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::prelude::*;

use twill_types::{Asn, BgpNextHop};

use super::*;
use crate::{
    NextHopState, Outcome, Reflection,
    any_policy::policies,
    policy::RoutePolicy,
    rib::PeerFacts,
    wire::{AsPath, Nlri, Origin, Segment, Session},
};

const PREFIXES: [&str; 5] =
    ["10.0.0.0/24", "10.0.1.0/24", "10.9.0.0/24", "2001:db8::/64", "2001:db9::/64"];
const POOLS: [&str; 4] = ["10.0.0.0/16", "10.0.1.0/24", "2001:db8::/32", "10.9.0.0/16"];
const PEERS: u8 = 4;

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn key(peer: u8) -> PeerKey {
    PeerKey { address: IpAddr::from([192, 0, 2, peer]), port: 179 }
}

fn prefix(place: usize) -> Prefix {
    PREFIXES[place].parse().unwrap()
}

fn nlri(place: usize) -> [Nlri; 1] {
    [Nlri { prefix: prefix(place), path_id: 0 }]
}

/// 0 is external, 1 a client, and 2 and 3 are of one group, which is not told what is for customers alone.
fn facts(peer: u8) -> PeerFacts {
    PeerFacts { external: peer == 0, router_id: Ipv4Addr::new(10, 0, 0, peer), client: peer == 1 }
}

fn own_next_hops() -> [Option<IpAddr>; 2] {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    [Some(Ipv4Addr::new(192, 0, 2, 9).into()), Some(v6.into())]
}

fn view(peer: u8) -> ExportView {
    ExportView {
        asn: asn(64512),
        session: Session {
            four_octet_as: true,
            ipv4: true,
            ipv6: peer < 2,
            internal: !facts(peer).external,
            ..Session::default()
        },
        next_hops: own_next_hops(),
        client: facts(peer).client,
        long_lived: peer == 1,
        on_link: Some("192.0.2.0/29".parse().unwrap()),
        only_to_customer: peer == 0,
        no_customer: peer == 2 || peer == 3,
        policy: None,
        next_hop_mode: NextHopMode::Auto,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Announce(u8, usize, Box<PathAttributes>),
    Withdraw(u8, usize),
    Flush(u8),
    Forget(u8),
    Join(u8),
    Filter(u8, Option<RoutePolicy>),
    NextHop(u8, NextHopMode),
    Leave(u8),
    Refresh(u8, Family),
    Reflect(Option<Reflection>),
    Settle,
}

fn attributes() -> impl Strategy<Value = PathAttributes> {
    let communities = [
        Community(0xfc00_0001),
        Community::LLGR_STALE,
        Community::NO_EXPORT,
        Community::NO_ADVERTISE,
        Community::NO_EXPORT_SUBCONFED,
    ];
    let communities = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::sample::subsequence(communities.to_vec(), 0..=2),
    ];
    let hop = prop_oneof![Just(1_u8), Just(2), Just(200)];
    let path = prop_oneof![
        3 => Just(AsPath::default()),
        3 => Just(AsPath::sequence([asn(64999)])),
        1 => Just(AsPath::new(vec![Segment::Set(vec![asn(64999)])])),
    ];
    let mark = prop::option::weighted(0.3, Just(64998));
    (hop, path, prop::option::of(1_u32..3), communities, mark).prop_map(
        |(hop, path, preference, communities, only_to_customer)| {
            let next_hop = IpAddr::from([192, 0, 2, hop]);
            PathAttributes {
                local_pref: preference,
                med: preference,
                communities,
                only_to_customer,
                ..PathAttributes::new(Origin::Igp, path, next_hop)
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0..PEERS;
    let place = || 0..PREFIXES.len();
    let pools = prop::sample::subsequence(POOLS.to_vec(), 0..=4);
    let reflection = (1_u8..3, pools).prop_map(|(cluster, pools)| Reflection {
        cluster_id: Ipv4Addr::new(0, 0, 0, cluster),
        pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
    });
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let mode =
        prop_oneof![Just(NextHopMode::Auto), Just(NextHopMode::Own), Just(NextHopMode::Keep)];
    prop_oneof![
        8 => (peer(), place(), attributes()).prop_map(|(p, n, a)| Step::Announce(p, n, Box::new(a))),
        3 => (peer(), place()).prop_map(|(p, n)| Step::Withdraw(p, n)),
        1 => peer().prop_map(Step::Flush),
        1 => peer().prop_map(Step::Forget),
        4 => peer().prop_map(Step::Join),
        3 => (peer(), prop::option::weighted(0.8, policies(&PREFIXES)))
            .prop_map(|(peer, policy)| Step::Filter(peer, policy)),
        2 => (peer(), mode).prop_map(|(peer, mode)| Step::NextHop(peer, mode)),
        1 => peer().prop_map(Step::Leave),
        1 => (peer(), family).prop_map(|(p, f)| Step::Refresh(p, f)),
        2 => prop::option::weighted(0.8, reflection).prop_map(Step::Reflect),
        8 => Just(Step::Settle),
    ]
}

/// What a peer makes of what it is told.
type Heard = BTreeMap<Prefix, PathAttributes>;

/// Says which prefixes were named.
fn hear(heard: &mut Heard, messages: &Messages, session: &Session) -> BTreeSet<Prefix> {
    let mut named = BTreeSet::new();
    let mut bytes = messages.bytes.as_slice();
    let (mut count, mut announcing) = (0, false);
    while let Some(frame) = wire::frame(bytes, session.longest_sent()).unwrap() {
        let update = wire::decode_update(frame.body, session).unwrap();
        assert!(update.faults.is_empty(), "{:?}", update.faults);
        assert!(!announcing || update.withdrawn.is_empty(), "withdraw before announce");
        announcing |= !update.announced.is_empty();
        for Nlri { prefix, .. } in update.withdrawn.iter() {
            named.insert(prefix);
            assert!(heard.remove(&prefix).is_some(), "{prefix} was not announced");
        }
        for (attributes, routes) in update.announced {
            named.extend(routes.iter().map(|nlri| nlri.prefix));
            heard.extend(routes.iter().map(|nlri| (nlri.prefix, attributes.clone())));
        }
        bytes = &bytes[frame.length..];
        count += 1;
    }
    assert_eq!((bytes.len(), count), (0, messages.count));
    named
}

struct Run {
    rib: Rib,
    out: AdjRibsOut,
    reflection: Option<Reflection>,
    peers: BTreeMap<u8, Heard>,
    policies: BTreeMap<u8, Arc<RoutePolicy>>,
    modes: BTreeMap<u8, NextHopMode>,
}

impl Run {
    fn new() -> Self {
        let (rib, out) = (Rib::new(4), AdjRibsOut::default());
        let (peers, policies, modes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { rib, out, reflection: None, peers, policies, modes }
    }

    fn view(&self, peer: u8) -> ExportView {
        let next_hop_mode = self.modes.get(&peer).copied().unwrap_or_default();
        ExportView { policy: self.policies.get(&peer).cloned(), next_hop_mode, ..view(peer) }
    }

    fn filter(&mut self, peer: u8, policy: Option<RoutePolicy>) {
        self.policies.remove(&peer);
        self.policies.extend(policy.map(|policy| (peer, Arc::new(policy))));
        self.regroup(peer);
        let by_filter = self.policies.values().any(|policy| policy.passes_learned_on());
        self.rib.set_passed_by_filter(by_filter);
    }

    /// The peer is configured otherwise: it is told what differs, and nothing else.
    fn regroup(&mut self, peer: u8) {
        let messages = self.out.regroup(&self.rib, key(peer), self.view(peer));
        if let Some(heard) = self.peers.get_mut(&peer) {
            let before = heard.clone();
            for prefix in hear(heard, &messages, &view(peer).session) {
                assert_ne!(before.get(&prefix), heard.get(&prefix), "{prefix} is told again");
            }
        }
    }

    fn announce(&mut self, peer: u8, place: usize, mut attributes: PathAttributes) {
        if let (Family::V6, IpAddr::V4(v4)) = (prefix(place).family(), attributes.next_hop) {
            attributes.next_hop = match v4.octets() {
                [.., 200] => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
                _ => v4.to_ipv6_mapped().into(),
            };
        }
        let next_hop = BgpNextHop::new(attributes.next_hop, key(peer).address);
        self.rib.set_peer(key(peer), facts(peer));
        self.rib.announce(key(peer), attributes, nlri(place));
        let state = NextHopState::Reachable { metric: 1 };
        self.rib.set_next_hops([(next_hop, state)].into());
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Announce(peer, place, attributes) => self.announce(peer, place, *attributes),
            Step::Withdraw(peer, place) => self.rib.withdraw(key(peer), nlri(place)),
            Step::Flush(peer) => self.rib.flush(key(peer)),
            Step::Forget(peer) => {
                self.step(Step::Leave(peer));
                self.rib.forget_peer(key(peer));
            }
            Step::Join(peer) => {
                let messages = self.out.join(&self.rib, key(peer), self.view(peer));
                let heard = self.peers.entry(peer).or_default();
                heard.clear();
                hear(heard, &messages, &view(peer).session);
            }
            Step::Filter(peer, policy) => self.filter(peer, policy),
            Step::NextHop(peer, mode) => {
                self.modes.insert(peer, mode);
                self.regroup(peer);
            }
            Step::Leave(peer) => {
                self.out.leave(key(peer));
                self.peers.remove(&peer);
            }
            Step::Refresh(peer, family) => {
                let messages = self.out.refresh(&self.rib, key(peer), family);
                if let Some(heard) = self.peers.get_mut(&peer) {
                    heard.retain(|prefix, _| prefix.family() != family);
                    hear(heard, &messages, &view(peer).session);
                }
            }
            Step::Reflect(reflection) => {
                self.rib.set_reflection(reflection.clone());
                self.reflection = reflection;
            }
            Step::Settle => self.settle(),
        }
    }

    fn settle(&mut self) {
        let _ = self.rib.recompute();
        let passes = self.rib.take_passes();
        for (peer, messages) in self.out.pass(&self.rib, &passes) {
            let found = self.peers.iter_mut().find(|(number, _)| key(**number) == peer);
            let (number, heard) = found.unwrap();
            hear(heard, &messages, &view(*number).session);
        }
        self.rib.forget_passes(&passes);
        for (peer, heard) in &self.peers {
            let expected: Heard =
                (0..PREFIXES.len()).filter_map(|place| self.expected(*peer, place)).collect();
            assert_eq!(*heard, expected, "peer {peer}");
            assert_eq!(self.out.count(key(*peer)), expected.len());
        }
    }

    /// What a peer should know of a prefix, from the definition.
    fn expected(&self, peer: u8, place: usize) -> Option<(Prefix, PathAttributes)> {
        let (view, prefix) = (self.view(peer), prefix(place));
        let internal = view.session.internal;
        let mut pools = self.reflection.iter().flat_map(|reflection| &reflection.pools);
        let is_reflected = pools.any(|pool| pool.covers(prefix));
        view.session.has(prefix.family()).then_some(())?;
        let mut paths = self.rib.explain(prefix).paths.into_iter();
        let best = paths.find(|path| matches!(path.outcome, Outcome::Best))?;
        let number = (0..PEERS).find(|number| key(*number) == best.from)?;
        let (from, mut attributes) = (facts(number), (*best.attributes).clone());
        let has = |community| best.attributes.communities.contains(&community);
        let route = Route { prefix, attributes: &best.attributes, learned: true, internal };
        let policy = view.policy.clone().unwrap_or_default();
        let verdict = policy.verdict(Direction::Export, &route);
        let reflects = self.reflection.is_some() && (from.client || view.client);
        let is_passed = match verdict {
            Verdict::Rejected(_) | Verdict::Closed => false,
            Verdict::Accepted { learned: true, .. } => !internal || from.external || reflects,
            _ if internal => is_reflected && (from.external || reflects),
            _ => is_reflected && !from.external,
        };
        policy.export(verdict, prefix, &mut attributes);
        let lost = number == peer
            || has(Community::NO_ADVERTISE)
            || best.attributes.as_path.segments().iter().any(|s| matches!(s, Segment::Set(_)))
            || has(Community::LLGR_STALE) && !view.long_lived
            || !internal && (has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED))
            // RFC 9234 section 5, egress 2.
            || view.no_customer && best.attributes.only_to_customer.is_some()
            || !is_passed;
        (!lost).then_some(())?;
        let is_own = match view.next_hop_mode {
            NextHopMode::Auto => !internal && !view.on_link?.contains(attributes.next_hop),
            NextHopMode::Own => true,
            NextHopMode::Keep => false,
        };
        // One of a link is no next hop elsewhere, whatever is configured.
        let is_of_a_link =
            matches!(attributes.next_hop, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if is_own || is_of_a_link {
            attributes.next_hop = own_next_hops()[usize::from(prefix.family() == Family::V6)]?;
        }
        if view.session.internal {
            attributes.local_pref = Some(attributes.local_pref.unwrap_or(100));
            if !from.external {
                attributes.originator_id = Some(from.router_id);
                attributes.cluster_list = vec![self.reflection.as_ref()?.cluster_id];
            }
            // Nobody is told to go to himself.
            return (attributes.next_hop != key(peer).address).then_some((prefix, attributes));
        }
        attributes.as_path = attributes.as_path.prepended(asn(64512));
        (attributes.local_pref, attributes.med) = (None, None);
        // Egress 1: whose mark it has is kept.
        attributes.only_to_customer = attributes.only_to_customer.or(Some(64512));
        (attributes.next_hop != key(peer).address).then_some((prefix, attributes))
    }
}

proptest! {
    #[test]
    fn each_peer_knows_what_it_should(steps in prop::collection::vec(step(), 1..80)) {
        let mut run = Run::new();
        steps.into_iter().for_each(|step| run.step(step));
        run.settle();
        // Nothing is left of peers that are gone.
        (0..PEERS).for_each(|peer| run.step(Step::Filter(peer, None)));
        run.settle();
        (0..PEERS).for_each(|peer| run.step(Step::Forget(peer)));
        run.settle();
        prop_assert_eq!(run.rib.all_passed().count(), 0);
    }
}
