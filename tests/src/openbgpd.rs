//! OpenBGPD as a real peer: its configuration as text, and what it says of sessions and routes.
//!
//! It is several processes: the one that is started, and those that it starts for sessions, for
//! decisions and for RPKI, which give root away. On Linux it has no routes in the kernel, and takes
//! every next hop for reachable.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
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

/// Debian's place for it. FRR's program has the same name, and is in a directory of its own.
pub const PROGRAM: &str = "/usr/sbin/bgpd";

/// Where its processes lock themselves in: the home of the user `_openbgpd`. It has to be root's, and
/// nothing is ever in it.
const CHROOT: &str = "/run/openbgpd";

/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running OpenBGPD.
#[derive(Debug)]
pub struct Openbgpd {
    daemon: Daemon,
    dir: PathBuf,
}

impl Openbgpd {
    /// Starts it in `namespace` with this configuration, to which the place of its control socket is
    /// added, and waits until it answers; its files are in `dir`.
    pub fn start(namespace: &Namespace, config: &str, dir: &Path) -> Result<Self> {
        let mut openbgpd = Self::spawn(namespace, config, dir, &["-v"])?;
        wait_for("OpenBGPD's socket", PATIENCE, || {
            openbgpd.daemon.alive()?;
            openbgpd.command(&["show", "summary"])
        })?;
        Ok(openbgpd)
    }

    /// The same without waiting, and with fewer words in the log.
    pub fn launch(namespace: &Namespace, config: &str, dir: &Path) -> Result<Self> {
        Self::spawn(namespace, config, dir, &[])
    }

    fn spawn(namespace: &Namespace, config: &str, dir: &Path, more: &[&str]) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(CHROOT)
            .with_context(|| format!("cannot make {CHROOT}"))?;
        write(config, dir)?;
        let mut command = Command::new(PROGRAM);
        command.arg("-d").args(more).arg("-f").arg(dir.join("bgpd.conf"));
        let name = format!("OpenBGPD of {}", namespace.name());
        let daemon = Daemon::start(&name, namespace, &mut command, &dir.join("openbgpd.log"))
            .context("OpenBGPD is needed (package openbgpd)")?;
        Ok(Self { daemon, dir: dir.to_owned() })
    }

    /// Its first process, whose end is that of the others.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Fails, with the end of its log, if it has ended; it does when one of its processes has.
    pub fn alive(&mut self) -> Result<()> {
        self.daemon.alive()
    }

    /// The ids of all its processes.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let first = self.daemon.pid();
        let path = format!("/proc/{first}/task/{first}/children");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let others = text.split_whitespace().map(str::parse);
        Ok([Ok(first)].into_iter().chain(others).collect::<Result<_, _>>()?)
    }

    /// Ends it, and waits until none of its processes is left: the others notice by themselves that
    /// the first has gone, and have sessions to close.
    pub fn end(self) -> Result<()> {
        let pids = self.pids()?;
        self.daemon.kill9()?;
        wait_for("the end of OpenBGPD's processes", PATIENCE, || {
            let left: Vec<_> =
                pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
            ensure!(left.is_empty(), "{left:?} are left");
            Ok(())
        })
    }

    /// Writes another configuration and has it read again. A session that has failed is not waited
    /// for: it may be opened again.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        write(config, &self.dir)?;
        self.command(&["reload"]).map(drop)
    }

    /// What `bgpctl ARGUMENTS` prints.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("bgpctl").arg("-s").arg(socket(&self.dir)).args(arguments))
    }

    /// The same with `-j`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command(&[&["-j"], arguments].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("bgpctl {} printed no JSON: {text}", arguments.join(" ")))
    }

    /// `bgpctl show neighbor ADDRESS`.
    pub fn neighbor(&self, address: &str) -> Result<Value> {
        let all = self.json(&["show", "neighbor", address])?;
        let found = all["neighbors"].as_array().and_then(|all| all.first()).cloned();
        found.with_context(|| format!("OpenBGPD has no neighbor {address}: {all}"))
    }

    /// The paths to exactly this prefix, as `bgpctl show rib detail PREFIX` has them.
    pub fn paths(&self, prefix: &str) -> Result<Vec<Value>> {
        let table = self.json(&["show", "rib", "detail", prefix])?;
        Ok(table["rib"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until it has a path to `prefix` from the neighbor with this address.
    pub fn wait_route(&self, prefix: &str, neighbor: &str, deadline: Duration) -> Result<Value> {
        wait_for(&format!("OpenBGPD's route to {prefix} from {neighbor}"), deadline, || {
            let paths = self.paths(prefix)?;
            let found = paths.iter().find(|path| path["neighbor"]["remote_addr"] == neighbor);
            found.cloned().with_context(|| format!("it has {paths:?}"))
        })
    }

    /// Its log: states, NOTIFICATIONs, and with `log updates` routes.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

/// Its version, as it tells it; an error if it is not there.
pub fn version() -> Result<String> {
    let output = Command::new(PROGRAM)
        .arg("-V")
        .output()
        .with_context(|| format!("cannot run {PROGRAM} (package openbgpd)"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    ensure!(said.starts_with("OpenBGPD"), "{PROGRAM} is another bgpd: {said}");
    Ok(said)
}

/// It refuses a file that others may read, as passwords are in it.
fn write(config: &str, dir: &Path) -> Result<()> {
    let path = dir.join("bgpd.conf");
    let text = format!("socket \"{}\"\n{config}", socket(dir).display());
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("bgpd.sock")
}
