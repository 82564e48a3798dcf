//! The Adj-RIBs-Out: what peers were told (RFC 4271 section 3.2).
//!
//! What is told is what this node originates, and nothing else, to internal and external peers alike.
//! That is this speaker's export policy in the sense of RFC 8212: a node is never a way from one rack to
//! another. Only a route reflector passes on what it has learned, and only inside the pools (`passed.rs`),
//! and so does a node whose filters say expressly that a peer is told of learned routes (`policy.rs`).
//! What peers announce is accepted where no filter says otherwise (section 2 of that RFC asks for one):
//! who is a peer is configured, and what is this node's own is never taken from it.
//!
//! Peers to whom the same is told in the same octets are a group (an update group). A change is encoded
//! once for all of them, and the whole table once for all that come up with it.

mod passed;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use twill_types::{Asn, Family, Prefix};

use self::passed::Told;
use crate::{
    NextHopMode, PeerKey,
    decision::DEFAULT_LOCAL_PREF,
    policy::{Direction, Route, RoutePolicy, Verdict},
    rib::Rib,
    wire::{self, AsPath, Origin, PathAttributes, RouteRefresh, Session},
};

/// All that makes a difference between what one peer is told and what another is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExportView {
    /// The AS that this node is in towards the peer.
    pub(crate) asn: Asn,
    /// What was negotiated.
    pub(crate) session: Session,
    /// This node's address of each family, IPv4 first. Without one, the family's routes are not told:
    /// nobody could follow them. IPv4 may go over the IPv6 address (RFC 8950).
    pub(crate) next_hops: [Option<IpAddr>; 2],
    /// It is a client of this node as a route reflector.
    pub(crate) client: bool,
    /// It keeps routes of neighbors that are away for long (RFC 9494).
    pub(crate) long_lived: bool,
    /// The subnet that it shares with this node.
    pub(crate) on_link: Option<Prefix>,
    /// Routes are marked for customers alone (RFC 9234 section 5, egress 1).
    pub(crate) only_to_customer: bool,
    /// Routes that are marked so are not told (egress 2).
    pub(crate) no_customer: bool,
    /// What filters say.
    pub(crate) policy: Option<Arc<RoutePolicy>>,
    pub(crate) next_hop_mode: NextHopMode,
}

/// Encoded messages, and how many they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u64,
}

impl Messages {
    /// Adds an End-of-RIB for each family (RFC 4724 section 2).
    pub(crate) fn end(&mut self, families: &BTreeSet<Family>) {
        for family in families {
            wire::encode_end_of_rib(*family, &mut self.bytes);
            self.count += 1;
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.count += count_messages(bytes);
        self.bytes.extend_from_slice(bytes);
    }

    /// With a BoRR before it and an EoRR behind it.
    fn between(self, family: Family) -> Self {
        let marker = |subtype| wire::encode_route_refresh(RouteRefresh { family, subtype });
        let mut bytes = marker(RouteRefresh::BEGIN);
        bytes.extend(self.bytes);
        bytes.extend(marker(RouteRefresh::END));
        Self { bytes, count: self.count + 2 }
    }
}

#[derive(Debug)]
struct Group {
    view: ExportView,
    members: BTreeSet<PeerKey>,
    /// What all members were told.
    announced: BTreeSet<Prefix>,
    /// The messages that tell all of it to a peer that knows nothing.
    table: Option<Messages>,
    /// What the members were told beside it.
    told: Told,
}

/// What each peer was told.
#[derive(Debug, Default)]
pub(crate) struct AdjRibsOut {
    originated: BTreeSet<Prefix>,
    /// A handful, however many peers there are.
    groups: Vec<Group>,
}

impl AdjRibsOut {
    /// What this node originates.
    pub(crate) const fn originated(&self) -> &BTreeSet<Prefix> {
        &self.originated
    }

    /// What this node originates from now on; what to send to whom for it.
    pub(crate) fn originate(&mut self, originated: BTreeSet<Prefix>) -> Vec<(PeerKey, Messages)> {
        self.originated = originated;
        let mut sends = Vec::new();
        for group in &mut self.groups {
            let messages = group.change(&self.originated);
            if messages.count > 0 {
                sends.extend(group.members.iter().map(|peer| (*peer, messages.clone())));
            }
        }
        sends
    }

