use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use twill_k8s_api::Resource;

use crate::{
    args::{Cli, DatastoreType},
    input::Identity,
    resources::{Cluster, Files, Resources, api::ApiServer, has_kubeconfig},
};

/// The daemon's configuration.
const DEFAULT_FILE: &str = "/etc/twill/twilld.yaml";

/// The daemon's directory of manifests where its configuration names none.
const DEFAULT_DIRECTORY: &str = "/etc/twill/resources";

/// Where the daemon is found and where the resources are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) socket: PathBuf,
    pub(crate) datastore: Datastore,
    /// Whether a daemon of this machine should answer there: not where only a user's kubeconfig says what is meant.
    pub(crate) has_daemon: bool,
}

/// Where the resources are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Datastore {
    /// Manifests in a directory.
    Files(PathBuf),
    /// Kubernetes' API server.
    Kubernetes(Cluster),
    /// Nothing says where. A guess would show an empty directory, or write where nobody reads.
    Unsaid,
}

/// What of this machine says where the resources are if the command line does not.
pub(crate) struct Machine {
    /// The daemon's configuration, which need not be there.
    pub(crate) file: PathBuf,
    /// Of manifests, which need not be there either.
    pub(crate) directory: PathBuf,
    /// Whether the user has a kubeconfig.
    pub(crate) has_kubeconfig: bool,
}

/// What is read of `twilld.yaml`. Other keys are the daemon's to judge.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    run_dir: Option<PathBuf>,
    datastore: DatastoreKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DatastoreKeys {
    directory: Option<PathBuf>,
    /// `file` or `kubernetes`.
    #[serde(rename = "type")]
    kind: Option<String>,
    kubeconfig: Option<PathBuf>,
}

impl Settings {
    /// Options come before the configuration, and that before what else is on this machine. kubectl's
    /// plugin is about the cluster that kubectl is about, whatever this machine's daemon uses.
    pub(crate) fn resolve(cli: &Cli) -> anyhow::Result<Self> {
        let machine = Machine {
            file: DEFAULT_FILE.into(),
            directory: DEFAULT_DIRECTORY.into(),
            has_kubeconfig: has_kubeconfig(),
        };
        Self::resolve_on(cli, machine)
    }

    /// The same on a machine that is told.
    pub(crate) fn resolve_on(cli: &Cli, machine: Machine) -> anyhow::Result<Self> {
        let file = match &cli.config {
            Some(path) => Some(File::read(path)?.with_context(|| {
                format!("there is no configuration {}; correct --config", path.display())
            })?),
            None => File::read(&machine.file)?,
        };
        let datastore = machine.datastore(cli, file.as_ref());
        let of_user = datastore == Some(DatastoreType::Kubernetes) && file.is_none();
        let File { run_dir, datastore: DatastoreKeys { directory, kubeconfig, .. } } =
            file.unwrap_or_default();
        // A context is one of the user's own kubeconfig.
        let configured = kubeconfig.filter(|_| !cli.is_plugin && cli.context.is_none());
        let datastore = match datastore {
            Some(DatastoreType::Kubernetes) => Datastore::Kubernetes(Cluster {
                kubeconfig: cli.kubeconfig.clone(),
                configured,
                context: cli.context.clone(),
                namespace: cli.namespace.clone(),
            }),
            Some(DatastoreType::File) => {
                Datastore::Files(cli.resources.clone().or(directory).unwrap_or(machine.directory))
            }
            None => Datastore::Unsaid,
        };
        let run_dir = run_dir.unwrap_or_else(|| "/run/twill".into());
        Ok(Self {
            socket: cli.socket.clone().unwrap_or_else(|| run_dir.join("twilld.sock")),
            datastore,
            has_daemon: !cli.is_plugin && !of_user,
        })
    }
}

impl Machine {
    /// Which datastore is meant. A daemon that is configured, or has manifests, comes before a
    /// kubeconfig: the one may be everybody's, the other is somebody's.
    fn datastore(&self, cli: &Cli, file: Option<&File>) -> Option<DatastoreType> {
        let of_cluster = cli.kubeconfig.is_some() || cli.context.is_some() || cli.is_plugin;
        match (cli.datastore, file) {
            (Some(said), _) => Some(said),
            _ if cli.resources.is_some() => Some(DatastoreType::File),
            _ if of_cluster => Some(DatastoreType::Kubernetes),
            (None, Some(file)) => Some(match file.datastore.kind.as_deref() {
                Some("kubernetes") => DatastoreType::Kubernetes,
                _ => DatastoreType::File,
            }),
            (None, None) if self.directory.exists() => Some(DatastoreType::File),
            (None, None) => self.has_kubeconfig.then_some(DatastoreType::Kubernetes),
        }
    }
}

impl Datastore {
    /// By what an object is the same as another there.
    pub(crate) fn identity(&self) -> Identity {
        match self {
            Self::Files(_) => Resource::id,
            Self::Kubernetes(_) | Self::Unsaid => Resource::id_in_cluster,
        }
    }

    /// Opens it. Of an API server only the name is known then.
    pub(crate) fn open(&self) -> anyhow::Result<Box<dyn Resources>> {
        Ok(match self {
            Self::Files(directory) => Box::new(Files::new(directory.clone())),
            Self::Kubernetes(cluster) => Box::new(ApiServer::open(cluster)?),
            Self::Unsaid => bail!(
                "nothing says where the resources are: there is no {DEFAULT_FILE}, no \
                 {DEFAULT_DIRECTORY}, no $KUBECONFIG and no ~/.kube/config; say --datastore kubernetes, \
                 or --datastore file"
            ),
        })
    }
}

