//! The CustomResourceDefinitions under `conf/crds/`, made from the types of `k8s-api`.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::Context;
use twill_k8s_api::crd;

/// Where they are.
const DIRECTORY: &str = "conf/crds";

const HEADER: &str = "# Made by `cargo xtask crds` out of k8s-api/src; do not edit.\n";

/// The files by name, as they have to be.
fn files() -> anyhow::Result<BTreeMap<String, String>> {
    let file = |definition: crd::Definition| {
        let yaml = definition.to_yaml()?;
        Ok((format!("{}.yaml", definition.name), format!("{HEADER}---\n{}\n", yaml.trim_end())))
    };
    crd::definitions().into_iter().map(file).collect()
}

/// Makes the directory hold these files and no other manifest.
pub(crate) fn write(root: &Path, out: &mut impl Write) -> anyhow::Result<bool> {
    let directory = root.join(DIRECTORY);
    let files = files()?;
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let found = fs::read_dir(&directory);
    for entry in found.with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".yaml") && !files.contains_key(name) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for (name, text) in &files {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(out, "crds: {} files in {DIRECTORY}", files.len())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_the_types_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let committed: BTreeMap<_, _> = fs::read_dir(root.join(DIRECTORY))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        let wanted = files().unwrap();
        assert!(wanted == committed, "{DIRECTORY} is not current; run `cargo xtask crds`");
    }
}
