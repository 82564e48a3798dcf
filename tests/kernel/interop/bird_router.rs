//! BIRD 2 as the peer of a row.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use twill_tests::{
    bird::{Bird, BirdConfig},
    netns::Namespace,
    process::Daemon,
};

use super::router::{Learned, OUTSIDE, OUTSIDE6, Peering, ROUTER, ROUTER6, Router, SECOND};

/// BIRD with one protocol, `node`.
#[derive(Debug)]
pub(super) struct BirdRouter {
    bird: Bird,
    peering: Peering,
}

/// What is spoken of in the session.
fn channels(peering: &Peering) -> String {
    if peering.foreign_family {
        return "  vpn4 mpls { table foreign; import all; export none; };\n".to_owned();
    }
    let families = [("ipv4", ROUTER), ("ipv6", ROUTER6)];
    let spoken = families.iter().take(if peering.no_capabilities { 1 } else { 2 });
    let paths = if peering.add_path { " add paths tx;" } else { "" };
    let channel = |(family, own): &(&str, &str)| {
        let (extended, own) = match peering.extended_next_hop && *family == "ipv4" {
            true => (" extended next hop on;", ROUTER6),
            false => ("", *own),
        };
        format!(
            "  {family} {{ import all; export where source = RTS_STATIC; next hop address {own};\
             {extended}{paths} }};\n"
        )
    };
    spoken.map(channel).collect()
}

/// Statements that mark the IPv4 outside.
fn marks(peering: &Peering) -> String {
    let mut text = String::new();
    if peering.communities {
        text += "bgp_community.add((64513,7)); bgp_large_community.add((64513,1,2)); \
                 bgp_ext_community.add((rt,64513,9));";
    }
    for number in peering.crowd() {
        let _ = write!(text, " bgp_large_community.add((64513,8,{number}));");
    }
    text
}

/// The communities of one kind in what BIRD prints, `(64513,7) (64513,8)`.
fn communities(text: &str) -> impl Iterator<Item = String> + '_ {
    let each = text.split(')').map(|one| one.trim().trim_start_matches('('));
    each.filter(|one| !one.is_empty()).map(|one| one.replace(", ", ":").replace(',', ":"))
}

fn config(peering: &Peering, announced: bool) -> BirdConfig {
    let Peering { asn, node_asn, hold_time, .. } = peering;
    let mut text = format!(
        "protocol bgp node {{\n  debug {{ states, routes, events, packets }};\n  local {} as {asn};\n  neighbor {} as {node_asn};\n  \
         hold time {hold_time};\n  error wait time 1, 1;\n  connect delay time 0;\n  \
         connect retry time 1;\n",
        peering.own(),
        peering.node()
    );
    if peering.passive {
        text += "  passive on;\n";
    }
    if peering.no_capabilities {
        text += "  capabilities off;\n";
    }
    if peering.ttl_security {
        text += "  direct;\n  ttl security on;\n";
    }
    if let Some(role) = peering.role {
        let _ = writeln!(text, "  local role {role};");
    }
    if peering.crowd {
        text += "  enable extended messages on;\n";
    }
    if let Some(password) = peering.password {
        let _ = writeln!(text, "  password \"{password}\";");
    }
    text += &channels(peering);
    text += "}\n";
    if announced {
        let _ = writeln!(
            text,
            "protocol static outside {{ ipv4; route {OUTSIDE} blackhole {{ {} }}; }}",
            marks(peering)
        );
    }
    if peering.add_path {
        let mark = SECOND.replace(':', ",");
        let _ = writeln!(
            text,
            "protocol static second {{ ipv4 {{ preference 190; }}; route {OUTSIDE} blackhole {{ \
             bgp_community.add(({mark})); }}; }}\n\
             protocol static second6 {{ ipv6 {{ preference 190; }}; route {OUTSIDE6} blackhole {{ \
             bgp_community.add(({mark})); }}; }}"
        );
    }
    if peering.more > 0 {
        let routes: String =
            peering.more().map(|prefix| format!("  route {prefix} blackhole;\n")).collect();
        let _ = writeln!(text, "protocol static more {{ ipv4;\n{routes}}}");
    }
    if peering.foreign_family {
        text = format!("vpn4 table foreign;\n{text}");
    }
    BirdConfig::new(ROUTER, *asn).announce(OUTSIDE6).extra(&text)
}

impl Router for BirdRouter {
    fn start(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Self> {
        let bird = Bird::start(namespace, config(peering, true), dir)?;
        Ok(Self { bird, peering: peering.clone() })
    }

    fn reconfigure(&mut self, peering: &Peering) -> Result<()> {
        self.peering = peering.clone();
        self.bird.configure(config(peering, true))
    }

    fn state(&self) -> Result<String> {
        Ok(self.bird.protocol("node")?.info)
    }

    fn announce(&mut self, announced: bool) -> Result<()> {
        self.bird.configure(config(&self.peering, announced))
    }

    fn withdraw_more(&mut self, _: &Peering) -> Result<()> {
        self.bird.command("disable more").map(drop)
    }

    fn path(&self, prefix: &str) -> Result<Option<Learned>> {
        let routes = self.bird.routes(prefix)?;
        let Some(route) = routes.iter().find(|route| route.protocol == "node") else {
            return Ok(None);
        };
        let attribute = |name: &str| {
            let value = route.text.lines().find_map(|line| line.trim().strip_prefix(name));
            value.map(|value| value.trim().to_owned())
        };
        let local_pref = attribute("BGP.local_pref:").and_then(|value| value.parse().ok());
        let as_path = attribute("BGP.as_path:").unwrap_or_default();
        let kinds = ["BGP.community:", "BGP.large_community:", "BGP.ext_community:"];
        let texts = kinds.iter().filter_map(|kind| attribute(kind));
        let communities = texts.flat_map(|text| communities(&text).collect::<Vec<_>>()).collect();
        let only_to_customer = attribute("BGP.otc:").and_then(|value| value.parse().ok());
        Ok(Some(Learned { as_path, local_pref, communities, only_to_customer }))
    }

    fn prefixes(&self) -> Result<usize> {
        let text = self.bird.command("show route protocol node table master4 count")?;
        let count = text.split_whitespace().next().and_then(|word| word.parse().ok());
        count.with_context(|| format!("BIRD counts {text}"))
    }

    fn ask_again(&self) -> Result<()> {
        self.bird.command("reload in node").map(drop)
    }

    fn updates(&self) -> Result<u64> {
        let text = self.bird.command("show protocols all node")?;
        // Import updates: received, rejected, filtered, ignored, accepted; of IPv4 first.
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Import updates:"));
        let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        count.with_context(|| format!("BIRD counts nothing: {text}"))
    }

    fn shut_down(&mut self, text: &str) -> Result<()> {
        self.bird.command(&format!("disable node \"{text}\"")).map(drop)
    }

    fn daemon(&self) -> &Daemon {
        self.bird.daemon()
    }

    fn heard_replay(&self) -> Result<bool> {
        let log = self.bird.log();
        Ok(log.contains("Got BEGIN-OF-RR") && log.contains("Got END-OF-RR"))
    }

    fn told(&self) -> Result<String> {
        Ok(self.bird.log())
    }

    fn heard_bad_peer_as(&self) -> Result<bool> {
        Ok(self.bird.log().contains("Received: Bad peer AS"))
    }
}
