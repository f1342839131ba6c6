//! The effect of a lookup: a change of status, or a note. Pure.

use std::time::Duration;

use uuid::Uuid;

use super::event::{EventType, event_id};
use super::nudge::Nudge;
use super::verdict::{Age, Stage, Unstorable};
use super::voice::{InvalidProviderId, Position, ProviderVoiceId, RowId, StoredProviderId};

/// A voice in processing that this pass may look up.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    pub row: RowId,
    /// Its position in the order of the pass.
    pub position: Position,
    /// The provider id, as it is in the row.
    pub provider_id: Option<String>,
    /// How long it has been in processing.
    pub age: Age,
    /// Time since the previous lookup, or else its age.
    pub unasked_for: Duration,
    /// Its kind, if it was ever looked up.
    pub kind: Option<String>,
    /// Whether it is looked up alone, after the others.
    pub is_isolated: bool,
    /// How many lookups in a row failed while the provider worked.
    pub unanswered: u32,
    /// The result of its nudge, if it had one.
    pub nudge: Option<Nudge>,
}

impl Claimed {
    /// The provider id, if it is valid: only a valid one may be looked up.
    pub fn checked_id(&self) -> Result<ProviderVoiceId, InvalidProviderId> {
        ProviderVoiceId::parse(self.provider_id.as_deref().unwrap_or_default())
    }
}

/// A change of status, based on an answer about `provider_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The row to change.
    pub row: RowId,
    /// The id that was looked up: if the row has another by now, nothing happens.
    pub provider_id: StoredProviderId,
    /// What to.
    pub target: Target,
}

impl Transition {
    /// The id of its event.
    pub(crate) fn event_id(&self) -> Uuid {
        event_id(&self.row, &self.provider_id, self.target.event_type())
    }
}

/// The status that a voice moves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Ready, with a preview that fits the column.
    Completed {
        /// The preview.
        preview_url: Option<String>,
    },
    /// It will never be ready.
    Failed {
        /// The reason, for the log and for voice-sync's own table.
        reason: String,
    },
}

impl Target {
    pub(crate) fn completes(&self) -> bool {
        match self {
            Self::Completed { .. } => true,
            Self::Failed { .. } => false,
        }
    }

    pub(crate) fn preview_url(&self) -> Option<&str> {
        match self {
            Self::Completed { preview_url } => preview_url.as_deref(),
            Self::Failed { .. } => None,
        }
    }

    /// The type of its event.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::Completed { .. } => EventType::VoiceCreated,
            Self::Failed { .. } => EventType::VoiceUpdated,
        }
    }
}

/// The result for a claimed voice without a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub row: RowId,
    /// The provider id that this is about, as it is in the row.
    pub provider_id: Option<String>,
    /// What was found.
    pub seen: Seen,
    /// How long until the next lookup.
    pub again_in: Duration,
}

/// What was found about a voice without a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is still processing.
    Processing {
        kind: String,
        /// What it waits for.
        stage: Stage,
    },
    /// The provider does not know it.
    Missing,
    /// It cannot be looked up or stored.
    SetAside(SetAside),
    /// It cannot be looked up, while the provider answers other requests.
    Unanswerable {
        reason: String,
        /// How often in a row, including this time.
        times: u32,
    },
    /// It was in a request that failed, perhaps because of it, and there was no time to look it up alone.
    Suspected(String),
    /// There was no answer, with the reason. What is known about the voice stays the same.
    Unavailable(String),
    /// There was an answer, but the application had changed or locked the row.
    Superseded,
}

/// Why a voice cannot be looked up or stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetAside {
    /// Its row has no provider id, or an invalid one.
    #[error(transparent)]
    ProviderId(#[from] InvalidProviderId),
    /// The provider rejects its id as a wrong request.
    #[error("the provider rejects its id: {0}")]
    Rejected(String),
    /// Its preview cannot be stored.
    #[error(transparent)]
    Preview(#[from] Unstorable),
    /// The database refuses the change of its row.
    #[error("the database refuses the change: {0}")]
    Refused(String),
}

impl SetAside {
    /// All values of [`SetAside::kind`].
    pub const KINDS: [&str; 4] = [
        "provider_id",
        "preview",
        "rejected_by_provider",
        "refused_by_database",
    ];

    /// The kind of reason, in logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ProviderId(_) => "provider_id",
            Self::Rejected(_) => "rejected_by_provider",
            Self::Preview(_) => "preview",
            Self::Refused(_) => "refused_by_database",
        }
    }
}
