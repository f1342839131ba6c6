//! What the daemon answers to those who watch it by HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Watch;
use crate::metrics::Metrics;

/// The media type of OpenMetrics' exposition format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/livez` (the loop moves), `/readyz` (database and schema) and `/metrics` until `stop`.
pub async fn serve(
    listener: TcpListener,
    watch: Arc<Watch>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .with_state(watch)
        .merge(
            Router::new()
                .route("/metrics", get(show))
                .with_state(metrics),
        );
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn alive(State(watch): State<Arc<Watch>>) -> impl IntoResponse {
    match watch.is_alive() {
        true => (StatusCode::OK, "alive\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the loop hangs\n"),
    }
}

async fn ready(State(watch): State<Arc<Watch>>) -> impl IntoResponse {
    match watch.hindrance() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(says) => (StatusCode::SERVICE_UNAVAILABLE, format!("{says}\n")),
    }
}

async fn show(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], metrics.text())
}
