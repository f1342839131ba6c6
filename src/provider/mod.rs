//! Talking to ElevenLabs: one request, its limits and its repetition. What a voice needs asking for
//! is decided in [`lookup`].

mod admission;
mod base_url;
pub mod error;
mod latency;
mod liveness;
pub mod lookup;
mod request_deadline;
pub mod state;
pub mod wire;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, trace};
use uuid::{Uuid, uuid};

use crate::core::format::printable;
use crate::core::lookup::{Unavailable, UnavailableKind};
use admission::{Admission, Outcome, Traffic};
pub use base_url::BaseUrl;
use error::{ProviderError, refusal};
use latency::Latencies;
pub(crate) use liveness::NO_VOICE;
pub use request_deadline::RequestDeadline;

use crate::core::provider_state::{Pressure, ProviderState, Spent, StateChange};
use crate::provider::state::backoff::{self, Cause};
use crate::provider::state::concurrency_limit::Plan;
use crate::telemetry::metrics::{Class, Endpoint, ProviderMetrics};

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
/// How often a request that takes long looks whether other answers came meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long an answer is thought to take before there was one.
const FIRST_GUESS: Duration = Duration::from_millis(300);
/// Requests under way that are waited for when told to stop.
const GRACE: Duration = Duration::from_secs(20);
/// Most bytes of an answer, decompressed: 100 voices have some 200 kB, and a gzip bomb has more.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// Most bytes of any answer but a 200: the API's errors have some 200 bytes, a proxy's page has a few kB.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// What a request is for: this says how long it may take, and what its failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It looks up a batch of voices.
    Batch,
    /// It looks up one voice.
    Single,
    /// It looks up voices of a batch that failed. It is never repeated from the retry budget.
    Isolation,
    /// It looks up a voice that failed by itself earlier. Outside the retry budget, it is repeated once.
    Isolated,
    /// It names no voice, and shows whether the provider works.
    Liveness,
}

/// Which try of a request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    /// The one before was given up.
    Second,
    /// It counts as a retry.
    Again,
}

/// Why a try brought no answer.
enum Attempt {
    Refused(ProviderError),
    /// It was given up for a request that names no voice: nothing shows yet how long answers take.
    GivenUp,
}

