//! Attributes as a table keeps them: what is there stands in a row of octets, and what is not takes none.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use twill_types::Asn;

use super::{
    Aggregator, AsPath, Community, LargeCommunity, Origin, Partial, PathAttributes, RawAttribute,
    Segment, reader::Reader,
};

/// [`PathAttributes`] in a fifth of their memory. They are equal if their attributes are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Packed(Arc<[u8]>);

/// What there is, in the order in which it stands.
mod has {
    pub(super) const NEXT_HOP_V6: u16 = 1;
    pub(super) const LINK_LOCAL: u16 = 1 << 1;
    pub(super) const MED: u16 = 1 << 2;
    pub(super) const LOCAL_PREF: u16 = 1 << 3;
    pub(super) const ATOMIC_AGGREGATE: u16 = 1 << 4;
    pub(super) const AGGREGATOR: u16 = 1 << 5;
    pub(super) const ORIGINATOR_ID: u16 = 1 << 6;
    pub(super) const AIGP: u16 = 1 << 7;
    pub(super) const ONLY_TO_CUSTOMER: u16 = 1 << 8;
    pub(super) const COMMUNITIES: u16 = 1 << 9;
    pub(super) const EXTENDED_COMMUNITIES: u16 = 1 << 10;
    pub(super) const LARGE_COMMUNITIES: u16 = 1 << 11;
    pub(super) const CLUSTER_LIST: u16 = 1 << 12;
    pub(super) const UNKNOWN: u16 = 1 << 13;
}

const SEQUENCE: u8 = 0;
const SET: u8 = 1;

impl Packed {
    pub(crate) fn new(attributes: &PathAttributes) -> Self {
        let mut row = Row { has: 0, octets: vec![0, 0] };
        row.write(attributes);
        if let Some(head) = row.octets.first_chunk_mut() {
            *head = row.has.to_be_bytes();
        }
        Self(row.octets.into())
    }

    /// The attributes again. `None` never: only [`Packed::new`] makes a row.
    pub(crate) fn unpack(&self) -> Option<PathAttributes> {
        let mut reader = Reader::new(&self.0);
        let has = reader.u16()?;
        read(has, &mut reader)
    }

    /// NEXT_HOP, without the rest.
    pub(crate) fn next_hop(&self) -> Option<IpAddr> {
        let mut reader = Reader::new(&self.0);
        let has = reader.u16()?;
        next_hop(has, &mut reader)
    }

    /// How many octets it takes.
    pub(crate) fn length(&self) -> usize {
        self.0.len()
    }
}

struct Row {
    has: u16,
    octets: Vec<u8>,
}

impl Row {
    fn write(&mut self, attributes: &PathAttributes) {
        let PathAttributes { origin, as_path, next_hop, .. } = attributes;
        match next_hop {
            IpAddr::V4(v4) => self.octets.extend(v4.octets()),
            IpAddr::V6(v6) => self.one(has::NEXT_HOP_V6, Some(v6.octets())),
        }
        self.octets.push(match origin {
            Origin::Igp => 0,
            Origin::Egp => 1,
            Origin::Incomplete => 2,
        });
        self.octets.push(attributes.partial.0);
        self.number(as_path.segments().len());
        for segment in as_path.segments() {
            self.octets.push(match segment {
                Segment::Sequence(_) => SEQUENCE,
                Segment::Set(_) => SET,
            });
            self.number(segment.asns().len());
            segment.asns().iter().for_each(|asn| self.octets.extend(asn.get().to_be_bytes()));
        }
        self.one(has::LINK_LOCAL, attributes.link_local.map(|address| address.octets()));
        self.one(has::MED, attributes.med.map(u32::to_be_bytes));
        self.one(has::LOCAL_PREF, attributes.local_pref.map(u32::to_be_bytes));
        self.one(has::ATOMIC_AGGREGATE, attributes.atomic_aggregate.then_some([]));
        let aggregator = attributes.aggregator;
        self.one(has::AGGREGATOR, aggregator.map(|by| by.asn.get().to_be_bytes()));
        self.one(has::AGGREGATOR, aggregator.map(|by| by.address.octets()));
        self.one(has::ORIGINATOR_ID, attributes.originator_id.map(|id| id.octets()));
        self.one(has::AIGP, attributes.aigp.map(u64::to_be_bytes));
        self.one(has::ONLY_TO_CUSTOMER, attributes.only_to_customer.map(u32::to_be_bytes));
        let communities = &attributes.communities;
        self.list(has::COMMUNITIES, communities, |community| community.0.to_be_bytes());
        self.list(has::EXTENDED_COMMUNITIES, &attributes.extended_communities, |octets| *octets);
        let parts = attributes.large_communities.iter().flat_map(|community| community.0);
        self.list(has::LARGE_COMMUNITIES, &parts.collect::<Vec<_>>(), |part| part.to_be_bytes());
        self.list(has::CLUSTER_LIST, &attributes.cluster_list, |cluster| cluster.octets());
        if !attributes.unknown.is_empty() {
            self.has |= has::UNKNOWN;
            self.number(attributes.unknown.len());
            for RawAttribute { kind, value } in &attributes.unknown {
                self.octets.push(*kind);
                self.number(value.len());
                self.octets.extend_from_slice(value);
            }
        }
    }

