//! Nudging previews: some instant clones get no preview before the first text-to-speech request. Pure.
//!
//! Such a request costs credits, so a voice gets one, for ever.

use std::fmt;
use std::time::Duration;

use super::transition::{Claimed, Seen};
use super::verdict::{AgeFrom, Stage};
use super::voice::{Category, Voice};

/// How long nothing is nudged after the provider refused it, unless it asked for another pause.
const STOPPED: Duration = Duration::from_secs(6 * 60 * 60);
const THROTTLED: Duration = Duration::from_secs(15 * 60);
/// The longest such pause.
pub const MAX_STOP: Duration = Duration::from_secs(24 * 60 * 60);

/// Which voices are nudged, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NudgeRules {
    /// How long a voice must have been in processing.
    pub after: Duration,
    /// Nudges in a day, of all processes together.
    pub limit: u32,
}

/// What came of a nudge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nudge {
    /// Nothing that is known: it may be under way, or its process may have died.
    Sent,
    /// The voice speaks.
    Spoke,
    /// The provider said that this voice does not.
    Silent,
    /// There was no answer, or one that says nothing about the voice.
    Unclear,
    /// The provider does not let this key make speech, for now.
    Refused,
}

/// What the provider answered to a nudge, with its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NudgeAnswer {
    Spoke,
    Silent(String),
    Unclear(String),
    Refused {
        says: String,
        /// How long nothing is nudged.
        pause: Duration,
    },
}

impl Nudge {
    pub const ALL: [Self; 5] = [
        Self::Sent,
        Self::Spoke,
        Self::Silent,
        Self::Unclear,
        Self::Refused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Spoke => "spoke",
            Self::Silent => "silent",
            Self::Unclear => "unclear",
            Self::Refused => "refused",
        }
    }

    /// From its word. One of a newer version says nothing to this one.
    pub fn parse(word: &str) -> Self {
        let known = Self::ALL.into_iter().find(|nudge| nudge.as_str() == word);
        known.unwrap_or(Self::Unclear)
    }
}

impl fmt::Display for Nudge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl NudgeAnswer {
    /// The provider refuses speech as such.
    pub fn stopped(says: String) -> Self {
        let pause = STOPPED;
        Self::Refused { says, pause }
    }

    /// The provider wants fewer requests.
    pub fn throttled(says: String, retry_after: Option<Duration>) -> Self {
        let pause = retry_after.unwrap_or(THROTTLED).min(MAX_STOP);
        Self::Refused { says, pause }
    }

    pub fn nudge(&self) -> Nudge {
        match self {
            Self::Spoke => Nudge::Spoke,
            Self::Silent(_) => Nudge::Silent,
            Self::Unclear(_) => Nudge::Unclear,
            Self::Refused { says: _, pause: _ } => Nudge::Refused,
        }
    }

    pub fn says(&self) -> Option<&str> {
        match self {
            Self::Spoke => None,
            Self::Silent(says) | Self::Unclear(says) | Self::Refused { says, pause: _ } => {
                Some(says)
            }
        }
    }
}

impl NudgeRules {
    /// Whether a voice that was just looked up, and stays in processing, is one to nudge. `held` is the time since it
    /// was claimed.
    pub fn want(
        &self,
        claimed: &Claimed,
        voice: &Voice,
        seen: &Seen,
        held: Duration,
        age_from: AgeFrom,
    ) -> bool {
        let prepares = matches!(
            seen,
            Seen::Processing {
                stage: Stage::Preparing,
                kind: _,
            }
        );
        prepares
            && voice.preview().is_none()
            && voice.category != Some(Category::Professional)
            && claimed.nudge.is_none()
            && claimed.age.counted(age_from) + held >= self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::verdict::Age;
    use crate::core::voice::{Position, RowId};

    #[test]
    fn a_voice_is_nudged_once_and_not_before_its_time() {
        let rules = NudgeRules {
            after: Duration::from_secs(60),
            limit: 1,
        };
        let claimed = |seconds: u64, nudge| Claimed {
            row: RowId::new("1"),
            position: Position::new("1"),
            provider_id: Some("a".to_owned()),
            age: Age {
                created: Duration::from_secs(9999),
                witnessed: Duration::from_secs(seconds),
                was_finished: false,
            },
            unasked_for: Duration::ZERO,
            kind: None,
            is_isolated: false,
            unanswered: 0,
            nudge,
        };
        let seen = |stage| Seen::Processing {
            kind: "cloned".to_owned(),
            stage,
        };
        let preparing = seen(Stage::Preparing);
        let silent = Voice::default();
        let professional = Voice {
            category: Some(Category::Professional),
            ..Voice::default()
        };
        let with_preview = Voice {
            preview_url: Some("https://example.com/a.mp3".to_owned()),
            ..Voice::default()
        };
        for (claimed, voice, seen, expected) in [
            (claimed(58, None), &silent, &preparing, false),
            (claimed(59, None), &silent, &preparing, true),
            (claimed(99, None), &silent, &seen(Stage::Training), false),
            (
                claimed(99, None),
                &silent,
                &seen(Stage::WaitingForOwner),
                false,
            ),
            (claimed(99, None), &silent, &Seen::Missing, false),
            (claimed(99, None), &professional, &preparing, false),
            (claimed(99, None), &with_preview, &preparing, false),
        ] {
            let held = Duration::from_secs(1);
            let wanted = rules.want(&claimed, voice, seen, held, AgeFrom::FirstSeen);
            assert_eq!(wanted, expected, "{claimed:?} {voice:?} {seen:?}");
        }
        for nudge in Nudge::ALL {
            let claimed = claimed(99, Some(nudge));
            let age_from = AgeFrom::FirstSeen;
            assert!(!rules.want(&claimed, &silent, &preparing, Duration::ZERO, age_from));
            assert_eq!(Nudge::parse(nudge.as_str()), nudge);
        }
    }
}