impl Attempt {
    fn refusal(self) -> ProviderError {
        match self {
            Self::Refused(refusal) => refusal,
            Self::GivenUp => {
                let says = format!("no answer within {} s", SHORTEST_TIMEOUT.as_secs());
                ProviderError::Unavailable(Unavailable::new(UnavailableKind::Timeout, says))
            }
        }
    }
}

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
#[error("the API key contains characters that no key has, such as a line break")]
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

    /// Sends a GET and repeats it as [`backoff`] and the retry budget allow, until `deadline`. A failure may lie
    /// in a voice if anything was answered since the request began, or since another moment.
    async fn get<T>(
        &self,
        path_and_query: &str,
        purpose: Purpose,
        mut since: Option<Instant>,
        deadline: RequestDeadline<'_>,
        read: fn(&[u8]) -> serde_json::Result<T>,
    ) -> Result<T, ProviderError> {
        let mut tried = 0;
        let mut first = Try::First;
        loop {
            tried += 1;
            // What is repeated outside the budget does not count as a retry.
            let which = match tried > 1 && purpose != Purpose::Isolated {
                true => Try::Again,
                false => first,
            };
            let place = match self.traffic.admit(deadline, which == Try::Again).await {
                Ok(place) => place,
                Err(why) => return Err(not_asked(why)),
            };
            let begun = *since.get_or_insert_with(Instant::now);
            let attempt = self
                .try_once(path_and_query, purpose, deadline, which, read, &place)
                .await;
            let refusal = match attempt {
                Ok(answer) => {
                    self.traffic.release(place);
                    return Ok(answer);
                }
                Err(Attempt::GivenUp) => {
                    let works = self.works(begun, deadline, &place).await;
                    self.is_measuring.store(false, Ordering::Relaxed);
                    if works == Some(true) {
                        self.traffic.release(place);
                        tried -= 1;
                        first = Try::Second;
                        continue;
                    }
                    self.traffic.learn(&place, Outcome::Unavailable, None);
                    Attempt::GivenUp.refusal()
                }
                Err(Attempt::Refused(refusal)) => {
                    self.attribute(refusal, begun, deadline, &place).await
                }
            };
            self.traffic.release(place);
            let Some((cause, retry_after)) = worth_repeating(&refusal) else {
                return Err(refusal);
            };
            let pause = backoff::pause(tried, cause, retry_after, fastrand::f64());
            let is_about_a_voice = matches!(refusal, ProviderError::Unanswerable(_));
            if cause == Cause::Throttled || retry_after.is_some() && !is_about_a_voice {
                self.traffic.begin_cooldown(retry_after.unwrap_or(pause));
            }
            let may_repeat = match purpose {
                Purpose::Batch if is_about_a_voice => false,
                Purpose::Batch | Purpose::Single => {
                    tried < backoff::MAX_TRIES && self.traffic.may_retry()
                }
                Purpose::Isolated => is_about_a_voice && tried < 2,
                Purpose::Isolation | Purpose::Liveness => false,
            };
            if !may_repeat || !deadline.sleep_until(Instant::now() + pause).await {
                return Err(refusal);
            }
            debug!(tried, pause_ms = pause.as_millis() as u64, "asking again");
        }
    }

    /// Tells a failure that may lie in a voice from one of the provider, by whether anything else was
    /// answered since the request began.
    async fn attribute(
        &self,
        refusal: ProviderError,
        begun: Instant,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> ProviderError {
        match refusal {
            ProviderError::Unavailable(trouble) if trouble.kind.may_lie_in_a_voice() => {
                match self.works(begun, deadline, place).await {
                    Some(true) => {
                        if trouble.kind == UnavailableKind::Timeout {
                            self.has_hung.store(true, Ordering::Relaxed);
                        }
                        return ProviderError::Unanswerable(trouble);
                    }
                    Some(false) => self.traffic.learn(place, Outcome::Unavailable, None),
                    None => {}
                }
                ProviderError::Unavailable(trouble)
            }
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Unauthorized(..)
            | ProviderError::Forbidden(..)
            | ProviderError::Rejected(..)
            | ProviderError::Throttled { .. }
            | ProviderError::Unanswerable(_)
            | ProviderError::Unavailable(_) => refusal,
        }
    }

    /// Sends a GET once, in a place that traffic gave. Returns what `read` makes of the body of a 200.
    async fn try_once<T>(
        &self,
        path_and_query: &str,
        purpose: Purpose,
        deadline: RequestDeadline<'_>,
        which: Try,
        read: fn(&[u8]) -> serde_json::Result<T>,
        place: &Admission<'_>,
    ) -> Result<T, Attempt> {
        let left = match (self.key_refused(), deadline.left()) {
            (Some(_), _) => return Err(Attempt::Refused(not_asked("the key was refused"))),
            (None, None) => return Err(Attempt::Refused(not_asked("no time left to ask"))),
            (None, Some(left)) => left,
        };
        let begun = Instant::now();
        let _in_flight = InFlight::new(&self.metrics);
        let _sending = self.traffic.sending();
        let limit = self.timeout(purpose).unwrap_or(REQUEST_TIMEOUT);
        let mut given_up = false;
        let sending = self.send(path_and_query, limit, left, which == Try::Again, read);
        let (answer, plan) = tokio::select! {
            sent = sending => sent,
            () = deadline.is_exhausted(GRACE) => (Err(not_asked("told to stop")), None),
            is_timeout = self.takes_too_long(begun, purpose, which) => {
                given_up = !is_timeout;
                (Err(Attempt::GivenUp.refusal()), None)
            }
        };
        let endpoint = match path_and_query.starts_with(LIST) {
            true => Endpoint::List,
            false => Endpoint::Single,
        };
        self.metrics
            .ended(endpoint, class(&answer), begun.elapsed());
        self.traffic.learn(place, outcome(&answer, purpose), plan);
        match given_up {
            true => Err(Attempt::GivenUp),
            false => answer.map_err(Attempt::Refused),
        }
    }

    /// For a request that began before anything was answered, and so with the longest timeout: returns
    /// whether it has taken too long by what was answered since. Where nothing was, one request is given up for
    /// one that shows how long answers take (`false`).
    async fn takes_too_long(&self, begun: Instant, purpose: Purpose, which: Try) -> bool {
        sleep_until(begun + SHORTEST_TIMEOUT).await;
        loop {
            if let Some(timeout) = self.timeout(purpose) {
                sleep_until(begun + timeout).await;
                return true;
            }
            if which == Try::First && !self.is_measuring.swap(true, Ordering::Relaxed) {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Sends one request, which may take until `limit`, and answers are of use until `left`. What the answer
    /// tells of the plan comes with it.
    async fn send<T>(
        &self,
        path_and_query: &str,
        limit: Duration,
        left: Duration,
        again: bool,
        read_body: fn(&[u8]) -> serde_json::Result<T>,
    ) -> (Result<T, ProviderError>, Option<Plan>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if again {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        // An answer that we had no time for says nothing about the provider.
        let no_answer = |error: reqwest::Error| match error.is_timeout() && left < limit {
            true => ProviderError::Unavailable(Unavailable::new(
                UnavailableKind::NotAsked,
                "no time left for an answer",
            )),
            false => self.no_answer(&error),
        };
        let client = match self.client() {
            Ok(client) => client,
            Err(refusal) => return (Err(refusal), None),
        };
        let request = client
            .get(format!("{}{path_and_query}", self.base))
            .header("xi-api-key", self.key.clone())
            .timeout(limit.min(left));
        let begun = Instant::now();
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return (Err(no_answer(error)), None),
        };
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let plan = plan(response.headers());
        let longest = match status {
            200 => MAX_BODY_BYTES,
            _ => MAX_ERROR_BYTES,
        };
        let body = read(response, longest, no_answer).await;
        trace!(status, path = path_and_query, "answered");
        let answer = match status {
            200 => body.and_then(|body| {
                let answer = read_body(&body).map_err(|error| self.unreadable(&error))?;
                self.latencies().add(begun.elapsed());
                Ok(answer)
            }),
            status => {
                let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
                Err(refusal(
                    status,
                    self.without_key(&body).as_bytes(),
                    retry_after,
                ))
            }
        };
        (answer, plan)
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
                    "no HTTPS client could be made, are CA certificates installed? {}",
                    root_cause(&error)
                ),
            ))
        })?;
        Ok(self.client.get_or_init(|| client))
    }
}

