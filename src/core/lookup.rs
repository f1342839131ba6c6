//! The result of looking a voice up. Pure.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use super::voice::{ProviderVoiceId, Voice};

/// What the provider answered for a voice.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// It exists. `listed` says whether the list returned it.
    Found {
        voice: Voice,
        /// Whether the list returned it, not a single lookup.
        listed: bool,
    },
    /// A single lookup says that it does not exist.
    Missing,
    /// The provider rejects this id as a wrong request.
    Rejected(String),
    /// A single lookup fails, while the provider answers other requests.
    Unanswerable(Unavailable),
    /// No answer.
    Unavailable(Unavailable),
}

/// Lookups by provider id; every id that was looked up has one.
pub type Lookups = HashMap<ProviderVoiceId, Lookup>;

/// No answer, or an answer that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Unavailable {
    /// The kind of error. The log has one line per kind.
    pub kind: UnavailableKind,
    /// The details, without secrets.
    pub detail: String,
    /// How long the provider asks to wait, if it answered.
    pub retry_after: Option<Duration>,
}

/// Kinds of errors between voice-sync and the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnavailableKind {
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// An answer that broke off.
    Broken,
    /// 500: this request may be the cause.
    Internal,
    /// A status that means "later", or an unexpected one.
    Status,
    /// An answer that does not match the API's description.
    Unreadable,
    /// An answer over the size limit.
    TooLarge,
    /// 429, also after the retries.
    Throttled,
    /// No request was sent: the time of the lease or the pass was over, or the provider asked for a pause.
    NotAsked,
}

impl fmt::Display for UnavailableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Internal => "internal",
            Self::Status => "status",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Throttled => "throttled",
            Self::NotAsked => "not_asked",
        })
    }
}

impl UnavailableKind {
    /// Whether a voice in the request may be the cause, not the provider as a whole.
    pub fn may_lie_in_a_voice(self) -> bool {
        match self {
            Self::Timeout
            | Self::Broken
            | Self::Internal
            | Self::Status
            | Self::Unreadable
            | Self::TooLarge => true,
            Self::Connect | Self::Throttled | Self::NotAsked => false,
        }
    }
}

impl Unavailable {
    /// An error without a `Retry-After`.
    pub fn new(kind: UnavailableKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            retry_after: None,
        }
    }
}
