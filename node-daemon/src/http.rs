//! `/metrics`, `/healthz`, `/readyz`, `/statusz`.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use crate::api::Api;

/// What there is to tell.
#[derive(Clone)]
pub(crate) struct Told {
    /// `None` while the daemon waits for its datastore.
    pub(crate) api: watch::Receiver<Option<Arc<Api>>>,
    /// What is wrong with the datastore.
    pub(crate) problems: watch::Receiver<Vec<String>>,
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, told: Told) -> io::Result<()> {
    let router = Router::new()
        // Alive: an actor that dies takes the process down, so answering at all is the proof.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/statusz", get(status))
        .with_state(told);
    axum::serve(listener, router).await
}

impl Told {
    fn api(&self) -> Option<Arc<Api>> {
        self.api.borrow().clone()
    }

    /// Why nobody answers yet.
    fn waits(&self) -> Response {
        let problems = self.problems.borrow();
        let why: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        unavailable(format!("waiting for the datastore to tell everything once\n{why}"))
    }
}

async fn ready(State(told): State<Told>) -> Response {
    let Some(api) = told.api() else { return told.waits() };
    match api.node_status().await {
        Ok(status) if status.in_sync => "ok\n".into_response(),
        Ok(_) => unavailable("the configuration has not been read yet\n".to_owned()),
        Err(error) => unavailable(format!("{error}\n")),
    }
}

async fn status(State(told): State<Told>) -> Response {
    let Some(api) = told.api() else { return told.waits() };
    match api.node_status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => unavailable(format!("{error}\n")),
    }
}

async fn metrics(State(told): State<Told>) -> Response {
    let Some(api) = told.api() else { return told.waits() };
    match (api.node_status().await, api.ipam_status()) {
        (Ok(status), Ok(ipam)) => {
            let text = api.metrics.render(&status, &ipam);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        (Err(error), _) | (_, Err(error)) => unavailable(format!("{error}\n")),
    }
}

fn unavailable(text: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
