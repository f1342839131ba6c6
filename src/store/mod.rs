//! The application's table and voice-sync's own, on PostgreSQL and SQLite.
//!
//! What an operation promises is said here; how each database does it, in `postgres` and
//! `sqlite`. The two share no SQL: one works with arrays and one statement a step, the other with
//! JSON and short write transactions. `tests/it/store.rs` runs the same contract on both.

mod adopt;
mod checkup;
mod database_url;
mod error;
mod migrate;
mod postgres;
mod sqlite;
mod survey;
mod table;
mod values;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

pub use adopt::Adoption;
pub use database_url::{DatabaseUrl, InvalidDatabaseUrl};
pub use error::StoreError;
pub use migrate::{MigrationState, PendingMigration};
pub use table::{
    Absent, ColumnNames, Identifier, InvalidName, InvalidZone, Misfit, NaiveZone, Names,
    StatusValues, TableName,
};

pub use survey::{
    Account, EventFilter, EventRecord, FailingBus, LedgerEntry, Notes, RowState, Survey,
    VoiceRecord, Wanted,
};
use values::Recorded;
pub use values::{
    Access, Agenda, Applied, BusTurn, Claimed, CommandRun, Isolated, Memory, MissingVoice,
    NextPass, Note, Overview, Page, Pending, Record, Run, Seen, Selection, Target, Transition,
    Upcoming,
};

use crate::deadline::Deadline;
use crate::events::{OutboxEvent, backoff};
use crate::failpoint;
use crate::missing::MassAbsence;
use crate::standing::Standing;
use crate::verdict::AgeFrom;
use crate::voice::RowId;

/// How long a claimed voice is this process's alone, by the database's clock.
pub const LEASE: Duration = Duration::from_secs(60);
/// An event that the event bus refuses is no reason for a pass within this time.
const REFUSED: Duration = Duration::from_secs(15);
/// How long a freshly recorded event is its recorder's alone to publish.
const OUTBOX_LEASE: Duration = Duration::from_secs(15);
/// A voice that could not be asked about or stored so often is left alone for [`SET_ASIDE`].
const MAX_STRIKES: u32 = 3;
/// How long a voice that keeps making trouble is left alone.
const SET_ASIDE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a voice is left alone whose row was changed or locked by the application.
const OVERTAKEN: Duration = Duration::from_secs(5);
/// How long published events, failures and passes are kept for people to look at.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Passes that are kept at the most: a daemon makes one every few seconds.
const RUNS_KEPT: u32 = 10_000;
/// A database that does not answer within this is gone; neither driver would notice for minutes.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The newest passes, among which those that count for the retry budget are looked for.
const NEWEST_RUNS: u32 = 200;
/// A probe that brought no result within this is another process's to make: a request's time limit,
/// and some.
const PROBE: Duration = Duration::from_secs(35);
/// Likewise for an event bus: the time limits of the relay, and some.
const BUS_PROBE: Duration = Duration::from_secs(10);
/// A transaction's clock stands still, and another one's may be ahead of it: so much is no clock that was set back.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Kinds of voices that the list leaves out are remembered for so long.
const UNLISTED: Duration = Duration::from_secs(60 * 60);
/// Voices that are due later, and may be looked up along with those that are due: as many as a list request carries.
const NEXT: u32 = 100;
/// No voice is scheduled further ahead, and no isolated one.
const LONGEST_SCHEDULE: Duration = Duration::from_secs(10 * 60);
const LONGEST_ISOLATED_SCHEDULE: Duration = Duration::from_secs(2 * 60 * 60);
/// The longest pause of an event bus, its probe included.
const LONGEST_BUS_PAUSE: Duration = backoff::LONGEST;
/// Connecting included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connected database whose application table has not been looked at.
pub enum Database {
    /// A small pool.
    Postgres(postgres::Sessions),
    /// A single connection.
    Sqlite(sqlx::SqlitePool),
}

impl Database {
    /// Connects, and shows that it works with one cheap statement.
    pub async fn connect(url: &DatabaseUrl, access: Access) -> Result<Self, StoreError> {
        match url {
            DatabaseUrl::Postgres(options) => {
                Ok(Self::Postgres(postgres::Sessions::connect(options).await?))
            }
            DatabaseUrl::Sqlite(path) => Ok(Self::Sqlite(sqlite::connect(path, access).await?)),
        }
    }
}

/// The application's table and voice-sync's own, found to fit.
pub struct Store {
    backend: Backend,
    /// No operation goes on after it.
    deadline: Deadline,
}

enum Backend {
    Postgres(postgres::PostgresStore),
    Sqlite(sqlite::SqliteStore),
}

