//! Talking to ElevenLabs: one request, its limits and its repetition. What a voice needs asking for
//! is decided in [`lookup`].

mod base_url;
mod checkup;
pub mod error;
pub mod lookup;
mod patience;
mod traffic;
pub mod wire;

use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tracing::{debug, trace};
use uuid::{Uuid, uuid};

pub use base_url::BaseUrl;
use error::{Refusal, Trouble, TroubleKind, refusal};
pub use patience::Patience;
use traffic::{Outcome, Traffic};

use crate::budget::Spent;
use crate::limit::Plan;
use crate::meters::{Class, Endpoint, ProviderMeters};
use crate::retry::{self, Cause};
use crate::standing::{News, Standing};

/// Where many voices are asked about at once.
const LIST: &str = "/v2/voices";
/// Time for DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one request, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer is thought to take before there was one.
const FIRST_GUESS: Duration = Duration::from_millis(300);
/// Requests under way that are waited for when told to stop.
const GRACE: Duration = Duration::from_secs(20);
/// Most bytes of an answer, decompressed: 100 voices have some 200 kB, and a gzip bomb has more.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Repeated where that may help; trouble counts against the provider.
    Usual,
    /// Once, to find out which voice a request fails on; trouble is expected, and does not count.
    Suspecting,
}

/// The provider, as one key sees it.
pub struct Provider {
    base: BaseUrl,
    key: HeaderValue,
    client: OnceLock<Client>,
    concurrency: NonZeroU32,
    traffic: Traffic,
    /// One voice is asked about at a time while it is not known whether the provider answers.
    probing: tokio::sync::Mutex<()>,
    requests: AtomicU64,
    retries: AtomicU64,
    /// Of answers with a 200, smoothed; 0 before the first.
    latency_us: AtomicU64,
    list_is_gone: AtomicBool,
    list_answered: AtomicBool,
    list_rejections: AtomicU32,
    key_refused: OnceLock<String>,
    meters: ProviderMeters,
}

