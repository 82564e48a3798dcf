//! The table, and the files.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use super::ledger::Figures;
use crate::machine::Machine;

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;

/// A part of a run.
#[derive(Debug, Serialize)]
pub(super) struct Phase {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) took: Took,
    pub(super) figures: Figures,
}

/// How long a phase took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Took {
    /// In which its figures were counted.
    pub(super) seconds: f64,
    /// Of a start: until all nodes had their blocks. After a restart these come from the copies, before the API
    /// server has answered all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) settled: Option<f64>,
}

impl From<f64> for Took {
    fn from(seconds: f64) -> Self {
        Self { seconds, settled: None }
    }
}

/// A whole run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) nodes: u32,
    /// That each node claimed.
    pub(super) blocks: u32,
    /// Whether every node watched all Nodes.
    pub(super) mesh: bool,
    /// How many Nodes, and claims, changed in their phases.
    pub(super) changes: u32,
    /// How often the controller was started: it ends when its Lease cannot be renewed.
    pub(super) controller_starts: u32,
    /// Octets of a Node: whole, its metadata alone.
    pub(super) node_object: [usize; 2],
    /// Resident memory in octets by program, after the idle phase. `nodes` is all of them together.
    pub(super) memory: BTreeMap<String, u64>,
    /// More than were wanted where answers were late.
    pub(super) claims: usize,
    /// To the API server, of all nodes, after the idle phase.
    pub(super) connections: usize,
    pub(super) phases: Vec<Phase>,
}

impl Report {
    /// To standard output.
    pub(super) fn print(&self, json: bool) -> Result<()> {
        let text = if json { self.json()? } else { self.text() };
        Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
    }

    /// `scale-NODES[-mesh].md` and `.json`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let mesh = if self.mesh { "-mesh" } else { "" };
        let name = format!("scale-{}{mesh}", self.nodes);
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        for (ending, text) in [("md", self.text()), ("json", self.json()?)] {
            let path = directory.join(format!("{name}.{ending}"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    fn text(&self) -> String {
        let Machine { kernel, cpus, load } = &self.machine;
        let mesh = if self.mesh { "all Nodes are watched by each" } else { "no mesh" };
        let [node, metadata] = self.node_object;
        format!(
            "{} nodes with {} blocks each, {mesh}; Linux {kernel}, {cpus} processors for all of it, load \
             average at the end {load}. A Node has {node} octets, its metadata {metadata}. \
             The controller was started {} times; the nodes have {} claims and {} connections.\n\n{}\n\n{}\n\n{}\n",
            self.nodes,
            self.blocks,
            self.controller_starts,
            self.claims,
            self.connections,
            self.phases(),
            self.requests(),
            self.sizes()
        )
    }

    fn table(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(header);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn per_node(&self, amount: f64) -> f64 {
        amount / f64::from(self.nodes)
    }

    fn phases(&self) -> Table {
        let mut table = self.table(&[
            "phase",
            "seconds",
            "blocks after s",
            "requests per node",
            "the same in a minute",
            "KiB received per node",
            "API server CPU s",
            "etcd CPU s",
            "controller CPU s",
        ]);
        for phase in &self.phases {
            let Figures { requests, octets, cpu, .. } = &phase.figures;
            let Took { seconds, settled } = phase.took;
            let requests = self.per_node(requests.values().sum::<u64>() as f64);
            let cpu = |program: &str| cpu.get(program).copied().unwrap_or_default();
            table.add_row([
                phase.name.clone(),
                format!("{seconds:.1}"),
                settled.map(|settled| format!("{settled:.1}")).unwrap_or_default(),
                format!("{requests:.2}"),
                format!("{:.2}", requests * 60.0 / seconds),
                format!("{:.1}", self.per_node(*octets as f64) / KIB),
                format!("{:.1}", cpu("kube-apiserver")),
                format!("{:.1}", cpu("etcd")),
                format!("{:.1}", cpu("controller")),
            ]);
        }
        table
    }

    /// Requests, and events by resource, of each phase.
    fn requests(&self) -> Table {
        let mut header = vec!["per node"];
        header.extend(self.phases.iter().map(|phase| phase.name.as_str()));
        let mut table = self.table(&header);
        let all = self.phases.iter().flat_map(|phase| phase.figures.requests.keys());
        let mut names: Vec<&String> = all.collect();
        names.sort();
        names.dedup();
        for name in names {
            let count =
                |phase: &Phase| phase.figures.requests.get(name).copied().unwrap_or_default();
            let counts = self.phases.iter().map(|phase| self.per_node(count(phase) as f64));
            let cells = counts.map(|count| format!("{count:.2}"));
            table.add_row(std::iter::once(name.clone()).chain(cells));
        }
        // Not those that the API server tells itself.
        let is_told = |(_, (count, _)): &(&String, &(u64, u64))| 5 * count >= u64::from(self.nodes);
        let all = self.phases.iter().flat_map(|phase| phase.figures.events.iter().filter(is_told));
        let all = all.map(|(name, _)| name);
        let mut names: Vec<&String> = all.collect();
        names.sort();
        names.dedup();
        for name in names {
            let cells = self.phases.iter().map(|phase| {
                let (count, octets) = phase.figures.events.get(name).copied().unwrap_or_default();
                let (count, octets) = (self.per_node(count as f64), self.per_node(octets as f64));
                format!("{count:.2} ({:.1} KiB)", octets / KIB)
            });
            table.add_row(std::iter::once(format!("events of {name}")).chain(cells));
        }
        table
    }

    fn sizes(&self) -> Table {
        let mut table = self.table(&["memory", "MiB", "KiB per node"]);
        for (program, octets) in &self.memory {
            let octets = *octets as f64;
            table.add_row([
                program.clone(),
                format!("{:.1}", octets / MIB),
                format!("{:.0}", self.per_node(octets) / KIB),
            ]);
        }
        table
    }
}
