//! FRR as a real peer: zebra and bgpd by hand, in a directory of their own, and what they say.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::Signal,
    unistd::{Group, User},
};
use serde_json::Value;

use crate::{
    netns::Namespace,
    process::{Daemon, read_lossy, run},
    wait::wait_for,
};

/// Debian's place for FRR's daemons.
const PROGRAMS: &str = "/usr/lib/frr";

/// Who they run as: they give root away by themselves, and need files of their own.
const USER: &str = "frr";

/// How long a daemon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running FRR.
#[derive(Debug)]
pub struct Frr {
    // bgpd ends before zebra: fields are dropped in this order.
    bgpd: Daemon,
    zebra: Daemon,
    dir: PathBuf,
}

impl Frr {
    /// Starts zebra and bgpd in `namespace`. `bgpd` is the text of `bgpd.conf` without its log
    /// lines; the daemons' files and sockets are in `dir`, which becomes theirs.
    pub fn start(namespace: &Namespace, bgpd: &str, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        give_away(dir)?;
        // bgpd asks zebra about next hops, so zebra has to answer first.
        let zebra = launch(namespace, "zebra", "", dir)?;
        let debug = "debug bgp neighbor-events\ndebug bgp updates in\n";
        let bgpd = launch(namespace, "bgpd", &format!("{debug}{bgpd}"), dir)?;
        Ok(Self { bgpd, zebra, dir: dir.to_owned() })
    }

    /// Its bgpd: to stop it for a while, or to see whether it lives.
    pub fn bgpd(&self) -> &Daemon {
        &self.bgpd
    }

    /// Its zebra.
    pub fn zebra(&self) -> &Daemon {
        &self.zebra
    }

    /// bgpd dies at once and starts again, in `namespace`, as it was started first; what was
    /// configured since by [`Self::configure`] is lost.
    pub fn restart_bgpd(&mut self, namespace: &Namespace) -> Result<()> {
        self.bgpd.signal(Signal::SIGKILL)?;
        self.bgpd.wait(PATIENCE)?;
        self.bgpd = spawn(namespace, "bgpd", &self.dir)?;
        wait_served(&mut self.bgpd, "bgpd", &self.dir)
    }

    /// Commands as an operator types them (`show bgp summary`): what is printed.
    pub fn command(&self, commands: &[&str]) -> Result<String> {
        vtysh("bgpd", &self.dir, commands)
    }

    /// Configuration lines, each on its own, below `configure terminal`.
    pub fn configure(&self, lines: &[&str]) -> Result<()> {
        let answer = self.command(&[&["configure terminal"], lines].concat())?;
        let refused = answer.lines().find(|line| line.starts_with('%'));
        ensure!(refused.is_none(), "FRR does not take {lines:?}: {answer}");
        Ok(())
    }

    /// What a `show ... json` command prints.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.command(&[command])?;
        serde_json::from_str(&text)
            .with_context(|| format!("FRR's `{command}` printed no JSON: {text}"))
    }

    /// `show bgp neighbors ADDRESS json`.
    pub fn neighbor(&self, address: &str) -> Result<Value> {
        let all = self.json(&format!("show bgp neighbors {address} json"))?;
        let found = all.get(address).cloned();
        found.with_context(|| format!("FRR has no neighbor {address}: {all}"))
    }

    /// Waits until the sessions with all of these neighbors are established.
    pub fn wait_established(&self, addresses: &[&str], deadline: Duration) -> Result<()> {
        for address in addresses {
            wait_for(&format!("FRR's session with {address}"), deadline, || {
                let state = self.neighbor(address)?["bgpState"].clone();
                ensure!(state == "Established", "it is {state}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The paths to exactly this prefix, as `show bgp FAMILY unicast PREFIX json` has them.
    pub fn paths(&self, prefix: &str) -> Result<Vec<Value>> {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let route = self.json(&format!("show bgp {family} unicast {prefix} json"))?;
        // The most specific route that covers it is shown, too.
        let exact = route["prefix"] == prefix;
        Ok(route["paths"].as_array().filter(|_| exact).cloned().unwrap_or_default())
    }

    /// Waits until it has a path to `prefix` from the neighbor with this address.
    pub fn wait_route(&self, prefix: &str, neighbor: &str, deadline: Duration) -> Result<Value> {
        wait_for(&format!("FRR's route to {prefix} from {neighbor}"), deadline, || {
            let paths = self.paths(prefix)?;
            let found = paths.iter().find(|path| path["peer"]["peerId"] == neighbor);
            found.cloned().with_context(|| format!("it has {paths:?}"))
        })
    }

    /// Waits until it has no path to `prefix` at all.
    pub fn wait_no_route(&self, prefix: &str, deadline: Duration) -> Result<()> {
        wait_for(&format!("FRR's route to {prefix} to go"), deadline, || {
            let paths = self.paths(prefix)?;
            ensure!(paths.is_empty(), "it has {paths:?}");
            Ok(())
        })
    }

    /// bgpd's log: states, messages, routes.
    pub fn log(&self) -> String {
        read_lossy(&self.dir.join("bgpd.log"))
    }
}

/// Writes a daemon's configuration, starts it, and waits until it answers.
fn launch(namespace: &Namespace, program: &str, config: &str, dir: &Path) -> Result<Daemon> {
    let log = dir.join(format!("{program}.log"));
    let file = dir.join(format!("{program}.conf"));
    let head = format!("log file {}\nlog timestamp precision 3\n", log.display());
    fs::write(&file, head + config).with_context(|| format!("cannot write {}", file.display()))?;
    give_away(&file)?;
    let mut daemon = spawn(namespace, program, dir)?;
    wait_served(&mut daemon, program, dir)?;
    Ok(daemon)
}

fn spawn(namespace: &Namespace, program: &str, dir: &Path) -> Result<Daemon> {
    let mut command = Command::new(Path::new(PROGRAMS).join(program));
    command.arg("-f").arg(dir.join(format!("{program}.conf")));
    command.arg("-i").arg(dir.join(format!("{program}.pid")));
    command.arg("-z").arg(dir.join("zserv.api")).arg("--vty_socket").arg(dir);
    command.args(["-u", USER, "-g", USER]);
    let name = format!("{program} of {}", namespace.name());
    let output = dir.join(format!("{program}.out.log"));
    Daemon::start(&name, namespace, &mut command, &output).context("FRR is needed (package frr)")
}

fn wait_served(daemon: &mut Daemon, program: &str, dir: &Path) -> Result<()> {
    wait_for(&format!("FRR's {program}"), PATIENCE, || {
        daemon.alive()?;
        vtysh(program, dir, &["show version"])
    })?;
    Ok(())
}

fn vtysh(daemon: &str, dir: &Path, commands: &[&str]) -> Result<String> {
    let mut vtysh = Command::new("vtysh");
    // Its own directory has no vtysh.conf, so the machine's is not read.
    vtysh.arg("--vty_socket").arg(dir).arg("--config_dir").arg(dir).args(["-d", daemon]);
    for command in commands {
        vtysh.args(["-c", command]);
    }
    run(&mut vtysh)
}

/// Makes a file or directory FRR's own.
fn give_away(path: &Path) -> Result<()> {
    let missing = "there is no user frr; FRR is needed (package frr)";
    let user = User::from_name(USER)?.context(missing)?;
    let group = Group::from_name(USER)?.context(missing)?;
    chown(path, Some(user.uid.as_raw()), Some(group.gid.as_raw()))
        .with_context(|| format!("cannot give {} to {USER}", path.display()))
}
