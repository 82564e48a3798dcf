//! `twillctl patch` and `twillctl label`: what changes a part of an object.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};
use twill_k8s_api::{Problem, Resource, Severity};

use crate::{
    args::{LabelArgs, LabelChange, One, PatchArgs},
    input,
    resources::{Patch, Resources, Target, Write as How},
    write::said,
};

/// Changes what the patch says, if what comes of it is right.
pub(crate) fn patch(
    resources: &dyn Resources,
    arguments: &PatchArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let text = match (&arguments.patch, &arguments.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => input::text(file)?,
        (None, None) => bail!("there is no patch; give one by --patch or --patch-file"),
    };
    let patch = Patch::parse(&text, arguments.kind_of_patch)?;
    let One { kind, name } = &arguments.object.0;
    let target = Target::named(*kind, name);
    let before = resources.get(&target)?;
    change(resources, &target, &before, &patch, arguments.dry_run, "patched", out, err)
}

/// Sets labels and takes them off.
pub(crate) fn label(
    resources: &dyn Resources,
    arguments: &LabelArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let One { kind, name } = &arguments.what.0.object;
    let target = Target::named(*kind, name);
    let before = resources.get(&target)?;
    let labels = labels(&before["metadata"]["labels"], arguments)
        .with_context(|| format!("{} was not labelled", target.title()))?;
    let mut metadata = json!({ "labels": labels });
    // What was looked at is what is changed.
    if let Some(version) = before["metadata"].get("resourceVersion") {
        metadata["resourceVersion"] = version.clone();
    }
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    change(resources, &target, &before, &patch, arguments.dry_run, "labelled", out, err)
}

/// The labels as a merge patch has them.
fn labels(before: &Value, arguments: &LabelArgs) -> anyhow::Result<Map<String, Value>> {
    let mut wanted = Map::new();
    for change in &arguments.what.0.labels {
        let (key, value) = match change {
            LabelChange::Set(key, value) => (key, json!(value)),
            LabelChange::Remove(key) => (key, Value::Null),
            // As calicoctl has it.
            LabelChange::Name(key) if arguments.remove => (key, Value::Null),
            LabelChange::Name(key) => {
                bail!("{key} has no value; write {key}=VALUE, or {key}- to take it off")
            }
        };
        ensure!(
            !arguments.remove || value.is_null(),
            "--remove takes the names of labels alone: {key}"
        );
        let old = before.get(key).and_then(Value::as_str);
        match (old, value.as_str()) {
            (None, None) => bail!("there is no label {key} to take off"),
            (Some(old), Some(new)) if old != new && !arguments.overwrite => {
                bail!("label {key} is {old} already; say --overwrite to make it {new}")
            }
            _ => {}
        }
        wanted.insert(key.clone(), value);
    }
    Ok(wanted)
}

#[expect(clippy::too_many_arguments, reason = "what two commands have in common")]
fn change(
    resources: &dyn Resources,
    target: &Target,
    before: &Value,
    patch: &Patch,
    dry_run: bool,
    word: &str,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let after = patch.apply(before)?;
    let after = checked(resources, target, before, &after, err)?;
    let how = How { dry_run, force: false };
    let done = resources.patch(target, patch, &after, how).with_context(|| target.title())?;
    Ok(writeln!(out, "{} {}", title(before, target), said(&done, word, dry_run))?)
}

/// The kind as the object itself has it.
fn title(object: &Value, target: &Target) -> String {
    match object["kind"].as_str() {
        Some(kind) => format!("{kind}/{}", target.name),
        None => target.title(),
    }
}

/// What comes of the patch, as our reader has it.
fn checked(
    resources: &dyn Resources,
    target: &Target,
    before: &Value,
    after: &Value,
    err: &mut dyn Write,
) -> anyhow::Result<Resource> {
    for field in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"] {
        ensure!(
            before.pointer(field) == after.pointer(field),
            "a patch cannot change which object it is ({})",
            field.trim_start_matches('/').replace('/', ".")
        );
    }
    let mut loaded = resources.read(&target.title(), after);
    // It all stands on one line.
    let plain = |problem: &Problem| Problem { line: None, ..problem.clone() };
    for problem in &loaded.problems {
        writeln!(err, "{}", plain(problem))?;
    }
    let broken = loaded.problems.iter().any(|problem| problem.severity == Severity::Error);
    ensure!(!broken, "nothing was changed, because of the error above");
    Ok(loaded.resources.pop().context("nothing would be left of it")?.value)
}

#[cfg(test)]
mod tests;
