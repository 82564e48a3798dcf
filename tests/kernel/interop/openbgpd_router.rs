//! OpenBGPD as the peer of a row.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;
use twill_tests::{netns::Namespace, openbgpd::Openbgpd, process::Daemon};

use super::router::{Learned, OUTSIDE, OUTSIDE6, Peering, ROUTER, ROUTER6, Router};

/// OpenBGPD with one neighbor.
#[derive(Debug)]
pub(super) struct OpenbgpdRouter {
    openbgpd: Openbgpd,
    peering: Peering,
}

fn config(peering: &Peering, announced: bool) -> String {
    let Peering { asn, node_asn, hold_time, .. } = peering;
    let mut text = format!("AS {asn}\nrouter-id {ROUTER}\nconnect-retry 1\nholdtime {hold_time}\n");
    if announced {
        let marks = if peering.communities {
            " set { community 64513:7 large-community 64513:1:2 ext-community rt 64513:9 }"
        } else {
            ""
        };
        let _ = writeln!(text, "network {OUTSIDE}{marks}");
    }
    let _ = writeln!(text, "network {OUTSIDE6}");
    for prefix in peering.more() {
        let _ = writeln!(text, "network {prefix}");
    }
    let _ = write!(
        text,
        "neighbor {} {{\n  remote-as {node_asn}\n  local-address {}\n  \
         announce enhanced refresh yes\n{}",
        peering.node(),
        peering.own(),
        families(peering)
    );
    if peering.passive {
        text += "  passive\n";
    }
    if peering.no_capabilities {
        text += "  announce capabilities no\n";
    }
    if peering.ttl_security {
        text += "  ttl-security yes\n";
    }
    if let Some(password) = peering.password {
        let _ = writeln!(text, "  tcp md5sig password {password}");
    }
    // It passes nothing in either direction that no rule allows.
    text += "}\nallow from any\nallow to any\n";
    text
}

/// What is spoken of in the session.
fn families(peering: &Peering) -> &'static str {
    if peering.foreign_family {
        "  announce IPv4 none\n  announce IPv4 vpn\n"
    } else if peering.no_capabilities {
        "  announce IPv4 unicast\n"
    } else {
        "  announce IPv4 unicast\n  announce IPv6 unicast\n"
    }
}

impl OpenbgpdRouter {
    fn neighbor(&self) -> Result<Value> {
        self.openbgpd.neighbor(self.peering.node())
    }
}

impl Router for OpenbgpdRouter {
    fn start(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Self> {
        // Of the other family than the session's it announces an address of the loopback as the next
        // hop.
        namespace.ip_batch(&format!(
            "addr del 127.0.0.1/8 dev lo\naddr add {ROUTER}/32 dev lo\naddr add {ROUTER6}/128 dev lo\n"
        ))?;
        let openbgpd = Openbgpd::start(namespace, &config(peering, true), dir)?;
        Ok(Self { openbgpd, peering: peering.clone() })
    }

    fn reconfigure(&mut self, peering: &Peering) -> Result<()> {
        self.peering = peering.clone();
        self.openbgpd.reconfigure(&config(peering, true))?;
        // A session that has failed would wait for half a minute.
        self.openbgpd.command(&["neighbor", peering.node(), "up"]).map(drop)
    }

    fn state(&self) -> Result<String> {
        Ok(self.neighbor()?["state"].as_str().unwrap_or_default().to_owned())
    }

    fn announce(&mut self, announced: bool) -> Result<()> {
        self.openbgpd.reconfigure(&config(&self.peering, announced))
    }

    fn path(&self, prefix: &str) -> Result<Option<Learned>> {
        let paths = self.openbgpd.paths(prefix)?;
        let node = self.peering.node();
        let path = paths.iter().find(|path| path["neighbor"]["remote_addr"] == node);
        Ok(path.map(|path| Learned {
            as_path: path["aspath"].as_str().unwrap_or_default().to_owned(),
            local_pref: path["localpref"].as_u64(),
            communities: ["communities", "extended_communities", "large_communities"]
                .iter()
                .filter_map(|kind| path[kind].as_array())
                .flatten()
                .filter_map(|one| one.as_str())
                .map(|one| one.replace(' ', ":"))
                .collect(),
            only_to_customer: None,
        }))
    }

    fn prefixes(&self) -> Result<usize> {
        let neighbor = self.neighbor()?;
        let count = neighbor["stats"]["prefixes"]["received"].as_u64();
        Ok(usize::try_from(count.unwrap_or(0))?)
    }

    fn ask_again(&self) -> Result<()> {
        self.openbgpd.command(&["neighbor", self.peering.node(), "refresh"]).map(drop)
    }

    fn updates(&self) -> Result<u64> {
        let neighbor = self.neighbor()?;
        let count = neighbor["stats"]["update"]["received"]["updates"].as_u64();
        count.with_context(|| format!("OpenBGPD counts nothing: {neighbor}"))
    }

    fn shut_down(&mut self, text: &str) -> Result<()> {
        self.openbgpd.command(&["neighbor", self.peering.node(), "down", text]).map(drop)
    }

    fn daemon(&self) -> &Daemon {
        self.openbgpd.daemon()
    }

    fn heard_replay(&self) -> Result<bool> {
        let neighbor = self.neighbor()?;
        let heard = &neighbor["stats"]["route-refresh"]["received"];
        Ok(heard["borr"].as_u64() > Some(0) && heard["eorr"].as_u64() > Some(0))
    }

    fn told(&self) -> Result<String> {
        Ok(self.openbgpd.log())
    }

    fn heard_bad_peer_as(&self) -> Result<bool> {
        let log = self.openbgpd.log();
        Ok(log.contains("received notification: error in OPEN message, AS unacceptable"))
    }
}
