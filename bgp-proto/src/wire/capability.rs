use twill_types::{Asn, Family};

use super::{
    SAFI_UNICAST, afi, family_of,
    reader::Reader,
    restart::{GracefulRestart, LongLivedFamily},
};

/// Code of the four-octet AS capability: a broken one is an error of its own.
pub(super) const FOUR_OCTET_AS: u8 = 65;
/// Code of the multiprotocol capability.
pub(super) const MULTI_PROTOCOL: u8 = 1;
/// Code of the role capability.
const ROLE: u8 = 9;

/// A capability of an OPEN (RFC 5492).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// Routes of one family (RFC 4760 section 8), code 1. Other families than ours are `Unknown`.
    MultiProtocol(Family),
    /// RFC 2918, code 2.
    RouteRefresh,
    /// Which routes may have a next hop of which other family (RFC 8950 section 4), code 5.
    ExtendedNextHop(Vec<NextHopEncoding>),
    /// RFC 8654, code 6.
    ExtendedMessage,
    /// RFC 9234 section 4.1, code 9.
    Role(Role),
    /// RFC 4724, code 64.
    GracefulRestart(GracefulRestart),
    /// RFC 6793, code 65.
    FourOctetAs(Asn),
    /// RFC 7911 section 4, code 69. Families that are not ours are not kept.
    AddPath(Vec<AddPathFamily>),
    /// RFC 7313, code 70.
    EnhancedRouteRefresh,
    /// RFC 9494 section 3, code 71. Families that are not ours are not kept.
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// The sender's name, for people (draft-walton-bgp-hostname-capability), code 73.
    Fqdn {
        /// The host's name.
        host: String,
        /// The domain's, often empty.
        domain: String,
    },
    /// One that this codec does not know, kept as it came.
    Unknown {
        /// Its code.
        code: u8,
        /// Its value.
        value: Vec<u8>,
    },
}

/// Routes of a family with a next hop of another (RFC 8950 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHopEncoding {
    /// AFI of the routes.
    pub afi: u16,
    /// SAFI of the routes; it has two octets here.
    pub safi: u16,
    /// AFI of the next hop.
    pub next_hop_afi: u16,
}

impl NextHopEncoding {
    /// IPv4 unicast over IPv6.
    pub const IPV4_OVER_IPV6: Self = Self { afi: 1, safi: 1, next_hop_afi: 2 };
}

/// What a speaker can do with several paths to one prefix of a family (RFC 7911 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddPathFamily {
    /// Which family.
    pub family: Family,
    /// It can receive them.
    pub receive: bool,
    /// It can send them.
    pub send: bool,
}

/// What a speaker is to its peer (RFC 9234 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Provider.
    Provider,
    /// Route server.
    RouteServer,
    /// Client of a route server.
    RouteServerClient,
    /// Customer.
    Customer,
    /// Peer.
    Peer,
    /// A number without a meaning: it fits none.
    Unassigned(u8),
}

impl Role {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Provider,
            1 => Self::RouteServer,
            2 => Self::RouteServerClient,
            3 => Self::Customer,
            4 => Self::Peer,
            _ => Self::Unassigned(code),
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Provider => 0,
            Self::RouteServer => 1,
            Self::RouteServerClient => 2,
            Self::Customer => 3,
            Self::Peer => 4,
            Self::Unassigned(code) => code,
        }
    }

    /// Whether the two ends of a session can have these roles (RFC 9234 section 4.2).
    pub const fn fits(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Provider, Self::Customer)
                | (Self::Customer, Self::Provider)
                | (Self::RouteServer, Self::RouteServerClient)
                | (Self::RouteServerClient, Self::RouteServer)
                | (Self::Peer, Self::Peer)
        )
    }
}

impl Capability {
    /// Its code (IANA).
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::MultiProtocol(_) => MULTI_PROTOCOL,
            Self::RouteRefresh => 2,
            Self::ExtendedNextHop(_) => 5,
            Self::ExtendedMessage => 6,
            Self::Role(_) => ROLE,
            Self::GracefulRestart(_) => 64,
            Self::FourOctetAs(_) => FOUR_OCTET_AS,
            Self::AddPath(_) => 69,
            Self::EnhancedRouteRefresh => 70,
            Self::LongLivedGracefulRestart(_) => 71,
            Self::Fqdn { .. } => 73,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Whether it lets IPv4 unicast routes have an IPv6 next hop.
    pub(super) fn allows_ipv4_over_ipv6(&self) -> bool {
        matches!(self, Self::ExtendedNextHop(all) if all.contains(&NextHopEncoding::IPV4_OVER_IPV6))
    }

