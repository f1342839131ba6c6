//! The fates of simulated voices.

use std::str::FromStr;

use crate::plan::FateError;

/// How a voice develops.
///
/// One variant for each situation that clients of the voices API meet: those in ElevenLabs' documentation, those that
/// gateways cause, and answers that violate the API's description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fate {
    /// An instant clone that gets its preview.
    #[default]
    Ready,
    /// An instant clone that never gets a preview.
    NoPreview,
    /// An instant clone that gets its preview after a request for speech.
    Silent,
    /// An instant clone that is banned.
    Banned,
    /// An instant clone that waits for its owner to verify it.
    Unverified,
    /// A professional clone whose training succeeds.
    PvcReady,
    /// A professional clone whose training fails.
    PvcFailed,
    /// A professional clone whose training never ends.
    PvcTraining,
    /// A professional clone that waits for its owner to verify it.
    PvcUnverified,
    /// A voice that does not exist.
    Missing,
    /// A voice that the list never returns although the single lookup does.
    Unlisted,
    /// A ready voice with a preview address longer than most columns.
    LongPreview,
    /// A ready voice with a NUL in its preview address, which PostgreSQL's text cannot hold.
    NulPreview,
    /// A voice with a top-level `status` that becomes `completed`.
    StatusCompleted,
    /// A voice with a top-level `status` that becomes `failed`.
    StatusFailed,
    /// A voice with a top-level `status` that stays `processing`.
    StatusProcessing,
    /// A voice with undocumented values and fields.
    Strange,
    /// A voice whose fields have the wrong JSON types.
    Malformed,
}

impl Fate {
    /// All fates, in the order of help texts.
    pub const ALL: [Self; 18] = [
        Self::Ready,
        Self::NoPreview,
        Self::Silent,
        Self::Banned,
        Self::Unverified,
        Self::PvcReady,
        Self::PvcFailed,
        Self::PvcTraining,
        Self::PvcUnverified,
        Self::Missing,
        Self::Unlisted,
        Self::LongPreview,
        Self::NulPreview,
        Self::StatusCompleted,
        Self::StatusFailed,
        Self::StatusProcessing,
        Self::Strange,
        Self::Malformed,
    ];

    /// The word for this fate in names, seed files and synthetic ids.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.described().0
    }

    /// One line for people: how the voice develops over time.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.described().1
    }

    fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::Ready => ("ready", "instant clone; gets its preview_url at its time"),
            Self::NoPreview => ("nopreview", "instant clone; never gets a preview_url"),
            Self::Silent => (
                "silent",
                "instant clone; gets its preview_url at its time, once it was spoken with",
            ),
            Self::Banned => (
                "banned",
                "instant clone; safety_control is BAN from its time on",
            ),
            Self::Unverified => ("unverified", "instant clone; waits for its owner for ever"),
            Self::PvcReady => (
                "pvcready",
                "professional clone; both models fine_tuned at its time",
            ),
            Self::PvcFailed => (
                "pvcfailed",
                "professional clone; both models failed at its time",
            ),
            Self::PvcTraining => ("pvctraining", "professional clone; fine_tuning for ever"),
            Self::PvcUnverified => (
                "pvcunverified",
                "professional clone; waits for its owner for ever, not_started",
            ),
            Self::Missing => ("missing", "does not exist: not listed, voice_not_found"),
            Self::Unlisted => ("unlisted", "as ready, but only the single lookup shows it"),
            Self::LongPreview => (
                "longpreview",
                "as ready, with a preview_url of 3,000 characters",
            ),
            Self::NulPreview => ("nulpreview", "as ready, with \\u0000 in its preview_url"),
            Self::StatusCompleted => (
                "statuscompleted",
                "top-level status: processing, then completed with a preview",
            ),
            Self::StatusFailed => ("statusfailed", "top-level status: processing, then failed"),
            Self::StatusProcessing => ("statusprocessing", "top-level status: processing for ever"),
            Self::Strange => (
                "strange",
                "as ready, with unknown category, fine-tuning state and fields",
            ),
            Self::Malformed => (
                "malformed",
                "wrong JSON types: preview_url, category and fine_tuning",
            ),
        }
    }
}

impl FromStr for Fate {
    type Err = FateError;

    fn from_str(word: &str) -> Result<Self, FateError> {
        Self::ALL
            .into_iter()
            .find(|fate| fate.word() == word)
            .ok_or_else(|| FateError::Unknown(word.to_owned()))
    }
}
