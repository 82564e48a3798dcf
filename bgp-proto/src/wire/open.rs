use std::net::Ipv4Addr;

use twill_types::{Asn, Family};

use super::{
    capability::{self, Capability, Role},
    notification::{Notification, code, open_error},
    reader::Reader,
    restart::{GracefulRestart, LongLivedFamily},
};

/// The version of the protocol (RFC 4271 section 4.2).
pub(super) const VERSION: u8 = 4;
/// Optional parameter "Capabilities" (RFC 5492 section 4).
pub(super) const PARAMETER_CAPABILITIES: u8 = 2;
/// Optional parameter type, and length, that announce extended lengths (RFC 9072 section 2).
pub(super) const EXTENDED_LENGTH: u8 = 255;

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
        families_of(&self.capabilities)
    }

    /// The graceful restart capability: of several the last one (RFC 4724 section 3).
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// The families of the long-lived graceful restart capability. It counts only together with
    /// graceful restart (RFC 9494 section 4.1).
    pub fn long_lived_restart(&self) -> &[LongLivedFamily] {
        let long_lived = self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(families) => Some(families.as_slice()),
            _ => None,
        });
        long_lived.filter(|_| self.graceful_restart().is_some()).unwrap_or_default()
    }

    /// What the sender is to us, if it says so.
    ///
    /// # Errors
    /// RFC 9234 section 4.2: it says several things.
    pub fn role(&self) -> Result<Option<Role>, Notification> {
        let mut roles = self.capabilities.iter().filter_map(|capability| match capability {
            Capability::Role(role) => Some(*role),
            _ => None,
        });
        let first = roles.next();
        if roles.any(|role| Some(role) != first) {
            return Err(Notification::new(code::OPEN, open_error::ROLE_MISMATCH));
        }
        Ok(first)
    }

    /// Compares the roles of both ends (RFC 9234 section 4.2). A peer without one is accepted
    /// unless `strict`.
    ///
    /// # Errors
    /// Role Mismatch.
    pub fn check_role(&self, ours: Role, strict: bool) -> Result<(), Notification> {
        match self.role()? {
            Some(theirs) if ours.fits(theirs) => Ok(()),
            None if !strict => Ok(()),
            _ => Err(Notification::new(code::OPEN, open_error::ROLE_MISMATCH)),
        }
    }
}

pub(super) fn families_of(capabilities: &[Capability]) -> Vec<Family> {
    let mut any = false;
    let mut families = Vec::new();
    for capability in capabilities {
        match capability {
            Capability::MultiProtocol(family) => {
                any = true;
                if !families.contains(family) {
                    families.push(*family);
                }
            }
            Capability::Unknown { code: capability::MULTI_PROTOCOL, .. } => any = true,
            _ => {}
        }
    }
    if !any {
        families.push(Family::V4);
    }
    families
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

    let asn = peer_as(my_as, &capabilities)?;
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

/// The sender's number out of the two places where it is.
fn peer_as(my_as: u16, capabilities: &[Capability]) -> Result<Asn, Notification> {
    let bad = || Notification::new(code::OPEN, open_error::BAD_PEER_AS);
    // RFC 7607 section 2: AS 0 is as bad as a wrong one, in either place.
    let my_as = Asn::new(my_as.into()).map_err(|_| bad())?;
    let mut four_octet = None;
    for capability in capabilities {
        match capability {
            Capability::FourOctetAs(asn) => four_octet = Some(*asn),
            Capability::Unknown { code: capability::FOUR_OCTET_AS, value } => {
                return Err(match value.as_slice() {
                    [0, 0, 0, 0] => bad(),
                    _ => Notification::new(code::OPEN, open_error::UNSPECIFIC),
                });
            }
            _ => {}
        }
    }
    // RFC 6793 sections 4.2.1 and 9: AS_TRANS stands for a number that does not fit and is nobody's
    // own, and one that fits is in both places.
    match four_octet {
        Some(asn) if asn != Asn::TRANS && (my_as == Asn::TRANS || my_as == asn) => Ok(asn),
        None if my_as != Asn::TRANS => Ok(my_as),
        _ => Err(bad()),
    }
}

fn decode_parameters(mut reader: Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::new(code::OPEN, open_error::UNSPECIFIC);
    let length = reader.u8().ok_or_else(malformed)?;
    // RFC 9072 section 2: the type says it, whatever the length says; then a two-octet length, for
    // each parameter too.
    let extended = length != 0 && reader.rest().first() == Some(&EXTENDED_LENGTH);
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
