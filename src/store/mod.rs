//! The application's table and voice-sync's own tables, on PostgreSQL and SQLite.
//!
//! [`Store`] says what each operation guarantees. Its statements are in the file of its subject, one text for both
//! databases: `dialect` has the small differences, `table_sql` the rules about rows, and `postgres` and `sqlite` the
//! large differences. `tests/it/store.rs` runs the same contract on both. This file is long because it lists all
//! operations, with a few lines each.

mod admin;
mod adopt;
mod apply;
mod args;
mod backlog;
mod buses;
mod claim;
mod database;
mod database_url;
mod dialect;
mod error;
mod hints;
mod ledger;
mod migrate;
mod notes;
mod nudges;
mod outage;
mod outbox;
mod outbox_commands;
mod postgres;
mod provider_state;
mod queue_members;
mod row;
mod settlement;
mod sqlite;
mod survey;
mod survey_sql;
mod table;
mod table_sql;
mod values;
mod zone;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

pub use adopt::Adoption;
pub(crate) use adopt::{make_index, of_processing};
pub(crate) use args::{Args, Column, Value};
pub use database::Database;
pub use database_url::{DatabaseUrl, InvalidDatabaseUrl};
pub(crate) use dialect::Dialect;
pub use error::StoreError;
pub use hints::HINT_SPACING;
pub use migrate::{MigrationState, PendingMigration};
pub(crate) use postgres::{Connections, Indexes, drop_left_behind, indexes};
pub(crate) use sqlite::is_indexed;
pub(crate) use table::literal;
pub use table::{
    ColumnNames, Identifier, InvalidName, MissingColumn, Names, STATUS_ADVICE, SchemaError,
    StatusDoubt, StatusValues, TableName,
};
pub(crate) use table_sql::TableSql;
pub use zone::{InvalidZone, NaiveZone};

use outage::Outage;
pub use outage::Suspicion;
pub use survey::{
    Account, EventFilter, EventRecord, FailingBus, LedgerEntry, Notes, NudgeRecord, Nudging,
    RowState, Survey, VoiceFilter, VoiceRecord, Wanted, is_same_id,
};
pub use values::{
    Access, Agenda, Applied, Asked, BusPermit, CommandRun, Hinted, Isolated, LeaseId, LeasedEvents,
    MissingVoice, NextPass, NudgeClaim, NudgePermit, Overview, PURGE, Page, Pending, PriorState,
    QueueMembers, Record, Run, Selection, Upcoming,
};

use crate::core::exit::Exit;
use crate::core::missing::MassAbsence;
use crate::core::nudge::{NudgeAnswer, NudgeOutcome};
use crate::core::provider_state::ProviderState;
use crate::core::quantiles::Quantiles;
use crate::core::transition::{Note, Transition};
use crate::core::verdict::AgeFrom;
use crate::core::voice::RowId;
use crate::deadline::Deadline;
use crate::events::backoff;
use crate::failpoint;
use settlement::Settlement;
use values::Recorded;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a claimed voice is leased to this process, by the database's clock.
pub const LEASE: Duration = Duration::from_secs(60);
/// A refused event does not cause another pass within this time.
const REFUSED: Duration = Duration::from_secs(15);
/// How long a newly recorded event is leased to the process that recorded it.
const OUTBOX_LEASE: Duration = Duration::from_secs(15);
/// After this many failed attempts, a voice that could not be looked up or stored is skipped for [`SET_ASIDE`].
const MAX_STRIKES: u32 = 3;
/// How long a voice that was set aside is skipped.
const SET_ASIDE: Duration = DAY;
/// How long published events, failures and passes are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The maximum number of stored passes: a daemon makes one every few seconds.
const RUNS_KEPT: u32 = 10_000;
/// The time limit of one attempt. The drivers would notice an unreachable database only after minutes.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of newest passes that are searched for those that count for the retry budget.
const NEWEST_RUNS: u32 = 200;
/// If a probe has had no result for this time, another process may probe: the time limit of a request, and some more.
const PROBE: Duration = Duration::from_secs(35);
/// The same for an event bus: the time limits of the publisher, and some more.
const BUS_PROBE: Duration = Duration::from_secs(10);
/// The time of a transaction is constant, and that of another one may be later. A difference up to this does not mean
/// that the clock was set back.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// How long the kinds of voices that the list does not return are stored.
const UNLISTED: Duration = Duration::from_secs(60 * 60);
/// Voices that are due later and may be looked up together with those that are due: as many as fit in a list request.
const NEXT: u32 = 100;
/// No voice is scheduled further ahead, and no isolated voice either.
const MAX_SCHEDULE: Duration = Duration::from_secs(10 * 60);
const MAX_ISOLATED_SCHEDULE: Duration = Duration::from_secs(2 * 60 * 60);
/// The longest pause of an event bus, including its probe.
const MAX_BUS_PAUSE: Duration = backoff::LONGEST;
/// The time limit of an operation, including the connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The application's table and voice-sync's own tables, after a check that they are suitable.
pub struct Store {
    database: Database,
    table: TableSql,
    /// No operation continues after it.
    deadline: Deadline,
    outage: Outage,
}

