//! The state of an account at the provider: what one process learned, and all other processes and later runs should
//! know.

use std::time::Duration;

/// The longest time that the circuit breaker stays open.
pub const MAX_OPEN: Duration = Duration::from_secs(5 * 60);
/// A longer `Retry-After` counts as this.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long a request counts for the retry budget.
pub const RETRY_WINDOW: Duration = Duration::from_secs(120);

/// Times are relative to now, because each process has its own clock.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProviderState {
    /// How often the circuit breaker has opened since the last answer; 0 if it is closed.
    pub opened: u32,
    /// How long it stays open. If this is zero and `opened` is not, a probe is due.
    pub open_for: Duration,
    /// How long the provider asked to wait.
    pub cooldown: Duration,
    /// The concurrency limit that was found last, if any.
    pub concurrency: Option<f64>,
}

/// What a process learned and others should know at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StateChange {
    /// The breaker opened or closed.
    Breaker(ProviderState),
    /// The provider asked for a pause. This does not change the circuit breaker, which another process may have
    /// opened meanwhile.
    Pause(ProviderState),
}

impl ProviderState {
    /// Whether requests must not be sent now.
    pub fn is_open(&self) -> bool {
        self.opened > 0 && !self.open_for.is_zero()
    }

    /// Whether one process may send a probe, to find out whether the provider works again.
    pub fn wants_probe(&self) -> bool {
        self.opened > 0 && self.open_for.is_zero()
    }
}

/// What other processes used within the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests that did not repeat an earlier one.
    pub first_tries: u32,
    /// Requests that repeated an earlier one.
    pub retries: u32,
}

impl Spent {
    /// From the counts in a ledger: all requests, and the retries among them.
    pub fn counted(requests: i64, retries: i64) -> Self {
        let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Self {
            first_tries: count(requests.saturating_sub(retries)),
            retries: count(retries),
        }
    }
}

/// The current limits of requests to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// The number of concurrent requests.
    pub limit: u32,
    /// Whether the circuit breaker is open, or a cooldown lasts.
    pub is_open: bool,
    /// Repetitions left in the retry budget.
    pub retries_left: u32,
}
