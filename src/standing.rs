//! How an account stands with the provider: what one process learns the hard way and all others,
//! and the next run of cron, should know.

use std::time::Duration;

/// Times are spans from now, since every process has a clock of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Standing {
    /// How often the breaker opened without an answer since; 0 if it is closed.
    pub opened: u32,
    /// How long it stays open; zero and `opened`: somebody should probe.
    pub open_for: Duration,
    /// How long the provider asked not to be asked.
    pub hold_for: Duration,
    /// The concurrency that the provider bore last, where that was found out.
    pub concurrency: Option<f64>,
}

/// What a process learned, and others should know at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum News {
    /// The breaker opened or closed.
    Breaker(Standing),
    /// The provider asked for a pause. Of the breaker this says nothing: another process may have
    /// opened it meanwhile.
    Pause(Standing),
}

impl Standing {
    /// Whether nobody may ask now.
    pub fn is_open(&self) -> bool {
        self.opened > 0 && !self.open_for.is_zero()
    }

    /// Whether one process may ask, to find out whether the provider answers again.
    pub fn wants_probe(&self) -> bool {
        self.opened > 0 && self.open_for.is_zero()
    }
}
