use std::fmt;

use twill_types::{Asn, Family};

use super::{SAFI_UNICAST, afi, capability::truncated, family_of};

/// Error codes (RFC 4271 section 4.5, RFC 7313).
pub mod code {
    /// Message Header Error.
    pub const HEADER: u8 = 1;
    /// OPEN Message Error.
    pub const OPEN: u8 = 2;
    /// UPDATE Message Error.
    pub const UPDATE: u8 = 3;
    /// Hold Timer Expired.
    pub const HOLD_TIMER: u8 = 4;
    /// Finite State Machine Error.
    pub const FSM: u8 = 5;
    /// Cease.
    pub const CEASE: u8 = 6;
    /// ROUTE-REFRESH Message Error (RFC 7313 section 5).
    pub const ROUTE_REFRESH: u8 = 7;
    /// Send Hold Timer Expired (RFC 9687).
    pub const SEND_HOLD_TIMER: u8 = 8;
}

/// Subcodes of [`code::HEADER`] (RFC 4271 section 6.1).
pub mod header_error {
    /// Connection Not Synchronized.
    pub const NOT_SYNCHRONIZED: u8 = 1;
    /// Bad Message Length.
    pub const BAD_LENGTH: u8 = 2;
    /// Bad Message Type.
    pub const BAD_TYPE: u8 = 3;
}

/// Subcodes of [`code::OPEN`] (RFC 4271 section 6.2, RFC 5492, RFC 9234).
pub mod open_error {
    /// The OPEN is malformed.
    pub const UNSPECIFIC: u8 = 0;
    /// Unsupported Version Number.
    pub const VERSION: u8 = 1;
    /// Bad Peer AS.
    pub const BAD_PEER_AS: u8 = 2;
    /// Bad BGP Identifier.
    pub const BAD_IDENTIFIER: u8 = 3;
    /// Unsupported Optional Parameter.
    pub const OPTIONAL_PARAMETER: u8 = 4;
    /// Unacceptable Hold Time.
    pub const HOLD_TIME: u8 = 6;
    /// Unsupported Capability.
    pub const CAPABILITY: u8 = 7;
    /// Role Mismatch (RFC 9234 section 4.2).
    pub const ROLE_MISMATCH: u8 = 11;
}

/// Subcodes of [`code::UPDATE`] (RFC 4271 section 6.3).
pub mod update_error {
    /// Malformed Attribute List.
    pub const ATTRIBUTE_LIST: u8 = 1;
    /// Unrecognized Well-known Attribute.
    pub const UNRECOGNIZED: u8 = 2;
    /// Attribute Flags Error.
    pub const FLAGS: u8 = 4;
    /// Optional Attribute Error.
    pub const OPTIONAL: u8 = 9;
    /// Invalid Network Field.
    pub const NETWORK_FIELD: u8 = 10;
}

/// Subcodes of [`code::FSM`] (RFC 6608).
pub(crate) mod fsm_error {
    pub(crate) const IN_OPEN_SENT: u8 = 1;
    pub(crate) const IN_OPEN_CONFIRM: u8 = 2;
    pub(crate) const IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of [`code::CEASE`] (RFC 4486, RFC 8538).
pub mod cease {
    /// Maximum Number of Prefixes Reached.
    pub const MAX_PREFIXES: u8 = 1;
    /// Administrative Shutdown.
    pub const SHUTDOWN: u8 = 2;
    /// Peer De-configured.
    pub const DECONFIGURED: u8 = 3;
    /// Administrative Reset.
    pub const RESET: u8 = 4;
    /// Connection Rejected.
    pub const REJECTED: u8 = 5;
    /// Other Configuration Change.
    pub const CONFIGURATION: u8 = 6;
    /// Connection Collision Resolution.
    pub const COLLISION: u8 = 7;
    /// Out of Resources.
    pub const RESOURCES: u8 = 8;
    /// Hard Reset (RFC 8538): graceful restart does not apply.
    pub const HARD_RESET: u8 = 9;
}

/// A NOTIFICATION: why a session ends (RFC 4271 section 4.5).
#[derive(Clone, PartialEq, Eq)]
pub struct Notification {
    /// One of [`code`].
    pub code: u8,
    /// Its meaning depends on the code; 0 is "unspecific".
    pub subcode: u8,
    /// What it depends on code and subcode.
    pub data: Vec<u8>,
}

impl Notification {
    /// Without data.
    pub const fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// With data.
    #[must_use]
    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// A Cease that tells the peer's operator why (RFC 9003 section 2: a length octet, then UTF-8).
    pub fn cease_with_text(subcode: u8, text: &str) -> Self {
        let text = truncated(text, usize::from(u8::MAX)).as_bytes();
        let mut data = vec![u8::try_from(text.len()).unwrap_or(0)];
        data.extend_from_slice(text);
        Self { code: code::CEASE, subcode, data }
    }

