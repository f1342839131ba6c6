//! The checks of `voice-sync doctor` for the database and the application's table.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::check::Check;
use super::{postgres, sqlite};
use crate::core::format::{number_of, span};
use crate::store::{
    Database, NaiveZone, Names, PURGE, STATUS_ADVICE, StatusDoubt, Store, StoreError, literal,
};

/// Clocks that differ by more than this are reported.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(2);
/// Rows created further in the future than this have another time zone, or another clock.
const CLOCKS_AHEAD: Duration = Duration::from_secs(60);
/// The smallest difference between two time zones.
const ZONES_APART: Duration = Duration::from_secs(15 * 60);
/// This many rows that were first seen later than others are enough to judge how old rows are when they are first
/// seen.
const TELLING: i64 = 3;
/// A table with fewer rows needs no index to find the voices in processing.
pub(super) const SMALL_TABLE: u32 = 10_000;

/// Which database it is, and whether voice-sync can use it.
pub async fn database(database: &Database) -> Result<Check, StoreError> {
    match database {
        Database::Postgres(connections) => postgres::server(connections).await,
        Database::Sqlite(pool) => sqlite::file(pool).await,
    }
}

/// What could cause a pass on this table to fail or surprise.
pub async fn table(store: &Store, names: &Names) -> Vec<Check> {
    let mut checks = vec![columns(store, names)];
    checks.extend(store.missing_columns().iter().map(|column| {
        let name = column.name(&names.columns).quoted();
        let says = format!("the column {name} is missing: {}", column.consequence());
        Check::doubtful("columns", says, column.advice())
    }));
    checks.push(update(store.explain_update().await));
    let default_in = match store.database() {
        Database::Postgres(connections) => {
            checks.extend(postgres::table(store, connections, names).await);
            postgres::default_zone(store, connections, names).await
        }
        Database::Sqlite(pool) => {
            checks.extend(sqlite::table(pool, names).await);
            Ok(None)
        }
    };
    checks.push(counted("backlog", backlog(store).await));
    checks.push(counted("statuses", statuses(store, names).await));
    checks.push(counted("time zone", times(store, names, default_in).await));
    if store.has_own_tables() {
        checks.push(counted("daemon", daemon(store).await));
        checks.push(counted("second poller", second_poller(store).await));
    }
    checks
}

/// Whether the database answers the daemon's queries for what is due and for new voices.
async fn daemon(store: &Store) -> Result<Check, StoreError> {
    let agenda = store.agenda(1, None, None).await?;
    store.unscheduled(1, Some(&agenda.version)).await?;
    Ok(Check::fine(
        "daemon",
        "the database accepts the daemon's queries",
    ))
}

fn columns(store: &Store, names: &Names) -> Check {
    let room = match store.preview_room() {
        Some(room) => format!("preview URLs of up to {room} characters fit"),
        None => "preview URLs of any length fit".to_owned(),
    };
    let says = format!(
        "table {} has all required columns; its status can be {}; {room}",
        names.table.quoted(),
        names.statuses.all().join(", ")
    );
    Check::fine("table", says)
}

/// A check that fails is a result too: earlier results are kept.
pub(super) fn found(check: &'static str, result: Result<Check, StoreError>) -> Check {
    result.unwrap_or_else(|error| Check::broken(check, error.exit(), error.to_string()))
}

/// Same as [`found`], for queries that only `doctor` makes: a count that times out is a warning, because passes do
/// not count.
pub(super) fn counted(check: &'static str, result: Result<Check, StoreError>) -> Check {
    match result {
        Err(StoreError::Contended(reason)) => Check::doubtful(
            check,
            format!("counting took too long: {reason}"),
            "raise statement_timeout of the role to see this number; passes do not need it",
        ),
        result => found(check, result),
    }
}

