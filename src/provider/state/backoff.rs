//! How long to wait before the next request. Pure: jitter and clock are arguments.
//!
//! Full jitter as in Marc Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): uniform between
//! zero and the exponential limit, which spreads many clients best.

use std::time::{Duration, SystemTime};

use crate::core::backoff::exponential;
use crate::core::provider_state::MAX_RETRY_AFTER;

/// Attempts per request, including the first.
pub const MAX_TRIES: u32 = 3;
/// The first limit of the pause after an error.
const BASE: Duration = Duration::from_millis(250);
/// The first limit of the pause after a 429.
const THROTTLED_BASE: Duration = Duration::from_secs(1);
/// The longest pause, unless the provider asks for more.
const CEILING: Duration = Duration::from_secs(20);

/// What a pause is for; this decides its first limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A network error or a 5xx.
    Unavailable,
    /// 429.
    Throttled,
}

/// The pause after attempt number `tried` (1 is the first). It is never shorter than `retry_after`. `jitter` is
/// uniform in 0..1.
pub fn pause(tried: u32, cause: Cause, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let base = match cause {
        Cause::Unavailable => BASE,
        Cause::Throttled => THROTTLED_BASE,
    };
    let limit = exponential(base, tried, CEILING);
    let drawn = limit.mul_f64(jitter.clamp(0.0, 1.0));
    retry_after.map_or(drawn, |retry_after| {
        retry_after.min(MAX_RETRY_AFTER) + drawn
    })
}

/// Reads how long the provider asks to wait: `retry-after-ms`, `retry-after` in seconds or as an HTTP date (RFC 9110,
/// 10.2.3), or `x-ratelimit-reset` in Unix seconds, in the order of ElevenLabs' own SDK. Values that cannot be read
/// or lie in the past are ignored; the maximum is five minutes.
pub fn retry_after<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    now: SystemTime,
) -> Option<Duration> {
    let milliseconds = || positive(header("retry-after-ms")?, 1000.0);
    let seconds = || positive(header("retry-after")?, 1.0);
    let date = || {
        until(
            httpdate::parse_http_date(header("retry-after")?.trim()).ok()?,
            now,
        )
    };
    let reset = || {
        let at = positive(header("x-ratelimit-reset")?, 1.0)?;
        until(SystemTime::UNIX_EPOCH.checked_add(at)?, now)
    };
    milliseconds()
        .or_else(seconds)
        .or_else(date)
        .or_else(reset)
        .map(|retry_after| retry_after.min(MAX_RETRY_AFTER))
}

fn positive(text: &str, parts_per_second: f64) -> Option<Duration> {
    let number: f64 = text.trim().parse().ok()?;
    let seconds = number / parts_per_second;
    (seconds.is_finite() && seconds >= 0.0)
        .then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn until(moment: SystemTime, now: SystemTime) -> Option<Duration> {
    moment.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry_after(headers: &[(&str, &str)]) -> Option<Duration> {
        let now = httpdate::parse_http_date("Mon, 02 Nov 2026 08:00:00 GMT").expect("a date");
        super::retry_after(
            |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v),
            now,
        )
    }

    #[test]
    fn parses_every_form_of_retry_after() {
        let seconds = |s| Some(Duration::from_secs(s));
        for (name, value, wait) in [
            ("retry-after", "7", seconds(7)),
            ("retry-after", " 7 ", seconds(7)),
            ("retry-after", "1.5", Some(Duration::from_millis(1500))),
            ("retry-after-ms", "250", Some(Duration::from_millis(250))),
            ("retry-after", "Mon, 02 Nov 2026 08:00:30 GMT", seconds(30)),
            ("retry-after", "Monday, 02-Nov-26 08:00:30 GMT", seconds(30)),
            ("x-ratelimit-reset", "1793606430", seconds(30)),
            ("retry-after", "86400", seconds(300)),
            ("retry-after", "99999999999999999999999", seconds(300)),
            ("retry-after", "Mon, 02 Nov 2099 08:00:30 GMT", seconds(300)),
            ("retry-after", "Mon, 02 Nov 2026 07:00:00 GMT", None),
            ("retry-after", "-5", None),
            ("retry-after", "NaN", None),
            ("retry-after", "inf", None),
            ("retry-after", "soon", None),
            ("retry-after", "", None),
            ("x-ratelimit-reset", "12", None),
            ("x-ratelimit-reset", "1e300", None),
        ] {
            assert_eq!(retry_after(&[(name, value)]), wait, "{name}: {value}");
        }
        assert_eq!(retry_after(&[]), None);
        assert_eq!(
            retry_after(&[("retry-after", "9"), ("retry-after-ms", "10")]),
            Some(Duration::from_millis(10))
        );
    }

    proptest! {
        #[test]
        fn retry_pause_respects_retry_after_and_the_upper_limit(
            tried in 0u32..100, throttled: bool, retry_after in prop::option::of(0u64..1_000), jitter in 0.0f64..1.0
        ) {
            let cause = if throttled { Cause::Throttled } else { Cause::Unavailable };
            let retry_after = retry_after.map(Duration::from_secs);
            let pause = pause(tried, cause, retry_after, jitter);
            let floor = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
            prop_assert!(pause >= floor);
            prop_assert!(pause <= floor + CEILING);
        }

        #[test]
        fn any_retry_after_value_is_parsed_or_ignored(value in any::<String>()) {
            if let Some(wait) = retry_after(&[("retry-after", &value)]) {
                prop_assert!(wait <= MAX_RETRY_AFTER);
            }
        }
    }
}
