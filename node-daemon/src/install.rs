//! `twilld --role install`: puts the plugin and the network configuration onto the node, and ends.
//!
//! It runs before the daemon of a node and again at each upgrade, on a node with pods and a runtime that
//! calls the plugin meanwhile. So a file is replaced as a whole (written beside, synced, renamed), the
//! plugin first and the configuration last, which makes a runtime call it; what is there already is not
//! touched. Nothing is ever removed: a node without a daemon for a while goes on.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail};

use crate::{
    config::{Config, DatastoreKind},
    datastore::kubernetes::{Access, Account, OF_A_NODE, REMEDY, foreign_definitions},
};

/// The plugin, and its other name as a plugin for addresses alone.
pub(crate) const PLUGIN: &str = "twill";
pub(crate) const IPAM_PLUGIN: &str = "twill-ipam";

/// When a configuration was changed that runtimes have not been told of: being written for that makes it
/// newer.
const UNTOLD: SystemTime = SystemTime::UNIX_EPOCH;

/// What `--role install` reads and writes, and `--role uninstall` removes.
#[derive(Debug, clap::Args)]
pub(crate) struct Places {
    /// With --role install: the directory that the plugin `twill` is taken from.
    #[arg(long, default_value = "/usr/lib/twill")]
    plugin_from: PathBuf,
    /// With --role install: the network configuration that the node gets; with --role uninstall its name counts.
    #[arg(long, default_value = "/etc/twill/05-twill.conflist")]
    pub(crate) conflist_from: PathBuf,
    /// With both roles: where runtimes look for plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub(crate) plugin_to: PathBuf,
    /// With both roles: where runtimes look for network configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) conflist_to: PathBuf,
}

/// Installs, unless the cluster is somebody else's.
pub(crate) fn run(config: &Path, places: &Places) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let name = places.conflist_from.file_name().context("--conflist-from is no file")?;
    let target = places.conflist_to.join(name);
    if config.datastore.kind == DatastoreKind::Kubernetes {
        refuse_foreign_definitions(&config, &target)?;
    }
    let plugin = places.plugin_from.join(PLUGIN);
    let bytes = fs::read(&plugin).with_context(|| format!("cannot read {}", plugin.display()))?;
    let mut said = vec![replace(&places.plugin_to.join(PLUGIN), &bytes, 0o755, None)?];
    said.push(link(&places.plugin_to.join(IPAM_PLUGIN), Path::new(PLUGIN))?);
    let conflist = fs::read(&places.conflist_from)
        .with_context(|| format!("cannot read {}", places.conflist_from.display()))?;
    let written = replace(&target, &conflist, 0o644, Some(UNTOLD))?;
    // Or of an installation that was killed before it came to that.
    if fs::metadata(&target).and_then(|found| found.modified()).is_ok_and(|at| at == UNTOLD) {
        wake(&target, &conflist)?;
    }
    said.push(written);
    for Written { path, changed } in said {
        say(&format!("{} {}", path.display(), if changed { "installed" } else { "is current" }));
    }
    if let Some(other) = first_before(&places.conflist_to, &target)? {
        say(&format!(
            "{} comes before {}: runtimes take the first one, so it has to go for Twill to be used",
            other.display(),
            target.display()
        ));
    }
    Ok(())
}

/// Definitions of Calico's mean objects that are Calico's. A node stays as it is then. One that has Twill
/// goes on: its pods need the daemon, whatever somebody has brought into the cluster since.
fn refuse_foreign_definitions(config: &Config, target: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let found = runtime.block_on(async {
        let access = Access::open(config.datastore.kubeconfig.as_deref(), OF_A_NODE).await?;
        foreign_definitions(&access, Account::Node).await
    });
    match found {
        Ok(found) if found.is_empty() => Ok(()),
        Ok(found) if target.is_file() => {
            say(&format!(
                "WARNING: this cluster has {}, which is not Twill's. Twill is on this node already and \
                 goes on; no other node gets it until that is removed",
                found.join(", ")
            ));
            Ok(())
        }
        Ok(found) => bail!(
            "this cluster has {}, which is not Twill's: nothing was changed on this node. {REMEDY}",
            found.join(", ")
        ),
        // A node that starts while the API server is away has been through this before.
        Err(error) if target.is_file() => {
            say(&format!(
                "cannot look whether Calico is here ({}); Twill has been installed on this node before",
                twill_types::error_chain(&error)
            ));
            Ok(())
        }
        Err(error) => Err(error).context("cannot look whether Calico is here"),
    }
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    path: PathBuf,
    changed: bool,
}

/// Makes a file hold exactly this, and be as old as is said. A reader finds what was there before, or all of it, after a power cut
/// too; whoever executes it meanwhile goes on with the old one.
fn replace(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    modified: Option<SystemTime>,
) -> anyhow::Result<Written> {
    let failed = || format!("cannot write {}", path.display());
    let is_current = fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o777 == mode)
        && fs::read(path).is_ok_and(|found| found == bytes);
    if !is_current {
        let beside = beside(path)?;
        let mut file = File::create(&beside).with_context(failed)?;
        file.write_all(bytes).with_context(failed)?;
        file.set_permissions(Permissions::from_mode(mode)).with_context(failed)?;
        if let Some(modified) = modified {
            file.set_modified(modified).with_context(failed)?;
        }
        file.sync_all().with_context(failed)?;
        drop(file);
        rename(&beside, path)?;
    }
    Ok(Written { path: path.to_owned(), changed: !is_current })
}

