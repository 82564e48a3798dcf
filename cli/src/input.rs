//! Manifests that are given to a command: read and checked before any datastore hears of them.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use twill_k8s_api::{
    Loaded, Loc, ObjectId, Problem, Resource, Severity, Unsupported,
    files::{manifest_names, read_text},
    load_manifests,
};

/// By what an object is the same as another: where it is written to decides.
pub(crate) type Identity = fn(&Resource) -> ObjectId;

/// What the sources hold, in their order and that of their documents: an object may need one before it.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pub(crate) manifests: Vec<Loc<Resource>>,
    problems: Vec<Problem>,
}

/// Reads every source, and tells what is wrong and what has no effect. Fails if anything is wrong
/// anywhere: nothing of it is to be used then.
pub(crate) fn read(
    sources: &[PathBuf],
    identity: Identity,
    err: &mut dyn Write,
) -> anyhow::Result<Vec<Loc<Resource>>> {
    let (input, broken) = check(sources, identity, err)?;
    match broken {
        0 if input.manifests.is_empty() => bail!("no manifest in {}", list(sources)),
        0 => Ok(input.manifests),
        1 => bail!("nothing was done, because of the error above"),
        errors => bail!("nothing was done, because of the {errors} errors above"),
    }
}

/// What the sources hold, with what is to be said about them said; and how many errors there are.
pub(crate) fn check(
    sources: &[PathBuf],
    identity: Identity,
    err: &mut dyn Write,
) -> anyhow::Result<(Input, usize)> {
    let mut files = Vec::new();
    for source in sources {
        load(source, &mut files)?;
    }
    let input = in_order(files, identity);
    for problem in &input.problems {
        writeln!(err, "{problem}")?;
    }
    for manifest in &input.manifests {
        for Unsupported { field, effect } in manifest.value.unsupported() {
            let (place, name) = (place(manifest), manifest.value.name());
            writeln!(err, "warning: {place}: {name}: {field}: {effect}")?;
        }
    }
    let broken = input.problems.iter().filter(|p| p.severity == Severity::Error).count();
    Ok((input, broken))
}

/// Each object once: of those that are the same, the first.
fn in_order(files: Vec<Loaded>, identity: Identity) -> Input {
    let mut input = Input::default();
    let mut known: BTreeMap<ObjectId, usize> = BTreeMap::new();
    for loaded in files {
        input.problems.extend(loaded.problems);
        for manifest in loaded.resources {
            let id = identity(&manifest.value);
            match known.get(&id).and_then(|first| input.manifests.get(*first)) {
                Some(first) => input.problems.push(Problem::twice(id, first, &manifest)),
                None => {
                    known.insert(id, input.manifests.len());
                    input.manifests.push(manifest);
                }
            }
        }
    }
    input
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
