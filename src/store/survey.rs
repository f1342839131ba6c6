//! What operators are shown of the application's table and of voice-sync's own.

use std::collections::BTreeMap;
use std::iter;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use crate::core::backlog::Backlog;
use crate::core::format::{span, timestamp};
use crate::core::nudge::Nudge;
use crate::core::provider_state::ProviderState;
use crate::core::quantiles::Quantiles;
use crate::core::request_budget::RequestBudget;
use crate::core::transition::Claimed;
use crate::core::verdict::Age;
use crate::core::voice::{Position, RowId};
use crate::store::SET_ASIDE;

/// How things stand, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Whether voice-sync has tables of its own there.
    pub has_own_tables: bool,
    /// The voices in processing.
    pub backlog: Backlog,
    /// Those that have been for longest, first of all the oldest.
    pub oldest: Vec<VoiceRecord>,
    /// The newest passes and commands, newest first.
    pub runs: Vec<LedgerEntry>,
    /// For how long the voices had been in processing that were completed by the passes of the ledger.
    pub completion_times: Quantiles,
    /// The same by kind, from which the daemon learns when to look voices up.
    pub completion_times_by_kind: BTreeMap<String, Quantiles>,
    /// The accounts that were used in the newest passes.
    pub accounts: Vec<Account>,
    /// Events that wait.
    pub pending_events: u64,
    /// How long the oldest of them has.
    pub oldest_event: Option<Duration>,
    /// Event buses that failed, and were not found to work since.
    pub failing_buses: Vec<FailingBus>,
}

/// How an account with the provider stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// A digest of base URL and key.
    pub account: Uuid,
    /// What keeps passes from asking, if anything does.
    pub state: ProviderState,
    /// When it last found a voice.
    pub found_at: Option<DateTime<Utc>>,
    /// Kinds of voices that the list is known to leave out.
    pub unlisted: Vec<String>,
    /// Since when so many voices are missing that none of them fails by it.
    pub mass_absence_since: Option<DateTime<Utc>>,
    /// The request budget of the newest pass that had one, and the voices that one request has room for.
    pub budget: Option<(RequestBudget, u64)>,
    pub nudging: Nudging,
}

/// An event bus that is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailingBus {
    /// How often it failed in a row.
    pub failures: u32,
    /// Until when nobody tries it.
    pub backing_off_for: Duration,
}

/// What the ledger has of a pass, or of a command that changed something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerEntry {
    /// Its id, which is also in its log lines.
    pub run_id: Uuid,
    /// The command; none is a pass.
    pub command: Option<String>,
    /// When it began.
    #[serde(serialize_with = "time")]
    pub started_at: DateTime<Utc>,
    /// When it was written down.
    #[serde(serialize_with = "time")]
    pub finished_at: DateTime<Utc>,
    /// How long it took.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    pub exit_code: u8,
    /// The counts of a pass's report, or what a command did.
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

/// A row of the application's table, and what voice-sync knows of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoiceRecord {
    /// Its row, as events have it.
    #[serde(rename = "row_id")]
    pub voice_id: String,
    /// Its row, as the database has it.
    #[serde(skip)]
    pub row: RowId,
    pub user_id: Option<String>,
    pub provider_id: Option<String>,
    /// The status, as it stands there.
    pub status: String,
    /// What voice-sync takes the status for.
    #[serde(skip)]
    pub state: RowState,
    pub preview_url: Option<String>,
    /// When the row was made.
    #[serde(serialize_with = "optional_time")]
    pub created_at: Option<DateTime<Utc>>,
    /// When it was completed.
    #[serde(serialize_with = "optional_time")]
    pub completed_at: Option<DateTime<Utc>>,
    /// How long it has been in processing, if it is.
    #[serde(rename = "age_seconds", serialize_with = "optional_seconds")]
    pub age: Option<Duration>,
    /// For how long voice-sync has seen it in processing with this provider id, if it is.
    #[serde(rename = "witnessed_seconds", serialize_with = "optional_seconds")]
    pub witnessed: Option<Duration>,
    /// Until when a pass may be asking about it.
    #[serde(skip)]
    pub lease_until: Option<DateTime<Utc>>,
    /// What voice-sync noted, if it ever saw it and did not complete it.
    pub notes: Option<Notes>,
    /// The nudge that it had, if it ever had one.
    pub nudge: Option<NudgeRecord>,
}

/// A request for speech that was to make a preview appear.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NudgeRecord {
    #[serde(serialize_with = "time")]
    pub nudged_at: DateTime<Utc>,
    #[serde(serialize_with = "display")]
    pub answer: Nudge,
    /// What the provider said, if it was no audio.
    pub detail: Option<String>,
}

impl Nudging {
    /// What keeps previews from being nudged, if anything does.
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

/// What is known of nudging with an account.
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
    /// The notes, unless they are about an earlier clone, or about an earlier time in processing.
    pub fn notes_about_it(&self) -> Option<&Notes> {
        let is_back = self.state == RowState::Processing;
        self.notes.as_ref().filter(|notes| {
            notes.provider_id == self.provider_id && !(is_back && notes.failed_at.is_some())
        })
    }

