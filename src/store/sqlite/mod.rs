//! The store on SQLite: a write transaction of a few statements for each operation.
//!
//! Bulk parameters are one JSON array each. SQLite has a single writer, so `BEGIN IMMEDIATE` is all
//! the coordination there is. The file's journal mode is the application's choice and stays.

mod apply;
mod catalog;
mod checkup;
mod claim;
mod ledger;
mod mend;
mod outbox;
mod survey;

use std::future::ready;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Connection, SqlitePool};
use uuid::Uuid;

pub(super) use catalog::shape;
pub(super) use checkup::checkup;

use super::{ACQUIRE_TIMEOUT, Absent, Access, CLOCK_SLACK, StoreError, TableName};

/// How long to wait for the application to finish a write of its own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The present in whole milliseconds since 1970.
pub(super) const NOW: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// Whether a moment that was set this far ahead at the most is still to come. One that is much further ahead was set
/// before the clock was set back, and is over.
fn is_ahead(moment: &str, longest: Duration) -> String {
    let longest = (longest + CLOCK_SLACK).as_millis();
    format!("COALESCE({moment} > {NOW} AND {moment} <= {NOW} + {longest}, 0)")
}

/// Milliseconds until such a moment; 0 if it is over.
fn milliseconds_until(moment: &str, longest: Duration) -> String {
    format!("iif({}, {moment} - {NOW}, 0)", is_ahead(moment, longest))
}

pub(super) async fn connect(path: &Path, access: Access) -> Result<SqlitePool, StoreError> {
    if !path.exists() {
        return Err(StoreError::Config(
            "there is no such file; give the application's database with --database-url".to_owned(),
        ));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(access == Access::ReadOnly)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .disable_statement_logging();
    // SQLite undoes a transaction by itself where a disk is full or a trigger wants it so. sqlx goes on
    // counting it, and such a connection could begin no other one.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        // As on PostgreSQL, for the same reason.
        .idle_timeout(None)
        .max_lifetime(None)
        .before_acquire(|connection, _| {
            let is_stuck = connection.is_in_transaction();
            Box::pin(ready(Ok(!is_stuck)))
        })
        .connect_lazy_with(options);
    // Opening is lazy in SQLite itself: the first read finds out whether this is a database.
    sqlx::query("SELECT count(*) FROM sqlite_schema")
        .execute(&pool)
        .await?;
    Ok(pool)
}

/// How a column holds a UUID or another key, and how it reads to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    /// As it stands.
    Plain,
    /// SQLAlchemy's `CHAR(32)`: a UUID without its dashes, which events have.
    BareUuid,
}

/// The application's table as SQL needs it: names quoted, values quoted.
pub(super) struct SqliteStore {
    pool: SqlitePool,
    name: TableName,
    table: String,
    id: String,
    id_form: KeyForm,
    /// The column whose values are positions: mostly the row ids of SQLite. An index on the status holds
    /// rows in that order, and those that follow each other share pages: of keys that
    /// are random, each row takes a page of its own to read and to write.
    position: String,
    user_id: String,
    user_id_form: KeyForm,
    provider_id: String,
    status: String,
    /// Where this or the next one is missing, completions are kept in voice-sync's own table.
    preview_url: Option<String>,
    completed_at: Option<String>,
    /// Text, whatever the application writes.
    completed_before: String,
    created_at: String,
    processing: String,
    completed: String,
    failed: String,
    preview_room: Option<usize>,
    absent: Vec<Absent>,
    own_tables: bool,
}

impl SqliteStore {
    pub(super) fn into_pool(self) -> SqlitePool {
        self.pool
    }

    fn keeps_completions(&self) -> bool {
        self.preview_url.is_none() || self.completed_at.is_none()
    }

    pub(super) fn has_own_tables(&self) -> bool {
        self.own_tables
    }

    /// An earlier version kept keys, whatever the order.
    fn could_be_position(&self, text: &str) -> bool {
        self.position == self.id || text.parse::<i64>().is_ok()
    }

    pub(super) fn absent(&self) -> &[Absent] {
        &self.absent
    }

    pub(super) fn preview_room(&self) -> Option<usize> {
        self.preview_room
    }
}

impl KeyForm {
    /// A stored key as others read it. What is no UUID after all stays as it is.
    fn read(self, stored: &str) -> String {
        match self {
            Self::Plain => stored.to_owned(),
            Self::BareUuid => Uuid::parse_str(stored)
                .map_or_else(|_| stored.to_owned(), |uuid| uuid.hyphenated().to_string()),
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn elapsed(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}
