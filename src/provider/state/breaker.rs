//! The circuit breaker: when to stop requests to a provider that fails, and when to try again. Pure: the current time
//! is an argument.
//!
//! It works as in Nygard's "Release It!": closed while answers come, open while they do not. After a pause, one
//! half-open probe decides.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::core::backoff::exponential;
use crate::core::provider_state::MAX_OPEN;

/// This many failures in a row open it.
const IN_A_ROW: u32 = 5;
/// Half of at least this many tries within [`WINDOW`] open it too.
const AT_LEAST: usize = 10;
const WINDOW: Duration = Duration::from_secs(30);
/// The first pause. It doubles with each probe that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(15);

/// Counts the results of tries, and says when there were too many failures.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// How often it has opened since the last answer; 0 is closed.
    opened: u32,
    failures_in_a_row: u32,
    /// Whether there was any answer.
    was_answered: bool,
    /// Tries within the window: when, and whether they failed.
    recent: VecDeque<(Instant, bool)>,
}

impl Breaker {
    /// A breaker that had already opened this often before this process started.
    pub fn resumed(opened: u32) -> Self {
        Self {
            opened,
            ..Self::default()
        }
    }

    /// How often it has opened since the last answer; 0 if it is closed.
    pub fn opened(&self) -> u32 {
        self.opened
    }

    /// Counts an answer of any content. Returns whether this closed the breaker.
    pub fn answered(&mut self, now: Instant) -> bool {
        self.failures_in_a_row = 0;
        self.was_answered = true;
        self.note(now, false);
        let probing = self.opened > 0;
        if probing {
            self.recent.clear();
        }
        self.opened = 0;
        probing
    }

    /// Counts a failure. Returns the pause if this opened the breaker. A probe that fails opens it again at once.
    pub fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.note(now, true);
        let failures = self.recent.iter().filter(|(_, failed)| *failed).count();
        let too_many = self.failures_in_a_row >= IN_A_ROW
            || (self.recent.len() >= AT_LEAST && failures * 2 >= self.recent.len());
        (self.opened > 0 || too_many).then(|| self.open())
    }

    /// Counts the end of a pass. If all its requests failed, however few, this opens the breaker: each process of
    /// cron starts to count at zero, and one with few requests would never reach five failures in a row. Returns the
    /// pause.
    pub fn passed(&mut self) -> Option<Duration> {
        let only_failed = self.failures_in_a_row > 0 && !self.was_answered;
        (self.opened == 0 && only_failed).then(|| self.open())
    }

    /// Opens it for a reason other than counted failures. Returns the pause.
    pub fn trip(&mut self) -> Duration {
        self.open()
    }

    fn open(&mut self) -> Duration {
        self.opened = self.opened.saturating_add(1);
        self.failures_in_a_row = 0;
        self.recent.clear();
        pause(self.opened)
    }

    fn note(&mut self, now: Instant, failed: bool) {
        self.recent.push_back((now, failed));
        while let Some((then, _)) = self.recent.front()
            && now.saturating_duration_since(*then) > WINDOW
        {
            self.recent.pop_front();
        }
    }
}

fn pause(opened: u32) -> Duration {
    exponential(FIRST_PAUSE, opened, MAX_OPEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn breaker_opens_after_five_failures_in_a_row() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert_eq!(breaker.failed(now), None);
        }
        assert!(!breaker.answered(now), "it was not open");
        for _ in 0..4 {
            assert_eq!(breaker.failed(now), None);
        }
        assert_eq!(breaker.failed(now), Some(FIRST_PAUSE));
        assert_eq!(breaker.opened(), 1);
    }

    #[test]
    fn breaker_opens_if_half_of_ten_requests_fail_in_the_window() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            breaker.answered(now);
            assert_eq!(breaker.failed(now), None);
        }
        breaker.answered(now);
        assert_eq!(breaker.failed(now), Some(FIRST_PAUSE));

        let (mut breaker, mut now) = (Breaker::default(), now);
        for _ in 0..100 {
            now += Duration::from_secs(16);
            breaker.answered(now);
            assert_eq!(breaker.failed(now), None, "too far apart");
        }
    }

    #[test]
    fn breaker_opens_after_a_pass_without_an_answer() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.passed(), None, "it sent no request");
        assert_eq!(breaker.failed(now), None);
        assert_eq!(breaker.passed(), Some(FIRST_PAUSE));
        assert_eq!(breaker.passed(), None, "it is open");

        let mut breaker = Breaker::default();
        breaker.answered(now);
        assert_eq!(breaker.failed(now), None);
        assert_eq!(breaker.passed(), None, "something was answered");
    }

    #[test]
    fn breaker_pause_doubles_up_to_5_min_and_an_answer_closes_it() {
        let (mut breaker, now) = (Breaker::resumed(1), Instant::now());
        let pauses: Vec<_> = (0..6)
            .map(|_| breaker.failed(now).expect("a probe that fails").as_secs())
            .collect();
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        assert!(breaker.answered(now), "closed");
        assert_eq!(breaker.opened(), 0);
        assert_eq!(breaker.failed(now), None);
        assert_eq!(pause(u32::MAX), MAX_OPEN);
    }

    proptest! {
        /// The breaker never opens while fewer than half of the requests fail and no five fail in a row.
        #[test]
        fn breaker_stays_closed_while_most_requests_are_answered(pattern in prop::collection::vec(any::<bool>(), 0..200)) {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let mut failures = 0usize;
            for (number, failed) in pattern.into_iter().enumerate() {
                now += Duration::from_millis(10);
                if failed && (failures + 1) * 2 < number + 1 {
                    failures += 1;
                    prop_assert_eq!(breaker.failed(now), None);
                    breaker.answered(now);
                } else {
                    breaker.answered(now);
                }
            }
        }
    }
}
