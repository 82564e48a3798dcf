//! The pods' image: busybox alone.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;
use twill_tests::process::run;

/// Debian's statically linked one (package busybox-static).
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Makes a root file system below `directory` and packs it as a tar file.
pub(crate) fn root(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("cannot copy {BUSYBOX} (package busybox-static)"))?;
    for applet in ["sh", "sleep", "ip", "ping", "true"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let tar = directory.join("root.tar");
    run(Command::new("tar").arg("-C").arg(&root).args(["-cf"]).arg(&tar).arg("."))?;
    Ok(tar)
}

/// The same as an archive that `ctr images import` takes (`docker save`'s format), by a name.
/// Without a command it sleeps, as a sandbox's image has to.
pub(crate) fn archive(directory: &Path, name: &str) -> Result<PathBuf> {
    let layer = root(directory)?;
    let digest = run(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split(' ').next().unwrap_or_default();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "100000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created_by": "test"}],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["root.tar"]}]);
    fs::write(directory.join("config.json"), config.to_string())?;
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let tar = directory.join("image.tar");
    let mut command = Command::new("tar");
    command.arg("-C").arg(directory).arg("-cf").arg(&tar);
    run(command.args(["manifest.json", "config.json", "root.tar"]))?;
    Ok(tar)
}
