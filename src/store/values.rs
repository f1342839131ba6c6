//! The parameters and results of the store's operations.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::core::event::{BatchId, OutboxEvent};
use crate::core::provider_state::{ProviderState, Spent};
use crate::core::quantiles::Quantiles;
use crate::core::request_budget::Spending;
use crate::core::transition::Claimed;
use crate::core::voice::{Position, ProviderVoiceId, RowId};

/// What may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: an SQLite file stays the same byte for byte.
    ReadOnly,
    /// The three columns of the application's table, and voice-sync's own tables.
    ReadWrite,
}

/// The id of a lease: one for the voices of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub Uuid);

/// One page of the voices in processing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Voices that this pass may look up now.
    pub voices: Vec<Claimed>,
    /// Voices that another process has leased.
    pub leased_elsewhere: u64,
    /// Voices that are skipped for a day, because they could not be looked up or stored three times.
    pub set_aside: u64,
    /// Voices that are quarantined, because they cannot be looked up.
    pub quarantined: u64,
    /// Voices taken over from a process whose lease expired.
    pub reclaimed: u64,
    /// The lease on these voices.
    pub lease: Option<LeaseId>,
    /// The last row seen, after which the next page starts; `None` if there are no more.
    pub last: Option<Position>,
}

/// A summary over all passes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overview {
    /// Voices in processing.
    pub processing: i64,
    /// The age of the oldest of them.
    pub oldest: Option<Duration>,
    /// Voices that are skipped for a day because they were set aside three times.
    pub set_aside: i64,
    /// Voices that cannot be looked up.
    pub unanswerable: i64,
    /// Events that wait.
    pub outbox: i64,
    /// How long the oldest of them has waited.
    pub oldest_event: Option<Duration>,
    /// By how many seconds the database's clock is ahead of this host's.
    pub clock_ahead: f64,
    /// When a pass over all due voices last succeeded, as far as the ledger goes back.
    pub last_success: Option<DateTime<Utc>>,
}

/// Members of the application's queue that can be removed from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueMembers {
    /// Their voices are completed or failed.
    pub finished: Vec<String>,
    /// They have had no row for an hour.
    pub left_over: Vec<String>,
}

/// Which voices a page contains, in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All voices in processing after one row and up to another.
    Range {
        /// Exclusive.
        after: Option<Position>,
        /// Inclusive.
        up_to: Option<Position>,
        /// Without these row or provider ids.
        except: Vec<String>,
    },
    /// Voices in processing with these row or provider ids, even if they were set aside.
    Named(Vec<String>),
    /// Those of them that a range after one row would also contain.
    Hinted {
        /// Row or provider ids.
        names: Vec<String>,
        /// Exclusive.
        after: Option<Position>,
    },
    /// Those of these rows that no process has looked up since they were found due.
    Due {
        /// Row ids.
        rows: Vec<String>,
        /// When they were found due.
        read_at: DateTime<Utc>,
    },
}

/// The next work, as it was at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agenda {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Voices in processing, due ones first; not all of them.
    pub voices: Vec<Upcoming>,
    /// Whether events wait that no process is publishing.
    pub events_wait: bool,
    /// A text that changes with each write to the database, except writes of the same connection.
    pub version: String,
    /// Whether a lease expired: its voices may have no schedule.
    pub any_lease_expired: bool,
    /// When the request budget of the account has room again.
    pub budget_in: Duration,
}

/// A voice that is due now or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upcoming {
    pub row: RowId,
    /// How long until it is due; zero if it is due.
    pub due_in: Duration,
    /// Its kind, if it was ever looked up.
    pub kind: Option<String>,
    /// Whether the last lookup found it.
    pub was_found: bool,
    /// Whether it is looked up alone, after the others.
    pub is_isolated: bool,
    /// Whether it is due because of a hint.
    pub is_hinted: bool,
    /// Its last lookup, if it may finish without a change by its owner.
    pub asked: Option<Asked>,
}

/// A voice's last lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// How long ago.
    pub ago: Duration,
    /// How long voice-sync has seen the voice in processing.
    pub age: Duration,
    /// Whether it is looked up every few seconds.
    pub is_often: bool,
}

impl Upcoming {
    /// A voice without a schedule, which is therefore due.
    pub(super) fn unscheduled(row: RowId, is_isolated: bool) -> Self {
        Self {
            row,
            due_in: Duration::ZERO,
            kind: None,
            was_found: false,
            is_isolated,
            is_hinted: false,
            asked: None,
        }
    }
}

impl Agenda {
    /// Puts voices without a schedule first, and limits the number of all.
    pub fn begin_with(&mut self, mut unscheduled: Vec<Upcoming>, most: u32) {
        unscheduled.append(&mut self.voices);
        unscheduled.truncate(most as usize);
        self.voices = unscheduled;
    }
}

