//! The options of a simulator.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The options of a simulator. [`Options::default`] is a provider without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The `xi-api-key` that is accepted. `None` accepts every non-empty key.
    pub key: Option<String>,
    /// The minimum duration of every answer.
    pub latency: Duration,
    /// The maximum additional duration of an answer, uniformly distributed.
    pub jitter: Duration,
    /// The share of requests, 0 to 1, that are answered with a 5xx instead.
    pub error_rate: f64,
    /// The maximum number of requests in any one second. Further ones get 429 `system_busy` with a `retry-after`.
    pub rate_limit: Option<u32>,
    /// The maximum number of concurrent requests, like the limit of a plan. Further ones get 429
    /// `too_many_concurrent_requests`. If it is set, every answer contains this limit and the current number in the
    /// headers `maximum-concurrent-requests` and `current-concurrent-requests`.
    pub max_concurrent: Option<u32>,
    /// The outages of the provider. During an outage, a proxy in front of it answers 503 with a page.
    pub outages: Vec<Outage>,
    /// The number of premade voices on page 0 of the list, which are not requested.
    pub default_voices: usize,
    /// Whether `GET /v2/voices` exists. Gateways without it answer 404.
    pub list_enabled: bool,
    /// The format of error bodies.
    pub errors: ErrorFormat,
    /// Whether requests are kept for [`Simulator::requests`](crate::Simulator::requests). They are counted in any case.
    pub record_requests: bool,
    /// The seed of random numbers: with the same seed and the same requests in the same order, ids, jitter and errors
    /// are the same.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            error_rate: 0.0,
            rate_limit: None,
            max_concurrent: None,
            outages: Vec::new(),
            default_voices: 2,
            list_enabled: true,
            errors: ErrorFormat::default(),
            record_requests: true,
            seed: 0,
        }
    }
}

/// The format of error bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorFormat {
    /// `{"detail": {"status", "message"}}`, with the older names of codes.
    Legacy,
    /// `{"detail": {"type", "code", "message", "request_id", "param"}}`, as documented in 2026.
    Current,
    /// The current format, with the legacy `status` in addition.
    #[default]
    Both,
}

impl FromStr for ErrorFormat {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "legacy" => Ok(Self::Legacy),
            "current" => Ok(Self::Current),
            "both" => Ok(Self::Both),
            _ => Err("the formats of errors are legacy, current and both"),
        }
    }
}

/// An outage of the provider, written as `START+LENGTH`, for example `10s+5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The time from the simulator's start to the outage.
    pub start: Duration,
    /// The duration of the outage.
    pub length: Duration,
}

impl Outage {
    pub(crate) fn holds(self, at: Duration) -> bool {
        at >= self.start && at - self.start < self.length
    }
}

impl FromStr for Outage {
    type Err = OutageError;

    fn from_str(text: &str) -> Result<Self, OutageError> {
        let (start, length) = text.split_once('+').ok_or(OutageError::NoLength)?;
        Ok(Self {
            start: humantime::parse_duration(start.trim()).map_err(OutageError::Time)?,
            length: humantime::parse_duration(length.trim()).map_err(OutageError::Time)?,
        })
    }
}

/// Why a text is not a valid [`Outage`].
#[derive(Debug)]
pub enum OutageError {
    /// The `+` with the length is missing.
    NoLength,
    /// One of the two times is invalid.
    Time(humantime::DurationError),
}

impl fmt::Display for OutageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLength => f.write_str("an outage is written START+LENGTH, as in 10s+5s"),
            Self::Time(error) => write!(f, "an outage is written as in 10s+5s: {error}"),
        }
    }
}

impl std::error::Error for OutageError {}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    #[test]
    fn parses_an_outage_and_knows_when_it_is_active() {
        let outage: Outage = "10s+1m 30s".parse().unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            outage,
            Outage {
                start: seconds(10),
                length: seconds(90)
            }
        );
        assert!(!outage.holds(Duration::from_millis(9_999)));
        assert!(outage.holds(seconds(10)));
        assert!(outage.holds(Duration::from_millis(99_999)));
        assert!(!outage.holds(seconds(100)));
    }

    #[test]
    fn rejects_malformed_outages() {
        assert!(matches!(
            "10s".parse::<Outage>(),
            Err(OutageError::NoLength)
        ));
        for text in ["+5s", "10s+", "10+5", "10s+5s+5s"] {
            assert!(
                matches!(text.parse::<Outage>(), Err(OutageError::Time(_))),
                "{text}"
            );
        }
    }
}
