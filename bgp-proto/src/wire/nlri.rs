use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use twill_types::{Family, Prefix};

use super::reader::Reader;

/// Reads prefixes to the end of the field (RFC 4271 section 4.3, RFC 4760 section 5). `None` if a
/// length is too long for the family or the field ends inside a prefix: then nothing of it can be
/// trusted (RFC 7606 section 5.3). Bits behind the length are of no consequence.
pub(super) fn decode(bytes: &[u8], family: Family) -> Option<Vec<Prefix>> {
    let mut reader = Reader::new(bytes);
    // A /0 takes one octet, and most take four or more.
    let mut prefixes = Vec::with_capacity(bytes.len() / 4 + 1);
    while !reader.is_empty() {
        let length = reader.u8()?;
        if length > family.bits() {
            return None;
        }
        let octets = reader.take(usize::from(length).div_ceil(8))?;
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(padded::<4>(octets))),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(padded::<16>(octets))),
        };
        prefixes.push(Prefix::masked(address, length).ok()?);
    }
    Some(prefixes)
}

fn padded<const N: usize>(octets: &[u8]) -> [u8; N] {
    let mut address = [0; N];
    for (place, octet) in address.iter_mut().zip(octets) {
        *place = *octet;
    }
    address
}

/// Octets that a prefix takes.
pub(super) fn encoded_length(prefix: Prefix) -> usize {
    1 + usize::from(prefix.length()).div_ceil(8)
}

pub(super) fn encode(prefix: Prefix, out: &mut Vec<u8>) {
    out.push(prefix.length());
    let count = usize::from(prefix.length()).div_ceil(8);
    match prefix.address() {
        IpAddr::V4(v4) => out.extend(v4.octets().iter().take(count)),
        IpAddr::V6(v6) => out.extend(v6.octets().iter().take(count)),
    }
}
