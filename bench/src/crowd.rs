//! ADD on a node that has many pods already.

use std::{fmt, path::Path};

use anyhow::Result;
use serde::Serialize;

use crate::{
    SETTLE,
    competitor::Competitor,
    machine::Occasion,
    measure::{Sample, in_turn, percentile},
};

/// Pods of a round with few on the node.
pub(crate) const FEW: usize = 50;

/// Rounds that are measured with few pods. With many there are as many calls: the last ones.
const ROUNDS: usize = 4;

/// Rounds before those, of which nothing counts: the first calls after a start claim a block, and find
/// nothing in any cache.
const WARM_UP: usize = 4;

/// The least that make a crowd.
const LEAST: u32 = 1000;

/// ADD with few pods on the node, and with many.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Crowd {
    /// How many were there the second time.
    pub(crate) pods: usize,
    /// Of Twill.
    pub(crate) twill: Growth,
    /// Of the floor: what the kernel itself takes longer for.
    pub(crate) floor: Growth,
    /// The most memory that the daemon had resident, in KiB.
    pub(crate) daemon_kib: u64,
    /// Of what and when: a run without a crowd keeps that of an earlier one.
    pub(crate) measured: Occasion,
}

/// p50 of ADD in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Growth {
    /// With at most [`FEW`] pods on the node.
    few_ms: f64,
    /// Behind all the others.
    many_ms: f64,
    /// How many times as long it takes with many.
    times: f64,
}

impl Growth {
    pub(crate) fn new(few_ms: f64, many_ms: f64) -> Self {
        Self { few_ms, many_ms, times: many_ms / few_ms }
    }

    pub(crate) fn times(self) -> f64 {
        self.times
    }

    /// What it takes longer with many.
    pub(crate) fn added_ms(self) -> f64 {
        self.many_ms - self.few_ms
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ms, then {:.2} ms, {:.2} times", self.few_ms, self.many_ms, self.times)
    }
}

/// Measures some pods that come and go, then adds `pods` pods and measures the last of them.
pub(crate) fn measure(plugin: &Path, pods: u32) -> Result<Crowd> {
    let pods = pods.max(LEAST);
    let daemon = Competitor::daemon(plugin, pods)?;
    let twill = fill(&daemon)?;
    let daemon_kib = daemon.daemon_peak_kib()?.unwrap_or_default();
    let pods = daemon.pods();
    drop(daemon);
    let [_, floor] = Competitor::floors(u32::try_from(pods)?)?;
    Ok(Crowd { pods, twill, floor: fill(&floor)?, daemon_kib, measured: Occasion::now() })
}

fn fill(competitor: &Competitor) -> Result<Growth> {
    let mut few: Vec<Sample> = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let added = in_turn(competitor, "ADD", FEW)?;
        competitor.check_added(FEW)?;
        in_turn(competitor, "DEL", FEW)?;
        competitor.settle(FEW, SETTLE)?;
        if round >= WARM_UP {
            few.extend(added);
        }
    }
    let pods = competitor.pods();
    let all = in_turn(competitor, "ADD", pods)?;
    competitor.check_added(pods)?;
    let many = all.get(pods - few.len()..).unwrap_or_default();
    Ok(Growth::new(percentile(&few, 50), percentile(many, 50)))
}
