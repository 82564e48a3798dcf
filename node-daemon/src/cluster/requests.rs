//! Requests to the API server: each has a deadline, writes are those of who leads only, and what was
//! refused is asked again after a while.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{Api, Client, core::DynamicObject};
use tokio::sync::watch;
use tracing::warn;

use super::{kinds::List, metrics::Metrics};
use crate::datastore::kubernetes::{Account, ApiError, Removal, in_time};

/// How long one request may take. Who leads stops writing this long before the others may take over, and
/// more: see [`super::election`].
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

/// How long a list may take.
const LIST_DEADLINE: Duration = Duration::from_secs(30);

/// The pause where only people can help: a permission is missing.
const REFUSED: Duration = Duration::from_secs(60);

/// A request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// Nothing is written any more.
    #[error("this controller does not lead any more")]
    NotLeading,
    /// Any other reason.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl RequestError {
    /// Whether the API server answered with this HTTP status code.
    pub(super) fn is(&self, code: u16) -> bool {
        matches!(self, Self::Api(error) if error.is(code))
    }

    /// Whether any other request would come to nothing as well.
    pub(super) fn is_general(&self) -> bool {
        matches!(
            self,
            Self::NotLeading | Self::Api(ApiError::Late { .. } | ApiError::Request { .. })
        )
    }
}

/// Verb and resource; when that was refused, and why.
type Refused = BTreeMap<(&'static str, &'static str), (Instant, String)>;

/// How to ask.
pub(super) struct Requests {
    client: Client,
    namespace: String,
    /// Until when this process may write.
    until: watch::Receiver<Option<Instant>>,
    /// What was refused, and when.
    refused: Mutex<Refused>,
    metrics: Metrics,
}

impl Requests {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        until: watch::Receiver<Option<Instant>>,
        metrics: Metrics,
    ) -> Self {
        let namespace = namespace.to_owned();
        Self { client, namespace, until, refused: Mutex::default(), metrics }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the daemons' own objects.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// All objects of a list.
    pub(super) fn objects(&self, list: List) -> Api<DynamicObject> {
        Api::all_with(self.client(), &list.resource())
    }

    /// What was refused lately, in words.
    pub(super) fn refusals(&self) -> Vec<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |((verb, resource), (_, message)): (&(&str, &str), &(Instant, String))| {
            format!("the controller may not {verb} {resource}: {message}")
        };
        refused.iter().map(text).collect()
    }

    /// Asks for something that changes nothing.
    pub(super) async fn read<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        let key = (verb, resource);
        let before = {
            let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get(&key).filter(|(when, _)| when.elapsed() < REFUSED).cloned()
        };
        let what = if name.is_empty() { resource.to_owned() } else { format!("{resource}/{name}") };
        let account = Account::Controller;
        if let Some((_, message)) = before {
            return Err(ApiError::Forbidden { account, verb, what, message }.into());
        }
        let limit = if verb == "list" { LIST_DEADLINE } else { DEADLINE };
        let answer = in_time(account, verb, what, limit, request).await;
        self.metrics.request(verb, resource, answer.is_ok());
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) => {
                refused.remove(&key);
                Ok(answer)
            }
            Err(error) => {
                if let ApiError::Forbidden { message, .. } = &error
                    && refused.insert(key, (Instant::now(), message.clone())).is_none()
                {
                    warn!("{error}");
                }
                Err(error.into())
            }
        }
    }

    /// Asks for a change, if this process leads.
    pub(super) async fn write<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        if self.until.borrow().is_none_or(|until| Instant::now() >= until) {
            return Err(RequestError::NotLeading);
        }
        self.read(verb, resource, name, request).await
    }

    /// Takes the finalizer off an object, and deletes it. One that is not there has been removed.
    pub(super) async fn remove(
        &self,
        list: List,
        name: &str,
        removal: &Removal<'_>,
    ) -> Result<(), RequestError> {
        let unheld = self.write("patch", list.plural(), name, removal.unhold()).await;
        let Some(unheld) = or_gone(unheld)? else { return Ok(()) };
        if let Some(request) = removal.delete(&unheld) {
            or_gone(self.write("delete", list.plural(), name, request).await)?;
        }
        Ok(())
    }
}

/// What was answered; `None` if there is no such object.
pub(super) fn or_gone<T>(outcome: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match outcome {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is(404) => Ok(None),
        Err(error) => Err(error),
    }
}
