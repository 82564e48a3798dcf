//! GoBGP as a real peer: its configuration as text, and what it says of sessions and routes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    netns::Namespace,
    process::{Daemon, run},
    wait::wait_for,
};

/// The state that GoBGP calls ESTABLISHED in its JSON.
const ESTABLISHED: u64 = 6;

/// The name of its socket.
const SOCKET: &str = "gobgpd.sock";

/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running GoBGP. It has no routes in the kernel.
#[derive(Debug)]
pub struct Gobgp {
    daemon: Daemon,
    dir: PathBuf,
}

impl Gobgp {
    /// Starts gobgpd in `namespace` with this configuration (YAML); its files are in `dir`.
    pub fn start(namespace: &Namespace, config: &str, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(dir.join("gobgpd.yaml"), config)?;
        let daemon = spawn(namespace, dir, &[])?;
        let mut gobgp = Self { daemon, dir: dir.to_owned() };
        gobgp.wait_served()?;
        Ok(gobgp)
    }

    /// The daemon: to stop it for a while, or to see whether it lives.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// It dies at once and starts again in `namespace`, with these arguments more
    /// (`--graceful-restart`). Routes that were added by [`Self::command`] are lost.
    pub fn restart(&mut self, namespace: &Namespace, arguments: &[&str]) -> Result<()> {
        self.daemon.signal(nix::sys::signal::Signal::SIGKILL)?;
        self.daemon.wait(PATIENCE)?;
        // It takes no socket's place that is there.
        fs::remove_file(self.dir.join(SOCKET)).context("cannot remove GoBGP's socket")?;
        self.daemon = spawn(namespace, &self.dir, arguments)?;
        self.wait_served()
    }

    fn wait_served(&mut self) -> Result<()> {
        wait_for("GoBGP's socket", PATIENCE, || {
            self.daemon.alive()?;
            cli(&self.dir, &["global"])
        })?;
        Ok(())
    }

    /// Writes another configuration and has it read again.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        fs::write(self.dir.join("gobgpd.yaml"), config)?;
        self.daemon.signal(nix::sys::signal::Signal::SIGHUP)
    }

    /// What `gobgp ARGUMENTS` prints.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        cli(&self.dir, arguments)
    }

    /// The same with `-j`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command(&[&["-j"], arguments].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("gobgp {} printed no JSON: {text}", arguments.join(" ")))
    }

    /// `gobgp neighbor ADDRESS`.
    pub fn neighbor(&self, address: &str) -> Result<Value> {
        self.json(&["neighbor", address])
    }

    /// Waits until the sessions with all of these neighbors are established.
    pub fn wait_established(&self, addresses: &[&str], deadline: Duration) -> Result<()> {
        for address in addresses {
            wait_for(&format!("GoBGP's session with {address}"), deadline, || {
                let state = self.neighbor(address)?["state"]["session_state"].clone();
                ensure!(state == ESTABLISHED, "it is {state}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The paths to exactly this prefix, as `gobgp global rib` has them.
    pub fn paths(&self, prefix: &str) -> Result<Vec<Value>> {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        // Asked for a prefix that is not there it complains; the whole table is always an answer.
        let table = self.json(&["global", "rib", "-a", family])?;
        Ok(table[prefix].as_array().cloned().unwrap_or_default())
    }

    /// Waits until it has a path to `prefix` from the neighbor with this address.
    pub fn wait_route(&self, prefix: &str, neighbor: &str, deadline: Duration) -> Result<Value> {
        wait_for(&format!("GoBGP's route to {prefix} from {neighbor}"), deadline, || {
            let paths = self.paths(prefix)?;
            let found = paths.iter().find(|path| path["neighbor-ip"] == neighbor);
            found.cloned().with_context(|| format!("it has {paths:?}"))
        })
    }

    /// Waits until it has no path to `prefix` at all.
    pub fn wait_no_route(&self, prefix: &str, deadline: Duration) -> Result<()> {
        wait_for(&format!("GoBGP's route to {prefix} to go"), deadline, || {
            let paths = self.paths(prefix)?;
            ensure!(paths.is_empty(), "it has {paths:?}");
            Ok(())
        })
    }

    /// Its log: states and NOTIFICATIONs.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

fn spawn(namespace: &Namespace, dir: &Path, arguments: &[&str]) -> Result<Daemon> {
    let mut command = Command::new("gobgpd");
    command.arg("-f").arg(dir.join("gobgpd.yaml")).args(["-t", "yaml", "-p"]);
    command.args(["--api-hosts", &socket(dir)]).args(arguments);
    let name = format!("gobgpd of {}", namespace.name());
    Daemon::start(&name, namespace, &mut command, &dir.join("gobgpd.log"))
        .context("GoBGP is needed (package gobgpd)")
}

fn cli(dir: &Path, arguments: &[&str]) -> Result<String> {
    run(Command::new("gobgp").args(["--target", &socket(dir)]).args(arguments))
}

/// A unix socket, so that one is asked from outside its network namespace.
fn socket(dir: &Path) -> String {
    format!("unix://{}", dir.join(SOCKET).display())
}
