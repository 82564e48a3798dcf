//! The connection, and what can go wrong with a request.

use std::{
    collections::BTreeMap,
    env, fmt,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::{ApiResource, DynamicObject},
};
use tokio::{runtime::Handle, sync::watch, task::block_in_place, time::timeout};
use tracing::info;
use twill_api_client::{KeepAlive, Proxy, UnusableProxy, named};
use twill_k8s_api::files::FileError;

use super::{
    deaths::Deaths,
    gate::{Gate, Outcome, Voice},
    refusals::Refusals,
};

/// How a connection is made, and kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// How long it may take until there is one, TLS included; of that TCP two seconds at the most.
    pub(crate) connect: Duration,
    pub(crate) keep_alive: KeepAlive,
}

/// A node's: there are many, and a server with much to do may be slow to answer. What it did until then for a
/// connection, and for all that goes through it, is not to be thrown away.
pub(crate) const OF_A_NODE: Line = Line {
    connect: Duration::from_secs(15),
    keep_alive: KeepAlive { interval: Duration::from_secs(7), timeout: Duration::from_secs(8) },
};

/// How long one request may take. Who waits for it is the task that claims blocks; where nobody waits, one that took
/// too long may take twice as long the next time, up to [`LIST_DEADLINE`]: else a server with much to do begins
/// the same thing again and again.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long a list may take: of a large cluster, all names of claims.
const LIST_DEADLINE: Duration = Duration::from_secs(15);

/// For how long nothing is asked after a request without an answer: who waits for it has more to do.
const SILENCE: Duration = Duration::from_secs(2);

/// After how long without an octet a connection is dead: a watch that has nothing to say has a bookmark every
/// minute. One of HTTP/2 is asked more often.
const STALLED: Duration = Duration::from_secs(180);

/// The namespace of conf/rbac.
const NAMESPACE: &str = "twill-system";

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
    /// The proxy before it has no address.
    #[error("cannot reach the API server by a proxy")]
    Proxy(#[from] UnusableProxy),
    /// What the configuration says cannot be used together.
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// RBAC, or an admission policy.
    #[error("{account} may not {verb} {what}: {message}; {}", account.remedy())]
    Forbidden { account: Account, verb: &'static str, what: String, message: String },
    /// No answer in time.
    #[error("the API server does not answer: {verb} {what}")]
    Late { verb: &'static str, what: String },
    /// It was not asked: in all the time that it has, its turn did not come.
    #[error("{verb} {what} waits for its turn: the API server is silent, slow or busy")]
    Queued { verb: &'static str, what: String },
    /// Any other answer that is no.
    #[error("the API server answers {verb} {what} with {code}: {message}")]
    Refused {
        verb: &'static str,
        what: String,
        code: u16,
        message: String,
        /// For how long the server does not want to be asked again, if it says so.
        after: Option<Duration>,
    },
    /// No answer at all.
    #[error("cannot {verb} {what} on the API server")]
    Request {
        verb: &'static str,
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An object of Twill's own that somebody has changed.
    #[error(
        "{what} on the API server is damaged: {message}; restore it, or delete it if its block is used nowhere"
    )]
    Damaged { what: String, message: String },
    /// Others were faster, block after block.
    #[error("other nodes claimed {count} blocks of pool {pool} a moment before this one")]
    Outrun { pool: String, count: usize },
    /// The daemon is told to end: it waits for nobody any more.
    #[error("the daemon is ending")]
    Ending,
    /// The task that gathers what the API server tells is dead.
    #[error("the task that follows the API server has died")]
    Died,
    /// The copy of what was last known cannot be written.
    #[error(transparent)]
    Cache(#[from] FileError),
}

impl ApiError {
    /// Whether the API server answered with this HTTP status code.
    pub(crate) fn is(&self, expected: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == expected)
    }

    /// Whether it may be over in a moment, and nobody has to mend anything: silence, or a server with much to do.
    pub(super) fn is_passing(&self) -> bool {
        let is_busy = || [429, 503, 504].iter().any(|code| self.is(*code));
        self.is_silence() || matches!(self, Self::Queued { .. }) || is_busy()
    }

    /// Whether there was no answer, so that other requests have none either.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            // One that cannot be read is an answer.
            Self::Request { source, .. } => {
                !matches!(source.downcast_ref(), Some(kube::Error::SerdeError(_)))
            }
            _ => false,
        }
    }
}

/// Who asks: what is refused has to be granted to another account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// The daemon of a node.
    Node,
    /// The controller of the cluster.
    Controller,
}

impl Account {
    fn remedy(self) -> &'static str {
        match self {
            Self::Node => "grant it to the daemon's account",
            Self::Controller => "grant it to its account, as conf/rbac/twill-controller.yaml does",
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "this node",
            Self::Controller => "the controller",
        })
    }
}

