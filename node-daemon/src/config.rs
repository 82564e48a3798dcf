//! `twilld.yaml`: what belongs to this process and is not a resource.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use twill_dataplane::{fib::BLOCK_METRIC, pod::HOST_ROUTE_METRIC_V6};

/// The whole file. Unknown keys are errors that name the key and the line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// The node's name. Default: `$NODE_NAME`, else the host name.
    pub node_name: Option<String>,
    /// What may outlive a boot.
    pub state_dir: PathBuf,
    /// Socket, store, spool and locks: gone at a reboot.
    pub run_dir: PathBuf,
    /// Where the resources come from.
    pub datastore: Datastore,
    /// BGP settings that are per node and not a resource.
    pub bgp: Bgp,
    /// How learned routes go into the kernel.
    pub fib: FibSettings,
    /// How pods are found that are gone without a DEL.
    pub reconcile: Reconcile,
    /// When blocks are given back.
    pub ipam: Ipam,
    /// The HTTP endpoint.
    pub metrics: Metrics,
    /// The process that does the work for the whole cluster.
    pub controller: Controller,
    /// Logging.
    pub log: Log,
}

/// `datastore:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Datastore {
    /// Which of them.
    #[serde(rename = "type")]
    pub kind: DatastoreKind,
    /// Directory with `*.yaml` manifests; `claims/` inside it holds one file per claimed block.
    pub directory: PathBuf,
    /// Whether several daemons use this directory. Needs one host, or a file system whose locks
    /// and links work across hosts.
    pub shared: bool,
    /// `kubernetes`: who this is and where the API server is. Default: the service account of the pod
    /// that the daemon runs in.
    pub kubeconfig: Option<PathBuf>,
}

/// The kinds of datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreKind {
    /// Manifests in a directory.
    File,
    /// Kubernetes' API server.
    Kubernetes,
}

/// `bgp:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Bgp {
    /// TCP port to listen on, 1 to 65535; over BGPConfiguration's `listenPort`.
    pub listen_port: Option<std::num::NonZeroU16>,
}

/// `fib:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FibSettings {
    /// Metric of learned routes. It has to be Twill's alone: a route is recognised as ours by
    /// protocol and metric.
    pub metric: u32,
    /// Whether routes name nexthop objects, so that a failover is one message. `auto`: those that have
    /// a second next hop, for ECMP or as a backup. Plain gateway routes outlive a flap of the carrier
    /// while the daemon is down; routes by objects do not.
    pub nexthop_objects: Switch,
    /// Off sets the kernel's `nexthop_compat_mode` to 0, so that it has no message for each route when
    /// an object changes; other programs in the namespace then see the object's number instead of
    /// next hops.
    pub nexthop_compat: Toggle,
}

/// A setting that can be left to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// The daemon chooses.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// A setting that is one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Toggle {
    /// Yes.
    On,
    /// No.
    Off,
}

/// `reconcile:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Reconcile {
    /// How often addresses and links are compared with the pods that are there, in seconds, 1 to
    /// 3600.
    pub interval_seconds: u64,
    /// How long a pod has to be gone until its addresses are free again, in seconds, 1 to 86400.
    /// Should not be shorter than an ADD may take (`timeoutSeconds` of the plugin, 120 at most).
    pub grace_seconds: u64,
}

/// `ipam:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Ipam {
    /// How long a block has to be empty until it is given back, in seconds, 1 to 86400. The last one
    /// of a pool stays.
    pub empty_block_grace_seconds: u64,
    /// How long a node has to be gone, its Node removed and its daemon silent, until its blocks are
    /// free, in seconds, 1 to 604800.
    pub gone_node_grace_seconds: u64,
    /// Directories in which runtimes keep the results of ADDs (libcni's cache): a store that was lost is rebuilt
    /// from them, as far as pods of other main plugins go.
    pub result_cache: Vec<PathBuf>,
}

/// `metrics:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Metrics {
    /// Address and port of /metrics, /healthz, /readyz and /statusz; none when absent.
    pub listen: Option<SocketAddr>,
}

/// `controller:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Controller {
    /// Address and port of its /metrics, /healthz, /readyz and /statusz: others than the node daemon's,
    /// beside which it may run in the host's network; none when absent.
    pub listen: Option<SocketAddr>,
}

/// `log:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: LogLevel,
    /// `json` or `text`.
    pub format: LogFormat,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what fails.
    Error,
    /// Someone might be woken.
    Warn,
    /// State changes.
    Info,
    /// Per request.
    Debug,
    /// Per message.
    Trace,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: None,
            state_dir: "/var/lib/twill".into(),
            run_dir: "/run/twill".into(),
            datastore: Datastore::default(),
            bgp: Bgp::default(),
            fib: FibSettings::default(),
            reconcile: Reconcile::default(),
            ipam: Ipam::default(),
            metrics: Metrics::default(),
            controller: Controller::default(),
            log: Log::default(),
        }
    }
}

impl Default for Datastore {
    fn default() -> Self {
        Self {
            kind: DatastoreKind::File,
            directory: "/etc/twill/resources".into(),
            shared: false,
            kubeconfig: None,
        }
    }
}

impl Default for FibSettings {
    fn default() -> Self {
        Self { metric: 512, nexthop_objects: Switch::Auto, nexthop_compat: Toggle::On }
    }
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { interval_seconds: 60, grace_seconds: 120 }
    }
}

