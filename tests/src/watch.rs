//! What happens to a kernel's routes while something else goes on.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{lab::Lab, netns::Namespace, process::Daemon, wait::wait_for};

/// `ip monitor route` in one machine's namespace.
#[derive(Debug)]
pub struct RouteWatch {
    machine: String,
    monitor: Daemon,
}

impl RouteWatch {
    /// Starts to watch; returns when it sees.
    pub fn start(lab: &Lab, machine: &str) -> Result<Self> {
        Self::of(machine, lab.namespace(machine)?, lab.dir())
    }

    /// The same of any machine by its namespace. The log goes into a directory.
    pub fn of(machine: &str, namespace: &Namespace, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("routes-of-{machine}.log"));
        fs::write(&log, "")?;
        let mut command = Command::new("ip");
        command.args(["-n", namespace.name(), "-timestamp", "monitor", "route"]);
        let monitor = Daemon::start("ip monitor", namespace, &mut command, &log)?;
        let watch = Self { machine: machine.to_owned(), monitor };
        // A route of our own, until it is seen.
        let probe = "192.0.2.255/32 dev lo metric 4242";
        wait_for("ip monitor", Duration::from_secs(30), || {
            namespace.ip(&format!("route add {probe}"))?;
            namespace.ip(&format!("route del {probe}"))?;
            ensure!(watch.monitor.log().contains("192.0.2.255"), "it sees nothing");
            Ok(())
        })?;
        Ok(watch)
    }

    /// The routes that were deleted since the start.
    pub fn deleted(&self) -> Vec<String> {
        let log = self.monitor.log();
        let deleted = log.lines().filter(|l| l.contains("Deleted") && !l.contains("192.0.2.255"));
        deleted.map(str::to_owned).collect()
    }

    /// Fails if any route was deleted since the start.
    pub fn nothing_deleted(&self) -> Result<()> {
        let deleted = self.deleted();
        ensure!(deleted.is_empty(), "{} deleted routes: {deleted:#?}", self.machine);
        Ok(())
    }
}
