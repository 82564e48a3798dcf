//! The devices: each runs in a namespace of its own with two links, and has all peers behind them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{Pid, User, chown},
};
use twill_tests::{
    lab::{Lab, Topology},
    netns::Namespace,
    openbgpd::{self, Openbgpd},
    process::{Daemon, tail},
    programs,
    wait::wait_for,
};

use super::{
    bare,
    config::{DEVICE, OTHER, Plan, peer_address},
};

/// FRR's daemons, where Debian has them.
const FRR: &str = "/usr/lib/frr";

/// How long a device may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device that has not used the processor for so long has done what was asked of it.
const QUIET: Duration = Duration::from_millis(150);

/// Lines of the log of a device that has failed.
const LAST_WORDS: usize = 10;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The daemon, with all that it does on a node.
    Twill,
    Bird,
    /// zebra and bgpd.
    Frr,
    /// All its processes. On Linux it writes no routes to the kernel.
    OpenBgpd,
    /// Twill's speaker without its daemon: no kernel, no datastore, nobody who asks it anything. It has no
    /// column of its own.
    Bare,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twill => "twill",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::OpenBgpd => "OpenBGPD",
            Self::Bare => "twill's speaker",
        })
    }
}

impl Kind {
    /// Those with a column, in its order.
    pub(crate) const ALL: [Self; 4] = [Self::Twill, Self::Bird, Self::Frr, Self::OpenBgpd];

    /// Whether what it learns can be looked for in the kernel.
    pub(crate) fn writes_kernel_routes(self) -> bool {
        !matches!(self, Self::OpenBgpd | Self::Bare)
    }

    /// Its version, as its program tells it; an error if it is not installed.
    pub(crate) fn version(self) -> Result<String> {
        let program = match self {
            Self::Twill | Self::Bare => programs::find("twilld")?,
            Self::Bird => PathBuf::from("bird"),
            Self::Frr => Path::new(FRR).join("bgpd"),
            Self::OpenBgpd => return openbgpd::version(),
        };
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        // BIRD tells it where it complains.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(said.lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// A running device, and the namespaces of its peers.
#[derive(Debug)]
pub(crate) struct Device {
    // Daemons end before their namespaces.
    daemons: Vec<Daemon>,
    openbgpd: Option<Openbgpd>,
    lab: Lab,
    kind: Kind,
    plan: Plan,
}

impl Device {
    /// The links, and nothing that runs on them yet.
    pub(crate) fn prepare(kind: Kind, plan: Plan) -> Result<Self> {
        let mut topology = Topology::new();
        let device = match kind {
            Kind::Twill => topology.node("device").log_level("warn"),
            Kind::Bird | Kind::Frr | Kind::OpenBgpd | Kind::Bare => topology.router("device"),
        };
        device.on("near", &format!("{DEVICE}/16")).on("far", &format!("{OTHER}/16"));
        if plan.reflects {
            let key = "projectcalico.org/RouteReflectorClusterID";
            device.annotation(key, &DEVICE.to_string());
        }
        device.annotation("projectcalico.org/IPv4Address", &format!("{DEVICE}/16"));
        if plan.objects_on && kind == Kind::Twill {
            device.settings("fib: {nexthopObjects: on}\n");
        }
        let near = topology.router("near-peers");
        for index in 0..u16::try_from(plan.sessions.len().max(1))? {
            near.on("near", &format!("{}/16", peer_address(index)));
        }
        topology.router("far-peers").on("far", "172.17.1.1/16").gateway(&OTHER.to_string());
        if kind == Kind::Twill {
            topology.resource("peers.yaml", &plan.manifests());
        }
        Ok(Self { daemons: Vec::new(), openbgpd: None, lab: topology.build()?, kind, plan })
    }

    /// Starts a device and waits until it answers.
    pub(crate) fn start(kind: Kind, plan: Plan) -> Result<Self> {
        let mut device = Self::prepare(kind, plan)?;
        device.launch()?;
        device.wait_ready()?;
        Ok(device)
    }

    /// Starts the processes.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let dir = self.dir()?;
        match self.kind {
            Kind::Twill => self.lab.node_mut("device")?.launch(),
            Kind::Bird => {
                fs::write(dir.join("bird.conf"), self.plan.bird())?;
                let mut command = Command::new("bird");
                command.arg("-f").arg("-c").arg(dir.join("bird.conf"));
                command.arg("-s").arg(dir.join("bird.ctl")).arg("-P").arg(dir.join("bird.pid"));
                self.spawn(&mut command, &dir)
            }
            Kind::Frr => self.launch_frr(&dir),
            Kind::OpenBgpd => {
                let config = self.plan.openbgpd();
                self.openbgpd = Some(Openbgpd::launch(self.namespace()?, &config, &dir)?);
                Ok(())
            }
            Kind::Bare => {
                let clients = u16::try_from(self.plan.sessions.len())?;
                self.spawn(&mut bare::program(clients)?, &dir)
            }
        }
    }

    /// bgpd is of no use without zebra's socket, and gives up where there is none.
    fn launch_frr(&mut self, dir: &Path) -> Result<()> {
        let user = User::from_name("frr")?.context("there is no user frr (package frr)")?;
        chown(dir, Some(user.uid), Some(user.gid))?;
        fs::write(dir.join("zebra.conf"), "log stdout errors\n")?;
        fs::write(dir.join("bgpd.conf"), self.plan.bgpd())?;
        for program in ["zebra", "bgpd"] {
            let mut command = Command::new(Path::new(FRR).join(program));
            command.arg("-f").arg(dir.join(format!("{program}.conf")));
            command.arg("-i").arg(dir.join(format!("{program}.pid")));
            command.arg("-z").arg(dir.join("zserv.api")).arg("--vty_socket").arg(dir);
            if program == "bgpd" && self.plan.kernel_off {
                command.arg("--no_kernel");
            }
            self.spawn(&mut command, dir)?;
            if program == "zebra" {
                wait_for("zebra's socket", PATIENCE, || Ok(fs::metadata(dir.join("zserv.api"))?))?;
            }
        }
        Ok(())
    }

    fn spawn(&mut self, command: &mut Command, dir: &Path) -> Result<()> {
        let daemon =
            Daemon::start(&self.kind.to_string(), self.namespace()?, command, &dir.join("log"))?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// Waits until it listens.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        if self.kind == Kind::Twill {
            self.lab.node_mut("device")?.wait_ready()?;
        }
        let namespace = self.lab.namespace("device")?;
        wait_for("a listener on port 179", PATIENCE, || {
            for daemon in &mut self.daemons {
                daemon.alive()?;
            }
            if let Some(openbgpd) = &mut self.openbgpd {
                openbgpd.alive()?;
            }
            // Port 179 in hexadecimal, and the state LISTEN.
            let is_there = |table: &str| {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
                text.unwrap_or_default().lines().any(|line| {
                    let mut columns = line.split_whitespace().skip(1);
                    let local = columns.next().unwrap_or_default();
                    local.ends_with(":00B3") && columns.nth(1) == Some("0A")
                })
            };
            let listens = namespace.enter(|| is_there("tcp") || is_there("tcp6"))?;
            ensure!(listens, "it does not listen");
            Ok(())
        })
    }