fn not_asked(why: &str) -> ProviderError {
    ProviderError::Unavailable(Unavailable::new(UnavailableKind::NotAsked, why))
}

/// Whether asking again may help, from which cause, and what the provider says about when.
fn worth_repeating(refusal: &ProviderError) -> Option<(Cause, Option<Duration>)> {
    match refusal {
        ProviderError::Throttled { retry_after, .. } => Some((Cause::Throttled, *retry_after)),
        ProviderError::Unavailable(trouble) => match trouble.kind {
            UnavailableKind::Connect
            | UnavailableKind::Timeout
            | UnavailableKind::Broken
            | UnavailableKind::Internal
            | UnavailableKind::Status
            | UnavailableKind::Throttled => Some((Cause::Unavailable, trouble.retry_after)),
            UnavailableKind::NotAsked | UnavailableKind::TooLarge | UnavailableKind::Unreadable => {
                None
            }
        },
        // A voice that hangs, or that nobody can read, will do so again.
        ProviderError::Unanswerable(trouble) => match trouble.kind {
            UnavailableKind::Broken | UnavailableKind::Internal | UnavailableKind::Status => {
                Some((Cause::Unavailable, trouble.retry_after))
            }
            UnavailableKind::Connect
            | UnavailableKind::Timeout
            | UnavailableKind::Throttled
            | UnavailableKind::NotAsked
            | UnavailableKind::TooLarge
            | UnavailableKind::Unreadable => None,
        },
        ProviderError::NotFound
        | ProviderError::NoSuchEndpoint(_)
        | ProviderError::Unauthorized(..)
        | ProviderError::Forbidden(..)
        | ProviderError::Rejected(..) => None,
    }
}