/// Whether the database accepts the UPDATE of a pass.
pub(super) fn update(result: Result<(), StoreError>) -> Check {
    const CHECK: &str = "update";
    match result {
        Ok(()) => Check::fine(CHECK, "the database accepts the UPDATE of a pass"),
        Err(error) => Check::broken(CHECK, error.exit(), error.to_string()),
    }
}

/// Whether a list of values contains those that voice-sync writes.
pub(super) fn lists_ours(list: &str, names: &Names) -> bool {
    [&names.statuses.completed, &names.statuses.failed]
        .into_iter()
        .all(|value| list.contains(&literal(value)))
}

pub(super) fn index(rows: u64, serves: bool, advice: String) -> Check {
    const CHECK: &str = "index";
    match (serves, rows < u64::from(SMALL_TABLE)) {
        (true, _) => Check::fine(CHECK, "an index leads to the voices in processing"),
        (false, true) => Check::fine(
            CHECK,
            "no index leads to the voices in processing; the table is small and needs none",
        ),
        (false, false) => Check::doubtful(
            CHECK,
            format!("no index leads to the voices in processing; the table has about {rows} rows"),
            advice,
        ),
    }
}

async fn backlog(store: &Store) -> Result<Check, StoreError> {
    let overview = store.overview().await?;
    let since = overview
        .oldest
        .map(|oldest| format!(", the oldest for {}", span(oldest)));
    let says = format!(
        "{} in processing{}",
        number_of(overview.processing.unsigned_abs(), "voice", "voices"),
        since.unwrap_or_default()
    );
    Ok(Check::fine("backlog", says))
}

/// Whether rows have a status that is probably meant by a configured one, but is not the same.
async fn statuses(store: &Store, names: &Names) -> Result<Check, StoreError> {
    const CHECK: &str = "statuses";
    const LISTED: usize = 20;
    let statuses = store.statuses(None).await?;
    let doubts = names.statuses.doubts(&statuses);
    if !doubts.is_empty() {
        let doubts: Vec<_> = doubts.iter().map(StatusDoubt::to_string).collect();
        return Ok(Check::doubtful(CHECK, doubts.join("; "), STATUS_ADVICE));
    }
    let is_other = |(status, _): &&(String, u64)| !names.statuses.all().contains(&status.as_str());
    let others: Vec<_> = statuses
        .iter()
        .filter(is_other)
        .map(|(status, rows)| format!("{status} ({})", number_of(*rows, "row", "rows")))
        .take(LISTED)
        .collect();
    let says = match others.is_empty() {
        true => "all rows have one of the configured statuses".to_owned(),
        false => format!(
            "rows with other statuses, which voice-sync does not change: {}",
            others.join(", ")
        ),
    };
    Ok(Check::fine(CHECK, says))
}

/// Evidence of the time zone in which the application writes.
#[derive(Debug, Clone, Default)]
struct Times {
    /// The time zone of the database's or a role's settings, if `created_at` has no time zone and its default is the
    /// current time.
    default_in: Option<String>,
    /// How far in the future the newest row of the backlog was created.
    ahead: Option<Duration>,
    /// The least age that rows of the backlog had when voice-sync first saw them. Only rows count that it first saw
    /// later than others.
    behind: Option<Duration>,
    /// How many rows these are.
    late: i64,
}

fn zone(times: &Times, zone: &NaiveZone) -> Check {
    const CHECK: &str = "time zone";
    const ADVICE: &str = "if the application writes times without a time zone that are not UTC, set --naive-timezone \
                          (PostgreSQL), or let it write UTC; until then, ages in `status` and the time of the next \
                          lookup are wrong, but verdicts are right";
    let about = |time: Duration| span(Duration::from_secs(time.as_secs() / 60 * 60));
    let says = match times {
        Times {
            default_in: Some(other),
            ..
        } => format!(
            "the default of created_at is the current time in {other}, but voice-sync reads created_at as {}",
            zone.as_str()
        ),
        Times {
            ahead: Some(ahead), ..
        } if *ahead >= CLOCKS_AHEAD => {
            format!(
                "created_at of the newest voice in processing is {} in the future",
                about(*ahead)
            )
        }
        Times {
            behind: Some(behind),
            late: TELLING..,
            ..
        } if *behind >= ZONES_APART => format!(
            "every voice was at least {} old when voice-sync first saw it",
            about(*behind)
        ),
        Times {
            default_in: None,
            ahead: _,
            behind: _,
            late: _,
        } => {
            return Check::fine(
                CHECK,
                format!("times without a time zone are read as {}", zone.as_str()),
            );
        }
    };
    Check::doubtful(CHECK, says, ADVICE)
}