/// A client of the API server.
pub(crate) struct Access {
    client: Client,
    /// The API server's URL, for people.
    server: String,
    /// The namespace that this daemon's own objects are in.
    namespace: String,
    runtime: Handle,
    /// When a request had no answer last.
    late: Mutex<Option<Instant>>,
    gate: Arc<Gate>,
    /// The client of what waits for its turn there.
    in_turn: Client,
    /// How long the next request of a verb may take that nobody waits for, where that is longer than others.
    leisure: Mutex<BTreeMap<&'static str, Duration>>,
    /// Nothing is asked any more, and no answer is waited for.
    ending: watch::Sender<bool>,
    refusals: Refusals,
    deaths: Deaths,
}

impl Access {
    pub(crate) async fn open(kubeconfig: Option<&Path>, line: Line) -> Result<Self, ApiError> {
        let mut proxy_named = None;
        let mut config = match kubeconfig {
            Some(path) => {
                let failed = |source| ApiError::Kubeconfig {
                    path: path.to_owned(),
                    source: Box::new(source),
                };
                let mut read = Kubeconfig::read_from(path).map_err(failed)?;
                name_namespace(&mut read);
                proxy_named = named(&read, None).map(str::to_owned);
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(read, &options).await.map_err(failed)?
            }
            None => Config::incluster().map_err(|source| ApiError::InCluster(Box::new(source)))?,
        };
        config.connect_timeout = Some(line.connect);
        config.read_timeout = Some(STALLED);
        let namespace = config.default_namespace.clone();
        let server = config.cluster_url.to_string();
        let variable = |name: &str| env::var(name).ok();
        let proxy = Proxy::find(proxy_named.as_deref(), &config.cluster_url, variable)?;
        if let Some(proxy) = &proxy {
            info!(server = %config.cluster_url, %proxy, "the API server is reached by a proxy");
        }
        let client = twill_api_client::client(config, proxy.as_ref(), line.keep_alive)
            .map_err(|source| ApiError::Client(Box::new(source)))?;
        Ok(Self { server, ..Self::with_client(client, namespace) })
    }

    /// Uses a client of a server without a name; has to be called inside the runtime that is to carry the requests.
    pub(super) fn with_client(client: Client, namespace: String) -> Self {
        let (runtime, ending) = (Handle::current(), watch::Sender::new(false));
        let (late, refusals, deaths) = (Mutex::default(), Refusals::default(), Deaths::default());
        let server = "without a name".to_owned();
        let gate = Arc::<Gate>::default();
        let in_turn = gate.before(client.clone(), &namespace);
        let leisure = Mutex::default();
        Self {
            client,
            server,
            namespace,
            runtime,
            late,
            gate,
            in_turn,
            leisure,
            ending,
            refusals,
            deaths,
        }
    }

    /// The daemon is about to end: requests that wait for an answer fail at once, and so do later ones.
    pub(super) fn end(&self) {
        self.ending.send_replace(true);
    }

    /// Where watches are started that take the process down if they die.
    pub(super) fn deaths(&self) -> &Deaths {
        &self.deaths
    }

    /// What the API server has refused this daemon, and would again.
    pub(super) fn refused(&self) -> watch::Receiver<Vec<String>> {
        self.refusals.said()
    }

    /// Whether a request is worth asking: an error if one of its kind was refused lately. [`Access::answer`] looks by
    /// itself; this is for who would ask for something else first.
    pub(super) fn may(&self, verb: &'static str, what: &str) -> Result<(), ApiError> {
        self.refusals.expect(verb, what, Instant::now())
    }

    /// The namespace of the daemon.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server's URL.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The client itself.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// How a list is followed that nobody waits for: each request in its turn.
    pub(super) fn voice(&self) -> Voice {
        Voice::new(&self.gate, self.in_turn.clone())
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
        block_in_place(|| self.runtime.block_on(self.answer(verb, what, request)))
    }

    /// The answer to one request that somebody waits for.
    pub(super) async fn answer<T>(
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
        self.may(verb, &what)?;
        self.request(verb, &what, deadline(verb), request).await
    }

    /// The answer to one request that nobody waits for, in its turn. Has to be called where blocking is allowed.
    pub(super) fn ask_in_turn<T>(
        &self,
        verb: &'static str,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        block_in_place(|| self.runtime.block_on(self.answer_in_turn(verb, what, request)))
    }

