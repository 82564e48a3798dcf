//! What no file may say: places and hosts that only one workplace has.

use crate::{
    finding::Finding,
    tree::{File, Tree},
};

/// Directories of a workplace. A path counts where a new word begins, so `network/` does not.
const PLACES: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("../sha", "red")];

/// The registry that everyone has.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        findings.extend(places(file));
        if file.path == "Cargo.lock" {
            findings.extend(sources(file));
        }
        if file.path.starts_with(".cargo/") {
            findings.extend(registries(file));
        }
    }
    findings
}

fn places(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.lines() {
        for place in PLACES.iter().filter(|place| has_path(line, place)) {
            let what = format!("`{place}` is a place that others do not have");
            let remedy = "state the fact itself, or make the path an argument";
            findings.push(Finding::error(&file.path, number, what, remedy));
        }
    }
    findings
}

fn has_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_.-*$}/".contains(c))
    })
}

fn sources(file: &File) -> Vec<Finding> {
    file.lines()
        .filter_map(|(number, line)| Some((number, line.strip_prefix("source = ")?)))
        .filter(|(_, source)| source.trim_matches('"') != REGISTRY)
        .map(|(number, source)| {
            let what = format!("a crate comes from {source}");
            let remedy = format!("take it from {REGISTRY}");
            Finding::error(&file.path, number, what, remedy)
        })
        .collect()
}

fn registries(file: &File) -> Vec<Finding> {
    file.lines()
        .filter(|(_, line)| {
            let line = line.trim_start();
            ["[source", "[registr", "replace-with"].iter().any(|start| line.starts_with(start))
        })
        .map(|(number, line)| {
            let what = format!("`{}` names a registry of one workplace", line.trim());
            Finding::error(&file.path, number, what, "put it into the user's own cargo home")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{text, tree};

    #[test]
    fn places_are_found_at_the_begin_of_a_path() {
        for line in [
            concat!("see /wo", "rk/main"),
            concat!("\"/ho", "me/me/x\""),
            concat!("(../sha", "red/x)"),
        ] {
            let found = text(&check(&tree(&[("README.md", line)])));
            assert!(found.contains("README.md:1: error"), "{line}: {found}");
        }
        for line in [
            concat!("https://example.org/ho", "me/"),
            concat!("net/wo", "rk/"),
            concat!("$tmp/wo", "rk/x"),
        ] {
            assert_eq!(text(&check(&tree(&[("README.md", line)]))), "", "{line}");
        }
    }

    #[test]
    fn crates_come_from_one_registry() {
        let lock = format!("source = \"{REGISTRY}\"\nsource = \"registry+https://elsewhere\"\n");
        let files = [("Cargo.lock", lock.as_str()), (".cargo/config.toml", "[source.crates-io]\n")];
        let found = text(&check(&tree(&files)));
        assert!(found.contains("Cargo.lock:2: error"), "{found}");
        assert!(found.contains(".cargo/config.toml:1: error"), "{found}");
        assert_eq!(found.lines().count(), 2, "{found}");
    }
}
