use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Asn, Family, Prefix};

use super::{
    Session,
    as_path::AsPath,
    attributes::{
        Aggregator, Community, LargeCommunity, Origin, PathAttributes, RawAttribute, flag, kind,
    },
    family_of, nlri,
    notification::{Notification, code, update_error},
    reader::Reader,
};

/// What RFC 7606 wants done about an error that does not end the session (section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    /// The attribute is ignored, the routes are used.
    AttributeDiscard,
    /// The routes are handled as if the peer had withdrawn them.
    TreatAsWithdraw,
}

/// An error in an UPDATE, for the log and the counters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute {attribute}: {text}")]
pub struct Fault {
    /// Type code of the attribute.
    pub attribute: u8,
    /// What was done.
    pub disposition: Disposition,
    /// What was wrong.
    pub text: &'static str,
}

/// What an UPDATE says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateIn {
    /// Withdrawn routes of both families, those included that are treated so.
    pub withdrawn: Vec<Prefix>,
    /// New routes: at most one group from the NLRI field and one from MP_REACH_NLRI.
    pub announced: Vec<(PathAttributes, Vec<Prefix>)>,
    /// The initial exchange of this family is over (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What was wrong with it.
    pub faults: Vec<Fault>,
}

/// Reads the body of an UPDATE.
///
/// # Errors
/// The NOTIFICATION of RFC 4271 section 6.3 with which the session has to end, where RFC 7606
/// leaves nothing milder.
pub fn decode_update(body: &[u8], session: &Session) -> Result<UpdateIn, Notification> {
    let bad_lists = || Notification::new(code::UPDATE, update_error::ATTRIBUTE_LIST);
    let bad_field = || Notification::new(code::UPDATE, update_error::NETWORK_FIELD);
    let mut reader = Reader::new(body);
    let withdrawn = reader.long_field().ok_or_else(bad_lists)?;
    let attributes = reader.long_field().ok_or_else(bad_lists)?;
    let announced = reader.rest();

    let mut collected = Collected::new(session);
    collected.attributes(attributes)?;
    let withdrawn = nlri::decode(withdrawn, Family::V4).ok_or_else(bad_field)?;
    let announced = nlri::decode(announced, Family::V4).ok_or_else(bad_field)?;
    collected.finish(attributes.is_empty(), withdrawn, announced)
}

/// A route group of MP_REACH_NLRI.
struct MpReach {
    next_hop: IpAddr,
    prefixes: Vec<Prefix>,
}

/// The attributes of one UPDATE while they are read.
struct Collected<'a> {
    session: &'a Session,
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
    next_hop: Option<IpAddr>,
    mp_reach: Option<MpReach>,
    mp_unreach: Option<(Option<Family>, Vec<Prefix>)>,
    /// Everything else; what is mandatory is filled in at the end.
    rest: PathAttributes,
    /// A bit for each type code seen.
    seen: [u64; 4],
    faults: Vec<Fault>,
}

/// The outcome of reading one attribute.
type Read = Result<(), Bad>;

