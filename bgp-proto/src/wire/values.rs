//! The values of the attributes that this codec knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Asn, Family};

use super::{
    as_path::AsPath,
    attributes::{Aggregator, Community, LargeCommunity, Origin, kind},
    collect::{Bad, Collected, MpReach, Read},
    nlri::Routes,
    notification::update_error,
    reader::Reader,
};

impl Collected<'_> {
    /// RFC 7606 section 7.1.
    pub(super) fn origin(&mut self, value: &[u8]) -> Read {
        self.origin = Some(match value {
            [0] => Origin::Igp,
            [1] => Origin::Egp,
            [2] => Origin::Incomplete,
            _ => return Err(Bad::Withdraw("it is none of IGP, EGP and INCOMPLETE")),
        });
        Ok(())
    }

    /// RFC 7606 section 7.2; sets by RFC 9774 section 3.
    pub(super) fn as_path(&mut self, value: &[u8]) -> Read {
        let path = AsPath::decode(value, self.session.four_octet_as);
        let path = path.ok_or(Bad::Withdraw("the path is malformed"))?;
        let refused = path.has_set() && !self.session.as_sets;
        self.as_path = Some(path);
        if refused { Err(Bad::Withdraw("the path has an AS_SET")) } else { Ok(()) }
    }

    /// RFC 7606 section 7.3; what is no unicast address is of no use (RFC 4271 section 6.3).
    pub(super) fn next_hop(&mut self, value: &[u8]) -> Read {
        let address = Ipv4Addr::from_bits(u32_of(value)?);
        if !is_unicast(address.into()) {
            return Err(Bad::Withdraw("it is no unicast address"));
        }
        self.next_hop = Some(address.into());
        Ok(())
    }

    /// RFC 7606 section 7.5.
    pub(super) fn local_pref(&mut self, value: &[u8]) -> Read {
        if !self.session.internal {
            return Err(Bad::Discard("it does not belong on an external session"));
        }
        self.rest.local_pref = Some(u32_of(value)?);
        Ok(())
    }

    /// RFC 7606 section 7.6.
    pub(super) fn atomic_aggregate(&mut self, value: &[u8]) -> Read {
        if !value.is_empty() {
            return Err(Bad::Discard("its length is not 0"));
        }
        self.rest.atomic_aggregate = true;
        Ok(())
    }

    /// RFC 7606 section 7.7; AS 0 by RFC 7607 section 2.
    pub(super) fn aggregator(&mut self, value: &[u8]) -> Read {
        let mut reader = Reader::new(value);
        let asn =
            if self.session.four_octet_as { reader.u32() } else { reader.u16().map(u32::from) };
        self.rest.aggregator = Some(aggregator_of(asn, reader)?);
        Ok(())
    }

    /// RFC 7606 section 7.8.
    pub(super) fn communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<4>(value)?;
        self.rest.communities = sorted(parts.iter().map(|c| Community(u32::from_be_bytes(*c))));
        Ok(())
    }

    /// RFC 7606 sections 7.9 and 7.10.
    pub(super) fn reflection(&mut self, kind: u8, value: &[u8]) -> Read {
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
    pub(super) fn extended_communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<8>(value)?;
        self.rest.extended_communities = sorted(parts.iter().copied());
        Ok(())
    }

    /// RFC 8092 sections 5 and 6.
    pub(super) fn large_communities(&mut self, value: &[u8]) -> Read {
        let parts = exact_chunks::<12>(value)?;
        self.rest.large_communities = sorted(parts.iter().map(|octets| {
            let (parts, _) = octets.as_chunks::<4>();
            let part = |n: usize| parts.get(n).map_or(0, |p| u32::from_be_bytes(*p));
            LargeCommunity([part(0), part(1), part(2)])
        }));
        Ok(())
    }

    /// RFC 6793 sections 4.1 and 6.
    pub(super) fn as4(&mut self, kind: u8, value: &[u8]) -> Read {
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

    /// RFC 7311 sections 3.2 and 3.3: without the configuration it is as unknown as any other
    /// attribute that is not transitive.
    pub(super) fn aigp(&mut self, value: &[u8]) -> Read {
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
    pub(super) fn mp_reach(&mut self, value: &[u8]) -> Read {
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
    pub(super) fn mp_unreach(&mut self, value: &[u8]) -> Read {
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
}

pub(super) fn u32_of(value: &[u8]) -> Result<u32, Bad> {
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
