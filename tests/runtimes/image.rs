//! The pods' image: busybox alone.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use twill_tests::process::run;

/// Debian's statically linked one (package busybox-static).
const BUSYBOX: &str = "/bin/busybox";

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
