//! Who may depend on whom.

use super::PURE;
use crate::{
    finding::Finding,
    metadata::{Member, PREFIX, Workspace},
    tree::Tree,
};

/// Foreign crates that belong to some members alone; a trailing `*` stands for any ending.
const OWNED: [(&str, &[&str], &str); 5] = [
    ("sled", &["ipam-store"], "go through twill-ipam-store"),
    (
        "kube*",
        &["api-client", "k8s-api", "node-daemon", "cli", "bench"],
        "go through twill-k8s-api",
    ),
    ("netlink-*", &["dataplane"], "go through twill-dataplane"),
    ("rtnetlink", &["dataplane"], "go through twill-dataplane"),
    ("libc", &["sys"], "put what needs it into twill-sys"),
];

/// What must not be linked into a member, by any way; with the reason.
const UNLINKED: [(&str, &[&str], &str); 2] = [
    (
        "cni-plugin",
        &["tokio", "mio", "kube*", "axum", "hyper*", "rtnetlink", "prometheus-client"],
        "the plugin is executed for every pod: it starts no runtime and no resolver",
    ),
    ("cli", &["sled", "netlink-*", "rtnetlink"], "twillctl asks the daemon for what it holds"),
];

/// What makes a crate impure.
const IMPURE: [&str; 13] = [
    "tokio",
    "mio",
    "async-*",
    "kube*",
    "netlink-*",
    "rtnetlink",
    "nix",
    "socket2",
    "rand",
    "getrandom",
    "sled",
    "tempfile",
    "tracing-subscriber",
];

/// Members that exist to run the programs, so they may build on them.
const RUNNERS: [&str; 2] = ["bench", "tests"];

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, member) in &workspace.members {
        let manifest = format!("{folder}/Cargo.toml");
        let mut error = |dependency: &str, what: String, remedy: &str| {
            let line = tree.get(&manifest).map_or(1, |file| file.line_of(dependency));
            findings.push(Finding::error(&manifest, line, what, remedy));
        };
        for (pattern, owners, remedy) in OWNED {
            for name in matching(&member.dependencies, pattern) {
                if !owners.contains(&folder.as_str()) {
                    error(
                        name,
                        format!("{folder} depends on {name}, which only {} may", owners.join(", ")),
                        remedy,
                    );
                }
            }
        }
        for (_, patterns, reason) in UNLINKED.iter().filter(|(of, ..)| of == folder) {
            linked(member, patterns, |name| {
                error(
                    name,
                    format!("{name} is linked into {folder}: {reason}"),
                    &why(folder, name),
                );
            });
        }
        if PURE.contains(&folder.as_str()) {
            linked(member, &IMPURE, |name| {
                let what = format!("{name} is linked into {folder}, which is a pure crate");
                error(name, what, &why(folder, name));
            });
        }
        for name in member.internal() {
            let program = workspace.members.get(name).is_some_and(|m| !m.programs.is_empty());
            if program && !RUNNERS.contains(&folder.as_str()) {
                let what = format!("{folder} depends on {PREFIX}{name}, which is a program");
                error(name, what, "move what both need into a library of its own");
            }
        }
    }
    findings
}

fn why(folder: &str, name: &str) -> String {
    format!("`cargo tree -p {PREFIX}{folder} -e normal -i {name}` shows the way in")
}

fn linked(member: &Member, patterns: &[&str], mut found: impl FnMut(&str)) {
    for pattern in patterns {
        matching(&member.linked, pattern).for_each(&mut found);
    }
}

fn matching<'a>(
    names: &'a std::collections::BTreeSet<String>,
    pattern: &str,
) -> impl Iterator<Item = &'a str> {
    names.iter().map(String::as_str).filter(move |name| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => *name == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{text, tree};

    fn member(dependencies: &[&str], linked: &[&str], programs: &[&str]) -> Member {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Member {
            package: String::new(),
            dependencies: owned(dependencies),
            linked: linked.iter().map(|&name| name.to_owned()).collect(),
            programs: programs.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn findings(members: &[(&str, Member)], manifest: (&str, &str)) -> String {
        let members = members.iter().map(|(folder, m)| ((*folder).to_owned(), m.clone())).collect();
        text(&check(&tree(&[manifest]), &Workspace { members }))
    }

    #[test]
    fn foreign_crates_have_owners() {
        let cli = member(&["sled", "netlink-packet-route"], &[], &["cli/src/main.rs"]);
        let found = findings(
            &[("cli", cli), ("ipam-store", member(&["sled"], &[], &[]))],
            ("cli/Cargo.toml", "[dependencies]\nsled.workspace = true\n"),
        );
        assert!(found.contains("cli/Cargo.toml:2: error: cli depends on sled"), "{found}");
        assert!(found.contains("netlink-packet-route, which only dataplane may"), "{found}");
        assert!(!found.contains("ipam-store depends"), "{found}");
    }

    #[test]
    fn the_plugin_has_no_runtime_and_pure_crates_no_sockets() {
        let found = findings(
            &[
                ("cni-plugin", member(&[], &["tokio", "serde"], &["cni-plugin/src/main.rs"])),
                ("types", member(&[], &["sha2", "socket2"], &[])),
                ("rpc", member(&[], &["tokio"], &[])),
            ],
            ("x", ""),
        );
        assert!(found.contains("tokio is linked into cni-plugin"), "{found}");
        assert!(found.contains("socket2 is linked into types, which is a pure crate"), "{found}");
        assert_eq!(found.lines().count(), 2, "{found}");
    }

    #[test]
    fn nothing_builds_on_a_program() {
        let program = member(&[], &[], &["cli/src/main.rs"]);
        let found = findings(
            &[
                ("cli", program),
                ("rpc", member(&["twill-cli"], &[], &[])),
                ("tests", member(&["twill-cli"], &[], &[])),
            ],
            ("x", ""),
        );
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(found.contains("rpc depends on twill-cli, which is a program"), "{found}");
    }
}
