//! Why a route is what it is, for people.

use std::{fmt, net::Ipv4Addr, sync::Arc, time::Duration};

use twill_types::{BgpNextHop, Prefix};

use crate::{NextHopState, Own, PathKey, PeerKey, Step, wire::PathAttributes};

/// All that the RIB has to say of a prefix.
///
/// It is worked out anew when it is asked for, by the same functions that decide: a reason for each
/// path of a large table would cost more memory than the table.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What it is about.
    pub prefix: Prefix,
    /// The prefix of this node's own that it is or lies in, if so. Its paths are not used then.
    pub own: Option<Prefix>,
    /// Whether it is this node's own and announced; `None` if it is not a prefix of its own.
    pub announced: Option<bool>,
    /// The part that others have borrowed of this node and that it is or lies in.
    pub lent: Option<Prefix>,
    /// The next hops that the kernel is to use, sorted.
    pub next_hops: Vec<BgpNextHop>,
    /// The most next hops that one route uses.
    pub max_paths: usize,
    /// Peers that would be told of what is used, were it not for a filter or for the length of a message,
    /// and which rule of the filter, or which limit, keeps it from them.
    pub withheld: Vec<(PeerKey, String)>,
    /// The best first, then those used beside it, then the others.
    pub paths: Vec<PathExplanation>,
}

/// One path, and what became of it.
#[derive(Debug, Clone)]
pub struct PathExplanation {
    /// The peer that it came from.
    pub from: PeerKey,
    /// The peer's path identifier (RFC 7911 section 3); 0 without ADD-PATH.
    pub path_id: u32,
    /// Over an external session.
    pub external: bool,
    /// The peer's identifier.
    pub router_id: Option<Ipv4Addr>,
    /// Its attributes.
    pub attributes: Arc<PathAttributes>,
    /// Kept over a restart of the peer.
    pub stale: bool,
    /// If it is: how long still, or until it is the last resort (RFC 9494), unless the peer is back
    /// before.
    pub stale_for: Option<Duration>,
    /// What is known of its next hop.
    pub next_hop: Option<NextHopState>,
    /// Which rule of which filter refuses it, if one does.
    pub refused_by: Option<String>,
    /// Used or not, and why.
    pub outcome: Outcome,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The best.
    Best,
    /// As good as the best, and used beside it.
    Equal {
        /// What puts the best before it, without making it better.
        step: Step,
        /// The best.
        against: PathKey,
    },
    /// Not used.
    Lost {
        /// The step of the decision in which the other was better.
        step: Step,
        /// Whose path was better.
        against: PathKey,
    },
    /// It did not take part in the decision.
    Unusable(Unusable),
}

/// Why a path does not take part in the decision (RFC 4271 section 9.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// The kernel was not asked about its next hop yet.
    NextHopUnknown,
    /// The kernel has no way to its next hop (section 9.1.2.1).
    NextHopUnreachable,
    /// It is to this node's own prefix, or to a part of it.
    Own(Prefix),
    /// This node announces the same prefix, as others may.
    Anycast,
    /// The peer's policy refuses it.
    Filtered,
}

impl Outcome {
    /// Whether it is used for forwarding.
    pub const fn is_used(self) -> bool {
        matches!(self, Self::Best | Self::Equal { .. })
    }

    /// Where it stands in a list.
    pub(crate) const fn place(self) -> (u8, u8) {
        match self {
            Self::Best => (0, 0),
            Self::Equal { .. } => (1, 0),
            // Who came farther is nearer to being used.
            Self::Lost { step, .. } => (2, u8::MAX - step as u8),
            Self::Unusable(_) => (3, 0),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("best"),
            Self::Equal { step, against } => {
                write!(f, "as good as {against}, which comes first by {step}")
            }
            Self::Lost { step, against } if *step > Step::Metric => {
                write!(f, "as good as {against}, which has a {step}, and over the limit")
            }
            Self::Lost { step, against } => write!(f, "lost to {against} by {step}"),
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NextHopUnknown => f.write_str("next hop not looked up yet"),
            Self::NextHopUnreachable => f.write_str("next hop unreachable"),
            Self::Filtered => f.write_str("rejected by a filter"),
            Self::Own(ours) => write!(f, "conflict: {ours} is this node's own"),
            Self::Anycast => f.write_str("this node announces it as well (anycast)"),
        }
    }
}

impl Explanation {
    /// One without paths.
    pub(crate) fn new(prefix: Prefix, own: &Own, max_paths: usize) -> Self {
        Self {
            prefix,
            own: own.covering(prefix),
            announced: own
                .prefixes
                .get(&prefix)
                .copied()
                .or_else(|| own.anycast.contains(&prefix).then_some(true)),
            lent: own.lent_part(prefix),
            next_hops: Vec::new(),
            max_paths,
            withheld: Vec::new(),
            paths: Vec::new(),
        }
    }
}