/// How hard the provider may be pressed just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Requests that may be under way.
    pub limit: u32,
    /// Whether the breaker is open, or a pause was asked for.
    pub is_open: bool,
    /// Repetitions that the budget has left.
    pub retries_left: u32,
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
            probing: tokio::sync::Mutex::default(),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            list_is_gone: AtomicBool::new(false),
            list_answered: AtomicBool::new(false),
            list_rejections: AtomicU32::new(0),
            key_refused: OnceLock::new(),
            meters: ProviderMeters::default(),
        })
    }

    /// Counts its requests in these meters.
    #[must_use]
    pub fn counting_in(self, meters: ProviderMeters) -> Self {
        Self { meters, ..self }
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

    /// How long an answer takes, smoothed over those that came; a guess before the first.
    pub fn latency(&self) -> Duration {
        match self.latency_us.load(Ordering::Relaxed) {
            0 => FIRST_GUESS,
            latency => Duration::from_micros(latency),
        }
    }

    fn took(&self, latency: Duration) {
        let latency = u64::try_from(latency.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        let before = self.latency_us.load(Ordering::Relaxed);
        let smoothed = match before {
            0 => latency,
            before => before - before / 8 + latency / 8,
        };
        self.latency_us.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// Whether anything was answered with a 200: then the key is not refused as such.
    fn was_answered(&self) -> bool {
        self.latency_us.load(Ordering::Relaxed) > 0
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

    /// Whether it turned out that there is no list at this base URL.
    pub fn has_no_list(&self) -> bool {
        self.list_is_gone.load(Ordering::Relaxed)
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
    pub fn resume(&self, standing: Standing) {
        self.traffic.resume(self.concurrency.get(), standing);
    }

    /// What other processes should know of this account.
    pub fn standing(&self) -> Standing {
        self.traffic.standing()
    }

    /// Counts what other processes spent of the retry budget.
    pub fn resume_budget(&self, spent: Spent) {
        self.traffic.resume_budget(spent);
    }

    /// Waits until there is something that other processes should know at once.
    pub async fn has_news(&self) {
        self.traffic.has_news().await;
    }

    /// What is new since the last call.
    pub fn take_news(&self) -> Option<News> {
        self.traffic.take_news()
    }

    /// Heeds what another process learned meanwhile. Returns whether nobody should ask for now.
    pub fn heed(&self, standing: Standing) -> bool {
        self.traffic.heed(standing);
        self.is_down()
    }

    /// Learns from the end of a pass that asked about all it wanted to: one without a single answer
    /// is an outage, however short.
    pub fn passed(&self) {
        self.traffic.passed();
    }

    /// Sends a GET and repeats it as [`retry`] and the retry budget allow, within `patience`.
    /// Returns the body of a 200.
    async fn get(
        &self,
        path_and_query: &str,
        sending: Sending,
        patience: Patience<'_>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut tried = 0;
        loop {
            tried += 1;
            let refusal = match self
                .try_once(path_and_query, sending, patience, tried > 1)
                .await
            {
                Ok(body) => return Ok(body),
                Err(refusal) => refusal,
            };
            let Some((cause, told)) = worth_repeating(&refusal) else {
                return Err(refusal);
            };
            let pause = retry::pause(tried, cause, told, fastrand::f64());
            if cause == Cause::Throttled || told.is_some() {
                self.traffic.hold_for(told.unwrap_or(pause));
            }
            let again = sending == Sending::Usual
                && tried < retry::MAX_TRIES
                && self.traffic.may_retry()
                && patience.sleep_until(Instant::now() + pause).await;
            if !again {
                return Err(refusal);
            }
            debug!(tried, pause_ms = pause.as_millis() as u64, "asking again");
        }
    }

    async fn try_once(
        &self,
        path_and_query: &str,
        sending: Sending,
        patience: Patience<'_>,
        again: bool,
    ) -> Result<Vec<u8>, Refusal> {
        let not_asked = |why: &str| Refusal::Unavailable(Trouble::new(TroubleKind::NotAsked, why));
        let admission = self
            .traffic
            .admit(patience, again)
            .await
            .map_err(not_asked)?;
        let (answer, plan) = match (self.key_refused(), patience.left()) {
            (Some(_), _) => (Err(not_asked("the key was refused")), None),
            (None, None) => (Err(not_asked("no time left to ask")), None),
            (None, Some(left)) => {
                let begun = Instant::now();
                let _in_flight = InFlight::new(&self.meters);
                let sending = self.send(path_and_query, left.min(REQUEST_TIMEOUT), again);
                let answered = tokio::select! {
                    sent = sending => sent,
                    () = patience.is_exhausted(GRACE) => (Err(not_asked("told to stop")), None),
                };
                let endpoint = match path_and_query.starts_with(LIST) {
                    true => Endpoint::List,
                    false => Endpoint::Single,
                };
                self.meters
                    .ended(endpoint, class(&answered.0), begun.elapsed());
                answered
            }
        };
        let outcome = match (outcome(&answer), sending) {
            (Outcome::Trouble, Sending::Suspecting) => Outcome::Abandoned,
            (outcome, Sending::Usual | Sending::Suspecting) => outcome,
        };
        self.traffic.settle(admission, outcome, plan);
        answer
    }

    /// Sends one request. What the answer tells of the plan comes with it.
    async fn send(
        &self,
        path_and_query: &str,
        limit: Duration,
        again: bool,
    ) -> (Result<Vec<u8>, Refusal>, Option<Plan>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if again {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        // An answer that we had no time for says nothing about the provider.
        let no_answer = |error: reqwest::Error| match error.is_timeout() && limit < REQUEST_TIMEOUT
        {
            true => Refusal::Unavailable(Trouble::new(
                TroubleKind::NotAsked,
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
            .timeout(limit);
        let begun = Instant::now();
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return (Err(no_answer(error)), None),
        };
        let status = response.status().as_u16();
        let told = told_to_wait(response.headers());
        let plan = plan(response.headers());
        let body = read(response, no_answer).await;
        trace!(status, path = path_and_query, "answered");
        let answer = match status {
            200 => body.inspect(|_| self.took(begun.elapsed())),
            status => {
                let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
                Err(refusal(status, self.without_key(&body).as_bytes(), told))
            }
        };
        (answer, plan)
    }

    fn no_answer(&self, error: &reqwest::Error) -> Refusal {
        let kind = if error.is_timeout() {
            TroubleKind::Timeout
        } else if error.is_connect() {
            TroubleKind::Connect
        } else {
            TroubleKind::Broken
        };
        let detail = format!("{}: {}", self.base, root_cause(error));
        Refusal::Unavailable(Trouble::new(kind, detail))
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
}

/// Whether asking again may help, from which cause, and what the provider says about when.
fn worth_repeating(refusal: &Refusal) -> Option<(Cause, Option<Duration>)> {
    match refusal {
        Refusal::Throttled { told, .. } => Some((Cause::Throttled, *told)),
        Refusal::Unavailable(trouble) => match trouble.kind {
            TroubleKind::Connect
            | TroubleKind::Timeout
            | TroubleKind::Broken
            | TroubleKind::Internal
            | TroubleKind::Status
            | TroubleKind::Throttled => Some((Cause::Trouble, trouble.told)),
            TroubleKind::NotAsked | TroubleKind::TooLarge | TroubleKind::Unreadable => None,
        },
        Refusal::NotFound
        | Refusal::NoSuchEndpoint(_)
        | Refusal::Unauthorized(..)
        | Refusal::Forbidden(..)
        | Refusal::Rejected(..) => None,
    }
}

/// Counts a request as under way for as long as it lives.
struct InFlight<'a>(&'a ProviderMeters);

impl<'a> InFlight<'a> {
    fn new(meters: &'a ProviderMeters) -> Self {
        meters.in_flight.inc();
        Self(meters)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

fn class(answer: &Result<Vec<u8>, Refusal>) -> Class {
    match answer {
        Ok(_) => Class::Ok,
        Err(Refusal::NotFound | Refusal::NoSuchEndpoint(_)) => Class::NotFound,
        Err(Refusal::Unauthorized(..) | Refusal::Forbidden(..)) => Class::Refused,
        Err(Refusal::Rejected(..)) => Class::Rejected,
        Err(Refusal::Throttled { .. }) => Class::Throttled,
        Err(Refusal::Unavailable(trouble)) => match trouble.kind {
            TroubleKind::Connect => Class::Connect,
            TroubleKind::Timeout => Class::Timeout,
            TroubleKind::Broken | TroubleKind::TooLarge | TroubleKind::Unreadable => Class::Broken,
            TroubleKind::Internal | TroubleKind::Status => Class::ServerError,
            TroubleKind::Throttled => Class::Throttled,
            TroubleKind::NotAsked => Class::Abandoned,
        },
    }
}

fn outcome(answer: &Result<Vec<u8>, Refusal>) -> Outcome {
    match answer {
        Ok(_)
        | Err(
            Refusal::NotFound
            | Refusal::NoSuchEndpoint(_)
            | Refusal::Unauthorized(..)
            | Refusal::Forbidden(..)
            | Refusal::Rejected(..),
        ) => Outcome::Answered,
        Err(Refusal::Throttled { code, .. }) if code == "too_many_concurrent_requests" => {
            Outcome::TooMany
        }
        Err(Refusal::Throttled { .. }) => Outcome::Busy,
        Err(Refusal::Unavailable(trouble)) => match trouble.kind {
            TroubleKind::NotAsked => Outcome::Abandoned,
            TroubleKind::TooLarge | TroubleKind::Unreadable => Outcome::Answered,
            TroubleKind::Connect
            | TroubleKind::Timeout
            | TroubleKind::Broken
            | TroubleKind::Internal
            | TroubleKind::Status
            | TroubleKind::Throttled => Outcome::Trouble,
        },
    }
}

fn plan(headers: &HeaderMap) -> Option<Plan> {
    let number = |name| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    Some(Plan {
        current: number("current-concurrent-requests")?,
        maximum: number("maximum-concurrent-requests")?,
    })
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

/// The innermost error: the outer ones repeat the URL and say little.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
