//! Single executions of plugins on a node, by a program that stands in their place.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use twill_tests::kubernetes::Node;

/// The program that executes a plugin and notes how long that took.
const PROGRAM: &str = "twill-bench-timed";

/// Where it finds the plugins, and where it notes.
const PLUGINS: &str = "/opt/cni/timed";
const NOTES: &str = "/run/twill-timed";

/// Those that containerd calls for a pod.
const NAMES: [&str; 2] = ["twill", "loopback"];

/// Milliseconds by plugin and verb.
pub(super) type Calls = BTreeMap<(String, String), Vec<f64>>;

/// The program's file, or an error with the command that builds it.
pub(super) fn program() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find my own program file")?;
    let program = own.with_file_name(PROGRAM);
    ensure!(
        program.is_file(),
        "{} does not exist. Build it by\n    cargo build --locked --release -p twill-bench",
        program.display()
    );
    Ok(program)
}

/// Puts it into the place of the plugins, by renames: a kubelet may look after sandboxes that have ended at any time.
pub(super) fn begin(node: &Node, program: &Path) -> Result<()> {
    let program = program.to_string_lossy();
    node.run("mkdir", &["-p", PLUGINS])?;
    node.run("rm", &["-f", NOTES])?;
    for name in NAMES {
        let (place, beside) = (format!("/opt/cni/bin/{name}"), format!("/opt/cni/bin/.{name}"));
        node.run("cp", &[&place, PLUGINS])?;
        node.run("cp", &[&program, &beside])?;
        node.run("mv", &[&beside, &place])?;
    }
    Ok(())
}

/// Puts the plugins back, and tells what was noted.
pub(super) fn end(node: &Node) -> Result<Calls> {
    for name in NAMES {
        node.run("mv", &[&format!("{PLUGINS}/{name}"), "/opt/cni/bin"])?;
    }
    parse(&node.run("cat", &[NOTES])?)
}

fn parse(notes: &str) -> Result<Calls> {
    let mut calls = Calls::new();
    for line in notes.lines() {
        let mut words = line.split(' ');
        let (Some(plugin), Some(verb), Some(took), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            anyhow::bail!("a note that says nothing: {line:?}")
        };
        let took: f64 = took.parse().with_context(|| format!("no number: {line:?}"))?;
        calls.entry((plugin.to_owned(), verb.to_owned())).or_default().push(took / 1e6);
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_sorted_by_plugin_and_verb() {
        let calls = parse("twill ADD 5000000\nloopback ADD 2500000\ntwill ADD 6000000\n").unwrap();
        assert_eq!(calls[&("twill".to_owned(), "ADD".to_owned())], [5.0, 6.0]);
        assert_eq!(calls[&("loopback".to_owned(), "ADD".to_owned())], [2.5]);
        assert!(parse("twill ADD").is_err());
    }
}
