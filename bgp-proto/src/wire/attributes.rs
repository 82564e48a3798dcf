use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use twill_types::Asn;

use super::as_path::AsPath;

/// Attribute type codes (IANA "BGP Path Attributes").
pub(super) mod kind {
    pub(crate) const ORIGIN: u8 = 1;
    pub(crate) const AS_PATH: u8 = 2;
    pub(crate) const NEXT_HOP: u8 = 3;
    pub(crate) const MED: u8 = 4;
    pub(crate) const LOCAL_PREF: u8 = 5;
    pub(crate) const ATOMIC_AGGREGATE: u8 = 6;
    pub(crate) const AGGREGATOR: u8 = 7;
    pub(crate) const COMMUNITIES: u8 = 8;
    pub(crate) const ORIGINATOR_ID: u8 = 9;
    pub(crate) const CLUSTER_LIST: u8 = 10;
    pub(crate) const MP_REACH: u8 = 14;
    pub(crate) const MP_UNREACH: u8 = 15;
    pub(crate) const EXTENDED_COMMUNITIES: u8 = 16;
    pub(crate) const AS4_PATH: u8 = 17;
    pub(crate) const AS4_AGGREGATOR: u8 = 18;
    pub(crate) const AIGP: u8 = 26;
    pub(crate) const LARGE_COMMUNITIES: u8 = 32;
    pub(crate) const ONLY_TO_CUSTOMER: u8 = 35;
}

/// Attribute flags (RFC 4271 section 4.3).
pub(super) mod flag {
    pub(crate) const OPTIONAL: u8 = 0x80;
    pub(crate) const TRANSITIVE: u8 = 0x40;
    pub(crate) const PARTIAL: u8 = 0x20;
    pub(crate) const EXTENDED: u8 = 0x10;
}

/// Where the information came from; lower is better (RFC 4271 section 5.1.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Interior to the originating AS.
    #[default]
    Igp,
    /// By EGP (RFC 904).
    Egp,
    /// By other means.
    Incomplete,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Igp => "IGP",
            Self::Egp => "EGP",
            Self::Incomplete => "incomplete",
        })
    }
}

/// Who formed an aggregate (RFC 4271 section 5.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    /// Its AS.
    pub asn: Asn,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A community (RFC 1997), written `64512:100`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// A route that does not leave the AS (RFC 1997).
    pub const NO_EXPORT: Self = Self(0xffff_ff01);
    /// A route that is told to nobody (RFC 1997).
    pub const NO_ADVERTISE: Self = Self(0xffff_ff02);
    /// A route that does not leave the member AS of a confederation (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Self = Self(0xffff_ff03);
    /// A stale route that is kept for long; any other is better (RFC 9494 section 4.2).
    pub const LLGR_STALE: Self = Self(0xffff_0006);
    /// A route that must not be kept for long (RFC 9494 section 4.2).
    pub const NO_LLGR: Self = Self(0xffff_0007);
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// A large community (RFC 8092), written `64512:1:2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity(pub [u32; 3]);

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [global, first, second] = self.0;
        write!(f, "{global}:{first}:{second}")
    }
}

/// The optional transitive attributes that came with the Partial bit: somebody on the way did not
/// know them. The bit stays for good (RFC 4271 section 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partial(pub(super) u8);

impl Partial {
    /// The ones that can have it, by type code.
    pub(super) const KINDS: [u8; 5] = [
        kind::AGGREGATOR,
        kind::COMMUNITIES,
        kind::EXTENDED_COMMUNITIES,
        kind::LARGE_COMMUNITIES,
        kind::ONLY_TO_CUSTOMER,
    ];

    fn bit(kind: u8) -> u8 {
        Self::KINDS.iter().position(|known| *known == kind).map_or(0, |place| 1 << place)
    }

    /// Notes that the attribute with this type code has it.
    pub fn insert(&mut self, kind: u8) {
        self.0 |= Self::bit(kind);
    }

    pub(super) fn remove(&mut self, kind: u8) {
        self.0 &= !Self::bit(kind);
    }

    /// Whether the attribute with this type code has it.
    pub fn contains(self, kind: u8) -> bool {
        self.0 & Self::bit(kind) != 0
    }
}

/// A transitive attribute that this codec does not know, to be passed on as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawAttribute {
    /// Type code.
    pub kind: u8,
    /// Value. It is sent with Optional, Transitive and Partial, as RFC 4271 section 5 wants it
    /// from who does not know it.
    pub value: Vec<u8>,
}

/// The attributes of a path, without its prefixes. Two paths with equal attributes can share one
/// UPDATE.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAttributes {
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH, merged with AS4_PATH on an old session.
    pub as_path: AsPath,
    /// NEXT_HOP, or the global next hop of MP_REACH_NLRI.
    pub next_hop: IpAddr,
    /// The link-local next hop beside a global one (RFC 2545 section 3).
    pub link_local: Option<Ipv6Addr>,
    /// MULTI_EXIT_DISC; lower is better.
    pub med: Option<u32>,
    /// LOCAL_PREF; higher is better. Only on internal sessions.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES, sorted.
    pub communities: Vec<Community>,
    /// EXTENDED COMMUNITIES (RFC 4360), eight octets each, sorted.
    pub extended_communities: Vec<[u8; 8]>,
    /// LARGE_COMMUNITY, sorted, each once.
    pub large_communities: Vec<LargeCommunity>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456), nearest first.
    pub cluster_list: Vec<Ipv4Addr>,
    /// AIGP (RFC 7311), where the session is configured for it.
    pub aigp: Option<u64>,
    /// Only to Customer (RFC 9234 section 5): the AS that said so.
    pub only_to_customer: Option<u32>,
    /// Which of the above came with the Partial bit.
    pub partial: Partial,
    /// Unknown transitive ones, by ascending type code.
    pub unknown: Vec<RawAttribute>,
}

impl PathAttributes {
    /// The mandatory ones, the others absent.
    pub const fn new(origin: Origin, as_path: AsPath, next_hop: IpAddr) -> Self {
        Self {
            origin,
            as_path,
            next_hop,
            link_local: None,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            aigp: None,
            only_to_customer: None,
            partial: Partial(0),
            unknown: Vec::new(),
        }
    }

    /// Whether it carries this community.
    pub fn has_community(&self, community: Community) -> bool {
        self.communities.contains(&community)
    }

    /// The same with one community more.
    #[must_use]
    pub fn with_community(&self, community: Community) -> Self {
        let mut with = self.clone();
        if let Err(place) = with.communities.binary_search(&community) {
            with.communities.insert(place, community);
        }
        with
    }
}
