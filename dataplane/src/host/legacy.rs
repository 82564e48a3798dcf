//! The same in the tables of `iptables-legacy`, which are not nftables'.

use std::fs;

use twill_sys::{XTable, read_xtable};
use twill_types::{Family, HOST_LINK_PREFIX};

use super::DroppingChain;
use crate::Error;

/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;

/// Verdicts in the kernel's form.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// Where things are in `struct ipt_entry` and `struct ip6t_entry`.
struct Layout {
    /// The names of the links in and out, then their masks, 16 octets each.
    links: usize,
    target_offset: usize,
    next_offset: usize,
    size: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout { links: 16, target_offset: 88, next_offset: 90, size: 112 },
        Family::V6 => Layout { links: 64, target_offset: 140, next_offset: 142, size: 168 },
    }
}

/// Whether there are tables of `iptables-legacy` or `ip6tables-legacy`, of whose changes the kernel tells
/// nobody.
pub fn has_old_tables() -> bool {
    [Family::V4, Family::V6].into_iter().any(|family| !tables(family).is_empty())
}

/// The tables of a family in the calling thread's namespace, a line each.
fn tables(family: Family) -> String {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    // Without the module there is no such file, and no table.
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}

/// The chain FORWARD of a family's table `filter`, if it drops pods' packets.
pub(super) fn dropping_chain(family: Family) -> Result<Option<DroppingChain>, Error> {
    let tool = match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    // To ask for a table that is not there would make it.
    if !tables(family).lines().any(|name| name == "filter") {
        return Ok(None);
    }
    let table = read_xtable(family == Family::V6, "filter").map_err(Error::Socket)?;
    let (drops, from, to) = look(&table, &layout(family));
    Ok((drops && !(from && to)).then(|| DroppingChain {
        family: tool,
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        from_pods: !from,
        to_pods: !to,
    }))
}

/// Whether the policy is to drop, and whether a rule accepts all that comes from pods' links, and all that
/// goes to them.
fn look(table: &XTable, layout: &Layout) -> (bool, bool, bool) {
    let at = |offset: u32| table.entries.get(offset as usize..).unwrap_or_default();
    let policy = table.underflow[FORWARD];
    let drops = verdict(at(policy), layout) == Some(DROP);
    let (mut from, mut to) = (false, false);
    let mut offset = table.hook_entry[FORWARD];
    while offset < policy {
        let entry = at(offset);
        let (rule_from, rule_to) = accepts(entry, layout).unwrap_or_default();
        from |= rule_from;
        to |= rule_to;
        match short(entry, layout.next_offset) {
            Some(next) if next > 0 => offset += u32::from(next),
            _ => break,
        }
    }
    (drops, from, to)
}

fn short(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// The verdict of a rule without a target of its own.
fn verdict(entry: &[u8], layout: &Layout) -> Option<i32> {
    /// `struct xt_entry_target`: the size, the name, the revision.
    const NAME: std::ops::Range<usize> = 2..31;
    const HEADER: usize = 32;
    let target = entry.get(usize::from(short(entry, layout.target_offset)?)..)?;
    let standard = target.get(NAME)?.first() == Some(&0);
    let code = target.get(HEADER..)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    code.filter(|_| standard)
}

/// Whether a rule accepts by the name of one link alone, or everything.
fn accepts(entry: &[u8], layout: &Layout) -> Option<(bool, bool)> {
    const NAME: usize = 16;
    let links = layout.links;
    // Addresses before the links' names, protocol and flags behind their masks.
    let addresses = entry.get(..links)?;
    let rest = entry.get(links + 4 * NAME..layout.target_offset - 4)?;
    let is_plain = addresses.iter().chain(rest).all(|octet| *octet == 0)
        && usize::from(short(entry, layout.target_offset)?) == layout.size
        && verdict(entry, layout)? == ACCEPT;
    let link = |index: usize| -> Option<Link> {
        let name = entry.get(links + index * NAME..)?.get(..NAME)?;
        let mask = entry.get(links + (index + 2) * NAME..)?.get(..NAME)?;
        let length = mask.iter().take_while(|octet| **octet != 0).count();
        Some(match length {
            0 => Link::Any,
            _ if HOST_LINK_PREFIX.as_bytes().starts_with(&name[..length]) => Link::Pods,
            _ => Link::Other,
        })
    };
    Some(match (link(0)?, link(1)?) {
        _ if !is_plain => (false, false),
        (Link::Any, Link::Any) => (true, true),
        (Link::Pods, Link::Any) => (true, false),
        (Link::Any, Link::Pods) => (false, true),
        _ => (false, false),
    })
}

enum Link {
    Any,
    Pods,
    Other,
}