impl File {
    /// `None` if there is no such file.
    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        // An empty file is a null document, which serde does not take for a struct.
        let file: Option<Self> = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(Some(file.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn settings(arguments: &[&str]) -> anyhow::Result<Settings> {
        let all = ["twillctl"].iter().chain(arguments).chain(&["node", "status"]);
        Settings::resolve(&Cli::try_parse_from(all).unwrap())
    }

    fn files(path: &str) -> Datastore {
        Datastore::Files(path.into())
    }

    #[test]
    fn options_come_before_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        std::fs::write(&file, "runDir: /r\nfib: {metric: 3}\ndatastore: {directory: /d}\n")
            .unwrap();
        let config = ["--config", file.to_str().unwrap()];
        let expected =
            Settings { socket: "/r/twilld.sock".into(), datastore: files("/d"), has_daemon: true };
        assert_eq!(settings(&config).unwrap(), expected);
        let all = [&config[..], &["--socket", "/s", "--resources", "/x"]].concat();
        let expected = Settings { socket: "/s".into(), datastore: files("/x"), has_daemon: true };
        assert_eq!(settings(&all).unwrap(), expected);
        std::fs::write(&file, "").unwrap();
        assert_eq!(settings(&config).unwrap().datastore, files("/etc/twill/resources"));
    }

    #[test]
    fn the_datastore_is_the_daemons_unless_said_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        std::fs::write(&file, "datastore: {type: kubernetes, kubeconfig: /k}\n").unwrap();
        let config = ["--config", file.to_str().unwrap()];
        let with = |more: &[&str]| settings(&[&config[..], more].concat()).unwrap().datastore;
        let own = Cluster { configured: Some("/k".into()), ..Cluster::default() };
        assert_eq!(with(&[]), Datastore::Kubernetes(own.clone()));
        let named = Cluster { namespace: Some("n".into()), ..own };
        assert_eq!(with(&["-n", "n"]), Datastore::Kubernetes(named));
        let context = Cluster { context: Some("c".into()), ..Cluster::default() };
        assert_eq!(with(&["--context", "c"]), Datastore::Kubernetes(context));
        assert_eq!(with(&["--resources", "/x"]), files("/x"));
        assert_eq!(with(&["--datastore", "file"]), files("/etc/twill/resources"));
        std::fs::write(&file, "datastore: {directory: /d}\n").unwrap();
        let other = Cluster { kubeconfig: Some("/o".into()), ..Cluster::default() };
        assert_eq!(with(&["--kubeconfig", "/o"]), Datastore::Kubernetes(other));
    }

    #[test]
    fn kubectls_plugin_is_about_kubectls_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        std::fs::write(&file, "datastore: {type: kubernetes, kubeconfig: /k}\n").unwrap();
        let line = ["/usr/bin/kubectl-twill", "-c", file.to_str().unwrap(), "get", "ippools"];
        let cli = |line: &[&str]| Cli::from_arguments(line.iter().map(Into::into)).unwrap();
        let resolved = Settings::resolve(&cli(&line)).unwrap().datastore;
        assert_eq!(resolved, Datastore::Kubernetes(Cluster::default()));
        let line = [&line[..], &["--resources", "/x"]].concat();
        assert_eq!(Settings::resolve(&cli(&line)).unwrap().datastore, files("/x"));
    }

    #[test]
    fn without_a_daemon_it_is_the_cluster_of_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let (file, directory) = (dir.path().join("twilld.yaml"), dir.path().join("resources"));
        let resolve = |arguments: &[&str], has_kubeconfig| {
            let line = ["twillctl"].iter().chain(arguments).chain(&["get", "ippools"]);
            let cli = Cli::try_parse_from(line).unwrap();
            let (file, directory) = (file.clone(), directory.clone());
            let machine = Machine { file, directory, has_kubeconfig };
            Settings::resolve_on(&cli, machine).unwrap().datastore
        };
        let own = Datastore::Kubernetes(Cluster::default());
        assert_eq!(resolve(&[], true), own);
        assert_eq!(resolve(&[], false), Datastore::Unsaid);
        assert_eq!(resolve(&["--datastore", "kubernetes"], false), own);
        let here = Datastore::Files(directory.clone());
        assert_eq!(resolve(&["--datastore", "file"], true), here);
        assert_eq!(resolve(&["--resources", "/x"], true), files("/x"));
        let error = Datastore::Unsaid.open().err().unwrap().to_string();
        assert!(error.contains("--datastore kubernetes"), "{error}");

        // A daemon's manifests, or its configuration, come before what is a user's alone.
        std::fs::create_dir(&directory).unwrap();
        assert_eq!(resolve(&[], true), here);
        std::fs::remove_dir(&directory).unwrap();
        std::fs::write(&file, "nodeName: n\n").unwrap();
        assert_eq!(resolve(&[], true), here);
        std::fs::write(&file, "datastore: {type: kubernetes}\n").unwrap();
        assert_eq!(resolve(&[], false), own);
    }

    #[test]
    fn a_named_configuration_has_to_be_there_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        let name = file.to_str().unwrap();
        let error = settings(&["--config", name]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("--config"), "{error}");
        std::fs::write(&file, "a: 1\nrunDir: [1]\n").unwrap();
        let error = settings(&["--config", name]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("line 2"), "{error}");
    }
}
