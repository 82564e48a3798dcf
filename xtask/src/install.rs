//! `conf/install/twill.yaml`: everything that one `kubectl apply` puts onto a cluster, out of the files that
//! each part of it has anyway. The Helm chart is made of the same parts.

use std::{fs, io::Write, path::Path};

use anyhow::Context;

use crate::chart;

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
pub(crate) const CONFIGURATION: [&str; 2] =
    ["conf/install/twilld.yaml", "conf/cni/05-twill.conflist"];
pub(crate) const DAEMON_SET: &str = "conf/install/daemonset.yaml";
pub(crate) const CONTROLLER: &str = "conf/install/controller.yaml";
/// Not in the manifest: it is for the end.
pub(crate) const UNINSTALL: &str = "conf/uninstall/uninstall.yaml";

/// The tag of the image in the parts.
const TAG: &str = ":VERSION";

/// The whole file, as it has to be.
fn manifest(root: &Path) -> anyhow::Result<String> {
    let mut text = HEADER.to_owned();
    for directory in DIRECTORIES {
        for part in parts(root, directory)? {
            document(&mut text, &read(root, &part)?);
        }
    }
    document(&mut text, &config_map(root)?);
    for part in [DAEMON_SET, CONTROLLER] {
        document(&mut text, &read(root, part)?);
    }
    Ok(text.replace(TAG, concat!(":", env!("CARGO_PKG_VERSION"))))
}

/// The files of a directory, in the order of their names.
pub(crate) fn parts(root: &Path, directory: &str) -> anyhow::Result<Vec<String>> {
    let found = fs::read_dir(root.join(directory));
    let mut parts = Vec::new();
    for entry in found.with_context(|| format!("cannot read {directory}"))? {
        parts.push(format!("{directory}/{}", entry?.file_name().to_string_lossy()));
    }
    parts.sort();
    Ok(parts)
}

/// Appends the documents of a file, without what it says about itself.
pub(crate) fn document(text: &mut String, part: &str) {
    text.push_str("---\n");
    let own = part.lines().skip_while(|line| line.starts_with('#') || *line == "---");
    for line in own {
        text.push_str(line);
        text.push('\n');
    }
}

pub(crate) fn config_map(root: &Path) -> anyhow::Result<String> {
    let mut text = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twill\n  namespace: twill-system\n  \
         labels: {app.kubernetes.io/part-of: twill}\ndata:\n",
    );
    for part in CONFIGURATION {
        let name = part.rsplit('/').next().unwrap_or(part);
        text.push_str(&format!("  {name}: |\n{}", indented(&read(root, part)?)));
    }
    Ok(text)
}

/// A file as the value of a key of the ConfigMap.
pub(crate) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

pub(crate) fn read(root: &Path, path: &str) -> anyhow::Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// All files that are made: path and text.
fn files(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = vec![(TARGET.to_owned(), manifest(root)?)];
    files.extend(chart::files(root)?);
    Ok(files)
}

/// Writes them.
pub(crate) fn write(root: &Path, out: &mut impl Write) -> anyhow::Result<bool> {
    for (path, text) in files(root)? {
        fs::write(root.join(&path), &text).with_context(|| format!("cannot write {path}"))?;
        writeln!(out, "install: {} lines in {path}", text.lines().count())?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_their_parts_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (path, wanted) in files(root).unwrap() {
            let committed = fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(wanted == committed, "{path} is not current; run `cargo xtask install`");
        }
    }

    #[test]
    fn what_uninstalls_has_the_same_image() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = read(root, UNINSTALL).unwrap();
        let wanted = concat!("image: localhost/twill:", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!((text.matches(wanted).count(), text.matches("image:").count()), (2, 2));
    }

    #[test]
    fn a_part_does_not_say_what_it_is() {
        let mut text = String::new();
        document(&mut text, "# about\n---\na: 1\n---\n# kept\nb: 2\n");
        assert_eq!(text, "---\na: 1\n---\n# kept\nb: 2\n");
    }
}
