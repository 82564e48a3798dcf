//! Chores of the workspace. `cargo xtask tidy` checks the rules that neither the compiler nor
//! clippy can see: who may depend on whom, how large things get, and whether the documents still
//! say what the tree is. `cargo xtask crds` and `cargo xtask install` write the files that are made from
//! code and from other files.
//!
//! Promise: every finding names a file and a line, what is wrong there, and the remedy. Nothing
//! but `conf/crds/`, `conf/install/twill.yaml` and `conf/helm/twill/` is changed.

mod chart;
mod count;
mod crds;
mod finding;
mod install;
mod metadata;
mod rules;
mod tree;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{finding::Severity, metadata::Workspace, tree::Tree};

/// Chores of the Twill workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the structure of the workspace.
    Tidy {
        /// Also print the notes: what is allowed but close to a limit.
        #[arg(long)]
        notes: bool,
    },
    /// Write the CustomResourceDefinitions that `k8s-api` makes to `conf/crds/`.
    Crds,
    /// Write `conf/install/twill.yaml` and the Helm chart `conf/helm/twill/` out of the other files in `conf/`.
    Install,
    /// Add up the results in the output of `cargo test`: the failed tests with their messages, then
    /// `N passed, N failed`.
    CountTests {
        /// Files that hold the output.
        #[arg(required = true)]
        logs: Vec<PathBuf>,
    },
}

/// Runs one chore in the workspace that holds this crate. `Ok(false)` means that it found
/// something wrong, which it has printed.
pub fn run(cli: Cli, out: &mut impl Write) -> anyhow::Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("this crate is not inside a workspace")?;
    match cli.command {
        Command::Tidy { notes } => tidy(root, notes, out),
        Command::Crds => crds::write(root, out),
        Command::Install => install::write(root, out),
        Command::CountTests { logs } => count_tests(&logs, out),
    }
}

fn count_tests(logs: &[PathBuf], out: &mut impl Write) -> anyhow::Result<bool> {
    let mut text = String::new();
    for log in logs {
        let read = std::fs::read_to_string(log);
        text += &read.with_context(|| format!("cannot read {}", log.display()))?;
    }
    for failure in count::failures(&text) {
        writeln!(out, "{failure}")?;
    }
    let counts = count::count(&text)?;
    writeln!(out, "{} passed, {} failed", counts.passed, counts.failed)?;
    Ok(counts.failed == 0)
}

fn tidy(root: &Path, notes: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    let tree = Tree::of_git(root)?;
    let workspace = Workspace::load(root)?;
    let mut findings = rules::all(&tree, &workspace);
    findings.sort();
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, hints) = (count(Severity::Error), count(Severity::Note));
    for finding in findings.iter().filter(|f| notes || f.severity == Severity::Error) {
        writeln!(out, "{finding}")?;
    }
    writeln!(
        out,
        "tidy: {errors} errors, {hints} notes{} in {} files of {} crates",
        if notes || hints == 0 { "" } else { " (--notes shows them)" },
        tree.files().len(),
        workspace.members.len(),
    )?;
    Ok(errors == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree in memory.
    pub(crate) fn tree(files: &[(&str, &str)]) -> Tree {
        files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect()
    }

    /// What the findings say, one a line.
    pub(crate) fn text(findings: &[finding::Finding]) -> String {
        findings.iter().map(|f| format!("{f}\n")).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn files_of_git_are_this_workspace() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let tree = Tree::of_git(root).unwrap();
        assert!(tree.get("xtask/src/lib.rs").is_some());
        assert!(tree.files().iter().all(|file| !file.path.starts_with("target/")));
    }
}