    /// A peer's session is up, and it knows nothing: what to tell it.
    pub(crate) fn join(&mut self, rib: &Rib, peer: PeerKey, view: ExportView) -> Messages {
        let Some(group) = self.enter(rib, peer, view) else {
            return Messages::default();
        };
        let (view, announced) = (&group.view, &group.announced);
        let table = group.table.get_or_insert_with(|| view.messages(&[], announced.iter()));
        let mut messages = table.clone();
        messages.extend(&view.all_passed(rib, peer, &[Family::V4, Family::V6]));
        messages
    }

    /// Puts a peer into the group of its view.
    fn enter(&mut self, rib: &Rib, peer: PeerKey, view: ExportView) -> Option<&mut Group> {
        self.leave(peer);
        let place = self.groups.iter().position(|group| group.view == view).unwrap_or_else(|| {
            let announced = view.announces(&self.originated);
            let (members, told) = (BTreeSet::new(), view.count_passed(rib));
            self.groups.push(Group { view, members, announced, table: None, told });
            self.groups.len() - 1
        });
        let group = self.groups.get_mut(place)?;
        group.members.insert(peer);
        Some(group)
    }

    /// A peer knows nothing any more.
    pub(crate) fn leave(&mut self, peer: PeerKey) {
        for group in &mut self.groups {
            group.members.remove(&peer);
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    /// A peer's configuration has changed under its session: what to tell it, if that makes another
    /// view of it. That is what differs, and nothing else.
    pub(crate) fn regroup(&mut self, rib: &Rib, peer: PeerKey, view: ExportView) -> Messages {
        let Some(group) = self.group(peer).filter(|group| group.view != view) else {
            return Messages::default();
        };
        let (old, before) = (group.announced.clone(), group.view.clone());
        let Some(group) = self.enter(rib, peer, view) else {
            return Messages::default();
        };
        let (new, view) = (&group.announced, &group.view);
        let gone: Vec<Prefix> = old.difference(new).copied().collect();
        let is_same = |prefix: &&Prefix| before.own(**prefix) == view.own(**prefix);
        let other = new.iter().filter(|prefix| !is_same(prefix));
        let (gone_passed, other_passed) = view.passed_since(rib, peer, &before);
        let mut messages = view.messages(&gone, std::iter::empty());
        messages.extend(&gone_passed);
        messages.extend(&view.messages(&[], other).bytes);
        messages.extend(&other_passed);
        messages
    }

    /// Peers that are not told of a prefix because of a filter, and by which rule, or because what is added
    /// to it leaves no room for it in a message.
    pub(crate) fn withheld(&self, rib: &Rib, prefix: Prefix) -> Vec<(PeerKey, String)> {
        let mut withheld = Vec::new();
        for group in &self.groups {
            let why = match self.originated.contains(&prefix) {
                true => group.view.own_refusal(prefix),
                false => group.view.passed_refusal(rib, prefix),
            };
            if let Some((why, from)) = why {
                let others = group.members.iter().filter(|peer| Some(**peer) != from);
                withheld.extend(others.map(|peer| (*peer, why.clone())));
            }
        }
        withheld.sort_unstable();
        withheld
    }

    /// A peer asks for everything of a family again (RFC 2918 section 4). Where both sides can, it is
    /// told where that begins and ends (RFC 7313 section 4).
    pub(crate) fn refresh(&self, rib: &Rib, peer: PeerKey, family: Family) -> Messages {
        let Some(group) = self.group(peer) else {
            return Messages::default();
        };
        let again = group.announced.iter().filter(|prefix| prefix.family() == family);
        let mut messages = group.view.messages(&[], again);
        messages.extend(&group.view.all_passed(rib, peer, &[family]));
        match group.view.session.enhanced_refresh {
            true => messages.between(family),
            false => messages,
        }
    }

    /// How many prefixes a peer was told of.
    pub(crate) fn count(&self, peer: PeerKey) -> usize {
        self.group(peer).map_or(0, |group| group.announced.len() + group.told.to(peer))
    }

    fn group(&self, peer: PeerKey) -> Option<&Group> {
        self.groups.iter().find(|group| group.members.contains(&peer))
    }
}

impl Group {
    /// Brings what the members were told up to what they should know.
    fn change(&mut self, originated: &BTreeSet<Prefix>) -> Messages {
        let wanted = self.view.announces(originated);
        if wanted == self.announced {
            return Messages::default();
        }
        let gone: Vec<Prefix> = self.announced.difference(&wanted).copied().collect();
        let messages = self.view.messages(&gone, wanted.difference(&self.announced));
        self.announced = wanted;
        self.table = None;
        messages
    }
}

impl ExportView {
    fn next_hop(&self, family: Family) -> Option<IpAddr> {
        let [v4, v6] = self.next_hops;
        let next_hop = match family {
            // RFC 8950 section 4.
            Family::V4 => v4.or(v6.filter(|_| self.session.extended_next_hop)),
            Family::V6 => v6,
        };
        next_hop.filter(|_| self.session.has(family))
    }

    /// What the filters say of a prefix that this node originates.
    fn own_verdict(&self, policy: &RoutePolicy, prefix: Prefix, next_hop: IpAddr) -> Verdict {
        let attributes = &PathAttributes::new(Origin::Igp, AsPath::default(), next_hop);
        let internal = self.session.internal;
        let route = Route { prefix, attributes, learned: false, internal };
        policy.verdict(Direction::Export, &route)
    }

    /// The attributes of a prefix that this node originates (RFC 4271 section 5.1); `None` if the peers of
    /// this view are not told of it.
    fn own(&self, prefix: Prefix) -> Option<PathAttributes> {
        let next_hop = self.next_hop(prefix.family())?;
        let mut attributes = PathAttributes::new(Origin::Igp, AsPath::default(), next_hop);
        if let Some(policy) = &self.policy {
            let verdict = self.own_verdict(policy, prefix, next_hop);
            if verdict.is_rejected() {
                return None;
            }
            policy.export(verdict, prefix, &mut attributes);
        }
        if self.session.internal {
            attributes.local_pref = attributes.local_pref.or(Some(DEFAULT_LOCAL_PREF));
        } else {
            attributes.as_path = attributes.as_path.prepended(self.asn);
            attributes.local_pref = None;
        }
        attributes.only_to_customer = self.only_to_customer.then_some(self.asn.get());
        // Nothing but a policy makes own attributes long.
        (self.policy.is_none() || self.has_room(&attributes, prefix)).then_some(attributes)
    }

    /// Whether a message holds a prefix with these attributes. If not, it must not be announced (RFC 4271
    /// section 9.2).
    fn has_room(&self, attributes: &PathAttributes, prefix: Prefix) -> bool {
        let message = &mut Vec::new();
        wire::encode_updates(attributes, prefix.family(), &[prefix], &self.session, message)
    }

    /// What keeps a prefix that this node originates from the peers of this view.
    fn own_refusal(&self, prefix: Prefix) -> Option<(String, Option<PeerKey>)> {
        let policy = self.policy.as_ref()?;
        let verdict = self.own_verdict(policy, prefix, self.next_hop(prefix.family())?);
        let refusal = policy.refusal(Direction::Export, prefix.family(), verdict);
        let too_long = || {
            let longest = self.session.longest_sent();
            let why =
                format!("the limit of {longest} octets for a message, which its attributes exceed");
            self.own(prefix).is_none().then_some(why)
        };
        Some((refusal.or_else(too_long)?, None))
    }

    /// What of the originated prefixes is told.
    fn announces(&self, originated: &BTreeSet<Prefix>) -> BTreeSet<Prefix> {
        let told = |prefix: &&Prefix| match self.policy {
            None => self.next_hop(prefix.family()).is_some(),
            Some(_) => self.own(**prefix).is_some(),
        };
        originated.iter().filter(told).copied().collect()
    }

    /// Withdrawals and announcements in as few messages as they take: the withdrawals of all families
    /// first, so that no peer ever has more routes than it will have.
    fn messages<'a>(&self, gone: &[Prefix], new: impl Iterator<Item = &'a Prefix>) -> Messages {
        let mut by_family: BTreeMap<Family, (Vec<Prefix>, Vec<Prefix>)> = BTreeMap::new();
        for prefix in gone {
            by_family.entry(prefix.family()).or_default().0.push(*prefix);
        }
        for prefix in new {
            by_family.entry(prefix.family()).or_default().1.push(*prefix);
        }
        let mut bytes = Vec::new();
        for (family, (gone, _)) in &by_family {
            wire::encode_withdrawals(*family, gone, &self.session, &mut bytes);
        }
        for (family, (_, new)) in &by_family {
            for (attributes, prefixes) in self.alike(new) {
                // What has no room is not among what is announced.
                let told = wire::encode_updates(
                    &attributes,
                    *family,
                    &prefixes,
                    &self.session,
                    &mut bytes,
                );
                debug_assert!(told, "{prefixes:?} have no room with {attributes:?}");
            }
        }
        let count = count_messages(&bytes);
        Messages { bytes, count }
    }

    /// Own prefixes of one family that are told with the same attributes.
    fn alike(&self, prefixes: &[Prefix]) -> Vec<(PathAttributes, Vec<Prefix>)> {
        if self.policy.is_none() {
            let attributes = prefixes.first().and_then(|first| self.own(*first));
            return attributes
                .map(|attributes| (attributes, prefixes.to_vec()))
                .into_iter()
                .collect();
        }
        let mut alike: BTreeMap<PathAttributes, Vec<Prefix>> = BTreeMap::new();
        for prefix in prefixes {
            if let Some(attributes) = self.own(*prefix) {
                alike.entry(attributes).or_default().push(*prefix);
            }
        }
        alike.into_iter().collect()
    }
}

/// How many messages a run of encoded ones holds.
fn count_messages(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Ok(Some(frame)) = wire::frame(bytes, wire::MAX_EXTENDED) {
        count += 1;
        bytes = bytes.get(frame.length..).unwrap_or_default();
    }
    count
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        any_policy::policies,
        policy::{Advertisement, CommunityValue},
        wire::LargeCommunity,
    };

