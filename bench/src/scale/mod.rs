//! What a large cluster costs its API server: nodes by the hundred in one process, each with the daemon's own
//! code for the datastore and a token of its own, and the controller beside them.
//!
//! Promise: etcd, API server, definitions, rights and admission policy are the real ones, and nothing else
//! uses them; requests are counted in the audit log, octets on the wire and by the API server, memory and
//! processor time by the kernel. A run in which a node does not get what it needs is no result but an error.
//! Time never is.

mod audit;
mod fleet;
mod ledger;
mod report;
mod site;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use self::{
    ledger::Ledger,
    report::{Phase, Report, Took},
    site::Site,
};
use crate::machine::Machine;

/// How many Nodes report, and how many claims change, to see what one of these costs.
const CHANGES: u32 = 10;

/// What a large cluster costs its API server.
#[derive(Debug, Clone, Parser)]
#[command(name = "twill-bench-scale", version)]
struct Arguments {
    /// Nodes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=5000))]
    nodes: u32,
    /// Blocks that each node claims.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    blocks: u32,
    /// Every node watches all Nodes, as it does while the node-to-node mesh is on.
    #[arg(long)]
    mesh: bool,
    /// Seconds of watching a cluster in which nothing happens. Watches are renewed within five minutes.
    #[arg(long, default_value_t = 300)]
    idle: u64,
    /// The order in which nodes start, and which of them change.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints the figures as JSON, and no table.
    #[arg(long)]
    json: bool,
    /// Where markdown and JSON go; nothing is written without.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<fleet::Part>,
}

/// Runs the benchmark, or one of the programs that it starts.
pub fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(part) => part.run(),
        None => {
            twill_tests::sandbox::enter()?;
            run(&arguments)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let report = measure(arguments)?;
    report.print(arguments.json)?;
    arguments.out.as_ref().map_or(Ok(()), |directory| report.write(directory))
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let mut site = Site::start(arguments)?;
    let mut ledger = Ledger::open(&site)?;
    let mut phases = Vec::new();
    let patience = Duration::from_secs(120 + u64::from(arguments.nodes));

    let mut note = |name: &str, site: &Site, took: Took| -> Result<()> {
        let figures = ledger.turn(site).with_context(|| format!("the figures of: {name}"))?;
        phases.push(Phase { name: name.to_owned(), took, figures });
        Ok(())
    };
    let took = site.start_fleet(patience)?;
    note("rollout", &site, took)?;
    let claims = site.claims()?;
    let wanted = arguments.nodes as usize * arguments.blocks as usize;
    // A claim whose answer was late is made all the same, and given back when it stays empty.
    ensure!(claims >= wanted, "{claims} blocks are claimed, and not {wanted}");
    let took = site.idle(Duration::from_secs(arguments.idle))?;
    note("idle", &site, took.into())?;
    let took = site.report_nodes(CHANGES)?;
    note("nodes report", &site, took.into())?;
    let took = site.change_claims(CHANGES)?;
    note("claims change", &site, took.into())?;
    let memory = ledger::memory(&site)?;
    let connections = ledger::connections(&site)?;
    site.kill_fleet()?;
    note("killed", &site, Took::from(0.0))?;
    let took = site.start_fleet(patience)?;
    note("restart of all nodes", &site, took)?;
    let after = site.claims()?;
    ensure!(after == claims, "{after} blocks are claimed after a restart, and not {claims}");
    phases.retain(|phase| phase.name != "killed");

    Ok(Report {
        machine: Machine::look()?,
        nodes: arguments.nodes,
        blocks: arguments.blocks,
        mesh: arguments.mesh,
        changes: CHANGES,
        controller_starts: site.controller_starts,
        node_object: site.size_of_a_node()?,
        memory,
        connections,
        claims,
        phases,
    })
}