    fn one<const N: usize>(&mut self, bit: u16, octets: Option<[u8; N]>) {
        if let Some(octets) = octets {
            self.has |= bit;
            self.octets.extend(octets);
        }
    }

    fn list<T, const N: usize>(&mut self, bit: u16, list: &[T], octets: impl Fn(&T) -> [u8; N]) {
        if !list.is_empty() {
            self.has |= bit;
            self.number(list.len());
            list.iter().for_each(|one| self.octets.extend(octets(one)));
        }
    }

    /// A count: seven bits in each octet, the low ones first, and another octet if the eighth is set.
    #[expect(clippy::cast_possible_truncation, reason = "seven bits")]
    fn number(&mut self, mut number: usize) {
        while number > 0x7f {
            self.octets.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.octets.push(number as u8);
    }
}

fn read(has: u16, reader: &mut Reader<'_>) -> Option<PathAttributes> {
    let next_hop = next_hop(has, reader)?;
    let origin = match reader.u8()? {
        0 => Origin::Igp,
        1 => Origin::Egp,
        _ => Origin::Incomplete,
    };
    let partial = Partial(reader.u8()?);
    let mut attributes = PathAttributes::new(origin, as_path(reader)?, next_hop);
    attributes.partial = partial;
    let there = |bit: u16| has & bit != 0;
    if there(has::LINK_LOCAL) {
        attributes.link_local = Some(Ipv6Addr::from(reader.array::<16>()?));
    }
    if there(has::MED) {
        attributes.med = Some(reader.u32()?);
    }
    if there(has::LOCAL_PREF) {
        attributes.local_pref = Some(reader.u32()?);
    }
    attributes.atomic_aggregate = there(has::ATOMIC_AGGREGATE);
    if there(has::AGGREGATOR) {
        let asn = Asn::new(reader.u32()?).ok()?;
        let address = Ipv4Addr::from_bits(reader.u32()?);
        attributes.aggregator = Some(Aggregator { asn, address });
    }
    if there(has::ORIGINATOR_ID) {
        attributes.originator_id = Some(Ipv4Addr::from_bits(reader.u32()?));
    }
    if there(has::AIGP) {
        attributes.aigp = Some(u64::from_be_bytes(reader.array()?));
    }
    if there(has::ONLY_TO_CUSTOMER) {
        attributes.only_to_customer = Some(reader.u32()?);
    }
    if there(has::COMMUNITIES) {
        attributes.communities = list(reader, |reader| reader.u32().map(Community))?;
    }
    if there(has::EXTENDED_COMMUNITIES) {
        attributes.extended_communities = list(reader, Reader::array)?;
    }
    if there(has::LARGE_COMMUNITIES) {
        let parts = list(reader, Reader::u32)?;
        let (all, _) = parts.as_chunks();
        attributes.large_communities = all.iter().copied().map(LargeCommunity).collect();
    }
    if there(has::CLUSTER_LIST) {
        attributes.cluster_list = list(reader, |reader| reader.u32().map(Ipv4Addr::from_bits))?;
    }
    if there(has::UNKNOWN) {
        attributes.unknown = list(reader, |reader| {
            let kind = reader.u8()?;
            let length = number(reader)?;
            Some(RawAttribute { kind, value: reader.take(length)?.to_vec() })
        })?;
    }
    Some(attributes)
}

fn next_hop(has: u16, reader: &mut Reader<'_>) -> Option<IpAddr> {
    match has & has::NEXT_HOP_V6 {
        0 => reader.u32().map(|bits| Ipv4Addr::from_bits(bits).into()),
        _ => reader.array::<16>().map(IpAddr::from),
    }
}

fn as_path(reader: &mut Reader<'_>) -> Option<AsPath> {
    let segment = |reader: &mut Reader<'_>| {
        let kind = reader.u8()?;
        let asns = list(reader, |reader| Asn::new(reader.u32()?).ok())?;
        Some(if kind == SET { Segment::Set(asns) } else { Segment::Sequence(asns) })
    };
    Some(AsPath::new(list(reader, segment)?))
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    one: impl Fn(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = number(reader)?;
    let mut all = Vec::with_capacity(count.min(reader.remaining()));
    for _ in 0..count {
        all.push(one(reader)?);
    }
    Some(all)
}

fn number(reader: &mut Reader<'_>) -> Option<usize> {
    let (mut number, mut shift) = (0, 0_u32);
    loop {
        let octet = reader.u8()?;
        number |= usize::from(octet & 0x7f).checked_shl(shift)?;
        if octet & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn asn() -> impl Strategy<Value = Asn> {
        (1..=u32::MAX).prop_map(|number| Asn::new(number).unwrap())
    }

    fn as_path() -> impl Strategy<Value = AsPath> {
        let segment = (any::<bool>(), vec(asn(), 1..300)).prop_map(|(set, asns)| match set {
            true => Segment::Set(asns),
            false => Segment::Sequence(asns),
        });
        vec(segment, 0..4).prop_map(AsPath::new)
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    prop_compose! {
        fn attributes()(
            (origin, as_path, next_hop) in
                (prop::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]), as_path(), address()),
            (link_local, med, local_pref, atomic_aggregate) in
                (any::<Option<u128>>(), any::<Option<u32>>(), any::<Option<u32>>(), any::<bool>()),
            (aggregator, originator_id, aigp, only_to_customer) in
                (option::of((asn(), any::<u32>())), any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<u32>>()),
            (communities, extended, large, cluster_list) in
                (vec(any::<u32>(), 0..4), vec(any::<[u8; 8]>(), 0..3), vec(any::<[u32; 3]>(), 0..3), vec(any::<u32>(), 0..200)),
            (partial, unknown) in (any::<u8>(), vec((any::<u8>(), vec(any::<u8>(), 0..300)), 0..3)),
        ) -> PathAttributes {
            PathAttributes {
                link_local: link_local.map(Ipv6Addr::from_bits),
                med,
                local_pref,
                atomic_aggregate,
                aggregator: aggregator.map(|(asn, bits)| Aggregator { asn, address: Ipv4Addr::from_bits(bits) }),
                originator_id: originator_id.map(Ipv4Addr::from_bits),
                aigp,
                only_to_customer,
                communities: communities.into_iter().map(Community).collect(),
                extended_communities: extended,
                large_communities: large.into_iter().map(LargeCommunity).collect(),
                cluster_list: cluster_list.into_iter().map(Ipv4Addr::from_bits).collect(),
                partial: Partial(partial),
                unknown: unknown.into_iter().map(|(kind, value)| RawAttribute { kind, value }).collect(),
                ..PathAttributes::new(origin, as_path, next_hop)
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(attributes in attributes(), other in attributes()) {
            let packed = Packed::new(&attributes);
            prop_assert_eq!(packed.next_hop(), Some(attributes.next_hop));
            prop_assert_eq!(packed == Packed::new(&other), attributes == other);
            prop_assert_eq!(&packed, &Packed::new(&attributes.clone()));
            prop_assert_eq!(packed.unpack(), Some(attributes));
        }
    }

    #[test]
    fn most_are_short() {
        let path = AsPath::sequence([64513, 100_000].map(|number| Asn::new(number).unwrap()));
        let mut attributes = PathAttributes::new(Origin::Igp, path, IpAddr::from([192, 0, 2, 1]));
        attributes.local_pref = Some(100);
        assert_eq!(Packed::new(&attributes).length(), 23);
    }
}
