//! How a simulator behaves.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a simulator behaves; [`Options::default`] is a provider without any fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The `xi-api-key` that is accepted. None accepts every key but the empty one.
    pub key: Option<String>,
    /// How long every answer takes at least.
    pub latency: Duration,
    /// How much longer an answer may take than `latency`, evenly spread.
    pub jitter: Duration,
    /// The share of requests, 0 to 1, that is answered with a 5xx instead.
    pub error_rate: f64,
    /// How many requests are served in any one second. What is beyond gets 429 `system_busy`
    /// with a `retry-after`.
    pub rate_limit: Option<u32>,
    /// How many requests are served at once, as a plan allows. What is beyond gets 429
    /// `too_many_concurrent_requests`. If set, every answer tells it and the current number in
    /// the headers `maximum-concurrent-requests` and `current-concurrent-requests`.
    pub max_concurrent: Option<u32>,
    /// When the provider is down: a proxy in front of it answers 503 with a page.
    pub outages: Vec<Outage>,
    /// How many premade voices page 0 of the list holds although nobody asked for them.
    pub default_voices: usize,
    /// Whether there is `GET /v2/voices`; gateways without it answer 404.
    pub list_enabled: bool,
    /// Which form the bodies of errors have.
    pub errors: ErrorFormat,
    /// Whether requests are kept for [`Simulator::requests`](crate::Simulator::requests). They
    /// are counted either way.
    pub record_requests: bool,
    /// Where randomness starts: the same seed and the same requests in the same order give the
    /// same ids, jitter and errors.
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

/// Which form the bodies of errors have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorFormat {
    /// `{"detail": {"status", "message"}}`, with the names of codes from before.
    Legacy,
    /// `{"detail": {"type", "code", "message", "request_id", "param"}}`, as documented in 2026.
    Current,
    /// The current one, with the legacy `status` as well.
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

/// A time during which the provider is down, written as `START+LENGTH`, as in `10s+5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it begins, counted from the simulator's start.
    pub start: Duration,
    /// How long it lasts.
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

/// Why a text is no [`Outage`].
#[derive(Debug)]
pub enum OutageError {
    /// There is no `+` with the length after it.
    NoLength,
    /// One of its two times is none.
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
    fn an_outage_is_read_and_holds_for_its_length() {
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
    fn what_is_no_outage_is_refused() {
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
