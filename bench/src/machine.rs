//! Where something was measured.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use serde::Serialize;

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    /// `/proc/loadavg` at the end.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
        Ok(Self {
            kernel: uname()?.release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            load: load.trim().to_owned(),
        })
    }
}
