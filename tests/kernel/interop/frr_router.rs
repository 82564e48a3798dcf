//! FRR as the peer of a row.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use twill_tests::{frr::Frr, netns::Namespace, process::Daemon};

use super::router::{Learned, OUTSIDE, OUTSIDE6, Peering, ROUTER, Router, SECOND};

/// Where its second paths to the outside go.
const SECOND_HOP: &str = "192.168.2.99";
const SECOND_HOP6: &str = "2001:db8:2::99";

/// FRR with one neighbor.
#[derive(Debug)]
pub(super) struct FrrRouter {
    frr: Frr,
    peering: Peering,
}

fn config(peering: &Peering) -> String {
    let Peering { asn, node_asn, hold_time, .. } = peering;
    let node = peering.node();
    let mut text = format!(
        "router bgp {asn}\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n no bgp network \
         import-check\n no bgp default ipv4-unicast\n neighbor {node} remote-as {node_asn}\n \
         neighbor {node} timers {} {hold_time}\n neighbor {node} timers connect 1\n \
         neighbor {node} advertisement-interval 0\n",
        hold_time / 3
    );
    if peering.passive {
        let _ = writeln!(text, " neighbor {node} passive");
    }
    if peering.no_capabilities {
        let _ = writeln!(text, " neighbor {node} dont-capability-negotiate");
    }
    if peering.ttl_security {
        let _ = writeln!(text, " neighbor {node} ttl-security hops 1");
    }
    if peering.extended_next_hop {
        let _ = writeln!(text, " neighbor {node} capability extended-nexthop");
    }
    if peering.foreign_family {
        // Its OPEN waits, so that it judges the node's first.
        let _ = writeln!(text, " neighbor {node} timers delayopen 10");
    }
    if let Some(role) = peering.role {
        let _ = writeln!(text, " neighbor {node} local-role {role}");
    }
    if let Some(password) = peering.password {
        let _ = writeln!(text, " neighbor {node} password {password}");
    }
    text += &families(peering);
    text += "exit\n";
    if peering.communities {
        text += "route-map marked permit 10\n set community 64513:7\n \
                 set large-community 64513:1:2\n set extcommunity rt 64513:9\nexit\n";
    }
    let crowd: Vec<u32> = peering.crowd().collect();
    // A line of its configuration holds no more of them.
    for (index, some) in crowd.chunks(50).enumerate() {
        let some: String = some.iter().map(|number| format!(" 64513:8:{number}")).collect();
        let _ = writeln!(
            text,
            "route-map marked permit {}\n set large-community{some} additive\n on-match next\nexit",
            20 + index
        );
    }
    let _ = writeln!(text, "route-map second permit 10\n set community {SECOND}\nexit");
    text
}

/// What is spoken of in the session.
fn families(peering: &Peering) -> String {
    let node = peering.node();
    let activate = format!("  neighbor {node} activate\n exit-address-family\n");
    if peering.foreign_family {
        return format!(" address-family ipv4 vpn\n{activate}");
    }
    let map = if peering.communities || peering.crowd { " route-map marked" } else { "" };
    let mut text = format!(" address-family ipv4 unicast\n  network {OUTSIDE}{map}\n");
    for prefix in peering.more() {
        let _ = writeln!(text, "  network {prefix}");
    }
    if peering.add_path {
        let _ = writeln!(
            text,
            "  redistribute kernel route-map second\n  neighbor {node} addpath-tx-all-paths"
        );
    }
    text += &activate;
    if !peering.no_capabilities {
        let _ = writeln!(text, " address-family ipv6 unicast\n  network {OUTSIDE6}");
        if peering.add_path {
            let _ = writeln!(
                text,
                "  redistribute kernel route-map second\n  neighbor {node} addpath-tx-all-paths"
            );
        }
        text += &activate;
    }
    text
}

impl FrrRouter {
    fn neighbor(&self) -> Result<Value> {
        self.frr.neighbor(self.peering.node())
    }