/// Runs the same method on whichever database it is: within a time limit, and again where the
/// trouble is of the kind that passes, until that limit or the store's deadline is over. Every operation may be repeated
/// after a lost reply: claims, probes and ledger entries are recognised by their run, transitions are
/// guarded and found again by their events, notes and marks say the same twice.
macro_rules! on_either {
    ($store:tt . $operation:ident ( $($argument:expr),* $(,)? )) => {{
        let once = || async {
            visit(concat!("store.", stringify!($operation), ".before")).await?;
            let limit = operation_timeout();
            let limit = $store.deadline.left().map_or(limit, |left| left.min(limit));
            let limited = match &$store.backend {
                Backend::Postgres(s) => timeout(limit, s.$operation($($argument),*)).await,
                Backend::Sqlite(s) => timeout(limit, s.$operation($($argument),*)).await,
            };
            let done = limited
                .unwrap_or_else(|_| Err(StoreError::Unreachable("no answer in time".to_owned())))?;
            visit(concat!("store.", stringify!($operation), ".after")).await?;
            Ok(done)
        };
        let begun = Instant::now();
        let is_worth_it = |error: &StoreError| {
            error.is_passing() && begun.elapsed() < operation_timeout() && !$store.deadline.is_over()
        };
        let retry = once.retry(patience()).when(is_worth_it);
        retry.notify(|_, _| $store.doubt_connections()).await
    }};
}

fn operation_timeout() -> Duration {
    failpoint::limit("store.timeout", OPERATION_TIMEOUT)
}

/// Where a test makes the database fail; see [`failpoint`].
async fn visit(point: &'static str) -> Result<(), StoreError> {
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

/// In all about as long as a server takes to restart.
fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(10)
        .with_jitter()
}

impl Store {
    /// Looks at the application's table and finds out whether it fits. `own_tables` says whether
    /// voice-sync's own are there; a pass that writes needs them, one that only reads does not.
    pub async fn open(
        database: Database,
        names: &Names,
        own_tables: bool,
        access: Access,
    ) -> Result<Self, StoreError> {
        let backend = match database {
            Database::Postgres(sessions) => Backend::Postgres(
                postgres::PostgresStore::open(sessions, names, own_tables, access).await?,
            ),
            Database::Sqlite(pool) => {
                Backend::Sqlite(sqlite::SqliteStore::open(pool, names, own_tables).await?)
            }
        };
        let deadline = Deadline::never();
        Ok(Self { backend, deadline })
    }

    /// The same, but that no operation goes on after this deadline.
    #[must_use]
    pub fn until(self, deadline: Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// Gives the connection back.
    pub fn into_database(self) -> Database {
        match self.backend {
            Backend::Postgres(store) => Database::Postgres(store.into_sessions()),
            Backend::Sqlite(store) => Database::Sqlite(store.into_pool()),
        }
    }

    fn doubt_connections(&self) {
        match &self.backend {
            Backend::Postgres(store) => store.doubt_connections(),
            Backend::Sqlite(_) => {}
        }
    }

    /// Whether voice-sync's own tables are there.
    pub fn has_own_tables(&self) -> bool {
        match &self.backend {
            Backend::Postgres(store) => store.has_own_tables(),
            Backend::Sqlite(store) => store.has_own_tables(),
        }
    }

    /// Columns that the application's table could have, and does not.
    pub fn absent(&self) -> &[Absent] {
        match &self.backend {
            Backend::Postgres(store) => store.absent(),
            Backend::Sqlite(store) => store.absent(),
        }
    }

    /// How many characters a preview may have; `None` is any number.
    pub fn preview_room(&self) -> Option<usize> {
        match &self.backend {
            Backend::Postgres(store) => store.preview_room(),
            Backend::Sqlite(store) => store.preview_room(),
        }
    }

    /// Takes the next page of voices in processing and leases those that are free to `run_id`.
    pub async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        on_either!(self.claim(run_id, selection, limit))
    }

    /// The same page, without leasing anything.
    pub async fn peek(&self, selection: &Selection, limit: u32) -> Result<Page, StoreError> {
        on_either!(self.peek(selection, limit))
    }

    /// How things stand. It counts the voices in processing, by their index.
    pub async fn overview(&self) -> Result<Overview, StoreError> {
        on_either!(self.overview())
    }

    /// The voices that have a schedule and are due, at most so many, and some that will be next, in the order in which
    /// they are. It looks at no others. Events wait if the `bus` may be tried, and has not refused them just now.
    pub async fn agenda(&self, most: u32, bus: Option<Uuid>) -> Result<Agenda, StoreError> {
        on_either!(self.agenda(most, bus))
    }

