//! GoBGP as the peer of a row.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use twill_tests::{
    bird::{Bird, BirdConfig, Neighbor},
    gobgp::Gobgp,
    netns::Namespace,
    process::Daemon,
};

use super::router::{Learned, OUTSIDE, OUTSIDE6, Peering, ROUTER, ROUTER6, Router, SECOND};

/// The AS of the router behind it, and the addresses of the loopback that the two talk over.
const BEHIND_AS: u32 = 64599;
const INNER: &str = "198.18.0.1";
const BEHIND: &str = "198.18.0.2";

/// GoBGP with one neighbor.
#[derive(Debug)]
pub(super) struct GobgpRouter {
    gobgp: Gobgp,
    peering: Peering,
    /// Thousands of routes are more than its command line can add one by one: they come from a
    /// BIRD behind it.
    behind: Option<Bird>,
}

fn config(peering: &Peering) -> String {
    let Peering { asn, node_asn, hold_time, .. } = peering;
    let mut text = format!(
        "global: {{config: {{as: {asn}, router-id: {ROUTER}}}}}\nneighbors:\n\
         - config: {{neighbor-address: \"{}\", peer-as: {node_asn}{}}}\n  \
         timers: {{config: {{connect-retry: 1, hold-time: {hold_time}, keepalive-interval: {}, \
         idle-hold-time-after-reset: 1}}}}\n  \
         transport: {{config: {{local-address: \"{}\", passive-mode: {}}}}}\n  \
         afi-safis:\n  - config: {{afi-safi-name: {}}}\n",
        peering.node(),
        peering.password.map(|text| format!(", auth-password: {text}")).unwrap_or_default(),
        hold_time / 3,
        peering.own(),
        peering.passive,
        if peering.foreign_family { "l3vpn-ipv4-unicast" } else { "ipv4-unicast" },
    );
    if peering.add_path {
        text += "    add-paths: {config: {send-max: 8}}\n";
    }
    if !peering.no_capabilities && !peering.foreign_family {
        text += "  - config: {afi-safi-name: ipv6-unicast}\n";
        if peering.add_path {
            text += "    add-paths: {config: {send-max: 8}}\n";
        }
    }
    if peering.ttl_security {
        text += "  ttl-security: {config: {enabled: true, ttl-min: 255}}\n";
    }
    if peering.more > 0 {
        let _ = writeln!(
            text,
            "- config: {{neighbor-address: {BEHIND}, peer-as: {BEHIND_AS}}}\n  \
             timers: {{config: {{connect-retry: 1}}}}\n  \
             transport: {{config: {{local-address: {INNER}, passive-mode: true}}}}"
        );
    }
    text
}

