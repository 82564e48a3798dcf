//! `twillctl create`, `apply`, `replace`, `delete` and `validate`: what takes manifests.

use std::{io::Write, path::PathBuf};

use anyhow::bail;
use twill_k8s_api::{Loc, Resource};
use twill_types::error_chain;

use crate::{
    args::{DeleteArgs, Named, WriteArgs},
    input::{self, Identity},
    resources::{Done, ResourceError, Resources, Target, Write as How},
};

/// What is done with each manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Apply,
    Replace,
}

/// Validates everything first: what is wrong anywhere in the input keeps all of it out. What the
/// datastore refuses keeps out nothing else.
pub(crate) fn run(
    resources: &dyn Resources,
    verb: Verb,
    arguments: &WriteArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let manifests = input::read(&arguments.filename, resources.identity(), err)?;
    let how = How { dry_run: arguments.dry_run, force: arguments.force_conflicts };
    let mut tally = Tally::new(arguments.dry_run);
    for manifest in &manifests {
        let answer = match verb {
            Verb::Create => resources.create(manifest, how),
            Verb::Apply => resources.apply(manifest, how),
            Verb::Replace => resources.replace(manifest, how),
        };
        let changed = if verb == Verb::Replace { "replaced" } else { "configured" };
        tally.tell(&Target::of(manifest), Some(manifest), answer, changed, out, err)?;
    }
    tally.done()
}

/// Deletes what is named, or what manifests are about.
pub(crate) fn delete(
    resources: &dyn Resources,
    arguments: &DeleteArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let how = How { dry_run: arguments.dry_run, force: false };
    let manifests = match arguments.filename.is_empty() {
        true => Vec::new(),
        false => input::read(&arguments.filename, resources.identity(), err)?,
    };
    let named = arguments.objects.0.0.iter().flat_map(|Named { kind, names }| {
        names.iter().map(|name| (Target::named(*kind, name), None))
    });
    let written = manifests.iter().map(|manifest| (Target::of(manifest), Some(manifest)));
    let mut tally = Tally::new(arguments.dry_run);
    for (target, manifest) in named.chain(written) {
        match resources.delete(&target, how) {
            Err(ResourceError::NotFound { .. }) if arguments.skip_not_exists => {}
            answer => tally.tell(&target, manifest, answer, "", out, err)?,
        }
    }
    tally.done()
}

/// Says what is wrong with manifests; no datastore is asked.
pub(crate) fn validate(
    sources: &[PathBuf],
    identity: Identity,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let (input, broken) = input::check(sources, identity, err)?;
    for manifest in &input.manifests {
        writeln!(out, "{} is valid", Target::of(manifest).title())?;
    }
    match broken {
        0 if input.manifests.is_empty() => bail!("no manifest in {}", input::list(sources)),
        0 => Ok(()),
        1 => bail!("there is one error"),
        count => bail!("there are {count} errors"),
    }
}

/// What came of each object so far.
struct Tally {
    dry_run: bool,
    all: usize,
    failed: usize,
}

impl Tally {
    fn new(dry_run: bool) -> Self {
        Self { dry_run, all: 0, failed: 0 }
    }

    /// One line for one object; `changed` is what the verb calls a change.
    fn tell(
        &mut self,
        target: &Target,
        manifest: Option<&Loc<Resource>>,
        answer: Result<Done, ResourceError>,
        changed: &str,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> std::io::Result<()> {
        self.all += 1;
        let title = target.title();
        match answer {
            Ok(done) => writeln!(out, "{title} {}", said(&done, changed, self.dry_run)),
            Err(error) => {
                self.failed += 1;
                let place = manifest.map_or(String::new(), |m| format!("{}: ", input::place(m)));
                writeln!(err, "error: {place}{title}: {}", error_chain(&error))
            }
        }
    }

    fn done(&self) -> anyhow::Result<()> {
        match (self.failed, self.all) {
            (0, _) => Ok(()),
            (1, 1) => bail!("nothing was done, because of the error above"),
            (failed, all) if failed == all => bail!("all {all} objects failed"),
            (failed, all) => {
                bail!("{failed} of {all} objects failed; the others are as they should be")
            }
        }
    }
}

/// What came of an object, in words; `changed` is what the verb calls a change.
pub(crate) fn said(done: &Done, changed: &str, dry_run: bool) -> String {
    let said = match done {
        Done::Created => "created".to_owned(),
        Done::Changed => changed.to_owned(),
        Done::Unchanged => "unchanged".to_owned(),
        Done::Deleted => "deleted".to_owned(),
        Done::Held(by) => format!(
            "is marked for deletion, and goes when it is let go of (finalizers: {})",
            by.join(", ")
        ),
    };
    if dry_run { format!("{said} (dry run)") } else { said }
}

#[cfg(test)]
mod tests;
