//! How many scheduled requests all processes with one key may send. Pure.
//!
//! A request counts after it was sent: the next one may be sent when the budget has room for it again. So an idle
//! daemon never waits, unused budget is not saved up, and a lookup that takes several requests delays the ones after
//! it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A turn that took more requests than it has room for, for example to isolate bad voices, delays other lookups for
/// at most this time, or for the time of one request. If the budget has room again within this time, a hint does not
/// wait: its request counts all the same.
const MAX_DEBT: Duration = Duration::from_secs(10);
/// The time that one request takes of the smallest and of the largest budget.
const LONGEST: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time that the budget can be used up, however low the concurrency limit is.
pub const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Average requests per time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestBudget {
    /// The time that one request takes of the budget.
    spacing: Duration,
}

/// The text is not a request budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "use a number of requests and a unit of time, such as 60/min, 2/s or 600/h, from 1/min to 1000/s"
)]
pub struct InvalidRequestBudget;

/// What a pass used of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spending {
    pub budget: RequestBudget,
    /// How long the budget is used up, from the start of the pass.
    pub taken: Duration,
    /// Voices that fit in one request.
    pub voices_a_request: usize,
}

impl RequestBudget {
    /// A budget of one request in this time.
    pub fn one_in(spacing: Duration) -> Self {
        let spacing = spacing.clamp(SHORTEST, LONGEST);
        Self { spacing }
    }

    /// The time for one request.
    pub fn spacing(self) -> Duration {
        self.spacing
    }

    /// How long the budget is used up after these requests. `pressure` is how much lower the concurrency limit is
    /// than configured, from 1.
    pub fn taken_by(self, requests: u64, pressure: f64) -> Duration {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        let most = MAX_DEBT.max(self.spacing);
        let taken = self.spacing.saturating_mul(requests).min(most);
        taken.mul_f64(pressure.clamp(1.0, 1e6)).min(MAX_PAUSE)
    }

    /// The time that it needs to look this many voices up once.
    pub fn round(self, voices: u64, voices_a_request: u64) -> Duration {
        self.spacing.mul_f64(requests(voices, voices_a_request))
    }

    /// The smallest whole number of requests per minute that looks each of these voices up once in this time.
    pub fn enough_for(voices: u64, voices_a_request: u64, time: Duration) -> u64 {
        let minutes = time.as_secs_f64() / 60.0;
        ((requests(voices, voices_a_request) / minutes).ceil() as u64).max(1)
    }

    /// Whether one more request may be sent for a hint while the budget is used up for this long.
    pub fn bears_a_hint(self, no_room_for: Duration) -> bool {
        no_room_for <= MAX_DEBT.max(self.spacing)
    }

    /// The number of requests that a daemon must send at once, with a turn this often, to use all of the budget.
    pub fn requests_in(self, turn: Duration) -> usize {
        let requests = turn.as_secs_f64() / self.spacing.as_secs_f64();
        (requests.ceil() as usize).max(1)
    }
}

/// The number of requests that look this many voices up once.
fn requests(voices: u64, voices_a_request: u64) -> f64 {
    voices.div_ceil(voices_a_request.max(1)) as f64
}

impl fmt::Display for RequestBudget {
    /// Requests per second, minute or hour: the smallest unit that gives a whole number, else per hour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |unit: f64| unit / self.spacing.as_secs_f64();
        let is_whole = |number: f64| (number - number.round()).abs() < 1e-4 * number;
        match (number(60.0), number(60.0 * 60.0)) {
            (minute, _) if is_whole(minute) => write!(f, "{minute:.0}/min"),
            (_, hour) => write!(f, "{hour:.0}/h"),
        }
    }
}