/// Voices that are looked up alone, after the others, as they were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolated {
    /// That moment, by the database's clock.
    pub read_at: DateTime<Utc>,
    /// Their rows. First those that were in a failed request and were never looked up alone.
    pub rows: Vec<RowId>,
    /// Their number.
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

    /// For voices that are due: since when.
    pub(super) fn read_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Due { read_at, .. } => Some(*read_at),
            Self::Range { .. } | Self::Hinted { .. } | Self::Named(_) => None,
        }
    }
}

/// What happens with the events of transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// None are recorded: there is no event bus.
    Nothing,
    /// They are recorded, for any process to publish.
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
}

/// The result of a bulk of transitions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// The rows that changed; the others had been changed by another process or the application.
    pub moved: HashSet<RowId>,
    /// Rows that are locked by somebody else: they were not changed.
    pub locked: HashSet<RowId>,
    /// Their events, if any were recorded.
    pub events: Vec<OutboxEvent>,
}

/// Events to publish: complete batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasedEvents {
    /// In the order in which they were recorded.
    pub events: Vec<OutboxEvent>,
    /// The number of events of a newer version, which publishes them itself.
    pub unknown: Vec<(BatchId, i64)>,
}

impl From<Vec<OutboxEvent>> for LeasedEvents {
    fn from(events: Vec<OutboxEvent>) -> Self {
        Self {
            events,
            unknown: Vec::new(),
        }
    }
}

/// An event that this run recorded earlier.
pub(super) struct Recorded {
    pub(super) event: OutboxEvent,
    pub(super) is_published: bool,
}

/// A voice that the provider did not find, this time and perhaps earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct MissingVoice {
    pub row: RowId,
    /// The provider id that was not found.
    pub provider_id: String,
    /// Lookups in a row that did not find it.
    pub times: u32,
    /// Time since the first of them.
    pub lasting: Duration,
    /// Time since the account last found a voice; `None` if it never did.
    pub last_found: Option<Duration>,
}

/// Events that are recorded and not published, up to a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    pub all: u64,
    /// Those that no process is publishing.
    pub unleased: u64,
    /// The last of them.
    pub newest: Option<i64>,
}

/// The effect of hints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hinted {
    /// Voices in processing that were hinted at.
    pub voices: u64,
    /// Those of them that were not already due by a hint.
    pub changed: u64,
}

/// A voice to nudge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NudgeClaim {
    /// Identifies one call.
    pub nudge_id: Uuid,
    pub account: Uuid,
    pub row: RowId,
    pub provider_id: ProviderVoiceId,
    /// The number of characters that it is asked to say.
    pub characters: u64,
}

/// Whether a voice may be nudged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NudgePermit {
    Granted,
    /// It was nudged before, or is no longer in processing.
    Needless,
    /// Nothing is nudged now. After this time, it may be possible.
    NotNow(Duration),
}

/// Whether an event bus may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusPermit {
    /// It is not known to fail.
    Works,
    /// It failed, and this process may try it again.
    Probe {
        /// How many times in a row it failed.
        failures: u32,
    },
    /// It failed, and no process tries it before this time is over, or another process is trying it now.
    BackingOff(Duration),
}

/// What earlier passes left for this one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PriorState {
    /// The row after which the last pass stopped, if it did not finish.
    pub resume_after: Option<Position>,
    /// Kinds of voices that the list does not return.
    pub unlisted: HashSet<String>,
    /// Whether any voice is isolated.
    pub any_isolated: bool,
    /// Whether the mass-absence guard is on.
    pub mass_absence: bool,
    /// Whether the key found voices within a day.
    pub key_works: bool,
    /// The state of the account at the provider.
    pub provider: ProviderState,
    /// What the passes of the last two minutes used of the retry budget.
    pub spent: Spent,
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub run_id: Uuid,
    /// The provider's account, if any voice was looked up.
    pub account: Option<Uuid>,
    /// Whether this was not a pass over all due voices: then it says nothing about the other voices.
    pub command: Option<&'static str>,
    pub started_at: DateTime<Utc>,
    /// The duration.
    pub duration: Duration,
    pub exit_code: u8,
    /// Voices that the provider found.
    pub found: u64,
    pub counts: Value,
    /// Where the next pass should begin.
    pub cursor: NextPass,
    /// Kinds of voices that the list did not return.
    pub unlisted: Vec<String>,
    /// The concurrency limit that was found, if any.
    pub concurrency: Option<f64>,
    /// What it used of the request budget, if it has one.
    pub spending: Option<Spending>,
    /// How long the voices that it completed had been in processing.
    pub completion_times: Quantiles,
    /// The same, by kind.
    pub completion_times_by_kind: BTreeMap<String, Quantiles>,
}

/// The command after which events of past transitions are missing.
pub const PURGE: &str = "outbox purge";

/// A command that changes something, for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRun {
    pub run_id: Uuid,
    pub command: &'static str,
    pub started_at: DateTime<Utc>,
}

impl CommandRun {
    /// A command that starts now.
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
    /// Where it would have started without this pass, which was about named voices.
    AsBefore,
    /// At the beginning.
    FromTheBeginning,
    /// After this row, where this pass stopped.
    After(Position),
}