    /// The peer is of another AS than is expected (RFC 4271 section 6.2). The RFC has no data for it;
    /// the number that was seen, as BIRD and FRR send it.
    pub fn bad_peer_as(seen: Asn) -> Self {
        let data = seen.get().to_be_bytes().to_vec();
        Self { code: code::OPEN, subcode: open_error::BAD_PEER_AS, data }
    }

    /// The AS number that a [`Notification::bad_peer_as`] names. Senders may leave it out, or write
    /// it in 2 octets.
    pub fn refused_as(&self) -> Option<u32> {
        match (self.code, self.subcode, self.data.as_slice()) {
            (code::OPEN, open_error::BAD_PEER_AS, &[high, low]) => {
                Some(u16::from_be_bytes([high, low]).into())
            }
            (code::OPEN, open_error::BAD_PEER_AS, &[a, b, c, d]) => {
                Some(u32::from_be_bytes([a, b, c, d]))
            }
            _ => None,
        }
    }

    /// A Cease for more prefixes of a family than `limit` (RFC 4486 section 4: the data is AFI, SAFI and
    /// the limit).
    pub fn max_prefixes(family: Family, limit: u32) -> Self {
        let mut data = afi(family).to_be_bytes().to_vec();
        data.push(SAFI_UNICAST);
        data.extend_from_slice(&limit.to_be_bytes());
        Self { code: code::CEASE, subcode: cease::MAX_PREFIXES, data }
    }

    /// The family and the limit that [`Notification::max_prefixes`] names. Senders may leave them out.
    pub fn prefix_limit(&self) -> Option<(Family, u32)> {
        match (self.code, self.subcode, self.data.as_slice()) {
            (code::CEASE, cease::MAX_PREFIXES, [high, low, safi, limit @ ..]) => {
                let family = family_of(u16::from_be_bytes([*high, *low]), *safi)?;
                Some((family, u32::from_be_bytes(limit.try_into().ok()?)))
            }
            _ => None,
        }
    }

    /// The same reason as a Hard Reset: the peer keeps no routes for a restart (RFC 8538 section
    /// 3.1).
    #[must_use]
    pub fn into_hard_reset(self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend_from_slice(&self.data);
        Self { code: code::CEASE, subcode: cease::HARD_RESET, data }
    }

    /// Whether it is a Hard Reset.
    pub fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// The reason inside a Hard Reset (RFC 8538 section 3.1), if it is one and has one. Another
    /// Hard Reset is none: they could be nested as deep as the message is long.
    pub fn inner(&self) -> Option<Self> {
        let [code, subcode, data @ ..] = self.data.as_slice() else {
            return None;
        };
        let inner = Self { code: *code, subcode: *subcode, data: data.to_vec() };
        (self.is_hard_reset() && !inner.is_hard_reset()).then_some(inner)
    }

    /// What an Administrative Shutdown or Reset tells the operator (RFC 9003 section 2).
    pub fn text(&self) -> Text<'_> {
        let data = match (self.code, self.subcode, self.data.as_slice()) {
            // RFC 8538 section 3.1: it is the data of the reason inside.
            (
                code::CEASE,
                cease::HARD_RESET,
                [code::CEASE, cease::SHUTDOWN | cease::RESET, data @ ..],
            ) => data,
            (code::CEASE, cease::SHUTDOWN | cease::RESET, data) => data,
            _ => return Text::None,
        };
        match data {
            [] | [0] => Text::None,
            [length, text @ ..] if text.len() == usize::from(*length) => {
                std::str::from_utf8(text).map_or(Text::Malformed(data), Text::Text)
            }
            _ => Text::Malformed(data),
        }
    }

    /// The text that a Cease carries (RFC 9003), if it carries a good one.
    pub fn shutdown_text(&self) -> Option<&str> {
        match self.text() {
            Text::Text(text) => Some(text),
            Text::None | Text::Malformed(_) => None,
        }
    }

    /// Reads a message body. Too short for a code and subcode cannot happen: the header's check
    /// of the length came before.
    pub fn decode(body: &[u8]) -> Self {
        let (code, rest) = body.split_first().map_or((0, body), |(first, rest)| (*first, rest));
        let (subcode, data) = rest.split_first().map_or((0, rest), |(first, rest)| (*first, rest));
        Self { code, subcode, data: data.to_vec() }
    }

