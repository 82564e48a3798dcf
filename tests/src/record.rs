//! What a long run did, kept for those who did not see it.

use std::{
    env,
    fs::OpenOptions,
    io::{Write, stderr},
};

use anyhow::{Context, Result};

/// Names the file that lines are appended to.
const FILE: &str = "TWILL_RECORD";

/// Says a line on standard error, and appends it to the file that `TWILL_RECORD` names, if it does.
pub fn record(line: &str) -> Result<()> {
    writeln!(stderr(), "{line}")?;
    let Some(path) = env::var_os(FILE) else { return Ok(()) };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .with_context(|| format!("cannot write to {}", path.display()))
}
