//! How an account stands with the provider: what one process learns the hard way and all others,
//! and the next run of cron, should know.

use std::time::Duration;

/// The circuit breaker stays open for no longer.
pub const MAX_OPEN: Duration = Duration::from_secs(5 * 60);
/// A `Retry-After` that is longer counts as this.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long a request counts for the retry budget.
pub const RETRY_WINDOW: Duration = Duration::from_secs(120);

/// Times are spans from now, since every process has a clock of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProviderState {
    /// How often the breaker opened without an answer since; 0 if it is closed.
    pub opened: u32,
    /// How long it stays open; zero and `opened`: somebody should probe.
    pub open_for: Duration,
    /// How long the provider asked not to be asked.
    pub cooldown: Duration,
    /// The concurrency that the provider bore last, where that was found out.
    pub concurrency: Option<f64>,
}

/// What a process learned, and others should know at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StateChange {
    /// The breaker opened or closed.
    Breaker(ProviderState),
    /// The provider asked for a pause. Of the breaker this says nothing: another process may have
    /// opened it meanwhile.
    Pause(ProviderState),
}

impl ProviderState {
    /// Whether nobody may ask now.
    pub fn is_open(&self) -> bool {
        self.opened > 0 && !self.open_for.is_zero()
    }

    /// Whether one process may ask, to find out whether the provider answers again.
    pub fn wants_probe(&self) -> bool {
        self.opened > 0 && self.open_for.is_zero()
    }
}

/// What other processes spent within the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests that did not repeat an earlier one.
    pub first_tries: u32,
    /// Requests that did.
    pub retries: u32,
}

impl Spent {
    /// From what a ledger counts: requests in all, and those of them that were retries.
    pub fn counted(requests: i64, retries: i64) -> Self {
        let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
        Self {
            first_tries: count(requests.saturating_sub(retries)),
            retries: count(retries),
        }
    }
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
