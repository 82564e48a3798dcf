//! Chains that drop what they do not accept, on the way of packets through the node.
//!
//! Each base chain decides for itself: what another table accepts, ours included, is dropped by one of
//! these all the same. So only its owner, or the administrator, can let pods pass.

use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_DUMP;
use twill_types::{Family, HOST_LINK_PREFIX};

use super::legacy;
use crate::{
    Error,
    netlink::until_consistent,
    nftables::{Attributes, Kind, Message, Socket, attributes, find, number, text},
};

/// A base chain at the forward hook with the policy `drop` that has no rule to let pods pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppingChain {
    /// The table's family in nft's words: ip, ip6, inet; or the tool that made a table which is not
    /// nftables': iptables-legacy, ip6tables-legacy.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Whether no rule accepts what comes from pods' links.
    pub from_pods: bool,
    /// Whether no rule accepts what goes to pods' links.
    pub to_pods: bool,
}

impl DroppingChain {
    /// Whether packets of a family go through it.
    pub fn concerns(&self, family: Family) -> bool {
        match self.family {
            "ip" | "iptables-legacy" => family == Family::V4,
            "ip6" | "ip6tables-legacy" => family == Family::V6,
            _ => true,
        }
    }

    /// Commands that let pods pass.
    pub fn remedy(&self) -> String {
        let Self { family, table, chain, from_pods, to_pods } = self;
        let directions = [(from_pods, "-i", "iifname"), (to_pods, "-o", "oifname")];
        let commands = directions.into_iter().filter(|(needed, ..)| **needed);
        let commands = commands.map(|(_, option, word)| match (*family, &**table, &**chain) {
            // By the tool that the table is made with, which does not know rules of others.
            ("ip", "filter", "FORWARD") => {
                format!("iptables -I FORWARD {option} {HOST_LINK_PREFIX}+ -j ACCEPT")
            }
            ("ip6", "filter", "FORWARD") => {
                format!("ip6tables -I FORWARD {option} {HOST_LINK_PREFIX}+ -j ACCEPT")
            }
            (tool @ ("iptables-legacy" | "ip6tables-legacy"), ..) => {
                format!("{tool} -I FORWARD {option} {HOST_LINK_PREFIX}+ -j ACCEPT")
            }
            _ => format!(
                "nft insert rule {family} {table} {chain} {word} '\"{HOST_LINK_PREFIX}*\"' accept"
            ),
        });
        commands.collect::<Vec<_>>().join("; ")
    }
}

/// All of them in the namespace of the calling thread. A rule counts that accepts by the link's name alone,
/// `iifname "twl*"` or `-i twl+` and the same for the way out, or that accepts everything.
pub fn dropping_chains() -> Result<Vec<DroppingChain>, Error> {
    /// Far longer than it takes to take a table down: a kernel that still has other numbers counts otherwise.
    const COUNTING: Duration = Duration::from_secs(1);
    let mut socket = Socket::open()?;
    let began = Instant::now();
    let mut chains =
        until_consistent("chains", || chains_of_nftables(&mut socket, began.elapsed() < COUNTING))?;
    for family in [Family::V4, Family::V6] {
        chains.extend(legacy::dropping_chain(family)?);
    }
    chains.sort();
    Ok(chains)
}

/// Those of nftables; `None` if others have loaded a table meanwhile. While the kernel takes down a table it finds the
/// rules of one with the same name in vain, and does not say so: there seem to be none, and the chain has some, which
/// is looked at if it `counts`.
fn chains_of_nftables(
    socket: &mut Socket,
    counts: bool,
) -> Result<Option<Vec<DroppingChain>>, Error> {
    let generation = socket.generation()?;
    let question = Message {
        kind: Kind::GetChain,
        family: 0,
        flags: NLM_F_DUMP,
        attributes: Attributes::new(),
    };
    let found = socket.ask(&question, "chains", base_chain)?;
    let mut chains = Vec::new();
    for (protocol, count, mut chain) in found {
        let rules = rules(socket, protocol, &chain)?;
        if counts && rules.len() < count {
            return Ok(None);
        }
        for (from, to) in rules {
            chain.from_pods &= !from;
            chain.to_pods &= !to;
        }
        if chain.from_pods || chain.to_pods {
            chains.push(chain);
        }
    }
    Ok((socket.generation()? == generation).then_some(chains))
}