    /// The answer to one request that nobody waits for, in its turn.
    pub(super) async fn answer_in_turn<T>(
        &self,
        verb: &'static str,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let what = what.into();
        self.may(verb, &what)?;
        let limit = self.leisure(verb);
        let mut ending = self.ending.subscribe();
        let pass = tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => return Err(ApiError::Ending),
            pass = timeout(limit, self.gate.enter()) => pass,
        };
        // It counts until there is an answer.
        let Ok(_pass) = pass else { return Err(ApiError::Queued { verb, what }) };
        self.request_at_leisure(verb, &what, limit, request).await
    }

    /// Like [`Access::ask_in_turn`], for what is a single request that must not stand behind all a node's lists: if it
    /// comes to nothing, others take the node for dead.
    pub(super) fn ask_out_of_turn<T>(
        &self,
        verb: &'static str,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        block_in_place(|| self.runtime.block_on(self.answer_out_of_turn(verb, what, request)))
    }

    /// Like [`Access::answer_in_turn`], but at once, whatever the gate waits for.
    pub(super) async fn answer_out_of_turn<T>(
        &self,
        verb: &'static str,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let what = what.into();
        self.may(verb, &what)?;
        self.request_at_leisure(verb, &what, self.leisure(verb), request).await
    }

    /// Asks within `limit`, and takes note of how long the next one may take.
    async fn request_at_leisure<T>(
        &self,
        verb: &'static str,
        what: &str,
        limit: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let asked = tokio::time::Instant::now();
        let answer = self.request(verb, what, limit, request).await;
        let took = asked.elapsed();
        let mut leisure = self.leisure.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Err(ApiError::Late { .. }) => {
                let longer = (limit * 2).min(LIST_DEADLINE);
                let leisure = leisure.entry(verb).or_insert(longer);
                *leisure = longer.max(*leisure);
            }
            // A refusal may be quick where what is asked for is not.
            Ok(_) if took < DEADLINE => drop(leisure.remove(verb)),
            _ => {}
        }
        answer
    }

    /// How long a request that nobody waits for may take.
    fn leisure(&self, verb: &str) -> Duration {
        let leisure = self.leisure.lock().unwrap_or_else(PoisonError::into_inner);
        leisure.get(verb).copied().unwrap_or_default().max(deadline(verb))
    }

    /// Asks, within `limit`; the gate and all others hear what came of it.
    async fn request<T>(
        &self,
        verb: &'static str,
        what: &str,
        limit: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let mut ending = self.ending.subscribe();
        let asked = tokio::time::Instant::now();
        let answer = tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => return Err(ApiError::Ending),
            answer = in_time(Account::Node, verb, what.to_owned(), limit, request) => answer,
        };
        self.refusals.note(verb, what, answer.as_ref().map(|_| ()), Instant::now());
        if matches!(&answer, Err(error) if error.is_silence()) {
            *self.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.gate.note(what, asked, outcome(&answer));
        answer
    }
}

/// What an answer says about the API server.
fn outcome<T>(answer: &Result<T, ApiError>) -> Outcome {
    match answer {
        Err(error) if error.is_silence() => Outcome::Silent,
        Err(ApiError::Refused { code, after, .. }) => Outcome::of_code(*code, *after),
        Ok(_) | Err(_) => Outcome::Answered,
    }
}

/// Where the current context names no namespace, the daemon's is that of the manifests: kubectl's
/// `default` is no place for its Lease, and nobody has rights there.
fn name_namespace(kubeconfig: &mut Kubeconfig) {
    let current = kubeconfig.current_context.clone();
    let mut contexts = kubeconfig.contexts.iter_mut();
    let context = contexts.find(|context| Some(&context.name) == current.as_ref());
    if let Some(context) = context.and_then(|named| named.context.as_mut()) {
        context.namespace.get_or_insert_with(|| NAMESPACE.to_owned());
    }
}

fn deadline(verb: &str) -> Duration {
    if verb == "list" { LIST_DEADLINE } else { DEADLINE }
}

/// The answer to one request of `account`, within `limit`.
pub(crate) async fn in_time<T>(
    account: Account,
    verb: &'static str,
    what: String,
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match timeout(limit, request).await {
        Err(_) => Err(ApiError::Late { verb, what }),
        Ok(answer) => answer.map_err(|error| failed(account, verb, what, error)),
    }
}

