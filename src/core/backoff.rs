//! Pauses that double. Pure.

use std::time::Duration;

/// The pause after this many failures in a row: `first` after the first one, then twice as long each time, up to
/// `longest`.
pub fn exponential(first: Duration, failures: u32, longest: Duration) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    first.saturating_mul(doubled).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_from_the_first_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let pauses = [0, 1, 2, 3, 6, 7, 8, u32::MAX];
        let pauses = pauses.map(|failures| exponential(first, failures, longest).as_secs());
        assert_eq!(pauses, [1, 1, 2, 4, 32, 60, 60, 60]);
    }
}