/// The chain in an answer, if it is one that drops, and how many rules it has.
fn base_chain(protocol: u8, bytes: &[u8]) -> Option<(u8, usize, DroppingChain)> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    /// Of a base chain, which no rule can jump to, only its own rules are counted.
    const USES: u16 = 6;
    const HOOK_NUMBER: u16 = 1;
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let family = match protocol {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let is_forward = find(find(bytes, HOOK)?, HOOK_NUMBER).and_then(number) == Some(FORWARD);
    let drops = find(bytes, POLICY).and_then(number) == Some(DROP);
    (is_forward && drops).then_some(())?;
    let [table, chain] = [TABLE, NAME].map(|kind| find(bytes, kind).and_then(text));
    let (table, chain) = (table?.to_owned(), chain?.to_owned());
    let count = find(bytes, USES).and_then(number).unwrap_or_default();
    let chain = DroppingChain { family, table, chain, from_pods: true, to_pods: true };
    Some((protocol, usize::try_from(count).unwrap_or_default(), chain))
}

/// Of each rule of a chain: whether it accepts all that comes from pods' links, and all that goes to them.
fn rules(
    socket: &mut Socket,
    protocol: u8,
    chain: &DroppingChain,
) -> Result<Vec<(bool, bool)>, Error> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let question = Message {
        kind: Kind::GetRule,
        family: protocol,
        flags: NLM_F_DUMP,
        attributes: Attributes::new().text(TABLE, &chain.table).text(CHAIN, &chain.chain),
    };
    socket.ask(&question, "rules", |_, bytes| Some(accepts(find(bytes, EXPRESSIONS)?)))
}

/// What a rule matches on, as far as it is looked at here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Everything,
    FromPods,
    ToPods,
}

fn accepts(expressions: &[u8]) -> (bool, bool) {
    match matches(expressions) {
        Some(Match::Everything) => (true, true),
        Some(Match::FromPods) => (true, false),
        Some(Match::ToPods) => (false, true),
        None => (false, false),
    }
}

/// `None` if it does not accept, or asks for more than the name of one link.
fn matches(expressions: &[u8]) -> Option<Match> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let (mut loaded, mut found) = (None, Match::Everything);
    for (_, expression) in attributes(expressions) {
        let data = find(expression, DATA).unwrap_or_default();
        match find(expression, NAME).and_then(text)? {
            "counter" => {}
            "meta" => loaded = Some(link_name(data)?),
            "cmp" => {
                // One name and no other.
                let by = loaded.take().filter(|_| found == Match::Everything)?;
                if !is_pods_prefix(data) {
                    return None;
                }
                found = by;
            }
            "immediate" => return is_accept(data).then_some(found),
            _ => return None,
        }
    }
    None
}

/// `NFT_META_IIFNAME` or `NFT_META_OIFNAME`.
fn link_name(data: &[u8]) -> Option<Match> {
    const KEY: u16 = 2;
    match number(find(data, KEY)?)? {
        6 => Some(Match::FromPods),
        7 => Some(Match::ToPods),
        _ => None,
    }
}

/// A comparison for equality with the beginning of the names of pods' links.
fn is_pods_prefix(data: &[u8]) -> bool {
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    const VALUE: u16 = 1;
    const EQUAL: u32 = 0;
    let value = find(data, DATA).and_then(|data| find(data, VALUE)).unwrap_or_default();
    find(data, OPERATION).and_then(number) == Some(EQUAL)
        && !value.is_empty()
        && HOST_LINK_PREFIX.as_bytes().starts_with(value)
}

fn is_accept(data: &[u8]) -> bool {
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const ACCEPT: u32 = 1;
    let verdict = find(data, DATA).and_then(|data| find(data, VERDICT));
    verdict.and_then(|verdict| find(verdict, CODE)).and_then(number) == Some(ACCEPT)
}
