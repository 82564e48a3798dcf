//! ADD and DEL of Twill beside the reference plugins, and beside the least that the kernel's work
//! costs, in one run.
//!
//! Promise: all competitors have the same number of calls on the same machine in the same minutes,
//! in turn, from the same caller; every call is the whole process from exec to exit; and a run in
//! which a pod cannot be reached, or something is left behind, is no result but an error. Timing
//! alone never fails a run.

pub mod bgp;
pub mod cluster;
mod competitor;
mod crowd;
mod echo;
mod ipam;
mod machine;
mod measure;
mod report;
pub mod scale;
mod svg;
mod timings;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
pub use echo::serve_if_asked;
use twill_tests::programs;

use crate::{
    competitor::Competitor,
    measure::{Measured, Round},
    report::{Machine, Report},
};

/// How long the daemon may take to delete the links of a round.
const SETTLE: Duration = Duration::from_secs(60);

/// Calls at a time in the second half of each round.
const AT_ONCE: usize = 16;

/// ADD and DEL of Twill beside the reference plugins.
#[derive(Debug, Parser)]
#[command(name = "twill-bench", version)]
struct Arguments {
    /// The plugin as it is shipped (make plugin).
    #[arg(long)]
    plugin: PathBuf,
    /// More reference plugins to compare with, as NAME=DIRECTORY.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    reference: Vec<String>,
    /// Only those whose names begin like this, to look at one more closely.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Rounds; competitors take turns in each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Pods in the first half of a round: so many calls of each kind, one after the other.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(16..=1000))]
    pods: u32,
    /// Pods in the second half, 16 calls at once; no fewer than in the first.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(16..=1000))]
    together: u32,
    /// Pods on the node when ADD is measured on a crowded one, such as 5000, which takes minutes; 0
    /// leaves that out.
    #[arg(long, default_value_t = 0)]
    crowd: u32,
    /// Measures where the time of an ADD goes, step by step, and nothing else.
    #[arg(long)]
    timings: bool,
    /// Measures addresses alone, and nothing else.
    #[arg(long)]
    addresses: bool,
    /// Where tables, JSON and SVG go; nothing is written without.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// Runs the benchmark and prints the table.
pub fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let plugin = fs::canonicalize(&arguments.plugin)
        .with_context(|| format!("cannot find {}; run make plugin", arguments.plugin.display()))?;
    if arguments.timings {
        return steps(&arguments, &plugin);
    }
    if arguments.addresses {
        return addresses(&arguments);
    }
    let mut competitors = competitors(&arguments, &plugin)?;
    let mut measured: Vec<Measured> =
        competitors.iter().map(|competitor| Measured::new(&competitor.name)).collect();
    let turn_of_each = Round { alone: arguments.pods as usize, at_once: AT_ONCE, settle: SETTLE };
    for round in 0..arguments.rounds {
        // Each begins once, so that none always comes after the same one.
        for turn in 0..competitors.len() {
            let index = (turn + round as usize) % competitors.len();
            let competitor = &mut competitors[index];
            measured[index]
                .round(competitor, turn_of_each)
                .with_context(|| format!("round {round} of {}", competitor.name))?;
        }
    }
    let machine = Machine::look(&competitors)?;
    let daemon_kib =
        competitors.iter().find_map(|c| c.daemon_peak_kib().transpose()).transpose()?;
    drop(competitors);
    let crowd = match arguments.crowd {
        0 => None,
        pods => Some(crowd::measure(&plugin, pods).context("a crowded node")?),
    };
    let plugin_bytes = fs::metadata(&plugin)?.len();
    let report = Report { machine, plugin_bytes, daemon_kib, measured, crowd };
    report.print()?;
    if let Some(directory) = &arguments.out {
        report.write(directory)?;
    }
    match arguments.only {
        None => {
            steps(&arguments, &plugin)?;
            addresses(&arguments)
        }
        Some(_) => Ok(()),
    }
}

fn steps(arguments: &Arguments, plugin: &Path) -> Result<()> {
    let text = timings::measure(plugin, arguments.pods).context("steps of an ADD")?;
    std::io::stdout().lock().write_all(format!("\n{text}").as_bytes())?;
    arguments.out.as_ref().map_or(Ok(()), |directory| timings::write(&text, directory))
}

fn addresses(arguments: &Arguments) -> Result<()> {
    let addresses = ipam::measure().context("addresses")?;
    std::io::stdout().lock().write_all(addresses.text().as_bytes())?;
    arguments.out.as_ref().map_or(Ok(()), |directory| addresses.write(directory))
}

fn competitors(arguments: &Arguments, plugin: &Path) -> Result<Vec<Competitor>> {
    let pods = arguments.together.max(arguments.pods);
    let mut all = vec![
        Competitor::daemon(plugin, pods)?,
        Competitor::standalone(plugin, pods)?,
        Competitor::reference("ptp + host-local (Debian)", programs::REFERENCE_PLUGINS, pods)?,
    ];
    for reference in &arguments.reference {
        let (name, directory) = reference
            .split_once('=')
            .with_context(|| format!("--reference {reference:?}: write NAME=DIRECTORY"))?;
        all.push(Competitor::reference(&format!("ptp + host-local ({name})"), directory, pods)?);
    }
    all.extend(Competitor::floors(pods)?);
    if let Some(only) = &arguments.only {
        let has_just_this = all.iter().any(|competitor| competitor.name == *only);
        all.retain(|competitor| match has_just_this {
            true => competitor.name == *only,
            false => competitor.name.starts_with(only),
        });
    }
    Ok(all)
}
