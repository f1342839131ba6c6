//! What goes into the store's operations and comes out of them.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::OUTBOX_LEASE;
use crate::budget::Spent;
use crate::events::{EventType, OutboxEvent, event_id};
use crate::sketch::Sketch;
use crate::standing::Standing;
use crate::verdict::{Age, Stage};
use crate::voice::{InvalidProviderId, Position, ProviderVoiceId, RowId};

/// Whether anything may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: an SQLite file stays as it is, to the byte.
    ReadOnly,
    /// The three columns of the application's table, and voice-sync's own tables.
    ReadWrite,
}

/// A voice in processing that this pass may look up.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// Its row.
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
}

impl Claimed {
    /// The provider id, checked: only such a one may be asked about.
    pub fn checked_id(&self) -> Result<ProviderVoiceId, InvalidProviderId> {
        ProviderVoiceId::parse(self.provider_id.as_deref().unwrap_or_default())
    }
}

/// One page of the voices in processing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Those that this pass may look up now.
    pub voices: Vec<Claimed>,
    /// Another process is asking about these.
    pub leased_elsewhere: u64,
    /// Left alone for a while, because they kept making trouble.
    pub resting: u64,
    /// Not asked about now, because they cannot be looked up.
    pub quarantined: u64,
    /// Taken over from a process whose lease ran out.
    pub reclaimed: u64,
    /// The last row seen, from which the next page goes on; `None` where there are no more.
    pub last: Option<Position>,
}

/// How things stand, over all passes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overview {
    /// Voices in processing.
    pub processing: i64,
    /// How long the oldest of them has been.
    pub oldest: Option<Duration>,
    /// Voices that are left alone since they kept being set aside.
    pub resting: i64,
    /// Voices that cannot be looked up.
    pub unanswerable: i64,
    /// Events that wait.
    pub outbox: i64,
    /// How long the oldest of them has.
    pub oldest_event: Option<Duration>,
    /// Seconds by which the database's clock is ahead of this host's.
    pub clock_ahead: f64,
}

/// Which voices a page is taken from, in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All in processing, after one row and up to another.
    Range {
        /// Exclusive.
        after: Option<Position>,
        /// Inclusive.
        up_to: Option<Position>,
        /// None of these row or provider ids.
        except: Vec<String>,
    },
    /// Those of these row or provider ids that are in processing, even if they were set aside.
    Named(Vec<String>),
    /// Those of them that a range would have too, after one row.
    Hinted {
        /// Row or provider ids.
        names: Vec<String>,
        /// Exclusive.
        after: Option<Position>,
    },
    /// Those of these rows that nobody has asked about since they were found due.
    Due {
        /// Row ids.
        rows: Vec<String>,
        /// When they were.
        read_at: DateTime<Utc>,
    },
}

/// What comes up next, as it was at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agenda {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Voices in processing, those that are due first; not all of them.
    pub voices: Vec<Upcoming>,
    /// Whether events wait that no process is publishing.
    pub events_wait: bool,
    /// A text that is another one once anything was written, but for what the connection wrote itself.
    pub version: String,
}

/// A voice that is due now or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upcoming {
    /// Its row.
    pub row: RowId,
    /// When it is due; zero, if it is.
    pub due_in: Duration,
    /// Its kind, if it was ever looked up.
    pub kind: Option<String>,
    /// Whether it was found by the last lookup.
    pub was_found: bool,
    /// Whether it is to be asked about by itself, after the others.
    pub is_isolated: bool,
}

impl Upcoming {
    /// A voice that has no schedule, and is due for that.
    pub(super) fn unscheduled(row: RowId, is_isolated: bool) -> Self {
        Self {
            row,
            due_in: Duration::ZERO,
            kind: None,
            was_found: false,
            is_isolated,
        }
    }
}

impl Agenda {
    /// Puts voices first that have no schedule. Of all, no more than so many stay.
    pub fn begin_with(&mut self, mut unscheduled: Vec<Upcoming>, most: u32) {
        unscheduled.append(&mut self.voices);
        unscheduled.truncate(most as usize);
        self.voices = unscheduled;
    }
}

