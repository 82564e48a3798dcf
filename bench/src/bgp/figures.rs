//! Figures of rounds, and the table that they make.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use super::device::Kind;
use crate::svg;

/// What has a column: a device, or the least that the kernel's part of the work costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    Device(Kind),
    Floor,
}

impl Column {
    fn name(self) -> String {
        match self {
            Self::Device(kind) => kind.to_string(),
            Self::Floor => "floor".to_owned(),
        }
    }
}

/// The unit of a figure, and what the target speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Mebibytes,
    Nanoseconds,
    /// Of one core.
    Percent,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Nanoseconds => "ns",
            Self::Percent => "%",
        }
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: Unit,
    target: &'static str,
    values: BTreeMap<Column, Vec<f64>>,
}

/// All figures, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: Vec<Row>,
    /// What did not work.
    failures: Vec<String>,
    /// What a device does not do.
    notes: Vec<String>,
}

impl Figures {
    /// Adds the value of one round.
    pub(crate) fn add(
        &mut self,
        name: &str,
        unit: Unit,
        target: &'static str,
        column: Column,
        value: f64,
    ) {
        let place = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let values = BTreeMap::new();
            self.rows.push(Row { name: name.to_owned(), unit, target, values });
            self.rows.len() - 1
        });
        self.rows[place].values.entry(column).or_default().push(value);
    }

    /// Wall and processor time of one step.
    pub(crate) fn step(&mut self, name: &str, target: &'static str, column: Column, step: Step) {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let wall = milliseconds(step.wall);
        self.add(&format!("{name}, wall"), Unit::Milliseconds, target, column, wall);
        let cpu = milliseconds(step.cpu);
        self.add(&format!("{name}, CPU"), Unit::Milliseconds, target, column, cpu);
    }

    /// Notes that something did not work.
    pub(crate) fn fail(&mut self, what: &str, error: &anyhow::Error) {
        self.failures.push(format!("{what}: {error:#}"));
    }

    /// Notes that a round of a device did not work. Only what Twill does not do is a failure of the run.
    pub(crate) fn failed(&mut self, what: &str, kind: Kind, error: &anyhow::Error) {
        match kind {
            Kind::Twill | Kind::Bare => self.fail(what, error),
            Kind::Bird | Kind::Frr | Kind::OpenBgpd => self.note(what, error),
        }
    }

    /// Notes what a device does not do.
    pub(crate) fn note(&mut self, what: &str, error: &anyhow::Error) {
        let note = format!("{what}: {error:#}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// What did not work.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// The table in markdown.
    pub(crate) fn text(&self) -> String {
        let mut columns: Vec<Column> =
            self.rows.iter().flat_map(|row| row.values.keys().copied()).collect();
        columns.sort_unstable();
        columns.dedup();
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let names = columns.iter().map(|column| column.name());
        let more = ["x BIRD", "x FRR", "x OpenBGPD", "x best", "target"].map(str::to_owned);
        table.set_header(["median of the rounds".to_owned()].into_iter().chain(names).chain(more));
        for row in &self.rows {
            let cell = |column: &Column| match row.median(*column) {
                Some(value) => format!("{value:.*} {}", row.digits(), row.unit.name()),
                None => "-".to_owned(),
            };
            let others = [Kind::Bird, Kind::Frr, Kind::OpenBgpd].map(|kind| row.ratio(kind));
            // The largest multiple is that of the best of them.
            let best = others.into_iter().flatten().max_by(f64::total_cmp);
            let ratios = others.into_iter().chain([best]);
            let ratios =
                ratios.map(|ratio| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
            let more = ratios.chain([row.target.to_owned()]);
            let cells = columns.iter().map(cell);
            table.add_row([row.name.clone()].into_iter().chain(cells).chain(more));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n");
        // Writing to a String cannot fail.
        for note in &self.notes {
            let _ = write!(text, "\n* {note}");
        }
        for failure in &self.failures {
            let _ = write!(text, "\n* FAILED: {failure}");
        }
        text
    }

    /// Writes `bgp.md`, `bgp.json` and `bgp.svg`.
    pub(crate) fn write(&self, heading: &str, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        for (file, text) in [
            ("bgp.md", format!("{heading}\n\n{}\n", self.text().trim_end())),
            ("bgp.json", format!("{}\n", serde_json::to_string_pretty(&self.json(heading))?)),
            ("bgp.svg", self.picture(heading)),
        ] {
            let path = directory.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn picture(&self, heading: &str) -> String {
        // A bar needs another to stand beside.
        let rows = || self.rows.iter().filter(|row| row.values.len() > 1);
        let names: Vec<BTreeMap<Column, String>> = rows()
            .map(|row| row.values.keys().map(|column| (*column, column.name())).collect())
            .collect();
        let charts: Vec<svg::Chart<'_>> = rows()
            .zip(&names)
            .map(|(row, names)| svg::Chart {
                title: &row.name,
                unit: row.unit.name(),
                more_is_better: false,
                bars: names
                    .iter()
                    .filter_map(|(column, name)| Some((name.as_str(), row.median(*column)?)))
                    .collect(),
            })
            .collect();
        let subtitle = heading.lines().next().unwrap_or_default();
        svg::draw("BGP: twilld beside BIRD, FRR and OpenBGPD", subtitle, &charts)
    }

    fn json(&self, heading: &str) -> Value {
        let rows = self.rows.iter().map(|row| {
            let values: serde_json::Map<String, Value> =
                row.values.iter().map(|(column, all)| (column.name(), json!(all))).collect();
            json!({"name": row.name, "unit": row.unit.name(), "rounds": values})
        });
        json!({
            "about": heading,
            "figures": rows.collect::<Vec<_>>(),
            "notes": self.notes,
            "failures": self.failures,
        })
    }
}

impl Row {
    fn median(&self, column: Column) -> Option<f64> {
        let mut all = self.values.get(&column)?.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// Twill's as a multiple of another's, if that is anything at all.
    fn ratio(&self, kind: Kind) -> Option<f64> {
        let base = self.median(Column::Device(kind)).filter(|base| *base > 0.0)?;
        Some(self.median(Column::Device(Kind::Twill))? / base)
    }

    const fn digits(&self) -> usize {
        match self.unit {
            Unit::Milliseconds | Unit::Mebibytes | Unit::Nanoseconds => 1,
            Unit::Percent => 3,
        }
    }
}

/// What one step took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) wall: Duration,
    /// Of all threads of the device, until it has come to rest.
    pub(crate) cpu: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_another_device_is_told_and_fails_nothing() {
        let mut figures = Figures::default();
        figures.failed("sessions, FRR", Kind::Frr, &anyhow::anyhow!("it closed one"));
        assert!(figures.failures().is_empty());
        assert!(figures.text().contains("* sessions, FRR: it closed one"), "{}", figures.text());
        figures.failed("sessions, twill", Kind::Twill, &anyhow::anyhow!("it closed one"));
        assert_eq!(figures.failures(), ["sessions, twill: it closed one"]);
    }

    #[test]
    fn rows_have_medians_and_ratios() {
        let mut figures = Figures::default();
        for (kind, values) in [
            (Kind::Twill, [3.0, 1.0, 2.0]),
            (Kind::Bird, [8.0, 4.0, 4.0]),
            (Kind::OpenBgpd, [2.5, 2.5, 2.5]),
        ] {
            for value in values {
                let column = Column::Device(kind);
                figures.add("receive", Unit::Milliseconds, "<= 0.60", column, value);
            }
        }
        figures.fail("relay", &anyhow::anyhow!("nothing is passed on"));
        let text = figures.text();
        for part in ["2.0 ms", "4.0 ms", "<= 0.60", "* FAILED: relay: nothing is passed on"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let row = text.lines().find(|line| line.contains("receive")).unwrap_or_default();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        // Of BIRD, of FRR, of OpenBGPD, of the best of them.
        assert_eq!(cells[5..9], ["0.50", "-", "0.80", "0.80"], "{text}");
        assert!(figures.picture("h").contains("receive"));
    }
}
