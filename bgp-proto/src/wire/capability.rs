use twill_types::{Asn, Family};

use super::{SAFI_UNICAST, afi, family_of, reader::Reader};

/// A capability of an OPEN (RFC 5492).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// Routes of one family (RFC 4760 section 8), code 1. Other families than ours are `Unknown`.
    MultiProtocol(Family),
    /// RFC 2918, code 2.
    RouteRefresh,
    /// IPv4 unicast with an IPv6 next hop (RFC 8950), code 5.
    ExtendedNextHop,
    /// RFC 8654, code 6.
    ExtendedMessage,
    /// RFC 4724, code 64.
    GracefulRestart(GracefulRestart),
    /// RFC 6793, code 65.
    FourOctetAs(Asn),
    /// RFC 7313, code 70.
    EnhancedRouteRefresh,
    /// One that this codec does not know, kept as it came.
    Unknown {
        /// Its code.
        code: u8,
        /// Its value.
        value: Vec<u8>,
    },
}

/// The graceful restart capability (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted, and is not to be waited for.
    pub restarting: bool,
    /// N: NOTIFICATIONs other than a Hard Reset keep routes, too (RFC 8538).
    pub notification: bool,
    /// How long routes should be kept for it, in seconds, 0 to 4095.
    pub restart_time: u16,
    /// The families that it covers.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of a [`GracefulRestart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GracefulRestartFamily {
    /// Which.
    pub family: Family,
    /// F: the sender kept its forwarding state over the restart.
    pub forwarding: bool,
}

impl Capability {
    const fn code(&self) -> u8 {
        match self {
            Self::MultiProtocol(_) => 1,
            Self::RouteRefresh => 2,
            Self::ExtendedNextHop => 5,
            Self::ExtendedMessage => 6,
            Self::GracefulRestart(_) => 64,
            Self::FourOctetAs(_) => 65,
            Self::EnhancedRouteRefresh => 70,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Writes code, length and value.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        match self {
            Self::MultiProtocol(family) => {
                value.extend_from_slice(&afi(*family).to_be_bytes());
                value.extend_from_slice(&[0, SAFI_UNICAST]);
            }
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRouteRefresh => {}
            Self::ExtendedNextHop => {
                // NLRI AFI, NLRI SAFI (two octets here), next hop AFI: RFC 8950 section 4.
                for field in [afi(Family::V4), u16::from(SAFI_UNICAST), afi(Family::V6)] {
                    value.extend_from_slice(&field.to_be_bytes());
                }
            }
            Self::GracefulRestart(restart) => restart.encode(&mut value),
            Self::FourOctetAs(asn) => value.extend_from_slice(&asn.get().to_be_bytes()),
            Self::Unknown { value: bytes, .. } => value.extend_from_slice(bytes),
        }
        // Ours are short; one that was received had a one-octet length.
        let length = u8::try_from(value.len()).unwrap_or(0);
        out.extend_from_slice(&[self.code(), length]);
        out.extend_from_slice(value.get(..usize::from(length)).unwrap_or_default());
    }

    /// Reads the capabilities of one optional parameter, `None` if they do not fit it. One whose
    /// value is not as its RFC says is kept as `Unknown`, as if the peer had not sent it.
    pub(super) fn decode_all(bytes: &[u8], into: &mut Vec<Self>) -> Option<()> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let code = reader.u8()?;
            let value = reader.short_field()?;
            if code == 5 {
                Self::decode_extended_next_hop(value, into);
                continue;
            }
            let known = Self::decode(code, value);
            into.push(known.unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() }));
        }
        Some(())
    }

    fn decode(code: u8, value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let capability = match code {
            1 => {
                let (afi, _reserved, safi) = (reader.u16()?, reader.u8()?, reader.u8()?);
                Self::MultiProtocol(family_of(afi, safi)?)
            }
            2 => Self::RouteRefresh,
            6 => Self::ExtendedMessage,
            64 => Self::GracefulRestart(GracefulRestart::decode(&mut reader)?),
            65 => Self::FourOctetAs(Asn::new(reader.u32()?).ok()?),
            70 => Self::EnhancedRouteRefresh,
            _ => return None,
        };
        reader.is_empty().then_some(capability)
    }

    /// Of the tuples only IPv4 unicast over IPv6 means anything to us.
    fn decode_extended_next_hop(value: &[u8], into: &mut Vec<Self>) {
        let wanted = [0, 1, 0, SAFI_UNICAST, 0, 2];
        let (tuples, rest) = value.as_chunks::<6>();
        if rest.is_empty() && tuples.contains(&wanted) {
            into.push(Self::ExtendedNextHop);
        } else {
            into.push(Self::Unknown { code: 5, value: value.to_vec() });
        }
    }
}

impl GracefulRestart {
    const R: u16 = 0x8000;
    const N: u16 = 0x4000;
    const F: u8 = 0x80;

    fn encode(&self, out: &mut Vec<u8>) {
        let mut head = self.restart_time & 0x0fff;
        if self.restarting {
            head |= Self::R;
        }
        if self.notification {
            head |= Self::N;
        }
        out.extend_from_slice(&head.to_be_bytes());
        for entry in &self.families {
            out.extend_from_slice(&afi(entry.family).to_be_bytes());
            out.extend_from_slice(&[SAFI_UNICAST, if entry.forwarding { Self::F } else { 0 }]);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let head = reader.u16()?;
        let mut families = Vec::new();
        while !reader.is_empty() {
            let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
            if let Some(family) = family_of(afi, safi) {
                families.push(GracefulRestartFamily { family, forwarding: flags & Self::F != 0 });
            }
        }
        Some(Self {
            restarting: head & Self::R != 0,
            notification: head & Self::N != 0,
            restart_time: head & 0x0fff,
            families,
        })
    }
}
