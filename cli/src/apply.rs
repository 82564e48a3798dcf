//! `twillctl apply`.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use twill_k8s_api::{
    Loaded, Loc, Resource,
    files::{
        Applied, Claims, apply_manifest, catalog, load_directory, manifest_names, read_claims,
        read_text,
    },
    load_manifests,
};

/// Validates everything first: what is wrong anywhere in the input keeps all of it out.
pub(crate) fn run(
    directory: &Path,
    sources: &[PathBuf],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for source in sources {
        read(source, &mut files)?;
    }
    let mut errors = Vec::new();
    let input = catalog(&files);
    for problem in &input.problems {
        writeln!(err, "{problem}")?;
    }
    let broken = input.problems.iter().filter(|p| p.severity == twill_k8s_api::Severity::Error);
    let broken = broken.count();
    for manifest in input.resources.values() {
        for unsupported in manifest.value.unsupported() {
            let (place, name) = (place(manifest), manifest.value.name());
            let twill_k8s_api::Unsupported { field, effect } = unsupported;
            writeln!(err, "warning: {place}: {name}: {field}: {effect}")?;
        }
    }

    let existing = load_directory(directory)?;
    let claims = read_claims(directory)?;
    let mut changes = Vec::new();
    for (id, manifest) in &input.resources {
        let old = existing.resources.get(id);
        let unchanged = old.is_some_and(|old| old.value == manifest.value);
        if let Some(old) = old.filter(|_| !unchanged) {
            errors.extend(conflict(old, manifest, &claims));
        }
        changes.push((manifest, unchanged));
    }
    for error in &errors {
        writeln!(err, "{error}")?;
    }
    match broken + errors.len() {
        0 if changes.is_empty() => bail!("no manifest in {}", list(sources)),
        0 => {}
        1 => bail!("nothing was applied, because of the error above"),
        errors => bail!("nothing was applied, because of the {errors} errors above"),
    }
    for (manifest, unchanged) in changes {
        let done = match unchanged {
            true => "unchanged",
            false => match apply_manifest(directory, manifest)? {
                Applied::Created(_) => "created",
                Applied::Configured(_) => "configured",
                Applied::Unchanged(_) => "unchanged",
            },
        };
        writeln!(out, "{}/{} {done}", manifest.value.kind_name(), manifest.value.name())?;
    }
    Ok(())
}

fn read(source: &Path, files: &mut Vec<Loaded>) -> anyhow::Result<()> {
    if source == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        files.push(load_manifests(&text, "<stdin>"));
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

/// Why a manifest cannot take the place of the one that is there.
fn conflict(old: &Loc<Resource>, new: &Loc<Resource>, claims: &Claims) -> Option<String> {
    let place = place(new);
    if old.text.is_none() {
        return Some(format!(
            "error: {place}: {} is an item of a List in {}; change it there by hand",
            new.value.id(),
            old.file
        ));
    }
    let (Resource::IpPool(old), Resource::IpPool(new)) = (&old.value, &new.value) else {
        return None;
    };
    if (old.spec.cidr, old.spec.block_size) == (new.spec.cidr, new.spec.block_size) {
        return None;
    }
    let name = &new.metadata.name;
    let claimed = claims.claims.values().filter(|claim| claim.pool == *name).count();
    (claimed > 0).then(|| {
        format!(
            "error: {place}: IPPool {name} cannot change cidr or blockSize while nodes hold \
             blocks of it (now {claimed}); make a new pool, and set `disabled: true` on this one"
        )
    })
}

fn place(manifest: &Loc<Resource>) -> String {
    format!("{}:{}", manifest.file, manifest.line)
}

fn list(sources: &[PathBuf]) -> String {
    sources.iter().map(|source| source.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
