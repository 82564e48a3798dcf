//! BIRD 2 as a real peer: its configuration in a few lines, and what it says of its routes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    netns::Namespace,
    process::{Daemon, check, read_lossy},
    wait::wait_for,
};

/// A configuration to be.
#[derive(Debug, Clone)]
pub struct BirdConfig {
    router_id: String,
    asn: u32,
    neighbors: Vec<Neighbor>,
    announced: Vec<String>,
    extra: String,
}

/// One BGP neighbor of a [`BirdConfig`].
#[derive(Debug, Clone)]
pub struct Neighbor {
    name: String,
    address: String,
    asn: u32,
    local: Option<String>,
    options: Vec<String>,
    export: Option<String>,
}

impl Neighbor {
    /// A neighbor by the name of its BIRD protocol, its address and its AS number. Sessions are
    /// multihop, wait little after errors, and are a helper for graceful restart (the default).
    pub fn new(name: &str, address: &str, asn: u32) -> Self {
        let address = address.split('/').next().unwrap_or(address).to_owned();
        Self { name: name.to_owned(), address, asn, local: None, options: Vec::new(), export: None }
    }

    /// Our address of the session.
    pub fn local(mut self, address: &str) -> Self {
        self.local = Some(address.to_owned());
        self
    }

    /// A line of the protocol's own (`graceful restart off`), without its semicolon.
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Statements that the routes announced to it pass (`bgp_med = 10;`).
    pub fn change(mut self, statements: &str) -> Self {
        self.export = Some(statements.to_owned());
        self
    }

    fn render(&self, asn: u32) -> String {
        let export = match &self.export {
            None => "where source = RTS_STATIC".to_owned(),
            Some(change) => {
                format!("filter {{ if source != RTS_STATIC then reject; {change} accept; }}")
            }
        };
        let local = self.local.as_deref().unwrap_or_default();
        let mut text = format!(
            "protocol bgp {} {{\n  local {local} as {asn};\n  neighbor {} as {};\n  multihop;\n  \
             error wait time 1, 1;\n  connect delay time 1;\n  connect retry time 1;\n",
            self.name, self.address, self.asn
        );
        for option in &self.options {
            let _ = writeln!(text, "  {option};");
        }
        for family in ["ipv4", "ipv6"] {
            // One family a session, as its addresses say; the other only if asked for.
            let own = if self.address.contains(':') { "ipv6" } else { "ipv4" };
            if family == own {
                let _ = writeln!(text, "  {family} {{ import all; export {export}; }};");
            }
        }
        text.push_str("}\n");
        text
    }
}

impl BirdConfig {
    /// A router without neighbors.
    pub fn new(router_id: &str, asn: u32) -> Self {
        Self {
            router_id: router_id.to_owned(),
            asn,
            neighbors: Vec::new(),
            announced: Vec::new(),
            extra: String::new(),
        }
    }

    /// With this neighbor.
    pub fn neighbor(mut self, neighbor: Neighbor) -> Self {
        self.neighbors.push(neighbor);
        self
    }

    /// Announces this prefix to all neighbors.
    pub fn announce(mut self, prefix: &str) -> Self {
        self.announced.push(prefix.to_owned());
        self
    }

    /// Without this prefix.
    pub fn withdraw(mut self, prefix: &str) -> Self {
        self.announced.retain(|announced| announced != prefix);
        self
    }

    /// Without the neighbor of this name.
    pub fn without(mut self, neighbor: &str) -> Self {
        self.neighbors.retain(|kept| kept.name != neighbor);
        self
    }

    /// With this text at its end.
    pub fn extra(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self
    }

    fn render(&self, log: &Path) -> String {
        let mut text = format!(
            "log \"{}\" all;\nrouter id {};\ndebug protocols {{ states, routes, events }};\n\
             timeformat route \"%FT%T.%3f\";\ntimeformat protocol \"%FT%T.%3f\";\n\
             timeformat log \"%FT%T.%3f\";\nprotocol device {{ debug off; }}\n\
             protocol direct {{ debug off; ipv4; ipv6; interface \"eth*\"; }}\n",
            log.display(),
            self.router_id
        );
        for (name, family) in [("kernel4", "ipv4"), ("kernel6", "ipv6")] {
            let _ = writeln!(
                text,
                "protocol kernel {name} {{ debug off; merge paths on; graceful restart on; {family} {{ import none; \
                 export where source = RTS_BGP; }}; }}"
            );
            let routes: Vec<_> =
                self.announced.iter().filter(|p| p.contains(':') == (family == "ipv6")).collect();
            if !routes.is_empty() {
                let _ = writeln!(text, "protocol static own_{family} {{ {family};");
                for route in routes {
                    let _ = writeln!(text, "  route {route} blackhole;");
                }
                text.push_str("}\n");
            }
        }
        for neighbor in &self.neighbors {
            text.push_str(&neighbor.render(self.asn));
        }
        text.push_str(&self.extra);
        text
    }
}

