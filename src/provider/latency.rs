//! How long answers took lately, and how long the next one may take. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// The number of answers that are stored. The longest of a hundred is their 99th percentile.
const KEPT: usize = 100;
/// The number of newest answers in the mean.
const NEWEST: usize = 8;
/// A request that takes this many times longer than the slowest recent answer is considered to hang.
const FACTOR: u32 = 10;

/// Latencies of the last answers.
#[derive(Debug, Default)]
pub(super) struct Latencies(VecDeque<Duration>);

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    /// The mean of the newest answers; `None` before the first.
    pub(super) fn mean(&self) -> Option<Duration> {
        let newest = self.0.iter().rev().take(NEWEST);
        let number = u32::try_from(newest.len()).ok().filter(|n| *n > 0)?;
        Some(newest.sum::<Duration>() / number)
    }

    /// How long a request may take; `None` before the first answer.
    pub(super) fn limit(&self, shortest: Duration, longest: Duration) -> Option<Duration> {
        let slowest = self.0.iter().max()?;
        Some(slowest.saturating_mul(FACTOR).clamp(shortest, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_limit_follows_the_slowest_of_the_last_100_answers() {
        let mut latencies = Latencies::default();
        let limit = |latencies: &Latencies| latencies.limit(2 * SECOND, 30 * SECOND);
        assert_eq!(limit(&latencies), None);
        latencies.add(SECOND / 20);
        assert_eq!(limit(&latencies), Some(2 * SECOND));
        latencies.add(SECOND / 2);
        assert_eq!(limit(&latencies), Some(5 * SECOND));
        latencies.add(4 * SECOND);
        assert_eq!(limit(&latencies), Some(30 * SECOND));
        for _ in 0..KEPT {
            latencies.add(SECOND / 20);
        }
        assert_eq!(limit(&latencies), Some(2 * SECOND));
    }

    #[test]
    fn mean_latency_covers_only_the_newest_answers() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.mean(), None);
        latencies.add(SECOND);
        assert_eq!(latencies.mean(), Some(SECOND));
        for _ in 0..NEWEST {
            latencies.add(2 * SECOND);
        }
        assert_eq!(latencies.mean(), Some(2 * SECOND));
    }
}
