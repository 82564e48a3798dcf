//! `conf/install/twill.yaml`: everything that one `kubectl apply` puts onto a cluster, out of the files that
//! each part of it has anyway.

use std::{fs, io::Write, path::Path};

use anyhow::Context;

const TARGET: &str = "conf/install/twill.yaml";

const HEADER: &str = "\
# Everything that Twill needs on a cluster:
#
#   kubectl apply --server-side -f conf/install/twill.yaml
#
# Made by `cargo xtask install` out of conf/; do not edit.
";

/// Whole directories, each in the order of its files' names: accounts and what they may, then the kinds.
const DIRECTORIES: [&str; 2] = ["conf/rbac", "conf/crds"];
/// The keys of the ConfigMap are the files' names.
const CONFIGURATION: [&str; 2] = ["conf/install/twilld.yaml", "conf/cni/05-twill.conflist"];
const AFTER: [&str; 2] = ["conf/install/daemonset.yaml", "conf/install/controller.yaml"];

/// The tag of the image in the parts.
const TAG: &str = ":VERSION";

/// The whole file, as it has to be.
fn manifest(root: &Path) -> anyhow::Result<String> {
    let mut text = HEADER.to_owned();
    for directory in DIRECTORIES {
        let found = fs::read_dir(root.join(directory));
        let mut parts = Vec::new();
        for entry in found.with_context(|| format!("cannot read {directory}"))? {
            parts.push(format!("{directory}/{}", entry?.file_name().to_string_lossy()));
        }
        parts.sort();
        for part in parts {
            document(&mut text, &read(root, &part)?);
        }
    }
    document(&mut text, &config_map(root)?);
    for part in AFTER {
        document(&mut text, &read(root, part)?);
    }
    Ok(text.replace(TAG, concat!(":", env!("CARGO_PKG_VERSION"))))
}

/// Appends the documents of a file, without what it says about itself.
fn document(text: &mut String, part: &str) {
    text.push_str("---\n");
    let own = part.lines().skip_while(|line| line.starts_with('#') || *line == "---");
    for line in own {
        text.push_str(line);
        text.push('\n');
    }
}

fn config_map(root: &Path) -> anyhow::Result<String> {
    let mut text = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twill\n  namespace: twill-system\n  \
         labels: {app.kubernetes.io/part-of: twill}\ndata:\n",
    );
    for part in CONFIGURATION {
        let name = part.rsplit('/').next().unwrap_or(part);
        text.push_str(&format!("  {name}: |\n"));
        for line in read(root, part)?.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    Ok(text)
}

fn read(root: &Path, path: &str) -> anyhow::Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// Writes it.
pub(crate) fn write(root: &Path, out: &mut impl Write) -> anyhow::Result<bool> {
    let text = manifest(root)?;
    fs::write(root.join(TARGET), &text).with_context(|| format!("cannot write {TARGET}"))?;
    writeln!(out, "install: {} lines in {TARGET}", text.lines().count())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_manifest_is_what_its_parts_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let committed = fs::read_to_string(root.join(TARGET)).unwrap_or_default();
        let wanted = manifest(root).unwrap();
        assert!(wanted == committed, "{TARGET} is not current; run `cargo xtask install`");
    }

    #[test]
    fn a_part_does_not_say_what_it_is() {
        let mut text = String::new();
        document(&mut text, "# about\n---\na: 1\n---\n# kept\nb: 2\n");
        assert_eq!(text, "---\na: 1\n---\n# kept\nb: 2\n");
    }
}
