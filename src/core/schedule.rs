//! When a voice is looked up again. Pure.
//!
//! A young voice is usually finished within seconds, so it is looked up often. One that has been in processing for an
//! hour will not be finished in the next second. The time between two lookups is a tenth of the voice's age, so a
//! finished voice is found with a delay of at most a tenth. A daemon whose request budget has room also looks up
//! earlier those voices that are likely to be finished.

use std::time::Duration;

use crate::core::backoff::exponential;
use crate::core::transition::Seen;
use crate::core::verdict::Stage;

/// The shortest and the longest time between two lookups of a voice.
const SHORTEST: Duration = Duration::from_secs(5);
pub const LONGEST: Duration = Duration::from_secs(5 * 60);
/// For a voice that is unlikely to change by itself: the provider does not know it, its owner has to do something, or
/// it cannot be looked up or stored.
const SLOW: Duration = Duration::from_secs(5 * 60);
/// The first pause after a voice could not be looked up twice in a row, which doubles each time, and the longest.
const QUARANTINE: Duration = Duration::from_secs(60);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(60 * 60);
/// If no voice is due, a request is sent only if it is expected to find this many finished voices.
const WORTH_A_REQUEST: f64 = 0.02;
/// Jitter of the time, so that voices of the same moment spread out.
const JITTER: f64 = 0.1;

