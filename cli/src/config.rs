use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::args::{Cli, Command};

const DEFAULT_FILE: &str = "/etc/twill/twilld.yaml";

/// Where the daemon is found and where the resources are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) socket: PathBuf,
    pub(crate) resources: PathBuf,
}

/// What is read of `twilld.yaml`. Other keys are the daemon's to judge.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    run_dir: Option<PathBuf>,
    datastore: Datastore,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Datastore {
    directory: Option<PathBuf>,
    /// `file` or `kubernetes`.
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Paths {
    /// Options come before the configuration, and that before the defaults.
    pub(crate) fn resolve(cli: &Cli) -> anyhow::Result<Self> {
        let file = match &cli.config {
            Some(path) => File::read(path)?.with_context(|| {
                format!("there is no configuration {}; correct --config", path.display())
            })?,
            None => File::read(Path::new(DEFAULT_FILE))?.unwrap_or_default(),
        };
        let run_dir = file.run_dir.unwrap_or_else(|| "/run/twill".into());
        let Datastore { directory, kind } = file.datastore;
        let needs_files =
            matches!(cli.command, Command::Apply { .. } | Command::Get(_) | Command::Ipam(_));
        if needs_files && cli.resources.is_none() && kind.as_deref() == Some("kubernetes") {
            bail!(
                "the resources of this node are on Kubernetes' API server, which twillctl does not read \
                 yet; use kubectl, or name a directory with manifests by --resources"
            );
        }
        Ok(Self {
            socket: cli.socket.clone().unwrap_or_else(|| run_dir.join("twilld.sock")),
            resources: cli
                .resources
                .clone()
                .or(directory)
                .unwrap_or_else(|| "/etc/twill/resources".into()),
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

    fn paths(arguments: &[&str]) -> anyhow::Result<Paths> {
        let all = ["twillctl"].iter().chain(arguments).chain(&["node", "status"]);
        Paths::resolve(&Cli::try_parse_from(all).unwrap())
    }

    #[test]
    fn options_come_before_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        std::fs::write(&file, "runDir: /r\nfib: {metric: 3}\ndatastore: {directory: /d}\n")
            .unwrap();
        let config = ["--config", file.to_str().unwrap()];
        assert_eq!(
            paths(&config).unwrap(),
            Paths { socket: "/r/twilld.sock".into(), resources: "/d".into() }
        );
        let all = [&config[..], &["--socket", "/s", "--resources", "/x"]].concat();
        assert_eq!(paths(&all).unwrap(), Paths { socket: "/s".into(), resources: "/x".into() });
        std::fs::write(&file, "").unwrap();
        assert_eq!(paths(&config).unwrap().resources, Path::new("/etc/twill/resources"));
    }

    #[test]
    fn resources_on_kubernetes_are_for_kubectl() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        std::fs::write(&file, "datastore: {type: kubernetes, kubeconfig: /k}\n").unwrap();
        let config = ["--config", file.to_str().unwrap()];
        assert!(paths(&config).is_ok(), "the daemon is asked as ever");
        let get = [&["twillctl"], &config[..], &["get", "ippools"]].concat();
        let error = Paths::resolve(&Cli::try_parse_from(&get).unwrap()).unwrap_err().to_string();
        assert!(error.contains("kubectl") && error.contains("--resources"), "{error}");
        let get = [&get[..], &["--resources", "/x"]].concat();
        assert!(Paths::resolve(&Cli::try_parse_from(&get).unwrap()).is_ok());
    }

    #[test]
    fn a_named_configuration_has_to_be_there_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("twilld.yaml");
        let name = file.to_str().unwrap();
        let error = paths(&["--config", name]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("--config"), "{error}");
        std::fs::write(&file, "a: 1\nrunDir: [1]\n").unwrap();
        let error = paths(&["--config", name]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("line 2"), "{error}");
    }
}