/// Voices that are asked about by themselves, after the others, as they were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolated {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Their rows. First those that were in a failed request and never asked about by themselves.
    pub rows: Vec<RowId>,
    /// How many these are.
    pub new: usize,
}

impl Selection {
    /// All in processing.
    pub fn all() -> Self {
        Self::Range {
            after: None,
            up_to: None,
            except: Vec::new(),
        }
    }

    /// For voices that are due, the moment at which they were.
    pub(super) fn read_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Due { read_at, .. } => Some(*read_at),
            Self::Range { .. } | Self::Hinted { .. } | Self::Named(_) => None,
        }
    }

    /// The bounds of its rows, its names, and what it asks of a row given the condition that the row
    /// has one of the names.
    pub(super) fn parts(&self, is_named: &str) -> ([Option<&Position>; 2], &[String], String) {
        match self {
            Self::Range {
                after,
                up_to,
                except,
            } => {
                // A row without a provider id has none of the names either.
                let others = format!(" AND {is_named} IS NOT TRUE");
                let filter = if except.is_empty() {
                    String::new()
                } else {
                    others
                };
                ([after.as_ref(), up_to.as_ref()], except, filter)
            }
            Self::Named(names) | Self::Due { rows: names, .. } => {
                ([None, None], names, format!(" AND {is_named}"))
            }
            Self::Hinted { names, after } => {
                let bounds = [after.as_ref(), None];
                (bounds, names, format!(" AND {is_named}"))
            }
        }
    }
}

/// A change of status, on the ground of an answer about `provider_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The row to change.
    pub row: RowId,
    /// The id that was looked up: if the row has another by now, nothing happens.
    pub provider_id: ProviderVoiceId,
    /// What to.
    pub target: Target,
}

impl Transition {
    /// The id of the event that tells of it.
    pub(super) fn event_id(&self) -> Uuid {
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
    /// The event that tells of it.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::Completed { .. } => EventType::VoiceCreated,
            Self::Failed { .. } => EventType::VoiceUpdated,
        }
    }
}

/// What became of a claimed voice that made no transition. Noting it gives the lease back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its row.
    pub row: RowId,
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
        /// Its category.
        kind: String,
        /// What it waits for.
        stage: Stage,
    },
    /// The provider does not know it.
    Missing,
    /// It cannot be asked about or stored, and why.
    SetAside(String),
    /// It cannot be looked up, while the provider answers other requests.
    Unanswerable {
        /// Why.
        reason: String,
        /// How often in a row, this time included.
        times: u32,
    },
    /// It was in a request that failed, perhaps because of it, and there was no time to find out.
    Suspected(String),
    /// There was no answer, and why. This changes nothing that is known of the voice.
    Unavailable(String),
}

impl Seen {
    /// As the columns `seen`, `kind`, `stage` and `trouble`.
    pub(super) fn columns(&self) -> (&'static str, Option<&str>, Option<String>, Option<&str>) {
        match self {
            Self::Processing { kind, stage } => {
                ("processing", Some(kind), Some(stage.to_string()), None)
            }
            Self::Missing => ("missing", None, None, None),
            Self::SetAside(reason) => ("set_aside", None, None, Some(reason)),
            Self::Unanswerable { reason, times: _ } => ("unanswerable", None, None, Some(reason)),
            Self::Suspected(reason) => ("suspected", None, None, Some(reason)),
            Self::Unavailable(trouble) => ("unavailable", None, None, Some(trouble)),
        }
    }
}

/// What becomes of the events of transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// None are recorded: there is no event bus.
    Nothing,
    /// They are recorded for whoever publishes next.
    ForAnyone,
    /// They are recorded, and leased to this process, which publishes them at once.
    ForMe,
}

impl Record {
    pub(super) fn is_wanted(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::ForAnyone | Self::ForMe => true,
        }
    }

    pub(super) fn lease(self) -> Duration {
        match self {
            Self::Nothing | Self::ForAnyone => Duration::ZERO,
            Self::ForMe => OUTBOX_LEASE,
        }
    }
}

