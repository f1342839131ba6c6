//! The store on PostgreSQL: one statement, and so one transaction, for each operation.
//!
//! Parameters are arrays, cast to the column's type (`$1::text[]::uuid[]`): columns are never cast,
//! so that their indexes serve. Own rows are locked with SKIP LOCKED, and no lock outlives its
//! statement.

mod apply;
mod catalog;
mod claim;
mod ledger;
mod outbox;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tokio::time::timeout;

use super::{ACQUIRE_TIMEOUT, StoreError};

/// Connections: enough to claim, apply and relay at once, few enough for any server.
const POOL_SIZE: u32 = 4;

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgPool, StoreError> {
    crate::tls::install();
    // A ping before each statement would double the round trips; a dead connection shows itself by
    // an error that is tried again.
    let pool = PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options.clone().disable_statement_logging());
    match pool.acquire().await {
        Ok(_) => Ok(pool),
        // The pool tried for as long as it may, and does not say why it failed.
        Err(sqlx::Error::PoolTimedOut) => {
            let once = timeout(ACQUIRE_TIMEOUT, options.connect()).await;
            let why = once.map_or("no answer in time".to_owned(), |tried| match tried {
                Ok(_) => "no connection in time".to_owned(),
                Err(error) => error.to_string(),
            });
            Err(StoreError::Unreachable(why))
        }
        Err(error) => Err(error.into()),
    }
}

/// The application's table as SQL needs it: names quoted, values quoted and cast.
pub struct PostgresStore {
    pool: PgPool,
    table: String,
    id: String,
    id_type: String,
    user_id: String,
    provider_id: String,
    status: String,
    preview_url: String,
    completed_at: String,
    created_at: String,
    /// A row that was completed before and stands in processing again was cloned anew then.
    completed_before: String,
    processing: String,
    completed: String,
    failed: String,
    /// The present, in the type of the column `completed_at`.
    completed_now: &'static str,
    preview_room: Option<usize>,
    own_tables: bool,
}

impl PostgresStore {
    pub(super) fn into_pool(self) -> PgPool {
        self.pool
    }

    pub(super) fn preview_room(&self) -> Option<usize> {
        self.preview_room
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
