//! The daemon's HTTP endpoints for people and monitoring.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::hints::bearer;
use super::{AllowedHosts, Health, Secret, StatusCache};
use crate::status::{Nonce, page};
use crate::telemetry::exposition::{Format, Metrics};

/// The interval at which a browser reloads the page.
const REFRESH: Duration = Duration::from_secs(10);

const NOT_THIS_HOST: &str = "this host name is not allowed; allow it with --allowed-hosts\n";

/// Routes of `/` (the status, for people), `/livez` (the loop runs), `/readyz` (database and schema) and `/metrics`.
/// All of them are read-only. With a token, `/` and `/metrics` require it.
pub fn router(
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    cache: Arc<StatusCache>,
    hosts: AllowedHosts,
    token: Option<Secret>,
) -> Router {
    let page = Router::new().route("/", get(status)).with_state((
        cache,
        Arc::new(hosts),
        Arc::clone(&health),
    ));
    let metrics = Router::new()
        .route("/metrics", get(show))
        .with_state(metrics);
    let mut closed = page.merge(metrics);
    if let Some(token) = token {
        let token = Arc::new(token);
        closed = closed.layer(from_fn(move |request: Request, next: Next| {
            let token = Arc::clone(&token);
            async move {
                match is_authorized(&token, request.headers()) {
                    true => next.run(request).await,
                    false => unauthorized(),
                }
            }
        }));
    }
    Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .with_state(health)
        .merge(closed)
}

/// Scrapers send a bearer token; browsers prompt for a password, with any user name (RFC 7617).
fn is_authorized(token: &Secret, headers: &HeaderMap) -> bool {
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        return false;
    };
    let authorization = authorization.as_bytes();
    if let Some(bearer) = bearer(authorization) {
        return token.is(bearer);
    }
    let Ok(text) = str::from_utf8(authorization) else {
        return false;
    };
    let basic = text
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = basic.and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
    decoded.is_some_and(|pair| {
        let mut parts = pair.splitn(2, |byte| *byte == b':');
        parts.nth(1).is_some_and(|password| token.is(password))
    })
}

fn unauthorized() -> Response {
    let challenges = [
        (header::WWW_AUTHENTICATE, "Bearer"),
        (
            header::WWW_AUTHENTICATE,
            "Basic realm=\"voice-sync\", charset=\"UTF-8\"",
        ),
    ];
    let body = "a token is needed: as a bearer token, or as the password\n";
    (StatusCode::UNAUTHORIZED, AppendHeaders(challenges), body).into_response()
}

async fn alive(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.is_alive() {
        true => (StatusCode::OK, "alive\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the loop of the daemon does not respond\n",
        ),
    }
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.not_ready_reason() {
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
    State((cache, hosts, health)): State<(Arc<StatusCache>, Arc<AllowedHosts>, Arc<Health>)>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).map(HeaderValue::to_str);
    if let Some(host) = host
        && !host.is_ok_and(|host| hosts.allow(host))
    {
        return (StatusCode::MISDIRECTED_REQUEST, NOT_THIS_HOST).into_response();
    }
    // If the database is known to be unavailable, a query would only delay the page.
    let seen = match health.database_failure() {
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