    /// Writes code, length and value.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        match self {
            Self::MultiProtocol(family) => {
                value.extend_from_slice(&afi(*family).to_be_bytes());
                value.extend_from_slice(&[0, SAFI_UNICAST]);
            }
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRouteRefresh => {}
            Self::ExtendedNextHop(encodings) => {
                for encoding in encodings {
                    for field in [encoding.afi, encoding.safi, encoding.next_hop_afi] {
                        value.extend_from_slice(&field.to_be_bytes());
                    }
                }
            }
            Self::Role(role) => value.push(role.code()),
            Self::GracefulRestart(restart) => restart.encode(&mut value),
            Self::FourOctetAs(asn) => value.extend_from_slice(&asn.get().to_be_bytes()),
            Self::AddPath(families) => {
                for entry in families {
                    value.extend_from_slice(&afi(entry.family).to_be_bytes());
                    let mode = u8::from(entry.receive) + 2 * u8::from(entry.send);
                    value.extend_from_slice(&[SAFI_UNICAST, mode]);
                }
            }
            Self::LongLivedGracefulRestart(families) => {
                families.iter().for_each(|family| family.encode(&mut value));
            }
            Self::Fqdn { host, domain } => {
                for name in [host, domain] {
                    // Both with their lengths have to fit 255 octets.
                    let name = truncated(name, 126);
                    value.push(u8::try_from(name.len()).unwrap_or(0));
                    value.extend_from_slice(name.as_bytes());
                }
            }
            Self::Unknown { value: bytes, .. } => value.extend_from_slice(bytes),
        }
        // Ours are short; one that was received had a one-octet length.
        let length = u8::try_from(value.len()).unwrap_or(0);
        out.extend_from_slice(&[self.code(), length]);
        out.extend_from_slice(value.get(..usize::from(length)).unwrap_or_default());
    }

    /// Reads the capabilities of one optional parameter, `None` if they do not fit it. One whose
    /// value is not as its RFC says is kept as `Unknown`, as if the peer had not sent it.
    pub(crate) fn decode_all(bytes: &[u8], into: &mut Vec<Self>) -> Option<()> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let code = reader.u8()?;
            let value = reader.short_field()?;
            let known = Self::decode(code, value);
            into.push(known.unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() }));
        }
        Some(())
    }

    fn decode(code: u8, value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let capability = match code {
            MULTI_PROTOCOL => {
                let (afi, _reserved, safi) = (reader.u16()?, reader.u8()?, reader.u8()?);
                Self::MultiProtocol(family_of(afi, safi)?)
            }
            2 => Self::RouteRefresh,
            5 => Self::ExtendedNextHop(decode_next_hops(&mut reader)?),
            6 => Self::ExtendedMessage,
            ROLE => Self::Role(Role::from_code(reader.u8()?)),
            64 => Self::GracefulRestart(GracefulRestart::decode(&mut reader)?),
            FOUR_OCTET_AS => Self::FourOctetAs(Asn::new(reader.u32()?).ok()?),
            69 => Self::AddPath(decode_add_path(&mut reader)?),
            70 => Self::EnhancedRouteRefresh,
            71 => Self::LongLivedGracefulRestart(LongLivedFamily::decode_all(&mut reader)?),
            73 => {
                let mut name = || Some(std::str::from_utf8(reader.short_field()?).ok()?.to_owned());
                let (host, domain) = (name()?, name()?);
                // Longer ones could not be written again.
                if host.len().max(domain.len()) > 126 {
                    return None;
                }
                Self::Fqdn { host, domain }
            }
            _ => return None,
        };
        reader.is_empty().then_some(capability)
    }
}

fn decode_next_hops(reader: &mut Reader<'_>) -> Option<Vec<NextHopEncoding>> {
    let mut encodings = Vec::with_capacity(reader.remaining() / 6);
    while !reader.is_empty() {
        let (afi, safi, next_hop_afi) = (reader.u16()?, reader.u16()?, reader.u16()?);
        encodings.push(NextHopEncoding { afi, safi, next_hop_afi });
    }
    Some(encodings)
}

fn decode_add_path(reader: &mut Reader<'_>) -> Option<Vec<AddPathFamily>> {
    let mut families = Vec::new();
    while !reader.is_empty() {
        let (afi, safi, mode) = (reader.u16()?, reader.u8()?, reader.u8()?);
        // RFC 7911 section 4: any other value, and the capability is as good as not there.
        if !(1..=3).contains(&mode) {
            return None;
        }
        if let Some(family) = family_of(afi, safi) {
            families.push(AddPathFamily { family, receive: mode & 1 != 0, send: mode & 2 != 0 });
        }
    }
    Some(families)
}

/// The longest beginning of a text with at most `limit` octets.
pub(super) fn truncated(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