    /// As a pass would claim it.
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

    /// Until when it is set aside, if it is at that moment.
    pub fn set_aside_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let until = self.notes_about_it()?.set_aside_until;
        until.filter(|until| *until > now && *until <= now + SET_ASIDE)
    }

    /// How often in a row it could not be looked up, and since when, if it cannot.
    pub fn unanswered(&self) -> Option<(u32, Option<DateTime<Utc>>)> {
        let notes = self.notes_about_it()?;
        (notes.unanswered > 0).then_some((notes.unanswered, notes.unanswered_since))
    }

    /// Whether a text that a person gave is its row or provider id.
    pub fn is_named(&self, name: &str) -> bool {
        let uuid = Uuid::try_parse(name);
        let same_uuid = || uuid.is_ok() && uuid == Uuid::try_parse(&self.voice_id);
        [self.voice_id.as_str(), self.row.as_str()].contains(&name)
            || self.provider_id.as_deref() == Some(name)
            || same_uuid()
    }
}

/// What a status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// It is voice-sync's to finish.
    Processing,
    /// It is finished.
    Completed,
    /// It is finished, without success.
    Failed,
    /// A status of the application's own.
    Other,
}

impl RowState {
    /// From the word that the store's own SQL has for it.
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "processing" => Self::Processing,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            _ => Self::Other,
        }
    }
}

/// What voice-sync noted of a voice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notes {
    /// The provider id that this is about. Where the row has another one by now, none of it counts.
    pub provider_id: Option<String>,
    /// When it was first seen.
    #[serde(serialize_with = "time")]
    pub first_seen: DateTime<Utc>,
    /// When it was seen to be cloned anew or put back, and its age began again.
    #[serde(serialize_with = "optional_time")]
    pub restarted_at: Option<DateTime<Utc>>,
    /// When a pass last came to something about it: an answer, or that it cannot be asked about.
    #[serde(serialize_with = "optional_time")]
    pub last_asked: Option<DateTime<Utc>>,
    /// When a daemon will ask again.
    #[serde(serialize_with = "optional_time")]
    pub next_due: Option<DateTime<Utc>>,
    /// Until when a pass may be asking.
    #[serde(serialize_with = "optional_time")]
    pub lease_until: Option<DateTime<Utc>>,
    /// The last pass or command that noted something.
    pub run_id: Uuid,
    pub kind: Option<String>,
    /// What it waits for.
    pub stage: Option<String>,
    /// Lookups in a row that did not find it.
    pub missing_count: u32,
    /// Since when they did not.
    #[serde(serialize_with = "optional_time")]
    pub missing_since: Option<DateTime<Utc>>,
    /// How often in a row it could not be asked about or stored.
    pub strikes: u32,
    /// Until when it is left alone for that.
    #[serde(serialize_with = "optional_time")]
    pub set_aside_until: Option<DateTime<Utc>>,
    /// What was the last trouble.
    pub trouble: Option<String>,
    /// When voice-sync failed it.
    #[serde(serialize_with = "optional_time")]
    pub failed_at: Option<DateTime<Utc>>,
    pub failure: Option<String>,
    /// How often in a row it could not be looked up, while the provider answered other requests.
    pub unanswered: u32,
    /// Since when it could not.
    #[serde(serialize_with = "optional_time")]
    pub unanswered_since: Option<DateTime<Utc>>,
}

/// Which rows of the application's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Those with these keys, in any form of theirs.
    Rows(Vec<String>),
    /// Those with these provider ids, by which the table may have no index.
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
    /// Its place in the outbox.
    pub id: i64,
    /// The id that consumers see.
    pub event_id: Uuid,
    /// The run that recorded it.
    pub run_id: Uuid,
    pub event_type: String,
    #[serde(rename = "row_id")]
    pub voice_id: String,
    pub user_id: Option<String>,
    /// When its transition committed.
    #[serde(serialize_with = "time")]
    pub occurred_at: DateTime<Utc>,
    /// Until when a process may be publishing it.
    #[serde(serialize_with = "optional_time")]
    pub leased_until: Option<DateTime<Utc>>,
    /// When it was published.
    #[serde(serialize_with = "optional_time")]
    pub published_at: Option<DateTime<Utc>>,
}

/// Which events of the outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only those that were published, or only those that were not.
    pub published: Option<bool>,
    /// Only those with these event ids, or about these voices. None named is all.
    pub names: Vec<String>,
    /// Only those whose transitions committed so long ago.
    pub older_than: Duration,
    /// Only those whose transitions committed within this time.
    pub since: Option<Duration>,
}

impl EventFilter {
    /// Its names, in each form that the outbox may have them in.
    pub(super) fn all_names(&self) -> Vec<String> {
        self.names.iter().flat_map(|name| forms(name)).collect()
    }

    /// A time that ended before there was any event is as good as all longer ones.
    pub(super) fn bounded(span: Duration) -> Duration {
        span.min(Duration::from_secs(100 * 365 * 24 * 60 * 60))
    }
}

/// A key in the forms in which a column may hold it: as it was given, and a UUID also with and
/// without its dashes.
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
