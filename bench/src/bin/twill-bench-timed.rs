//! `twill-bench-timed`: stands in a CNI plugin's place on a node of `twill-bench-cluster`, executes the plugin, which
//! is in `timed` beside this one's directory, and notes in `/run/twill-timed` how long: `PLUGIN VERB NANOSECONDS`.

use std::{env, fs::File, io::Write, process::Command, time::Instant};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let own = env::current_exe()?;
    let name = own.file_name().context("no name")?;
    let place = own.parent().and_then(|bin| bin.parent()).context("no place")?;
    let mut plugin = Command::new(place.join("timed").join(name));

    let begun = Instant::now();
    let status = plugin.status().context("cannot execute the plugin")?;
    let took = begun.elapsed().as_nanos();

    let verb = env::var("CNI_COMMAND").unwrap_or_default();
    // One write, so that lines of calls at the same time do not mix.
    let line = format!("{} {verb} {took}\n", name.to_string_lossy());
    let mut notes = File::options().append(true).create(true).open("/run/twill-timed")?;
    notes.write_all(line.as_bytes())?;
    std::process::exit(status.code().unwrap_or(1))
}
