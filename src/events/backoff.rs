//! How long an event bus is not used after a failure. Pure.

use std::time::Duration;

use crate::core::backoff::exponential;

/// The upper limit of the first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause: within this time, a recovered bus is used again.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The pause after this many failures in a row: between half and the whole of a limit that doubles. `jitter` is
/// uniform in 0..1.
///
/// Not full jitter as for the provider: a pause of almost zero would be an attempt at once.
pub fn pause(failures: u32, jitter: f64) -> Duration {
    let limit = exponential(FIRST, failures, LONGEST);
    limit.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_bus_backoff_doubles_from_1_s_to_60_s() {
        let longest = [1, 2, 3, 4, 5, 6, 7, 8, u32::MAX].map(|n| pause(n, 1.0).as_secs());
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let shortest = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|n| pause(n, 0.0).as_secs());
        assert_eq!(shortest, [1, 1, 2, 4, 8, 16, 30, 30], "never at once");
    }
}
