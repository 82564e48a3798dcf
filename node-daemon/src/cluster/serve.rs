//! `/metrics`, `/healthz`, `/readyz` and `/statusz` of the controller.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

use super::metrics::Metrics;

/// For how long the API server may be silent until this process is not ready: one that waits to lead is
/// as ready as one that leads.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// What is told.
pub(super) struct Served {
    pub(super) identity: String,
    pub(super) metrics: Metrics,
    /// Until when this process may write.
    pub(super) until: watch::Receiver<Option<Instant>>,
    /// When the API server answered last, about the Lease or before that whether Calico is here.
    pub(super) asked: watch::Receiver<Option<Instant>>,
    /// Why it cannot do all its work.
    pub(super) problems: watch::Receiver<Vec<String>>,
}

impl Served {
    fn leads(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn is_ready(&self) -> bool {
        self.asked.borrow().is_some_and(|asked| asked.elapsed() < SILENCE)
    }
}

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, served: Served) -> io::Result<()> {
    let router = Router::new()
        // Alive: whatever dies takes the process down, so answering at all is the proof.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/statusz", get(status))
        .with_state(Arc::new(served));
    axum::serve(listener, router).await
}

async fn ready(State(served): State<Arc<Served>>) -> Response {
    match served.is_ready() {
        true => "ok\n".into_response(),
        false => {
            let mut text =
                "the API server has not answered, or refuses what has to be known first\n"
                    .to_owned();
            for problem in served.problems.borrow().iter() {
                text.push_str(problem);
                text.push('\n');
            }
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], served.metrics.render()).into_response()
}

async fn status(State(served): State<Arc<Served>>) -> Response {
    let problems = served.problems.borrow().clone();
    let status = json!({
        "identity": served.identity, "leads": served.leads(), "ready": served.is_ready(),
        "problems": problems,
    });
    Json(status).into_response()
}
