//! `kubectl`, called as a user does.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    netns::Namespace,
    process::{check, output_with_input},
    programs,
};

/// The files of one user of one API server.
#[derive(Debug)]
pub(super) struct Files {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Files {
    pub(super) fn new(kubeconfig: PathBuf, cache: PathBuf) -> Result<Self> {
        Ok(Self { program: programs::go_tool("kubernetes", "kubectl")?, kubeconfig, cache })
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

/// kubectl for one user, in a namespace that reaches the API server.
#[derive(Debug, Clone, Copy)]
pub struct Kubectl<'a> {
    files: &'a Files,
    namespace: &'a Namespace,
}

impl<'a> Kubectl<'a> {
    pub(super) fn new(files: &'a Files, namespace: &'a Namespace) -> Self {
        Self { files, namespace }
    }

    /// One call to its end, whatever its exit status. Fails only if it cannot be run.
    pub fn output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(&self.files.program);
        command
            .env_clear()
            .arg("--kubeconfig")
            .arg(&self.files.kubeconfig)
            .arg("--cache-dir")
            .arg(&self.files.cache)
            .args(arguments);
        self.namespace.enter(|| output_with_input(&mut command, input.as_bytes()))?
    }

    /// One call; its standard output, or an error with what it complained about.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// The same with something on its standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input)?;
        check(&format!("kubectl {}", arguments.join(" ")), &output)
    }

    /// One call that has to fail; what it complained about.
    pub fn refused(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(
            !output.status.success(),
            "kubectl {} succeeded: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(text)
    }

    /// One call with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {} printed no JSON: {text}", arguments.join(" ")))
    }
}