/// How long a voice is not looked up after this result, at this `age`. `random` is from 0 to 1.
pub fn again_in(age: Duration, seen: &Seen, random: f64) -> Duration {
    let by_age = (age / 10).clamp(SHORTEST, LONGEST);
    let pause = match seen {
        Seen::Processing {
            stage: Stage::Preparing | Stage::Training,
            kind: _,
        }
        | Seen::Unavailable(_)
        | Seen::Suspected(_) => by_age,
        // The first failure may be an accident.
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

/// A voice that may be looked up now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Candidate {
    /// A hint says that it may be finished.
    Hinted,
    /// It was never looked up.
    New,
    /// It is looked up every few seconds.
    Soon(Chance),
    /// It is looked up less often.
    Seldom(Chance),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chance {
    /// The likelihood that the voice is finished.
    pub likelihood: f64,
    /// Whether it is due, whatever its likelihood.
    pub is_due: bool,
}

impl Candidate {
    fn likelihood(self) -> f64 {
        match self {
            Self::Hinted | Self::New => 1.0,
            Self::Soon(chance) | Self::Seldom(chance) => chance.likelihood,
        }
    }

    fn is_due(self) -> bool {
        match self {
            Self::Hinted | Self::New => true,
            Self::Soon(chance) | Self::Seldom(chance) => chance.is_due,
        }
    }
}

/// Selects the voices to look up, by their places in the list, if a request has room for this many. None if no voice
/// is due and a request is unlikely to find a finished one.
///
/// Voices with a hint and new voices come first; if not all fit, each group gets half of the room. A quarter of the
/// room, and what these leave, is for due voices that are looked up less often, in the order of the list, so that
/// they are not forgotten. The rest is for voices that are most likely to be finished.
pub fn choose(candidates: &[Candidate], room: usize) -> Vec<usize> {
    let (mut hinted, mut new, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for (place, candidate) in candidates.iter().enumerate() {
        match candidate {
            Candidate::Hinted => hinted.push(place),
            Candidate::New => new.push(place),
            Candidate::Soon(_) | Candidate::Seldom(_) => others.push(place),
        }
    }
    let is_due = |place: &usize| {
        matches!(
            candidates[*place],
            Candidate::Seldom(Chance { is_due: true, .. })
        )
    };
    let kept = others
        .iter()
        .filter(|place| is_due(place))
        .count()
        .min(room / 4);
    let first = room - kept;
    hinted.truncate(first - new.len().min(first.div_ceil(2)));
    new.truncate(first - hinted.len());
    let mut chosen = hinted;
    chosen.append(&mut new);
    let share = (room - chosen.len()).div_ceil(4).max(kept);
    let mut taken = 0;
    others.retain(|place| {
        if is_due(place) && taken < share {
            taken += 1;
            chosen.push(*place);
            return false;
        }
        true
    });
    let likelihood = |place: &usize| candidates[*place].likelihood();
    others.sort_by(|one, other| likelihood(other).total_cmp(&likelihood(one)));
    others.truncate(room - chosen.len());
    chosen.extend(others);
    let expected: f64 = chosen.iter().map(likelihood).sum();
    let any_due = candidates.iter().any(|candidate| candidate.is_due());
    match any_due || expected >= WORTH_A_REQUEST {
        true => chosen,
        false => Vec::new(),
    }
}

/// How many of the next voices are looked up if `due` of them are due: a list request that is not full has room for
/// others at no cost.
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
    fn pause_between_lookups_grows_with_age() {
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
    fn pause_doubles_for_an_unanswerable_voice() {
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
    fn partial_request_is_filled_up_to_the_batch_size() {
        assert_eq!(
            [0, 1, 99, 100, 101].map(|due| topped_up(due, 100)),
            [0, 100, 100, 100, 200]
        );
        assert_eq!(topped_up(3, 1), 3);
    }

    const DUE: Chance = Chance {
        likelihood: 0.001,
        is_due: true,
    };

    fn later(likelihood: f64) -> Chance {
        Chance {
            likelihood,
            is_due: false,
        }
    }

    #[test]
    fn request_prefers_new_voices_then_those_likely_to_be_finished() {
        use Candidate::{New, Seldom, Soon};
        let likely = [Soon(later(0.1)), Soon(later(0.3)), New, Soon(later(0.2))];
        assert_eq!(choose(&likely, 3), [2, 1, 3]);
        assert_eq!(choose(&likely, 0), [0usize; 0]);
        let mut crowded = vec![Soon(later(0.5)); 10];
        crowded.extend([Seldom(DUE); 10]);
        assert_eq!(choose(&crowded, 8), [10, 11, 0, 1, 2, 3, 4, 5]);
        assert_eq!(choose(&crowded, 20).len(), 20);
        use Candidate::Hinted;
        let mut flooded = vec![New; 10];
        flooded.extend([Hinted; 10]);
        assert_eq!(choose(&flooded, 6), [10, 11, 12, 0, 1, 2]);
        assert_eq!(choose(&flooded, 1), [0], "new ones come to an end");
        assert_eq!(choose(&flooded[8..], 6), [2, 3, 4, 5, 0, 1]);
        assert_eq!(choose(&flooded[..12], 6), [10, 11, 0, 1, 2, 3]);
        flooded.extend([Seldom(DUE); 3]);
        assert_eq!(choose(&flooded, 8), [10, 11, 12, 0, 1, 2, 20, 21]);
        let unlikely = [Seldom(later(0.005)); 3];
        assert_eq!(choose(&unlikely, 100), [0usize; 0]);
        assert_eq!(choose(&[unlikely[0]; 4], 100), [0, 1, 2, 3]);
        assert_eq!(choose(&[unlikely[0], Seldom(DUE)], 100), [1, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Voices that are looked up less often get their share of each turn, however many others are new, hinted at,
        /// or more likely to be finished. With room for two of them per turn, they wait at most half as many turns as
        /// there are voices of this kind.
        #[test]
        fn seldom_looked_up_voices_are_never_starved(
            seldom in 1usize..300, soon in 0usize..100, fresh in 0usize..20, seed in any::<u64>(),
        ) {
            const ROOM: usize = 8;
            const DUE_AFTER: usize = 300;
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut asked: Vec<i64> = (0..seldom).map(|_| -rng.i64(0..DUE_AFTER as i64)).collect();
            for turn in 0..1000i64 {
                asked.sort_unstable();
                let waited = |asked: i64| (turn - asked) as usize;
                let longest = waited(asked[0]);
                prop_assert!(longest <= DUE_AFTER + seldom / 2 + 1, "{longest} turns");
                let mut candidates: Vec<_> = asked
                    .iter()
                    .map(|asked| Candidate::Seldom(Chance {
                        likelihood: 0.0,
                        is_due: waited(*asked) >= DUE_AFTER,
                    }))
                    .collect();
                candidates.extend((0..soon).map(|_| Candidate::Soon(later(rng.f64()))));
                candidates.extend((0..fresh).map(|_| match rng.bool() {
                    true => Candidate::Hinted,
                    false => Candidate::New,
                }));
                for place in choose(&candidates, ROOM) {
                    if let Some(asked) = asked.get_mut(place) {
                        *asked = turn;
                    }
                }
            }
        }
    }

    proptest! {
        /// No voice is chosen twice, never more than there is room for, and no room is left unused while there are
        /// voices.
        #[test]
        fn choice_fills_the_room_without_duplicates(
            kinds in prop::collection::vec((0u8..4, 0.0f64..0.1, any::<bool>()), 0..60), room in 0usize..40,
        ) {
            let candidates: Vec<_> = kinds
                .iter()
                .map(|(kind, likelihood, is_due)| {
                    let chance = Chance { likelihood: *likelihood, is_due: *is_due };
                    match kind {
                        0 => Candidate::New,
                        1 => Candidate::Hinted,
                        2 => Candidate::Soon(chance),
                        _ => Candidate::Seldom(chance),
                    }
                })
                .collect();
            let mut chosen = choose(&candidates, room);
            let any_due = candidates.iter().any(|candidate| candidate.is_due());
            if !chosen.is_empty() {
                prop_assert_eq!(chosen.len(), room.min(candidates.len()));
            } else {
                prop_assert!(room == 0 || !any_due, "a voice is due");
            }
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert!(chosen.len() <= room);
        }

        #[test]
        fn jitter_stays_within_10_percent(age in 0u64..10_000_000, random in 0.0f64..1.0) {
            let pause = again_in(Duration::from_secs(age), &seen(Stage::Preparing), random).as_secs_f64();
            let middle = seconds(age, &seen(Stage::Preparing));
            prop_assert!((0.9 * middle - 1e-6..=1.1 * middle + 1e-6).contains(&pause));
        }
    }
}