fn operation_timeout() -> Duration {
    failpoint::limit("store.timeout", OPERATION_TIMEOUT)
}

/// Where a test injects failures of the database; see [`failpoint`].
async fn visit(point: &str) -> Result<(), StoreError> {
    match failpoint::visit(point).await {
        true => Err(StoreError::Unreachable(format!("failpoint {point}"))),
        false => Ok(()),
    }
}

/// This host's clock, in seconds since 1970.
fn present() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// In total about the time that a server takes to restart.
fn backoff_of_retries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(10)
        .with_jitter()
}

impl Store {
    /// Checks the application's table. `own_tables` says whether voice-sync's own tables exist; a pass that writes
    /// needs them, one that only reads does not.
    pub async fn open(
        database: Database,
        names: &Names,
        own_tables: bool,
        access: Access,
    ) -> Result<Self, StoreError> {
        let table = match &database {
            Database::Postgres(connections) => {
                postgres::table_sql(connections, names, own_tables, access).await?
            }
            Database::Sqlite(pool) => sqlite::table_sql(pool, names, own_tables).await?,
        };
        let deadline = Deadline::never();
        Ok(Self {
            database,
            table,
            deadline,
            outage: Outage::default(),
        })
    }

    /// Ends all operations at this deadline.
    #[must_use]
    pub fn until(self, deadline: Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// Returns the connection.
    pub fn into_database(self) -> Database {
        self.database
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.table.dialect
    }

    pub(crate) fn table(&self) -> &TableSql {
        &self.table
    }

    /// Whether voice-sync's own tables exist.
    pub fn has_own_tables(&self) -> bool {
        self.table.has_own_tables
    }

    /// Optional columns that the application's table does not have.
    pub fn missing_columns(&self) -> &[MissingColumn] {
        &self.table.missing_columns
    }

    /// The maximum length of a preview in characters; `None` is any length.
    pub fn preview_room(&self) -> Option<usize> {
        self.table.preview_room
    }

    /// Runs an operation within a time limit, and repeats it after temporary errors, until that limit or the store's
    /// deadline is over. Every operation can be repeated after a lost reply: claims, probes and ledger entries are
    /// recognised by their run, transitions are guarded and found again by their events, notes are recognised by
    /// their call, and marks have no further effect.
    ///
    /// Tests make it fail at the failpoints `<operation>.before` and `<operation>.after`.
    async fn attempt<T, F>(
        &self,
        operation: &'static str,
        once: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let limited = || async {
            visit(&format!("{operation}.before")).await?;
            let limit = operation_timeout();
            let limit = self.deadline.left().map_or(limit, |left| left.min(limit));
            let done = timeout(limit, once()).await;
            let done = done
                .unwrap_or_else(|_| Err(StoreError::Unreachable("no answer in time".to_owned())))?;
            visit(&format!("{operation}.after")).await?;
            Ok(done)
        };
        let begun = Instant::now();
        let is_worth_it = |error: &StoreError| {
            error.is_transient()
                && begun.elapsed() < operation_timeout()
                && !self.deadline.is_over()
        };
        let _under_way = self.outage.begin();
        let retry = limited.retry(backoff_of_retries()).when(is_worth_it);
        let retry = retry.notify(|error, _| {
            self.doubt_connections();
            if error.exit() == Exit::Database {
                self.outage.failed(&error.to_string());
            }
        });
        let done = retry.await;
        match &done {
            Err(error) if error.exit() == Exit::Database => self.outage.failed(&error.to_string()),
            Ok(_) | Err(_) => self.outage.answered(),
        }
        done
    }

    /// Why the database may be unreachable, if there are signs of it.
    pub fn suspicion(&self) -> Option<Suspicion> {
        self.outage.suspicion()
    }

    /// Whether the database answers at all: one attempt, without a time limit.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let sql = "SELECT 1 AS one".to_owned();
        let answer = self.database.fetch_one(sql, self.database.args()).await;
        answer.map(drop)
    }

