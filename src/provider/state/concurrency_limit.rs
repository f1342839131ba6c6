//! How many concurrent requests the provider can take. Pure.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, 1989), between one and what the user allows, and never
//! above what the plan leaves after the application's own use.

/// What each answer without an error adds: ten of them allow one more concurrent request, whichever process received
/// them, because a process of cron may have only a few each.
const GROWTH: f64 = 0.1;
/// Ten times 0.1 is a little less than one in floating point.
const ROUNDING: f64 = 1e-6;
/// A timeout or a 5xx reduces the limit to this share.
const EASED: f64 = 0.9;

/// The adaptive concurrency limit.
#[derive(Debug, Clone, PartialEq)]
pub struct ConcurrencyLimit {
    now: f64,
    /// The maximum that the user allows.
    most: u32,
    /// What the plan leaves, once the provider has said so.
    left_by_plan: Option<u32>,
    /// Whether it started below the maximum.
    was_low: bool,
    /// Requests started so far, and how many of them when it was last halved: answers to those that were started
    /// before carry no new information.
    begun: u64,
    halved_at: u64,
}

/// The number of a request in the order in which requests were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Begun(u64);

/// What the headers of an answer say about the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// `current-concurrent-requests`: of all users of the key.
    pub current: u32,
    /// `maximum-concurrent-requests`.
    pub maximum: u32,
}

impl ConcurrencyLimit {
    /// Starts with the value of an earlier process, or at the maximum.
    pub fn new(most: u32, adapted: Option<f64>) -> Self {
        let most = most.max(1);
        let now = adapted
            .filter(|limit| limit.is_finite())
            .unwrap_or(f64::from(most))
            .clamp(1.0, f64::from(most));
        Self {
            now,
            most,
            left_by_plan: None,
            was_low: now < f64::from(most),
            begun: 0,
            halved_at: 0,
        }
    }

    /// The current number of concurrent requests, at least one.
    pub fn get(&self) -> u32 {
        let adapted = (self.now + ROUNDING) as u32;
        adapted.min(self.left_by_plan.unwrap_or(u32::MAX)).max(1)
    }

    /// The adapted limit, stored for the next process; `None` if it was always at the maximum: a process with a low
    /// maximum learned nothing about how much the provider can take.
    pub fn adapted(&self) -> Option<f64> {
        (self.was_low || self.now < f64::from(self.most)).then_some(self.now)
    }

    /// Counts a request that starts.
    pub fn begin(&mut self) -> Begun {
        self.begun += 1;
        Begun(self.begun)
    }

    /// An answer without an error.
    pub fn clean(&mut self) {
        self.now = (self.now + GROWTH).min(f64::from(self.most));
    }

    /// A timeout or a 5xx.
    pub fn ease(&mut self) {
        self.now = (self.now * EASED).max(1.0);
    }

    /// `too_many_concurrent_requests`. Requests that were started together are refused together, so the limit is
    /// halved once for all of them.
    pub fn halve(&mut self, begun: Begun) {
        if begun.0 > self.halved_at {
            self.halved_at = self.begun;
            self.now = (self.now / 2.0).max(1.0);
        }
    }

    /// Applies what the plan leaves after the use by others, with one request reserved for the application. `ours`
    /// are the requests in flight of this process.
    pub fn apply_plan(&mut self, plan: Plan, ours: u32) {
        let others = plan.current.saturating_sub(ours);
        let left = plan.maximum.saturating_sub(others).saturating_sub(1);
        self.left_by_plan = Some(left.max(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn concurrency_limit_halves_once_for_simultaneous_requests() {
        let mut limit = ConcurrencyLimit::new(16, None);
        let together: Vec<Begun> = (0..16).map(|_| limit.begin()).collect();
        for begun in together {
            limit.halve(begun);
        }
        assert_eq!(limit.get(), 8);
        let next = limit.begin();
        limit.halve(next);
        assert_eq!(limit.get(), 4);
    }

    #[test]
    fn concurrency_limit_drops_on_errors_and_recovers_on_success() {
        let mut limit = ConcurrencyLimit::new(10, None);
        limit.ease();
        assert_eq!(limit.get(), 9);
        for _ in 0..9 {
            limit.clean();
        }
        limit.ease();
        assert_eq!(limit.get(), 8, "nine clean answers are not ten");
        for _ in 0..100 {
            limit.clean();
        }
        assert_eq!(limit.get(), 10, "and no more than the user allows");
    }

    #[test]
    fn concurrency_limit_leaves_one_request_for_the_application() {
        let mut limit = ConcurrencyLimit::new(10, None);
        limit.apply_plan(
            Plan {
                current: 4,
                maximum: 5,
            },
            4,
        );
        assert_eq!(limit.get(), 4);
        limit.apply_plan(
            Plan {
                current: 6,
                maximum: 10,
            },
            4,
        );
        assert_eq!(limit.get(), 7, "two are others'");
        limit.apply_plan(
            Plan {
                current: 100,
                maximum: 5,
            },
            1,
        );
        assert_eq!(limit.get(), 1, "one is always tried");
        limit.apply_plan(
            Plan {
                current: 0,
                maximum: 100,
            },
            3,
        );
        assert_eq!(limit.get(), 10);
    }

    #[test]
    fn concurrency_limit_resumes_from_the_stored_value() {
        assert_eq!(ConcurrencyLimit::new(10, Some(3.7)).get(), 3);
        let mut kept = Some(2.0);
        for _ in 0..5 {
            let mut limit = ConcurrencyLimit::new(4, kept);
            limit.clean();
            limit.clean();
            kept = limit.adapted();
        }
        assert_eq!(ConcurrencyLimit::new(4, kept).get(), 3);
        assert_eq!(ConcurrencyLimit::new(2, Some(30.0)).get(), 2);
        assert_eq!(ConcurrencyLimit::new(4, Some(f64::NAN)).get(), 4);
        assert_eq!(ConcurrencyLimit::new(4, Some(-1.0)).get(), 1);

        let mut little = ConcurrencyLimit::new(1, Some(8.0));
        little.clean();
        assert_eq!(
            little.adapted(),
            None,
            "what it was not allowed it cannot know"
        );
        let mut recovering = ConcurrencyLimit::new(2, Some(1.9));
        recovering.clean();
        assert_eq!(recovering.adapted(), Some(2.0));
    }

    proptest! {
        #[test]
        fn concurrency_limit_stays_between_one_and_the_maximum(most in 1u32..1000, steps in prop::collection::vec((0u8..4, any::<u32>(), any::<u32>()), 0..300)) {
            let mut limit = ConcurrencyLimit::new(most, None);
            for (step, current, maximum) in steps {
                let begun = limit.begin();
                match step {
                    0 => limit.clean(),
                    1 => limit.ease(),
                    2 => limit.halve(begun),
                    _ => limit.apply_plan(Plan { current, maximum }, 1),
                }
                prop_assert!((1..=most).contains(&limit.get()));
            }
        }
    }
}
