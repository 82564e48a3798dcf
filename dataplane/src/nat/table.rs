//! The table, as messages.
//!
//! ```text
//! table inet twill {
//!     comment "natOutgoing, by twilld"
//!     set nat4 { type ipv4_addr; flags interval; elements = { <pools with natOutgoing> } }
//!     set pools4 { type ipv4_addr; flags interval; elements = { <all pools> } }
//!     chain outgoing {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         meta nfproto ipv4 ip saddr @nat4 ip daddr != @pools4 counter masquerade fully-random
//!     }
//! }
//! ```
//!
//! and the same for IPv6.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use twill_types::{Family, Prefix};

use super::{Masquerade, TABLE};
use crate::nftables::{Attributes, INET, Kind, Message, text};

/// By which a table of this name is known to be ours.
pub(super) const COMMENT: &str = "natOutgoing, by twilld";

/// `NFTA_TABLE_USERDATA`.
pub(super) const USERDATA: u16 = 6;

const CHAIN: &str = "outgoing";

/// Prefixes in one message: an attribute has at most 64 KiB, and one of them takes 64 octets.
const PREFIXES: usize = 512;

/// A message about the table: all have its name as the first attribute.
fn in_table(kind: Kind, flags: u16, more: impl FnOnce(Attributes) -> Attributes) -> Message {
    const NAME: u16 = 1;
    Message { kind, family: INET, flags, attributes: more(Attributes::new().text(NAME, TABLE)) }
}

pub(super) fn get() -> Message {
    in_table(Kind::GetTable, 0, |table| table)
}

pub(super) fn delete() -> Message {
    in_table(Kind::DelTable, 0, |table| table)
}

/// The table with everything in it.
pub(super) fn table(wanted: &Masquerade, with_owner: bool) -> Vec<Message> {
    let mut messages = vec![new_table(with_owner), chain()];
    for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let of_family = |prefixes: &BTreeSet<Prefix>| -> Vec<Prefix> {
            prefixes.iter().copied().filter(|prefix| prefix.family() == family).collect()
        };
        let (sources, pools) = (of_family(&wanted.sources), of_family(&wanted.pools));
        if sources.is_empty() {
            continue;
        }
        let [from, to] = set_names(family);
        let id = if index == 0 { 1 } else { 3 };
        for (name, id, prefixes) in [(from, id, sources), (to, id + 1, pools)] {
            messages.push(set(name, id, family));
            messages.extend(intervals(&prefixes).chunks(PREFIXES).map(|part| {
                let elements = part.iter().flat_map(|interval| interval.elements(family));
                elements_of(name, id, elements)
            }));
        }
        messages.push(rule(family));
    }
    messages
}

fn set_names(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["nat4", "pools4"],
        Family::V6 => ["nat6", "pools6"],
    }
}

fn new_table(with_owner: bool) -> Message {
    const FLAGS: u16 = 2;
    const OWNER: u32 = 1 << 1;
    const PERSIST: u32 = 1 << 2;
    let flags = if with_owner { OWNER | PERSIST } else { 0 };
    in_table(Kind::NewTable, NLM_F_CREATE | NLM_F_EXCL, |table| {
        table.number(FLAGS, flags).bytes(USERDATA, &userdata())
    })
}

/// A comment as nft has it: type, length, text.
fn userdata() -> Vec<u8> {
    let text = [COMMENT.as_bytes(), &[0]].concat();
    [&[0, u8::try_from(text.len()).unwrap_or_default()], &text[..]].concat()
}

/// The comment in a table's user data.
pub(super) fn comment(userdata: &[u8]) -> Option<&str> {
    match userdata {
        [0, length, rest @ ..] => text(rest.get(..usize::from(*length))?),
        _ => None,
    }
}

fn chain() -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const POST_ROUTING: u32 = 4;
    const SRCNAT: u32 = 100;
    const ACCEPT: u32 = 1;
    let hook = Attributes::new().number(HOOK_NUMBER, POST_ROUTING).number(HOOK_PRIORITY, SRCNAT);
    in_table(Kind::NewChain, NLM_F_CREATE, |table| {
        table.text(NAME, CHAIN).nest(HOOK, &hook).number(POLICY, ACCEPT).text(TYPE, "nat")
    })
}

