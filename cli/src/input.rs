//! Manifests that are given to a command: read and checked before any datastore hears of them.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use twill_k8s_api::{
    Loaded, Loc, Resource, Severity, Unsupported,
    files::{Catalog, catalog, manifest_names, read_text},
    load_manifests,
};

/// Reads every source, and tells what is wrong and what has no effect. Fails if anything is wrong
/// anywhere: nothing of it is to be used then.
pub(crate) fn read(sources: &[PathBuf], err: &mut dyn Write) -> anyhow::Result<Vec<Loc<Resource>>> {
    let (input, broken) = check(sources, err)?;
    match broken {
        0 if input.resources.is_empty() => bail!("no manifest in {}", list(sources)),
        0 => Ok(input.resources.into_values().collect()),
        1 => bail!("nothing was done, because of the error above"),
        errors => bail!("nothing was done, because of the {errors} errors above"),
    }
}

/// What the sources hold, with what is to be said about them said; and how many errors there are.
pub(crate) fn check(sources: &[PathBuf], err: &mut dyn Write) -> anyhow::Result<(Catalog, usize)> {
    let mut files = Vec::new();
    for source in sources {
        load(source, &mut files)?;
    }
    let input = catalog(&files);
    for problem in &input.problems {
        writeln!(err, "{problem}")?;
    }
    for manifest in input.resources.values() {
        for Unsupported { field, effect } in manifest.value.unsupported() {
            let (place, name) = (place(manifest), manifest.value.name());
            writeln!(err, "warning: {place}: {name}: {field}: {effect}")?;
        }
    }
    let broken = input.problems.iter().filter(|p| p.severity == Severity::Error).count();
    Ok((input, broken))
}

/// A file, or with `-` what standard input has.
pub(crate) fn text(source: &Path) -> anyhow::Result<String> {
    if source != Path::new("-") {
        return Ok(read_text(source)?);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    Ok(text)
}

fn load(source: &Path, files: &mut Vec<Loaded>) -> anyhow::Result<()> {
    if source == Path::new("-") {
        files.push(load_manifests(&text(source)?, "<stdin>"));
    } else if source.is_dir() {
        for name in manifest_names(source)? {
            let path = source.join(name);
            files.push(load_manifests(&read_text(&path)?, &path.display().to_string()));
        }
    } else {
        files.push(load_manifests(&read_text(source)?, &source.display().to_string()));
    }
    Ok(())
}

/// `FILE:LINE` of a manifest.
pub(crate) fn place(manifest: &Loc<Resource>) -> String {
    format!("{}:{}", manifest.file, manifest.line)
}

/// The names of all sources.
pub(crate) fn list(sources: &[PathBuf]) -> String {
    sources.iter().map(|source| source.display().to_string()).collect::<Vec<_>>().join(", ")
}
