//! One request, its time limits and its repetitions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, trace};

use super::admission::{Admission, Outcome};
use super::classify::{class, outcome, plan, retry_after, worth_repeating};
use super::error::{ProviderError, read_error};
use super::state::backoff::{self, Cause};
use super::state::concurrency_limit::Plan;
use super::{LIST, Provider, REQUEST_TIMEOUT, RequestDeadline, SHORTEST_TIMEOUT};
use crate::core::lookup::{Unavailable, UnavailableKind};
use crate::telemetry::metrics::{Endpoint, ProviderMetrics};

/// How often a request that takes long checks whether other answers came meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Requests in flight may take this long after the pass was cancelled.
const GRACE: Duration = Duration::from_secs(20);
/// The maximum size of an answer in bytes, decompressed. 100 voices have about 200 kB. The limit protects against
/// gzip bombs.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The maximum size of an answer other than 200: errors of the API have about 200 bytes, a proxy's page a few kB.
pub(super) const MAX_ERROR_BYTES: usize = 64 * 1024;

/// What a request is for. This decides how long it may take, and what its failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It looks up a batch of voices.
    Batch,
    /// It looks up one voice.
    Single,
    /// It looks up voices of a batch that failed. It does not use the retry budget and is not repeated.
    Isolation,
    /// It looks up a voice that failed alone in an earlier pass. It is repeated once, outside the retry budget.
    Isolated,
    /// It names no voice, and shows whether the provider works.
    Liveness,
}

/// Which attempt of a request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    First,
    /// The previous attempt was given up.
    Second,
    /// It counts as a retry.
    Again,
}

/// Why an attempt brought no answer.
pub(super) enum Attempt {
    Refused(ProviderError),
    /// It was given up for a request that names no voice, because it is not known yet how long answers take.
    GivenUp,
}

impl Attempt {
    pub(super) fn error(self) -> ProviderError {
        match self {
            Self::Refused(error) => error,
            Self::GivenUp => {
                let says = format!("no answer within {} s", SHORTEST_TIMEOUT.as_secs());
                ProviderError::Unavailable(Unavailable::new(UnavailableKind::Timeout, says))
            }
        }
    }
}

impl Provider {
    /// Sends a GET and repeats it as [`backoff`] and the retry budget allow, until `deadline`. A voice may be the
    /// cause of a failure if any request was answered since this one started, or since another moment.
    pub(super) async fn get<T>(
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
            // Repetitions outside the budget do not count as retries.
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
            let error = match attempt {
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
                    Attempt::GivenUp.error()
                }
                Err(Attempt::Refused(error)) => {
                    self.attribute(error, begun, deadline, &place).await
                }
            };
            self.traffic.release(place);
            let Some((cause, retry_after)) = worth_repeating(&error) else {
                return Err(error);
            };
            let pause = backoff::pause(tried, cause, retry_after, fastrand::f64());
            let is_about_a_voice = matches!(error, ProviderError::Unanswerable(_));
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
                return Err(error);
            }
            debug!(
                tried,
                pause_ms = pause.as_millis() as u64,
                "repeating the request"
            );
        }
    }

    /// Decides whether a voice or the provider caused a failure: by whether any other request was answered since this
    /// one started.
    async fn attribute(
        &self,
        error: ProviderError,
        begun: Instant,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> ProviderError {
        match error {
            ProviderError::Unavailable(failure) if failure.kind.may_lie_in_a_voice() => {
                match self.works(begun, deadline, place).await {
                    Some(true) => {
                        if failure.kind == UnavailableKind::Timeout {
                            self.has_hung.store(true, Ordering::Relaxed);
                        }
                        return ProviderError::Unanswerable(failure);
                    }
                    Some(false) => self.traffic.learn(place, Outcome::Unavailable, None),
                    None => {}
                }
                ProviderError::Unavailable(failure)
            }
            ProviderError::NotFound
            | ProviderError::NoSuchEndpoint(_)
            | ProviderError::Unauthorized(..)
            | ProviderError::Forbidden(..)
            | ProviderError::Rejected(..)
            | ProviderError::Throttled { .. }
            | ProviderError::Unanswerable(_)
            | ProviderError::Unavailable(_) => error,
        }
    }

    /// Sends a GET once, with an admission. Returns what `read` makes of the body of a 200.
    pub(super) async fn try_once<T>(
        &self,
        path_and_query: &str,
        purpose: Purpose,
        deadline: RequestDeadline<'_>,
        which: Try,
        read: fn(&[u8]) -> serde_json::Result<T>,
        place: &Admission<'_>,
    ) -> Result<T, Attempt> {
        let left = match (self.key_refused(), deadline.left()) {
            (Some(_), _) => {
                return Err(Attempt::Refused(not_asked("the provider refused the key")));
            }
            (None, None) => return Err(Attempt::Refused(not_asked("no time left for a request"))),
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
            () = deadline.is_exhausted(GRACE) => (Err(not_asked("stopped by a signal")), None),
            is_timeout = self.takes_too_long(begun, purpose, which) => {
                given_up = !is_timeout;
                (Err(Attempt::GivenUp.error()), None)
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

    /// For a request that started before any answer and has the longest time limit: returns `true` if it has taken
    /// too long, measured by answers since then. If there was none, one request is given up in favour of one that
    /// shows how long answers take (`false`).
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

    /// Sends one request, which may take up to `limit`; answers are of use up to `left`. Also returns what the answer
    /// says about the plan.
    pub(super) async fn send<T>(
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
        // A request that this process cut short says nothing about the provider.
        let no_answer = |error: reqwest::Error| match error.is_timeout() && left < limit {
            true => ProviderError::Unavailable(Unavailable::new(
                UnavailableKind::NotAsked,
                "no time left to wait for the answer",
            )),
            false => self.no_answer(&error),
        };
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return (Err(error), None),
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
                Err(read_error(
                    status,
                    self.without_key(&body).as_bytes(),
                    retry_after,
                ))
            }
        };
        (answer, plan)
    }
}

/// Counts a request as in flight while the value exists.
pub(super) struct InFlight<'a>(&'a ProviderMetrics);

impl<'a> InFlight<'a> {
    pub(super) fn new(metrics: &'a ProviderMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

pub(super) async fn read(
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

/// The innermost error: the outer ones repeat the URL and add little.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

pub(super) fn not_asked(why: &str) -> ProviderError {
    ProviderError::Unavailable(Unavailable::new(UnavailableKind::NotAsked, why))
}