impl FromStr for RequestBudget {
    type Err = InvalidRequestBudget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = text.split_once('/').ok_or(InvalidRequestBudget)?;
        let unit = match unit.trim() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 60 * 60,
            _ => return Err(InvalidRequestBudget),
        };
        let number: u32 = number.trim().parse().map_err(|_| InvalidRequestBudget)?;
        let spacing = Duration::from_secs(unit).checked_div(number);
        let spacing = spacing.filter(|spacing| (SHORTEST..=LONGEST).contains(spacing));
        spacing
            .map(|spacing| Self { spacing })
            .ok_or(InvalidRequestBudget)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_a_request_budget_and_rejects_invalid_ones() {
        let spacing = |text: &str| text.parse::<RequestBudget>().map(|budget| budget.spacing);
        for (text, seconds) in [
            ("60/min", 1.0),
            ("2/s", 0.5),
            ("120/minute", 0.5),
            ("60/h", 60.0),
            (" 600 / hour", 6.0),
            ("1000/s", 0.001),
        ] {
            assert_eq!(
                spacing(text),
                Ok(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
        for text in [
            "", "60", "0/min", "-1/min", "1.5/s", "60/day", "1001/s", "60/", "/s", "59/h",
        ] {
            assert_eq!(spacing(text), Err(InvalidRequestBudget), "{text}");
        }
    }

    #[test]
    fn pressure_slows_the_request_budget_and_debt_is_bounded() {
        let budget: RequestBudget = "60/min".parse().expect("a budget");
        assert_eq!(budget.taken_by(0, 1.0), Duration::ZERO);
        assert_eq!(budget.taken_by(3, 1.0), Duration::from_secs(3));
        assert_eq!(budget.taken_by(1, 4.0), Duration::from_secs(4));
        assert_eq!(budget.taken_by(u64::MAX, 1.0), MAX_DEBT);
        assert_eq!(budget.taken_by(u64::MAX, f64::MAX), MAX_PAUSE);
        let small: RequestBudget = "1/min".parse().expect("a budget");
        assert_eq!(small.taken_by(9, 1.0), Duration::from_secs(60));
        let second = Duration::from_secs(1);
        assert_eq!(budget.requests_in(second / 10), 1);
        for (no_room_for, bears) in [(0, true), (10, true), (11, false)] {
            assert_eq!(budget.bears_a_hint(Duration::from_secs(no_room_for)), bears);
        }
        assert!(small.bears_a_hint(small.taken_by(1, 1.0)));
        assert!(!small.bears_a_hint(2 * small.taken_by(1, 1.0)));
        let large: RequestBudget = "100/s".parse().expect("a budget");
        assert_eq!(large.requests_in(second / 10), 10);
    }

    #[test]
    fn request_budget_round_trips_through_text() {
        for text in [
            "60/min",
            "1/min",
            "600/min",
            "7/min",
            "60000/min",
            "90/h",
            "100/h",
        ] {
            assert_eq!(
                text.parse::<RequestBudget>().map(|b| b.to_string()),
                Ok(text.to_owned())
            );
        }
        let budget: RequestBudget = "2/s".parse().expect("a budget");
        assert_eq!(budget.to_string(), "120/min");
        assert_eq!(RequestBudget::one_in(budget.spacing()), budget);
    }

    #[test]
    fn a_larger_backlog_needs_a_larger_budget() {
        let five_minutes = Duration::from_secs(300);
        for (voices, enough) in [(0, 1), (500, 1), (501, 2), (30_000, 60), (100_000, 200)] {
            assert_eq!(RequestBudget::enough_for(voices, 100, five_minutes), enough);
            let budget: RequestBudget = format!("{enough}/min").parse().expect("a budget");
            assert!(budget.round(voices, 100) <= five_minutes, "{voices}");
        }
        assert_eq!(RequestBudget::enough_for(50, 1, five_minutes), 10);
    }

    proptest! {
        /// At any sequence of waits, sequential requests exceed the budget by at most one.
        #[test]
        fn sequential_requests_never_exceed_the_request_budget(number in 1u32..10_000, waits in prop::collection::vec(0u64..5_000, 0..200)) {
            let budget: RequestBudget = format!("{number}/min").parse().expect("a budget");
            let (mut now, mut free_at, mut sent) = (Duration::ZERO, Duration::ZERO, 0u64);
            for wait in waits {
                now = free_at.max(now + Duration::from_millis(wait));
                sent += 1;
                free_at = now + budget.taken_by(1, 1.0);
                let allowed = now.as_secs_f64() * f64::from(number) / 60.0 + 1.0;
                prop_assert!(sent as f64 <= allowed * (1.0 + 1e-6));
            }
        }
    }
}
