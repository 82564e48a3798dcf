//! ADD on a node that has many pods already.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::{
    competitor::Competitor,
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
    /// p50 of ADD in milliseconds with the first few on the node.
    pub(crate) few_ms: f64,
    /// The same behind all the others.
    pub(crate) many_ms: f64,
    /// The most memory that the daemon had resident, in KiB.
    pub(crate) daemon_kib: u64,
}

/// Adds `pods` pods and measures the first and the last of them.
pub(crate) fn measure(plugin: &Path, pods: u32) -> Result<Crowd> {
    let competitor = Competitor::daemon(plugin, pods.max(200))?;
    let pods = competitor.pods();
    let node = twill_sys::Netns::open(competitor.node()?.path())?;
    let samples: Vec<Sample> = twill_sys::in_netns(&node, || {
        (0..pods).map(|pod| competitor.call("ADD", pod)).collect::<Result<_>>()
    })??;
    competitor.check_added()?;
    // The very first ones also claim the first block.
    let few = samples.get(10..10 + PROBES).unwrap_or_default();
    let many = samples.get(pods - PROBES..).unwrap_or_default();
    let daemon_kib = competitor.daemon_peak_kib()?.unwrap_or_default();
    twill_sys::in_netns(&node, || {
        (0..pods).try_for_each(|pod| competitor.call("DEL", pod).map(drop))
    })??;
    competitor.settle(Duration::from_secs(300))?;
    Ok(Crowd { pods, few_ms: percentile(few, 50), many_ms: percentile(many, 50), daemon_kib })
}