    const PREFIXES: [&str; 6] = [
        "10.0.0.0/24",
        "10.0.1.0/24",
        "10.0.2.0/26",
        "2001:db8::/64",
        "2001:db8:1::/64",
        "2001:db8:2::/122",
    ];

    fn session(internal: bool, ipv6: bool) -> Session {
        Session { four_octet_as: true, ipv4: true, ipv6, internal, ..Session::default() }
    }

    fn view(internal: bool, ipv6: bool, next_hops: [Option<u8>; 2]) -> ExportView {
        let [v4, v6] = next_hops;
        let v4 = v4.map(|last| Ipv4Addr::new(192, 0, 2, last).into());
        let v6 = v6.map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into());
        ExportView {
            asn: asn(),
            session: session(internal, ipv6),
            next_hops: [v4, v6],
            client: false,
            long_lived: false,
            on_link: None,
            only_to_customer: false,
            no_customer: false,
            policy: None,
            next_hop_mode: NextHopMode::Auto,
        }
    }

    fn prefixes(texts: &[&str]) -> BTreeSet<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn asn() -> Asn {
        Asn::new(64512).unwrap()
    }

    fn key(last: u8) -> PeerKey {
        PeerKey { address: IpAddr::from([192, 0, 2, last]), port: 179 }
    }