fn set(name: &str, id: u32, family: Family) -> Message {
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const KEY_LENGTH: u16 = 5;
    const ID: u16 = 10;
    const INTERVAL: u32 = 1 << 2;
    // nft's numbers for ipv4_addr and ipv6_addr.
    let key_type = match family {
        Family::V4 => 7,
        Family::V6 => 8,
    };
    in_table(Kind::NewSet, NLM_F_CREATE, |table| {
        table
            .text(NAME, name)
            .number(FLAGS, INTERVAL)
            .number(KEY_TYPE, key_type)
            .number(KEY_LENGTH, u32::from(family.bits()) / 8)
            .number(ID, id)
    })
}

fn elements_of(name: &str, id: u32, elements: impl Iterator<Item = Attributes>) -> Message {
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    const SET_ID: u16 = 4;
    in_table(Kind::NewElements, NLM_F_CREATE, |table| {
        table.text(SET, name).list(ELEMENTS, elements).number(SET_ID, id)
    })
}

/// Addresses from the first to the last, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval {
    first: u128,
    last: u128,
}

impl Interval {
    /// An element where it begins, and one behind its end, unless that is the end of all addresses.
    fn elements(self, family: Family) -> impl Iterator<Item = Attributes> {
        const KEY: u16 = 1;
        const FLAGS: u16 = 3;
        const INTERVAL_END: u32 = 1;
        const VALUE: u16 = 1;
        let octets = usize::from(family.bits()) / 8;
        let key = move |number: u128| {
            let bytes = number.to_be_bytes();
            let value = Attributes::new().bytes(VALUE, &bytes[bytes.len() - octets..]);
            Attributes::new().nest(KEY, &value)
        };
        let end = (self.last < u128::MAX >> (128 - u32::from(family.bits())))
            .then(|| key(self.last + 1).number(FLAGS, INTERVAL_END));
        [key(self.first)].into_iter().chain(end)
    }
}

/// The addresses of prefixes of one family, in order; what overlaps or adjoins is one interval, since
/// the kernel takes no overlaps.
fn intervals(prefixes: &[Prefix]) -> Vec<Interval> {
    let number = |prefix: &Prefix| match prefix.address() {
        std::net::IpAddr::V4(v4) => u128::from(u32::from(v4)),
        std::net::IpAddr::V6(v6) => u128::from(v6),
    };
    let mut all: Vec<Interval> = prefixes
        .iter()
        .map(|prefix| {
            let host_bits = u32::from(prefix.family().bits() - prefix.length());
            let hosts = u128::MAX.checked_shr(128 - host_bits).unwrap_or_default();
            Interval { first: number(prefix), last: number(prefix) | hosts }
        })
        .collect();
    all.sort_by_key(|interval| interval.first);
    let mut merged: Vec<Interval> = Vec::new();
    for next in all {
        match merged.last_mut() {
            Some(before) if next.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(next.last);
            }
            _ => merged.push(next),
        }
    }
    merged
}

fn rule(family: Family) -> Message {
    const CHAIN_NAME: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let [from, to] = set_names(family);
    // Source and destination in `struct iphdr` and `struct ipv6hdr`.
    let (protocol, source, destination) = match family {
        Family::V4 => (2, 12, 16),
        Family::V6 => (10, 8, 24),
    };
    let expressions = [
        nfproto(),
        equals(protocol),
        address(source, family),
        lookup(from, false),
        address(destination, family),
        lookup(to, true),
        expression("counter", &Attributes::new()),
        masquerade(),
    ];
    in_table(Kind::NewRule, NLM_F_CREATE | NLM_F_APPEND, |table| {
        table.text(CHAIN_NAME, CHAIN).list(EXPRESSIONS, expressions)
    })
}

/// `NFT_REG_1`: all expressions here use this one register.
const REGISTER: u32 = 1;

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().text(1, name).nest(2, data)
}

