use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, ensure};
use serde::Deserialize;

/// Package names begin with this; the rest is the folder.
pub(crate) const PREFIX: &str = "twill-";

/// What the rules need of `cargo metadata`.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// By folder.
    pub(crate) members: BTreeMap<String, Member>,
}

/// One crate of the workspace.
#[derive(Debug, Default, Clone)]
pub(crate) struct Member {
    pub(crate) package: String,
    /// Crates that it is built from (normal and build dependencies), by package name.
    pub(crate) dependencies: BTreeSet<String>,
    /// Root files of its programs, relative to the workspace.
    pub(crate) programs: Vec<String>,
    /// All crates that are linked into it when it alone is built, by package name.
    pub(crate) linked: BTreeSet<String>,
}

impl Member {
    /// The folders of the members that it is built from.
    pub(crate) fn internal(&self) -> BTreeSet<&str> {
        self.dependencies.iter().filter_map(|name| name.strip_prefix(PREFIX)).collect()
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: String,
}

impl Workspace {
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let json = cargo(root, &["metadata", "--format-version=1", "--no-deps", "--locked"])?;
        let mut workspace = Self::parse(&json)?;
        for member in workspace.members.values_mut() {
            // `cargo metadata` unites the features of all members; only `cargo tree -p` resolves
            // them as a build of this one crate does.
            let tree = cargo(
                root,
                &["tree", "--locked", "-e", "normal", "--prefix", "none", "-p", &member.package],
            )?;
            member.linked = linked(&tree);
        }
        Ok(workspace)
    }

    fn parse(json: &str) -> anyhow::Result<Self> {
        let metadata: Metadata =
            serde_json::from_str(json).context("cargo metadata printed something unexpected")?;
        let relative = |path: &str| -> anyhow::Result<String> {
            path.strip_prefix(&metadata.workspace_root)
                .map(|path| path.trim_start_matches('/').to_owned())
                .with_context(|| format!("{path} is outside of {}", metadata.workspace_root))
        };
        let mut members = BTreeMap::new();
        for package in &metadata.packages {
            let folder = relative(&package.manifest_path)?;
            let folder = folder.trim_end_matches("Cargo.toml").trim_end_matches('/').to_owned();
            let programs = package
                .targets
                .iter()
                .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
                .map(|target| relative(&target.src_path))
                .collect::<anyhow::Result<_>>()?;
            let dependencies = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
                .map(|dependency| dependency.name.clone())
                .collect();
            let member = Member {
                package: package.name.clone(),
                dependencies,
                programs,
                linked: BTreeSet::new(),
            };
            members.insert(folder, member);
        }
        Ok(Self { members })
    }
}

/// First words of the lines of `cargo tree --prefix none`.
fn linked(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root)
        .output()
        .with_context(|| format!("cannot run cargo {}", arguments.join(" ")))?;
    ensure!(
        output.status.success(),
        "cargo {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("cargo printed something that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargo_metadata() {
        let workspace = Workspace::parse(
            r#"{"workspace_root": "/w", "packages": [{
                "name": "twill-cli", "manifest_path": "/w/cli/Cargo.toml",
                "dependencies": [
                    {"name": "clap", "kind": null}, {"name": "twill-rpc", "kind": null},
                    {"name": "tempfile", "kind": "dev"}, {"name": "cc", "kind": "build"}],
                "targets": [
                    {"kind": ["lib"], "src_path": "/w/cli/src/lib.rs"},
                    {"kind": ["bin"], "src_path": "/w/cli/src/main.rs"}]}]}"#,
        )
        .unwrap();
        let member = &workspace.members["cli"];
        assert_eq!(member.programs, ["cli/src/main.rs"]);
        assert_eq!(member.dependencies.iter().collect::<Vec<_>>(), ["cc", "clap", "twill-rpc"]);
        assert_eq!(member.internal().into_iter().collect::<Vec<_>>(), ["rpc"]);
    }

    #[test]
    fn reads_cargo_tree() {
        let linked = linked("twill-cli v0.1.0 (/w/cli)\nclap v4.6.9\nserde v1.0.0 (*)\n\n");
        assert_eq!(linked.into_iter().collect::<Vec<_>>(), ["clap", "serde", "twill-cli"]);
    }
}
