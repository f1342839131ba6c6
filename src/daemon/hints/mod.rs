//! Hints over HTTP: webhooks and the application report voices that should be looked up now.
//!
//! A hint is never a verdict. It makes a voice due in the database, and the next pass of any process looks it up.

mod inbox;
mod secret;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

pub use inbox::Inbox;
pub use secret::Secret;

use crate::telemetry::metrics::{HintMetrics, HintResult, HintSource};

/// The header of a webhook's signature.
const SIGNATURE: &str = "elevenlabs-signature";
/// The maximum size of a body.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The maximum length of an id. No row has a longer one.
const MAX_ID_BYTES: usize = 1024;
/// The minimum time between log lines about requests with an invalid secret.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// The secret, the inbox and the metrics of one endpoint.
struct Hints {
    source: HintSource,
    secret: Secret,
    inbox: Arc<Inbox>,
    metrics: HintMetrics,
    /// When a request with an invalid secret was last logged.
    told_at: Mutex<Option<Instant>>,
}

/// Routes for the hints that have a secret: `POST /webhooks/elevenlabs`, signed like the provider's webhooks, and
/// `POST /hints`, with a bearer token.
pub fn router(
    webhook_secret: Option<Secret>,
    token: Option<Secret>,
    inbox: &Arc<Inbox>,
    metrics: &HintMetrics,
) -> Router {
    let hints = |source, secret| {
        Arc::new(Hints {
            source,
            secret,
            inbox: Arc::clone(inbox),
            metrics: metrics.clone(),
            told_at: Mutex::new(None),
        })
    };
    let mut router = Router::new();
    if let Some(secret) = webhook_secret {
        let state = hints(HintSource::Webhook, secret);
        let route = post(webhook).with_state(state);
        router = router.route("/webhooks/elevenlabs", route);
    }
    if let Some(token) = token {
        let state = hints(HintSource::Application, token);
        router = router.route("/hints", post(hint).with_state(state));
    }
    router
}

async fn webhook(State(hints): State<Arc<Hints>>, headers: HeaderMap, body: Body) -> Response {
    let Some(signature) = headers.get(SIGNATURE) else {
        return hints.refuse("there is no ElevenLabs-Signature header");
    };
    let body = match hints.read(body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    if let Err(reason) = hints.secret.verify(signature.as_bytes(), &body, now) {
        return hints.refuse(&reason.to_string());
    }
    let Ok(event) = serde_json::from_slice::<Value>(&body) else {
        return hints.reject("the body is not JSON\n");
    };
    let ids = [&event["data"]["voice_id"], &event["voice_id"]];
    hints.accept(ids.into_iter().filter_map(id).collect())
}

async fn hint(State(hints): State<Arc<Hints>>, headers: HeaderMap, body: Body) -> Response {
    let authorization = headers.get(header::AUTHORIZATION);
    let token = authorization.and_then(|value| bearer(value.as_bytes()));
    if !token.is_some_and(|token| hints.secret.is(token)) {
        return hints.refuse("the bearer token is missing or wrong");
    }
    let body = match hints.read(body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let hint = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    match id(&hint["voice_id"]) {
        Some(id) => hints.accept(vec![id]),
        None => hints.reject("give {\"voice_id\": \"<row or provider id>\"}\n"),
    }
}

/// The scheme is case-insensitive (RFC 9110, 11.1).
pub(super) fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// No row id or provider id contains other characters, and not every database can store them.
fn id(value: &Value) -> Option<String> {
    let id = value.as_str()?;
    let is_possible =
        (1..=MAX_ID_BYTES).contains(&id.len()) && id.chars().all(|c| c.is_ascii_graphic());
    is_possible.then(|| id.to_owned())
}

impl Hints {
    async fn read(&self, body: Body) -> Result<Vec<u8>, Response> {
        let mut chunks = body.into_data_stream();
        let mut read = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else {
                return Err(self.reject("the body could not be read\n"));
            };
            if read.len() + chunk.len() > MAX_BODY_BYTES {
                self.count(HintResult::TooLarge);
                let says = format!("the body has more than {MAX_BODY_BYTES} bytes\n");
                return Err((StatusCode::PAYLOAD_TOO_LARGE, says).into_response());
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    }

    fn accept(&self, ids: Vec<String>) -> Response {
        match self.inbox.put(ids) {
            Ok(()) => {
                self.count(HintResult::Accepted);
                StatusCode::OK.into_response()
            }
            Err(_full) => {
                self.count(HintResult::Throttled);
                let headers = [(header::RETRY_AFTER, "1")];
                (StatusCode::TOO_MANY_REQUESTS, headers, "too many hints\n").into_response()
            }
        }
    }

    fn reject(&self, says: &'static str) -> Response {
        self.count(HintResult::Invalid);
        (StatusCode::BAD_REQUEST, says).into_response()
    }

    /// The response contains no details.
    fn refuse(&self, reason: &str) -> Response {
        self.count(HintResult::Unauthorized);
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|at| at.elapsed() >= TOLD_AGAIN) {
            *told_at = Some(Instant::now());
            warn!(
                source = self.source.as_str(),
                reason,
                "a hint was refused; if it is not an attack, check the secret on both sides \
                 (this is said once a minute; voice_sync_hints_total counts all of them)"
            );
        }
        match self.source {
            HintSource::Webhook => StatusCode::UNAUTHORIZED.into_response(),
            HintSource::Application => {
                let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
                (StatusCode::UNAUTHORIZED, headers).into_response()
            }
        }
    }

    fn count(&self, result: HintResult) {
        self.metrics.received(self.source, result);
    }
}