    fn dir(&self) -> Result<PathBuf> {
        let dir = self.lab.dir().join("device");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Who it is.
    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// An error together with the last words of its processes, which are gone with it.
    pub(crate) fn with_its_words<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = match (self.kind, &self.openbgpd) {
                (Kind::Twill, _) => self.lab.node("device").map(|node| node.log()),
                (_, Some(openbgpd)) => Ok(openbgpd.log()),
                (_, None) => Ok(self.daemons.first().map(Daemon::log).unwrap_or_default()),
            };
            let words = tail(&log.unwrap_or_default(), LAST_WORDS);
            if words.is_empty() { error } else { anyhow!("{error:#}; its log ends: {words}") }
        })
    }

    /// Where it runs.
    pub(crate) fn namespace(&self) -> Result<&Namespace> {
        self.lab.namespace("device")
    }

    /// Where its peers on the first link are.
    pub(crate) fn near(&self) -> Result<&Namespace> {
        self.lab.namespace("near-peers")
    }

    /// Where its peers on the other link are.
    pub(crate) fn far(&self) -> Result<&Namespace> {
        self.lab.namespace("far-peers")
    }

    /// Takes the carrier of its first link, whose other end is the first wire that was made.
    pub(crate) fn cut(&self) -> Result<()> {
        self.lab.fabric().ip("link set wire1 down").map(drop)
    }

    fn pids(&self) -> Result<Vec<u32>> {
        if self.kind == Kind::Twill {
            return Ok(vec![self.lab.node("device")?.daemon()?.pid()]);
        }
        if let Some(openbgpd) = &self.openbgpd {
            return openbgpd.pids();
        }
        Ok(self.daemons.iter().map(Daemon::pid).collect())
    }

    /// Processor time of all its threads since its start.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in self.pids()? {
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid)?))?;
            sum += Duration::from(clock_gettime(clock)?);
        }
        Ok(sum)
    }

    /// The same once it has come to rest: what goes on after the result is there counts too.
    pub(crate) fn cpu_at_rest(&self) -> Result<Duration> {
        let mut last = (self.cpu()?, Instant::now());
        wait_for("the device to rest", Duration::from_secs(60), || {
            let now = self.cpu()?;
            // A timer that runs is no work.
            if now > last.0 + Duration::from_millis(2) {
                last = (now, Instant::now());
            }
            ensure!(last.1.elapsed() >= QUIET, "it is still at work");
            Ok(now)
        })
    }

    /// The most memory that it had resident, in KiB.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.pids()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
            sum += kib.context("no VmHWM")?;
        }
        Ok(sum)
    }

    /// Ends it, and fails if it had ended by itself.
    pub(crate) fn finish(mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            daemon.alive()?;
        }
        self.daemons.clear();
        if let Some(mut openbgpd) = self.openbgpd.take() {
            openbgpd.alive()?;
            openbgpd.end()?;
        }
        self.lab.remove()
    }
}
