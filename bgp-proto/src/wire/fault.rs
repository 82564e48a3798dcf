use super::notification::Notification;

/// What is done about an error in an UPDATE, from the mildest to the strongest. The strongest one
/// that an error of a message asks for is done (RFC 7606 section 3 h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disposition {
    /// The prefix is ignored, the others are used (RFC 4271 section 6.3).
    PrefixDiscard,
    /// The attribute is ignored, the routes are used (RFC 7606 section 2).
    AttributeDiscard,
    /// Routes of this family are ignored on this session (RFC 4760 section 7, RFC 7606 section 2).
    AfiSafiDisable,
    /// The routes are handled as if the peer had withdrawn them (RFC 7606 section 2).
    TreatAsWithdraw,
    /// A NOTIFICATION ends the session (RFC 4271 section 6.3).
    SessionReset,
}

impl Disposition {
    /// A short name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PrefixDiscard => "prefix-discard",
            Self::AttributeDiscard => "attribute-discard",
            Self::AfiSafiDisable => "afi-safi-disable",
            Self::TreatAsWithdraw => "treat-as-withdraw",
            Self::SessionReset => "session-reset",
        }
    }
}

/// An error in an UPDATE, for the log and the counters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute {attribute}: {text}")]
pub struct Fault {
    /// Type code of the attribute; 0 where it is none.
    pub attribute: u8,
    /// What was done.
    pub disposition: Disposition,
    /// What was wrong.
    pub text: &'static str,
}

/// An error in an UPDATE that the session does not survive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}: {notification}")]
pub struct Reset {
    /// What was wrong; its disposition is [`Disposition::SessionReset`].
    pub fault: Fault,
    /// What the peer is told.
    pub notification: Notification,
}

impl Reset {
    pub(super) const fn new(attribute: u8, text: &'static str, notification: Notification) -> Self {
        let disposition = Disposition::SessionReset;
        Self { fault: Fault { attribute, disposition, text }, notification }
    }
}

impl From<Reset> for Notification {
    fn from(reset: Reset) -> Self {
        reset.notification
    }
}
