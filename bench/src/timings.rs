//! Where the time of an ADD goes, step by step: out of the plugin's own traces.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{
    competitor::{Competitor, SAID},
    measure::percentile,
};

/// Prints a table of the steps of an ADD, medians over all pods of a competitor of Twill.
pub(crate) fn table(plugin: &Path, pods: u32) -> Result<String> {
    let mut text = String::new();
    for competitor in [Competitor::daemon(plugin, pods)?, Competitor::standalone(plugin, pods)?] {
        text +=
            &format!("\n{}, ADD, medians of {pods} calls one after the other:\n", competitor.name);
        text += &of(&competitor)?;
    }
    Ok(text)
}

fn of(competitor: &Competitor) -> Result<String> {
    let mut order: Vec<String> = Vec::new();
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let node = twill_sys::Netns::open(competitor.node()?.path())?;
    let mut samples = Vec::new();
    for pod in 0..competitor.pods() {
        samples.push(twill_sys::in_netns(&node, || competitor.call_traced("ADD", pod))??);
        let traces = fs::read_to_string(format!("{SAID}{pod}.traces"))?;
        let mut before = 0.0;
        for (step, at) in traces.lines().filter_map(step) {
            if !order.contains(&step) {
                order.push(step.clone());
            }
            times.entry(step).or_default().push(at - before);
            before = at;
        }
        twill_sys::in_netns(&node, || competitor.call("DEL", pod))??;
    }
    competitor.settle(crate::SETTLE)?;
    let total = percentile(&samples, 50) * 1e3;
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["step", "µs"]);
    let mut sum = 0.0;
    for step in order {
        let of_step = times.get_mut(&step).context("a step without a time")?;
        of_step.sort_by(f64::total_cmp);
        let median = of_step.get(of_step.len() / 2).copied().unwrap_or_default();
        sum += median;
        table.add_row([step, format!("{median:.0}")]);
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
    use super::*;

    #[test]
    fn steps_are_found_in_traces() {
        let line = "TRACE ADD bench/00/eth0: step: pair of links made after_us=812";
        assert_eq!(step(line), Some(("pair of links made".to_owned(), 812.0)));
        assert_eq!(step("DEBUG ADD bench/00/eth0: begin after_us=3"), None);
    }
}
