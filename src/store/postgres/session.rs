//! Connections to PostgreSQL, straight or by way of a pooler.
//!
//! A pooler in transaction mode, such as PgBouncer, may run each transaction of a connection in
//! another session of the server. A prepared statement stays behind in the session that it was made
//! in, where another process may have given its name to a different one. So behind a pooler each
//! operation is a transaction, and its statements have no names; without one, that would only cost
//! round trips.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row, SqlSafeStr,
    Transaction,
};
use tokio::time::timeout;

use crate::store::{ACQUIRE_TIMEOUT, StoreError};

/// Connections: enough to claim, apply and relay at once, few enough for any server.
const POOL_SIZE: u32 = 4;

/// A setting of our own, made when a connection begins. Poolers refuse such settings or keep them to
/// themselves: a session that has it is the server's own.
const MARK: (&str, &str) = ("voice_sync.straight", "on");

/// A pool of connections, made when they are needed.
pub struct Sessions {
    pool: PgPool,
    /// Whether a pooler stands between.
    pooler: bool,
    /// Connections to be tested before they are used. Where one was cut, the others may be as well.
    doubtful: AtomicU32,
}

/// What an operation runs its statements in.
pub(in crate::store) enum Session {
    Straight(PoolConnection<Postgres>),
    Pooled(Transaction<'static, Postgres>),
}

impl Sessions {
    /// Connects once, to see whether it works and whether there is a pooler.
    pub(in crate::store) async fn connect(options: &PgConnectOptions) -> Result<Self, StoreError> {
        crate::tls::install();
        // PgBouncer refuses `extra_float_digits`, which only matters for numbers sent as text.
        let options = options
            .clone()
            .disable_statement_logging()
            .extra_float_digits(None);
        let straight = pool(options.clone().options([MARK]));
        match is_straight(&straight, &options).await {
            Ok(true) => {
                return Ok(Self::new(straight, false));
            }
            Ok(false) => straight.close().await,
            Err(error) if refuses_settings(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let pooled = pool(options.clone());
        first(&pooled, &options).await?;
        Ok(Self::new(pooled, true))
    }

    fn new(pool: PgPool, pooler: bool) -> Self {
        Self {
            pool,
            pooler,
            doubtful: AtomicU32::new(0),
        }
    }

    pub(in crate::store) fn is_pooled(&self) -> bool {
        self.pooler
    }

    /// Has connections tested before they are used: something went wrong with one.
    pub(in crate::store) fn doubt(&self) {
        self.doubtful.store(POOL_SIZE, Ordering::Relaxed);
    }

    /// What to do for a role that may not use a schema, or its tables.
    pub(in crate::store) async fn may_not_use(
        &self,
        schema: &str,
        privileges: &str,
    ) -> Result<StoreError, StoreError> {
        const NAMES: &str = "SELECT quote_ident(current_user), quote_ident($1)";
        let mut session = self.begin().await?;
        let row = session
            .query(NAMES)
            .bind(schema)
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        let (role, schema): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(StoreError::Config(format!(
            "role {role} may not use schema {schema}, or its tables; as their owner, run: GRANT USAGE ON SCHEMA \
             {schema} TO {role}; GRANT {privileges} ON ALL TABLES IN SCHEMA {schema} TO {role};"
        )))
    }

    /// A connection, for a statement that a transaction may not have around it.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        loop {
            let mut connection = self.pool.acquire().await?;
            let doubtful = self.doubtful.load(Ordering::Relaxed);
            if doubtful == 0 {
                return Ok(connection);
            }
            if connection.ping().await.is_ok() {
                let fewer = doubtful.saturating_sub(1);
                self.doubtful.store(fewer, Ordering::Relaxed);
                return Ok(connection);
            }
            drop(connection.detach());
        }
    }

    /// A session for one operation. What is not [kept](Session::keep) is undone behind a pooler.
    pub(in crate::store) async fn begin(&self) -> Result<Session, StoreError> {
        Ok(match self.pooler {
            false => Session::Straight(self.acquire().await?),
            true => Session::Pooled(self.transaction().await?),
        })
    }

    /// A transaction of several statements.
    pub(in crate::store) async fn transaction(
        &self,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(Transaction::begin(self.acquire().await?, None).await?)
    }
}

impl Session {
    /// A statement, to be run in this session.
    pub(in crate::store) fn query<'q>(
        &self,
        sql: impl SqlSafeStr,
    ) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(sql).persistent(matches!(self, Self::Straight(_)))
    }

    /// Commits what is not committed yet.
    pub(in crate::store) async fn keep(self) -> Result<(), StoreError> {
        match self {
            Self::Straight(_) => Ok(()),
            Self::Pooled(transaction) => Ok(transaction.commit().await?),
        }
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Straight(connection) => connection,
            Self::Pooled(transaction) => transaction,
        }
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Straight(connection) => connection,
            Self::Pooled(transaction) => transaction,
        }
    }
}

pub(in crate::store) fn lacks_privilege(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "42501")
}

fn pool(options: PgConnectOptions) -> PgPool {
    // A ping before each statement would double the round trips; a dead connection shows itself by
    // an error that is tried again.
    PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options)
}

/// The first connection of a pool, or why there is none.
async fn first(
    pool: &PgPool,
    options: &PgConnectOptions,
) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    match pool.acquire().await {
        // The pool tried for as long as it may, and does not say why it failed.
        Err(sqlx::Error::PoolTimedOut) => {
            let once = timeout(ACQUIRE_TIMEOUT, options.connect()).await;
            Err(match once {
                Ok(Err(why)) => why,
                Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
            })
        }
        first => first,
    }
}

async fn is_straight(pool: &PgPool, options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let mut connection = first(pool, options).await?;
    // As text, since that needs no prepared statement.
    let ask = sqlx::raw_sql("SELECT current_setting('voice_sync.straight', TRUE)");
    let row = connection.fetch_one(ask).await?;
    Ok(row.try_get::<Option<String>, _>(0)?.as_deref() == Some(MARK.1))
}

/// PgBouncer says `protocol_violation` of a setting that it does not know, others that they do not
/// support it.
fn refuses_settings(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "08P01" || code == "0A000")
}