    fn doubt_connections(&self) {
        match &self.database {
            Database::Postgres(connections) => connections.doubt(),
            Database::Sqlite(_) => {}
        }
    }

    /// Takes the next page of voices in processing and leases those that are not leased to `run_id`.
    pub async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        self.attempt("store.claim", || self.claim_once(run_id, selection, limit))
            .await
    }

    /// Reads the same page, without a lease.
    pub async fn peek(&self, selection: &Selection, limit: u32) -> Result<Page, StoreError> {
        self.attempt("store.peek", || self.peek_once(selection, limit))
            .await
    }

    /// A summary. It counts the voices in processing, by their index.
    pub async fn overview(&self) -> Result<Overview, StoreError> {
        self.attempt("store.overview", || self.overview_once())
            .await
    }

    /// At most this many voices that have a schedule and are due, and some that are due next, in order. It reads no
    /// others. Waiting events count if the `bus` may be tried and has not refused them recently. If there is an
    /// `account`, it says when the request budget has room.
    pub async fn agenda(
        &self,
        most: u32,
        bus: Option<Uuid>,
        account: Option<Uuid>,
    ) -> Result<Agenda, StoreError> {
        self.attempt("store.agenda", || self.agenda_once(most, bus, account))
            .await
    }

    /// At most this many voices without a schedule: they are new, cloned again, or their lookup did not finish. It
    /// goes through the voices in processing, by their index.
    ///
    /// `since` is the version of an agenda before which there were none: of rows that were not written since, it
    /// reads no more than that, if the database can tell. It does not find a voice whose lease ended without a note.
    pub async fn unscheduled(
        &self,
        most: u32,
        since: Option<&str>,
    ) -> Result<Vec<Upcoming>, StoreError> {
        self.attempt("store.unscheduled", || self.unscheduled_once(most, since))
            .await
    }

    /// Makes voices in processing with these row or provider ids due now, or a few seconds after the last hint for
    /// them (some minutes, if a voice cannot be looked up or stored). A voice that is set aside stays set aside.
    pub async fn hint(&self, names: &[String]) -> Result<Hinted, StoreError> {
        if names.is_empty() {
            return Ok(Hinted::default());
        }
        self.attempt("store.hint", || self.hint_once(names)).await
    }

    /// At most this many voices that are looked up alone, without those that `run_id` itself has isolated. Some may
    /// not be in processing any more.
    pub async fn isolated(&self, run_id: Uuid, most: u32) -> Result<Isolated, StoreError> {
        self.attempt("store.isolated", || self.isolated_once(run_id, most))
            .await
    }

    /// Voices in processing within a range, leased or not.
    pub async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        self.attempt("store.count", || self.count_once(selection))
            .await
    }

    /// The statuses in the table with their numbers of rows, most frequent first: of all rows, or of a sample of this
    /// many rows from each end of the table.
    pub async fn statuses(&self, sample: Option<u32>) -> Result<Vec<(String, u64)>, StoreError> {
        self.attempt("store.statuses", || self.statuses_once(sample))
            .await
    }

    /// Which of these members of a queue are finished, and which have had no row for an hour.
    pub async fn queue_members(
        &self,
        queue: &str,
        members: &[String],
    ) -> Result<QueueMembers, StoreError> {
        if members.is_empty() {
            return Ok(QueueMembers::default());
        }
        self.attempt("store.queue_members", || {
            self.queue_members_once(queue, members)
        })
        .await
    }

    /// Forgets members of a queue that were removed from it.
    pub async fn forget_members(&self, queue: &str, members: &[String]) -> Result<(), StoreError> {
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        self.attempt("store.forget_members", || {
            self.forget_members_once(queue, &members)
        })
        .await
    }

    /// Makes transitions, each only if the row is still in processing with the id that was looked up, and records
    /// their events in the same transaction.
    pub async fn apply(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        if transitions.is_empty() {
            return Ok(Applied::default());
        }
        let mut applied = self
            .attempt("store.apply", || {
                self.apply_once(run_id, transitions, record)
            })
            .await?;
        let others: HashMap<Uuid, &RowId> = transitions
            .iter()
            .filter(|t| !applied.moved.contains(&t.row) && !applied.locked.contains(&t.row))
            .map(|transition| (transition.event_id(), &transition.row))
            .collect();
        if others.is_empty() || !record.is_wanted() {
            return Ok(applied);
        }
        // If a reply was lost, this run itself made these transitions.
        let ids: Vec<Uuid> = others.keys().copied().collect();
        let earlier = self
            .attempt("store.recorded", || self.recorded_once(run_id, &ids))
            .await?;
        for Recorded {
            event,
            is_published,
        } in earlier
        {
            let row = others.get(&event.event_id);
            applied.moved.extend(row.map(|row| RowId::clone(row)));
            applied.events.extend(Some(event).filter(|_| !is_published));
        }
        Ok(applied)
    }

    /// Whether the database refuses a change of some rows that it would accept for others: it plans the statement of
    /// [`Self::apply`], which needs the same tables, columns and privileges.
    pub async fn refuses_rows(&self, error: &StoreError) -> Result<bool, StoreError> {
        match error {
            StoreError::Refused(_) => Ok(true),
            StoreError::Config(_)
            | StoreError::NoSuchTable(_)
            | StoreError::Privilege(_)
            | StoreError::Schema(_) => {
                match self
                    .attempt("store.explain_update", || self.explain_update())
                    .await
                {
                    Ok(()) => Ok(true),
                    Err(
                        StoreError::Config(_)
                        | StoreError::NoSuchTable(_)
                        | StoreError::Privilege(_)
                        | StoreError::Schema(_),
                    ) => Ok(false),
                    Err(other) => Err(other),
                }
            }
            StoreError::Unreachable(_) | StoreError::Contended(_) | StoreError::Io(_) => Ok(false),
        }
    }

    /// Stores notes about voices without a transition. A voice that another run has leased since then is not changed.
    /// Hints that came after the run's claims may be newer than the answer and stay. So does a recent one that
    /// brought no answer.
    pub async fn note(
        &self,
        run_id: Uuid,
        account: Uuid,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        if notes.is_empty() {
            return Ok(());
        }
        let noted = Uuid::new_v4();
        self.attempt("store.note", || {
            self.note_once(run_id, account, noted, notes)
        })
        .await
    }

    /// Ends leases whose voices have all been written.
    pub async fn end_leases(&self, leases: &[LeaseId]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        self.attempt("store.end_leases", || self.end_leases_once(leases))
            .await
    }

    /// Voices that `run_id` looked up and found missing, in the order of their rows.
    pub async fn missing(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        self.attempt("store.missing", || {
            self.missing_once(run_id, account, after, limit)
        })
        .await
    }

    /// What the account missed and found lately, over all passes. Also stores whether this forbids failures.
    pub async fn mass_absence(&self, account: Uuid) -> Result<MassAbsence, StoreError> {
        let absence = self
            .attempt("store.mass_absence", || self.mass_absence_once(account))
            .await?;
        let forbidden = absence.forbids_failures();
        if forbidden != absence.lasts {
            self.attempt("store.save_mass_absence", || {
                self.save_mass_absence_once(account, forbidden)
            })
            .await?;
        }
        Ok(absence)
    }

    /// Records that a pass detected mass absence.
    pub async fn begin_mass_absence(&self, account: Uuid) -> Result<(), StoreError> {
        self.attempt("store.save_mass_absence", || {
            self.save_mass_absence_once(account, true)
        })
        .await
    }

    /// Fails voices in processing by hand, each guarded as any other transition. Returns those that were failed.
    pub async fn fail(
        &self,
        run: &CommandRun,
        transitions: &[Transition],
        record: Record,
    ) -> Result<HashSet<RowId>, StoreError> {
        self.attempt("store.fail", || self.fail_once(run, transitions, record))
            .await
    }

    /// Those of these transitions that happened, whose rows are as they left them, and that have no event.
    pub async fn without_event(
        &self,
        transitions: &[Transition],
    ) -> Result<Vec<Transition>, StoreError> {
        self.attempt("store.without_event", || {
            self.without_event_once(transitions)
        })
        .await
    }

    /// Records the events of these. Returns how many the command has recorded in all.
    pub async fn record_events(
        &self,
        run: &CommandRun,
        transitions: &[Transition],
    ) -> Result<u64, StoreError> {
        self.attempt("store.record_events", || {
            self.record_events_once(run, transitions)
        })
        .await
    }

    /// Leases events that no process is publishing, by whole batches, about as many as this: those first that were
    /// never tried, or whose last try is longest ago, and of these the oldest.
    pub async fn lease_events(&self, limit: u32) -> Result<LeasedEvents, StoreError> {
        self.attempt("store.lease_events", || self.lease_events_once(limit))
            .await
    }

    /// Marks leased events as published, by their ids. The others are free again. Those that the bus refused come
    /// after all others from then on.
    pub async fn settle_events(
        &self,
        leased: &LeasedEvents,
        published: &[i64],
        refused: &[i64],
    ) -> Result<(), StoreError> {
        let settlement = Settlement::new(leased, published, refused);
        let new = [Uuid::new_v4(), Uuid::new_v4()];
        self.attempt("store.settle_events", || self.settle_once(&settlement, new))
            .await
    }

    /// The number of waiting events: up to one of them, or all.
    pub async fn pending_events(&self, up_to: Option<i64>) -> Result<Pending, StoreError> {
        self.attempt("store.pending_events", || self.pending_events_once(up_to))
            .await
    }

    /// Whether an event bus may be used now. After [`BusPermit::Probe`], the caller must report the result;
    /// meanwhile, other processes may not use the bus.
    pub async fn bus_permit(&self, bus: Uuid, run_id: Uuid) -> Result<BusPermit, StoreError> {
        self.attempt("store.bus_permit", || self.bus_permit_once(bus, run_id))
            .await
    }

    /// Stores for all processes that an event bus failed, how many times in a row, and how long not to use it.
    pub async fn bus_failed(
        &self,
        bus: Uuid,
        failures: u32,
        pause: Duration,
    ) -> Result<(), StoreError> {
        self.attempt("store.bus_failed", || {
            self.bus_failed_once(bus, failures, pause)
        })
        .await
    }

    /// Stores for all processes that an event bus works again.
    pub async fn bus_works(&self, bus: Uuid) -> Result<(), StoreError> {
        self.attempt("store.bus_works", || self.bus_works_once(bus))
            .await
    }

    /// What earlier passes left for this one; nothing if voice-sync has no tables yet.
    pub async fn load_state(&self, account: Uuid) -> Result<PriorState, StoreError> {
        self.attempt("store.load_state", || self.load_state_once(account))
            .await
    }

    /// The state of the account at the provider.
    pub async fn provider_state(&self, account: Uuid) -> Result<ProviderState, StoreError> {
        self.attempt("store.provider_state", || self.provider_state_once(account))
            .await
    }

    /// Stores the state of the account at the provider, for all processes.
    ///
    /// If several find an outage at once, the longest pause counts.
    pub async fn save_provider_state(
        &self,
        account: Uuid,
        run_id: Uuid,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        self.attempt("store.save_provider_state", || {
            self.save_provider_state_once(account, run_id, state)
        })
        .await
    }

    /// Stores for all processes that the provider asked for a pause, and the concurrency limit. The circuit breaker
    /// does not change.
    pub async fn save_cooldown(
        &self,
        account: Uuid,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        self.attempt("store.save_cooldown", || {
            self.save_cooldown_once(account, state)
        })
        .await
    }

    /// Asks to be the one process that sends the half-open probe. Once granted to a run, other runs are refused until
    /// the probe has a result or is overdue.
    pub async fn claim_probe(&self, account: Uuid, run_id: Uuid) -> Result<bool, StoreError> {
        self.attempt("store.claim_probe", || {
            self.claim_probe_once(account, run_id)
        })
        .await
    }

    /// Asks for permission to nudge a voice, if fewer than `limit` were nudged in a day. A granted permission is
    /// recorded, and the same voice never gets another one.
    pub async fn claim_nudge(
        &self,
        claim: &NudgeClaim,
        limit: u32,
    ) -> Result<NudgePermit, StoreError> {
        self.attempt("store.claim_nudge", || self.claim_nudge_once(claim, limit))
            .await
    }

    /// Records the result of a nudge, and returns what it means. A voice that speaks is due in two seconds. Other
    /// answers may stop all nudges for a while.
    pub async fn settle_nudge(
        &self,
        claim: &NudgeClaim,
        answer: &NudgeAnswer,
    ) -> Result<NudgeOutcome, StoreError> {
        self.attempt("store.settle_nudge", || {
            self.settle_nudge_once(claim, answer)
        })
        .await
    }

    /// The state of nudging with an account.
    pub async fn nudging(&self, account: Uuid) -> Result<Nudging, StoreError> {
        self.attempt("store.nudging", || self.nudging_once(account))
            .await
    }

    /// Writes a pass to the ledger, with what it learned about the provider.
    pub async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        self.attempt("store.record_run", || self.record_run_once(run))
            .await
    }

    /// Removes old data, in a small step: published events, failures and passes older than a week, and notes about
    /// voices that are no longer in processing.
    ///
    /// At most `at_once` rows of each table. Returns the total number.
    pub async fn tidy(&self, at_once: u32) -> Result<u64, StoreError> {
        self.attempt("store.tidy", || self.tidy_once(at_once)).await
    }

    /// The state of everything, for people. In the backlog, voices older than `fail_after` are counted separately,
    /// and the `oldest` voices are listed. From the ledger, the newest `runs` are listed. It goes through the voices
    /// in processing, by their index.
    pub async fn survey(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
        runs: u32,
        account: Option<Uuid>,
    ) -> Result<Survey, StoreError> {
        self.attempt("store.survey", || {
            self.survey_once(fail_after, age_from, oldest, runs, account)
        })
        .await
    }

    /// How long the voices took that passes completed lately, by kind.
    pub async fn completion_times_by_kind(
        &self,
    ) -> Result<BTreeMap<String, Quantiles>, StoreError> {
        self.attempt("store.completion_times", || {
            self.completion_times_by_kind_once()
        })
        .await
    }

    /// Rows with voice-sync's notes about them, at most this many, in the order of keys.
    pub async fn records(
        &self,
        wanted: &Wanted,
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        self.attempt("store.records", || self.records_once(wanted, limit))
            .await
    }

    /// Rows with these ids: as their keys, or else as their provider ids. At most this many of each.
    pub async fn named(
        &self,
        names: &[String],
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        let mut records = self.records(&Wanted::Rows(names.to_vec()), limit).await?;
        let is_named = |name: &&String| !records.iter().any(|record| record.is_named(name));
        let others: Vec<_> = names.iter().filter(is_named).cloned().collect();
        if !others.is_empty() {
            let others = Wanted::ProviderIds(others);
            records.extend(self.records(&others, limit).await?);
        }
        Ok(records)
    }

    /// The newest events of the outbox, newest first, at most this many; none if voice-sync has no tables yet.
    pub async fn events(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        match self.has_own_tables() {
            true => {
                self.attempt("store.events", || self.events_once(filter, limit))
                    .await
            }
            false => Ok(Vec::new()),
        }
    }

    /// The number of events that pass a filter.
    pub async fn count_events(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        self.attempt("store.count_events", || self.count_events_once(filter))
            .await
    }

    /// The newest entries of the ledger, newest first, at most this many.
    pub async fn runs(&self, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        self.attempt("store.runs", || self.runs_once(limit)).await
    }

    /// Puts failed voices back to processing if they still have the provider ids of their records and their rows are
    /// not locked. Their ages start again. Returns the rows that were put back.
    pub async fn put_back(
        &self,
        run: &CommandRun,
        voices: &[VoiceRecord],
    ) -> Result<HashSet<RowId>, StoreError> {
        self.attempt("store.put_back", || self.put_back_once(run, voices))
            .await
    }

    /// Makes voices that are set aside due again. Returns the rows that were set aside.
    pub async fn release(
        &self,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        self.attempt("store.release", || self.release_once(run, rows))
            .await
    }

    /// Marks published events as unpublished, so that the next process publishes them again. Returns their number.
    pub async fn resend(&self, run: &CommandRun, filter: &EventFilter) -> Result<u64, StoreError> {
        self.attempt("store.resend", || self.resend_once(run, filter))
            .await
    }

    /// Removes events, except those that a process may be publishing. Returns their number.
    pub async fn purge(&self, run: &CommandRun, filter: &EventFilter) -> Result<u64, StoreError> {
        self.attempt("store.purge", || self.purge_once(run, filter))
            .await
    }
}
