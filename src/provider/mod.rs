//! Talking to ElevenLabs: one request, its limits and its repetition. What a voice needs asking for
//! is decided in [`lookup`].

mod base_url;
pub mod error;
pub mod lookup;
mod patience;
pub mod wire;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, trace};
use uuid::{Uuid, uuid};

pub use base_url::BaseUrl;
use error::{Refusal, Trouble, TroubleKind, refusal};
pub use patience::Patience;

use crate::retry::{self, Cause};

/// Time for DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one request, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer, decompressed: 100 voices have some 200 kB, and a gzip bomb has more.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// So many requests in a row without an answer, each with its retries, and the provider is down.
const DOWN_AFTER: u32 = 5;

/// The provider, as one key sees it.
pub struct Provider {
    base: BaseUrl,
    key: HeaderValue,
    client: OnceLock<Client>,
    gate: Semaphore,
    concurrency: usize,
    requests: AtomicU64,
    retries: AtomicU64,
    unanswered_in_a_row: AtomicU32,
    list_is_gone: AtomicBool,
    key_refused: OnceLock<String>,
    /// No request before this, because the provider said so.
    hold: Mutex<Option<Instant>>,
}

/// The key is not one that can be sent as a header.
#[derive(Debug, thiserror::Error)]
#[error("the API key contains characters that no key has, such as a line break")]
pub struct UnusableKey;

impl Provider {
    /// A provider at `base`; at most `concurrency` requests are under way at once. Nothing is sent,
    /// and no TLS set up, before the first lookup.
    pub fn new(
        base: BaseUrl,
        key: &SecretString,
        concurrency: NonZeroUsize,
    ) -> Result<Self, UnusableKey> {
        let mut key = HeaderValue::from_str(key.expose_secret().trim()).map_err(|_| UnusableKey)?;
        key.set_sensitive(true);
        Ok(Self {
            base,
            key,
            client: OnceLock::new(),
            gate: Semaphore::new(concurrency.get()),
            concurrency: concurrency.get(),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            unanswered_in_a_row: AtomicU32::new(0),
            list_is_gone: AtomicBool::new(false),
            key_refused: OnceLock::new(),
            hold: Mutex::new(None),
        })
    }

    /// The bound on requests under way.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Requests sent so far, retries included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests sent so far that repeated an earlier one.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Whether it turned out that there is no list at this base URL.
    pub fn has_no_list(&self) -> bool {
        self.list_is_gone.load(Ordering::Relaxed)
    }

    /// Which account this is, without telling the key: a digest of base URL and key, under which
    /// what was learned of the provider is kept.
    pub fn account(&self) -> Uuid {
        const NAMESPACE: Uuid = uuid!("0f0c2f0a-6f5e-4f0e-8a53-5b7d6b1f3f7e");
        let mut name = self.base.to_string().into_bytes();
        name.push(b'\n');
        name.extend_from_slice(self.key.as_bytes());
        Uuid::new_v5(&NAMESPACE, &name)
    }

    /// Why the key is of no use, once the provider said so.
    pub fn key_refused(&self) -> Option<&str> {
        self.key_refused.get().map(String::as_str)
    }

    /// Whether request after request went without an answer.
    pub fn is_down(&self) -> bool {
        self.unanswered_in_a_row.load(Ordering::Relaxed) >= DOWN_AFTER
    }

