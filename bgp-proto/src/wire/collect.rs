//! The attributes of one UPDATE, one after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Asn, Family};

use super::{
    Session,
    as_path::AsPath,
    attributes::{
        Aggregator, Community, LargeCommunity, Origin, PathAttributes, RawAttribute, flag, kind,
    },
    decode::attribute_list,
    fault::{Disposition, Fault, Reset},
    nlri::Routes,
    notification::{Notification, code, update_error},
    reader::Reader,
};

/// The routes of MP_REACH_NLRI.
pub(super) struct MpReach {
    pub(super) next_hop: IpAddr,
    pub(super) link_local: Option<Ipv6Addr>,
    pub(super) routes: Routes,
}

/// The attributes of one UPDATE while they are read.
pub(super) struct Collected<'a> {
    pub(super) session: &'a Session,
    pub(super) origin: Option<Origin>,
    pub(super) as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    pub(super) next_hop: Option<IpAddr>,
    pub(super) mp_reach: Option<MpReach>,
    pub(super) mp_unreach: Option<(Option<Family>, Routes)>,
    /// There are routes of a family that was not negotiated.
    pub(super) skipped: bool,
    /// Everything else; what is mandatory is filled in at the end.
    rest: PathAttributes,
    seen: Kinds,
    repeated: Kinds,
    pub(super) faults: Vec<Fault>,
}

/// A set of type codes.
#[derive(Default, PartialEq)]
struct Kinds([u64; 4]);

impl Kinds {
    /// Adds a type code; false if it was there before.
    fn insert(&mut self, kind: u8) -> bool {
        let bit = 1u64 << (kind % 64);
        let Some(word) = self.0.get_mut(usize::from(kind / 64)) else {
            return false;
        };
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}

/// The outcome of reading one attribute.
type Read = Result<(), Bad>;

/// Why an attribute is not used.
enum Bad {
    Withdraw(&'static str),
    Discard(&'static str),
    Disable(&'static str),
    /// The list as a whole is malformed.
    Reset(&'static str),
    /// This subcode, with the attribute as the data (RFC 4271 section 6.3).
    ResetWithData(u8, &'static str),
}

/// An attribute as it stands in the list.
#[derive(Clone, Copy)]
struct Raw<'a> {
    flags: u8,
    kind: u8,
    value: &'a [u8],
}

impl<'a> Collected<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        let unset = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            session,
            origin: None,
            as_path: None,
            as4_path: None,
            as4_aggregator: None,
            next_hop: None,
            mp_reach: None,
            mp_unreach: None,
            skipped: false,
            rest: PathAttributes::new(Origin::Igp, AsPath::default(), unset),
            seen: Kinds::default(),
            repeated: Kinds::default(),
            faults: Vec::new(),
        }
    }

    /// Reads the whole list. An error does not end it: a later one may be stronger (RFC 7606
    /// section 3 h).
    pub(super) fn attributes(&mut self, bytes: &[u8]) -> Result<(), Reset> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let whole = reader.rest();
            let (Some(flags), Some(kind)) = (reader.u8(), reader.u8()) else {
                self.fault(0, Disposition::TreatAsWithdraw, "the list ends inside an attribute");
                return Ok(());
            };
            let value = if flags & flag::EXTENDED != 0 {
                reader.long_field()
            } else {
                reader.short_field()
            };
            // RFC 7606 section 4: the routes are still found, by the total length.
            let Some(value) = value else {
                self.fault(kind, Disposition::TreatAsWithdraw, "it runs past the attribute list");
                return self.overrun(kind);
            };
            let octets = whole.get(..whole.len() - reader.remaining()).unwrap_or_default();
            match self.attribute(Raw { flags, kind, value }) {
                Ok(()) => {}
                Err(Bad::Withdraw(text)) => self.fault(kind, Disposition::TreatAsWithdraw, text),
                Err(Bad::Discard(text)) => self.fault(kind, Disposition::AttributeDiscard, text),
                Err(Bad::Disable(text)) => self.fault(kind, Disposition::AfiSafiDisable, text),
                Err(Bad::Reset(text)) => return Err(attribute_list(kind, text)),
                Err(Bad::ResetWithData(subcode, text)) => {
                    let notification = Notification::new(code::UPDATE, subcode).with_data(octets);
                    return Err(Reset::new(kind, text, notification));
                }
            }
        }
        Ok(())
    }

