//! Where the programs under test are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// Debian's place for the reference CNI plugins (package containernetworking-plugins).
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// The directory with `twill`, `twilld` and `twillctl`: `$TWILL_BIN_DIR`, else beside the
/// directory that this program was built into.
pub fn directory() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("TWILL_BIN_DIR") {
        return std::path::absolute(&dir).context("TWILL_BIN_DIR is no path");
    }
    let own = env::current_exe().context("cannot find my own program file")?;
    let dir = own.parent().context("my own program file has no directory")?;
    // Test programs are in `deps/`, programs directly in the profile's directory.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// The path of a program of ours, or an error with the command that builds it.
pub fn find(name: &str) -> Result<PathBuf> {
    let dir = directory()?;
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} does not exist. Build the programs with\n    cargo build --locked -p \
         twill-cni-plugin -p twill-node-daemon -p twill-cli\nor name their directory in \
         TWILL_BIN_DIR",
        path.display()
    );
    Ok(path)
}

/// A program that a module under `tests/go/` names as a tool, or an error with the command that
/// builds it.
pub fn go_tool(module: &str, name: &str) -> Result<PathBuf> {
    let path = source(".tools/go").join(module).join(name);
    if !path.is_file() {
        let wanted = go_module(module)?;
        let wanted = wanted.lines().find_map(|line| line.strip_prefix("go "));
        bail!(
            "{} does not exist. Build it, with Go {} or newer, by\n    hack/build-go-tools {module}",
            path.display(),
            wanted.unwrap_or_default()
        );
    }
    Ok(path)
}

/// The `go.mod` of a module under `tests/go/`.
pub fn go_module(module: &str) -> Result<String> {
    let path = source("tests/go").join(module).join("go.mod");
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A file of the source tree (`conf/samples/ippool-app.yaml`).
pub fn source(path: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join(path)
}

/// The fenced block of a page (`docs/install.md`) that begins with these lines, without its fences. Fails unless there
/// is exactly one.
pub fn documented(page: &str, begins: &str) -> Result<String> {
    let path = source(page);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {page}"))?;
    // What is between fences is every second part, with the language on its first line.
    let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let found: Vec<_> = blocks
        .map(|(_, block)| block)
        .filter(|block| block.trim_start().starts_with(begins))
        .collect();
    ensure!(found.len() == 1, "{page} has {} blocks that begin with {begins:?}", found.len());
    Ok(found.concat())
}
