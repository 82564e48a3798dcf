use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use twill_types::{Family, Prefix};

use super::reader::Reader;

/// Octets of a path identifier (RFC 7911 section 3).
pub(super) const PATH_ID: usize = 4;

/// A route's key on a session: the prefix, and the path identifier of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    /// The destination.
    pub prefix: Prefix,
    /// The identifier (RFC 7911 section 3); 0 where ADD-PATH was not negotiated.
    pub path_id: u32,
}

impl From<Prefix> for Nlri {
    fn from(prefix: Prefix) -> Self {
        Self { prefix, path_id: 0 }
    }
}

impl fmt::Display for Nlri {
    /// `10.0.0.0/24`, and `10.0.0.0/24 path 7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.fmt(f)?;
        if self.path_id == 0 { Ok(()) } else { write!(f, " path {}", self.path_id) }
    }
}

/// Routes as they came in: checked, and still as compact as in the message. A prefix of one octet
/// on the wire would else take 24 in memory, and an UPDATE could hold 65,000 of them.
#[derive(Clone, Default)]
pub struct Routes {
    fields: Vec<Field>,
}

/// One field of prefixes of a message.
#[derive(Clone)]
struct Field {
    family: Family,
    with_id: bool,
    octets: Vec<u8>,
    count: usize,
    /// One of them begins like a prefix that is no destination.
    suspicious: bool,
}

impl Routes {
    /// How many there are, the same one counted as often as it was named.
    pub fn len(&self) -> usize {
        self.fields.iter().map(|field| field.count).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each of them, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = Nlri> {
        self.fields.iter().flat_map(Field::iter)
    }

    /// Each of them without its path identifier.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.iter().map(|nlri| nlri.prefix)
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.fields.append(&mut other.fields);
    }

    /// Reads a field of prefixes to its end (RFC 4271 section 4.3, RFC 4760 section 5). `None` if
    /// a length is too long for the family or the field ends inside a prefix: then nothing of it
    /// can be trusted (RFC 7606 section 5.3). Bits behind the length are of no consequence.
    pub(super) fn decode(octets: &[u8], family: Family, with_id: bool) -> Option<Self> {
        let mut reader = Reader::new(octets);
        let (mut count, mut suspicious) = (0, false);
        while !reader.is_empty() {
            if with_id {
                reader.take(PATH_ID)?;
            }
            let length = reader.u8()?;
            if length > family.bits() {
                return None;
            }
            let first = reader.take(usize::from(length).div_ceil(8))?.first();
            suspicious |= first.is_some_and(|first| match family {
                Family::V4 => *first == 127 || *first >= 224,
                Family::V6 => *first == 0 || *first >= 0xfe,
            });
            count += 1;
        }
        if count == 0 {
            return Some(Self::default());
        }
        let octets = octets.to_vec();
        Some(Self { fields: vec![Field { family, with_id, octets, count, suspicious }] })
    }

    /// Takes out what can be no destination (RFC 4271 section 6.3: a prefix that is semantically
    /// incorrect, such as a multicast one, is ignored); says how many those were.
    pub(super) fn discard_martians(&mut self) -> usize {
        let mut discarded = 0;
        for field in &mut self.fields {
            if !field.suspicious || !field.iter().any(|nlri| is_martian(nlri.prefix)) {
                continue;
            }
            let mut kept = Vec::with_capacity(field.octets.len());
            let mut count = 0;
            for nlri in field.iter().filter(|nlri| !is_martian(nlri.prefix)) {
                encode(nlri, field.with_id, &mut kept);
                count += 1;
            }
            discarded += field.count - count;
            (field.count, field.octets) = (count, kept);
        }
        discarded
    }
}

impl Field {
    fn iter(&self) -> impl Iterator<Item = Nlri> {
        let mut reader = Reader::new(&self.octets);
        let (family, with_id) = (self.family, self.with_id);
        std::iter::from_fn(move || next(&mut reader, family, with_id))
    }
}

impl IntoIterator for Routes {
    type Item = Nlri;
    type IntoIter = std::vec::IntoIter<Nlri>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter().collect::<Vec<_>>().into_iter()
    }
}

/// For what has no message: all of them with a path identifier, or none.
impl FromIterator<Nlri> for Routes {
    fn from_iter<I: IntoIterator<Item = Nlri>>(all: I) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        for nlri in all {
            let family = nlri.prefix.family();
            if fields.last().is_none_or(|field| field.family != family) {
                let octets = Vec::new();
                let field = Field { family, with_id: true, octets, count: 0, suspicious: true };
                fields.push(field);
            }
            if let Some(field) = fields.last_mut() {
                encode(nlri, true, &mut field.octets);
                field.count += 1;
            }
        }
        Self { fields }
    }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Routes {}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|nlri| nlri.to_string())).finish()
    }
}

fn next(reader: &mut Reader<'_>, family: Family, with_id: bool) -> Option<Nlri> {
    let path_id = if with_id { reader.u32()? } else { 0 };
    let length = reader.u8()?;
    let rest = reader.rest();
    let octets = reader.take(usize::from(length).div_ceil(8))?;
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(padded::<4>(rest, octets))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(padded::<16>(rest, octets))),
    };
    Some(Nlri { prefix: Prefix::masked(address, length).ok()?, path_id })
}

/// As many octets as an address has. Those behind the prefix go with its host bits, so they may as
/// well come from the next one: a copy of a fixed size is the quicker one.
fn padded<const N: usize>(rest: &[u8], octets: &[u8]) -> [u8; N] {
    if let Some(address) = rest.first_chunk() {
        return *address;
    }
    let mut address = [0; N];
    if let Some(head) = address.get_mut(..octets.len()) {
        head.copy_from_slice(octets);
    }
    address
}

/// Loopback, multicast and link-local prefixes. What merely covers such ones is a destination.
fn is_martian(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(v4) => {
            (v4.is_loopback() && prefix.length() >= 8)
                || (v4.is_multicast() && prefix.length() >= 4)
        }
        IpAddr::V6(v6) => {
            (v6.is_loopback() && prefix.length() == 128)
                || (v6.is_multicast() && prefix.length() >= 8)
                || (v6.is_unicast_link_local() && prefix.length() >= 10)
        }
    }
}

/// Octets that a route takes.
pub(super) fn encoded_length(prefix: Prefix, with_id: bool) -> usize {
    1 + usize::from(prefix.length()).div_ceil(8) + if with_id { PATH_ID } else { 0 }
}

pub(super) fn encode(nlri: Nlri, with_id: bool, out: &mut Vec<u8>) {
    if with_id {
        out.extend_from_slice(&nlri.path_id.to_be_bytes());
    }
    out.push(nlri.prefix.length());
    let end = out.len() + usize::from(nlri.prefix.length()).div_ceil(8);
    // All octets, and back to those that count: a copy of a fixed size is the quicker one.
    match nlri.prefix.address() {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
    out.truncate(end);
}
