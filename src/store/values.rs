//! What goes into the store's operations and comes out of them.

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

/// Whether anything may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: an SQLite file stays as it is, to the byte.
    ReadOnly,
    /// The three columns of the application's table, and voice-sync's own tables.
    ReadWrite,
}

/// The id of a lease on the voices that one claim took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub Uuid);

/// One page of the voices in processing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Those that this pass may look up now.
    pub voices: Vec<Claimed>,
    /// Another process is asking about these.
    pub leased_elsewhere: u64,
    /// Not asked about for a day, because they kept making trouble.
    pub set_aside: u64,
    /// Not asked about now, because they cannot be looked up.
    pub quarantined: u64,
    /// Taken over from a process whose lease ran out.
    pub reclaimed: u64,
    /// The lease on these voices.
    pub lease: Option<LeaseId>,
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
    /// Voices that are not asked about since they kept making trouble.
    pub set_aside: i64,
    /// Voices that cannot be looked up.
    pub unanswerable: i64,
    /// Events that wait.
    pub outbox: i64,
    /// How long the oldest of them has.
    pub oldest_event: Option<Duration>,
    /// Seconds by which the database's clock is ahead of this host's.
    pub clock_ahead: f64,
    /// When a pass over all voices that were due last succeeded, as far as the ledger goes back.
    pub last_success: Option<DateTime<Utc>>,
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
    /// Whether a lease ended by itself: its voices may have no schedule.
    pub any_lease_expired: bool,
    /// When the request budget of the account has room again.
    pub budget_in: Duration,
}

/// A voice that is due now or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upcoming {
    pub row: RowId,
    /// When it is due; zero, if it is.
    pub due_in: Duration,
    /// Its kind, if it was ever looked up.
    pub kind: Option<String>,
    /// Whether it was found by the last lookup.
    pub was_found: bool,
    /// Whether it is to be asked about by itself, after the others.
    pub is_isolated: bool,
    /// Whether it is due because of a hint.
    pub is_hinted: bool,
    /// When it was looked up, if it may be finished without anybody's doing.
    pub asked: Option<Asked>,
}

/// When a voice was looked up last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// How long ago.
    pub ago: Duration,
    /// For how long voice-sync has seen the voice in processing.
    pub age: Duration,
    /// Whether it is looked up within seconds each time.
    pub is_often: bool,
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
            is_hinted: false,
            asked: None,
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

/// Events to publish: all of their batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasedEvents {
    /// In the order in which they were recorded.
    pub events: Vec<OutboxEvent>,
    /// Events of a newer version, which publishes them.
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

/// An event that a run recorded earlier.
pub(super) struct Recorded {
    pub(super) event: OutboxEvent,
    pub(super) is_published: bool,
}

/// A voice that the provider did not know, this time and perhaps earlier.
#[derive(Debug, Clone, PartialEq)]
pub struct MissingVoice {
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
    pub all: u64,
    /// Those that no process is just publishing.
    pub unleased: u64,
    /// The last of them.
    pub newest: Option<i64>,
}

/// What hints came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hinted {
    /// Voices in processing that were hinted at.
    pub voices: u64,
    /// Those of them that were not due by a hint before.
    pub changed: u64,
}

/// A voice to nudge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NudgeClaim {
    /// Tells one call from another.
    pub nudge_id: Uuid,
    pub account: Uuid,
    pub row: RowId,
    pub provider_id: ProviderVoiceId,
    /// What it is to say has so many.
    pub characters: u64,
}

/// Whether a voice may be nudged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NudgePermit {
    Granted,
    /// It was nudged before, or does not wait any more.
    Needless,
    /// Nothing is nudged now; later, it may be worth to ask again.
    NotNow(Duration),
}

/// Whether an event bus may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusPermit {
    /// Nobody found it failing.
    Works,
    /// It failed, and it is this process that may try again.
    Probe {
        /// How often it failed in a row.
        failures: u32,
    },
    /// It failed, and nobody tries before this has passed, or somebody else does now.
    BackingOff(Duration),
}

/// What the last pass and the provider's account left behind for this one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PriorState {
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
    pub provider: ProviderState,
    /// What the passes of the last two minutes spent of the retry budget.
    pub spent: Spent,
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub run_id: Uuid,
    /// The provider's account, if any voice was asked about.
    pub account: Option<Uuid>,
    /// What is not a pass over all voices that were due: it says nothing of the others.
    pub command: Option<&'static str>,
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    pub exit_code: u8,
    /// Voices that the provider knew.
    pub found: u64,
    pub counts: Value,
    /// Where the next pass should begin.
    pub cursor: NextPass,
    /// Kinds of voices that the list left out, to be remembered.
    pub unlisted: Vec<String>,
    /// The concurrency that the provider bore, likewise.
    pub concurrency: Option<f64>,
    /// What it took of the request budget, if it has one.
    pub spending: Option<Spending>,
    /// For how long the voices had been in processing that it completed.
    pub completion_times: Quantiles,
    /// The same by kind.
    pub completion_times_by_kind: BTreeMap<String, Quantiles>,
}

/// The command after which events are missing of transitions that there were.
pub const PURGE: &str = "outbox purge";

/// A command that changes something, for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRun {
    pub run_id: Uuid,
    pub command: &'static str,
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
