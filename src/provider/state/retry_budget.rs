//! The retry budget: how many repetitions may be sent. Pure.
//!
//! The retries of one client are harmless; the retries of all clients can turn a slow provider into an outage. So
//! they are limited to a share of first tries, with a minimum for processes that send few requests. ("Retry budget":
//! Site Reliability Engineering, chapter 21.)

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::core::provider_state::{RETRY_WINDOW as WINDOW, Spent};

/// Repetitions that are always allowed within [`WINDOW`].
const FLOOR: u32 = 10;
/// Number of first tries that allow one repetition.
const FIRST_TRIES_A_RETRY: u32 = 10;

/// First tries and repetitions within the window, by second.
#[derive(Debug, Clone, Default)]
pub struct RetryBudget {
    seconds: VecDeque<Second>,
}

#[derive(Debug, Clone)]
struct Second {
    begins: Instant,
    first_tries: u32,
    retries: u32,
}

impl RetryBudget {
    /// Starts again with what all processes used lately, including this one, as if it were now.
    pub fn resume(&mut self, spent: Spent, now: Instant) {
        self.seconds.clear();
        let second = self.second(now);
        second.first_tries = second.first_tries.saturating_add(spent.first_tries);
        second.retries = second.retries.saturating_add(spent.retries);
    }

    /// Counts a first try.
    pub fn first_try(&mut self, now: Instant) {
        let second = self.second(now);
        second.first_tries = second.first_tries.saturating_add(1);
    }

    /// Takes a repetition from the budget, if one is left.
    pub fn take(&mut self, now: Instant) -> bool {
        let left = self.left(now) > 0;
        self.second(now).retries += u32::from(left);
        left
    }

    /// Repetitions left.
    pub fn left(&mut self, now: Instant) -> u32 {
        self.second(now);
        let sum = |tries: fn(&Second) -> u32| {
            let tries = self.seconds.iter().map(tries);
            tries.fold(0, u32::saturating_add)
        };
        let (first_tries, retries) = (sum(|s| s.first_tries), sum(|s| s.retries));
        FLOOR
            .max(first_tries / FIRST_TRIES_A_RETRY)
            .saturating_sub(retries)
    }

    fn second(&mut self, now: Instant) -> &mut Second {
        let is_past =
            |second: &Second, limit| now.saturating_duration_since(second.begins) >= limit;
        while self
            .seconds
            .front()
            .is_some_and(|oldest| is_past(oldest, WINDOW))
        {
            self.seconds.pop_front();
        }
        if self
            .seconds
            .back()
            .is_none_or(|newest| is_past(newest, Duration::from_secs(1)))
        {
            self.seconds.push_back(Second {
                begins: now,
                first_tries: 0,
                retries: 0,
            });
        }
        self.seconds.back_mut().expect("one was just made")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retry_budget_allows_ten_or_a_tenth_of_first_tries() {
        let (mut budget, now) = (RetryBudget::default(), Instant::now());
        let taken = |budget: &mut RetryBudget| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget), 10);
        for _ in 0..200 {
            budget.first_try(now);
        }
        assert_eq!(taken(&mut budget), 10, "20 in all");
        let later = now + WINDOW;
        assert!(budget.take(later), "what is long ago is forgotten");
    }

    #[test]
    fn retry_budget_includes_retries_of_other_passes() {
        let (mut budget, now) = (RetryBudget::default(), Instant::now());
        let spent = Spent {
            first_tries: 120,
            retries: 11,
        };
        budget.resume(spent, now);
        assert!(budget.take(now));
        assert!(!budget.take(now));
        assert!(budget.take(now + WINDOW));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_retry_budget(steps in prop::collection::vec((any::<bool>(), 0u64..100), 0..2000)) {
            let (mut budget, mut now) = (RetryBudget::default(), Instant::now());
            let (mut first_tries, mut retries) = (0u32, 0u32);
            for (retry, millis) in steps {
                now += Duration::from_millis(millis % 50);
                if retry {
                    retries += u32::from(budget.take(now));
                } else {
                    budget.first_try(now);
                    first_tries += 1;
                }
                prop_assert!(retries <= FLOOR.max(first_tries / FIRST_TRIES_A_RETRY));
            }
        }
    }
}