/// Why an attribute is not used.
enum Bad {
    Withdraw(&'static str),
    Discard(&'static str),
    Reset(Notification),
}

impl<'a> Collected<'a> {
    fn new(session: &'a Session) -> Self {
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
            rest: PathAttributes::new(Origin::Igp, AsPath::default(), unset),
            seen: [0; 4],
            faults: Vec::new(),
        }
    }

    fn attributes(&mut self, bytes: &[u8]) -> Result<(), Notification> {
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
                return Ok(());
            };
            let octets = whole.get(..whole.len() - reader.remaining()).unwrap_or_default();
            match self.attribute(flags, kind, value, octets) {
                Ok(()) => {}
                Err(Bad::Withdraw(text)) => self.fault(kind, Disposition::TreatAsWithdraw, text),
                Err(Bad::Discard(text)) => self.fault(kind, Disposition::AttributeDiscard, text),
                Err(Bad::Reset(notification)) => return Err(notification),
            }
        }
        Ok(())
    }

    fn fault(&mut self, attribute: u8, disposition: Disposition, text: &'static str) {
        self.faults.push(Fault { attribute, disposition, text });
    }

    /// Notes a type code; false if it was there before.
    fn first(&mut self, kind: u8) -> bool {
        let bit = 1u64 << (kind % 64);
        let Some(word) = self.seen.get_mut(usize::from(kind / 64)) else {
            return true;
        };
        let first = *word & bit == 0;
        *word |= bit;
        first
    }

    fn attribute(&mut self, flags: u8, kind: u8, value: &[u8], octets: &[u8]) -> Read {
        if !self.first(kind) {
            // RFC 7606 section 3 g.
            return match kind {
                kind::MP_REACH | kind::MP_UNREACH => {
                    Err(Bad::Reset(Notification::new(code::UPDATE, update_error::ATTRIBUTE_LIST)))
                }
                _ => Err(Bad::Discard("it is there twice; the first one is used")),
            };
        }
        if let Some(expected) = expected_flags(kind)
            && flags & (flag::OPTIONAL | flag::TRANSITIVE) != expected
        {
            // RFC 7606 section 3 c.
            return Err(Bad::Withdraw("its flags are wrong"));
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
            _ => self.unknown(flags, kind, value, octets),
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

    /// RFC 7606 section 7.2.
    fn as_path(&mut self, value: &[u8]) -> Read {
        let path = AsPath::decode(value, self.session.four_octet_as);
        self.as_path = Some(path.ok_or(Bad::Withdraw("the path is malformed"))?);
        Ok(())
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
        let mut all: Vec<_> = parts.iter().map(|c| Community(u32::from_be_bytes(*c))).collect();
        all.sort_unstable();
        all.dedup();
        self.rest.communities = all;
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
        let mut all = exact_chunks::<8>(value)?.to_vec();
        all.sort_unstable();
        all.dedup();
        self.rest.extended_communities = all;
        Ok(())
    }

    /// RFC 8092 sections 5 and 6.
    fn large_communities(&mut self, value: &[u8]) -> Read {
        let mut all: Vec<_> = exact_chunks::<12>(value)?
            .iter()
            .map(|octets| {
                let (parts, _) = octets.as_chunks::<4>();
                let part = |n: usize| parts.get(n).map_or(0, |p| u32::from_be_bytes(*p));
                LargeCommunity([part(0), part(1), part(2)])
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        self.rest.large_communities = all;
        Ok(())
    }

    /// RFC 6793 sections 4.1 and 6.
    fn as4(&mut self, kind: u8, value: &[u8]) -> Read {
        if self.session.four_octet_as {
            return Err(Bad::Discard("it does not belong on a session with four-octet numbers"));
        }
        if kind == kind::AS4_PATH {
            let path = AsPath::decode_as4(value);
            self.as4_path = Some(path.ok_or(Bad::Discard("the path is malformed"))?);
        } else {
            let mut reader = Reader::new(value);
            let asn = reader.u32();
            self.as4_aggregator = Some(aggregator_of(asn, reader)?);
        }
        Ok(())
    }

    /// RFC 4760 section 3, RFC 8950 section 3; errors by RFC 7606 section 7.11.
    fn mp_reach(&mut self, value: &[u8]) -> Read {
        let reset = || Bad::Reset(Notification::new(code::UPDATE, update_error::OPTIONAL));
        let mut reader = Reader::new(value);
        let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else {
            return Err(reset());
        };
        let next_hop = reader.short_field().ok_or_else(reset)?;
        // RFC 4760 section 3: one reserved octet, ignored.
        reader.u8().ok_or_else(reset)?;
        let Some(family) = family_of(afi, safi).filter(|family| self.session.has(*family)) else {
            return Err(Bad::Discard("its family was not negotiated"));
        };
        let next_hop = self.mp_next_hop(family, next_hop).ok_or_else(reset)?;
        let prefixes = nlri::decode(reader.rest(), family).ok_or_else(reset)?;
        let usable = is_unicast(next_hop);
        self.mp_reach = Some(MpReach { next_hop, prefixes });
        if usable { Ok(()) } else { Err(Bad::Withdraw("its next hop is no unicast address")) }
    }

    /// The global next hop; a link-local one behind it is not needed where sessions have
    /// addresses (RFC 2545 section 3).
    fn mp_next_hop(&self, family: Family, bytes: &[u8]) -> Option<IpAddr> {
        let mut reader = Reader::new(bytes);
        match (family, bytes.len()) {
            (Family::V4, 4) => Some(Ipv4Addr::from_bits(reader.u32()?).into()),
            (Family::V4, 16 | 32) if self.session.extended_next_hop => {
                Some(Ipv6Addr::from(reader.array::<16>()?).into())
            }
            (Family::V6, 16 | 32) => Some(Ipv6Addr::from(reader.array::<16>()?).into()),
            _ => None,
        }
    }

    /// RFC 4760 section 4.
    fn mp_unreach(&mut self, value: &[u8]) -> Read {
        let reset = || Bad::Reset(Notification::new(code::UPDATE, update_error::OPTIONAL));
        let mut reader = Reader::new(value);
        let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else {
            return Err(reset());
        };
        let Some(family) = family_of(afi, safi).filter(|family| self.session.has(*family)) else {
            self.mp_unreach = Some((None, Vec::new()));
            return Err(Bad::Discard("its family was not negotiated"));
        };
        let prefixes = nlri::decode(reader.rest(), family).ok_or_else(reset)?;
        self.mp_unreach = Some((Some(family), prefixes));
        Ok(())
    }

    fn unknown(&mut self, flags: u8, kind: u8, value: &[u8], octets: &[u8]) -> Read {
        if flags & flag::OPTIONAL == 0 {
            // RFC 4271 section 6.3; RFC 7606 leaves it as it is. The data is the attribute.
            return Err(Bad::Reset(
                Notification::new(code::UPDATE, update_error::UNRECOGNIZED).with_data(octets),
            ));
        }
        // RFC 4271 section 5: passed on with Partial set, or quietly ignored.
        if flags & flag::TRANSITIVE != 0 {
            let flags = flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL;
            self.rest.unknown.push(RawAttribute { kind, flags, value: value.to_vec() });
        }
        Ok(())
    }

    fn finish(
        mut self,
        no_attributes: bool,
        mut withdrawn: Vec<Prefix>,
        announced: Vec<Prefix>,
    ) -> Result<UpdateIn, Notification> {
        let only_mp_unreach = self.seen == [1 << kind::MP_UNREACH, 0, 0, 0];
        let end_of_rib = match &self.mp_unreach {
            _ if !withdrawn.is_empty() || !announced.is_empty() => None,
            None => no_attributes.then_some(Family::V4),
            Some((family, prefixes)) if only_mp_unreach && prefixes.is_empty() => *family,
            Some(_) => None,
        };
        withdrawn.extend(self.mp_unreach.take().into_iter().flat_map(|(_, prefixes)| prefixes));

        let mp = self.mp_reach.take();
        let has_routes = !announced.is_empty() || mp.is_some();
        if has_routes {
            self.require(!announced.is_empty());
        }
        let treat_as_withdraw =
            self.faults.iter().any(|fault| fault.disposition == Disposition::TreatAsWithdraw);
        if treat_as_withdraw && !has_routes {
            // RFC 7606 section 5.2: there is nothing to withdraw in the place of what is lost.
            return Err(Notification::new(code::UPDATE, update_error::ATTRIBUTE_LIST));
        }
        let mut groups = Vec::new();
        if treat_as_withdraw {
            withdrawn.extend(announced);
            withdrawn.extend(mp.into_iter().flat_map(|mp| mp.prefixes));
        } else if has_routes {
            let next_hop = self.next_hop;
            let faults = std::mem::take(&mut self.faults);
            let attributes = self.merged();
            if let Some(MpReach { next_hop, prefixes }) = mp
                && !prefixes.is_empty()
            {
                groups.push((PathAttributes { next_hop, ..attributes.clone() }, prefixes));
            }
            if let Some(next_hop) = next_hop
                && !announced.is_empty()
            {
                groups.push((PathAttributes { next_hop, ..attributes }, announced));
            }
            return Ok(UpdateIn { withdrawn, announced: groups, end_of_rib, faults });
        }
        Ok(UpdateIn { withdrawn, announced: groups, end_of_rib, faults: self.faults })
    }

    /// RFC 7606 section 3 d: a missing mandatory attribute withdraws.
    fn require(&mut self, classic: bool) {
        let missing = "it is missing";
        let broken = |faults: &[Fault], kind| faults.iter().any(|f| f.attribute == kind);
        if self.origin.is_none() && !broken(&self.faults, kind::ORIGIN) {
            self.fault(kind::ORIGIN, Disposition::TreatAsWithdraw, missing);
        }
        if self.as_path.is_none() && !broken(&self.faults, kind::AS_PATH) {
            self.fault(kind::AS_PATH, Disposition::TreatAsWithdraw, missing);
        }
        if classic && self.next_hop.is_none() && !broken(&self.faults, kind::NEXT_HOP) {
            self.fault(kind::NEXT_HOP, Disposition::TreatAsWithdraw, missing);
        }
    }

    /// The attributes as a four-octet session would have shown them (RFC 6793 section 4.2.3).
    fn merged(self) -> PathAttributes {
        let mut attributes = self.rest;
        attributes.origin = self.origin.unwrap_or_default();
        attributes.as_path = self.as_path.unwrap_or_default();
        let hidden = attributes.aggregator.is_some_and(|a| a.asn == Asn::TRANS);
        let aggregator_was_new = attributes.aggregator.is_some() && !hidden;
        if let (true, Some(as4)) = (hidden, self.as4_aggregator) {
            attributes.aggregator = Some(as4);
        }
        // An AGGREGATOR with a number of its own says that an old speaker aggregated since: the
        // AS4_PATH is out of date.
        let stale = aggregator_was_new && self.as4_aggregator.is_some();
        if let (false, Some(as4)) = (stale, self.as4_path) {
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
        | kind::MP_UNREACH => Some(flag::OPTIONAL),
        kind::AGGREGATOR
        | kind::COMMUNITIES
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::AS4_AGGREGATOR
        | kind::LARGE_COMMUNITIES => Some(flag::OPTIONAL | flag::TRANSITIVE),
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