    /// The voices that have no schedule, at most so many: they are new, cloned anew, or their lookup came to no end.
    /// It goes through the voices in processing, by their index.
    pub async fn unscheduled(&self, most: u32) -> Result<Vec<Upcoming>, StoreError> {
        on_either!(self.unscheduled(most))
    }

    /// Voices that are asked about by themselves, at most so many, and not those that `run_id` found to be such
    /// itself. Some may have left processing.
    pub async fn isolated(&self, run_id: Uuid, most: u32) -> Result<Isolated, StoreError> {
        on_either!(self.isolated(run_id, most))
    }

    /// Voices in processing within a range, whether leased or not.
    pub async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        on_either!(self.count(selection))
    }

    /// Those of these row ids whose voices are completed or failed, each as it was given.
    pub async fn finished(&self, rows: &[String]) -> Result<Vec<String>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        on_either!(self.finished(rows))
    }

    /// Makes transitions happen, each guarded by the row still being in processing with the id that
    /// was looked up, and records their events in the same transaction.
    pub async fn apply(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        if transitions.is_empty() {
            return Ok(Applied::default());
        }
        let mut applied = on_either!(self.apply(run_id, transitions, record))?;
        let others: HashMap<Uuid, &RowId> = transitions
            .iter()
            .filter(|t| !applied.moved.contains(&t.row) && !applied.locked.contains(&t.row))
            .map(|transition| (transition.event_id(), &transition.row))
            .collect();
        if others.is_empty() || !record.is_wanted() {
            return Ok(applied);
        }
        // Where a reply was lost, it was this run itself that had moved them.
        let ids: Vec<Uuid> = others.keys().copied().collect();
        let earlier = on_either!(self.recorded(run_id, &ids))?;
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

    /// Whether the database refuses a change of some rows that it would make to others: it plans the statement
    /// of [`Self::apply`], which needs the same tables, columns and privileges.
    pub async fn refuses_rows(&self, error: &StoreError) -> Result<bool, StoreError> {
        match error {
            StoreError::Refused(_) => Ok(true),
            StoreError::Config(_) | StoreError::Misfit(_) => {
                match on_either!(self.explain_update()) {
                    Ok(()) => Ok(true),
                    Err(StoreError::Config(_) | StoreError::Misfit(_)) => Ok(false),
                    Err(other) => Err(other),
                }
            }
            StoreError::Unreachable(_) | StoreError::Contended(_) | StoreError::Io(_) => Ok(false),
        }
    }

    /// Notes what was seen of voices that made no transition, and gives their leases back. A voice
    /// that another run has claimed meanwhile is left alone.
    pub async fn note(
        &self,
        run_id: Uuid,
        account: Uuid,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        if notes.is_empty() {
            return Ok(());
        }
        on_either!(self.note(run_id, account, notes))
    }

    /// Voices that `run_id` asked about and found missing, in the order of their rows.
    pub async fn missing(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        on_either!(self.missing(run_id, account, after, limit))
    }

    /// What the account has missed and found lately, over all passes; it is noted whether that forbids failures.
    pub async fn mass_absence(&self, account: Uuid) -> Result<MassAbsence, StoreError> {
        let absence = on_either!(self.mass_absence(account))?;
        let forbidden = absence.forbids_failures();
        if forbidden != absence.lasts {
            on_either!(self.keep_mass_absence(account, forbidden))?;
        }
        Ok(absence)
    }

    /// Notes that a pass met a mass absence by itself.
    pub async fn begin_mass_absence(&self, account: Uuid) -> Result<(), StoreError> {
        on_either!(self.keep_mass_absence(account, true))
    }

    /// Leases unpublished events that no process is publishing: those first that were never tried, or whose last
    /// try is longest ago, and of these the oldest.
    pub async fn take_events(&self, limit: u32) -> Result<Vec<OutboxEvent>, StoreError> {
        on_either!(self.take_events(limit))
    }

    /// Marks events as published.
    pub async fn mark_published(&self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        on_either!(self.mark_published(ids))
    }

    /// Gives back the leases of events that could not be published.
    pub async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        on_either!(self.give_back_events(ids))
    }

    /// Gives back the leases of events that the bus refuses, which come after all others from then on.
    pub async fn put_events_last(&self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        on_either!(self.put_events_last(ids))
    }

    /// How many events wait, up to one of them or in all.
    pub async fn pending_events(&self, up_to: Option<i64>) -> Result<Pending, StoreError> {
        on_either!(self.pending_events(up_to))
    }

    /// Whether an event bus may be used now. To be told [`BusTurn::Probe`] obliges to say what came
    /// of it; others are told to leave it alone meanwhile.
    pub async fn bus(&self, bus: Uuid, run_id: Uuid) -> Result<BusTurn, StoreError> {
        on_either!(self.bus(bus, run_id))
    }

    /// Tells all processes that an event bus failed, for the so manyth time in a row, and how long
    /// to leave it alone.
    pub async fn bus_failed(
        &self,
        bus: Uuid,
        failures: u32,
        pause: Duration,
    ) -> Result<(), StoreError> {
        on_either!(self.bus_failed(bus, failures, pause))
    }

    /// Tells all processes that an event bus works again.
    pub async fn bus_works(&self, bus: Uuid) -> Result<(), StoreError> {
        on_either!(self.bus_works(bus))
    }

    /// What earlier passes left behind for this one; nothing, where voice-sync has no tables yet.
    pub async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        on_either!(self.remember(account))
    }

    /// How the account stands with the provider.
    pub async fn standing(&self, account: Uuid) -> Result<Standing, StoreError> {
        on_either!(self.standing(account))
    }

    /// Tells all processes how the account stands with the provider.
    ///
    /// Of several that find it down at once, the longest pause counts.
    pub async fn keep_standing(
        &self,
        account: Uuid,
        run_id: Uuid,
        standing: Standing,
    ) -> Result<(), StoreError> {
        on_either!(self.keep_standing(account, run_id, standing))
    }

    /// Tells all processes of a pause that the provider asked for, and of the concurrency that it
    /// bears; the breaker stays as it is.
    pub async fn keep_pause(&self, account: Uuid, standing: Standing) -> Result<(), StoreError> {
        on_either!(self.keep_pause(account, standing))
    }

    /// Asks to be the one process that finds out whether the provider answers again. Once granted
    /// to a run, others are refused until the probe's result is known or overdue.
    pub async fn claim_probe(&self, account: Uuid, run_id: Uuid) -> Result<bool, StoreError> {
        on_either!(self.claim_probe(account, run_id))
    }

    /// Writes a pass into the ledger, and what was learned of the provider.
    pub async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        on_either!(self.record_run(run))
    }

    /// Removes, in a small step, what is no longer of use: published events, failures and passes
    /// older than a week, and notes of voices that are no longer in processing.
    ///
    /// At most `at_once` rows of each table.
    pub async fn tidy(&self, at_once: u32) -> Result<(), StoreError> {
        on_either!(self.tidy(at_once))
    }

    /// How things stand, for people. Of the backlog it tells voices that are older than `fail_after` from
    /// others, and shows the `oldest`; of the ledger, the newest `runs`. It goes through the voices in
    /// processing, by their index.
    pub async fn survey(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
        runs: u32,
    ) -> Result<Survey, StoreError> {
        on_either!(self.survey(fail_after, age_from, oldest, runs))
    }

    /// Rows, and what is known of them, at most so many, in the order of keys.
    pub async fn records(
        &self,
        wanted: &Wanted,
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        on_either!(self.records(wanted, limit))
    }

    /// Rows that have these names: as their keys, or else as their provider ids. At most so many of each.
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

    /// Events of the outbox, newest first, at most so many; none, where voice-sync has no tables yet.
    pub async fn events(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        match self.has_own_tables() {
            true => on_either!(self.events(filter, limit)),
            false => Ok(Vec::new()),
        }
    }

    /// The newest entries of the ledger, newest first, at most so many.
    pub async fn runs(&self, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        on_either!(self.runs(limit))
    }

    /// Puts failed voices back to processing that still have the provider ids of their records, unless their
    /// rows are locked. Their ages begin anew. Returns those that were put back.
    pub async fn put_back(
        &self,
        run: &CommandRun,
        voices: &[VoiceRecord],
    ) -> Result<HashSet<RowId>, StoreError> {
        on_either!(self.put_back(run, voices))
    }

    /// Has voices that are set aside asked about again. Returns those that were set aside.
    pub async fn release(
        &self,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        on_either!(self.release(run, rows))
    }

    /// Has published events published again, by whoever publishes next. Returns how many.
    pub async fn resend(&self, run: &CommandRun, filter: &EventFilter) -> Result<u64, StoreError> {
        on_either!(self.resend(run, filter))
    }

    /// Removes events, but for those that a process may be publishing. Returns how many.
    pub async fn purge(&self, run: &CommandRun, filter: &EventFilter) -> Result<u64, StoreError> {
        on_either!(self.purge(run, filter))
    }
}
