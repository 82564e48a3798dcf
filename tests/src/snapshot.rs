//! What there is on a host: to compare before and after.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, id},
};

use anyhow::{Context, Result};

use crate::{netns::Namespace, process::run};

/// Links, routes, rules, namespaces, mounts, processes, each as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Of the host that the caller runs on: its own network, mount and process namespaces.
    pub fn host() -> Result<Self> {
        let mut lines =
            network(|arguments| run(Command::new("ip").args(arguments.split_whitespace())))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read mounts")?;
        // Without the ids of the mounts, which are new for each namespace.
        lines.extend(mounts.lines().map(|mount| {
            let words: Vec<_> = mount.split_whitespace().skip(2).collect();
            format!("mount {}", words.join(" "))
        }));
        lines.extend(processes()?);
        for dir in ["/run", "/run/netns", "/var/lib/cni", "/var/lib/twill", "/etc/twill"] {
            lines.extend(entries(Path::new(dir)));
        }
        // Others use it as well: only what ours would be called.
        let ours = |line: &String| line.contains("twill") || line.contains("/.tmp");
        lines.extend(entries(Path::new("/tmp")).into_iter().filter(ours));
        Ok(Self { lines })
    }

    /// Of a network namespace alone.
    pub fn namespace(namespace: &Namespace) -> Result<Self> {
        Ok(Self { lines: network(|arguments| namespace.ip(arguments))? })
    }

    /// What the other has more or less than this: lines that begin with `+` or `-`.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let gone = self.lines.difference(&later.lines).map(|line| format!("- {line}"));
        let new = later.lines.difference(&self.lines).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

fn network(ip: impl Fn(&str) -> Result<String>) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for (kind, arguments) in [
        ("link", "-oneline link show"),
        ("address", "-oneline address show"),
        ("route", "-oneline -4 route show table all"),
        ("route", "-oneline -6 route show table all"),
        ("rule", "-4 rule show"),
        ("rule", "-6 rule show"),
        ("nexthop", "nexthop show"),
    ] {
        lines.extend(ip(arguments)?.lines().map(|line| format!("{kind} {}", line.trim())));
    }
    Ok(lines)
}

/// Processes with their command lines. The caller is left out, with what it started for this.
fn processes() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read processes")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // Kernel threads and the dead have no command line.
        if pid == id() || command.is_empty() {
            continue;
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let net = fs::read_link(entry.path().join("ns/net")).unwrap_or_default();
        lines.push(format!("process {pid} {} {}", command.trim(), net.display()));
    }
    Ok(lines)
}

fn entries(dir: &Path) -> Vec<String> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    found.map(|entry| format!("file {}", entry.path().display())).collect()
}
