//! Connections to PostgreSQL, straight or by way of a pooler.
//!
//! A pooler in transaction mode, such as PgBouncer, may run each transaction of a connection in
//! another session of the server. A prepared statement stays behind in the session that it was made
//! in, where another process may have given its name to a different one. So behind a pooler each
//! operation is a transaction, and its statements have no names; without one, that would only cost
//! round trips.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row,
    SqlSafeStr, Transaction, raw_sql,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::store::{ACQUIRE_TIMEOUT, StoreError, operation_timeout};

/// Connections: enough to claim, apply and relay at once, few enough for any server.
const POOL_SIZE: u32 = 4;

/// A setting of our own, made when a connection begins. Poolers refuse such settings or keep them to
/// themselves: a session that has it is the server's own.
const MARK: (&str, &str) = ("voice_sync.straight", "on");

/// After so long, connections are closed, and others made when they are needed: servers, and what stands before
/// them, may not want one for ever.
const AT_HAND: Duration = Duration::from_secs(10 * 60);

/// A pool of connections, made when they are needed.
pub struct Sessions {
    pool: PgPool,
    /// Whether a pooler stands between.
    pooler: bool,
    /// Connections to be tested before they are used. Where one was cut, the others may be as well.
    doubtful: AtomicU32,
    /// One for each connection that straight sessions may use at once.
    places: Arc<Semaphore>,
    at_hand: Arc<Mutex<AtHand>>,
}

/// Connections that straight sessions kept. The pool would take a round trip to have one back, and make
/// another one for who comes meanwhile.
struct AtHand {
    since: Instant,
    connections: Vec<PoolConnection<Postgres>>,
}

/// What an operation runs its statements in.
pub(in crate::store) enum Session {
    Straight(Straight),
    Pooled(Transaction<'static, Postgres>),
}

/// A connection to the server itself, and its place among those in use.
pub(in crate::store) struct Straight {
    connection: PoolConnection<Postgres>,
    at_hand: Arc<Mutex<AtHand>>,
    _place: OwnedSemaphorePermit,
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
        let limited = PgPoolOptions::new().after_connect(|connection, _| {
            Box::pin(async {
                let limit = raw_sql(AssertSqlSafe(limit_statements(Scope::Session)));
                connection.execute(limit).await.map(drop)
            })
        });
        let straight = pool(limited, options.clone().options([MARK]));
        match first_straight(&straight, &options).await {
            Ok(Some(connection)) => return Ok(Self::new(straight, false, vec![connection])),
            Ok(None) => straight.close().await,
            Err(error) if refuses_settings(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let pooled = pool(PgPoolOptions::new(), options.clone());
        first(&pooled, &options).await?;
        Ok(Self::new(pooled, true, Vec::new()))
    }

    fn new(pool: PgPool, pooler: bool, connections: Vec<PoolConnection<Postgres>>) -> Self {
        Self {
            pool,
            pooler,
            doubtful: AtomicU32::new(0),
            places: Arc::new(Semaphore::new(POOL_SIZE as usize)),
            at_hand: Arc::new(Mutex::new(AtHand {
                since: Instant::now(),
                connections,
            })),
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
            let mut connection = match AtHand::take(&self.at_hand) {
                Some(connection) => connection,
                None => self.pool.acquire().await?,
            };
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
            false => {
                let place = Arc::clone(&self.places).acquire_owned();
                let place = timeout(ACQUIRE_TIMEOUT, place).await;
                Session::Straight(Straight {
                    _place: place
                        .map_err(|_elapsed| sqlx::Error::PoolTimedOut)?
                        .map_err(|_closed| sqlx::Error::PoolClosed)?,
                    connection: self.acquire().await?,
                    at_hand: Arc::clone(&self.at_hand),
                })
            }
            true => Session::Pooled(self.transaction().await?),
        })
    }

    /// A transaction of several statements.
    pub(in crate::store) async fn transaction(
        &self,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        let begin = match self.pooler {
            true => format!("BEGIN; {}", limit_statements(Scope::Transaction)),
            false => "BEGIN".to_owned(),
        };
        let begin = AssertSqlSafe(begin).into_sql_str();
        Ok(Transaction::begin(self.acquire().await?, Some(begin)).await?)
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

    /// Commits what is not committed yet, and leaves the connection to the next operation.
    pub(in crate::store) async fn keep(self) -> Result<(), StoreError> {
        match self {
            Self::Straight(Straight {
                connection,
                at_hand,
                _place,
            }) => {
                AtHand::of(&at_hand).connections.push(connection);
                Ok(())
            }
            Self::Pooled(transaction) => Ok(transaction.commit().await?),
        }
    }
}

impl AtHand {
    fn of(shared: &Mutex<Self>) -> MutexGuard<'_, Self> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last. Once in a while all of them are closed.
    fn take(shared: &Mutex<Self>) -> Option<PoolConnection<Postgres>> {
        let mut at_hand = Self::of(shared);
        if at_hand.since.elapsed() > AT_HAND {
            at_hand.since = Instant::now();
            for connection in at_hand.connections.drain(..) {
                drop(connection.detach());
            }
        }
        at_hand.connections.pop()
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Straight(straight) => &straight.connection,
            Self::Pooled(transaction) => transaction,
        }
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Straight(straight) => &mut straight.connection,
            Self::Pooled(transaction) => transaction,
        }
    }
}

pub(in crate::store) fn lacks_privilege(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "42501")
}

/// What a setting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Session,
    Transaction,
}

/// Has the server end a statement before its operation is given up, and begun again on another connection: else it
/// would go on there, behind a lock for instance, and so would each that follows. A limit that the role has stays.
fn limit_statements(scope: Scope) -> String {
    let limit = operation_timeout().mul_f64(5.0 / 6.0).as_millis();
    // A pooler may accept a session that is not the server's own: what is set there would stay for others.
    let (is_local, condition) = match scope {
        Scope::Session => (
            false,
            format!(" AND current_setting('{}', TRUE) = '{}'", MARK.0, MARK.1),
        ),
        Scope::Transaction => (true, String::new()),
    };
    format!(
        "SELECT set_config('statement_timeout', '{limit}', {is_local})
         WHERE current_setting('statement_timeout') = '0'{condition}"
    )
}

fn pool(pool: PgPoolOptions, options: PgConnectOptions) -> PgPool {
    // A ping before each statement would double the round trips; a dead connection shows itself by
    // an error that is tried again.
    pool.max_connections(POOL_SIZE)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        // Without them the pool has no task that looks after idle connections. That of sqlx 0.9.0 may count
        // them while one is taken, read a number below zero as one without end, and never rest again.
        .idle_timeout(None)
        .max_lifetime(None)
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

/// The first connection, unless a pooler stands between.
async fn first_straight(
    pool: &PgPool,
    options: &PgConnectOptions,
) -> Result<Option<PoolConnection<Postgres>>, sqlx::Error> {
    let mut connection = first(pool, options).await?;
    // As text, since that needs no prepared statement.
    let ask = raw_sql("SELECT current_setting('voice_sync.straight', TRUE)");
    let row = connection.fetch_one(ask).await?;
    let mark: Option<String> = row.try_get(0)?;
    Ok((mark.as_deref() == Some(MARK.1)).then_some(connection))
}

/// PgBouncer says `protocol_violation` of a setting that it does not know, others that they do not
/// support it.
fn refuses_settings(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "08P01" || code == "0A000")
}
