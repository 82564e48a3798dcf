//! The connection, and what can go wrong with a request.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::{ApiResource, DynamicObject, Status},
};
use tokio::{runtime::Handle, task::block_in_place, time::timeout};
use twill_k8s_api::files::FileError;

/// How long one request may take. Who waits for it is the task that claims blocks.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long a list may take: of a large cluster, all names of claims.
const LIST_DEADLINE: Duration = Duration::from_secs(15);

/// For how long nothing is asked after a request without an answer: who waits for it has more to do.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);

/// The API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The kubeconfig is wrong, or names files that cannot be read.
    #[error("cannot use the kubeconfig {}; correct it, or name another in datastore.kubeconfig", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No service account.
    #[error(
        "no service account of a pod is to be found here; run in a pod, or set datastore.kubeconfig"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// What the configuration says cannot be used together.
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// RBAC, or an admission policy.
    #[error("this node may not {verb} {what}: {message}; grant it to the daemon's account")]
    Forbidden { verb: &'static str, what: String, message: String },
    /// No answer in time.
    #[error("the API server does not answer within {} s: {verb} {what}", deadline(verb).as_secs())]
    Late { verb: &'static str, what: String },
    /// Any other failure of a request.
    #[error("cannot {verb} {what} on the API server")]
    Request {
        verb: &'static str,
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of Twill's own that somebody has changed.
    #[error(
        "{what} on the API server is damaged: {message}; restore it, or delete it if its block is used nowhere"
    )]
    Damaged { what: String, message: String },
    /// The copy of what was last known cannot be written.
    #[error(transparent)]
    Cache(#[from] FileError),
}

impl ApiError {
    /// The API server's own answer, if there is one.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// The HTTP code of the API server's answer.
    pub(super) fn is(&self, code: u16) -> bool {
        self.status().is_some_and(|status| status.code == code)
    }
}

/// A client of the API server.
pub(super) struct Access {
    client: Client,
    /// The namespace that this daemon's own objects are in.
    namespace: String,
    runtime: Handle,
    /// When a request had no answer last.
    late: Mutex<Option<Instant>>,
}

impl Access {
    pub(super) async fn open(kubeconfig: Option<&Path>) -> Result<Self, ApiError> {
        let mut config = match kubeconfig {
            Some(path) => {
                let failed = |source| ApiError::Kubeconfig {
                    path: path.to_owned(),
                    source: Box::new(source),
                };
                let read = Kubeconfig::read_from(path).map_err(failed)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(read, &options).await.map_err(failed)?
            }
            None => Config::incluster().map_err(|source| ApiError::InCluster(Box::new(source)))?,
        };
        config.connect_timeout = Some(CONNECT);
        // Each request has a deadline of its own, and a later attempt is the caller's to decide.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client =
            Client::try_from(config).map_err(|source| ApiError::Client(Box::new(source)))?;
        Ok(Self { client, namespace, runtime: Handle::current(), late: Mutex::default() })
    }

    /// The namespace of the daemon.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The client itself.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// All objects of a kind without namespaces.
    pub(super) fn objects(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.client(), resource)
    }

    /// Waits for the answer to one request. Has to be called where blocking is allowed.
    pub(super) fn ask<T>(
        &self,
        verb: &'static str,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let what = what.into();
        let late = *self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if late.is_some_and(|when| when.elapsed() < SILENCE) {
            return Err(ApiError::Late { verb, what });
        }
        let answer = block_in_place(|| {
            self.runtime.block_on(async { timeout(deadline(verb), request).await })
        });
        match answer {
            Err(_) => {
                *self.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Err(ApiError::Late { verb, what })
            }
            Ok(Err(error)) => Err(failed(verb, what, error)),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

fn deadline(verb: &str) -> Duration {
    if verb == "list" { LIST_DEADLINE } else { DEADLINE }
}

/// Why a request failed. A refusal is told apart: only people can do something about it.
pub(super) fn failed(verb: &'static str, what: String, error: kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => {
            ApiError::Forbidden { verb, what, message: status.message.clone() }
        }
        error => ApiError::Request { verb, what, source: Box::new(error) },
    }
}
