//! The table, and the files.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use nix::sys::{statfs::statfs, utsname::uname};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    competitor::Competitor,
    crowd::{Crowd, FEW},
    measure::{Calls, Measured, percentile},
    svg,
};

/// The file of a run that is read again.
const JSON: &str = "add-del.json";

/// Where it was measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    kernel: String,
    cpus: usize,
    /// Whose store is on which file system.
    file_systems: Vec<(String, String)>,
    /// The version of Debian's reference plugins.
    reference: String,
}

/// A whole run.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Size of the plugin's file.
    pub(crate) plugin_bytes: u64,
    pub(crate) daemon_kib: Option<u64>,
    pub(crate) measured: Vec<Measured>,
    pub(crate) crowd: Option<Crowd>,
}

impl Machine {
    pub(crate) fn look(competitors: &[Competitor]) -> Result<Self> {
        let name = uname()?;
        let mut file_systems = Vec::new();
        for competitor in competitors {
            if let Some(store) = &competitor.store {
                let kind = statfs(store)
                    .with_context(|| format!("cannot look at {}", store.display()))?
                    .filesystem_type();
                let kind = match kind {
                    nix::sys::statfs::TMPFS_MAGIC => "tmpfs".to_owned(),
                    other => format!("{other:?}"),
                };
                file_systems.push((competitor.name.clone(), kind));
            }
        }
        let package = std::process::Command::new("dpkg-query")
            .args(["-W", "-f=${Version}", "containernetworking-plugins"])
            .output();
        let reference = package.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        Ok(Self {
            kernel: name.release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            file_systems,
            reference: reference.unwrap_or_default(),
        })
    }
}

/// One figure of every competitor.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// More is better.
    rate: bool,
    of: fn(&Measured) -> f64,
}

const ROWS: [Row; 8] = [
    Row { name: "ADD p50", unit: "ms", rate: false, of: |m| percentile(&m.add.alone, 50) },
    Row { name: "ADD p99", unit: "ms", rate: false, of: |m| percentile(&m.add.alone, 99) },
    Row { name: "DEL p50", unit: "ms", rate: false, of: |m| percentile(&m.del.alone, 50) },
    Row { name: "DEL p99", unit: "ms", rate: false, of: |m| percentile(&m.del.alone, 99) },
    Row { name: "ADD, 16 at once", unit: "/s", rate: true, of: |m| m.add.rate() },
    Row {
        name: "ADD p99, 16 at once",
        unit: "ms",
        rate: false,
        of: |m| percentile(&m.add.together, 99),
    },
    Row { name: "DEL, 16 at once", unit: "/s", rate: true, of: |m| m.del.rate() },
    Row { name: "peak memory", unit: "MiB", rate: false, of: |m| peak_mib(&m.add, &m.del) },
];

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn peak_mib(add: &Calls, del: &Calls) -> f64 {
    add.peak_kib().max(del.peak_kib()) as f64 / 1024.0
}

impl Report {
    /// The competitors whose numbers others are set against.
    fn find(&self, start: &str) -> Option<&Measured> {
        self.measured.iter().rev().find(|measured| measured.name.starts_with(start))
    }

