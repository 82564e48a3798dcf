//! The tables.

use std::{collections::BTreeSet, fmt::Write as _, fs, io::Write as _, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use super::{Asked, NODES, Round, histogram::Histogram};
use crate::machine::Machine;

/// A whole run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// In each half of a round.
    pub(super) pods: u32,
    pub(super) rounds: Vec<Round>,
    /// Without a pod that comes or goes.
    pub(super) idle: Asked,
}

/// A figure of every round.
struct Row {
    name: String,
    /// Of a round, in the unit that the name says.
    of: Box<dyn Fn(&Round) -> f64>,
    target: &'static str,
}

impl Report {
    /// To standard output.
    pub(super) fn print(&self) -> Result<()> {
        Ok(std::io::stdout().lock().write_all(self.text()?.as_bytes())?)
    }

    /// `cluster.md`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join("cluster.md");
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        fs::write(&path, self.text()?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn text(&self) -> Result<String> {
        let Machine { kernel, cpus, load } = &self.machine;
        let mut text = format!(
            "{} rounds of {pods} pods as on any node and {pods} more with a program in the plugins' place that times \
             each execution, one pod at a time, on {} nodes with containerd 2.4, beside the whole control plane; Linux {kernel}, \
             {cpus} processors for all of it, load average at the end {load}.\n\n{}\n",
            self.rounds.len(),
            NODES.len(),
            self.figures(),
            pods = self.pods,
        );
        writeln!(text, "\n{}", self.metric()?)?;
        writeln!(text, "\n{}", self.requests())?;
        Ok(text)
    }

    fn figures(&self) -> Table {
        let mut header = vec!["".to_owned()];
        header.extend((1..=self.rounds.len()).map(|number| format!("round {number}")));
        header.extend(["median".to_owned(), "target".to_owned()]);
        let mut table = table(&header);
        for Row { name, of, target } in rows() {
            let values: Vec<f64> = self.rounds.iter().map(of).collect();
            let median = quantile(&values, 50);
            let cells = values.iter().chain([&median]).map(|value| format!("{value:.1}"));
            table.add_row(std::iter::once(name).chain(cells).chain([target.to_owned()]));
        }
        table
    }

    /// containerd's metric as it stands.
    fn metric(&self) -> Result<String> {
        let all = |half: fn(&Round) -> &Histogram| {
            self.rounds.iter().fold(Histogram::default(), |all, round| all.and(half(round)))
        };
        let mut text = String::new();
        for (what, all) in [
            ("as on any node", all(|round| &round.plain.metric)),
            ("with the timing program between", all(|round| &round.timed.metric)),
        ] {
            let (lower, upper, within) = all.median().context("containerd tells of no ADD")?;
            writeln!(
                text,
                "containerd's metric of all rounds, {what}: {} ADDs (`twill` and `loopback`, which run at the same time), \
                 mean {:.1} ms, median in the bucket of {lower:.0} to {upper:.0} ms, at {within:.1} if they lay evenly in it.",
                all.count,
                all.mean(),
            )?;
        }
        Ok(text)
    }

    /// What node daemons asked of the API server while pods came, and while nothing did.
    fn requests(&self) -> Table {
        let halves =
            || self.rounds.iter().flat_map(|round| [&round.plain.asked, &round.timed.asked]);
        let seconds: f64 = halves().map(|asked| asked.seconds).sum();
        let pods = self.rounds.len() as u64 * 2 * u64::from(self.pods);
        let mut table = table(&[
            "API requests of the node daemons".to_owned(),
            format!("while {pods} pods came, {seconds:.0} s"),
            format!("while none did, {:.0} s", self.idle.seconds),
        ]);
        let kinds: BTreeSet<&String> =
            halves().chain([&self.idle]).flat_map(|asked| asked.requests.keys()).collect();
        let count = |asked: &Asked, kind: &String| asked.requests.get(kind).copied().unwrap_or(0);
        for kind in kinds {
            let busy: u64 = halves().map(|asked| count(asked, kind)).sum();
            table.add_row([kind.clone(), busy.to_string(), count(&self.idle, kind).to_string()]);
        }
        let all = |asked: &Asked| asked.requests.values().sum::<u64>();
        let busy: u64 = halves().map(all).sum();
        table.add_row(["all".to_owned(), busy.to_string(), all(&self.idle).to_string()]);
        table
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (plugin, verb) in [("twill", "ADD"), ("loopback", "ADD"), ("twill", "DEL")] {
        for percent in [50, 90, 99] {
            let target = if (plugin, verb, percent) == ("twill", "ADD", 50) { "<= 15" } else { "" };
            let kind = (plugin.to_owned(), verb.to_owned());
            rows.push(Row {
                name: format!("{verb} by `{plugin}`, exec to exit, p{percent}, ms"),
                of: Box::new(move |round| {
                    round.timed.calls.get(&kind).map_or(f64::NAN, |times| quantile(times, percent))
                }),
                target,
            });
        }
    }
    rows.push(Row {
        name: "containerd's metric, mean, ms".to_owned(),
        of: Box::new(|round| round.plain.metric.mean()),
        target: "",
    });
    for percent in [50, 90, 99] {
        rows.push(Row {
            name: format!("the whole RunPodSandbox, by containerd's log, p{percent}, ms"),
            of: Box::new(move |round| quantile(&round.plain.sandboxes, percent)),
            target: "",
        });
    }
    rows.push(Row {
        name: "a daemon's start until it is ready, its copy on the node, the slower node, ms"
            .to_owned(),
        of: Box::new(|round| quantile(&round.starts, 100)),
        target: "<= 1000",
    });
    rows.push(Row {
        name: "resident memory of a daemon beside these pods, the larger one, MiB".to_owned(),
        of: Box::new(|round| quantile(&round.plain.memory, 100)),
        target: "<= 60",
    });
    rows
}

fn table(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// By nearest rank.
fn quantile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Half;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([50, 90, 99].map(|p| quantile(&values, p)), [100.0, 180.0, 198.0]);
        assert_eq!(quantile(&[7.0], 99), 7.0);
        assert!(quantile(&[], 50).is_nan());
    }

    #[test]
    fn medians_are_those_of_rounds() {
        let add = ("twill".to_owned(), "ADD".to_owned());
        let round = |ms: f64| Round {
            plain: Half::default(),
            timed: Half { calls: [(add.clone(), vec![ms, ms, 99.0])].into(), ..Half::default() },
            starts: vec![ms * 10.0, ms * 20.0],
        };
        let machine = Machine { kernel: "6".to_owned(), cpus: 2, load: "0".to_owned() };
        let rounds = [3.0, 9.0, 5.0].map(round).into();
        let report = Report { machine, pods: 3, rounds, idle: Asked::default() };
        let text = report.figures().to_string();
        let line = |start: &str| {
            let line = text.lines().find(|line| line.contains(start)).unwrap();
            line.split('|').map(str::trim).skip(2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("ADD by `twill`, exec to exit, p50").trim(), "3.0 9.0 5.0 5.0 <= 15");
        assert_eq!(line("start until it is ready").trim(), "60.0 180.0 100.0 100.0 <= 1000");
    }
}
