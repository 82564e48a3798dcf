//! Where the time of an ADD goes, step by step: out of the plugin's own traces.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{
    competitor::{Competitor, SAID},
    machine::{Machine, Occasion},
    measure::{Sample, median, percentile},
};

/// Tables of the steps of an ADD, medians over `pods` pods, with the daemon and without.
pub(crate) fn measure(plugin: &Path, pods: u32) -> Result<String> {
    let mut tables = String::new();
    for competitor in [Competitor::daemon(plugin, pods)?, Competitor::standalone(plugin, pods)?] {
        let (traces, samples) = traced(&competitor)?;
        tables += &format!("\n{}:\n\n{}", competitor.name, table(&traces, &samples)?);
    }
    let Machine { kernel, cpus, load } = Machine::look()?;
    Ok(format!(
        "Where the time of an ADD goes, out of the plugin's own traces: medians of {pods} calls, one after the \
         other. Linux {kernel}, {cpus} processors, load average at the end {load}; {}.\n{tables}",
        Occasion::now()
    ))
}

/// Writes `timings.md`.
pub(crate) fn write(text: &str, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join("timings.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What each ADD said, and how long it took.
fn traced(competitor: &Competitor) -> Result<(Vec<String>, Vec<Sample>)> {
    let node = twill_sys::Netns::open(competitor.node()?.path())?;
    let (mut traces, mut samples) = (Vec::new(), Vec::new());
    for pod in 0..competitor.pods() {
        samples.push(twill_sys::in_netns(&node, || competitor.call_traced("ADD", pod))??);
        traces.push(fs::read_to_string(format!("{SAID}{pod}.traces"))?);
        twill_sys::in_netns(&node, || competitor.call("DEL", pod))??;
    }
    competitor.settle(competitor.pods(), crate::SETTLE)?;
    Ok((traces, samples))
}

/// A row for each step, in the order in which they are done first.
fn table(traces: &[String], samples: &[Sample]) -> Result<String> {
    let mut order: Vec<String> = Vec::new();
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for said in traces {
        let mut before = 0.0;
        for (step, at) in said.lines().filter_map(step) {
            if !order.contains(&step) {
                order.push(step.clone());
            }
            times.entry(step).or_default().push(at - before);
            before = at;
        }
    }
    let total = percentile(samples, 50) * 1e3;
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["step", "µs"]);
    let mut sum = 0.0;
    for step in order {
        let time = median(times.get(&step).context("a step without a time")?);
        sum += time;
        table.add_row([step, format!("{time:.0}")]);
    }
    table.add_row(["exec, loading, result, exit".to_owned(), format!("{:.0}", total - sum)]);
    table.add_row(["the whole call, with its traces".to_owned(), format!("{total:.0}")]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(format!("{table}\n"))
}

/// A line that says a step is done, and when.
fn step(line: &str) -> Option<(String, f64)> {
    let (_, rest) = line.split_once(": step: ")?;
    let (step, at) = rest.rsplit_once(" after_us=")?;
    Some((step.to_owned(), at.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;

    use super::*;

    #[test]
    fn steps_are_found_in_traces() {
        let line = "TRACE ADD bench/00/eth0: step: pair of links made after_us=812";
        assert_eq!(step(line), Some(("pair of links made".to_owned(), 812.0)));
        assert_eq!(step("DEBUG ADD bench/00/eth0: begin after_us=3"), None);
    }

    #[test]
    fn a_step_takes_what_has_passed_since_the_one_before() {
        let said = |steps: &[(&str, u32)]| -> String {
            let line = |(step, at): &(&str, u32)| {
                format!("TRACE ADD bench/00/eth0: step: {step} after_us={at}\n")
            };
            steps.iter().map(line).collect()
        };
        let traces = [
            said(&[("configuration read", 10), ("addresses given", 110)]),
            said(&[("configuration read", 20), ("addresses given", 160)]),
        ];
        let sample = |us| Sample { time: Duration::from_micros(us), peak_kib: 0 };
        expect![[r"
            | step                            |  µs |
            |---------------------------------|-----|
            | configuration read              |  15 |
            | addresses given                 | 120 |
            | exec, loading, result, exit     | 165 |
            | the whole call, with its traces | 300 |
        "]]
        .assert_eq(&table(&traces, &[sample(300), sample(400)]).unwrap());
    }
}