/// Why a request failed. A refusal is told apart: only people can do something about it.
pub(super) fn failed(
    account: Account,
    verb: &'static str,
    what: String,
    error: kube::Error,
) -> ApiError {
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        kube::Error::Api(status) => {
            let message = status.message.clone();
            // The answer's header is not to be had here, but who means it says it in the body as well.
            let after = status.details.as_ref().map(|details| details.retry_after_seconds);
            let after = after.filter(|after| *after > 0).map(|s| Duration::from_secs(s.into()));
            return match status.is_forbidden() {
                true => ApiError::Forbidden { account, verb, what, message },
                false => ApiError::Refused { verb, what, code: status.code, message, after },
            };
        }
        // What these say has their sources in it, which would be told twice.
        kube::Error::Service(source) => source,
        kube::Error::HyperError(source) => source.into(),
        kube::Error::ReadEvents(source) => source.into(),
        error => error.into(),
    };
    ApiError::Request { verb, what, source }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use twill_types::error_chain;

    use super::*;

    #[test]
    fn a_kubeconfig_without_a_namespace_means_that_of_the_manifests() {
        let namespace = |context: &str| {
            let text = format!(
                "current-context: a\ncontexts:\n- name: b\n  context: {{cluster: c, user: u, \
                 namespace: other}}\n- name: a\n  context: {{cluster: c, user: u{context}}}\n"
            );
            let mut read = Kubeconfig::from_yaml(&text).unwrap();
            name_namespace(&mut read);
            read.contexts[1].context.as_ref().unwrap().namespace.clone().unwrap()
        };
        assert_eq!(namespace(""), "twill-system");
        assert_eq!(namespace(", namespace: mine"), "mine");
    }

    #[tokio::test]
    async fn a_proxy_that_cannot_be_used_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let text = "current-context: a\ncontexts:\n- {name: a, context: {cluster: c, user: u}}\nclusters:\n- name: c\n  \
                    cluster: {server: 'https://10.0.0.1:6443', proxy-url: 'ftp://127.0.0.1:1'}\n\
                    users:\n- {name: u, user: {}}\n";
        std::fs::write(&path, text).unwrap();
        let error = Access::open(Some(&path), OF_A_NODE).await.map(drop).unwrap_err();
        assert_eq!(
            error_chain(&error),
            "cannot reach the API server by a proxy: proxy-url of the kubeconfig names no proxy that can be \
             used; write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT there"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_without_an_answer_does_not_hold_up_the_end() {
        let never = tower::service_fn(|_: axum::http::Request<kube::client::Body>| {
            std::future::pending::<Result<axum::http::Response<kube::client::Body>, kube::Error>>()
        });
        let client = Client::new(never, "default");
        let access = std::sync::Arc::new(Access::with_client(client, "default".to_owned()));
        let asking = std::sync::Arc::clone(&access);
        let asked = tokio::task::spawn_blocking(move || {
            asking.ask("get", "x", asking.client().apiserver_version()).map(drop)
        });
        access.end();
        let start = Instant::now();
        let outcome = asked.await.unwrap();
        assert!(matches!(outcome, Err(ApiError::Ending)), "{outcome:?}");
        assert!(start.elapsed() < DEADLINE, "it waited {:?}", start.elapsed());
        let later = tokio::task::spawn_blocking(move || {
            access.ask("get", "x", access.client().apiserver_version()).map(drop)
        });
        assert!(matches!(later.await.unwrap(), Err(ApiError::Ending)));
    }

    #[test]
    fn errors_name_verb_and_resource_once() {
        let answer = |account, message: &str, reason: &str, code| {
            let status = Status::failure(message, reason).with_code(code).boxed();
            failed(account, "list", "ippools".to_owned(), kube::Error::Api(status))
        };
        let error = answer(Account::Node, "no such right", "Forbidden", 403);
        assert_eq!(
            error_chain(&error),
            "this node may not list ippools: no such right; grant it to the daemon's account"
        );
        let error = answer(Account::Controller, "no such right", "Forbidden", 403);
        assert_eq!(
            error_chain(&error),
            "the controller may not list ippools: no such right; grant it to its account, as \
             conf/rbac/twill-controller.yaml does"
        );
        let error = answer(Account::Node, "it is there", "AlreadyExists", 409);
        assert!(error.is(409) && !error.is(404));
        assert_eq!(
            error_chain(&error),
            "the API server answers list ippools with 409: it is there"
        );
        let error = kube::Error::Service("connection refused".into());
        assert_eq!(
            error_chain(&failed(Account::Node, "watch", "ippools".to_owned(), error)),
            "cannot watch ippools on the API server: connection refused"
        );
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_read_is_no_silence() {
        let ask = async |limit, outcome: kube::Result<()>| {
            let request = std::future::ready(outcome);
            in_time(Account::Node, "get", "x".to_owned(), limit, request).await
        };
        let unread = serde_json::from_str::<u8>("x").unwrap_err();
        let refused = Status::failure("no", "Conflict").with_code(409).boxed();
        for (error, is_silence) in [
            (kube::Error::Service("connection refused".into()), true),
            (kube::Error::SerdeError(unread), false),
            (kube::Error::Api(refused), false),
        ] {
            let error = ask(DEADLINE, Err(error)).await.unwrap_err();
            assert_eq!(error.is_silence(), is_silence, "{error:?}");
        }
        let never = std::future::pending::<kube::Result<()>>();
        let late = in_time(Account::Node, "get", "x".to_owned(), Duration::ZERO, never).await;
        assert!(matches!(&late, Err(error @ ApiError::Late { .. }) if error.is_silence()));
    }
}
