//! What is SQLite's alone: its file, its catalog and its indexes.
//!
//! SQLite has a single writer, so `BEGIN IMMEDIATE` is all the coordination there is. The file's journal mode is the
//! application's choice and stays.

mod catalog;
mod index;

use std::future::ready;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Connection, SqlitePool};

pub(super) use catalog::{shape, table_sql};
pub(crate) use index::is_indexed;

use super::{ACQUIRE_TIMEOUT, Access, StoreError};

/// How long to wait for the application to finish a write of its own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn connect(path: &Path, access: Access) -> Result<SqlitePool, StoreError> {
    if !path.exists() {
        return Err(StoreError::Config(
            "there is no such file; set --database-url to the application's database".to_owned(),
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
