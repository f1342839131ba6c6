//! Plans: a simulated voice's fate and when it takes effect, and their text format.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::fate::Fate;

/// A fate, and the time from the voice's creation until it takes effect.
///
/// Written as the fate's word and, unless it is zero, a time: `ready 5s`, `pvcfailed2m`. Fates that never change do not
/// use the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Plan {
    /// How the voice develops.
    pub fate: Fate,
    /// The time until the fate takes effect.
    pub after: Duration,
}

impl Plan {
    /// The plan in the last square brackets of a voice's name, for example `Anna [ready 5s]`.
    ///
    /// Brackets with other content are an ordinary part of the name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let (_, opened) = name.rsplit_once('[')?;
        let (text, _) = opened.split_once(']')?;
        text.parse().ok()
    }

    /// The plan in a synthetic id, `sim-<fate><time?>-<anything>`, for example `sim-ready5s-0001`.
    #[must_use]
    pub fn from_id(voice_id: &str) -> Option<Self> {
        let (text, _) = voice_id.strip_prefix("sim-")?.split_once('-')?;
        text.parse().ok()
    }
}

impl FromStr for Plan {
    type Err = FateError;

    fn from_str(text: &str) -> Result<Self, FateError> {
        let text = text.trim();
        let end = text
            .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
            .unwrap_or(text.len());
        let (word, time) = text.split_at(end);
        let fate = word.parse()?;
        let after = match time.trim_start() {
            "" => Duration::ZERO,
            time => humantime::parse_duration(time).map_err(|source| FateError::Time {
                text: time.to_owned(),
                source,
            })?,
        };
        Ok(Self { fate, after })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fate.word())?;
        if self.after.is_zero() {
            return Ok(());
        }
        write!(f, " {}", humantime::format_duration(self.after))
    }
}

/// Why a text is not a valid fate.
#[derive(Debug)]
pub enum FateError {
    /// No fate has this word.
    Unknown(String),
    /// The text after the fate is not a time.
    Time {
        /// The invalid text.
        text: String,
        /// The error in the text.
        source: humantime::DurationError,
    },
}

impl fmt::Display for FateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "no fate is called {word:?}"),
            Self::Time { text, .. } => write!(f, "{text:?} is not a time such as 5s or 1m30s"),
        }
    }
}

impl std::error::Error for FateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unknown(_) => None,
            Self::Time { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    #[test]
    fn every_fate_and_plan_round_trips_through_text() {
        for fate in Fate::ALL {
            assert_eq!(fate.word().parse::<Fate>().unwrap(), fate);
            for after in [
                Duration::ZERO,
                Duration::from_secs(90),
                Duration::from_millis(1500),
            ] {
                let plan = Plan { fate, after };
                assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
            }
        }
    }

    #[test]
    fn space_between_fate_and_time_is_optional() {
        let five = Plan {
            fate: Fate::PvcReady,
            after: Duration::from_secs(5),
        };
        for text in [
            "pvcready5s",
            "pvcready 5s",
            " pvcready  5s ",
            "pvcready 4s 1000ms",
        ] {
            assert_eq!(text.parse::<Plan>().unwrap(), five, "{text}");
        }
    }

    #[test]
    fn rejects_unknown_fates_and_invalid_times() {
        for text in ["", "redy", "READY", "ready-5s", "5s"] {
            assert!(
                matches!(text.parse::<Plan>(), Err(FateError::Unknown(_))),
                "{text}"
            );
        }
        for text in ["ready 5", "ready soon", "ready 5 parsecs"] {
            let error = text.parse::<Plan>().unwrap_err();
            assert!(matches!(error, FateError::Time { .. }), "{text}");
            assert!(std::error::Error::source(&error).is_some());
        }
    }

    #[test]
    fn reads_plans_only_from_marked_names_and_synthetic_ids() {
        let minute = Plan {
            fate: Fate::Banned,
            after: Duration::from_secs(60),
        };
        assert_eq!(Plan::from_name("Anna [studio] [banned 1m]"), Some(minute));
        assert_eq!(Plan::from_name("Anna [studio]"), None);
        assert_eq!(Plan::from_name("Anna banned 1m"), None);
        assert_eq!(Plan::from_name("Anna ]banned 1m["), None);

        assert_eq!(Plan::from_id("sim-banned1m-0001-b"), Some(minute));
        assert_eq!(Plan::from_id("sim-ready-7"), Some(Plan::default()));
        assert_eq!(Plan::from_id("sim-ready"), None);
        assert_eq!(Plan::from_id("sim-redy-7"), None);
        assert_eq!(Plan::from_id("21m00Tcm4TlvDq8ikWAM"), None);
    }
}