impl Default for Ipam {
    fn default() -> Self {
        Self {
            empty_block_grace_seconds: 300,
            gone_node_grace_seconds: 900,
            result_cache: vec!["/var/lib/cni/results".into()],
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Json }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "there is no configuration {}; create it (an empty file will do), or name another with --config",
        .0.display()
    )]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {}; make it readable, or name another with --config",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file has an unknown key, a wrong type or bad YAML. The text names line and column and
    /// shows the place.
    #[error("{}: {text}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What, where, and what would be right.
        text: String,
    },
    /// No name for this node.
    #[error("this node has no name: set nodeName in the configuration, or NODE_NAME")]
    NodeName,
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => ConfigError::Missing(path.to_owned()),
            _ => ConfigError::Read { path: path.to_owned(), source },
        })?;
        Self::parse(&text).map_err(|text| ConfigError::Parse { path: path.to_owned(), text })
    }

    fn parse(text: &str) -> Result<Self, String> {
        // An empty file is a null document, which serde does not take for a struct.
        let config: Option<Self> = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let config = config.unwrap_or_default();
        if config.datastore.kind == DatastoreKind::File && config.datastore.kubeconfig.is_some() {
            return Err("datastore.kubeconfig needs datastore.type kubernetes".to_owned());
        }
        // 0 would be the kernel's default metric, where other programs' routes live; the others are those
        // of pods and blocks.
        if [0, HOST_ROUTE_METRIC_V6, BLOCK_METRIC].contains(&config.fib.metric) {
            return Err(format!(
                "fib.metric {} belongs to other routes; use another of 1 to 4294967294, such as 512",
                config.fib.metric
            ));
        }
        for (key, value, most) in [
            ("reconcile.intervalSeconds", config.reconcile.interval_seconds, 3600),
            ("reconcile.graceSeconds", config.reconcile.grace_seconds, 86_400),
            ("ipam.emptyBlockGraceSeconds", config.ipam.empty_block_grace_seconds, 86_400),
            ("ipam.goneNodeGraceSeconds", config.ipam.gone_node_grace_seconds, 604_800),
        ] {
            if !(1..=most).contains(&value) {
                return Err(format!("{key} is {value}; use 1 to {most}"));
            }
        }
        Ok(config)
    }

    /// The node's name: from the file, else `$NODE_NAME`, else the host name.
    pub fn node_name(&self) -> Result<String, ConfigError> {
        self.node_name
            .clone()
            .or_else(|| std::env::var("NODE_NAME").ok())
            .or_else(|| nix::unistd::gethostname().ok()?.into_string().ok())
            .filter(|name| !name.is_empty())
            .ok_or(ConfigError::NodeName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::parse("# nothing\n").unwrap(), Config::default());
    }

    #[test]
    fn a_missing_file_says_what_would_do() {
        let error = Config::load(Path::new("/nowhere/twilld.yaml")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no configuration /nowhere/twilld.yaml; create it (an empty file will do), or \
             name another with --config"
        );
    }

    #[test]
    fn reads_every_documented_key() {
        let config = Config::parse(
            "nodeName: node1\nstateDir: /s\nrunDir: /r\n\
             datastore: {type: file, directory: /d, shared: true}\n\
             bgp: {listenPort: 1179}\nfib: {metric: 600, nexthopObjects: on, nexthopCompat: off}\n\
             reconcile: {intervalSeconds: 5, graceSeconds: 130}\n\
             ipam: {emptyBlockGraceSeconds: 60, goneNodeGraceSeconds: 120, resultCache: [/c]}\n\
             metrics: {listen: \"127.0.0.1:9190\"}\n\
             controller: {listen: \"127.0.0.1:9191\"}\nlog: {level: debug, format: text}\n",
        )
        .unwrap();
        assert_eq!(config.node_name.as_deref(), Some("node1"));
        assert!(config.datastore.shared);
        let (nexthop_objects, nexthop_compat) = (Switch::On, Toggle::Off);
        assert_eq!(config.fib, FibSettings { metric: 600, nexthop_objects, nexthop_compat });
        assert_eq!(config.reconcile, Reconcile { interval_seconds: 5, grace_seconds: 130 });
        assert_eq!(config.ipam.result_cache, [PathBuf::from("/c")]);
        assert_eq!(config.log.format, LogFormat::Text);
    }

    #[test]
    fn reads_a_kubernetes_datastore() {
        let text = "datastore: {type: kubernetes, kubeconfig: /etc/twill/kubeconfig}\n";
        let datastore = Config::parse(text).unwrap().datastore;
        assert_eq!(datastore.kind, DatastoreKind::Kubernetes);
        assert_eq!(datastore.kubeconfig, Some("/etc/twill/kubeconfig".into()));
    }

    #[test]
    fn errors_name_key_and_line() {
        for (text, parts) in [
            ("nodeNam: a", &["line 1", "nodeNam", "expected one of nodeName"][..]),
            ("bgp:\n  listenPort: x\n", &["line 2", "listenPort: x"]),
            ("bgp:\n  listenPort: 0\n", &["line 2", "nonzero"]),
            ("fib: {metric: 0}", &["fib.metric 0", "1 to 4294967294"]),
            ("fib: {metric: 256}", &["fib.metric 256 belongs to other routes"]),
            ("fib: {nexthopCompat: auto}", &["line 1", "auto", "on", "off"]),
            ("fib: {nexthopObjects: never}", &["line 1", "never", "auto"]),
            ("reconcile: {graceSeconds: 0}", &["reconcile.graceSeconds is 0", "1 to 86400"]),
            ("reconcile: {intervalSeconds: 3601}", &["intervalSeconds is 3601", "1 to 3600"]),
            ("reconcile: {grace: 1}", &["line 1", "grace", "graceSeconds"]),
            ("datastore: {type: etcd}", &["line 1", "etcd", "file"]),
            ("datastore: {kubeconfig: /k}", &["datastore.kubeconfig", "kubernetes"]),
            ("metrics: {listen: here}", &["line 1", "here"]),
        ] {
            let error = Config::parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text}: {error} lacks {part}");
            }
        }
    }
}
