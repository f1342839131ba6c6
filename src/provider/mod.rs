//! Talking to ElevenLabs: one request, its limits and its repetition. What a voice needs asking for
//! is decided in [`lookup`].

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

/// Where many voices are asked about at once.
const LIST: &str = "/v2/voices";
/// Time for DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one request, its body included, while nothing shows that the provider is faster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The shortest time for a request about one voice or few, however fast the provider is.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a whole batch, until one of them hung.
const SHORTEST_BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer is thought to take before there was one.
const FIRST_GUESS: Duration = Duration::from_millis(300);

/// The provider, as one key sees it.
pub struct Provider {
    base: BaseUrl,
    key: HeaderValue,
    client: OnceLock<Client>,
    concurrency: NonZeroU32,
    traffic: Traffic,
    /// When a liveness request last failed. One is sent at a time.
    liveness_failed_at: tokio::sync::Mutex<Option<Instant>>,
    /// A request was given up to find out how long answers take.
    is_measuring: AtomicBool,
    /// A batch or a voice hung while the provider worked.
    has_hung: AtomicBool,
    requests: AtomicU64,
    retries: AtomicU64,
    /// Of answers with a 200.
    latencies: Mutex<Latencies>,
    /// Until when the list is taken for absent.
    no_list_until: Mutex<Option<Instant>>,
    list_answered: AtomicBool,
    list_rejections: AtomicU32,
    key_refused: OnceLock<String>,
    metrics: ProviderMetrics,
}

/// The key is not one that can be sent as a header.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API key contains a character that no key has, such as a line break; check its file or variable"
)]
pub struct UnusableKey;

impl Provider {
    /// A provider at `base`; at most `concurrency` requests are under way at once. Nothing is sent,
    /// and no TLS set up, before the first lookup.
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

    /// Counts its requests in these metrics.
    #[must_use]
    pub fn counting_in(self, metrics: ProviderMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// How hard it may be pressed just now.
    pub fn pressure(&self) -> Pressure {
        self.traffic.pressure()
    }

    /// The bound on requests under way.
    pub fn concurrency(&self) -> usize {
        self.concurrency.get() as usize
    }

    /// Requests sent so far, retries included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests sent so far that repeated an earlier one.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// How long an answer takes: the mean of the last few, or a guess before the first.
    pub fn latency(&self) -> Duration {
        self.latencies().mean().unwrap_or(FIRST_GUESS)
    }

    /// The longest that a request about one voice may take now.
    pub fn single_timeout(&self) -> Duration {
        self.timeout(Purpose::Single).unwrap_or(REQUEST_TIMEOUT)
    }

    fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a request may take, by the answers that came lately; `None` before the first of them.
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

    /// Whether anything was answered with a 200: then the key is not refused as such.
    fn was_answered(&self) -> bool {
        self.latencies().mean().is_some()
    }

    /// Somebody else's text without our key, which some servers repeat when they refuse it.
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

    /// Whether it turned out lately that there is no list at this base URL, or that it does not work.
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

    /// Where it is.
    pub fn base(&self) -> &BaseUrl {
        &self.base
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

    /// Whether request after request went without an answer, and nobody should ask for now.
    pub fn is_down(&self) -> bool {
        self.traffic.is_open()
    }

    /// How long the provider asked not to be asked.
    pub fn held_for(&self) -> Duration {
        self.traffic.held_for()
    }

    /// Goes on from what other processes learned of this account. Where its breaker is open no
    /// more, this process must be the one that probes: it asks one request at a time until an
    /// answer comes.
    pub fn resume(&self, state: ProviderState) {
        self.traffic.resume(self.concurrency.get(), state);
    }

    /// What other processes should know of this account.
    pub fn state(&self) -> ProviderState {
        self.traffic.provider_state()
    }

    /// Counts what other processes spent of the retry budget.
    pub fn resume_budget(&self, spent: Spent) {
        self.traffic.resume_budget(spent);
    }

    /// Waits until there is something that other processes should know at once.
    pub async fn state_changed(&self) {
        self.traffic.state_changed().await;
    }

    /// What is new since the last call.
    pub fn take_state_change(&self) -> Option<StateChange> {
        self.traffic.take_state_change()
    }

    /// Heeds what another process learned meanwhile. Returns whether nobody should ask for now.
    pub fn merge_remote(&self, state: ProviderState) -> bool {
        self.traffic.merge_remote(state);
        self.is_down()
    }

    /// Learns from the end of a pass that asked about all it wanted to: one without a single answer
    /// is an outage, however short.
    pub fn passed(&self) {
        self.traffic.passed();
    }

    /// Opens the breaker because lookups fail, whatever voices they are about, while the provider answers other
    /// requests.
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
            // Repetitions are ours to count.
            .retry(retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .referer(false)
            .pool_idle_timeout(Duration::from_secs(60));
        if self.base.is_plain() {
            // Neither the system's certificates, which a container may lack, nor its proxy, which
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
