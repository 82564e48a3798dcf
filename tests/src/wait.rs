//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(20);

/// Looks at `condition` until it holds, and gives what it found; after `deadline` fails with what
/// was missing last.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error)
                    .with_context(|| format!("waited {:.1} s for {what}", deadline.as_secs_f64()));
            }
            Err(_) => thread::sleep(PERIOD),
        }
    }
}

/// [`wait_for`] a plain yes.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    wait_for(what, deadline, || {
        ensure!(condition()?, "it is not so");
        Ok(())
    })
}
