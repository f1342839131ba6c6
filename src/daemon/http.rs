//! What the daemon answers to those who watch it by HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{AllowedHosts, Health, StatusCache};
use crate::status::{Nonce, page};
use crate::telemetry::exposition::{Format, Metrics};

/// A browser looks again after this.
const REFRESH: Duration = Duration::from_secs(10);

const NOT_THIS_HOST: &str =
    "this page is not served under that name; allow the name with --allowed-hosts\n";

/// Routes of `/` (the status, for people), `/livez` (the loop moves), `/readyz` (database and schema) and
/// `/metrics`. All of it is read-only.
pub fn router(
    watch: Arc<Health>,
    metrics: Arc<Metrics>,
    cache: Arc<StatusCache>,
    hosts: AllowedHosts,
) -> Router {
    let page = Router::new().route("/", get(status)).with_state((
        cache,
        Arc::new(hosts),
        Arc::clone(&watch),
    ));
    Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .with_state(watch)
        .merge(page)
        .merge(
            Router::new()
                .route("/metrics", get(show))
                .with_state(metrics),
        )
}

async fn alive(State(watch): State<Arc<Health>>) -> impl IntoResponse {
    match watch.is_alive() {
        true => (StatusCode::OK, "alive\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the loop hangs\n"),
    }
}

async fn ready(State(watch): State<Arc<Health>>) -> impl IntoResponse {
    match watch.not_ready_reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(says) => (StatusCode::SERVICE_UNAVAILABLE, format!("{says}\n")),
    }
}

async fn show(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).map(HeaderValue::to_str);
    let accept = accept.and_then(Result::ok).unwrap_or_default();
    let format = Format::accepted_by(accept);
    (
        [(header::CONTENT_TYPE, format.media_type())],
        metrics.scrape(format),
    )
}

async fn status(
    State((cache, hosts, watch)): State<(Arc<StatusCache>, Arc<AllowedHosts>, Arc<Health>)>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).map(HeaderValue::to_str);
    if let Some(host) = host
        && !host.is_ok_and(|host| hosts.allow(host))
    {
        return (StatusCode::MISDIRECTED_REQUEST, NOT_THIS_HOST).into_response();
    }
    // A database that is known to be away would only keep the reader waiting.
    let seen = match watch.database_failure() {
        Some(says) => Arc::new(Err(says)),
        None => cache.status().await,
    };
    let (code, status) = match seen.as_ref() {
        Ok(status) => (StatusCode::OK, Ok(status)),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Err(reason.as_str())),
    };
    let nonce = Nonce::random();
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, nonce.policy()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::REFRESH, REFRESH.as_secs().to_string()),
    ];
    (code, headers, page(status, nonce)).into_response()
}
