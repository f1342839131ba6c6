//! The HTTP server: routes, and the middleware for every request.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::{self, DefaultBodyLimit, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use fastrand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::account::Account;
use crate::answer::{Answer, reformatted};
use crate::faults::Faults;
use crate::options::{ErrorFormat, Options};
use crate::request::{self, Log, Request};
use crate::{listing, single};

type Script = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// The state that all requests of one simulator share.
pub(crate) struct Shared {
    pub(crate) log: Log,
    pub(crate) list_enabled: bool,
    started: Instant,
    key: Option<String>,
    errors: ErrorFormat,
    account: RwLock<Account>,
    faults: Faults,
    script: RwLock<Option<Arc<Script>>>,
    closing: watch::Receiver<bool>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The script is a closure, which cannot be printed, and the key is secret.
        f.debug_struct("Shared")
            .field("started", &self.started)
            .field("account", &self.account)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(options: Options, closing: watch::Receiver<bool>) -> Self {
        let started = Instant::now();
        // Ids have a random generator of their own, so that they do not depend on earlier requests.
        let mut chance = Rng::with_seed(options.seed);
        let ids = chance.fork();
        Self {
            log: Log::new(options.record_requests),
            list_enabled: options.list_enabled,
            started,
            account: RwLock::new(Account::new(started, options.default_voices, ids)),
            faults: Faults::new(&options, chance),
            key: options.key,
            errors: options.errors,
            script: RwLock::default(),
            closing,
        }
    }

    pub(crate) fn account(&self) -> RwLockReadGuard<'_, Account> {
        self.account.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn account_mut(&self) -> RwLockWriteGuard<'_, Account> {
        self.account.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_script(&self, script: Arc<Script>) {
        *self.script.write().unwrap_or_else(PoisonError::into_inner) = Some(script);
    }

    fn scripted(&self, request: &Request) -> Option<Answer> {
        let script = self
            .script
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        script(request)
    }

    /// Waits, but at most until the simulator stops.
    async fn pause(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let mut closing = self.closing.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }

    fn accepts(&self, key: Option<&str>) -> bool {
        match (&self.key, key) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(right), Some(key)) => right == key,
        }
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v2/voices", get(listing::list))
        .route("/v1/voices", get(listing::everything))
        .route("/v1/voices/add", post(single::add))
        .route(
            "/v1/voices/{voice_id}",
            get(single::look_up).delete(single::delete),
        )
        .route("/v1/text-to-speech/{voice_id}", post(single::speak))
        .fallback(async || Answer::unknown(404, "Not Found"))
        .method_not_allowed_fallback(async || Answer::unknown(405, "Method Not Allowed"))
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), gate))
        .with_state(shared)
}

/// Records a request, answers it directly if a fault or a script applies, and adds the delay.
async fn gate(
    State(shared): State<Arc<Shared>>,
    request: extract::Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let seen = Request::read(&mut parts, shared.started.elapsed()).await;
    let line = shared.log.enter(&seen);

    let mut response = if let Some(answer) = shared.scripted(&seen) {
        shared.pause(answer.delay).await;
        answer.into_response()
    } else {
        let admitted = match shared.faults.outage(seen.at) {
            Some(down) => Err(down),
            None if shared.accepts(request::key(&parts.headers)) => shared.faults.admit(),
            None => Err(Answer::invalid_api_key()),
        };
        shared.pause(shared.faults.delay()).await;
        match admitted {
            Ok(_place) => {
                let mut response = next.run(extract::Request::from_parts(parts, body)).await;
                tell_concurrency(&shared, &mut response);
                in_format(response, shared.errors).await
            }
            Err(refusal) => in_format(refusal.into_response(), shared.errors).await,
        }
    };
    tell_concurrency(&shared, &mut response);
    if let Some(line) = line {
        shared.log.answered(line, response.status().as_u16());
    }
    response
}

/// Converts an error to the configured format.
async fn in_format(response: Response, format: ErrorFormat) -> Response {
    let status = response.status().as_u16();
    if status < 400 {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    match reformatted(&body, status, format) {
        Some(other) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, other.into())
        }
        None => Response::from_parts(parts, body.into()),
    }
}

fn tell_concurrency(shared: &Shared, response: &mut Response) {
    // An endpoint's answer got these headers while the request still counted as concurrent; these values are kept.
    if let Some((current, maximum)) = shared.faults.concurrency() {
        let headers = response.headers_mut();
        for (name, number) in [
            ("current-concurrent-requests", current),
            ("maximum-concurrent-requests", maximum),
        ] {
            headers
                .entry(name)
                .or_insert_with(|| HeaderValue::from(number));
        }
    }
}
