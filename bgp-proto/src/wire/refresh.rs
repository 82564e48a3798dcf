use twill_types::Family;

use super::{
    SAFI_UNICAST, Session, afi, family_of,
    header::{HEADER_LENGTH, MessageType},
    notification::{Notification, code, header_error},
};

/// A ROUTE-REFRESH (RFC 2918, RFC 7313).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRefresh {
    /// Routes of which family.
    pub family: Family,
    /// One of [`RouteRefresh::REQUEST`], [`RouteRefresh::BEGIN`] and [`RouteRefresh::END`].
    pub subtype: u8,
}

impl RouteRefresh {
    /// Asks for all routes (RFC 2918 section 3).
    pub const REQUEST: u8 = 0;
    /// They begin, BoRR (RFC 7313 section 4).
    pub const BEGIN: u8 = 1;
    /// They are complete, EoRR (RFC 7313 section 4).
    pub const END: u8 = 2;

    pub(super) fn octets(self) -> [u8; 4] {
        let [high, low] = afi(self.family).to_be_bytes();
        [high, low, self.subtype, SAFI_UNICAST]
    }
}

/// Reads the body of a ROUTE-REFRESH; `None` is one to ignore: of a family that was not announced
/// (RFC 2918 section 4), of a subtype that is unknown or was not negotiated (RFC 7313 section 5).
///
/// # Errors
/// A wrong length: of what RFC 7313 brought, and only where that was negotiated, with the code of its
/// section 5 and the whole message as data; else as of any message (RFC 4271 section 6.1).
pub fn decode_route_refresh(
    body: &[u8],
    session: &Session,
) -> Result<Option<RouteRefresh>, Notification> {
    let [high, low, subtype, safi] = body else {
        let length = u16::try_from(HEADER_LENGTH + body.len()).unwrap_or(u16::MAX).to_be_bytes();
        return match body.get(2) {
            // Another subtype may have another length.
            Some(subtype) if *subtype > RouteRefresh::END => Ok(None),
            Some(&(RouteRefresh::BEGIN | RouteRefresh::END)) if session.enhanced_refresh => {
                let kind = MessageType::RouteRefresh.code();
                let message = [&[0xff; 16][..], &length, &[kind], body].concat();
                Err(Notification::new(code::ROUTE_REFRESH, 1).with_data(&message))
            }
            _ => {
                let fault = Notification::new(code::HEADER, header_error::BAD_LENGTH);
                Err(fault.with_data(&length))
            }
        };
    };
    let family = family_of(u16::from_be_bytes([*high, *low]), *safi);
    let wanted = match *subtype {
        RouteRefresh::REQUEST => true,
        RouteRefresh::BEGIN | RouteRefresh::END => session.enhanced_refresh,
        _ => false,
    };
    let family = family.filter(|family| wanted && session.has(*family));
    Ok(family.map(|family| RouteRefresh { family, subtype: *subtype }))
}
