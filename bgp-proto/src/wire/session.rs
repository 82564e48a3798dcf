use twill_types::Family;

use super::{
    capability::{AddPathFamily, Capability},
    header::{MAX_EXTENDED, MAX_MESSAGE},
    open::{Open, families_of},
};

/// What the two OPENs agreed on, as far as the codec has to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Session {
    /// AS numbers in AS_PATH and AGGREGATOR have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// Messages to the peer may have up to 65535 octets (RFC 8654 section 4).
    pub send_extended: bool,
    /// The peer was told that it may send such, whether it takes them itself or not (RFC 8654 section 4).
    pub receive_extended: bool,
    /// IPv4 prefixes may have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
    /// A refresh has a beginning and an end (RFC 7313).
    pub enhanced_refresh: bool,
    /// IPv4 unicast was negotiated.
    pub ipv4: bool,
    /// IPv6 unicast was negotiated.
    pub ipv6: bool,
    /// Whose prefixes have path identifiers (RFC 7911).
    pub add_path: AddPath,
    /// The session is internal: LOCAL_PREF is expected, not ignored (RFC 4271 section 5.1.5).
    pub internal: bool,
    /// Routes with AS_SETs are used. RFC 9774 section 3 leaves that to the operator, and withdraws
    /// them where nothing is said.
    pub as_sets: bool,
    /// AIGP is believed and sent (RFC 7311 section 3.3, AIGP_SESSION). No session of the speaker has it:
    /// section 3.3 wants it configured for each session, and nothing configures it.
    pub aigp: bool,
}

/// For which family, and in which direction, prefixes have path identifiers (RFC 7911 section 4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddPath {
    /// The peer's IPv4 prefixes have them.
    pub receive_ipv4: bool,
    /// The peer's IPv6 prefixes have them.
    pub receive_ipv6: bool,
    /// Our IPv4 prefixes have them.
    pub send_ipv4: bool,
    /// Our IPv6 prefixes have them.
    pub send_ipv6: bool,
}

impl AddPath {
    /// Whether the peer's prefixes have them.
    pub const fn receives(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.receive_ipv4,
            Family::V6 => self.receive_ipv6,
        }
    }

    /// Whether our prefixes have them.
    pub const fn sends(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.send_ipv4,
            Family::V6 => self.send_ipv6,
        }
    }
}

impl Session {
    /// What follows from our capabilities and the peer's OPEN. A capability counts where both
    /// sides have it (RFC 5492 section 3); ADD-PATH where one sends and the other receives. Long messages are taken
    /// of any peer, as our OPEN says so (RFC 8654 section 4).
    pub fn negotiate(ours: &[Capability], theirs: &Open, internal: bool) -> Self {
        let both = |wanted: fn(&Capability) -> bool| {
            ours.iter().any(wanted) && theirs.capabilities.iter().any(wanted)
        };
        let (our_families, their_families) = (families_of(ours), theirs.families());
        let has = |family| our_families.contains(&family) && their_families.contains(&family);
        let path = |sender: &[Capability], receiver: &[Capability], family| {
            add_path_of(sender, family).is_some_and(|entry| entry.send)
                && add_path_of(receiver, family).is_some_and(|entry| entry.receive)
        };
        let is_extended: fn(&_) -> bool = |c| matches!(c, Capability::ExtendedMessage);
        let peer = theirs.capabilities.as_slice();
        Self {
            four_octet_as: both(|c| matches!(c, Capability::FourOctetAs(_))),
            send_extended: both(is_extended),
            receive_extended: ours.iter().any(is_extended),
            extended_next_hop: both(Capability::allows_ipv4_over_ipv6),
            enhanced_refresh: both(|c| matches!(c, Capability::EnhancedRouteRefresh)),
            ipv4: has(Family::V4),
            ipv6: has(Family::V6),
            add_path: AddPath {
                receive_ipv4: path(peer, ours, Family::V4),
                receive_ipv6: path(peer, ours, Family::V6),
                send_ipv4: path(ours, peer, Family::V4),
                send_ipv6: path(ours, peer, Family::V6),
            },
            internal,
            as_sets: false,
            aigp: false,
        }
    }

    /// The longest message that may be sent, in octets.
    pub const fn longest_sent(&self) -> usize {
        if self.send_extended { MAX_EXTENDED } else { MAX_MESSAGE }
    }

    /// The longest message that may be received, in octets.
    pub const fn longest_received(&self) -> usize {
        if self.receive_extended { MAX_EXTENDED } else { MAX_MESSAGE }
    }

    /// Whether routes of this family may be exchanged.
    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// The last word of a speaker about a family.
fn add_path_of(capabilities: &[Capability], family: Family) -> Option<AddPathFamily> {
    let entries = capabilities.iter().filter_map(|capability| match capability {
        Capability::AddPath(entries) => Some(entries),
        _ => None,
    });
    entries.flatten().rfind(|entry| entry.family == family).copied()
}
