use std::net::IpAddr;

use super::{
    Session,
    as_path::two_octets,
    attributes::{Aggregator, Origin, PathAttributes, RawAttribute, flag, kind},
};

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;

/// A list of attributes, by ascending type code (RFC 4271 appendix F.3).
struct List<'a> {
    octets: Vec<u8>,
    attributes: &'a PathAttributes,
    /// Those not written yet.
    unknown: &'a [RawAttribute],
}

impl List<'_> {
    fn push(&mut self, flags: u8, kind: u8, value: &[u8]) {
        self.unknown_before(kind);
        let partial = if self.attributes.partial.contains(kind) { flag::PARTIAL } else { 0 };
        write(flags | partial, kind, value, &mut self.octets);
    }

    /// Unknown ones have their places among the known ones.
    fn unknown_before(&mut self, kind: u8) {
        while let Some((first, rest)) = self.unknown.split_first()
            && first.kind < kind
        {
            let flags = OPTIONAL_TRANSITIVE | flag::PARTIAL;
            write(flags, first.kind, &first.value, &mut self.octets);
            self.unknown = rest;
        }
    }

    fn push_list<T, const N: usize>(
        &mut self,
        flags: u8,
        kind: u8,
        all: &[T],
        of: fn(&T) -> [u8; N],
    ) {
        if !all.is_empty() {
            let value: Vec<u8> = all.iter().flat_map(of).collect();
            self.push(flags, kind, &value);
        }
    }
}

fn write(flags: u8, kind: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, kind, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | flag::EXTENDED, kind]);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Everything but MP_REACH_NLRI.
pub(super) fn encode_attributes(
    attributes: &PathAttributes,
    session: &Session,
    classic: bool,
) -> Vec<u8> {
    let mut list = List { octets: Vec::new(), attributes, unknown: &attributes.unknown };
    list.push(WELL_KNOWN, kind::ORIGIN, &[origin(attributes.origin)]);
    let mut path = Vec::new();
    attributes.as_path.encode(session.four_octet_as, &mut path);
    list.push(WELL_KNOWN, kind::AS_PATH, &path);
    if let (true, IpAddr::V4(next_hop)) = (classic, attributes.next_hop) {
        list.push(WELL_KNOWN, kind::NEXT_HOP, &next_hop.octets());
    }
    if let Some(med) = attributes.med {
        list.push(flag::OPTIONAL, kind::MED, &med.to_be_bytes());
    }
    if let (Some(preference), true) = (attributes.local_pref, session.internal) {
        list.push(WELL_KNOWN, kind::LOCAL_PREF, &preference.to_be_bytes());
    }
    if attributes.atomic_aggregate {
        list.push(WELL_KNOWN, kind::ATOMIC_AGGREGATE, &[]);
    }
    if let Some(aggregator) = attributes.aggregator {
        let value = aggregator_octets(aggregator, session.four_octet_as);
        list.push(OPTIONAL_TRANSITIVE, kind::AGGREGATOR, &value);
    }
    let communities = &attributes.communities;
    list.push_list(OPTIONAL_TRANSITIVE, kind::COMMUNITIES, communities, |c| c.0.to_be_bytes());
    if session.internal {
        if let Some(originator) = attributes.originator_id {
            list.push(flag::OPTIONAL, kind::ORIGINATOR_ID, &originator.octets());
        }
        let clusters = &attributes.cluster_list;
        list.push_list(flag::OPTIONAL, kind::CLUSTER_LIST, clusters, |id| id.octets());
    }
    let extended = &attributes.extended_communities;
    list.push_list(OPTIONAL_TRANSITIVE, kind::EXTENDED_COMMUNITIES, extended, |c| *c);
    if !session.four_octet_as {
        push_as4(&mut list);
    }
    if let (Some(metric), true) = (attributes.aigp, session.aigp) {
        // RFC 7311 section 3: type 1, 11 octets in all.
        let mut value = vec![1, 0, 11];
        value.extend_from_slice(&metric.to_be_bytes());
        list.push(flag::OPTIONAL, kind::AIGP, &value);
    }
    let large: Vec<u32> = attributes.large_communities.iter().flat_map(|c| c.0).collect();
    list.push_list(OPTIONAL_TRANSITIVE, kind::LARGE_COMMUNITIES, &large, |n| n.to_be_bytes());
    if let Some(asn) = attributes.only_to_customer {
        list.push(OPTIONAL_TRANSITIVE, kind::ONLY_TO_CUSTOMER, &asn.to_be_bytes());
    }
    list.unknown_before(u8::MAX);
    // Type code 255, which has nothing behind it.
    if let Some(last) = list.unknown.first() {
        write(OPTIONAL_TRANSITIVE | flag::PARTIAL, last.kind, &last.value, &mut list.octets);
    }
    list.octets
}

const fn origin(origin: Origin) -> u8 {
    match origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    }
}

fn aggregator_octets(aggregator: Aggregator, four_octet: bool) -> Vec<u8> {
    let mut value = if four_octet {
        aggregator.asn.get().to_be_bytes().to_vec()
    } else {
        two_octets(aggregator.asn).to_be_bytes().to_vec()
    };
    value.extend_from_slice(&aggregator.address.octets());
    value
}

/// What an old peer cannot see in two octets (RFC 6793 section 4.2.2).
fn push_as4(list: &mut List<'_>) {
    let attributes = list.attributes;
    if attributes.as_path.needs_as4() {
        let mut value = Vec::new();
        attributes.as_path.encode(true, &mut value);
        list.push(OPTIONAL_TRANSITIVE, kind::AS4_PATH, &value);
    }
    if let Some(aggregator) = attributes.aggregator
        && u16::try_from(aggregator.asn.get()).is_err()
    {
        let value = aggregator_octets(aggregator, true);
        list.push(OPTIONAL_TRANSITIVE, kind::AS4_AGGREGATOR, &value);
    }
}
