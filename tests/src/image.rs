//! Images of containers, made without a registry: files packed as `docker save` does.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{process::run, programs};

/// Debian's statically linked one (package busybox-static).
pub const BUSYBOX: &str = "/bin/busybox";

/// The node daemon's, as `conf/install/` names it.
pub const TWILL: &str = concat!("localhost/twill:", env!("CARGO_PKG_VERSION"));

/// Another release of it.
pub const NEXT: &str = concat!("localhost/twill:", env!("CARGO_PKG_VERSION"), "-next");

/// Where the plugin is in it, by `conf/image/files`.
pub const PLUGIN: &str = "usr/lib/twill/twill";

/// What pods call.
const APPLETS: [&str; 5] = ["sh", "sleep", "ip", "ping", "true"];

/// Makes a root file system with busybox alone below `directory`, and packs it as a tar file.
pub fn root(directory: &Path) -> Result<PathBuf> {
    pack(directory, &busybox(directory)?)
}

fn busybox(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    // A pod may run as any user.
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("cannot copy {BUSYBOX} (package busybox-static)"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(root)
}

/// The same as an archive that `ctr images import` takes, by a name. Without a command it sleeps, as
/// a sandbox's image has to.
pub fn archive(directory: &Path, name: &str) -> Result<PathBuf> {
    busybox(directory)?;
    archive_of(directory, name, &["/bin/sleep", "100000"])
}

/// The image of the node daemon, out of the programs that are tested.
pub fn twill(directory: &Path) -> Result<PathBuf> {
    programs::find("twilld")?;
    twill_of(directory, &[programs::directory()?])
}

/// The same out of the programs in these directories: of each the first that is found.
pub fn twill_of(directory: &Path, programs: &[PathBuf]) -> Result<PathBuf> {
    let root = directory.join("root");
    let mut command = Command::new(programs::source("hack/image-root"));
    run(command.arg(&root).args(programs))?;
    archive_of(directory, TWILL, &["/usr/bin/twilld"])
}

/// The image of another release, by [`NEXT`]: its plugin has one octet more.
pub fn next_twill(directory: &Path) -> Result<PathBuf> {
    twill(directory)?;
    let plugin = directory.join("root").join(PLUGIN);
    let cannot = || format!("cannot change {}", plugin.display());
    let file = fs::OpenOptions::new().append(true).open(&plugin).with_context(cannot)?;
    (&file).write_all(b"\n").with_context(cannot)?;
    drop(file);
    archive_of(directory, NEXT, &["/usr/bin/twilld"])
}

/// An archive of the root file system in `directory`/root, by a name and with what it runs.
pub fn archive_of(directory: &Path, name: &str, entrypoint: &[&str]) -> Result<PathBuf> {
    let layer = pack(directory, &directory.join("root"))?;
    let digest = run(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split(' ').next().unwrap_or_default();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": entrypoint},
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

fn pack(directory: &Path, root: &Path) -> Result<PathBuf> {
    let tar = directory.join("root.tar");
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&tar).arg("."))?;
    Ok(tar)
}