fn nfproto() -> Attributes {
    const NFPROTO: u32 = 15;
    expression("meta", &Attributes::new().number(1, REGISTER).number(2, NFPROTO))
}

fn equals(octet: u8) -> Attributes {
    const EQUAL: u32 = 0;
    let value = Attributes::new().bytes(1, &[octet]);
    expression("cmp", &Attributes::new().number(1, REGISTER).number(2, EQUAL).nest(3, &value))
}

/// An address of the network header.
fn address(offset: u32, family: Family) -> Attributes {
    const NETWORK_HEADER: u32 = 1;
    let length = u32::from(family.bits()) / 8;
    let data = Attributes::new().number(1, REGISTER).number(2, NETWORK_HEADER);
    expression("payload", &data.number(3, offset).number(4, length))
}

fn lookup(set: &str, inverted: bool) -> Attributes {
    let data = Attributes::new().text(1, set).number(2, REGISTER);
    expression("lookup", &if inverted { data.number(5, 1) } else { data })
}

/// With ports taken at random, as Calico does: taken in order, two connections that begin at once on
/// two processors can get the same one, and the kernel drops the first packet of one of them.
fn masquerade() -> Attributes {
    const PROTO_RANDOM_FULLY: u32 = 1 << 4;
    expression("masq", &Attributes::new().number(1, PROTO_RANDOM_FULLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(prefixes: &[&str]) -> Vec<(u128, u128)> {
        let prefixes: Vec<Prefix> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        intervals(&prefixes).into_iter().map(|interval| (interval.first, interval.last)).collect()
    }

    #[test]
    fn what_overlaps_or_adjoins_is_one_interval() {
        const TEN: u128 = 10 << 24;
        assert_eq!(merged(&["10.0.0.0/24", "10.0.0.64/26"]), [(TEN, TEN + 255)]);
        assert_eq!(merged(&["10.0.1.0/24", "10.0.0.0/24"]), [(TEN, TEN + 511)]);
        assert_eq!(
            merged(&["10.0.2.0/24", "10.0.0.0/24"]),
            [(TEN, TEN + 255), (TEN + 512, TEN + 767)]
        );
        assert_eq!(merged(&["0.0.0.0/0", "10.0.0.0/8"]), [(0, u128::from(u32::MAX))]);
        assert_eq!(merged(&["::/0"]), [(0, u128::MAX)]);
        assert_eq!(merged(&["ffff::/16", "fe80::/10"]).len(), 2);
        assert_eq!(merged(&[]), []);
    }

    #[test]
    fn an_interval_that_goes_to_the_end_has_no_end() {
        let count = |prefix: &str, family| {
            let prefix: Prefix = prefix.parse().unwrap();
            intervals(&[prefix])[0].elements(family).count()
        };
        assert_eq!(count("10.0.0.0/8", Family::V4), 2);
        assert_eq!(count("128.0.0.0/1", Family::V4), 1);
        assert_eq!(count("8000::/1", Family::V6), 1);
        assert_eq!(count("fd00::/8", Family::V6), 2);
    }

    /// On kernels before 6.9 the table is the same but for its flags.
    #[test]
    fn only_the_flags_differ_without_an_owner() {
        let pool: Prefix = "10.10.0.0/20".parse().unwrap();
        let wanted = Masquerade { sources: [pool].into(), pools: [pool].into() };
        let (with, without) = (table(&wanted, true), table(&wanted, false));
        assert_eq!(with[1..], without[1..]);
        let plain = in_table(Kind::NewTable, NLM_F_CREATE | NLM_F_EXCL, |table| {
            table.number(2, 0).bytes(USERDATA, &userdata())
        });
        assert_eq!(without[0], plain);
        assert_ne!(with[0], plain);
    }

    #[test]
    fn a_comment_is_read_as_it_is_written() {
        assert_eq!(comment(&userdata()), Some(COMMENT));
        for broken in [&[][..], &[0], &[0, 9, b'a'], &[1, 1, 0]] {
            assert_eq!(comment(broken), None, "{broken:?}");
        }
    }
}
