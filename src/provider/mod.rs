//! The HTTP client for ElevenLabs: requests, limits and repetition. [`lookup`] decides which requests a voice needs.

mod admission;
mod base_url;
mod classify;
pub mod error;
mod latency;
mod liveness;
pub mod lookup;
mod request;
mod request_deadline;
mod speech;
pub mod state;
pub mod wire;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{Client, redirect, retry};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use uuid::{Uuid, uuid};

use self::admission::Traffic;
pub use self::base_url::BaseUrl;
use self::error::ProviderError;
use self::latency::Latencies;
pub(crate) use self::liveness::NO_VOICE;
use self::request::{Purpose, root_cause};
pub use self::request_deadline::RequestDeadline;
pub use self::speech::Speech;
use crate::core::format::printable;
use crate::core::lookup::{Unavailable, UnavailableKind};
use crate::core::provider_state::{Pressure, ProviderState, Spent, StateChange};
use crate::telemetry::metrics::ProviderMetrics;

/// The endpoint that looks up many voices at once.
const LIST: &str = "/v2/voices";
/// Time limit for DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for one request with its body, as long as nothing shows that the provider is faster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The shortest time limit for a request about one voice or a few, however fast the provider is.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a whole batch, until one has hung.
const SHORTEST_BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The assumed duration of an answer before the first one.
const FIRST_GUESS: Duration = Duration::from_millis(300);

/// The provider, for one key.
pub struct Provider {
    base: BaseUrl,
    key: HeaderValue,
    client: OnceLock<Client>,
    concurrency: NonZeroU32,
    traffic: Traffic,
    /// When a liveness request last failed. Only one is sent at a time.
    liveness_failed_at: tokio::sync::Mutex<Option<Instant>>,
    /// Whether a request was given up in order to measure how long answers take.
    is_measuring: AtomicBool,
    /// Whether a batch or a voice hung while the provider worked.
    has_hung: AtomicBool,
    requests: AtomicU64,
    retries: AtomicU64,
    /// Latencies of answers with status 200.
    latencies: Mutex<Latencies>,
    /// Until when the list is not used.
    no_list_until: Mutex<Option<Instant>>,
    list_answered: AtomicBool,
    list_rejections: AtomicU32,
    key_refused: OnceLock<String>,
    metrics: ProviderMetrics,
}

/// The key cannot be sent as a header.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API key contains a character that no key has, such as a line break; check its file or variable"
)]
pub struct UnusableKey;

impl Provider {
    /// Creates a client for the provider at `base`, with at most `concurrency` requests in flight. Nothing is sent,
    /// and TLS is not set up, before the first lookup.
    pub fn new(
        base: BaseUrl,
        key: &SecretString,
        concurrency: NonZeroU32,
    ) -> Result<Self, UnusableKey> {
        let mut key = HeaderValue::from_str(key.expose_secret().trim()).map_err(|_| UnusableKey)?;
        key.set_sensitive(true);
        Ok(Self {
            base,
            key,
            client: OnceLock::new(),
            concurrency,
            traffic: Traffic::new(concurrency.get()),
            liveness_failed_at: tokio::sync::Mutex::default(),
            is_measuring: AtomicBool::new(false),
            has_hung: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            latencies: Mutex::default(),
            no_list_until: Mutex::default(),
            list_answered: AtomicBool::new(false),
            list_rejections: AtomicU32::new(0),
            key_refused: OnceLock::new(),
            metrics: ProviderMetrics::default(),
        })
    }