/// The same for a symbolic link.
fn link(path: &Path, target: &Path) -> anyhow::Result<Written> {
    let is_current = fs::read_link(path).is_ok_and(|found| found == target);
    if !is_current {
        let beside = beside(path)?;
        symlink(target, &beside).with_context(|| format!("cannot make {}", beside.display()))?;
        rename(&beside, path)?;
    }
    Ok(Written { path: path.to_owned(), changed: !is_current })
}

/// A name in the same directory that no runtime takes for a plugin or a configuration. What an
/// installation that was killed left there goes.
pub(crate) fn beside(path: &Path) -> anyhow::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().context("a file without a name")?);
    name.push(".new");
    let beside = path.with_file_name(name);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", beside.display()))
        }
        _ => Ok(beside),
    }
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {}", from.display()))?;
    let directory = to.parent().unwrap_or(to);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

/// Writes the same octets in place. containerd watches the directory and takes no notice of a file that
/// is made or renamed there, only of one that is written (containerd#11715).
fn wake(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The configuration of another network that a runtime takes instead: the first by name.
fn first_before(directory: &Path, own: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut before = None;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        let is_list = path
            .extension()
            .is_some_and(|kind| ["conf", "conflist", "json"].iter().any(|known| kind == *known));
        if is_list && path.as_path() < own && before.as_ref().is_none_or(|first| path < *first) {
            before = Some(path);
        }
    }
    Ok(before)
}

/// To whoever reads the container's log; nobody may be reading.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "twilld: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Site {
        root: tempfile::TempDir,
        places: Places,
    }

    impl Site {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| {
                let path = root.path().join(name);
                fs::create_dir_all(&path).unwrap();
                path
            };
            let (image, conf) = (at("image"), at("conf"));
            let (plugin_to, conflist_to) = (at("bin"), at("net.d"));
            fs::write(image.join("twill"), "v1").unwrap();
            fs::write(conf.join("05-twill.conflist"), "{}").unwrap();
            fs::write(conf.join("twilld.yaml"), "datastore: {type: file}\n").unwrap();
            let conflist_from = conf.join("05-twill.conflist");
            let places = Places { plugin_from: image, conflist_from, plugin_to, conflist_to };
            Self { root, places }
        }

        fn install(&self) -> anyhow::Result<()> {
            run(&self.root.path().join("conf/twilld.yaml"), &self.places)
        }

        fn files(&self) -> Vec<String> {
            let mut found = Vec::new();
            for directory in [&self.places.plugin_to, &self.places.conflist_to] {
                for entry in fs::read_dir(directory).unwrap() {
                    found.push(entry.unwrap().file_name().into_string().unwrap());
                }
            }
            found.sort();
            found
        }
    }

    #[test]
    fn a_node_gets_the_plugin_by_both_names_and_the_configuration() {
        let site = Site::new();
        // Of an installation that was killed.
        fs::write(site.places.plugin_to.join(".twill.new"), "half").unwrap();
        site.install().unwrap();
        assert_eq!(site.files(), ["05-twill.conflist", "twill", "twill-ipam"]);
        let plugin = site.places.plugin_to.join("twill-ipam");
        assert_eq!(fs::read(&plugin).unwrap(), b"v1");
        assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_is_current_is_not_touched_and_what_is_not_is_replaced_as_a_whole() {
        use std::os::unix::fs::MetadataExt;
        let site = Site::new();
        site.install().unwrap();
        let inodes = || {
            let inode = |path: PathBuf| {
                let found = fs::symlink_metadata(path).unwrap();
                (found.ino(), found.mtime_nsec())
            };
            let [bin, lists] = [&site.places.plugin_to, &site.places.conflist_to];
            [bin.join("twill"), bin.join("twill-ipam"), lists.join("05-twill.conflist")].map(inode)
        };
        let before = inodes();
        site.install().unwrap();
        assert_eq!(inodes(), before);
        // A runtime executes the old one meanwhile.
        let running = File::open(site.places.plugin_to.join("twill")).unwrap();
        fs::write(site.places.plugin_from.join("twill"), "v2, longer").unwrap();
        site.install().unwrap();
        assert_eq!(io::read_to_string(running).unwrap(), "v1");
        assert_eq!(fs::read(site.places.plugin_to.join("twill")).unwrap(), b"v2, longer");
        assert_eq!(inodes()[1..], before[1..]);
    }

    #[test]
    fn runtimes_are_told_by_the_next_installation_if_one_was_killed_before() {
        let site = Site::new();
        let target = site.places.conflist_to.join("05-twill.conflist");
        let modified = || fs::metadata(&target).unwrap().modified().unwrap();
        let bytes = fs::read(&site.places.conflist_from).unwrap();
        // All that the one that was killed came to.
        replace(&target, &bytes, 0o644, Some(UNTOLD)).unwrap();
        assert_eq!(modified(), UNTOLD);
        site.install().unwrap();
        let told = modified();
        assert!(told > UNTOLD);
        site.install().unwrap();
        assert_eq!(modified(), told, "once is enough");
    }

    #[test]
    fn without_the_plugin_there_is_no_configuration() {
        let site = Site::new();
        fs::remove_file(site.places.plugin_from.join("twill")).unwrap();
        let error = format!("{:#}", site.install().unwrap_err());
        assert!(error.contains("image/twill"), "{error}");
        assert!(site.files().is_empty(), "{:?}", site.files());
    }

    #[test]
    fn a_network_that_comes_first_is_named() {
        let site = Site::new();
        let lists = &site.places.conflist_to;
        for name in ["10-other.conflist", "00-README", "01-calico.conflist", "02-x.conf"] {
            fs::write(lists.join(name), "{}").unwrap();
        }
        let own = lists.join("05-twill.conflist");
        assert_eq!(first_before(lists, &own).unwrap(), Some(lists.join("01-calico.conflist")));
    }
}
