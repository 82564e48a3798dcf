//! `/metrics`, `/healthz`, `/readyz`, `/statusz`.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::api::Api;

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>) -> io::Result<()> {
    let router = Router::new()
        // Alive: an actor that dies takes the process down, so answering at all is the proof.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/statusz", get(status))
        .with_state(api);
    axum::serve(listener, router).await
}

async fn ready(State(api): State<Arc<Api>>) -> Response {
    match api.node_status().await {
        Ok(status) if status.in_sync => "ok\n".into_response(),
        Ok(_) => unavailable("the configuration has not been read yet\n".to_owned()),
        Err(error) => unavailable(format!("{error}\n")),
    }
}

async fn status(State(api): State<Arc<Api>>) -> Response {
    match api.node_status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => unavailable(format!("{error}\n")),
    }
}

async fn metrics(State(api): State<Arc<Api>>) -> Response {
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