    /// RFC 7606 section 3 j: the routes in it are lost, so there is nothing to withdraw.
    fn overrun(&self, kind: u8) -> Result<(), Reset> {
        match kind {
            kind::MP_REACH | kind::MP_UNREACH => {
                Err(attribute_list(kind, "it runs past the attribute list"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn fault(&mut self, attribute: u8, disposition: Disposition, text: &'static str) {
        self.faults.push(Fault { attribute, disposition, text });
    }

    /// Whether MP_UNREACH_NLRI is all there is, as in an End-of-RIB.
    pub(super) fn only_mp_unreach(&self) -> bool {
        self.seen == Kinds([1 << kind::MP_UNREACH, 0, 0, 0])
    }

    fn attribute(&mut self, raw: Raw<'_>) -> Read {
        let Raw { flags, kind, value } = raw;
        if !self.seen.insert(kind) {
            return self.again(kind);
        }
        if let Some(expected) = expected_flags(kind)
            && flags & (flag::OPTIONAL | flag::TRANSITIVE) != expected
        {
            return Err(self.bad_flags(kind));
        }
        if flags & flag::PARTIAL != 0 {
            self.rest.partial.insert(kind);
        }
        match kind {
            kind::ORIGIN => self.origin(value),
            kind::AS_PATH => self.as_path(value),
            kind::NEXT_HOP => self.next_hop(value),
            kind::MED => {
                self.rest.med = Some(u32_of(value)?);
                Ok(())
            }
            kind::LOCAL_PREF => self.local_pref(value),
            kind::ATOMIC_AGGREGATE => self.atomic_aggregate(value),
            kind::AGGREGATOR => self.aggregator(value),
            kind::COMMUNITIES => self.communities(value),
            kind::ORIGINATOR_ID | kind::CLUSTER_LIST => self.reflection(kind, value),
            kind::MP_REACH => self.mp_reach(value),
            kind::MP_UNREACH => self.mp_unreach(value),
            kind::EXTENDED_COMMUNITIES => self.extended_communities(value),
            kind::LARGE_COMMUNITIES => self.large_communities(value),
            kind::AS4_PATH | kind::AS4_AGGREGATOR => self.as4(kind, value),
            kind::AIGP => self.aigp(value),
            kind::ONLY_TO_CUSTOMER => {
                // RFC 9234 section 5.
                self.rest.only_to_customer = Some(u32_of(value)?);
                Ok(())
            }
            _ => self.unknown(raw),
        }
    }

    /// RFC 7606 section 3 g. Noted once for each type code, so that no message makes more notes
    /// than there are codes.
    fn again(&mut self, kind: u8) -> Read {
        match kind {
            kind::MP_REACH | kind::MP_UNREACH => Err(Bad::Reset("it is there twice")),
            _ if self.repeated.insert(kind) => {
                Err(Bad::Discard("it is there twice; the first one is used"))
            }
            _ => Ok(()),
        }
    }

    fn bad_flags(&self, kind: u8) -> Bad {
        let text = "its flags are wrong";
        match kind {
            // RFC 7606 section 5.3: the routes in it are not to be trusted.
            kind::MP_REACH | kind::MP_UNREACH => Bad::ResetWithData(update_error::FLAGS, text),
            // RFC 7311 section 3.
            kind::AIGP => Bad::Discard(text),
            // What has no place on the session is not looked at.
            kind::AS4_PATH | kind::AS4_AGGREGATOR if self.session.four_octet_as => {
                Bad::Discard(text)
            }
            // RFC 7606 section 3 c.
            _ => Bad::Withdraw(text),
        }
    }

    /// RFC 7606 section 7.1.
    fn origin(&mut self, value: &[u8]) -> Read {
        self.origin = Some(match value {
            [0] => Origin::Igp,
            [1] => Origin::Egp,
            [2] => Origin::Incomplete,
            _ => return Err(Bad::Withdraw("it is none of IGP, EGP and INCOMPLETE")),
        });
        Ok(())
    }

    /// RFC 7606 section 7.2; sets by RFC 9774 section 3.
    fn as_path(&mut self, value: &[u8]) -> Read {
        let path = AsPath::decode(value, self.session.four_octet_as);
        let path = path.ok_or(Bad::Withdraw("the path is malformed"))?;
        let refused = path.has_set() && !self.session.as_sets;
        self.as_path = Some(path);
        if refused { Err(Bad::Withdraw("the path has an AS_SET")) } else { Ok(()) }
    }

    /// RFC 7606 section 7.3; what is no unicast address is of no use (RFC 4271 section 6.3).
    fn next_hop(&mut self, value: &[u8]) -> Read {
        let address = Ipv4Addr::from_bits(u32_of(value)?);
        if !is_unicast(address.into()) {
            return Err(Bad::Withdraw("it is no unicast address"));
        }
        self.next_hop = Some(address.into());
        Ok(())
    }

    /// RFC 7606 section 7.5.
    fn local_pref(&mut self, value: &[u8]) -> Read {
        if !self.session.internal {
            return Err(Bad::Discard("it does not belong on an external session"));
        }
        self.rest.local_pref = Some(u32_of(value)?);
        Ok(())
    }

    /// RFC 7606 section 7.6.
    fn atomic_aggregate(&mut self, value: &[u8]) -> Read {
        if !value.is_empty() {
            return Err(Bad::Discard("its length is not 0"));
        }
        self.rest.atomic_aggregate = true;
        Ok(())
    }

    /// RFC 7606 section 7.7; AS 0 by RFC 7607 section 2.
    fn aggregator(&mut self, value: &[u8]) -> Read {
        let mut reader = Reader::new(value);
        let asn =
            if self.session.four_octet_as { reader.u32() } else { reader.u16().map(u32::from) };
        self.rest.aggregator = Some(aggregator_of(asn, reader)?);
        Ok(())
    }

    /// RFC 7606 section 7.8.
    fn communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<4>(value)?;
        self.rest.communities = sorted(parts.iter().map(|c| Community(u32::from_be_bytes(*c))));
        Ok(())
    }

    /// RFC 7606 sections 7.9 and 7.10.
    fn reflection(&mut self, kind: u8, value: &[u8]) -> Read {
        if !self.session.internal {
            return Err(Bad::Discard("it does not belong on an external session"));
        }
        if kind == kind::ORIGINATOR_ID {
            self.rest.originator_id = Some(Ipv4Addr::from_bits(u32_of(value)?));
        } else {
            let parts = exact_chunks::<4>(value)?;
            self.rest.cluster_list = parts.iter().map(|c| Ipv4Addr::from(*c)).collect();
        }
        Ok(())
    }

    /// RFC 7606 section 7.14.
    fn extended_communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<8>(value)?;
        self.rest.extended_communities = sorted(parts.iter().copied());
        Ok(())
    }

    /// RFC 8092 sections 5 and 6.
    fn large_communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<12>(value)?;
        self.rest.large_communities = sorted(parts.iter().map(|octets| {
            let (parts, _) = octets.as_chunks::<4>();
            let part = |n: usize| parts.get(n).map_or(0, |p| u32::from_be_bytes(*p));
            LargeCommunity([part(0), part(1), part(2)])
        }));
        Ok(())
    }

    /// RFC 6793 sections 4.1 and 6.
    fn as4(&mut self, kind: u8, value: &[u8]) -> Read {
        if self.session.four_octet_as {
            return Err(Bad::Discard("it does not belong on a session with four-octet numbers"));
        }
        if kind == kind::AS4_PATH {
            let path = AsPath::decode_as4(value);
            let path = path.ok_or(Bad::Discard("the path is malformed"))?;
            let refused = path.has_set() && !self.session.as_sets;
            self.as4_path = Some(path);
            if refused {
                // RFC 9774 section 3.
                return Err(Bad::Withdraw("the path has an AS_SET"));
            }
        } else {
            let mut reader = Reader::new(value);
            let asn = reader.u32();
            self.as4_aggregator = Some(aggregator_of(asn, reader)?);
        }
        Ok(())
    }

    /// RFC 7311 sections 3 and 3.2: without the configuration it is as unknown as any other
    /// attribute that is not transitive.
    fn aigp(&mut self, value: &[u8]) -> Read {
        const AIGP_TLV: u8 = 1;
        if !self.session.aigp {
            return Ok(());
        }
        let bad = || Bad::Discard("its TLVs are malformed");
        let mut reader = Reader::new(value);
        let mut metric = None;
        while !reader.is_empty() {
            let (kind, length) = reader.u8().zip(reader.u16()).ok_or_else(bad)?;
            // The length has its own three octets in it.
            let length = usize::from(length).checked_sub(3).ok_or_else(bad)?;
            let value = reader.take(length).ok_or_else(bad)?;
            if kind == AIGP_TLV && metric.is_none() {
                let octets = value.try_into().map_err(|_| bad())?;
                metric = Some(u64::from_be_bytes(octets));
            }
        }
        self.rest.aigp = metric;
        Ok(())
    }

    /// RFC 4760 section 3, RFC 8950 section 3; errors by RFC 7606 sections 5.3 and 7.11.
    fn mp_reach(&mut self, value: &[u8]) -> Read {
        let reset = |text| Bad::ResetWithData(update_error::OPTIONAL, text);
        let short = || reset("it is too short");
        let mut reader = Reader::new(value);
        let (afi, safi) = reader.u16().zip(reader.u8()).ok_or_else(short)?;
        let next_hop = reader.short_field().ok_or_else(short)?;
        // RFC 4760 section 3: one reserved octet, ignored.
        reader.u8().ok_or_else(short)?;
        let Some(family) = self.negotiated(afi, safi) else {
            self.skipped = true;
            return Err(Bad::Disable("its family was not negotiated"));
        };
        let (next_hop, link_local) = self
            .mp_next_hop(family, next_hop)
            .ok_or_else(|| reset("its next hop has a wrong length"))?;
        let with_id = self.session.add_path.receives(family);
        let routes = Routes::decode(reader.rest(), family, with_id)
            .ok_or_else(|| reset("a prefix is malformed"))?;
        let empty = routes.is_empty();
        self.mp_reach = Some(MpReach { next_hop, link_local, routes });
        // A next hop of no route is nobody's.
        if empty || is_unicast(next_hop) {
            Ok(())
        } else {
            Err(Bad::Withdraw("its next hop is no unicast address"))
        }
    }

    fn negotiated(&self, afi: u16, safi: u8) -> Option<Family> {
        super::family_of(afi, safi).filter(|family| self.session.has(*family))
    }

    /// The next hop and the link-local one behind it (RFC 2545 section 3). A peer without any
    /// global address fills its place with `::`, or with the link-local one once more.
    fn mp_next_hop(&self, family: Family, bytes: &[u8]) -> Option<(IpAddr, Option<Ipv6Addr>)> {
        let mut reader = Reader::new(bytes);
        match (family, bytes.len()) {
            (Family::V4, 4) => Some((Ipv4Addr::from_bits(reader.u32()?).into(), None)),
            (Family::V4, 16 | 32) if !self.session.extended_next_hop => None,
            (_, 16) => Some((Ipv6Addr::from(reader.array::<16>()?).into(), None)),
            (_, 32) => {
                let first = Ipv6Addr::from(reader.array::<16>()?);
                let second = Ipv6Addr::from(reader.array::<16>()?);
                let second = Some(second).filter(Ipv6Addr::is_unicast_link_local);
                match second {
                    Some(second) if first.is_unspecified() => Some((second.into(), None)),
                    second => Some((first.into(), second.filter(|second| *second != first))),
                }
            }
            _ => None,
        }
    }

    /// RFC 4760 section 4.
    fn mp_unreach(&mut self, value: &[u8]) -> Read {
        let reset = |text| Bad::ResetWithData(update_error::OPTIONAL, text);
        let mut reader = Reader::new(value);
        let (afi, safi) = reader.u16().zip(reader.u8()).ok_or_else(|| reset("it is too short"))?;
        let Some(family) = self.negotiated(afi, safi) else {
            self.mp_unreach = Some((None, Routes::default()));
            return Err(Bad::Disable("its family was not negotiated"));
        };
        let with_id = self.session.add_path.receives(family);
        let routes = Routes::decode(reader.rest(), family, with_id)
            .ok_or_else(|| reset("a prefix is malformed"))?;
        self.mp_unreach = Some((Some(family), routes));
        Ok(())
    }

    fn unknown(&mut self, raw: Raw<'_>) -> Read {
        if raw.flags & flag::OPTIONAL == 0 {
            // RFC 4271 section 6.3; RFC 7606 leaves it as it is.
            return Err(Bad::ResetWithData(
                update_error::UNRECOGNIZED,
                "it is well-known and unknown",
            ));
        }
        // RFC 4271 section 5: passed on with Partial set, or quietly ignored.
        if raw.flags & flag::TRANSITIVE != 0 {
            let kind = raw.kind;
            let place = self.rest.unknown.partition_point(|other| other.kind < kind);
            let attribute = RawAttribute { kind, value: raw.value.to_vec() };
            self.rest.unknown.insert(place, attribute);
        }
        Ok(())
    }

    /// The attributes as a four-octet session would have shown them (RFC 6793 section 4.2.3). To
    /// be called once.
    pub(super) fn merged(&mut self) -> PathAttributes {
        let unset = PathAttributes::new(Origin::Igp, AsPath::default(), self.rest.next_hop);
        let mut attributes = std::mem::replace(&mut self.rest, unset);
        attributes.origin = self.origin.unwrap_or_default();
        attributes.as_path = self.as_path.take().unwrap_or_default();
        let hidden = attributes.aggregator.is_some_and(|a| a.asn == Asn::TRANS);
        let aggregator_was_new = attributes.aggregator.is_some() && !hidden;
        if let (true, Some(as4)) = (hidden, self.as4_aggregator) {
            attributes.aggregator = Some(as4);
        }
        if attributes.aggregator.is_none() {
            attributes.partial.remove(kind::AGGREGATOR);
        }
        // An AGGREGATOR with a number of its own says that an old speaker aggregated since: the
        // AS4_PATH is out of date.
        let stale = aggregator_was_new && self.as4_aggregator.is_some();
        if let (false, Some(as4)) = (stale, self.as4_path.take()) {
            attributes.as_path = attributes.as_path.merged(&as4);
        }
        attributes
    }
}

/// The Optional and Transitive bits of the attributes that this codec knows.
const fn expected_flags(kind: u8) -> Option<u8> {
    match kind {
        kind::ORIGIN
        | kind::AS_PATH
        | kind::NEXT_HOP
        | kind::LOCAL_PREF
        | kind::ATOMIC_AGGREGATE => Some(flag::TRANSITIVE),
        kind::MED
        | kind::ORIGINATOR_ID
        | kind::CLUSTER_LIST
        | kind::MP_REACH
        | kind::MP_UNREACH
        | kind::AIGP => Some(flag::OPTIONAL),
        kind::AGGREGATOR
        | kind::COMMUNITIES
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::AS4_AGGREGATOR
        | kind::LARGE_COMMUNITIES
        | kind::ONLY_TO_CUSTOMER => Some(flag::OPTIONAL | flag::TRANSITIVE),
        _ => None,
    }
}

fn u32_of(value: &[u8]) -> Result<u32, Bad> {
    let octets = value.try_into().map_err(|_| Bad::Withdraw("its length is not 4"))?;
    Ok(u32::from_be_bytes(octets))
}

/// A non-empty list of `N` octets each.
fn exact_chunks<const N: usize>(value: &[u8]) -> Result<&[[u8; N]], Bad> {
    match value.as_chunks::<N>() {
        (chunks, []) if !chunks.is_empty() => Ok(chunks),
        _ => Err(Bad::Withdraw("its length is no multiple of an entry's")),
    }
}

/// Communities are a set (RFC 1997, RFC 4360 section 2, RFC 8092 section 3).
fn sorted<T: Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn aggregator_of(asn: Option<u32>, mut reader: Reader<'_>) -> Result<Aggregator, Bad> {
    let asn = asn.and_then(|asn| Asn::new(asn).ok());
    match (asn, reader.u32(), reader.is_empty()) {
        (Some(asn), Some(address), true) => {
            Ok(Aggregator { asn, address: Ipv4Addr::from_bits(address) })
        }
        _ => Err(Bad::Discard("its length or its AS is wrong")),
    }
}

/// Whether packets can be sent to it at all.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first != 0 && !v4.is_loopback() && first < 224
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}
