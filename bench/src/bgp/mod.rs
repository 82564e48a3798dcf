//! The speaker beside BIRD, FRR and OpenBGPD: the same scripted peers, in turn, in the same minutes.
//!
//! Promise: every round of every device begins with new namespaces and a new process, and is on the
//! same links with the same peers, which are this program's and whose messages were made before the
//! clock starts; the time is until the result can be seen from outside (in the kernel, or at a peer);
//! and processor time is that of all threads of the device until it has come to rest. What does not
//! work is said, with the end of the device's log, and of Twill it makes the run fail. Time never does.

mod bare;
mod config;
mod device;
mod failover;
mod figures;
mod floor;
mod kernel;
mod opening;
mod peer;
mod receive;
mod relay;
mod stream;

use std::{io::Write, path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use nix::sys::utsname::uname;

pub use self::bare::bare_speaker;
use self::{
    device::Kind,
    failover::{CAUSES, Failover},
    figures::{Column, Figures, Unit},
    relay::Crowd,
    stream::Table,
};

/// After that a device that still uses a dead next hop is taken not to notice.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(20);

/// After that a device that is not done does not work.
const PATIENCE: Duration = Duration::from_secs(120);

/// Rounds of what takes long.
const FEW: u32 = 3;

/// The speaker beside BIRD, FRR and OpenBGPD.
#[derive(Debug, Parser)]
#[command(name = "twill-bench-bgp", version)]
struct Arguments {
    /// Rounds; devices take turns in each. What takes long has three at most.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Prefixes of a full table.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    prefixes: u32,
    /// Prefixes of a table that is large; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(0..=2_000_000))]
    large: u32,
    /// Numbers of sessions.
    #[arg(long, value_delimiter = ',', default_values_t = [500, 1000])]
    sessions: Vec<u16>,
    /// Seconds of watching a device that has nothing to do; 0 leaves it out.
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// A few routes and sessions, once: not for the numbers, but to see that all of it works.
    #[arg(long)]
    short: bool,
    /// Only figures whose names have this in them.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only Twill, to look at it more closely.
    #[arg(long)]
    alone: bool,
    /// Where markdown, JSON and SVG go; nothing is written without.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// Runs the benchmark and prints the table.
pub fn run() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.short {
        (arguments.rounds, arguments.prefixes, arguments.large) = (1, 5000, 0);
        (arguments.sessions, arguments.idle) = (vec![20], 1);
    }
    let mut bench =
        Bench { arguments, kinds: Vec::new(), figures: Figures::default(), reflects: Vec::new() };
    let heading = bench.choose()?;
    bench.measure()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{heading}\n\n{}", bench.figures.text())?;
    if let Some(directory) = &bench.arguments.out {
        bench.figures.write(&heading, directory)?;
    }
    let failures = bench.figures.failures();
    ensure!(failures.is_empty(), "{} of the figures could not be had", failures.len());
    Ok(())
}

struct Bench {
    arguments: Arguments,
    kinds: Vec<Kind>,
    figures: Figures,
    /// Who passes routes on.
    reflects: Vec<Kind>,
}

impl Bench {
    /// Takes the devices that are installed, says in a line which are not, and gives the heading.
    fn choose(&mut self) -> Result<String> {
        let mut versions = Vec::new();
        let alone = self.arguments.alone;
        for kind in Kind::ALL.into_iter().filter(|kind| !alone || *kind == Kind::Twill) {
            match kind.version() {
                Ok(version) => {
                    versions.push(format!("{kind} ({version})"));
                    self.kinds.push(kind);
                }
                // Targets are multiples of BIRD's figures.
                Err(error) if matches!(kind, Kind::Twill | Kind::Bird) => return Err(error),
                Err(error) => {
                    // Nobody may be reading.
                    let _ = writeln!(std::io::stderr(), "{kind} is left out: {error:#}");
                    self.figures.note(&format!("{kind} is left out"), &error);
                }
            }
        }
        let rounds = self.arguments.rounds;
        Ok(format!(
            "{}; Linux {}, {} processors; {rounds} rounds, {} of many sessions, failover and the large \
             table.\n\nBIRD, FRR and OpenBGPD are set up as a node's speaker (BIRD as Calico does it); \
             twilld is the whole daemon, and its speaker alone where kernel routes are off. OpenBGPD \
             writes no routes to the kernel on Linux, so it is in the rows that do not look there, with \
             that much less to do. CPU is of all threads until the device rests.",
            versions.join(", "),
            uname()?.release().to_string_lossy(),
            std::thread::available_parallelism()?,
            rounds.min(FEW)
        ))
    }

    fn measure(&mut self) -> Result<()> {
        for shared in [10, 1000] {
            self.receive(Table { prefixes: self.arguments.prefixes, shared })?;
        }
        self.relay();
        for sessions in self.arguments.sessions.clone() {
            self.sessions(sessions);
        }
        self.opening();
        self.failover();
        self.idle();
        self.codec()
    }

    fn wanted(&self, name: &str) -> bool {
        self.arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Calls `act` for each device in each round; each begins once, so that none always comes after
    /// the same one. A device that fails is left out from then on.
    fn rounds(
        &mut self,
        name: &str,
        rounds: u32,
        kinds: &[Kind],
        mut act: impl FnMut(Kind, &mut Figures) -> Result<()>,
    ) {
        if !self.wanted(name) {
            return;
        }
        let mut failed = Vec::new();
        for round in 0..rounds as usize {
            for turn in 0..kinds.len() {
                let kind = kinds[(turn + round) % kinds.len()];
                if failed.contains(&kind) {
                    continue;
                }
                // Nobody may be reading.
                let _ = writeln!(std::io::stderr(), "{name}: {kind}, round {}", round + 1);
                if let Err(error) = act(kind, &mut self.figures) {
                    self.figures.failed(&format!("{name}, {kind}"), kind, &error);
                    failed.push(kind);
                }
            }
        }
    }

    fn receive(&mut self, table: Table) -> Result<()> {
        let Table { prefixes, shared } = table;
        let receive = format!("receive {prefixes}, {shared} a set");
        let withdraw = format!("withdraw {prefixes}, {shared} a set");
        let memory = format!("peak memory, {prefixes} received, {shared} a set");
        if !self.wanted(&receive) {
            return Ok(());
        }
        let program = floor::compile()?;
        let (rounds, kinds) = (self.arguments.rounds, with_kernel(&self.kinds));
        self.rounds(&receive, rounds, &kinds, |kind, figures| {
            let received = receive::measure(kind, table, false, PATIENCE)?;
            let column = Column::Device(kind);
            figures.step(&receive, "<= 0.60 BIRD", column, received.receive);
            figures.step(&withdraw, "<= 0.75 BIRD", column, received.withdraw);
            let mib = mebibytes(received.peak_kib);
            figures.add(&memory, Unit::Mebibytes, "<= 1.5 BIRD", column, mib);
            if kind == Kind::Twill {
                let (added, removed) = floor::measure(&program, prefixes)?;
                figures.step(&receive, "<= 0.60 BIRD", Column::Floor, added);
                figures.step(&withdraw, "<= 0.75 BIRD", Column::Floor, removed);
            }
            Ok(())
        });
        let by_object = format!("{receive}, all by nexthop objects");
        self.rounds(&by_object, rounds, &[Kind::Twill], |kind, figures| {
            let received = receive::measure(kind, table, true, PATIENCE)?;
            figures.step(&by_object, "", Column::Device(kind), received.receive);
            Ok(())
        });
        Ok(())
    }

    /// Who passes routes on is found out first: where one does not, it is said once.
    fn relay(&mut self) {
        let crowds = &self.arguments.sessions;
        if !self.wanted("relay") && !crowds.iter().any(|many| self.wanted(&fan_out(*many))) {
            return;
        }
        for kind in self.kinds.clone() {
            let _ = writeln!(std::io::stderr(), "relay of one route: {kind}");
            match relay::probe(kind) {
                Ok(()) => self.reflects.push(kind),
                Err(error) => {
                    self.figures.failed(&format!("relay of one route, {kind}"), kind, &error);
                }
            }
        }
        let kinds = self.reflects.clone();
        let (rounds, prefixes) = (self.arguments.rounds, self.arguments.prefixes);
        let large = self.arguments.large;
        for (prefixes, shared, rounds) in [(prefixes, 10, rounds), (large, 5, rounds.min(FEW))] {
            if prefixes == 0 {
                continue;
            }
            let name = format!("relay {prefixes}, {shared} a set");
            let memory = format!("peak memory, {prefixes} relayed");
            let limit = if prefixes > 500_000 { "<= 1.2 BIRD" } else { "<= 1.5 BIRD" };
            self.rounds(&name, rounds, &with_kernel(&kinds), |kind, figures| {
                let table = Table { prefixes, shared };
                let relayed = relay::one_to_one(kind, table, false, PATIENCE)?;
                let column = Column::Device(kind);
                figures.step(&name, "<= 1.0 BIRD", column, relayed.step);
                let mib = mebibytes(relayed.peak_kib);
                figures.add(&memory, Unit::Mebibytes, limit, column, mib);
                Ok(())
            });
            // What is left of it without a kernel, to know both parts. A node cannot do without: of it that
            // is the speaker.
            let name = format!("{name}, kernel routes off");
            self.rounds(&name, rounds, &kinds, |kind, figures| {
                let table = Table { prefixes, shared };
                let relayed = match kind {
                    Kind::Twill => relay::one_to_one(Kind::Bare, table, true, PATIENCE)?,
                    other => relay::one_to_one(other, table, true, PATIENCE)?,
                };
                figures.step(&name, "<= 1.0 BIRD", Column::Device(kind), relayed.step);
                if !kind.writes_kernel_routes() {
                    let mib = mebibytes(relayed.peak_kib);
                    figures.add(&memory, Unit::Mebibytes, limit, Column::Device(kind), mib);
                }
                Ok(())
            });
        }
    }

    fn sessions(&mut self, sessions: u16) {
        let rounds = self.arguments.rounds.min(FEW);
        let prefixes = prefixes_of_each(sessions);
        let crowd = Crowd { sessions, prefixes, patience: PATIENCE };
        let kernel = format!("{sessions} sessions, {prefixes} prefixes of each into the kernel");
        let fan_out = fan_out(sessions);
        let (all, reflecting) = (self.kinds.clone(), self.reflects.clone());
        for (name, kinds, reflects) in [(kernel, all, false), (fan_out, reflecting, true)] {
            self.rounds(&name, rounds, &kinds, |kind, figures| {
                let crowded = match reflects {
                    true => crowd.fan_out(kind)?,
                    false => crowd.into_kernel(kind)?,
                };
                let column = Column::Device(kind);
                figures.step(&format!("{name}: Established"), "", column, crowded.established);
                if let Some(converged) = crowded.converged {
                    let target = "<= 1.0 the best";
                    figures.step(&format!("{name}: converged"), target, column, converged);
                }
                let mib = mebibytes(crowded.peak_kib);
                let memory = format!("{name}: peak memory");
                figures.add(&memory, Unit::Mebibytes, "", column, mib);
                Ok(())
            });
        }
    }

    fn opening(&mut self) {
        let name = "start to an active session";
        let (rounds, kinds) = (self.arguments.rounds, self.kinds.clone());
        self.rounds(name, rounds, &kinds, |kind, figures| {
            let wall = opening::measure(kind)?.as_secs_f64() * 1e3;
            figures.add(name, Unit::Milliseconds, "<= 50 ms", Column::Device(kind), wall);
            Ok(())
        });
    }

    fn failover(&mut self) {
        for shared in [true, false] {
            for cause in CAUSES {
                self.failover_of(Failover { cause, shared, compatible: false });
                if !self.arguments.short {
                    self.failover_of(Failover { cause, shared, compatible: true });
                }
            }
        }
    }

    fn failover_of(&mut self, failover: Failover) {
        let (rounds, prefixes) = (self.arguments.rounds.min(FEW), self.arguments.prefixes);
        let Failover { cause, shared, compatible } = failover;
        let ways = if shared { "ECMP" } else { "single path" };
        let mode = if compatible { "on" } else { "off" };
        let name = format!("failover {prefixes}, {ways}, {cause}, compat {mode}");
        let target = if compatible { "<= 150 ms" } else { "<= 20 ms" };
        let short = self.arguments.short;
        let is_measured = |kind: &Kind| match kind {
            Kind::Twill => true,
            // It has no nexthop objects, so the mode is nothing to it.
            Kind::Bird => !compatible && !short,
            Kind::Frr => !short,
            Kind::OpenBgpd | Kind::Bare => false,
        };
        let kinds: Vec<Kind> = self.kinds.iter().copied().filter(is_measured).collect();
        self.rounds(&name, rounds, &kinds, |kind, figures| {
            let table = Table { prefixes, shared: 250 };
            match failover.measure(kind, table, FAILOVER_PATIENCE)? {
                Some(wall) => {
                    let wall = wall.as_secs_f64() * 1e3;
                    figures.add(&name, Unit::Milliseconds, target, Column::Device(kind), wall);
                }
                // What the others do not do is a result as well.
                None if kind != Kind::Twill => {
                    let late = anyhow::anyhow!("not within {FAILOVER_PATIENCE:?}");
                    figures.note(&format!("{name}, {kind}"), &late);
                }
                None => bail!("not within {FAILOVER_PATIENCE:?}"),
            }
            Ok(())
        });
    }

    fn idle(&mut self) {
        let (watched, prefixes) = (self.arguments.idle, self.arguments.prefixes);
        if watched == 0 {
            return;
        }
        let name = format!("idle with {prefixes} routes, of a core");
        let kinds = with_kernel(&self.kinds);
        self.rounds(&name, 1, &kinds, |kind, figures| {
            let table = Table { prefixes, shared: 250 };
            let share = receive::idle(kind, table, Duration::from_secs(watched), PATIENCE)?;
            figures.add(&name, Unit::Percent, "< 0.1 %", Column::Device(kind), share);
            Ok(())
        });
    }

    fn codec(&mut self) -> Result<()> {
        if !self.wanted("codec") {
            return Ok(());
        }
        for _ in 0..self.arguments.rounds {
            let (decode, encode) = floor::codec()?;
            let column = Column::Device(Kind::Twill);
            for (name, value) in [("decode", decode), ("encode", encode)] {
                let name = format!("codec: {name} a prefix, 500 in an UPDATE");
                self.figures.add(&name, Unit::Nanoseconds, "<= 10 ns", column, value);
            }
        }
        Ok(())
    }
}

const fn prefixes_of_each(sessions: u16) -> u32 {
    if sessions >= 1000 { 1 } else { 2 }
}

/// The name of what many sessions are told.
fn fan_out(sessions: u16) -> String {
    format!("{sessions} sessions, {} prefixes of each, full fan-out", prefixes_of_each(sessions))
}

/// Those whose routes can be looked for in the kernel.
fn with_kernel(kinds: &[Kind]) -> Vec<Kind> {
    kinds.iter().copied().filter(|kind| kind.writes_kernel_routes()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
