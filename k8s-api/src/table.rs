use std::collections::BTreeSet;

use crate::{Kind, Resource};

/// The head of a table of one kind, as calicoctl prints it.
pub fn columns(kind: Kind, wide: bool) -> &'static [&'static str] {
    match (kind, wide) {
        (Kind::IpPool, false) => &["NAME", "CIDR", "SELECTOR"],
        (Kind::IpPool, true) => &[
            "NAME",
            "CIDR",
            "NAT",
            "IPIPMODE",
            "VXLANMODE",
            "DISABLED",
            "DISABLEBGPEXPORT",
            "SELECTOR",
            "ASSIGNMENTMODE",
        ],
        (Kind::BgpPeer, _) => &["NAME", "PEERIP", "NODE", "ASN"],
        (Kind::BgpConfiguration, _) => &["NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"],
        (Kind::BgpFilter, _) => &["NAME"],
        (Kind::IpamConfig, _) => &["NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS"],
        (Kind::IpReservation, false) => &["NAME"],
        (Kind::IpReservation, true) => &["NAME", "CIDRS"],
        (Kind::BlockAffinity, _) => &["NAME", "CIDR", "NODE", "POOL", "STATE"],
        (Kind::BlockRequest, _) => &["NAME", "BLOCK", "NODE", "POOL", "LENGTH"],
        (Kind::NodeStatus, _) => &["NAME", "NODE"],
        (Kind::Namespace, _) => &["NAME"],
        (Kind::Secret, _) => &["NAME", "KEYS"],
        (Kind::Node, false) => &["NAME"],
        (Kind::Node, true) => &["NAME", "ASN", "IPV4", "IPV6"],
    }
}

/// The line of one object below [`columns`] of its kind; empty for kinds that Twill does not use.
pub fn row(resource: &Resource, wide: bool) -> Vec<String> {
    let mut cells = vec![resource.name().to_owned()];
    match resource {
        Resource::IpPool(pool) => {
            let spec = &pool.spec;
            let selector = spec.node_selector.as_ref().map_or("all()", |s| s.as_written());
            let mode = |mode| named(mode, "Never");
            cells.push(spec.cidr.to_string());
            if wide {
                cells.extend([
                    spec.nat_outgoing.unwrap_or(false).to_string(),
                    mode(spec.ipip_mode),
                    mode(spec.vxlan_mode),
                    spec.disabled.to_string(),
                    spec.disable_bgp_export.unwrap_or(false).to_string(),
                    selector.to_owned(),
                    named(spec.assignment_mode, "Automatic"),
                ]);
            } else {
                cells.push(selector.to_owned());
            }
        }
        Resource::BgpPeer(peer) => {
            let spec = &peer.spec;
            let selector = spec.node_selector.as_ref().map(|selector| selector.as_written());
            cells.extend([
                spec.peer_ip.map(|peer| peer.to_string()).unwrap_or_default(),
                spec.node.as_deref().or(selector).unwrap_or("(global)").to_owned(),
                spec.as_number.map(|number| number.to_string()).unwrap_or_default(),
            ]);
        }
        Resource::BgpConfiguration(configuration) => {
            let spec = &configuration.spec;
            cells.extend([
                spec.log_severity_screen.clone().unwrap_or_else(|| "-".to_owned()),
                spec.node_to_node_mesh_enabled.map_or_else(|| "-".to_owned(), |on| on.to_string()),
                spec.as_number.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            ]);
        }
        Resource::IpamConfig(config) => cells.extend([
            config.spec.strict_affinity.to_string(),
            config.spec.auto_allocate_blocks.to_string(),
        ]),
        Resource::IpReservation(found) if wide => cells.push(joined(&found.spec.reserved_cidrs)),
        Resource::BlockAffinity(claim) => cells.extend([
            claim.spec.cidr.to_string(),
            claim.spec.node.clone(),
            claim.spec.pool.clone().unwrap_or_default(),
            named(Some(claim.spec.state), ""),
        ]),
        Resource::Node(node) if wide => {
            let address = |family| node.address(family).map(|a| a.to_string()).unwrap_or_default();
            cells.extend([
                node.as_number().map_or_else(|| "(default)".to_owned(), |n| n.to_string()),
                address(twill_types::Family::V4),
                address(twill_types::Family::V6),
            ]);
        }
        Resource::BlockRequest(request) => cells.extend([
            request.spec.block.to_string(),
            request.spec.node.clone(),
            request.spec.pool.clone(),
            format!("/{}", request.spec.length),
        ]),
        Resource::Secret(secret) => {
            // Never a value.
            let keys = secret.data.keys().chain(secret.string_data.keys());
            cells.push(joined(keys.collect::<BTreeSet<_>>()));
        }
        Resource::NodeStatus(status) => cells.push(status.spec.node.clone()),
        Resource::Node(_)
        | Resource::Namespace(_)
        | Resource::BgpFilter(_)
        | Resource::IpReservation(_) => {}
        Resource::Other(_) => cells.clear(),
    }
    cells
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// An enum's value as manifests write it.
fn named<T: serde::Serialize>(value: Option<T>, default: &str) -> String {
    let written = value.and_then(|value| serde_json::to_value(value).ok());
    written.as_ref().and_then(|name| name.as_str()).unwrap_or(default).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load_manifests;

    #[test]
    fn rows_fit_their_heads() {
        for (text, wide, expected) in [
            (
                "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.42.0.0/16, natOutgoing: true, \
                 vxlanMode: Always}",
                true,
                "p 10.42.0.0/16 true Never Always false false all() Automatic",
            ),
            (
                "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.42.0.0/16, nodeSelector: \"a=='b'\"}",
                false,
                "p 10.42.0.0/16 a=='b'",
            ),
            (
                "kind: BGPPeer\nmetadata: {name: p}\nspec: {peerIP: 10.0.0.1, asNumber: 64513}",
                false,
                "p 10.0.0.1 (global) 64513",
            ),
            (
                "kind: BGPPeer\nmetadata: {name: p}\nspec: {node: n1, peerIP: \"[fd00::1]:1179\", asNumber: 1}",
                true,
                "p [fd00::1]:1179 n1 1",
            ),
            (
                "kind: BGPConfiguration\nmetadata: {name: default}\nspec: {asNumber: 64512}",
                false,
                "default - - 64512",
            ),
            (
                "kind: IPAMConfig\nmetadata: {name: default}\nspec: {strictAffinity: true}",
                false,
                "default true true",
            ),
            (
                "kind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.0.0.1/32, 10.0.1.0/24]}",
                true,
                "r 10.0.0.1/32,10.0.1.0/24",
            ),
            (
                "kind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.0.0.1/32]}",
                false,
                "r",
            ),
            (
                "kind: BlockAffinity\nmetadata: {name: 0a000000-26}\nspec: {node: n, cidr: 10.0.0.0/26, pool: p}",
                false,
                "0a000000-26 10.0.0.0/26 n p confirmed",
            ),
            (
                "kind: Secret\nmetadata: {name: s}\ndata: {b: czNjcmV0}\nstringData: {a: hidden}",
                true,
                "s a,b",
            ),
        ] {
            let version = if text.contains("Secret") { "v1" } else { "projectcalico.org/v3" };
            let loaded = load_manifests(&format!("apiVersion: {version}\n{text}"), "");
            let resource = &loaded.resources[0].value;
            let cells = row(resource, wide);
            assert_eq!(cells.join(" "), expected);
            assert_eq!(cells.len(), columns(resource.kind().unwrap(), wide).len());
        }
    }
}
