//! The data about the application's table and voice-sync's own tables that operators are shown.

use std::collections::BTreeMap;
use std::iter;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use crate::core::backlog::Backlog;
use crate::core::format::{span, timestamp, url_without_query};
use crate::core::nudge::Nudge;
use crate::core::provider_state::ProviderState;
use crate::core::quantiles::Quantiles;
use crate::core::request_budget::RequestBudget;
use crate::core::transition::Claimed;
use crate::core::verdict::Age;
use crate::core::voice::{Position, RowId};
use crate::store::{SET_ASIDE, StatusDoubt};

/// The state at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Whether voice-sync's own tables exist.
    pub has_own_tables: bool,
    /// The voices in processing.
    pub backlog: Backlog,
    /// The voices that have been in processing for longest, oldest first.
    pub oldest: Vec<VoiceRecord>,
    /// The newest passes and commands, newest first.
    pub runs: Vec<LedgerEntry>,
    /// How long the voices that were completed in the ledger's passes had been in processing.
    pub completion_times: Quantiles,
    /// The same by kind. The daemon derives the next lookups from it.
    pub completion_times_by_kind: BTreeMap<String, Quantiles>,
    /// The accounts that the newest passes used.
    pub accounts: Vec<Account>,
    /// Events that wait.
    pub pending_events: u64,
    /// How long the oldest of them has waited.
    pub oldest_event: Option<Duration>,
    /// Event buses that failed and have not worked since.
    pub failing_buses: Vec<FailingBus>,
    /// Configured status values that are probably wrong.
    pub status_doubts: Vec<StatusDoubt>,
}

/// The state of an account at the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// A digest of base URL and key.
    pub account: Uuid,
    /// What keeps passes from sending requests, if anything does.
    pub state: ProviderState,
    /// When it last found a voice.
    pub found_at: Option<DateTime<Utc>>,
    /// Kinds of voices that the list does not return.
    pub unlisted: Vec<String>,
    /// Since when the mass-absence guard is on.
    pub mass_absence_since: Option<DateTime<Utc>>,
    /// The request budget of the newest pass with one, and the number of voices per request.
    pub budget: Option<(RequestBudget, u64)>,
    pub nudging: Nudging,
}

/// An event bus with a pause after failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailingBus {
    /// How many times in a row it failed.
    pub failures: u32,
    /// How long no process tries it.
    pub backing_off_for: Duration,
}

/// The ledger's entry for a pass, or for a command that changed something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerEntry {
    /// Its id, which is also in its log lines.
    pub run_id: Uuid,
    /// The command; `None` is a pass.
    pub command: Option<String>,
    /// When it began.
    #[serde(serialize_with = "time")]
    pub started_at: DateTime<Utc>,
    /// When the entry was written.
    #[serde(serialize_with = "time")]
    pub finished_at: DateTime<Utc>,
    /// How long it took.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    pub exit_code: u8,
    /// The counts of a pass's report, or of a command.
    pub counts: Value,
}

impl LedgerEntry {
    /// Whether it changed, looked up or published anything, or failed.
    pub fn did_something(&self) -> bool {
        let any = |count: &str| self.count(count) > 0;
        self.command.is_some() || self.exit_code != 0 || any("due") || any("events_published")
    }

    /// One of its counts; zero, where it has none of that name.
    pub fn count(&self, name: &str) -> u64 {
        self.counts[name].as_u64().unwrap_or(0)
    }
}

/// A row of the application's table, and voice-sync's notes about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoiceRecord {
    /// Its row, as events have it.
    #[serde(rename = "row_id")]
    pub voice_id: String,
    /// The id of the row, in the form of the database.
    #[serde(skip)]
    pub row: RowId,
    pub user_id: Option<String>,
    pub provider_id: Option<String>,
    /// The status in the row.
    pub status: String,
    /// What the status means to voice-sync.
    #[serde(skip)]
    pub state: RowState,
    #[serde(serialize_with = "url_without_query")]
    pub preview_url: Option<String>,
    /// When the row was created.
    #[serde(serialize_with = "optional_time")]
    pub created_at: Option<DateTime<Utc>>,
    /// When it was completed.
    #[serde(serialize_with = "optional_time")]
    pub completed_at: Option<DateTime<Utc>>,
    /// How long it has been in processing, if it is.
    #[serde(rename = "age_seconds", serialize_with = "optional_seconds")]
    pub age: Option<Duration>,
    /// How long voice-sync has seen it in processing with this provider id, if it has.
    #[serde(rename = "witnessed_seconds", serialize_with = "optional_seconds")]
    pub witnessed: Option<Duration>,
    /// Until when a pass has leased it.
    #[serde(skip)]
    pub lease_until: Option<DateTime<Utc>>,
    /// The notes, if voice-sync has seen the voice and not completed it.
    pub notes: Option<Notes>,
    /// Its nudge, if it had one.
    pub nudge: Option<NudgeRecord>,
}