    /// Lines below its `router bgp`.
    fn router_bgp(&self, lines: &[&str]) -> Result<()> {
        let router = format!("router bgp {}", self.peering.asn);
        self.frr.configure(&[&[router.as_str()], lines].concat())
    }
}

impl Router for FrrRouter {
    fn start(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Self> {
        if peering.add_path {
            // Its second paths are routes that somebody else has made.
            namespace.ip(&format!("route add {OUTSIDE} via {SECOND_HOP}"))?;
            namespace.ip(&format!("-6 route add {OUTSIDE6} via {SECOND_HOP6}"))?;
        }
        let frr = Frr::start(namespace, &config(peering), dir)?;
        Ok(Self { frr, peering: peering.clone() })
    }

    fn reconfigure(&mut self, peering: &Peering) -> Result<()> {
        let node = peering.node();
        self.peering = peering.clone();
        let password = match peering.password {
            Some(password) => format!("neighbor {node} password {password}"),
            None => format!("no neighbor {node} password"),
        };
        let remote_as = format!("neighbor {node} remote-as {}", peering.node_asn);
        self.router_bgp(&[&password, &remote_as])
    }

    fn state(&self) -> Result<String> {
        Ok(self.neighbor()?["bgpState"].as_str().unwrap_or_default().to_owned())
    }

    fn announce(&mut self, announced: bool) -> Result<()> {
        let no = if announced { "" } else { "no " };
        let network = format!("{no}network {OUTSIDE}");
        self.router_bgp(&["address-family ipv4 unicast", &network])
    }

    fn withdraw_more(&mut self, _: &Peering) -> Result<()> {
        let more: Vec<String> =
            self.peering.more().map(|prefix| format!("no network {prefix}")).collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        // A command line holds no more of them.
        more.chunks(500).try_for_each(|some| {
            self.router_bgp(&[&["address-family ipv4 unicast"], some].concat())
        })
    }

    fn path(&self, prefix: &str) -> Result<Option<Learned>> {
        let paths = self.frr.paths(prefix)?;
        let from_node = paths.iter().find(|path| path["peer"]["peerId"] == self.peering.node());
        Ok(from_node.map(|path| Learned {
            as_path: match path["aspath"]["string"].as_str().unwrap_or_default() {
                "Local" => String::new(),
                path => path.to_owned(),
            },
            local_pref: path["locPrf"].as_u64().or_else(|| path["localPref"].as_u64()),
            communities: ["community", "largeCommunity", "extendedCommunity"]
                .iter()
                .filter_map(|kind| path[kind]["string"].as_str())
                .flat_map(str::split_whitespace)
                .map(str::to_lowercase)
                .collect(),
            only_to_customer: path["otc"].as_u64(),
        }))
    }

    fn prefixes(&self) -> Result<usize> {
        let neighbor = self.neighbor()?;
        let count = neighbor["addressFamilyInfo"]["ipv4Unicast"]["acceptedPrefixCounter"].as_u64();
        Ok(usize::try_from(count.unwrap_or(0))?)
    }

    fn ask_again(&self) -> Result<()> {
        self.frr.command(&[&format!("clear bgp {} soft in", self.peering.node())]).map(drop)
    }

    fn updates(&self) -> Result<u64> {
        let neighbor = self.neighbor()?;
        let count = neighbor["messageStats"]["updatesRecv"].as_u64();
        count.with_context(|| format!("FRR counts nothing: {neighbor}"))
    }

    fn shut_down(&mut self, text: &str) -> Result<()> {
        self.router_bgp(&[&format!("neighbor {} shutdown message {text}", self.peering.node())])
    }

    fn daemon(&self) -> &Daemon {
        self.frr.bgpd()
    }

    fn heard_replay(&self) -> Result<bool> {
        let log = self.frr.log();
        Ok(log.contains("rcvd route-refresh (BoRR)") && log.contains("stopping BoRR timer"))
    }

    fn told(&self) -> Result<String> {
        Ok(self.frr.log())
    }

    fn heard_bad_peer_as(&self) -> Result<bool> {
        Ok(self.frr.log().contains("2/2 (OPEN Message Error/Bad Peer AS)"))
    }
}
