//! What every `Cargo.toml` and `clippy.toml` has to say.

use super::{PURE, UNSAFE};
use crate::{
    finding::Finding,
    metadata::{PREFIX, Workspace},
    tree::{File, Tree},
};

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, member) in &workspace.members {
        let path = format!("{folder}/Cargo.toml");
        let Some(manifest) = tree.get(&path) else {
            continue;
        };
        if member.package.strip_prefix(PREFIX) != Some(folder) {
            let what = format!("package {} lives in {folder}/", member.package);
            let remedy = format!("call it {PREFIX}{folder}");
            findings.push(Finding::error(&path, manifest.line_of("name"), what, remedy));
        }
        findings.extend(lints(folder, manifest));
        findings.extend(versions(manifest));
    }
    findings.extend(workspace_lints(tree));
    findings.extend(clippy(tree));
    findings
}

/// `[lints] workspace = true`, but for the crate that needs unsafe code.
fn lints(folder: &str, manifest: &File) -> Option<Finding> {
    let inherits = sections(manifest)
        .any(|(section, _, line)| section == "lints" && compact(line) == "workspace=true");
    (!inherits && folder != UNSAFE).then(|| {
        Finding::error(
            &manifest.path,
            manifest.line_of("[lints"),
            format!("{folder} does not inherit the workspace's lints"),
            "write `[lints]` with `workspace = true`",
        )
    })
}

/// `unsafe_code = "forbid"` is what makes the exception of one crate mean something.
fn workspace_lints(tree: &Tree) -> Option<Finding> {
    let manifest = tree.get("Cargo.toml")?;
    let forbids = sections(manifest).any(|(section, _, line)| {
        section == "workspace.lints.rust" && compact(line) == "unsafe_code=\"forbid\""
    });
    (!forbids).then(|| {
        Finding::error(
            &manifest.path,
            manifest.line_of("unsafe_code"),
            "the workspace does not forbid unsafe code",
            "write `unsafe_code = \"forbid\"` under `[workspace.lints.rust]`",
        )
    })
}

/// Versions and paths stand in the root manifest alone.
fn versions(manifest: &File) -> Vec<Finding> {
    sections(manifest)
        .filter(|(section, _, line)| section.contains("dependencies") && line.contains('='))
        .filter(|(.., line)| {
            let line = compact(line);
            !line.contains("workspace=true")
        })
        .map(|(_, number, line)| {
            Finding::error(
                &manifest.path,
                number,
                format!("`{}` is not inherited from the workspace", line.trim()),
                "name version and path in the root's [workspace.dependencies], here write \
                 `workspace = true`",
            )
        })
        .collect()
}

/// A crate's `clippy.toml` replaces the workspace's, so all pure crates need the same whole file.
fn clippy(tree: &Tree) -> Vec<Finding> {
    let path = |folder: &str| format!("{folder}/clippy.toml");
    let Some(model) = tree.get(&path(PURE[0])) else {
        let what = "a pure crate has no list of disallowed methods";
        return vec![Finding::error(path(PURE[0]), 1, what, "put one there")];
    };
    PURE.iter()
        .skip(1)
        .filter(|folder| tree.get(&path(folder)).is_none_or(|file| file.text != model.text))
        .map(|folder| {
            let line = tree.get(&path(folder)).map_or(1, |file| first_difference(file, model));
            let what = format!("it differs from {}", model.path);
            Finding::error(path(folder), line, what, "make the pure crates' files identical")
        })
        .collect()
}

fn first_difference(file: &File, model: &File) -> usize {
    let same = file.text.lines().zip(model.text.lines()).take_while(|(a, b)| a == b);
    same.count() + 1
}

/// The lines of a TOML file, each with its section and number; comments left out.
fn sections(file: &File) -> impl Iterator<Item = (&str, usize, &str)> {
    let mut section = "";
    file.lines().filter_map(move |(number, line)| {
        let line = line.split('#').next().unwrap_or_default();
        if let Some(name) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        }
        (!line.trim().is_empty()).then_some((section, number, line))
    })
}

fn compact(line: &str) -> String {
    line.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metadata::Member,
        tests::{text, tree},
    };

    const ROOT: (&str, &str) = ("Cargo.toml", "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n");

    fn findings(manifest: &str) -> String {
        let member = Member { package: "twill-rpc".into(), ..Member::default() };
        let members = [("rpc".to_owned(), member)].into();
        let mut files = vec![ROOT, ("rpc/Cargo.toml", manifest)];
        let clippy: Vec<String> = PURE.iter().map(|f| format!("{f}/clippy.toml")).collect();
        files.extend(clippy.iter().map(|path| (path.as_str(), "a = 1\n")));
        text(&check(&tree(&files), &Workspace { members }))
    }

    #[test]
    fn a_good_manifest_passes() {
        assert_eq!(
            findings(
                "[package]\nname = \"twill-rpc\"\n[lints]\nworkspace = true\n[dependencies]\n\
                 serde.workspace = true\nnix = { workspace = true, features = [\"fs\"] }\n\
                 [[bin]]\nname = \"x\"\n",
            ),
            ""
        );
    }

    #[test]
    fn versions_and_lints_come_from_the_workspace() {
        let found =
            findings("[lints.rust]\n[dependencies]\nserde = \"1\"\nx = { path = \"../x\" }\n");
        assert!(found.contains("rpc/Cargo.toml:1: error: rpc does not inherit"), "{found}");
        assert!(found.contains("rpc/Cargo.toml:3: error: `serde = \"1\"` is not"), "{found}");
        assert!(found.contains("rpc/Cargo.toml:4: error: `x = { path"), "{found}");
    }

    #[test]
    fn pure_crates_share_one_list() {
        let files = [
            ("bgp-proto/clippy.toml", "a\nb\n"),
            ("ipam/clippy.toml", "a\nc\n"),
            ("selector/clippy.toml", "a\nb\n"),
        ];
        let found = text(&clippy(&tree(&files)));
        assert!(found.contains("ipam/clippy.toml:2: error: it differs from bgp-proto"), "{found}");
        assert!(found.contains("types/clippy.toml:1: error"), "{found}");
        assert!(!found.contains("selector"), "{found}");
    }

    #[test]
    fn the_workspace_forbids_unsafe_code() {
        assert!(workspace_lints(&tree(&[ROOT])).is_none());
        let warns = tree(&[("Cargo.toml", "[workspace.lints.rust]\nunsafe_code = \"warn\"\n")]);
        assert_eq!(workspace_lints(&warns).unwrap().line, 2);
    }
}
