//! Parts for SQLite only: the file, the catalog and indexes.
//!
//! SQLite has a single writer, so `BEGIN IMMEDIATE` is enough to coordinate processes. The journal mode is the
//! application's choice and is not changed.

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

/// How long to wait while the application writes.
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
    // SQLite rolls back a transaction by itself if a disk is full or a trigger requests it. sqlx still counts the
    // transaction as open, and could not start another one on this connection.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        // Same as on PostgreSQL, for the same reason.
        .idle_timeout(None)
        .max_lifetime(None)
        .before_acquire(|connection, _| {
            let is_stuck = connection.is_in_transaction();
            Box::pin(ready(Ok(!is_stuck)))
        })
        .connect_lazy_with(options);
    // SQLite opens files lazily: the first read shows whether this is a database.
    sqlx::query("SELECT count(*) FROM sqlite_schema")
        .execute(&pool)
        .await?;
    Ok(pool)
}