    const fn names(&self) -> (&'static str, &'static str) {
        match (self.code, self.subcode) {
            (code::HEADER, 1) => ("Message Header Error", "Connection Not Synchronized"),
            (code::HEADER, 2) => ("Message Header Error", "Bad Message Length"),
            (code::HEADER, 3) => ("Message Header Error", "Bad Message Type"),
            (code::HEADER, _) => ("Message Header Error", ""),
            (code::OPEN, 1) => ("OPEN Message Error", "Unsupported Version Number"),
            (code::OPEN, 2) => ("OPEN Message Error", "Bad Peer AS"),
            (code::OPEN, 3) => ("OPEN Message Error", "Bad BGP Identifier"),
            (code::OPEN, 4) => ("OPEN Message Error", "Unsupported Optional Parameter"),
            (code::OPEN, 6) => ("OPEN Message Error", "Unacceptable Hold Time"),
            (code::OPEN, 7) => ("OPEN Message Error", "Unsupported Capability"),
            (code::OPEN, 11) => ("OPEN Message Error", "Role Mismatch"),
            (code::OPEN, _) => ("OPEN Message Error", ""),
            (code::UPDATE, 1) => ("UPDATE Message Error", "Malformed Attribute List"),
            (code::UPDATE, 2) => ("UPDATE Message Error", "Unrecognized Well-known Attribute"),
            (code::UPDATE, 3) => ("UPDATE Message Error", "Missing Well-known Attribute"),
            (code::UPDATE, 4) => ("UPDATE Message Error", "Attribute Flags Error"),
            (code::UPDATE, 5) => ("UPDATE Message Error", "Attribute Length Error"),
            (code::UPDATE, 6) => ("UPDATE Message Error", "Invalid ORIGIN Attribute"),
            (code::UPDATE, 8) => ("UPDATE Message Error", "Invalid NEXT_HOP Attribute"),
            (code::UPDATE, 9) => ("UPDATE Message Error", "Optional Attribute Error"),
            (code::UPDATE, 10) => ("UPDATE Message Error", "Invalid Network Field"),
            (code::UPDATE, 11) => ("UPDATE Message Error", "Malformed AS_PATH"),
            (code::UPDATE, _) => ("UPDATE Message Error", ""),
            (code::HOLD_TIMER, _) => ("Hold Timer Expired", ""),
            (code::FSM, fsm_error::IN_OPEN_SENT) => ("FSM Error", "in OpenSent"),
            (code::FSM, fsm_error::IN_OPEN_CONFIRM) => ("FSM Error", "in OpenConfirm"),
            (code::FSM, fsm_error::IN_ESTABLISHED) => ("FSM Error", "in Established"),
            (code::FSM, _) => ("FSM Error", ""),
            (code::CEASE, cease::MAX_PREFIXES) => ("Cease", "Maximum Number of Prefixes Reached"),
            (code::CEASE, cease::SHUTDOWN) => ("Cease", "Administrative Shutdown"),
            (code::CEASE, cease::DECONFIGURED) => ("Cease", "Peer De-configured"),
            (code::CEASE, cease::RESET) => ("Cease", "Administrative Reset"),
            (code::CEASE, cease::REJECTED) => ("Cease", "Connection Rejected"),
            (code::CEASE, cease::CONFIGURATION) => ("Cease", "Other Configuration Change"),
            (code::CEASE, cease::COLLISION) => ("Cease", "Connection Collision Resolution"),
            (code::CEASE, cease::RESOURCES) => ("Cease", "Out of Resources"),
            (code::CEASE, cease::HARD_RESET) => ("Cease", "Hard Reset"),
            (code::CEASE, _) => ("Cease", ""),
            (code::ROUTE_REFRESH, 1) => ("ROUTE-REFRESH Message Error", "Invalid Message Length"),
            (code::ROUTE_REFRESH, _) => ("ROUTE-REFRESH Message Error", ""),
            (code::SEND_HOLD_TIMER, _) => ("Send Hold Timer Expired", ""),
            _ => ("Unknown Error", ""),
        }
    }
}

/// What a NOTIFICATION tells the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// Nothing.
    None,
    /// This.
    Text(&'a str),
    /// Its length or its UTF-8 is wrong: to be logged as it is (RFC 9003 section 4).
    Malformed(&'a [u8]),
}

impl fmt::Display for Notification {
    /// Names and numbers, `Cease/Administrative Shutdown (6/2)`, and the text if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, subcode) = self.names();
        f.write_str(code)?;
        if !subcode.is_empty() {
            write!(f, "/{subcode}")?;
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        if let Some(inner) = self.inner() {
            return write!(f, ": {inner}");
        }
        if let Some((family, limit)) = self.prefix_limit() {
            return write!(f, ": more than {limit} {family} prefixes");
        }
        if let Some(asn) = self.refused_as() {
            return write!(f, ": AS {asn}");
        }
        match self.text() {
            Text::Text(text) => write!(f, ": {text:?}"),
            Text::Malformed(octets) => write!(f, ": malformed text {octets:02x?}"),
            Text::None => Ok(()),
        }
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:02x?}", self.data)
    }
}
