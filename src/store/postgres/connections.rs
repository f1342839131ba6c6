//! Connections to PostgreSQL, direct or through a pooler.
//!
//! A pooler in transaction mode, such as PgBouncer, may run each transaction of a connection in another session of
//! the server. A prepared statement stays in the session where it was made, and another process may have used its
//! name for a different one there. So behind a pooler, each statement is a transaction and is not named. Without a
//! pooler, this would only cost round trips.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, Executor, PgConnection, Row as _, raw_sql,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::store::args::Args;
use crate::store::database::one;
use crate::store::dialect::Dialect;
use crate::store::row::Row;
use crate::store::{ACQUIRE_TIMEOUT, StoreError, operation_timeout};

/// The number of connections: enough to claim, apply and publish at once, few enough for any server.
const MAX_CONNECTIONS: u32 = 4;

/// A setting of our own that is made when a connection starts. Poolers refuse such settings or do not pass them on: a
/// session that has it is a direct one.
const MARK: (&str, &str) = ("voice_sync.straight", "on");

/// Connections are closed after this time, and new ones are made when needed: servers and proxies may not accept
/// connections that last for ever.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// The server ends a transaction that is idle for this time, for example of a suspended process, so that it does not
/// keep its locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// Between two attempts to connect to a server that is starting.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A few connections, made when needed.
pub struct Connections {
    options: PgConnectOptions,
    is_pooled: bool,
    /// Whether to test connections before use: if one was cut, others may be too.
    doubtful: AtomicU32,
    places: Semaphore,
    idle: Mutex<Idle>,
}

struct Idle {
    since: Instant,
    connections: Vec<PgConnection>,
}

/// A connection in use. It is closed unless it is [given back](Self::give_back).
struct Connection<'a> {
    connection: PgConnection,
    of: &'a Connections,
    _place: SemaphorePermit<'a>,
}

pub(crate) struct Transaction<'a>(Connection<'a>);

impl Connections {
    /// Connects once, to check that it works and whether there is a pooler.
    pub(in crate::store) async fn open(options: &PgConnectOptions) -> Result<Self, StoreError> {
        crate::tls::install();
        // PgBouncer refuses `extra_float_digits`, which only matters for numbers in text form.
        let options = options
            .clone()
            .disable_statement_logging()
            .extra_float_digits(None);
        let straight = options.clone().options([MARK]);
        match connect(&straight).await {
            Ok(mut connection) => {
                if is_straight(&mut connection).await? {
                    limit_statements(&mut connection).await?;
                    return Ok(Self::new(straight, false, connection));
                }
                drop(connection);
            }
            Err(error) if refuses_settings(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let connection = connect(&options).await?;
        Ok(Self::new(options, true, connection))
    }

    fn new(options: PgConnectOptions, is_pooled: bool, connection: PgConnection) -> Self {
        Self {
            options,
            is_pooled,
            doubtful: AtomicU32::new(0),
            places: Semaphore::new(MAX_CONNECTIONS as usize),
            idle: Mutex::new(Idle {
                since: Instant::now(),
                connections: vec![connection],
            }),
        }
    }

    pub(crate) fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    /// Tests connections before their next use, because one failed.
    pub(in crate::store) fn doubt(&self) {
        self.doubtful.store(MAX_CONNECTIONS, Ordering::Relaxed);
    }

    /// The statement for a role that may not use a schema or its tables.
    pub(in crate::store) async fn may_not_use(
        &self,
        schema: &str,
        privileges: &str,
    ) -> Result<StoreError, StoreError> {
        let mut args = Args::new(Dialect::Postgres);
        let names = format!(
            "SELECT quote_ident(current_user) AS role, quote_ident({}) AS schema",
            args.bind(schema)
        );
        let row = self.fetch_one(names, args).await?;
        let (role, schema): (String, String) = (row.get("role")?, row.get("schema")?);
        Ok(StoreError::Config(format!(
            "role {role} may not use schema {schema}, or its tables; as their owner, run: GRANT USAGE ON SCHEMA \
             {schema} TO {role}; GRANT {privileges} ON ALL TABLES IN SCHEMA {schema} TO {role};"
        )))
    }

    async fn acquire(&self) -> Result<Connection<'_>, StoreError> {
        let place = timeout(ACQUIRE_TIMEOUT, self.places.acquire()).await;
        let place = place
            .map_err(|_elapsed| sqlx::Error::PoolTimedOut)?
            .map_err(|_closed| sqlx::Error::PoolClosed)?;
        let connection = loop {
            let Some(mut connection) = self.idle().take() else {
                let mut connection = connect(&self.options).await?;
                if !self.is_pooled {
                    limit_statements(&mut connection).await?;
                }
                break connection;
            };
            let doubtful = self.doubtful.load(Ordering::Relaxed);
            if doubtful == 0 {
                break connection;
            }
            if connection.ping().await.is_ok() {
                let fewer = doubtful.saturating_sub(1);
                self.doubtful.store(fewer, Ordering::Relaxed);
                break connection;
            }
        };
        Ok(Connection {
            connection,
            of: self,
            _place: place,
        })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn fetch_all(&self, sql: String, args: Args) -> Result<Vec<Row>, StoreError> {
        if self.is_pooled {
            let mut transaction = self.begin("").await?;
            let rows = transaction.fetch_all(sql, args).await?;
            transaction.commit().await?;
            return Ok(rows);
        }
        let mut connection = self.acquire().await?;
        let rows = connection.fetch_all(sql, args).await;
        connection.give_back_after(rows)
    }

    pub(crate) async fn fetch_one(&self, sql: String, args: Args) -> Result<Row, StoreError> {
        one(self.fetch_all(sql, args).await?)
    }

    pub(in crate::store) async fn execute(
        &self,
        sql: String,
        args: Args,
    ) -> Result<u64, StoreError> {
        if self.is_pooled {
            let mut transaction = self.begin("").await?;
            let done = transaction.execute(sql, args).await?;
            transaction.commit().await?;
            return Ok(done);
        }
        let mut connection = self.acquire().await?;
        let done = connection.execute(sql, args).await;
        connection.give_back_after(done)
    }

    /// Starts a transaction, with these statements.
    pub(in crate::store) async fn begin(&self, with: &str) -> Result<Transaction<'_>, StoreError> {
        let limits = match self.is_pooled {
            true => statement_limit(Scope::Transaction),
            false => String::new(),
        };
        // The role may have another default isolation level, which would not see what others committed meanwhile.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             SET LOCAL idle_in_transaction_session_timeout = '{}s';
             {limits}; {with}",
            IDLE_IN_TRANSACTION.as_secs()
        );
        let mut connection = self.acquire().await?;
        connection
            .connection
            .execute(raw_sql(AssertSqlSafe(begin)))
            .await?;
        Ok(Transaction(connection))
    }

