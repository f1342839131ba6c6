//! What asking the provider about a voice came to. Pure.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use super::voice::{ProviderVoiceId, Voice};

/// What the provider answered for a voice.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// How far it is. `listed` says whether the list showed it.
    Found {
        voice: Voice,
        /// Found in the list, rather than by a single lookup.
        listed: bool,
    },
    /// Asked for singly, it does not exist.
    Missing,
    /// The provider takes this id for a wrong request.
    Rejected(String),
    /// Asked for singly, it gets no answer, while the provider answers other requests.
    Unanswerable(Unavailable),
    /// No answer.
    Unavailable(Unavailable),
}

/// Answers by provider id; every id that was asked about has one.
pub type Lookups = HashMap<ProviderVoiceId, Lookup>;

/// No answer, or none that could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Unavailable {
    /// Which kind, for counting: one log line a kind.
    pub kind: UnavailableKind,
    /// What exactly, without secrets.
    pub detail: String,
    /// What the provider asks for, where it answered at all.
    pub retry_after: Option<Duration>,
}

/// Kinds of trouble between here and the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnavailableKind {
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// An answer that broke off.
    Broken,
    /// 500: it may be this request that the provider fails on.
    Internal,
    /// A status that says "later", or that nobody expects.
    Status,
    /// An answer that is not what the API describes.
    Unreadable,
    /// An answer over the size limit.
    TooLarge,
    /// 429, still after the retries.
    Throttled,
    /// Not asked: the time of the lease or the pass was over, or the provider asked for a pause.
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
    /// Whether it may come of what the request asked for, rather than of the provider as a whole.
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
    /// Trouble about which the provider said nothing.
    pub fn new(kind: UnavailableKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            retry_after: None,
        }
    }
}