/// A text-to-speech request that makes a preview appear.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NudgeRecord {
    #[serde(serialize_with = "time")]
    pub nudged_at: DateTime<Utc>,
    #[serde(serialize_with = "display")]
    pub answer: Nudge,
    /// The provider's message, if the answer was not audio.
    pub detail: Option<String>,
}

impl Nudging {
    /// Why no previews are nudged, if this is so.
    pub fn stops(&self) -> Option<String> {
        let says = self.stopped_by.as_deref()?;
        (!self.stopped_for.is_zero()).then(|| {
            format!(
                "the provider refuses text-to-speech; no previews are nudged for another {}: {says}",
                span(self.stopped_for)
            )
        })
    }
}

/// The state of nudging with an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nudging {
    /// Nudges within a day, and the characters that were spoken.
    pub today: u64,
    pub characters: u64,
    /// How long nothing is nudged, and why.
    pub stopped_for: Duration,
    pub stopped_by: Option<String>,
}

impl VoiceRecord {
    /// The notes, unless they are about an earlier clone, or an earlier time in processing.
    pub fn notes_about_it(&self) -> Option<&Notes> {
        let is_back = self.state == RowState::Processing;
        self.notes.as_ref().filter(|notes| {
            notes.provider_id == self.provider_id && !(is_back && notes.failed_at.is_some())
        })
    }

    /// The voice in the form of a claim.
    pub fn as_claimed(&self) -> Claimed {
        let age = Age {
            created: self.age.unwrap_or_default(),
            witnessed: self.witnessed.unwrap_or_default(),
            was_finished: self.completed_at.is_some(),
        };
        let notes = self.notes_about_it();
        Claimed {
            row: self.row.clone(),
            position: Position::new(self.row.as_str()),
            provider_id: self.provider_id.clone(),
            age,
            unasked_for: age.created,
            kind: notes.and_then(|notes| notes.kind.clone()),
            is_isolated: false,
            unanswered: notes.map_or(0, |notes| notes.unanswered),
            nudge: self.nudge.as_ref().map(|nudge| nudge.answer),
        }
    }

    /// Until when it is set aside, if it is at this moment.
    pub fn set_aside_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let until = self.notes_about_it()?.set_aside_until;
        until.filter(|until| *until > now && *until <= now + SET_ASIDE)
    }

    /// How many times in a row it could not be looked up, and since when, if it cannot be.
    pub fn unanswered(&self) -> Option<(u32, Option<DateTime<Utc>>)> {
        let notes = self.notes_about_it()?;
        (notes.unanswered > 0).then_some((notes.unanswered, notes.unanswered_since))
    }

    /// Whether a text from a user is its row id or provider id.
    pub fn is_named(&self, name: &str) -> bool {
        is_same_id(&self.voice_id, name)
            || self.row.as_str() == name
            || self.provider_id.as_deref() == Some(name)
    }
}

/// Whether two texts are the same, or one UUID in two forms.
pub fn is_same_id(one: &str, other: &str) -> bool {
    let uuid = Uuid::try_parse(one);
    one == other || uuid.is_ok() && uuid == Uuid::try_parse(other)
}

/// The meaning of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// In processing.
    Processing,
    /// Completed.
    Completed,
    /// Failed.
    Failed,
    /// Another status of the application.
    Other,
}

impl RowState {
    /// From the name in the store's SQL.
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "processing" => Self::Processing,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            _ => Self::Other,
        }
    }
}

