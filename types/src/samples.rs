//! What several tests draw from.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use crate::Prefix;

/// Prefixes of both families that are often the same, cover each other, and are close together.
pub(crate) fn any_prefix() -> impl Strategy<Value = Prefix> {
    (0..4096_u32, 0..=4_u8, 0..4_u8).prop_map(|(number, shorter, family)| {
        let (address, longest): (IpAddr, u8) = match family {
            0 => (IpAddr::from(u128::from(number).to_be_bytes()), 128),
            _ => (Ipv4Addr::from_bits(number).into(), 32),
        };
        Prefix::masked(address, longest - shorter).unwrap()
    })
}