    /// A separate connection, for statements that cannot run in a transaction.
    pub(in crate::store) async fn run_alone(
        &self,
        statements: impl IntoIterator<Item = String>,
    ) -> Result<(), StoreError> {
        let mut connection = self.acquire().await?;
        for statement in statements {
            let statement = raw_sql(AssertSqlSafe(statement));
            connection.connection.execute(statement).await?;
        }
        Ok(())
    }
}

impl Idle {
    /// The connection that was used last. From time to time, all are closed.
    fn take(&mut self) -> Option<PgConnection> {
        if self.since.elapsed() > MAX_AGE {
            self.since = Instant::now();
            self.connections.clear();
        }
        self.connections.pop()
    }
}

impl Connection<'_> {
    async fn fetch_all(&mut self, sql: String, args: Args) -> Result<Vec<Row>, sqlx::Error> {
        let arguments = args.of_postgres()?;
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
        let query = query.persistent(!self.of.is_pooled);
        let rows = query.fetch_all(&mut self.connection).await?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    async fn execute(&mut self, sql: String, args: Args) -> Result<u64, sqlx::Error> {
        let arguments = args.of_postgres()?;
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
        let query = query.persistent(!self.of.is_pooled);
        Ok(query.execute(&mut self.connection).await?.rows_affected())
    }

    fn give_back(self) {
        self.of.idle().connections.push(self.connection);
    }

    /// A statement that the server refused does not harm the connection.
    fn give_back_after<T>(self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        match &outcome {
            Ok(_) | Err(sqlx::Error::Database(_)) => self.give_back(),
            Err(_) => {}
        }
        Ok(outcome?)
    }
}

impl Transaction<'_> {
    pub(in crate::store) async fn fetch_all(
        &mut self,
        sql: String,
        args: Args,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.0.fetch_all(sql, args).await?)
    }

    pub(in crate::store) async fn execute(
        &mut self,
        sql: String,
        args: Args,
    ) -> Result<u64, StoreError> {
        Ok(self.0.execute(sql, args).await?)
    }

    pub(in crate::store) async fn execute_script(
        &mut self,
        script: String,
    ) -> Result<u64, StoreError> {
        let script = raw_sql(AssertSqlSafe(script));
        Ok(self.0.connection.execute(script).await?.rows_affected())
    }

    pub(in crate::store) async fn commit(self) -> Result<(), StoreError> {
        self.end("COMMIT").await
    }

    pub(in crate::store) async fn roll_back(self) -> Result<(), StoreError> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), StoreError> {
        self.0.connection.execute(raw_sql(statement)).await?;
        self.0.give_back();
        Ok(())
    }
}

/// The purpose of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Session,
    Transaction,
}

/// Lets the server cancel a statement before its operation gives up and starts again on another connection. Otherwise
/// the statement would continue there, for example behind a lock, and so would each repetition. A limit of the role
/// stays.
fn statement_limit(scope: Scope) -> String {
    let limit = operation_timeout().mul_f64(5.0 / 6.0).as_millis();
    // A pooler may accept a session that it shares: a setting there would stay for others.
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

async fn limit_statements(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let limit = raw_sql(AssertSqlSafe(statement_limit(Scope::Session)));
    connection.execute(limit).await.map(drop)
}

/// Connects, and waits a moment for a server that is starting or has no free connections.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let deadline = Instant::now() + ACQUIRE_TIMEOUT;
    let mut last = sqlx::Error::PoolTimedOut;
    loop {
        match timeout_at(deadline, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if is_starting(&error) => last = error,
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Err(last),
        }
        if Instant::now() + CONNECT_PAUSE >= deadline {
            return Err(last);
        }
        sleep(CONNECT_PAUSE).await;
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    const TOO_MANY_CONNECTIONS: &str = "53300";
    const CANNOT_CONNECT_NOW: &str = "57P03";
    if let sqlx::Error::Io(error) = error {
        return error.kind() == io::ErrorKind::ConnectionRefused;
    }
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == TOO_MANY_CONNECTIONS || code == CANNOT_CONNECT_NOW)
}

/// Whether there is no pooler in between.
async fn is_straight(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // As text, which needs no prepared statement.
    let ask = raw_sql("SELECT current_setting('voice_sync.straight', TRUE)");
    let mark: Option<String> = connection.fetch_one(ask).await?.try_get(0)?;
    Ok(mark.as_deref() == Some(MARK.1))
}

/// PgBouncer answers `protocol_violation` to a setting that it does not know; other poolers answer that it is not
/// supported.
fn refuses_settings(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "08P01" || code == "0A000")
}
