//! Which API server, and as whom.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use twill_api_client::{KeepAlive, Proxy, UnusableProxy, named};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How soon it is noticed that the connection is dead: before the deadline of who waits for an answer.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) };

/// Where the API server is looked for, in this order: `kubeconfig`, the files that `$KUBECONFIG`
/// names, `configured`, `~/.kube/config`, the service account of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// `--kubeconfig`.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// What the daemon uses, `datastore.kubeconfig` of its configuration.
    pub(crate) configured: Option<PathBuf>,
    /// `--context`, instead of the kubeconfig's current one.
    pub(crate) context: Option<String>,
    /// `--namespace`, instead of the context's.
    pub(crate) namespace: Option<String>,
}

/// There is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A kubeconfig is wrong, or names files that cannot be read.
    #[error("cannot use the kubeconfig {from}; correct it, or name another by --kubeconfig")]
    Kubeconfig {
        from: String,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No kubeconfig, and no service account.
    #[error(
        "there is no API server to ask: no --kubeconfig, no $KUBECONFIG, no ~/.kube/config, and no \
         service account of a pod"
    )]
    Nowhere(#[source] Box<InClusterError>),
    /// The proxy before it has no address.
    #[error("cannot reach the API server by a proxy")]
    Proxy(#[from] UnusableProxy),
    /// What the kubeconfig says cannot be used together.
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// No runtime.
    #[error("cannot start the client of the API server")]
    Runtime(#[source] std::io::Error),
}

impl Cluster {
    /// The configuration of the client, and the proxy that it goes through.
    pub(super) async fn config(&self) -> Result<(Config, Option<Proxy>), ConnectError> {
        let mut proxy_named = None;
        let mut config = match self.read()? {
            Some((from, read)) => {
                proxy_named = named(&read, self.context.as_deref()).map(str::to_owned);
                let options =
                    KubeConfigOptions { context: self.context.clone(), ..Default::default() };
                let failed = |source| ConnectError::Kubeconfig { from, source: Box::new(source) };
                Config::from_custom_kubeconfig(read, &options).await.map_err(failed)?
            }
            None => Config::incluster().map_err(|e| ConnectError::Nowhere(Box::new(e)))?,
        };
        config.connect_timeout = Some(CONNECT);
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        let variable = |name: &str| env::var(name).ok();
        let proxy = Proxy::find(proxy_named.as_deref(), &config.cluster_url, variable)?;
        Ok((config, proxy))
    }

    /// The kubeconfig, and what to call it in messages.
    fn read(&self) -> Result<Option<(String, Kubeconfig)>, ConnectError> {
        let failed = |from: &str| {
            let from = from.to_owned();
            |source| ConnectError::Kubeconfig { from, source: Box::new(source) }
        };
        let file = |path: &Path| {
            let from = path.display().to_string();
            let read = Kubeconfig::read_from(path).map_err(failed(&from))?;
            Ok(Some((from, read)))
        };
        if let Some(path) = &self.kubeconfig {
            return file(path);
        }
        if let Some(read) = Kubeconfig::from_env().map_err(failed("of $KUBECONFIG"))? {
            return Ok(Some(("of $KUBECONFIG".to_owned(), read)));
        }
        if let Some(path) = &self.configured {
            return file(path);
        }
        of_home().map_or(Ok(None), |path| file(&path))
    }
}

/// `~/.kube/config`, if it is there.
fn of_home() -> Option<PathBuf> {
    env::home_dir().map(|home| home.join(".kube/config")).filter(|path| path.is_file())
}

/// Whether the user has a kubeconfig: one that `$KUBECONFIG` names, be it there or not, or
/// `~/.kube/config`.
pub(crate) fn has_kubeconfig() -> bool {
    env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty()) || of_home().is_some()
}

/// A client for this thread alone: everything it does, it does while somebody waits for an answer. It tries nothing
/// again, so that what the server says is told, and not lost in attempts until the time is over.
pub(super) fn client(config: Config, proxy: Option<&Proxy>) -> Result<Client, ConnectError> {
    twill_api_client::client(config, proxy, KEEP_ALIVE)
        .map_err(|source| ConnectError::Client(Box::new(source)))
}