async fn times(
    store: &Store,
    names: &Names,
    default_in: Result<Option<String>, StoreError>,
) -> Result<Check, StoreError> {
    let (table, dialect) = (store.table(), store.dialect());
    let ahead = format!("max({})", table.created_at);
    let since_created = dialect.between(&table.created_at, "w.first_seen");
    let sql = format!(
        "SELECT {ahead} AS ahead, min({since_created}) FILTER (WHERE w.is_late) AS behind,
                count(*) FILTER (WHERE w.is_late) AS late
         FROM {name} v
         LEFT JOIN (SELECT row_id, first_seen, first_seen > min(first_seen) OVER () + {hour} AS is_late
                    FROM {known} k) w ON w.row_id = {row_id}
         WHERE {is_processing}",
        ahead = dialect.between(dialect.now(), &ahead),
        name = table.table,
        hour = dialect.span(Duration::from_secs(60 * 60)),
        known = table.known(),
        row_id = table.row_id(),
        is_processing = table.is_processing(),
    );
    let row = store
        .database()
        .fetch_one(sql, store.database().args())
        .await?;
    let times = Times {
        default_in: default_in?.filter(|zone| !names.zone.is(zone)),
        ahead: row.get_optional("ahead")?,
        behind: row.get_optional("behind")?,
        late: row.get("late")?,
    };
    Ok(zone(&times, &names.zone))
}

/// Counts rows that were completed since the oldest known event and have no event of their own.
async fn second_poller(store: &Store) -> Result<Check, StoreError> {
    const CHECK: &str = "second poller";
    let (table, dialect) = (store.table(), store.dialect());
    let [outbox, batches] = ["outbox", "batches"].map(|table| dialect.own(table));
    let runs = dialect.own("runs");
    // Events that `outbox purge` removed say nothing about who completed a voice.
    let since = format!(
        "SELECT max(since) AS since FROM (
             SELECT min(recorded_at) AS since FROM (
                 SELECT recorded_at FROM {batches} UNION ALL SELECT occurred_at FROM {outbox} WHERE batch_id IS NULL) e
             UNION ALL SELECT max(finished_at) FROM {runs} WHERE command = '{PURGE}') s"
    );
    let row = store
        .database()
        .fetch_one(since, store.database().args())
        .await?;
    let Some(since) = row.get_optional::<DateTime<Utc>>("since")? else {
        let says = "not checked: there are no recent events to compare with";
        return Ok(Check::fine(CHECK, says));
    };
    let mut args = store.database().args();
    let sql = format!(
        "SELECT count(*) AS others FROM {name} v
         WHERE v.{status} = {completed} AND {completed_before} > {since}
           AND NOT EXISTS (SELECT 1 FROM {outbox} o
                           WHERE {is_about_it} AND o.event_type = 'voice.created')",
        name = table.table,
        status = table.status,
        completed = table.completed,
        completed_before = table.completed_before,
        since = args.bind(since),
        is_about_it = table.is_row_of_event(),
    );
    let row = store.database().fetch_one(sql, args).await?;
    Ok(match row.count("others")? {
        0 => Check::fine(CHECK, "only voice-sync completes voices"),
        voices => Check::doubtful(
            CHECK,
            format!("{voices} voices were completed, but voice-sync recorded no event for them"),
            "if the application's own polling task still runs, switch it off; passes of voice-sync without a Redis \
             URL also record no events",
        ),
    })
}
