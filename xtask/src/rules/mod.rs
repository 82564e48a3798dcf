//! The rules, one file per subject. Each is a function of the tree or the workspace alone.

mod docs;
mod edges;
mod manifests;
mod source;
mod words;

use crate::{finding::Finding, metadata::Workspace, tree::Tree};

/// Crates without effects: no files, sockets, clocks, threads or randomness.
const PURE: [&str; 4] = ["bgp-proto", "ipam", "selector", "types"];

/// The crate that may hold unsafe code.
const UNSAFE: &str = "sys";

pub(crate) fn all(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let mut findings = edges::check(tree, workspace);
    findings.extend(manifests::check(tree, workspace));
    findings.extend(source::check(tree, workspace));
    findings.extend(words::check(tree));
    findings.extend(docs::check(tree, workspace));
    findings
}
