//! The BGP-4 codec.
//!
//! Promise: no input makes it panic or allocate more than a small multiple of the message's
//! length, what was negotiated is an argument ([`Session`]) and never guessed from the bytes, and
//! every error says what is to be done about it ([`Disposition`], `docs/bgp-errors.md`).
#![warn(clippy::indexing_slicing)]

mod as_path;
mod attributes;
mod capability;
mod collect;
mod decode;
mod encode;
mod encode_attributes;
mod fault;
pub mod fuzz;
mod header;
mod nlri;
mod notification;
mod open;
mod packed;
mod reader;
mod refresh;
mod restart;
mod session;
mod values;

pub use as_path::{AsPath, Segment};
pub use attributes::{
    Aggregator, Community, LargeCommunity, Origin, Partial, PathAttributes, RawAttribute,
};
pub use capability::{AddPathFamily, Capability, NextHopEncoding, Role};
pub use decode::{UpdateIn, decode_update};
pub use encode::{
    encode_end_of_rib, encode_keepalive, encode_notification, encode_open, encode_route_refresh,
    encode_updates, encode_withdrawals,
};
pub use fault::{Disposition, Fault, Reset};
pub use header::{Frame, HEADER_LENGTH, MAX_EXTENDED, MAX_MESSAGE, MessageType, frame};
pub use nlri::{Nlri, Routes};
pub(crate) use notification::fsm_error;
pub use notification::{Notification, Text, cease, code, header_error, open_error, update_error};
pub use open::{Open, decode_open};
pub(crate) use packed::Packed;
pub use refresh::{RouteRefresh, decode_route_refresh};
pub use restart::{GracefulRestart, GracefulRestartFamily, LongLivedFamily};
pub use session::{AddPath, Session};

use twill_types::Family;

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