/// Voice-sync's notes about a voice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notes {
    /// The provider id that the notes are about. If the row has another one by now, the notes do not apply.
    pub provider_id: Option<String>,
    /// When it was first seen.
    #[serde(serialize_with = "time")]
    pub first_seen: DateTime<Utc>,
    /// When it was found to be cloned again, or was put back: its age starts here.
    #[serde(serialize_with = "optional_time")]
    pub restarted_at: Option<DateTime<Utc>>,
    /// When a pass last had a result for it: an answer, or that it cannot be looked up.
    #[serde(serialize_with = "optional_time")]
    pub last_asked: Option<DateTime<Utc>>,
    /// When a daemon looks it up next.
    #[serde(serialize_with = "optional_time")]
    pub next_due: Option<DateTime<Utc>>,
    /// Until when a pass has leased it.
    #[serde(serialize_with = "optional_time")]
    pub lease_until: Option<DateTime<Utc>>,
    /// The last pass or command that wrote a note.
    pub run_id: Uuid,
    pub kind: Option<String>,
    /// What it waits for.
    pub stage: Option<String>,
    /// Lookups in a row that did not find it.
    pub missing_count: u32,
    /// Since when they did not.
    #[serde(serialize_with = "optional_time")]
    pub missing_since: Option<DateTime<Utc>>,
    /// How many times in a row it could not be looked up or stored.
    pub strikes: u32,
    /// Until when it is set aside.
    #[serde(serialize_with = "optional_time")]
    pub set_aside_until: Option<DateTime<Utc>>,
    /// The last error.
    #[serde(rename = "trouble")]
    pub last_error: Option<String>,
    /// When voice-sync failed it.
    #[serde(serialize_with = "optional_time")]
    pub failed_at: Option<DateTime<Utc>>,
    pub failure: Option<String>,
    /// How many times in a row it could not be looked up, while the provider answered other requests.
    pub unanswered: u32,
    /// Since when it could not be looked up.
    #[serde(serialize_with = "optional_time")]
    pub unanswered_since: Option<DateTime<Utc>>,
}

/// Which rows of the application's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Rows with these keys, in any of their forms.
    Rows(Vec<String>),
    /// Rows with these provider ids, which may have no index.
    ProviderIds(Vec<String>),
    /// Those of a kind, after a row, in the order of keys.
    Listed(VoiceFilter, Option<RowId>),
}

/// Kinds of voices that can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoiceFilter {
    Processing,
    Completed,
    Failed,
    /// In processing, and set aside.
    SetAside,
    /// In processing, and not found by the last lookups.
    Missing,
    /// In processing, and not to be looked up while the provider answers other requests.
    Unanswerable,
}

/// An event in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRecord {
    /// Its number in the outbox.
    pub id: i64,
    /// The id in the event.
    pub event_id: Uuid,
    /// The run that recorded it.
    pub run_id: Uuid,
    pub event_type: String,
    #[serde(rename = "row_id")]
    pub voice_id: String,
    pub user_id: Option<String>,
    /// When its transition was committed.
    #[serde(serialize_with = "time")]
    pub occurred_at: DateTime<Utc>,
    /// The end of the lease, if a process is publishing it.
    #[serde(serialize_with = "optional_time")]
    pub leased_until: Option<DateTime<Utc>>,
    /// When it was published.
    #[serde(serialize_with = "optional_time")]
    pub published_at: Option<DateTime<Utc>>,
}

/// Filters events of the outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only published events, or only unpublished ones.
    pub published: Option<bool>,
    /// Only events with these ids, or about these voices. An empty list is all.
    pub names: Vec<String>,
    /// Only events whose transitions were committed at least this long ago.
    pub older_than: Duration,
    /// Only events whose transitions were committed within this time.
    pub since: Option<Duration>,
}

impl EventFilter {
    /// The ids, in each form that the outbox may contain.
    pub(super) fn all_names(&self) -> Vec<String> {
        self.names.iter().flat_map(|name| forms(name)).collect()
    }

    /// A time before the first event has the same effect as any longer one.
    pub(super) fn bounded(span: Duration) -> Duration {
        span.min(Duration::from_secs(100 * 365 * 24 * 60 * 60))
    }
}

/// A key in the forms that a column may contain: as it was given, and a UUID also with and without dashes.
pub(super) fn forms(key: &str) -> impl Iterator<Item = String> {
    let uuid = Uuid::try_parse(key).ok();
    let others = uuid.map(|uuid| [uuid.hyphenated().to_string(), uuid.simple().to_string()]);
    iter::once(key.to_owned()).chain(others.into_iter().flatten())
}

fn time<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

fn optional_time<S: Serializer>(
    at: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => time(at, serializer),
        None => serializer.serialize_none(),
    }
}

fn display<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn optional_seconds<S: Serializer>(
    span: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => serializer.serialize_f64((span.as_secs_f64() * 1000.0).round() / 1000.0),
        None => serializer.serialize_none(),
    }
}
