//! Manifests, right and wrong: see `cases/README.md`.

use std::{fs, path::Path};

use twill_k8s_api::{Problem, Severity, load_manifests};

/// What the reader says to one document, unless it is what its first line tells.
fn fault(document: &str) -> Option<String> {
    let verdict = document.lines().next()?.strip_prefix("# ")?;
    let refused = |rest: &str| rest.split(' ').next().map(str::to_owned);
    let field = match verdict.strip_prefix("refused ") {
        Some(rest) if rest.starts_with("by the server ") => None,
        Some(rest) => refused(rest.strip_prefix("by the reader ").unwrap_or(rest)),
        None => None,
    };
    let loaded = load_manifests(document, "case");
    let errors = loaded.problems.iter().filter(|problem| problem.severity == Severity::Error);
    let errors: Vec<_> = errors.collect();
    let is_told = match &field {
        None => errors.is_empty() && loaded.resources.len() == 1,
        Some(field) => errors.iter().any(|problem| is_about(problem, field)),
    };
    let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
    (!is_told).then(|| format!("{document}=> {said:?}\n"))
}

/// Whether a problem is about a field: one that is missing is told where it should stand.
fn is_about(problem: &Problem, field: &str) -> bool {
    let missing = || {
        let rest = field.strip_prefix(&problem.path)?.strip_prefix('.')?;
        Some(problem.message.contains(&format!("field `{rest}` is missing")))
    };
    problem.path == field || missing().unwrap_or(false)
}

#[test]
fn the_reader_decides_as_the_cases_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut number = 0;
    let mut faults = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for document in text.split("---\n") {
            assert!(document.starts_with("# accepted") || document.starts_with("# refused "));
            number += 1;
            faults.extend(fault(document));
        }
    }
    assert!(number > 150, "only {number} cases");
    assert!(faults.is_empty(), "{} of {number} cases:\n{}", faults.len(), faults.join("\n"));
}
