use std::net::Ipv4Addr;

use twill_types::{Asn, Family};

use super::{
    SAFI_UNICAST, afi,
    capability::Capability,
    family_of,
    notification::{Notification, code, open_error},
    reader::Reader,
};

/// The version of the protocol (RFC 4271 section 4.2).
pub(super) const VERSION: u8 = 4;
/// Optional parameter "Capabilities" (RFC 5492 section 4).
pub(super) const PARAMETER_CAPABILITIES: u8 = 2;
/// Optional parameter type, and length, that announce extended lengths (RFC 9072 section 2).
const EXTENDED_LENGTH: u8 = 255;

/// An OPEN (RFC 4271 section 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS number: the four-octet one where it has the capability.
    pub asn: Asn,
    /// Proposed hold time in seconds: 0 (off), or 3 and more.
    pub hold_time: u16,
    /// The sender's BGP identifier, not zero (RFC 6286).
    pub identifier: Ipv4Addr,
    /// In the order in which they came.
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// Whether the sender understands four-octet AS numbers.
    pub fn four_octet_as(&self) -> bool {
        self.capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_)))
    }

    /// The families that the sender will exchange. Without any multiprotocol capability that is
    /// IPv4 unicast (RFC 4760 section 8).
    pub fn families(&self) -> Vec<Family> {
        let mut any = false;
        let mut families = Vec::new();
        for capability in &self.capabilities {
            match capability {
                Capability::MultiProtocol(family) => {
                    any = true;
                    if !families.contains(family) {
                        families.push(*family);
                    }
                }
                Capability::Unknown { code: 1, .. } => any = true,
                _ => {}
            }
        }
        if !any {
            families.push(Family::V4);
        }
        families
    }
}

/// Reads the body of an OPEN.
///
/// # Errors
/// The NOTIFICATION of RFC 4271 section 6.2.
pub fn decode_open(body: &[u8]) -> Result<Open, Notification> {
    let malformed = || Notification::new(code::OPEN, open_error::UNSPECIFIC);
    let mut reader = Reader::new(body);
    let version = reader.u8().ok_or_else(malformed)?;
    if version != VERSION {
        // The data is the largest version that we support, in two octets.
        return Err(Notification::new(code::OPEN, open_error::VERSION)
            .with_data(&u16::from(VERSION).to_be_bytes()));
    }
    let my_as = reader.u16().ok_or_else(malformed)?;
    let hold_time = reader.u16().ok_or_else(malformed)?;
    let identifier = Ipv4Addr::from_bits(reader.u32().ok_or_else(malformed)?);
    let capabilities = decode_parameters(reader)?;

    // RFC 7607: AS 0 is as bad as a wrong one, in either place.
    let asn = capabilities.iter().find_map(|capability| match capability {
        Capability::FourOctetAs(asn) => Some(Ok(*asn)),
        Capability::Unknown { code: 65, .. } => Some(Err(())),
        _ => None,
    });
    let asn = asn
        .unwrap_or_else(|| Asn::new(u32::from(my_as)).map_err(|_| ()))
        .map_err(|()| Notification::new(code::OPEN, open_error::BAD_PEER_AS))?;
    if my_as == 0 {
        return Err(Notification::new(code::OPEN, open_error::BAD_PEER_AS));
    }
    // RFC 4271 section 4.2: zero or at least three seconds.
    if matches!(hold_time, 1 | 2) {
        return Err(Notification::new(code::OPEN, open_error::HOLD_TIME)
            .with_data(&hold_time.to_be_bytes()));
    }
    // RFC 6286 section 2.1: any non-zero number will do.
    if identifier.is_unspecified() {
        return Err(Notification::new(code::OPEN, open_error::BAD_IDENTIFIER)
            .with_data(&identifier.octets()));
    }
    Ok(Open { asn, hold_time, identifier, capabilities })
}

fn decode_parameters(mut reader: Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::new(code::OPEN, open_error::UNSPECIFIC);
    let length = reader.u8().ok_or_else(malformed)?;
    // RFC 9072 section 2: both octets 255, then a two-octet length, for each parameter too.
    let extended = length == EXTENDED_LENGTH && reader.rest().first() == Some(&EXTENDED_LENGTH);
    let parameters = if extended {
        reader.u8();
        reader.long_field()
    } else {
        reader.take(usize::from(length))
    };
    let mut parameters = Reader::new(parameters.ok_or_else(malformed)?);
    if !reader.is_empty() {
        return Err(malformed());
    }
    let mut capabilities = Vec::new();
    while !parameters.is_empty() {
        let kind = parameters.u8().ok_or_else(malformed)?;
        let value = if extended { parameters.long_field() } else { parameters.short_field() };
        let value = value.ok_or_else(malformed)?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(Notification::new(code::OPEN, open_error::OPTIONAL_PARAMETER));
        }
        Capability::decode_all(value, &mut capabilities).ok_or_else(malformed)?;
    }
    Ok(capabilities)
}

/// A ROUTE-REFRESH (RFC 2918, RFC 7313).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRefresh {
    /// Routes of which family.
    pub family: Family,
    /// 0 asks for them; 1 and 2 mark the beginning and the end of a refresh (RFC 7313).
    pub subtype: u8,
}

impl RouteRefresh {
    pub(super) fn octets(self) -> [u8; 4] {
        let [high, low] = afi(self.family).to_be_bytes();
        [high, low, self.subtype, SAFI_UNICAST]
    }
}

/// Reads the body of a ROUTE-REFRESH; `None` is one to ignore (RFC 2918 section 4: of a family
/// that was not announced; RFC 7313 section 5: of a subtype that is unknown).
///
/// # Errors
/// RFC 7313 section 5: a wrong length, with the whole message as data.
pub fn decode_route_refresh(body: &[u8]) -> Result<Option<RouteRefresh>, Notification> {
    let [high, low, subtype, safi] = body else {
        return Err(Notification::new(code::ROUTE_REFRESH, 1).with_data(body));
    };
    let family = family_of(u16::from_be_bytes([*high, *low]), *safi);
    Ok(family.filter(|_| *subtype <= 2).map(|family| RouteRefresh { family, subtype: *subtype }))
}
