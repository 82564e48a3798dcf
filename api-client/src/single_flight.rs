//! One connection is begun at a time. At its start a daemon asks a dozen things at once, and it does so again
//! when the connection is lost: hyper's pool begins a connection for each, until the first has turned out to speak
//! HTTP/2 and carries all of them. A TLS handshake is the dearest thing that a node asks of the API server.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use hyper::{Request, Response, body::Incoming};
use hyper_util::client::legacy::{
    Client as HttpClient,
    connect::{Connect, capture_connection},
};
use kube::client::Body;
use tokio::sync::{Mutex as Turns, oneshot};
use tower::{BoxError, Service};
use twill_types::error_chain;

/// Requests take turns until each has a connection, which is made to the end also if who asked for it has given up
/// by then: a server with much to do would have done its part of it for nothing. Who waited while there was none to be
/// had does not try again by itself, or a server that is away would hold up the last in the row for the time of all of
/// them.
#[derive(Clone)]
pub(super) struct SingleFlight<C> {
    http: HttpClient<C, Body>,
    flight: Arc<Flight>,
}

#[derive(Default)]
struct Flight {
    turns: Arc<Turns<()>>,
    failed: Mutex<Failed>,
}

/// The connections that came to nothing.
#[derive(Default)]
struct Failed {
    count: u64,
    /// Why the last one did.
    reason: String,
}

/// Another request, which this one waited for, had no connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoConnection(String);

impl<C> SingleFlight<C> {
    pub(super) fn new(http: HttpClient<C, Body>) -> Self {
        Self { http, flight: Arc::default() }
    }
}

impl Flight {
    fn failures(&self) -> u64 {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    fn check(&self, before: u64) -> Result<(), NoConnection> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.count == before { Ok(()) } else { Err(NoConnection(failed.reason.clone())) }
    }

    fn fail(&self, reason: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count += 1;
        failed.reason = reason;
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> Service<Request<Body>> for SingleFlight<C> {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (http, flight) = (self.http.clone(), Arc::clone(&self.flight));
        Box::pin(async move {
            let mut connection = capture_connection(&mut request);
            let before = flight.failures();
            let turn = Arc::clone(&flight.turns).lock_owned().await;
            flight.check(before)?;
            let (mut sender, answer) = oneshot::channel();
            tokio::spawn(async move {
                let mut answer = pin!(http.request(request));
                let early = tokio::select! {
                    biased;
                    answer = &mut answer => Some(answer),
                    _ = connection.wait_for_connection_metadata() => None,
                };
                if let Some(Err(error)) = &early
                    && connection.connection_metadata().is_none()
                {
                    flight.fail(error_chain(error));
                }
                drop(turn);
                let answer = match early {
                    Some(answer) => answer,
                    None => tokio::select! {
                        answer = answer => answer,
                        // Nobody waits for more than the connection.
                        () = sender.closed() => return,
                    },
                };
                // Who asked may have gone.
                drop(sender.send(answer));
            });
            Ok(answer.await??)
        })
    }
}