    /// What a peer makes of what it is told.
    #[derive(Debug, Default, Clone, PartialEq, Eq)]
    struct Told(BTreeMap<Prefix, PathAttributes>);

    impl Told {
        /// Says which prefixes were named.
        fn read(&mut self, messages: &Messages, session: &Session) -> BTreeSet<Prefix> {
            let mut named = BTreeSet::new();
            let mut bytes = messages.bytes.as_slice();
            let mut count = 0;
            let mut announcing = false;
            while let Some(frame) = wire::frame(bytes, session.longest_sent()).unwrap() {
                let update = wire::decode_update(frame.body, session).unwrap();
                assert!(update.faults.is_empty(), "{:?}", update.faults);
                assert!(!announcing || update.withdrawn.is_empty(), "withdraw before announce");
                announcing |= !update.announced.is_empty();
                for prefix in update.withdrawn.prefixes() {
                    named.insert(prefix);
                    assert!(self.0.remove(&prefix).is_some(), "{prefix} was not announced");
                }
                for (attributes, routes) in update.announced {
                    for prefix in routes.prefixes() {
                        named.insert(prefix);
                        self.0.insert(prefix, attributes.clone());
                    }
                }
                bytes = &bytes[frame.length..];
                count += 1;
            }
            assert_eq!((bytes.len(), count), (0, messages.count));
            named
        }
    }

    /// What a peer should know, from the definition.
    fn expected(view: &ExportView, originated: &BTreeSet<Prefix>) -> Told {
        let one = |prefix: &Prefix| {
            let next_hop = view.next_hops[usize::from(prefix.family() == Family::V6)]?;
            view.session.has(prefix.family()).then_some(())?;
            let internal = view.session.internal;
            let plain = PathAttributes::new(Origin::Igp, AsPath::default(), next_hop);
            let mut attributes = plain.clone();
            if let Some(policy) = &view.policy {
                let route = Route { prefix: *prefix, attributes: &plain, learned: false, internal };
                let verdict = policy.verdict(Direction::Export, &route);
                (!verdict.is_rejected()).then_some(())?;
                policy.export(verdict, *prefix, &mut attributes);
            }
            if internal {
                attributes.local_pref = attributes.local_pref.or(Some(100));
            } else {
                attributes.as_path = attributes.as_path.prepended(asn());
                attributes.local_pref = None;
            }
            Some((*prefix, attributes))
        };
        Told(originated.iter().filter_map(one).collect())
    }

