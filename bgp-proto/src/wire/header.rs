use super::{
    notification::{Notification, code, header_error},
    reader::Reader,
};

/// Octets of a message header (RFC 4271 section 4.1).
pub const HEADER_LENGTH: usize = 19;
/// The longest message without RFC 8654.
pub const MAX_MESSAGE: usize = 4096;
/// The longest message with RFC 8654.
pub const MAX_EXTENDED: usize = 65535;

/// The types of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageType {
    /// RFC 4271 section 4.2.
    Open,
    /// RFC 4271 section 4.3.
    Update,
    /// RFC 4271 section 4.5.
    Notification,
    /// RFC 4271 section 4.4.
    Keepalive,
    /// RFC 2918.
    RouteRefresh,
}

impl MessageType {
    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Open),
            2 => Some(Self::Update),
            3 => Some(Self::Notification),
            4 => Some(Self::Keepalive),
            5 => Some(Self::RouteRefresh),
            _ => None,
        }
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }

    /// The lengths that RFC 4271 section 6.1 allows for the type, header included.
    fn allows(self, length: usize, max: usize) -> bool {
        match self {
            // RFC 8654 section 4: OPEN and KEEPALIVE stay within 4096 octets.
            Self::Open => (29..=MAX_MESSAGE).contains(&length),
            Self::Update => (23..=max).contains(&length),
            Self::Notification => (21..=max).contains(&length),
            Self::Keepalive => length == HEADER_LENGTH,
            // RFC 7313 section 5 has its own error for a wrong length, so the decoder judges.
            Self::RouteRefresh => length <= max,
        }
    }
}

/// One whole message at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: MessageType,
    /// What follows the header.
    pub body: &'a [u8],
    /// Octets to drop from the buffer once it is handled.
    pub length: usize,
}

/// Finds the first message in a buffer of received bytes; `None` if more bytes are needed. `max`
/// is the longest message allowed at this point, in octets.
///
/// # Errors
/// The NOTIFICATION of RFC 4271 section 6.1 with which the session has to end.
pub fn frame(buffer: &[u8], max: usize) -> Result<Option<Frame<'_>>, Notification> {
    let mut reader = Reader::new(buffer);
    // A bad marker shows in the first octets, and is not waited for.
    let seen = buffer.get(..buffer.len().min(16)).unwrap_or_default();
    if seen.iter().any(|octet| *octet != 0xff) {
        return Err(Notification::new(code::HEADER, header_error::NOT_SYNCHRONIZED));
    }
    let (Some(_marker), Some(length), Some(kind)) = (reader.take(16), reader.u16(), reader.u8())
    else {
        return Ok(None);
    };
    let bad_length = || {
        Notification::new(code::HEADER, header_error::BAD_LENGTH).with_data(&length.to_be_bytes())
    };
    let total = usize::from(length);
    if !(HEADER_LENGTH..=max).contains(&total) {
        return Err(bad_length());
    }
    let Some(kind) = MessageType::from_code(kind) else {
        return Err(Notification::new(code::HEADER, header_error::BAD_TYPE).with_data(&[kind]));
    };
    if !kind.allows(total, max) {
        return Err(bad_length());
    }
    Ok(reader.take(total - HEADER_LENGTH).map(|body| Frame { kind, body, length: total }))
}
