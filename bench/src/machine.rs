//! Where something was measured.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use jiff::Timestamp;
use nix::sys::utsname::uname;
use serde::Serialize;
use twill_tests::programs;

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

/// Of which state of the sources something was measured, and when.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Occasion {
    /// Short, `-dirty` behind it if the sources were others; `None` outside of a repository.
    pub(crate) commit: Option<String>,
    /// The day, UTC.
    pub(crate) date: String,
}

impl Occasion {
    pub(crate) fn now() -> Self {
        Self { commit: commit(), date: Timestamp::now().strftime("%Y-%m-%d").to_string() }
    }
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        Command::new("git").arg("-C").arg(programs::source("")).args(arguments).output().ok()
    };
    let head = git(&["rev-parse", "--short", "HEAD"]).filter(|output| output.status.success())?;
    let mut commit = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    // What benchmarks write is no source of theirs.
    let same = git(&["diff", "--quiet", "HEAD", "--", ".", ":(exclude)bench/results"])?;
    if !same.status.success() {
        commit += "-dirty";
    }
    Some(commit)
}

impl std::fmt::Display for Occasion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.commit {
            Some(commit) => write!(f, "{} at {commit}", self.date),
            None => f.write_str(&self.date),
        }
    }
}