    /// Counts requests in these metrics.
    #[must_use]
    pub fn counting_in(self, metrics: ProviderMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// The current limits of requests to the provider.
    pub fn pressure(&self) -> Pressure {
        self.traffic.pressure()
    }

    /// The current concurrency limit.
    pub fn concurrency(&self) -> usize {
        self.concurrency.get() as usize
    }

    /// Requests sent so far, retries included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Retries among them.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// The mean latency of the last few answers, or an assumption before the first.
    pub fn latency(&self) -> Duration {
        self.latencies().mean().unwrap_or(FIRST_GUESS)
    }

    /// The current time limit for a request about one voice.
    pub fn single_timeout(&self) -> Duration {
        self.timeout(Purpose::Single).unwrap_or(REQUEST_TIMEOUT)
    }

    fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The time limit of a request, derived from recent answers; `None` before the first of them.
    fn timeout(&self, purpose: Purpose) -> Option<Duration> {
        let shortest = match purpose {
            Purpose::Liveness => return Some(REQUEST_TIMEOUT),
            Purpose::Batch if !self.has_hung.load(Ordering::Relaxed) => SHORTEST_BATCH_TIMEOUT,
            Purpose::Batch | Purpose::Single | Purpose::Isolation | Purpose::Isolated => {
                SHORTEST_TIMEOUT
            }
        };
        self.latencies().limit(shortest, REQUEST_TIMEOUT)
    }

    /// Whether any request was answered with 200: then the key works.
    fn was_answered(&self) -> bool {
        self.latencies().mean().is_some()
    }

    /// Removes our key from an answer: some servers repeat the key when they refuse it.
    fn without_key(&self, text: &str) -> String {
        let key = String::from_utf8_lossy(self.key.as_bytes());
        let recognisable = 8.min(key.len())..=key.len();
        recognisable
            .rev()
            .fold(text.to_owned(), |text, length| match key.get(..length) {
                Some(part) if !part.is_empty() => text.replace(part, "***"),
                Some(_) | None => text,
            })
    }

    /// Whether the list at this base URL recently turned out to be missing or broken.
    pub fn has_no_list(&self) -> bool {
        self.no_list_until()
            .is_some_and(|until| Instant::now() < until)
    }

    fn no_list_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.no_list_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_over_list(&self, pause: Duration) {
        *self.no_list_until() = Some(Instant::now() + pause);
    }

    /// The base URL.
    pub fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// Identifies the account without revealing the key: a digest of base URL and key. The state of the provider is
    /// stored under it.
    pub fn account(&self) -> Uuid {
        const NAMESPACE: Uuid = uuid!("0f0c2f0a-6f5e-4f0e-8a53-5b7d6b1f3f7e");
        let mut name = self.base.to_string().into_bytes();
        name.push(b'\n');
        name.extend_from_slice(self.key.as_bytes());
        Uuid::new_v5(&NAMESPACE, &name)
    }

    /// Why the provider refused the key, if it did.
    pub fn key_refused(&self) -> Option<&str> {
        self.key_refused.get().map(String::as_str)
    }

    /// Whether the circuit breaker is open, so that no requests should be sent.
    pub fn is_down(&self) -> bool {
        self.traffic.is_open()
    }

    /// How long the provider asked to wait (`Retry-After`).
    pub fn held_for(&self) -> Duration {
        self.traffic.held_for()
    }

    /// Continues with what other processes learned about this account. If its circuit breaker is half-open, this
    /// process must be the one that probes: it sends one request at a time until an answer comes.
    pub fn resume(&self, state: ProviderState) {
        self.traffic.resume(self.concurrency.get(), state);
    }

    /// The state that other processes should know.
    pub fn state(&self) -> ProviderState {
        self.traffic.provider_state()
    }

    /// Counts what other processes used of the retry budget.
    pub fn resume_budget(&self, spent: Spent) {
        self.traffic.resume_budget(spent);
    }

    /// Waits until there is something that other processes should know at once.
    pub async fn state_changed(&self) {
        self.traffic.state_changed().await;
    }

    /// What has changed since the last call.
    pub fn take_state_change(&self) -> Option<StateChange> {
        self.traffic.take_state_change()
    }

    /// Applies what another process learned meanwhile. Returns whether requests must stop for now.
    pub fn merge_remote(&self, state: ProviderState) -> bool {
        self.traffic.merge_remote(state);
        self.is_down()
    }

    /// Records the end of a pass that sent all its requests. A pass without a single answer is an outage, however
    /// short it was.
    pub fn passed(&self) {
        self.traffic.passed();
    }

    /// Opens the circuit breaker because lookups of all voices fail while the provider answers other requests.
    pub fn lookups_fail(&self) {
        self.traffic.trip();
    }

    fn unreadable(&self, error: &serde_json::Error) -> ProviderError {
        let detail = printable(&self.without_key(&error.to_string()));
        ProviderError::Unavailable(Unavailable::new(UnavailableKind::Unreadable, detail))
    }

    fn no_answer(&self, error: &reqwest::Error) -> ProviderError {
        let kind = if error.is_timeout() {
            UnavailableKind::Timeout
        } else if error.is_connect() {
            UnavailableKind::Connect
        } else {
            UnavailableKind::Broken
        };
        let detail = format!("{}: {}", self.base, root_cause(error));
        ProviderError::Unavailable(Unavailable::new(kind, detail))
    }

    fn client(&self) -> Result<&Client, ProviderError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        crate::tls::install();
        let mut builder = Client::builder()
            .user_agent(concat!("voice-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // Repetitions are handled by this program.
            .retry(retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .referer(false)
            .pool_idle_timeout(Duration::from_secs(60));
        if self.base.is_plain() {
            // Do not load the system's certificates, which a container may not have, and do not use its proxy, which
            // would see the key.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().map_err(|error| {
            ProviderError::Unavailable(Unavailable::new(
                UnavailableKind::Connect,
                format!(
                    "cannot set up HTTPS; check that CA certificates are installed: {}",
                    root_cause(&error)
                ),
            ))
        })?;
        Ok(self.client.get_or_init(|| client))
    }
}