fn behind(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Bird> {
    let routes: String =
        peering.more().map(|prefix| format!("  route {prefix} blackhole;\n")).collect();
    let neighbor = Neighbor::new("inner", INNER, peering.asn).local(&format!("{BEHIND} port 1179"));
    let config = BirdConfig::new(BEHIND, BEHIND_AS)
        .neighbor(neighbor)
        .extra(&format!("protocol static more {{ ipv4;\n{routes}}}\n"));
    Bird::start(namespace, config, dir)
}

/// Communities of all kinds, from the attributes of the types 8, 16 and 32.
fn communities(attributes: &[Value]) -> BTreeSet<String> {
    let of_type = |number: u64| attributes.iter().filter(move |a| a["type"] == number);
    let values = |attribute: &Value, name: &str| attribute[name].as_array().cloned();
    let plain = of_type(8).filter_map(|a| values(a, "communities")).flatten();
    let plain = plain.filter_map(|one| one.as_u64());
    let plain = plain.map(|one| format!("{}:{}", one >> 16, one & 0xffff));
    let extended = of_type(16).filter_map(|a| values(a, "value")).flatten();
    let extended = extended.map(|one| format!("rt:{}", one["value"].as_str().unwrap_or_default()));
    let large = of_type(32).filter_map(|a| values(a, "value")).flatten();
    let large = large.map(|one| {
        let parts = ["ASN", "LocalData1", "LocalData2"].map(|part| one[part].to_string());
        parts.join(":")
    });
    plain.chain(extended).chain(large).collect()
}

impl GobgpRouter {
    fn neighbor(&self) -> Result<Value> {
        self.gobgp.neighbor(self.peering.node())
    }
}

impl Router for GobgpRouter {
    const NAMES_BAD_AS: bool = false;

    fn start(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Self> {
        let gobgp = Gobgp::start(namespace, &config(peering), dir)?;
        let behind = match peering.more {
            0 => None,
            _ => {
                namespace
                    .ip_batch(&format!("addr add {INNER} dev lo\naddr add {BEHIND} dev lo\n"))?;
                Some(behind(namespace, &dir.join("behind"), peering)?)
            }
        };
        let mut router = Self { gobgp, peering: peering.clone(), behind };
        router.announce(true)?;
        if peering.add_path {
            let rib = ["global", "rib", "add", "-a", "ipv4", OUTSIDE, "identifier", "2"];
            router.gobgp.command(&[&rib[..], &["community", SECOND]].concat())?;
        }
        if !peering.no_capabilities {
            // Left to itself it announces the session's IPv4 address as the next hop, mapped.
            let rib = ["global", "rib", "add", "-a", "ipv6", OUTSIDE6, "nexthop", ROUTER6];
            router.gobgp.command(&rib)?;
            if peering.add_path {
                let second = ["identifier", "2", "community", SECOND];
                router.gobgp.command(&[&rib[..], &second].concat())?;
            }
        }
        Ok(router)
    }

    fn reconfigure(&mut self, peering: &Peering) -> Result<()> {
        self.peering = peering.clone();
        self.gobgp.reconfigure(&config(peering))
    }

    fn state(&self) -> Result<String> {
        // Idle, Connect, Active, OpenSent, OpenConfirm, Established, from 1.
        let state = &self.neighbor()?["state"]["session_state"];
        Ok(if *state == 6 { "Established".to_owned() } else { state.to_string() })
    }

    fn announce(&mut self, announced: bool) -> Result<()> {
        let verb = if announced { "add" } else { "del" };
        let mut rib = vec!["global", "rib", verb, "-a", "ipv4", OUTSIDE];
        if announced && self.peering.communities {
            rib.extend(["community", "64513:7", "large-community", "64513:1:2", "rt", "64513:9"]);
        }
        if announced && self.peering.over_ipv6 {
            rib.extend(["nexthop", ROUTER]);
        }
        self.gobgp.command(&rib).map(drop)
    }

    fn withdraw_more(&mut self, _: &Peering) -> Result<()> {
        let behind = self.behind.as_ref().context("there is nothing behind it")?;
        behind.command("disable more").map(drop)
    }

    fn path(&self, prefix: &str) -> Result<Option<Learned>> {
        let paths = self.gobgp.paths(prefix)?;
        let node = self.peering.node();
        let Some(path) = paths.iter().find(|path| path["neighbor-ip"] == node) else {
            return Ok(None);
        };
        // By the numbers of their types (RFC 4271 section 4.3): 2 is AS_PATH, 5 is LOCAL_PREF.
        let attributes = path["attrs"].as_array().cloned().unwrap_or_default();
        let of_type = |number: u64| attributes.iter().find(|a| a["type"] == number);
        let segments = of_type(2).and_then(|a| a["as_paths"].as_array()).cloned();
        let asns = segments.unwrap_or_default();
        let asns = asns.iter().flat_map(|segment| segment["asns"].as_array()).flatten();
        let as_path: Vec<String> = asns.map(ToString::to_string).collect();
        let local_pref = of_type(5).and_then(|a| a["value"].as_u64());
        Ok(Some(Learned {
            as_path: as_path.join(" "),
            local_pref,
            communities: communities(&attributes),
            only_to_customer: None,
        }))
    }

    fn prefixes(&self) -> Result<usize> {
        let neighbor = self.neighbor()?;
        let families = neighbor["afi_safis"].as_array().cloned().unwrap_or_default();
        let count = families.first().and_then(|family| family["state"]["accepted"].as_u64());
        Ok(usize::try_from(count.unwrap_or(0))?)
    }

    fn ask_again(&self) -> Result<()> {
        self.gobgp.command(&["neighbor", self.peering.node(), "softresetin"]).map(drop)
    }

    fn updates(&self) -> Result<u64> {
        let neighbor = self.neighbor()?;
        let count = neighbor["state"]["messages"]["received"]["update"].as_u64();
        count.with_context(|| format!("GoBGP counts nothing: {neighbor}"))
    }

    fn shut_down(&mut self, text: &str) -> Result<()> {
        let node = self.peering.node();
        self.gobgp.command(&["neighbor", node, "shutdown", "--reason", text]).map(drop)
    }

    fn daemon(&self) -> &Daemon {
        self.gobgp.daemon()
    }

    fn heard_replay(&self) -> Result<bool> {
        // It does not ask.
        Ok(false)
    }

    fn told(&self) -> Result<String> {
        Ok(self.gobgp.log())
    }

    fn heard_bad_peer_as(&self) -> Result<bool> {
        // It does not log what it hears before Established.
        let neighbor = self.neighbor()?;
        Ok(neighbor["state"]["messages"]["received"]["notification"].as_u64() > Some(0))
    }
}
