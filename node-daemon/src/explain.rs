//! `twillctl bgp explain`: what the speaker says of a prefix, and what the kernel made of it.

use std::{net::Ipv4Addr, time::Duration};

use twill_bgp_proto::{
    Explanation, NextHopState, Outcome, PathExplanation, PeerKey, Unusable, wire::PathAttributes,
};
use twill_dataplane::NextHop;
use twill_rpc::message::{Explained, ExplainedHop, ExplainedNextHop, ExplainedPath, Withheld};
use twill_types::{BgpNextHop, Prefix};

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
            withheld: Vec::new(),
            paths: Vec::new(),
        };
    };
    let mut next_hops: Vec<_> =
        explanation.next_hops.iter().map(|next_hop| next_hop.address).collect();
    // A link-local one of several peers; they are in order.
    next_hops.dedup();
    Explained {
        asked,
        prefix: Some(explanation.prefix),
        own: explanation.own,
        announced: explanation.announced,
        lent: explanation.lent,
        installed: kernel.has(explanation.prefix),
        next_hops,
        max_paths: u32::try_from(explanation.max_paths).unwrap_or(u32::MAX),
        withheld: explanation.withheld.into_iter().map(withheld).collect(),
        paths: explanation.paths.iter().map(|path| explained_path(path, kernel)).collect(),
    }
}

fn withheld((peer, by): (PeerKey, String)) -> Withheld {
    Withheld { from: peer.address, port: peer.port, by }
}

fn explained_path(path: &PathExplanation, kernel: &KernelRoutes) -> ExplainedPath {
    let attributes = &path.attributes;
    let next_hop = BgpNextHop::new(attributes.next_hop, path.from.address);
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
        reason: reason(path, next_hop),
        step,
        against: against.map(|against| against.peer.address),
        against_path_id: against.map_or(0, |against| against.path_id),
        next_hop: explained_next_hop(next_hop, path.next_hop, kernel),
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

fn reason(path: &PathExplanation, next_hop: BgpNextHop) -> String {
    match (&path.refused_by, path.outcome) {
        (Some(rule), _) => format!("rejected by {rule}"),
        (None, Outcome::Unusable(Unusable::NextHopUnreachable)) if next_hop.is_link_local() => {
            let peer = path.from.address;
            format!(
                "next hop unreachable: a link-local address, for which there must be a way on a link that leads \
                 to {peer} directly"
            )
        }
        (None, outcome) => outcome.to_string(),
    }
}

fn explained_next_hop(
    next_hop: BgpNextHop,
    state: Option<NextHopState>,
    kernel: &KernelRoutes,
) -> ExplainedNextHop {
    let resolved = kernel.resolved.get(&next_hop).and_then(Option::as_ref);
    let hop = |hop: &NextHop| ExplainedHop { gateway: hop.gateway, device: device(hop.ifindex) };
    let mut hops = resolved.into_iter().flat_map(|way| &way.hops).map(hop);
    let first = hops.next();
    ExplainedNextHop {
        address: next_hop.address,
        reachable: state.map(|state| matches!(state, NextHopState::Reachable { .. })),
        metric: match state {
            Some(NextHopState::Reachable { metric }) => Some(metric),
            Some(NextHopState::Unreachable) | None => None,
        },
        gateway: first.as_ref().and_then(|first| first.gateway),
        device: first.map(|first| first.device),
        others: hops.collect(),
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
    let large = attributes.large_communities.iter().map(ToString::to_string);
    let extended = attributes.extended_communities.iter().copied().map(extended_community);
    plain.chain(large).chain(extended).collect()
}

/// An extended community as routers write it: `rt:64513:9`, `soo:192.0.2.1:9`, or its octets in
/// hexadecimal where it is neither a route target nor a route origin (RFC 4360 sections 3 to 5).
fn extended_community(octets: [u8; 8]) -> String {
    let [kind, subtype, value @ ..] = octets;
    let name = match subtype {
        2 => "rt",
        3 => "soo",
        _ => return hexadecimal(octets),
    };
    let [a, b, c, d, e, f] = value;
    match kind {
        // An AS number of two octets, an IPv4 address, an AS number of four (RFC 5668).
        0 => {
            format!("{name}:{}:{}", u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]))
        }
        1 => format!("{name}:{}:{}", Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, f])),
        2 => {
            format!("{name}:{}:{}", u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]))
        }
        _ => hexadecimal(octets),
    }
}

fn hexadecimal(octets: [u8; 8]) -> String {
    format!("0x{:016x}", u64::from_be_bytes(octets))
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use twill_bgp_proto::wire::{AsPath, Origin};

    use super::*;

    #[test]
    fn extended_communities_read_as_routers_write_them() {
        for (octets, text) in [
            ([0, 2, 0xfc, 1, 0, 0, 0, 9], "rt:64513:9"),
            ([1, 3, 192, 0, 2, 1, 0, 9], "soo:192.0.2.1:9"),
            ([2, 2, 0, 1, 0, 0, 0, 9], "rt:65536:9"),
            ([0x40, 4, 0xfc, 1, 0, 0, 0, 9], "0x4004fc0100000009"),
            ([3, 2, 0, 0, 0, 0, 0, 9], "0x0302000000000009"),
        ] {
            assert_eq!(extended_community(octets), text);
        }
    }

    /// Of two peers it is two next hops, for people it is one address.
    #[test]
    fn a_link_local_next_hop_of_two_peers_is_told_once() {
        let [prefix, address] = ["10.1.0.0/26", "fe80::1"];
        let prefix: Prefix = prefix.parse().unwrap();
        let address: IpAddr = address.parse().unwrap();
        let peers: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|peer| peer.parse().unwrap());
        let explanation = Explanation {
            prefix,
            own: None,
            announced: None,
            lent: None,
            next_hops: peers.map(|peer| BgpNextHop::new(address, peer)).to_vec(),
            max_paths: 16,
            withheld: Vec::new(),
            paths: Vec::new(),
        };
        let explained = explained(prefix, Some(explanation), &KernelRoutes::default());
        assert_eq!(explained.next_hops, [address]);
    }

    #[test]
    fn a_link_local_next_hop_without_a_link_is_told_as_such() {
        let from = PeerKey { address: "192.0.2.1".parse().unwrap(), port: 179 };
        let reason = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let attributes = PathAttributes::new(Origin::Igp, AsPath::default(), address);
            let path = PathExplanation {
                from,
                path_id: 0,
                external: true,
                router_id: None,
                attributes: Arc::new(attributes),
                stale: false,
                stale_for: None,
                next_hop: Some(NextHopState::Unreachable),
                refused_by: None,
                outcome: Outcome::Unusable(Unusable::NextHopUnreachable),
            };
            reason(&path, BgpNextHop::new(address, from.address))
        };
        assert_eq!(reason("2001:db8::1"), "next hop unreachable");
        let text = "next hop unreachable: a link-local address, for which there must be a way on a link that \
                    leads to 192.0.2.1 directly";
        assert_eq!(reason("fe80::1"), text);
    }
}
