//! The attributes of one UPDATE, one after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Asn, Family};

use super::{
    Session,
    as_path::AsPath,
    attributes::{Aggregator, Origin, PathAttributes, RawAttribute, flag, kind},
    decode::attribute_list,
    fault::{Disposition, Fault, Reset},
    nlri::Routes,
    notification::{Notification, code, update_error},
    reader::Reader,
    values::u32_of,
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
    pub(super) as4_path: Option<AsPath>,
    pub(super) as4_aggregator: Option<Aggregator>,
    pub(super) next_hop: Option<IpAddr>,
    pub(super) mp_reach: Option<MpReach>,
    pub(super) mp_unreach: Option<(Option<Family>, Routes)>,
    /// There are routes of a family that was not negotiated.
    pub(super) skipped: bool,
    /// Everything else; what is mandatory is filled in at the end.
    pub(super) rest: PathAttributes,
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
pub(super) type Read = Result<(), Bad>;

/// Why an attribute is not used.
pub(super) enum Bad {
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
            return Err(self.bad_flags(kind, flags));
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

    fn bad_flags(&self, kind: u8, flags: u8) -> Bad {
        let text = "its flags are wrong";
        match kind {
            // RFC 7606 section 5.3: the routes in it are not to be trusted.
            kind::MP_REACH | kind::MP_UNREACH => Bad::ResetWithData(update_error::FLAGS, text),
            // RFC 7311 section 3: a transitive one is discarded.
            kind::AIGP if flags & flag::TRANSITIVE != 0 => Bad::Discard(text),
            // What has no place on the session is not looked at.
            kind::AS4_PATH | kind::AS4_AGGREGATOR if self.session.four_octet_as => {
                Bad::Discard(text)
            }
            // RFC 7606 section 3 c.
            _ => Bad::Withdraw(text),
        }
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
