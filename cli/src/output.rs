use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

/// How state is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// With more columns.
    Wide,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// How resources are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GetFormat {
    /// For people.
    #[default]
    Table,
    /// With more columns.
    Wide,
    /// For programs.
    Json,
    /// As a manifest.
    Yaml,
    /// `Kind/name`, one a line.
    Name,
}

/// Prints a value; `table` draws it for people, with all columns if told so.
pub(crate) fn emit<T: Serialize>(
    out: &mut dyn Write,
    format: Format,
    value: &T,
    table: impl FnOnce(bool) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => out.write_all(table(false).as_bytes())?,
        Format::Wide => out.write_all(table(true).as_bytes())?,
        Format::Json => json(out, value)?,
        Format::Yaml => yaml(out, value)?,
    }
    Ok(())
}

/// Pretty JSON with a line end.
pub(crate) fn json<T: Serialize>(out: &mut dyn Write, value: &T) -> anyhow::Result<()> {
    // By way of a text, so that a reader that went away is an I/O error and not a JSON error.
    let text = serde_json::to_string_pretty(value)?;
    Ok(writeln!(out, "{text}")?)
}

/// One YAML document.
pub(crate) fn yaml<T: Serialize>(out: &mut dyn Write, value: &T) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(value)?;
    Ok(writeln!(out, "{}", text.trim_end())?)
}