/// What a bulk of transitions did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// The rows that changed; the others had been changed by somebody else.
    pub moved: HashSet<RowId>,
    /// Rows that somebody else has locked: nothing was done to them.
    pub locked: HashSet<RowId>,
    /// Their events, as far as they were recorded.
    pub events: Vec<OutboxEvent>,
}

/// An event that a run recorded earlier.
pub(super) struct Recorded {
    pub(super) event: OutboxEvent,
    pub(super) is_published: bool,
}

/// A voice that the provider did not know, this time and perhaps earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct MissingVoice {
    /// Its row.
    pub row: RowId,
    /// The provider id that is not known.
    pub provider_id: String,
    /// Lookups in a row that did not find it.
    pub times: u32,
    /// Time since the first of them.
    pub lasting: Duration,
    /// Since when the account has found no voice, if it ever did: `None` is never.
    pub last_found: Option<Duration>,
}

/// Events that are recorded and not published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// All of them.
    pub all: u64,
    /// Those that no process is just publishing.
    pub unleased: u64,
    /// The last of them.
    pub newest: Option<i64>,
}

/// Whether an event bus may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusTurn {
    /// Nobody found it failing.
    Works,
    /// It failed, and it is this process that may try again.
    Probe {
        /// How often it failed in a row.
        failures: u32,
    },
    /// It failed, and nobody tries before this has passed, or somebody else does now.
    LeftAlone(Duration),
}

/// What the last pass and the provider's account left behind for this one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// The row after which the last pass stopped, if it did not get to the end.
    pub resume_after: Option<Position>,
    /// Kinds of voices that the list is known to leave out.
    pub unlisted: HashSet<String>,
    /// Whether any voice is isolated.
    pub any_isolated: bool,
    /// Whether so many voices were missing that none may fail by it.
    pub mass_absence: bool,
    /// Whether the key found voices within a day.
    pub key_works: bool,
    /// How the account stands with the provider.
    pub standing: Standing,
    /// What the passes of the last two minutes spent of the retry budget.
    pub spent: Spent,
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The pass.
    pub run_id: Uuid,
    /// The provider's account, if any voice was asked about.
    pub account: Option<Uuid>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub exit_code: u8,
    /// Voices that the provider knew.
    pub found: u64,
    /// The report's counts.
    pub counts: Value,
    /// Where the next pass should begin.
    pub cursor: NextPass,
    /// Kinds of voices that the list left out, to be remembered.
    pub unlisted: Vec<String>,
    /// The concurrency that the provider bore, likewise.
    pub concurrency: Option<f64>,
    /// For how long the voices had been in processing that it completed.
    pub completion_times: Sketch,
}

impl Run {
    /// None completed is none noted.
    pub(super) fn completion_times(&self) -> Option<Value> {
        let any = self.completion_times.count() > 0;
        any.then(|| json!(self.completion_times))
    }
}

/// A command that changes something, for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRun {
    /// Its id.
    pub run_id: Uuid,
    /// The command.
    pub command: &'static str,
    /// When it began.
    pub started_at: DateTime<Utc>,
}

impl CommandRun {
    /// One that begins now.
    pub fn begin(command: &'static str) -> Self {
        Self {
            run_id: Uuid::new_v4(),
            command,
            started_at: Utc::now(),
        }
    }
}

/// Where the next pass over the table should begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextPass {
    /// Where it would have begun anyway: this pass was about named voices.
    AsBefore,
    /// At the beginning.
    FromTheBeginning,
    /// After this row, where this pass had to stop.
    After(Position),
}

impl NextPass {
    /// Whether the cursor moves, and to where.
    pub(super) fn columns(&self) -> (bool, Option<&str>) {
        match self {
            Self::AsBefore => (false, None),
            Self::FromTheBeginning => (true, None),
            Self::After(row) => (true, Some(row.as_str())),
        }
    }
}
