//! When a voice is asked about again. Pure.
//!
//! A young voice is mostly finished within seconds, so it is asked about often; one that has been in
//! processing for an hour will not be finished in the next second. With a tenth of its age between
//! two lookups, nobody waits for longer than a tenth more than they had to.

use std::time::Duration;

use crate::core::backoff::exponential;
use crate::core::transition::Seen;
use crate::core::verdict::Stage;

/// The shortest and the longest time between two lookups of a voice.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// For what will hardly change by itself: the provider does not know the voice, its owner has to do
/// something, or it cannot be asked about or stored.
const SLOW: Duration = Duration::from_secs(5 * 60);
/// The first pause after a voice could not be looked up twice in a row, which doubles each time, and the longest.
const QUARANTINE: Duration = Duration::from_secs(60);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(60 * 60);
/// How much earlier or later, so that voices of one moment do not stay together.
const JITTER: f64 = 0.1;

/// How long to leave a voice alone after what was seen of it, at this `age`. `random` is from 0 to 1.
pub fn again_in(age: Duration, seen: &Seen, random: f64) -> Duration {
    let by_age = (age / 10).clamp(SHORTEST, LONGEST);
    let pause = match seen {
        Seen::Processing {
            stage: Stage::Preparing | Stage::Training,
            kind: _,
        }
        | Seen::Unavailable(_)
        | Seen::Suspected(_) => by_age,
        // Once may be an accident.
        Seen::Unanswerable {
            times: 0 | 1,
            reason: _,
        } => by_age,
        Seen::Unanswerable { times, reason: _ } => {
            exponential(QUARANTINE, times - 1, LONGEST_QUARANTINE)
        }
        Seen::Processing {
            stage: Stage::WaitingForOwner,
            kind: _,
        }
        | Seen::Missing
        | Seen::SetAside(_) => by_age.max(SLOW),
        Seen::Superseded => SHORTEST,
    };
    pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0))
}

/// How many of the voices that come up next are asked about, if `due` of them are due: a list request
/// that is not full has room for others, which cost nothing.
pub fn topped_up(due: usize, room: usize) -> usize {
    due.next_multiple_of(room.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::transition::SetAside;

    fn seen(stage: Stage) -> Seen {
        Seen::Processing {
            kind: "cloned".into(),
            stage,
        }
    }

    fn seconds(age: u64, seen: &Seen) -> f64 {
        again_in(Duration::from_secs(age), seen, 0.5).as_secs_f64()
    }

    #[test]
    fn the_older_a_voice_the_longer_it_is_left_alone() {
        let young = seen(Stage::Preparing);
        let ages = [0, 50, 60, 600, 3000, 86_400];
        assert_eq!(
            ages.map(|age| seconds(age, &young)),
            [5.0, 5.0, 6.0, 60.0, 300.0, 300.0]
        );
        assert_eq!(seconds(0, &seen(Stage::Training)), 5.0);
        assert_eq!(seconds(70, &Seen::Unavailable("away".into())), 7.0);
        for slow in [
            seen(Stage::WaitingForOwner),
            Seen::Missing,
            Seen::SetAside(SetAside::Refused("odd".into())),
        ] {
            assert_eq!(seconds(0, &slow), 300.0, "{slow:?}");
        }
    }

    #[test]
    fn a_voice_that_cannot_be_looked_up_is_asked_about_less_and_less() {
        let unanswerable = |times| Seen::Unanswerable {
            reason: "HTTP 500".into(),
            times,
        };
        assert_eq!(
            [1, 2, 3, 4, 7, 8, 9, u32::MAX].map(|times| seconds(70, &unanswerable(times))),
            [7.0, 60.0, 120.0, 240.0, 1920.0, 3600.0, 3600.0, 3600.0]
        );
    }

    #[test]
    fn a_request_that_is_not_full_is_topped_up() {
        assert_eq!(
            [0, 1, 99, 100, 101].map(|due| topped_up(due, 100)),
            [0, 100, 100, 100, 200]
        );
        assert_eq!(topped_up(3, 1), 3);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_a_tenth(age in 0u64..10_000_000, random in 0.0f64..1.0) {
            let pause = again_in(Duration::from_secs(age), &seen(Stage::Preparing), random).as_secs_f64();
            let middle = seconds(age, &seen(Stage::Preparing));
            prop_assert!((0.9 * middle - 1e-6..=1.1 * middle + 1e-6).contains(&pause));
        }
    }
}
