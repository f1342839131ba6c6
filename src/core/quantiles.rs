//! How long things took, as counts that can be added up, stored, and asked for quantiles. Pure.
//!
//! A DDSketch (Masson, Rim and Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
//! relative-error guarantees", VLDB 2019) without a bound on its buckets, of which the times that voices
//! take, from a tenth of a second to years, fill a few dozen.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Each bucket reaches so many times as far as the one below: quantiles are right to within 5 %.
const GROWTH: f64 = 1.1;
/// What is shorter is of no interest.
const SHORTEST: Duration = Duration::from_millis(100);

/// A multiset of durations. As JSON: buckets, by their number, with their counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantiles(BTreeMap<i32, u64>);

impl Quantiles {
    /// Adds one duration.
    pub fn add(&mut self, duration: Duration) {
        self.add_to_bucket(Self::bucket(duration), 1);
    }

    /// Adds to a bucket, as another sketch has it.
    pub fn add_to_bucket(&mut self, bucket: i32, count: u64) {
        let before = self.0.entry(bucket).or_default();
        *before = before.saturating_add(count);
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.0
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The buckets that are not empty, by their numbers, with their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (i32, u64)> {
        self.0.iter().map(|(bucket, count)| (*bucket, *count))
    }

    /// How many were longer than this, about: within a bucket, they are taken for evenly spread.
    pub fn beyond(&self, duration: Duration) -> f64 {
        let seconds = duration.as_secs_f64();
        let longer = self.0.iter().map(|(bucket, count)| {
            let (end, start) = (GROWTH.powi(*bucket), GROWTH.powi(bucket.saturating_sub(1)));
            let share = ((end - seconds) / (end - start)).clamp(0.0, 1.0);
            // Of a bucket beyond all numbers, it is none.
            *count as f64 * if share.is_nan() { 1.0 } else { share }
        });
        longer.sum()
    }

    /// The bucket of a duration.
    pub fn bucket(duration: Duration) -> i32 {
        let seconds = duration.max(SHORTEST).as_secs_f64();
        seconds.log(GROWTH).ceil() as i32
    }

    /// The duration that a part, from 0 to 1, of them did not exceed; none, if there are none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut below: u64 = 0;
        let bucket = self.0.iter().find_map(|(bucket, count)| {
            below = below.saturating_add(*count);
            (below >= rank).then_some(*bucket)
        })?;
        // As far from the bucket's lower end as from its upper one, by their ratio.
        let middle = 2.0 * GROWTH.powi(bucket) / (GROWTH + 1.0);
        Some(Duration::try_from_secs_f64(middle).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Quantiles::default().quantile(0.5), None);
        let mut one = Quantiles::default();
        one.add(Duration::ZERO);
        assert_eq!(one.count(), 1);
        assert!(one.quantile(0.0) == one.quantile(1.0));
    }

    #[test]
    fn a_bucket_far_out_is_no_panic() {
        let far: Quantiles =
            serde_json::from_str(r#"{"2147483647":18446744073709551615,"1":2}"#).expect("a sketch");
        assert_eq!(far.quantile(1.0), Some(Duration::MAX));
    }

    proptest! {
        #[test]
        fn quantiles_are_right_to_within_5_percent(
            mut millis in prop::collection::vec(100u64..1_000_000_000, 1..200), part in 0.0f64..=1.0, cut in 0usize..200,
        ) {
            // Added up from two, one of which was stored.
            let (mut one, mut other) = (Quantiles::default(), Quantiles::default());
            for (at, millis) in millis.iter().enumerate() {
                let sketch = if at < cut { &mut one } else { &mut other };
                sketch.add(Duration::from_millis(*millis));
            }
            let stored = serde_json::to_string(&other).expect("serialises");
            let read: Quantiles = serde_json::from_str(&stored).expect("a sketch");
            for (bucket, count) in read.buckets() {
                one.add_to_bucket(bucket, count);
            }
            millis.sort_unstable();
            let rank = ((part * millis.len() as f64).ceil() as usize).max(1);
            let exact = millis[rank - 1] as f64 / 1000.0;
            let told = one.quantile(part).expect("there are some").as_secs_f64();
            prop_assert!((told / exact - 1.0).abs() < 0.05, "{told} for {exact}");
        }
    }
}
