//! `twillctl bgp explain`: what the speaker says of a prefix, and what the kernel made of it.

use std::net::IpAddr;

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
            (Some(step.to_string()), Some(against.address))
        }
        Outcome::Best | Outcome::Unusable(_) => (None, None),
    };
    ExplainedPath {
        from: path.from.address,
        port: path.from.port,
        external: path.external,
        router_id: path.router_id.map(|id| id.to_string()),
        best: path.outcome == Outcome::Best,
        used: path.outcome.is_used(),
        stale: path.stale,
        reason: path.outcome.to_string(),
        step,
        against,
        next_hop: next_hop(attributes.next_hop, path.next_hop, kernel),
        as_path: attributes.as_path.to_string(),
        origin: attributes.origin.to_string(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        aigp: attributes.aigp,
        communities: communities(attributes),
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

/// The link's name, or its number if it has just gone.
fn device(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index);
    name.map_or_else(|_| format!("if{index}"), |name| name.to_string_lossy().into_owned())
}

/// Communities, plain and large, as text.
pub(crate) fn communities(attributes: &PathAttributes) -> Vec<String> {
    let plain = attributes.communities.iter().map(ToString::to_string);
    plain.chain(attributes.large_communities.iter().map(ToString::to_string)).collect()
}