/// A running BIRD.
#[derive(Debug)]
pub struct Bird {
    daemon: Daemon,
    dir: PathBuf,
    config: BirdConfig,
}

/// A line of `show protocols`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// `up`, `start`, `down`, ...
    pub state: String,
    /// When it came into this state.
    pub since: String,
    /// For BGP the FSM state, and what went wrong last.
    pub info: String,
}

/// One path of `show route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub prefix: String,
    /// The protocol that it came from.
    pub protocol: String,
    /// When it was learned or changed last.
    pub since: String,
    /// Whether it is the preferred one.
    pub best: bool,
    /// Its next hops (`192.168.2.11 on eth0`).
    pub via: Vec<String>,
    /// All lines of it.
    pub text: String,
}

impl Bird {
    /// Starts BIRD in `namespace`; its files are in `dir`.
    pub fn start(namespace: &Namespace, config: BirdConfig, dir: &Path) -> Result<Self> {
        Self::start_with(namespace, config, dir, &[])
    }

    /// The same with further arguments (`-R`: it has restarted, and kept forwarding).
    pub fn start_with(
        namespace: &Namespace,
        config: BirdConfig,
        dir: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = dir.join("bird.conf");
        fs::write(&file, config.render(&dir.join("bird.log")))?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&file).args(arguments);
        command.arg("-s").arg(dir.join("bird.ctl")).arg("-P").arg(dir.join("bird.pid"));
        let name = format!("bird of {}", namespace.name());
        let daemon = Daemon::start(&name, namespace, &mut command, &dir.join("bird.out.log"))
            .context("BIRD 2 is needed (package bird2)")?;
        let mut bird = Self { daemon, dir: dir.to_owned(), config };
        wait_for("BIRD's control socket", Duration::from_secs(20), || {
            bird.daemon.alive()?;
            bird.command("show status")
        })?;
        Ok(bird)
    }

    /// Its configuration.
    pub fn config(&self) -> &BirdConfig {
        &self.config
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Changes its configuration while it runs.
    pub fn configure(&mut self, config: BirdConfig) -> Result<()> {
        fs::write(self.dir.join("bird.conf"), config.render(&self.dir.join("bird.log")))?;
        let answer = self.command("configure")?;
        ensure!(answer.contains("Reconfig"), "BIRD does not take its configuration: {answer}");
        self.config = config;
        Ok(())
    }

    /// What `birdc` answers.
    pub fn command(&self, command: &str) -> Result<String> {
        let mut birdc = Command::new("birdc");
        birdc.arg("-s").arg(self.dir.join("bird.ctl")).args(command.split_whitespace());
        let output = birdc.output().context("cannot run birdc (package bird2)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "No route" is an answer, though birdc ends as after a failure.
        if !text.contains("Network not found") {
            check(&format!("birdc {command}"), &output)?;
        }
        // The first line only greets.
        Ok(text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()))
    }

    /// Its log: states, events and every route that came or went.
    pub fn log(&self) -> String {
        read_lossy(&self.dir.join("bird.log"))
    }

    /// The state of one protocol.
    pub fn protocol(&self, name: &str) -> Result<Protocol> {
        let text = self.command(&format!("show protocols {name}"))?;
        parse_protocol(&text, name).with_context(|| format!("BIRD has no protocol {name}: {text}"))
    }

    /// Whether it keeps a restarting neighbor's routes until that neighbor is back (RFC 4724).
    pub fn is_helping(&self, name: &str) -> Result<bool> {
        let text = self.command(&format!("show protocols all {name}"))?;
        Ok(text.contains("Neighbor graceful restart active"))
    }

    /// Waits until the sessions with all of these neighbors are established.
    pub fn wait_established(&self, names: &[&str], deadline: Duration) -> Result<()> {
        for name in names {
            wait_for(&format!("BIRD's session with {name}"), deadline, || {
                let protocol = self.protocol(name)?;
                ensure!(protocol.info.starts_with("Established"), "{protocol:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The routes of a table for exactly this prefix; every prefix with an empty text.
    pub fn routes(&self, prefix: &str) -> Result<Vec<Route>> {
        let text = self.command(&format!("show route {prefix} all"))?;
        Ok(parse_routes(&text))
    }

    /// All paths learned from a neighbor.
    pub fn routes_from(&self, neighbor: &str) -> Result<Vec<Route>> {
        Ok(parse_routes(&self.command(&format!("show route protocol {neighbor} all"))?))
    }

    /// Waits until it has a route to `prefix` from `neighbor`.
    pub fn wait_route(&self, prefix: &str, neighbor: &str, deadline: Duration) -> Result<Route> {
        wait_for(&format!("BIRD's route to {prefix} from {neighbor}"), deadline, || {
            let routes = self.routes(prefix)?;
            let found = routes.iter().find(|route| route.protocol == neighbor);
            found.cloned().with_context(|| format!("it has {routes:?}"))
        })
    }

    /// Waits until it has no route to `prefix` at all.
    pub fn wait_no_route(&self, prefix: &str, deadline: Duration) -> Result<()> {
        wait_for(&format!("BIRD's route to {prefix} to go"), deadline, || {
            let routes = self.routes(prefix)?;
            ensure!(routes.is_empty(), "it has {routes:?}");
            Ok(())
        })
    }

    /// Lines of the log, from byte `from` of it, that tell of routes from `neighbor` taken away.
    pub fn withdrawals(&self, neighbor: &str, from: usize) -> Vec<String> {
        let log = self.log();
        let new = log.get(from..).unwrap_or_default().lines();
        // `TIME <TRACE> node1.ipv4 > removed [sole] 10.10.0.0/26 0L 7G unicast`
        let from_neighbor = |line: &&str| {
            line.split_once("> removed").is_some_and(|(head, _)| {
                head.contains(&format!(" {neighbor}.ipv4"))
                    || head.contains(&format!(" {neighbor}.ipv6"))
            })
        };
        new.filter(from_neighbor).map(str::to_owned).collect()
    }
}

fn parse_protocol(text: &str, name: &str) -> Option<Protocol> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    let mut words = line.split_whitespace().skip(3);
    let state = words.next()?.to_owned();
    let since = words.next()?.to_owned();
    Some(Protocol { state, since, info: words.collect::<Vec<_>>().join(" ") })
}

fn parse_routes(text: &str) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let mut prefix = String::new();
    for line in text.lines() {
        if let Some((head, rest)) = line.split_once('[')
            && !line.starts_with('\t')
        {
            // `10.10.0.0/26  unicast [node1 TIME from 192.168.2.11] * (100/?) [AS64512i]`; a
            // further path of the same prefix begins with blanks.
            if !line.starts_with(' ') {
                prefix = head.split_whitespace().next().unwrap_or_default().to_owned();
            }
            let (source, rest) = rest.split_once(']').unwrap_or((rest, ""));
            let mut words = source.split_whitespace();
            let flags = rest.split('(').next().unwrap_or_default();
            routes.push(Route {
                prefix: prefix.clone(),
                protocol: words.next().unwrap_or_default().to_owned(),
                since: words.next().unwrap_or_default().to_owned(),
                best: flags.contains('*'),
                via: Vec::new(),
                text: line.to_owned(),
            });
        } else if let Some(route) = routes.last_mut() {
            if let Some(via) = line.trim().strip_prefix("via ") {
                route.via.push(via.to_owned());
            }
            route.text.push('\n');
            route.text.push_str(line);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_birdc_are_read() {
        let routes = parse_routes(
            "Table master4:\n\
             10.10.0.0/26         unicast [node1 2026-11-24T14:30:00.123 from 192.168.2.11] * (100/?) [AS64512i]\n\
             \tvia 192.168.2.11 on eth0\n\
             \tType: BGP univ\n\
             \x20                    unicast [node2 2026-11-24T14:31:00.123] (100) [AS64512i]\n\
             \tvia 192.168.3.12 on eth1\n\
             198.51.100.0/24      blackhole [own_ipv4 2026-11-24T14:29:00.000] * (200)\n",
        );
        let summary: Vec<_> = routes
            .iter()
            .map(|r| (r.prefix.as_str(), r.protocol.as_str(), r.best, r.via.len()))
            .collect();
        assert_eq!(
            summary,
            [
                ("10.10.0.0/26", "node1", true, 1),
                ("10.10.0.0/26", "node2", false, 1),
                ("198.51.100.0/24", "own_ipv4", true, 0),
            ]
        );
        let table = "Name       Proto      Table      State  Since         Info\n\
                     node1      BGP        ---        start  2026-11-24T14:30:00.123  Active        Socket: Connection refused\n";
        let protocol = parse_protocol(table, "node1").unwrap();
        assert_eq!(protocol.state, "start");
        assert_eq!(protocol.info, "Active Socket: Connection refused");
    }
}
