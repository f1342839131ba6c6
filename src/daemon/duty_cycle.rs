//! Limits how often work runs that costs the database more the more voices there are. Pure: the current time is an
//! argument.

use std::time::{Duration, Instant};

/// Work that may take at most a part of the time.
#[derive(Debug)]
pub(super) struct DutyCycle {
    part: u32,
    not_before: Option<Instant>,
    done_at: Option<Instant>,
}

impl DutyCycle {
    /// The work may take one part in this many of the time.
    pub(super) fn one_of(part: u32) -> Self {
        Self {
            part,
            not_before: None,
            done_at: None,
        }
    }

    /// Whether it is time for the work.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|not_before| now >= not_before)
    }

    /// The same, but not within this time after the last run.
    pub(super) fn is_due_after(&self, pause: Duration, now: Instant) -> bool {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= pause;
        self.is_due(now) && self.done_at.is_none_or(is_over)
    }

    /// Records that the work took this long, whether it succeeded or was given up.
    pub(super) fn took(&mut self, duration: Duration, now: Instant) {
        self.done_at = Some(now);
        self.not_before = now.checked_add(duration.saturating_mul(self.part.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duty_cycle_takes_at_most_its_share() {
        let mut share = DutyCycle::one_of(20);
        let begin = Instant::now();
        assert!(share.is_due(begin));
        let mut now = begin;
        let mut spent = Duration::ZERO;
        for milliseconds in [1, 500, 20, 0, 3000] {
            while !share.is_due(now) {
                now += Duration::from_millis(10);
            }
            let took = Duration::from_millis(milliseconds);
            now += took;
            spent += took;
            share.took(took, now);
        }
        assert!(!share.is_due_after(Duration::from_secs(100), now + Duration::from_secs(99)));
        assert!(share.is_due_after(Duration::from_secs(100), now + Duration::from_secs(100)));
        assert!(share.is_due(now + 19 * Duration::from_secs(3)));
        assert!(!share.is_due(now + 18 * Duration::from_secs(3)));
        assert!(
            spent * 20 <= now - begin + 20 * Duration::from_secs(3),
            "but for the last one"
        );
    }
}