    #[test]
    fn peers_of_one_view_share_one_encoding() {
        let mut out = AdjRibsOut::default();
        let _ = out.originate(prefixes(&PREFIXES));
        let plain = view(false, true, [Some(1), Some(1)]);
        let first = out.join(&Rib::default(), key(1), plain.clone());
        assert_eq!(out.join(&Rib::default(), key(2), plain), first);
        let internal = out.join(&Rib::default(), key(3), view(true, true, [Some(1), Some(1)]));
        assert_ne!(internal, first);
        assert_eq!(out.groups.len(), 2);
        let sends = out.originate(prefixes(&PREFIXES[1..]));
        assert_eq!(sends.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), [1, 2, 3].map(key));
        assert_eq!(sends[0].1, sends[1].1);
        assert_eq!(out.originate(prefixes(&PREFIXES[1..])), []);
        out.leave(key(3));
        assert_eq!(out.groups.len(), 1);
    }

    /// 400 large communities are 4,800 octets: such a prefix is told where messages may be that long, and
    /// else withdrawn, not counted, and the operator is told why.
    #[test]
    fn what_has_no_room_in_a_message_is_not_told() {
        let rib = Rib::default();
        let mut out = AdjRibsOut::default();
        let long: Prefix = PREFIXES[0].parse().unwrap();
        let plain = view(false, false, [Some(1), None]);
        let large = |number| CommunityValue::Large(LargeCommunity([64512, 1, number]));
        let advertisement =
            Advertisement { prefix: long, communities: (0..400).map(large).collect() };
        let advertisements = vec![advertisement];
        let policy = Arc::new(RoutePolicy { advertisements, ..RoutePolicy::default() });
        let tagged = ExportView { policy: Some(policy), ..plain.clone() };
        let session = Session { send_extended: true, ..plain.session };
        let extended = ExportView { session, ..tagged.clone() };
        let _ = out.originate(prefixes(&PREFIXES[..2]));
        let mut told = [(); 3].map(|()| Told::default());
        told[0].read(&out.join(&rib, key(1), plain.clone()), &plain.session);
        told[1].read(&out.join(&rib, key(2), tagged.clone()), &tagged.session);
        told[2].read(&out.join(&rib, key(3), extended), &session);
        let names = |told: &Told| told.0.keys().map(Prefix::to_string).collect::<Vec<_>>();
        let (short, both) = (&PREFIXES[1..2], &PREFIXES[..2]);
        assert_eq!([names(&told[0]), names(&told[1]), names(&told[2])], [both, short, both]);
        assert_eq!([1, 2, 3].map(|peer| out.count(key(peer))), [2, 1, 2]);
        assert_eq!(told[2].0[&long].large_communities.len(), 400);
        let why = "the limit of 4096 octets for a message, which its attributes exceed".to_owned();
        assert_eq!(out.withheld(&rib, long), [(key(2), why)]);
        assert_eq!(out.withheld(&rib, PREFIXES[1].parse().unwrap()), []);
        // One that was told of it before does not keep it as it was.
        told[0].read(&out.regroup(&rib, key(1), tagged), &plain.session);
        assert_eq!((names(&told[0]), out.count(key(1))), (names(&told[1]), 1));
        told[0].read(&out.regroup(&rib, key(1), plain.clone()), &plain.session);
        assert_eq!((names(&told[0]), out.count(key(1))), (names(&told[2]), 2));
        // What goes is withdrawn from those alone that were told of it.
        for (peer, messages) in out.originate(prefixes(&PREFIXES[1..2])) {
            assert_ne!(peer, key(2), "it knows nothing of what goes");
            let heard = if peer == key(1) { &mut told[0] } else { &mut told[2] };
            heard.read(&messages, &session);
        }
        assert_eq!([1, 2, 3].map(|peer| out.count(key(peer))), [1; 3]);
    }

    /// A thousand prefixes are a few full messages, not a thousand.
    #[test]
    fn updates_are_packed() {
        let mut out = AdjRibsOut::default();
        let many = (0..1000_u32)
            .map(|n| Prefix::new(Ipv4Addr::from_bits(0x0a00_0000 + (n << 6)).into(), 26).unwrap());
        let _ = out.originate(many.collect());
        let table = out.join(&Rib::default(), key(1), view(false, false, [Some(1), None]));
        assert_eq!(table.count, 2);
        let gone = out.originate(BTreeSet::new());
        assert_eq!(gone[0].1.count, 2);
        assert_eq!(out.count(key(1)), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Originate(Vec<&'static str>),
        Join(u8, ExportView),
        Leave(u8),
        Regroup(u8, [Option<u8>; 2], Option<RoutePolicy>),
        Refresh(u8, Family),
    }

    fn step() -> impl Strategy<Value = Step> {
        let peer = || 0_u8..4;
        let next_hops = || [prop::option::of(1_u8..3), prop::option::of(1_u8..3)];
        let views = (any::<bool>(), any::<bool>(), next_hops());
        let views = views.prop_map(|(internal, ipv6, hops)| view(internal, ipv6, hops));
        let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
        prop_oneof![
            4 => prop::sample::subsequence(PREFIXES.to_vec(), 0..=6).prop_map(Step::Originate),
            3 => (peer(), views).prop_map(|(peer, view)| Step::Join(peer, view)),
            1 => peer().prop_map(Step::Leave),
            3 => (peer(), next_hops(), prop::option::of(policies(&PREFIXES)))
                .prop_map(|(peer, hops, policy)| Step::Regroup(peer, hops, policy)),
            1 => (peer(), family).prop_map(|(peer, family)| Step::Refresh(peer, family)),
        ]
    }

    /// The Adj-RIBs-Out, and what the peers have made of it.
    struct Run {
        out: AdjRibsOut,
        originated: BTreeSet<Prefix>,
        peers: BTreeMap<PeerKey, (ExportView, Told)>,
    }

    impl Run {
        fn step(&mut self, step: Step) {
            let Self { out, originated, peers } = self;
            match step {
                Step::Originate(texts) => {
                    *originated = prefixes(&texts);
                    for (peer, messages) in out.originate(originated.clone()) {
                        let (view, told) = peers.get_mut(&peer).unwrap();
                        told.read(&messages, &view.session);
                    }
                }
                Step::Join(peer, view) => {
                    let mut told = Told::default();
                    told.read(&out.join(&Rib::default(), key(peer), view.clone()), &view.session);
                    peers.insert(key(peer), (view, told));
                }
                Step::Leave(peer) => {
                    out.leave(key(peer));
                    peers.remove(&key(peer));
                }
                Step::Regroup(peer, hops, policy) => {
                    if let Some((old, told)) = peers.get_mut(&key(peer)) {
                        let session = old.session;
                        let policy = policy.map(Arc::new);
                        let new = view(session.internal, session.ipv6, hops);
                        let new = ExportView { policy, ..new };
                        let messages = out.regroup(&Rib::default(), key(peer), new.clone());
                        let before = told.clone();
                        let named = told.read(&messages, &session);
                        // What stays the same is not told again.
                        for prefix in named {
                            assert_ne!(before.0.get(&prefix), told.0.get(&prefix), "{prefix}");
                        }
                        *old = new;
                    }
                }
                Step::Refresh(peer, family) => {
                    let messages = out.refresh(&Rib::default(), key(peer), family);
                    if let Some((view, told)) = peers.get_mut(&key(peer)) {
                        told.0.retain(|prefix, _| prefix.family() != family);
                        told.read(&messages, &view.session);
                    }
                }
            }
        }
    }

    proptest! {
        /// Whatever happens, each peer knows what it would know had it been told everything just now.
        #[test]
        fn each_peer_knows_what_it_should(steps in prop::collection::vec(step(), 1..60)) {
            let (originated, peers) = (BTreeSet::new(), BTreeMap::new());
            let mut run = Run { out: AdjRibsOut::default(), originated, peers };
            for step in steps {
                run.step(step);
                for (peer, (view, told)) in &run.peers {
                    prop_assert_eq!(told, &expected(view, &run.originated));
                    prop_assert_eq!(run.out.count(*peer), told.0.len());
                }
                let groups = &run.out.groups;
                let members: Vec<PeerKey> =
                    groups.iter().flat_map(|group| group.members.iter().copied()).collect();
                prop_assert_eq!(members.len(), run.peers.len());
                prop_assert!(groups.iter().all(|group| !group.members.is_empty()));
            }
        }
    }
}