    /// Prints everything.
    pub(crate) fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.text())?;
        Ok(())
    }

    fn text(&self) -> String {
        let Machine { kernel, cpus, file_systems, reference } = &self.machine;
        let [count, together] =
            self.measured.first().map_or([0, 0], |m| [m.add.alone.len(), m.add.together.len()]);
        let mut text = format!(
            "Whole processes, exec to exit, {count} calls of each kind one after the other and \
             {together} with 16 at once, in turn. Linux {kernel}, {cpus} processors, \
             containernetworking-plugins {reference}.\n"
        );
        for (name, kind) in file_systems {
            text += &format!("Addresses of {name}: on {kind}.\n");
        }
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let names = self.measured.iter().map(|measured| measured.name.clone());
        table.set_header(std::iter::once(String::new()).chain(names));
        for row in &ROWS {
            let values = self.measured.iter().map(|m| format!("{:.2} {}", (row.of)(m), row.unit));
            table.add_row(std::iter::once(row.name.to_owned()).chain(values));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        text += &format!("\n{table}\n");
        for (name, against) in [("the reference", "ptp"), ("the floor", "floor")] {
            text += &self.ratios(name, against);
        }
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(["twill", "", "target"]);
        table.add_rows(self.targets());
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        text += &format!("\n{table}\n");
        // Until its exec a child shares the caller's memory, and the kernel counts that as its own.
        text += "\nOf the peak memory, what is no more than the floor's is the caller's own.";
        text += &format!("\nThe plugin's file: {:.2} MiB.", mib(self.plugin_bytes / 1024));
        if let Some(kib) = self.daemon_kib {
            text += &format!(" The daemon's peak memory: {:.1} MiB.", mib(kib));
        }
        if let Some(Crowd { pods, twill, floor, daemon_kib, measured: _ }) = &self.crowd {
            for (name, growth) in [("Twill", twill), ("the floor", floor)] {
                text += &format!(
                    "\nADD p50 of {name} with {FEW} pods on the node, and with {pods}: {growth}."
                );
            }
            text += &format!(
                "\nWith all of them the kernel's work alone (the floor) takes {:.2} ms longer, Twill {:.2} ms.",
                floor.added_ms(),
                twill.added_ms(),
            );
            text += &format!(" The daemon's peak memory then: {:.1} MiB.", mib(*daemon_kib));
        }
        text
    }

    /// Every figure of Twill as a multiple of the same of `against`.
    fn ratios(&self, name: &str, against: &str) -> String {
        let Some(base) = self.find(against) else { return String::new() };
        let mut text = format!("\nAgainst {name} ({}):\n", base.name);
        for ours in self.measured.iter().filter(|m| m.name.starts_with("twill")) {
            let ratio = |row: &Row| format!("{} {:.2}", row.name, (row.of)(ours) / (row.of)(base));
            let ratios: Vec<String> = ROWS.iter().map(ratio).collect();
            text += &format!("  {}: {}\n", ours.name, ratios.join(", "));
        }
        if against == "ptp"
            && let Some(ours) = self.measured.first()
        {
            let times = percentile(&base.add.alone, 50) / percentile(&ours.add.alone, 50);
            text += &format!("  {} is {times:.1} times as fast at the p50 of ADD.\n", ours.name);
        }
        text
    }

    /// What Twill is to reach: the figure, what it is, and what it should be.
    fn targets(&self) -> Vec<[String; 3]> {
        const ADD: usize = 0;
        let mut rows = Vec::new();
        let mut row = |what: &str, value: String, target: &str| {
            rows.push([what.to_owned(), value, target.to_owned()]);
        };
        let of = |name: &str| self.measured.iter().find(|measured| measured.name == name);
        let against = |ours: &Measured, base: &Measured, index: usize| {
            let figure = ROWS[index].of;
            format!("{:.2}", figure(ours) / figure(base))
        };
        let all = |start: &'static str| {
            self.measured.iter().filter(move |measured| measured.name.starts_with(start))
        };
        if let Some(ours) = of("twill") {
            for base in all("ptp") {
                for (index, target) in
                    [(ADD, "<= 0.25"), (1, "<= 0.30"), (2, "<= 0.20"), (4, ">= 5")]
                {
                    let what = format!("{}, times {}", ROWS[index].name, base.name);
                    row(&what, against(ours, base, index), target);
                }
            }
            for floor in all("floor") {
                let what = format!("ADD p50, times {}", floor.name);
                row(&what, against(ours, floor, ADD), "<= 1.5");
            }
            let peak = format!("{:.1} MiB", peak_mib(&ours.add, &ours.del));
            row("peak memory", peak, "<= 8 MiB");
        }
        if let Some(alone) = of("twill, standalone") {
            for base in all("ptp") {
                let what = format!("standalone: ADD p50, times {}", base.name);
                row(&what, against(alone, base, ADD), "<= 1.0");
            }
            let peak = format!("{:.1} MiB", peak_mib(&alone.add, &alone.del));
            row("standalone: peak memory", peak, "<= 32 MiB");
        }
        let size = format!("{:.2} MiB", mib(self.plugin_bytes / 1024));
        row("the plugin's file, static", size, "<= 4 MiB");
        if let Some(crowd) = &self.crowd {
            let what = format!("ADD p50 with {} pods, times that with {FEW}", crowd.pods);
            row(&what, format!("{:.2}", crowd.twill.times()), "<= 1.2");
            row("the same of the floor", format!("{:.2}", crowd.floor.times()), "(the kernel's)");
        }
        rows
    }

    fn json(&self) -> Value {
        let figures = |measured: &Measured| {
            let figures: serde_json::Map<String, Value> = ROWS
                .iter()
                .map(|row| (format!("{} ({})", row.name, row.unit), json!((row.of)(measured))))
                .collect();
            json!({"name": measured.name, "figures": figures})
        };
        json!({
            "machine": self.machine,
            "pluginBytes": self.plugin_bytes,
            "daemonPeakKiB": self.daemon_kib,
            "competitors": self.measured.iter().map(figures).collect::<Vec<_>>(),
            "crowd": self.crowd,
        })
    }

    /// Writes `add-del.json` and `add-del.svg`. A crowd takes minutes and is left out of many runs: one that
    /// the file has stays there, with the occasion on which it was measured, until there is another.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mut json = self.json();
        if self.crowd.is_none()
            && let Some(crowd) = crowd_in(&directory.join(JSON))?
        {
            writeln!(std::io::stdout().lock(), "The crowd in {JSON} stays: {}", crowd["measured"])?;
            json["crowd"] = crowd;
        }
        let charts: Vec<svg::Chart> = ROWS
            .iter()
            .map(|row| svg::Chart {
                title: row.name,
                unit: row.unit,
                more_is_better: row.rate,
                bars: self.measured.iter().map(|m| (m.name.as_str(), (row.of)(m))).collect(),
            })
            .collect();
        let subtitle = format!(
            "whole processes, exec to exit; Linux {}, {} processors",
            self.machine.kernel, self.machine.cpus
        );
        for (file, text) in [
            (JSON, format!("{}\n", serde_json::to_string_pretty(&json)?)),
            ("add-del.svg", svg::draw("ADD and DEL", &subtitle, &charts)),
        ] {
            let path = directory.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// What an earlier run has written about a crowd, if it had one.
fn crowd_in(path: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut earlier: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is no JSON; is it an earlier run's?", path.display()))?;
    Ok(Some(earlier["crowd"].take()).filter(|crowd| !crowd.is_null()))
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crowd::Growth, machine::Occasion};

    fn report(crowd: Option<usize>) -> Report {
        let growth = Growth::new(2.0, 3.0);
        let machine = Machine {
            kernel: "6.1".to_owned(),
            cpus: 2,
            file_systems: Vec::new(),
            reference: "1.1.1".to_owned(),
        };
        let occasion = Occasion { commit: Some("abc1234".into()), date: "2026-02-03".into() };
        let crowd = crowd.map(|pods| Crowd {
            pods,
            twill: growth,
            floor: growth,
            daemon_kib: 7,
            measured: occasion,
        });
        Report { machine, plugin_bytes: 1, daemon_kib: None, measured: Vec::new(), crowd }
    }

    #[test]
    fn a_run_without_a_crowd_keeps_that_of_an_earlier_one() {
        let directory = tempfile::tempdir().unwrap();
        let written = |crowd| -> Value {
            report(crowd).write(directory.path()).unwrap();
            let text = fs::read_to_string(directory.path().join(JSON)).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(written(None)["crowd"], Value::Null);
        assert_eq!(written(Some(5000))["crowd"]["pods"], 5000);
        let kept = written(None)["crowd"].clone();
        assert_eq!(kept["pods"], 5000);
        for of in ["twill", "floor"] {
            assert_eq!(kept[of], json!({"fewMs": 2.0, "manyMs": 3.0, "times": 1.5}));
        }
        assert_eq!(kept["measured"], json!({"commit": "abc1234", "date": "2026-02-03"}));
        assert_eq!(written(Some(300))["crowd"]["pods"], 300);
    }

    #[test]
    fn a_file_that_is_not_understood_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(JSON);
        fs::write(&path, "{").unwrap();
        assert!(report(None).write(directory.path()).is_err());
        assert_eq!(fs::read_to_string(path).unwrap(), "{");
    }
}