    /// Sends a GET and repeats it as [`retry`] allows, within `patience`. Returns the body of a 200.
    async fn get(&self, path_and_query: &str, patience: Patience<'_>) -> Result<Vec<u8>, Refusal> {
        let mut tried = 0;
        let outcome = loop {
            let outcome = self.try_once(path_and_query, patience, tried > 0).await;
            tried += 1;
            let (cause, told) = match &outcome {
                Err(Refusal::Throttled { told, .. }) => (Cause::Throttled, *told),
                Err(Refusal::Unavailable(trouble)) => match trouble.kind {
                    TroubleKind::NotAsked | TroubleKind::TooLarge | TroubleKind::Unreadable => {
                        break outcome;
                    }
                    TroubleKind::Connect
                    | TroubleKind::Timeout
                    | TroubleKind::Broken
                    | TroubleKind::Status
                    | TroubleKind::Throttled => (Cause::Trouble, trouble.told),
                },
                Err(
                    Refusal::NotFound
                    | Refusal::NoSuchEndpoint(_)
                    | Refusal::Unauthorized(_)
                    | Refusal::Forbidden(..)
                    | Refusal::Rejected(..),
                )
                | Ok(_) => break outcome,
            };
            let pause = retry::pause(tried, cause, told, fastrand::f64());
            if cause == Cause::Throttled || told.is_some() {
                self.hold_for(told.unwrap_or(pause));
            }
            if tried >= retry::MAX_TRIES || !patience.sleep_until(Instant::now() + pause).await {
                break outcome;
            }
            debug!(tried, pause_ms = pause.as_millis() as u64, "asking again");
        };
        match &outcome {
            Err(Refusal::Throttled { .. }) => {
                self.unanswered_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
            Err(Refusal::Unavailable(trouble)) if trouble.kind == TroubleKind::NotAsked => {}
            Err(Refusal::Unavailable(_)) => {
                self.unanswered_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) | Err(_) => self.unanswered_in_a_row.store(0, Ordering::Relaxed),
        }
        outcome
    }

    async fn try_once(
        &self,
        path_and_query: &str,
        patience: Patience<'_>,
        again: bool,
    ) -> Result<Vec<u8>, Refusal> {
        let not_asked = |why: &str| Refusal::Unavailable(Trouble::new(TroubleKind::NotAsked, why));
        let Ok(Ok(_permit)) = timeout_at(patience.until, self.gate.acquire()).await else {
            return Err(not_asked("no time left to ask"));
        };
        if let Some(held) = self.held_until()
            && !patience.sleep_until(held).await
        {
            return Err(not_asked("the provider asks for a longer pause"));
        }
        if self.key_refused().is_some() {
            return Err(not_asked("the key was refused"));
        }
        if self.is_down() {
            return Err(not_asked("the provider does not answer"));
        }
        let Some(left) = patience.left() else {
            return Err(not_asked("no time left to ask"));
        };

        self.requests.fetch_add(1, Ordering::Relaxed);
        if again {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        let limit = left.min(REQUEST_TIMEOUT);
        // An answer that we had no time for says nothing about the provider.
        let no_answer = |error: reqwest::Error| match error.is_timeout() && limit < REQUEST_TIMEOUT
        {
            true => not_asked("no time left for an answer"),
            false => no_answer(&error),
        };
        let response = self
            .client()?
            .get(format!("{}{path_and_query}", self.base))
            .header("xi-api-key", self.key.clone())
            .timeout(limit)
            .send()
            .await
            .map_err(no_answer)?;
        let status = response.status().as_u16();
        let told = told_to_wait(response.headers());
        let body = read(response, no_answer).await;
        trace!(status, path = path_and_query, "answered");
        match (status, body) {
            (200, body) => body,
            (_, body) => Err(refusal(status, &body.unwrap_or_default(), told)),
        }
    }

    fn client(&self) -> Result<&Client, Refusal> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        crate::tls::install();
        let mut builder = Client::builder()
            .user_agent(concat!("voice-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .referer(false)
            .pool_idle_timeout(Duration::from_secs(60));
        if self.base.is_plain() {
            // Neither the system's certificates, which a container may lack, nor its proxy, which
            // would see the key.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().map_err(|error| {
            Refusal::Unavailable(Trouble::new(
                TroubleKind::Connect,
                format!(
                    "no HTTPS client could be made, are CA certificates installed? {}",
                    root_cause(&error)
                ),
            ))
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    fn hold_for(&self, pause: Duration) {
        let held = Instant::now() + pause;
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        *hold = (*hold).max(Some(held));
    }

    fn held_until(&self) -> Option<Instant> {
        let hold = *self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        hold.filter(|held| *held > Instant::now())
    }
}

fn told_to_wait(headers: &HeaderMap) -> Option<Duration> {
    retry::told_to_wait(
        |name| headers.get(name).and_then(|value| value.to_str().ok()),
        SystemTime::now(),
    )
}

async fn read(
    mut response: reqwest::Response,
    no_answer: impl Fn(reqwest::Error) -> Refusal,
) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(&no_answer)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(Refusal::Unavailable(Trouble::new(
                TroubleKind::TooLarge,
                format!("the answer has more than {MAX_BODY_BYTES} bytes"),
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn no_answer(error: &reqwest::Error) -> Refusal {
    let kind = if error.is_timeout() {
        TroubleKind::Timeout
    } else if error.is_connect() {
        TroubleKind::Connect
    } else {
        TroubleKind::Broken
    };
    Refusal::Unavailable(Trouble::new(kind, root_cause(error)))
}

/// The innermost error: the outer ones repeat the URL and say little.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
