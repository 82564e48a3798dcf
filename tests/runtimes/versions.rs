//! The programs of others: that all of them are there, and in which version.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use twill_tests::{process::run, programs};

/// Debian's, each with the argument that makes it say its version.
const DEBIAN: [(&str, &str); 6] = [
    ("containerd", "--version"),
    ("runc", "--version"),
    ("podman", "--version"),
    ("iptables", "--version"),
    ("nft", "--version"),
    // An applet's list begins with it.
    ("busybox", "--help"),
];

/// The modules under `tests/go/`.
const GO: [&str; 3] = ["cni", "crictl", "containerd"];

/// Prints the versions, or fails with all that is missing and the commands that bring it.
pub(crate) fn print() -> Result<()> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for (program, argument) in DEBIAN {
        match run(Command::new(program).arg(argument)) {
            Ok(text) => found.push(text.lines().next().unwrap_or_default().to_owned()),
            Err(error) => {
                missing.push(format!("{error:#}. Install it by\n    hack/install-tools runtimes"));
            }
        }
    }
    for module in GO {
        let text = programs::go_module(module)?;
        let mut built = BTreeMap::<_, Vec<_>>::new();
        for tool in tools(&text) {
            let name = tool.rsplit('/').next().unwrap_or(tool);
            match programs::go_tool(module, name) {
                Ok(_) => built.entry(origin(&text, tool)?).or_default().push(name),
                Err(error) => missing.push(format!("{error:#}")),
            }
        }
        found.extend(built.iter().map(|(origin, names)| format!("{origin}: {}", names.join(", "))));
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    writeln!(io::stderr(), "{}", found.join("\n")).context("cannot write to standard error")
}

/// The packages of `tool` directives, in both of their forms.
fn tools(module: &str) -> impl Iterator<Item = &str> {
    let mut listed = false;
    module.lines().filter_map(move |line| {
        match line {
            "tool (" => listed = true,
            ")" => listed = false,
            _ if listed => return Some(line.trim()),
            _ => return line.strip_prefix("tool "),
        }
        None
    })
}

/// Module and version that a package comes from.
fn origin<'a>(module: &'a str, package: &str) -> Result<&'a str> {
    let requirements = module.lines().map(|line| line.trim().trim_end_matches(" // indirect"));
    let mut requirements = requirements.map(|line| line.trim_start_matches("require "));
    let is_origin = |line: &str| {
        let path = line.split_once(' ').map(|(path, _)| path);
        path.is_some_and(|path| package.strip_prefix(path).is_some_and(|p| p.starts_with('/')))
    };
    requirements.find(|line| is_origin(line)).with_context(|| format!("nothing has {package}"))
}
