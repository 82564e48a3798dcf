//! The BGP-4 codec.
//!
//! Promise: no input makes it panic or allocate more than a small multiple of the message's
//! length, what was negotiated is an argument ([`Session`]) and never guessed from the bytes, and
//! every error says what RFC 7606 wants done about it ([`Disposition`]).
#![warn(clippy::indexing_slicing)]

mod as_path;
mod attributes;
mod capability;
mod decode;
mod encode;
mod header;
mod nlri;
mod notification;
mod open;
mod reader;

pub use as_path::{AsPath, Segment};
pub use attributes::{Aggregator, Community, LargeCommunity, Origin, PathAttributes, RawAttribute};
pub use capability::{Capability, GracefulRestart, GracefulRestartFamily};
pub use decode::{Disposition, Fault, UpdateIn, decode_update};
pub use encode::{
    encode_end_of_rib, encode_keepalive, encode_notification, encode_open, encode_route_refresh,
    encode_updates, encode_withdrawals,
};
pub use header::{Frame, HEADER_LENGTH, MAX_EXTENDED, MAX_MESSAGE, MessageType, frame};
pub(crate) use notification::fsm_error;
pub use notification::{Notification, cease, code, open_error, update_error};
pub use open::{Open, RouteRefresh, decode_open, decode_route_refresh};

use twill_types::Family;

/// What the two OPENs agreed on, as far as the codec has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// AS numbers in AS_PATH and AGGREGATOR have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// Messages may have up to 65535 octets (RFC 8654).
    pub extended_message: bool,
    /// IPv4 prefixes may have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
    /// IPv4 unicast was negotiated.
    pub ipv4: bool,
    /// IPv6 unicast was negotiated.
    pub ipv6: bool,
    /// The session is internal: LOCAL_PREF is expected, not ignored (RFC 4271 section 5.1.5).
    pub internal: bool,
}

impl Session {
    /// The longest message on this session, in octets.
    pub const fn max_message(&self) -> usize {
        if self.extended_message { MAX_EXTENDED } else { MAX_MESSAGE }
    }

    /// Whether routes of this family may be exchanged.
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// Address family identifiers (IANA): IPv4 is 1, IPv6 is 2.
pub(crate) const fn afi(family: Family) -> u16 {
    match family {
        Family::V4 => 1,
        Family::V6 => 2,
    }
}

/// Subsequent address family identifier of unicast routes.
pub(crate) const SAFI_UNICAST: u8 = 1;

/// The family of an AFI and SAFI, if it is one of ours.
pub(crate) const fn family_of(afi: u16, safi: u8) -> Option<Family> {
    match (afi, safi) {
        (1, SAFI_UNICAST) => Some(Family::V4),
        (2, SAFI_UNICAST) => Some(Family::V6),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
