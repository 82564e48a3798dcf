//! The Adj-RIBs-Out: what peers were told (RFC 4271 section 3.2).
//!
//! What is told is what this node originates, and nothing else, to internal and external peers alike.
//! That is this speaker's export policy in the sense of RFC 8212: a node is never a way from one rack to
//! another. Only a route reflector passes on what it has learned, and only inside the pools (`passed.rs`). What peers announce is accepted
//! without a filter (section 2 of that RFC asks for one): who is a peer is configured, and what is this
//! node's own is never taken from it.
//!
//! Peers to whom the same is told in the same octets are a group (an update group). A change is encoded
//! once for all of them, and the whole table once for all that come up with it.

mod passed;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use twill_types::{Asn, Family, Prefix};

use self::passed::Told;
use crate::{
    PeerKey,
    decision::DEFAULT_LOCAL_PREF,
    rib::Rib,
    wire::{self, AsPath, Origin, PathAttributes, RouteRefresh, Session},
};

/// All that makes a difference between what one peer is told and what another is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        self.leave(peer);
        let place = self.groups.iter().position(|group| group.view == view).unwrap_or_else(|| {
            let announced = view.announces(&self.originated);
            let (members, told) = (BTreeSet::new(), view.count_passed(rib));
            self.groups.push(Group { view, members, announced, table: None, told });
            self.groups.len() - 1
        });
        let Some(group) = self.groups.get_mut(place) else {
            return Messages::default();
        };
        group.members.insert(peer);
        let announced = &group.announced;
        let table = group.table.get_or_insert_with(|| view.messages(&[], announced.iter()));
        let mut messages = table.clone();
        messages.extend(&view.all_passed(rib, peer, &[Family::V4, Family::V6]));
        messages
    }

    /// A peer knows nothing any more.
    pub(crate) fn leave(&mut self, peer: PeerKey) {
        for group in &mut self.groups {
            group.members.remove(&peer);
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    /// A peer's configuration has changed under its session: what to tell it, if that makes another
    /// view of it. What stays is announced again, with its new next hop.
    pub(crate) fn regroup(&mut self, rib: &Rib, peer: PeerKey, view: ExportView) -> Messages {
        let Some(group) = self.group(peer).filter(|group| group.view != view) else {
            return Messages::default();
        };
        let (old, before) = (group.announced.clone(), group.view);
        let table = self.join(rib, peer, view);
        let new = view.announces(&self.originated);
        let gone: Vec<Prefix> = old.difference(&new).copied().collect();
        let mut messages = view.messages(&gone, std::iter::empty());
        messages.extend(&before.passed_beside(rib, peer, &view));
        messages.bytes.extend(table.bytes);
        messages.count += table.count;
        messages
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

    /// The attributes of what this node originates (RFC 4271 section 5.1).
    fn attributes(&self, next_hop: IpAddr) -> PathAttributes {
        let internal = self.session.internal;
        let path = if internal { AsPath::default() } else { AsPath::default().prepended(self.asn) };
        let mut attributes = PathAttributes::new(Origin::Igp, path, next_hop);
        attributes.local_pref = internal.then_some(DEFAULT_LOCAL_PREF);
        attributes.only_to_customer = self.only_to_customer.then_some(self.asn.get());
        attributes
    }

    /// What of the originated prefixes is told.
    fn announces(&self, originated: &BTreeSet<Prefix>) -> BTreeSet<Prefix> {
        let told = |prefix: &&Prefix| self.next_hop(prefix.family()).is_some();
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
            if let (Some(next_hop), false) = (self.next_hop(*family), new.is_empty()) {
                let attributes = self.attributes(next_hop);
                // Own attributes are far shorter than a message.
                let _ = wire::encode_updates(&attributes, *family, new, &self.session, &mut bytes);
            }
        }
        let count = count_messages(&bytes);
        Messages { bytes, count }
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
        fn read(&mut self, messages: &Messages, session: &Session) {
            let mut bytes = messages.bytes.as_slice();
            let mut count = 0;
            let mut announcing = false;
            while let Some(frame) = wire::frame(bytes, session.max_message()).unwrap() {
                let update = wire::decode_update(frame.body, session).unwrap();
                assert!(update.faults.is_empty(), "{:?}", update.faults);
                assert!(!announcing || update.withdrawn.is_empty(), "withdraw before announce");
                announcing |= !update.announced.is_empty();
                for prefix in update.withdrawn.prefixes() {
                    assert!(self.0.remove(&prefix).is_some(), "{prefix} was not announced");
                }
                for (attributes, routes) in update.announced {
                    for prefix in routes.prefixes() {
                        self.0.insert(prefix, attributes.clone());
                    }
                }
                bytes = &bytes[frame.length..];
                count += 1;
            }
            assert_eq!((bytes.len(), count), (0, messages.count));
        }
    }

    /// What a peer should know, from the definition.
    fn expected(view: &ExportView, originated: &BTreeSet<Prefix>) -> Told {
        let one = |prefix: &Prefix| {
            let next_hop = view.next_hops[usize::from(prefix.family() == Family::V6)]?;
            view.session.has(prefix.family()).then_some(())?;
            let internal = view.session.internal;
            let path = if internal { vec![] } else { vec![asn()] };
            let mut attributes = PathAttributes::new(Origin::Igp, AsPath::sequence(path), next_hop);
            attributes.local_pref = internal.then_some(100);
            Some((*prefix, attributes))
        };
        Told(originated.iter().filter_map(one).collect())
    }

    #[test]
    fn peers_of_one_view_share_one_encoding() {
        let mut out = AdjRibsOut::default();
        let _ = out.originate(prefixes(&PREFIXES));
        let plain = view(false, true, [Some(1), Some(1)]);
        let first = out.join(&Rib::default(), key(1), plain);
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
        Regroup(u8, [Option<u8>; 2]),
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
            2 => (peer(), next_hops()).prop_map(|(peer, hops)| Step::Regroup(peer, hops)),
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
                    told.read(&out.join(&Rib::default(), key(peer), view), &view.session);
                    peers.insert(key(peer), (view, told));
                }
                Step::Leave(peer) => {
                    out.leave(key(peer));
                    peers.remove(&key(peer));
                }
                Step::Regroup(peer, hops) => {
                    if let Some((old, told)) = peers.get_mut(&key(peer)) {
                        let session = old.session;
                        let new = view(session.internal, session.ipv6, hops);
                        told.read(&out.regroup(&Rib::default(), key(peer), new), &session);
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
