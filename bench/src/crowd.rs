//! ADD on a node that has many pods already.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::{
    competitor::Competitor,
    machine::Occasion,
    measure::{Sample, percentile},
};

/// Pods that are added one by one to be measured.
const PROBES: usize = 50;

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
    /// With the first few pods on the node.
    pub(crate) few_ms: f64,
    /// Behind all the others.
    pub(crate) many_ms: f64,
}

impl Growth {
    /// How many times as long it takes with many.
    pub(crate) fn times(self) -> f64 {
        self.many_ms / self.few_ms
    }
}

/// Adds `pods` pods and measures the first and the last of them.
pub(crate) fn measure(plugin: &Path, pods: u32) -> Result<Crowd> {
    let pods = pods.max(200);
    let daemon = Competitor::daemon(plugin, pods)?;
    let twill = fill(&daemon)?;
    let daemon_kib = daemon.daemon_peak_kib()?.unwrap_or_default();
    let pods = daemon.pods();
    drop(daemon);
    let [_, floor] = Competitor::floors(u32::try_from(pods)?)?;
    Ok(Crowd { pods, twill, floor: fill(&floor)?, daemon_kib, measured: Occasion::now() })
}

fn fill(competitor: &Competitor) -> Result<Growth> {
    let pods = competitor.pods();
    let node = twill_sys::Netns::open(competitor.node()?.path())?;
    let samples: Vec<Sample> = twill_sys::in_netns(&node, || {
        (0..pods).map(|pod| competitor.call("ADD", pod)).collect::<Result<_>>()
    })??;
    competitor.check_added(pods)?;
    // The very first ones also claim the first block.
    let few = samples.get(10..10 + PROBES).unwrap_or_default();
    let many = samples.get(pods - PROBES..).unwrap_or_default();
    Ok(Growth { few_ms: percentile(few, 50), many_ms: percentile(many, 50) })
}
