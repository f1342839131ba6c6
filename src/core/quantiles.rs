//! Durations as counts in buckets, which can be added, stored, and read as quantiles. Pure.
//!
//! This is a DDSketch (Masson, Rim and Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
//! guarantees", VLDB 2019) without a limit on its buckets. Times from a tenth of a second to years fill a few dozen
//! buckets.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Each bucket's upper end is this many times that of the one below: quantiles are accurate to 5 %.
const GROWTH: f64 = 1.1;
/// Shorter durations count as this.
const SHORTEST: Duration = Duration::from_millis(100);

/// A multiset of durations. In JSON: the counts of the buckets, by bucket number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantiles(BTreeMap<i32, u64>);

impl Quantiles {
    /// Adds one duration.
    pub fn add(&mut self, duration: Duration) {
        self.add_to_bucket(Self::bucket(duration), 1);
    }

    /// Adds a count to a bucket, from another sketch.
    pub fn add_to_bucket(&mut self, bucket: i32, count: u64) {
        let before = self.0.entry(bucket).or_default();
        *before = before.saturating_add(count);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.0
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The buckets that are not empty, with their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (i32, u64)> {
        self.0.iter().map(|(bucket, count)| (*bucket, *count))
    }

    /// About how many were longer than this: within a bucket, they are assumed to be evenly spread.
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

    /// The duration that this share of them, from 0 to 1, did not exceed; `None` if there are none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut below: u64 = 0;
        let bucket = self.0.iter().find_map(|(bucket, count)| {
            below = below.saturating_add(*count);
            (below >= rank).then_some(*bucket)
        })?;
        // The geometric middle of the bucket.
        let middle = 2.0 * GROWTH.powi(bucket) / (GROWTH + 1.0);
        Some(Duration::try_from_secs_f64(middle).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_sketch_has_no_quantile() {
        assert_eq!(Quantiles::default().quantile(0.5), None);
        let mut one = Quantiles::default();
        one.add(Duration::ZERO);
        assert_eq!(one.count(), 1);
        assert!(one.quantile(0.0) == one.quantile(1.0));
    }

    #[test]
    fn out_of_range_bucket_saturates_without_panic() {
        let far: Quantiles =
            serde_json::from_str(r#"{"2147483647":18446744073709551615,"1":2}"#).expect("a sketch");
        assert_eq!(far.quantile(1.0), Some(Duration::MAX));
    }

    proptest! {
        #[test]
        fn quantiles_are_accurate_to_5_percent(
            mut millis in prop::collection::vec(100u64..1_000_000_000, 1..200), part in 0.0f64..=1.0, cut in 0usize..200,
        ) {
            // The sum of two sketches, one of which was stored.
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
