//! What becomes of a voice that a pass looked up: a change of its status, or a note. Pure.

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
    /// Where it stands in a walk.
    pub position: Position,
    /// The provider id, as it stands there.
    pub provider_id: Option<String>,
    /// How long it has been in processing.
    pub age: Age,
    /// Time since the lookup before, or else its age.
    pub unasked_for: Duration,
    /// Its kind, if it was ever looked up.
    pub kind: Option<String>,
    /// Whether it is to be asked about by itself, after the others.
    pub is_isolated: bool,
    /// How often in a row it had no answer while the provider worked.
    pub unanswered: u32,
    /// What came of its nudge, if it ever had one.
    pub nudge: Option<Nudge>,
}

impl Claimed {
    /// The provider id, checked: only such a one may be asked about.
    pub fn checked_id(&self) -> Result<ProviderVoiceId, InvalidProviderId> {
        ProviderVoiceId::parse(self.provider_id.as_deref().unwrap_or_default())
    }
}

/// A change of status, on the ground of an answer about `provider_id`.
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
    /// The id of the event that tells of it.
    pub(crate) fn event_id(&self) -> Uuid {
        event_id(&self.row, &self.provider_id, self.target.event_type())
    }
}

/// The status that a voice moves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Ready, with a preview that fits the column.
    Completed {
        /// Where it is.
        preview_url: Option<String>,
    },
    /// Never ready.
    Failed {
        /// Why, for the log and voice-sync's own table.
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

    /// The event that tells of it.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::Completed { .. } => EventType::VoiceCreated,
            Self::Failed { .. } => EventType::VoiceUpdated,
        }
    }
}

/// What became of a claimed voice that made no transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub row: RowId,
    /// The provider id that this is about, as it stood there.
    pub provider_id: Option<String>,
    /// What was seen.
    pub seen: Seen,
    /// How long to leave it alone.
    pub again_in: Duration,
}

/// What was seen of a voice that made no transition.
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
    /// It cannot be asked about or stored.
    SetAside(SetAside),
    /// It cannot be looked up, while the provider answers other requests.
    Unanswerable {
        reason: String,
        /// How often in a row, this time included.
        times: u32,
    },
    /// It was in a request that failed, perhaps because of it, and there was no time to find out.
    Suspected(String),
    /// There was no answer, and why. This changes nothing that is known of the voice.
    Unavailable(String),
    /// There was an answer, but the application had changed the row or held a lock on it.
    Superseded,
}

/// Why a voice cannot be asked about or stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetAside {
    /// Its row has no provider id, or one that is none.
    #[error(transparent)]
    ProviderId(#[from] InvalidProviderId),
    /// The provider takes its id for a wrong request.
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
    /// What [`SetAside::kind`] may be.
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