/// Counts a request as under way for as long as it lives.
struct InFlight<'a>(&'a ProviderMetrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a ProviderMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

fn class<T>(answer: &Result<T, ProviderError>) -> Class {
    match answer {
        Ok(_) => Class::Ok,
        Err(ProviderError::NotFound | ProviderError::NoSuchEndpoint(_)) => Class::NotFound,
        Err(ProviderError::Unauthorized(..) | ProviderError::Forbidden(..)) => Class::Refused,
        Err(ProviderError::Rejected(..)) => Class::Rejected,
        Err(ProviderError::Throttled { .. }) => Class::Throttled,
        Err(ProviderError::Unavailable(trouble) | ProviderError::Unanswerable(trouble)) => {
            match trouble.kind {
                UnavailableKind::Connect => Class::Connect,
                UnavailableKind::Timeout => Class::Timeout,
                UnavailableKind::Broken
                | UnavailableKind::TooLarge
                | UnavailableKind::Unreadable => Class::Broken,
                UnavailableKind::Internal | UnavailableKind::Status => Class::ServerError,
                UnavailableKind::Throttled => Class::Throttled,
                UnavailableKind::NotAsked => Class::Abandoned,
            }
        }
    }
}

/// What a try came to, as far as traffic is concerned. Of one that names voices, a failure that may lie in
/// them counts once it is known that it does not.
fn outcome<T>(answer: &Result<T, ProviderError>, purpose: Purpose) -> Outcome {
    match answer {
        Ok(_)
        | Err(
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Unauthorized(..)
            | ProviderError::Forbidden(..)
            | ProviderError::Rejected(..),
        ) => Outcome::Answered,
        Err(ProviderError::Throttled { code, .. }) if error::is_about_concurrency(code) => {
            Outcome::TooMany
        }
        Err(ProviderError::Throttled { .. }) => Outcome::Busy,
        Err(ProviderError::Unavailable(trouble) | ProviderError::Unanswerable(trouble)) => {
            match trouble.kind {
                UnavailableKind::NotAsked => Outcome::Abandoned,
                kind if kind.may_lie_in_a_voice() && purpose != Purpose::Liveness => {
                    Outcome::Abandoned
                }
                UnavailableKind::Connect
                | UnavailableKind::Timeout
                | UnavailableKind::Broken
                | UnavailableKind::Internal
                | UnavailableKind::Status
                | UnavailableKind::Unreadable
                | UnavailableKind::TooLarge
                | UnavailableKind::Throttled => Outcome::Unavailable,
            }
        }
    }
}

fn plan(headers: &HeaderMap) -> Option<Plan> {
    let number = |name| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    Some(Plan {
        current: number("current-concurrent-requests")?,
        maximum: number("maximum-concurrent-requests")?,
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    backoff::retry_after(
        |name| headers.get(name).and_then(|value| value.to_str().ok()),
        SystemTime::now(),
    )
}

async fn read(
    mut response: reqwest::Response,
    longest: usize,
    no_answer: impl Fn(reqwest::Error) -> ProviderError,
) -> Result<Vec<u8>, ProviderError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(&no_answer)? {
        if body.len() + chunk.len() > longest {
            return Err(ProviderError::Unavailable(Unavailable::new(
                UnavailableKind::TooLarge,
                format!("the answer has more than {longest} bytes"),
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The innermost error: the outer ones repeat the URL and say little.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
