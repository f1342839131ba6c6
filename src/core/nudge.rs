//! Nudging previews: some instant clones have no preview until the first text-to-speech request. Pure.
//!
//! Such a request costs credits, so each voice gets only one, ever.

use std::fmt;
use std::time::Duration;

use super::transition::{Claimed, Seen};
use super::verdict::{AgeFrom, Stage};
use super::voice::{Category, Voice};

/// How long nudging pauses: after the provider refused it; after a request for a pause without a time, or an answer
/// that was not clear; and after a request that was not sent. An outage must not use up the only nudge of many
/// voices.
const REFUSED: Duration = Duration::from_secs(6 * 60 * 60);
const UNCLEAR: Duration = Duration::from_secs(15 * 60);
const UNSENT: Duration = Duration::from_secs(60);
/// The longest such pause.
pub const MAX_STOP: Duration = Duration::from_secs(24 * 60 * 60);

/// Which voices are nudged, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NudgeRules {
    /// How long a voice must have been in processing.
    pub after: Duration,
    /// The maximum number of nudges per day, of all processes together.
    pub limit: u32,
}

/// The result of a nudge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nudge {
    /// Not known: it may be in flight, or its process may have died.
    Sent,
    /// The voice speaks.
    Spoke,
    /// The provider says that this voice cannot speak.
    Silent,
    /// There was no answer, or an answer that says nothing about the voice.
    Unclear,
    /// The provider refuses text-to-speech with this key for now.
    Refused,
    /// There was no connection. This voice may be nudged later.
    Unsent,
}

/// The provider's answer to a nudge, with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NudgeAnswer {
    Spoke,
    Silent(String),
    Unclear(String),
    /// The request is wrong. The cause is the voice if others were spoken with lately; otherwise it is the model or
    /// the plan.
    Rejected(String),
    /// The quota is exceeded, or the key or the plan does not include text-to-speech.
    Refused(String),
    /// The provider asks for fewer requests, for this time.
    Throttled(String, Option<Duration>),
    Unsent(String),
}

impl Nudge {
    pub const ALL: [Self; 6] = [
        Self::Sent,
        Self::Spoke,
        Self::Silent,
        Self::Unclear,
        Self::Refused,
        Self::Unsent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Spoke => "spoke",
            Self::Silent => "silent",
            Self::Unclear => "unclear",
            Self::Refused => "refused",
            Self::Unsent => "unsent",
        }
    }

    /// Reads a stored name. The name of a newer version counts as unclear.
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

/// The consequences of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NudgeOutcome {
    pub nudge: Nudge,
    /// How long nudging pauses, if it does.
    pub pause: Option<Duration>,
}

impl NudgeAnswer {
    /// The consequences of an answer. `others_spoke` is whether other voices spoke within a day.
    pub fn outcome(&self, others_spoke: bool) -> NudgeOutcome {
        let (nudge, pause) = match self {
            Self::Spoke => (Nudge::Spoke, None),
            Self::Silent(_) => (Nudge::Silent, None),
            Self::Rejected(_) if others_spoke => (Nudge::Unclear, None),
            Self::Rejected(_) | Self::Refused(_) => (Nudge::Refused, Some(REFUSED)),
            Self::Throttled(_, pause) => {
                let pause = pause.unwrap_or(UNCLEAR).clamp(UNSENT, MAX_STOP);
                (Nudge::Refused, Some(pause))
            }
            Self::Unclear(_) => (Nudge::Unclear, Some(UNCLEAR)),
            Self::Unsent(_) => (Nudge::Unsent, Some(UNSENT)),
        };
        NudgeOutcome { nudge, pause }
    }

    pub fn says(&self) -> Option<&str> {
        match self {
            Self::Spoke => None,
            Self::Silent(says)
            | Self::Unclear(says)
            | Self::Rejected(says)
            | Self::Refused(says)
            | Self::Throttled(says, _)
            | Self::Unsent(says) => Some(says),
        }
    }
}

impl NudgeRules {
    /// Whether a voice that was looked up just now, and stays in processing, should be nudged. `held` is the time
    /// since it was claimed.
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
            && claimed.nudge.is_none_or(|nudge| nudge == Nudge::Unsent)
            && claimed.age.counted(age_from) + held >= self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::verdict::Age;
    use crate::core::voice::{Position, RowId};

    #[test]
    fn voice_is_nudged_once_after_the_configured_time() {
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
            let wanted = rules.want(
                &claimed,
                &silent,
                &preparing,
                Duration::ZERO,
                AgeFrom::FirstSeen,
            );
            assert_eq!(wanted, nudge == Nudge::Unsent, "{nudge}");
            assert_eq!(Nudge::parse(nudge.as_str()), nudge);
        }
    }

    #[test]
    fn rejected_nudge_pauses_nudging_only_if_no_other_voice_speaks() {
        let says = || "no".to_owned();
        let outcome = |answer: NudgeAnswer, others| {
            let NudgeOutcome { nudge, pause } = answer.outcome(others);
            (nudge, pause.map(|pause| pause.as_secs()))
        };
        for others in [false, true] {
            assert_eq!(outcome(NudgeAnswer::Spoke, others), (Nudge::Spoke, None));
            let silent = NudgeAnswer::Silent(says());
            assert_eq!(outcome(silent, others), (Nudge::Silent, None));
            let refused = NudgeAnswer::Refused(says());
            assert_eq!(outcome(refused, others), (Nudge::Refused, Some(21_600)));
            let unclear = NudgeAnswer::Unclear(says());
            assert_eq!(outcome(unclear, others), (Nudge::Unclear, Some(900)));
            let unsent = NudgeAnswer::Unsent(says());
            assert_eq!(outcome(unsent, others), (Nudge::Unsent, Some(60)));
            for (asked, pause) in [
                (None, 900),
                (Some(0), 60),
                (Some(90), 90),
                (Some(999_999), 86_400),
            ] {
                let asked = asked.map(Duration::from_secs);
                let throttled = NudgeAnswer::Throttled(says(), asked);
                assert_eq!(outcome(throttled, others), (Nudge::Refused, Some(pause)));
            }
        }
        let rejected = || NudgeAnswer::Rejected(says());
        assert_eq!(outcome(rejected(), true), (Nudge::Unclear, None));
        assert_eq!(outcome(rejected(), false), (Nudge::Refused, Some(21_600)));
    }
}
