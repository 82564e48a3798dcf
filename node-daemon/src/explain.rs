//! `twillctl bgp explain`: what the speaker says of a prefix, and what the kernel made of it.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use twill_bgp_proto::{Explanation, NextHopState, Outcome, PathExplanation, wire::PathAttributes};
use twill_rpc::message::{Explained, ExplainedNextHop, ExplainedPath};
use twill_types::Prefix;

use crate::routes::KernelRoutes;

/// The answer as messages show it.
pub(crate) fn explained(
    asked: Prefix,
    explanation: Option<Explanation>,
    kernel: &KernelRoutes,
) -> Explained {
    let Some(explanation) = explanation else {
        return Explained {
            asked,
            prefix: None,
            own: None,
            announced: None,
            lent: None,
            installed: false,
            next_hops: Vec::new(),
            max_paths: 0,
            paths: Vec::new(),
        };
    };
    Explained {
        asked,
        prefix: Some(explanation.prefix),
        own: explanation.own,
        announced: explanation.announced,
        lent: explanation.lent,
        installed: kernel.installed.contains(&explanation.prefix),
        next_hops: explanation.next_hops,
        max_paths: u32::try_from(explanation.max_paths).unwrap_or(u32::MAX),
        paths: explanation.paths.iter().map(|path| explained_path(path, kernel)).collect(),
    }
}

fn explained_path(path: &PathExplanation, kernel: &KernelRoutes) -> ExplainedPath {
    let attributes = &path.attributes;
    let (step, against) = match path.outcome {
        Outcome::Equal { step, against } | Outcome::Lost { step, against } => {
            (Some(step.to_string()), Some(against))
        }
        Outcome::Best | Outcome::Unusable(_) => (None, None),
    };
    ExplainedPath {
        from: path.from.address,
        port: path.from.port,
        path_id: path.path_id,
        external: path.external,
        router_id: path.router_id.map(|id| id.to_string()),
        best: path.outcome == Outcome::Best,
        used: path.outcome.is_used(),
        stale: path.stale,
        stale_for_ms: path.stale_for.map(milliseconds),
        reason: path.outcome.to_string(),
        step,
        against: against.map(|against| against.peer.address),
        against_path_id: against.map_or(0, |against| against.path_id),
        next_hop: next_hop(attributes.next_hop, path.next_hop, kernel),
        as_path: attributes.as_path.to_string(),
        origin: attributes.origin.to_string(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        aigp: attributes.aigp,
        communities: communities(attributes),
        only_to_customer: attributes.only_to_customer,
        originator_id: attributes.originator_id.map(|id| id.to_string()),
        cluster_list: attributes.cluster_list.iter().map(ToString::to_string).collect(),
    }
}

fn next_hop(
    address: IpAddr,
    state: Option<NextHopState>,
    kernel: &KernelRoutes,
) -> ExplainedNextHop {
    let resolved = kernel.resolved.get(&address).copied().flatten();
    ExplainedNextHop {
        address,
        reachable: state.map(|state| matches!(state, NextHopState::Reachable { .. })),
        metric: match state {
            Some(NextHopState::Reachable { metric }) => Some(metric),
            Some(NextHopState::Unreachable) | None => None,
        },
        gateway: resolved.and_then(|resolved| resolved.gateway),
        device: resolved.map(|resolved| device(resolved.ifindex)),
    }
}

/// A time as messages have it.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The link's name, or its number if it has just gone.
fn device(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index);
    name.map_or_else(|_| format!("if{index}"), |name| name.to_string_lossy().into_owned())
}

/// Communities, plain, extended and large, as text.
pub(crate) fn communities(attributes: &PathAttributes) -> Vec<String> {
    let plain = attributes.communities.iter().map(ToString::to_string);
    let extended = attributes.extended_communities.iter().map(|octets| extended(*octets));
    let large = attributes.large_communities.iter().map(ToString::to_string);
    plain.chain(extended).chain(large).collect()
}

/// An extended community (RFC 4360, RFC 5668): route targets and origins by name, as in
/// `rt:64512:100`, others by their octets, as in `0x0102030405060708`.
fn extended(octets: [u8; 8]) -> String {
    let [kind, subtype, value @ ..] = octets;
    let [a, b, c, d, e, f] = value;
    let (long, short) = (u32::from_be_bytes([c, d, e, f]), u16::from_be_bytes([e, f]));
    let value = match kind {
        // Two-octet AS, IPv4 address, four-octet AS.
        0 => format!("{}:{long}", u16::from_be_bytes([a, b])),
        1 => format!("{}:{short}", Ipv4Addr::new(a, b, c, d)),
        2 => format!("{}:{short}", u32::from_be_bytes([a, b, c, d])),
        _ => return format!("0x{:016x}", u64::from_be_bytes(octets)),
    };
    match subtype {
        2 => format!("rt:{value}"),
        3 => format!("ro:{value}"),
        _ => format!("0x{:016x}", u64::from_be_bytes(octets)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_communities_as_text() {
        for (octets, text) in [
            (0x0002_fc00_0000_0064, "rt:64512:100"),
            (0x0003_fc00_0001_86a0, "ro:64512:100000"),
            (0x0102_c000_0201_0007, "rt:192.0.2.1:7"),
            (0x0202_fa56_ea00_0007, "rt:4200000000:7"),
            (0x0004_fc00_0000_0064, "0x0004fc0000000064"),
            (0x4004_0000_0000_0001, "0x4004000000000001"),
        ] {
            assert_eq!(extended(u64::to_be_bytes(octets)), text);
        }
    }
}
