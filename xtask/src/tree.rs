use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context, ensure};

/// A text file of the repository.
#[derive(Debug)]
pub(crate) struct File {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// The text files of the repository.
#[derive(Debug)]
pub(crate) struct Tree {
    files: Vec<File>,
}

impl Tree {
    /// What git tracks, and what it would track: new files are checked before their first commit,
    /// build output never.
    pub(crate) fn of_git(root: &Path) -> anyhow::Result<Self> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("cannot run git, which knows the files of the repository; install git")?;
        ensure!(
            listed.status.success(),
            "git ls-files failed in {}: {}",
            root.display(),
            String::from_utf8_lossy(&listed.stderr).trim()
        );
        let names = String::from_utf8(listed.stdout).context("a file name is not UTF-8")?;
        // In the working tree a tracked file may be deleted, and a binary one has no lines.
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let names: BTreeSet<&str> = names.split('\0').filter(|name| !name.is_empty()).collect();
        Ok(names.into_iter().filter_map(|path| Some((path.to_owned(), read(path)?))).collect())
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    pub(crate) fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl File {
    /// Whether the file holds tests, by its place: the limits of product code do not bind it.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "fuzz"))
    }

    /// Lines with their numbers from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Where a text stands first; 1 if nowhere.
    pub(crate) fn line_of(&self, text: &str) -> usize {
        self.lines().find(|(_, line)| line.contains(text)).map_or(1, |(number, _)| number)
    }
}

impl FromIterator<(String, String)> for Tree {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(files: I) -> Self {
        Self { files: files.into_iter().map(|(path, text)| File { path, text }).collect() }
    }
}
