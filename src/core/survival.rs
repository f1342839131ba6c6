//! How likely it is that a voice is finished, derived from how long others took. Pure.
//!
//! The survival function is the share of voices that take longer than a given time. It is estimated from the
//! completion times in the ledger, for each kind of voice. With few completions, the estimate stays close to the
//! assumption: a kind without completions is treated like all voices, and all voices follow the default until there
//! are some.

use std::collections::BTreeMap;
use std::time::Duration;

use super::quantiles::Quantiles;

/// The weight of the assumption, in completions.
const PRIOR_WEIGHT: f64 = 20.0;

/// The observed completion times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survival {
    kinds: BTreeMap<String, Quantiles>,
    all: Quantiles,
}

impl Survival {
    /// The completion times of each kind.
    pub fn new(kinds: BTreeMap<String, Quantiles>) -> Self {
        let mut all = Quantiles::default();
        for (bucket, count) in kinds.values().flat_map(Quantiles::buckets) {
            all.add_to_bucket(bucket, count);
        }
        Self { kinds, all }
    }

    /// The likelihood that a voice of this age is finished, if it was not finished at its last lookup.
    pub fn likelihood(&self, kind: Option<&str>, age: Duration, unasked_for: Duration) -> f64 {
        let before = self.beyond(kind, age.saturating_sub(unasked_for));
        let now = self.beyond(kind, age);
        (1.0 - now / before).clamp(0.0, 1.0)
    }

    /// The share of voices that take longer than this; never zero.
    fn beyond(&self, kind: Option<&str>, time: Duration) -> f64 {
        let all = drawn_towards(assumed(time), &self.all, time);
        let times = kind.and_then(|kind| self.kinds.get(kind));
        times.map_or(all, |times| drawn_towards(all, times, time))
    }
}

fn drawn_towards(prior: f64, times: &Quantiles, time: Duration) -> f64 {
    (PRIOR_WEIGHT * prior + times.beyond(time)) / (PRIOR_WEIGHT + times.count() as f64)
}

/// The default: of the voices that are not finished at some age, half are finished at twice that age. This is a Lomax
/// distribution of shape 1, with the time of the fastest voices as its scale. With it, a lookup after each tenth of
/// the age always finds a voice with the same likelihood.
fn assumed(time: Duration) -> f64 {
    const SCALE: Duration = Duration::from_secs(5);
    SCALE.as_secs_f64() / (time + SCALE).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn learned(times: &[f64]) -> Survival {
        let mut quantiles = Quantiles::default();
        for time in times {
            quantiles.add(seconds(*time));
        }
        Survival::new(BTreeMap::from([("cloned".to_owned(), quantiles)]))
    }

    fn likelihood(survival: &Survival, kind: &str, age: f64, unasked_for: f64) -> f64 {
        survival.likelihood(Some(kind), seconds(age), seconds(unasked_for))
    }

    #[test]
    fn likelihood_without_observations_uses_the_prior() {
        let none = Survival::default();
        assert_eq!(likelihood(&none, "cloned", 0.0, 0.0), 0.0);
        assert_eq!(
            likelihood(&none, "cloned", 5.0, 9.0),
            0.5,
            "no longer than it is old"
        );
        assert!((likelihood(&none, "cloned", 95.0, 10.0) - 0.1).abs() < 1e-9);
        let young = likelihood(&none, "cloned", 30.0, 1.0);
        assert!(young > likelihood(&none, "cloned", 300.0, 1.0));
    }

    #[test]
    fn likelihood_peaks_at_ages_at_which_others_finished() {
        // Half of them take 20 s, the others an hour.
        let times: Vec<f64> = (0..1000)
            .map(|n| f64::from(n % 2).mul_add(3580.0, 20.0) * (0.95 + f64::from(n) / 10_000.0))
            .collect();
        let bimodal = learned(&times);
        let at = |age| likelihood(&bimodal, "cloned", age, 1.0);
        assert!(at(21.0) > 20.0 * at(300.0), "{} {}", at(21.0), at(300.0));
        assert!(at(3600.0) > 5.0 * at(300.0), "{} {}", at(3600.0), at(300.0));
        let other = likelihood(&bimodal, "professional", 21.0, 1.0);
        assert_eq!(other, bimodal.likelihood(None, seconds(21.0), seconds(1.0)));
    }

    proptest! {
        /// The likelihood is between 0 and 1 and grows with the time since the last lookup, for any observations.
        #[test]
        fn likelihood_grows_with_time_since_the_last_lookup(
            times in prop::collection::vec(0.1f64..100_000.0, 0..300), age in 0.0f64..100_000.0,
            unasked_for in 0.0f64..1000.0,
        ) {
            let survival = learned(&times);
            let now = likelihood(&survival, "cloned", age, unasked_for);
            let later = likelihood(&survival, "cloned", age + 10.0, unasked_for + 10.0);
            prop_assert!((0.0..=1.0).contains(&now));
            prop_assert!(later >= now - 1e-9, "{now} {later}");
        }
    }
}
