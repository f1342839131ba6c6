//! A connection to either database, and its statements.

use sqlx::{AssertSqlSafe, Sqlite, SqlitePool};

use super::args::Args;
use super::dialect::Dialect;
use super::row::Row;
use super::{Access, DatabaseUrl, StoreError, postgres, sqlite};

/// A connected database whose application table has not been checked.
pub enum Database {
    /// A few connections.
    Postgres(Box<postgres::Connections>),
    /// A single connection.
    Sqlite(SqlitePool),
}

/// Several statements that take effect all together or not at all. Without a commit, none does.
pub(crate) enum Transaction<'a> {
    Postgres(Box<postgres::Transaction<'a>>),
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

impl Database {
    /// Connects, and checks the connection with one cheap statement.
    pub async fn connect(url: &DatabaseUrl, access: Access) -> Result<Self, StoreError> {
        match url {
            DatabaseUrl::Postgres(options) => {
                let connections = postgres::Connections::open(options).await?;
                Ok(Self::Postgres(Box::new(connections)))
            }
            DatabaseUrl::Sqlite(path) => Ok(Self::Sqlite(sqlite::connect(path, access).await?)),
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }

    pub(crate) fn args(&self) -> Args {
        Args::new(self.dialect())
    }

    pub(crate) async fn fetch_all(&self, sql: String, args: Args) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Postgres(connections) => connections.fetch_all(sql, args).await,
            Self::Sqlite(pool) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), args.of_sqlite()?);
                let rows = query.fetch_all(pool).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    pub(crate) async fn fetch_optional(
        &self,
        sql: String,
        args: Args,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch_all(sql, args).await?.into_iter().next())
    }

    pub(crate) async fn fetch_one(&self, sql: String, args: Args) -> Result<Row, StoreError> {
        one(self.fetch_all(sql, args).await?)
    }

    /// Returns the number of changed rows.
    pub(crate) async fn execute(&self, sql: String, args: Args) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(connections) => connections.execute(sql, args).await,
            Self::Sqlite(pool) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), args.of_sqlite()?);
                Ok(query.execute(pool).await?.rows_affected())
            }
        }
    }

    pub(crate) async fn begin(&self) -> Result<Transaction<'_>, StoreError> {
        self.begin_with("").await
    }

    /// Starts a transaction that writes. On PostgreSQL, these statements run in the same round trip.
    pub(crate) async fn begin_with(&self, postgres: &str) -> Result<Transaction<'_>, StoreError> {
        Ok(match self {
            Self::Postgres(connections) => {
                Transaction::Postgres(Box::new(connections.begin(postgres).await?))
            }
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
        })
    }
}

impl Transaction<'_> {
    pub(crate) async fn fetch_all(
        &mut self,
        sql: String,
        args: Args,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.fetch_all(sql, args).await,
            Self::Sqlite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), args.of_sqlite()?);
                let rows = query.fetch_all(&mut **transaction).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    pub(crate) async fn fetch_one(&mut self, sql: String, args: Args) -> Result<Row, StoreError> {
        one(self.fetch_all(sql, args).await?)
    }

    /// Returns the number of changed rows.
    pub(crate) async fn execute(&mut self, sql: String, args: Args) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.execute(sql, args).await,
            Self::Sqlite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), args.of_sqlite()?);
                Ok(query.execute(&mut **transaction).await?.rows_affected())
            }
        }
    }

    /// Runs statements without parameters one after the other. Returns the number of changed rows.
    pub(crate) async fn execute_script(&mut self, script: String) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.execute_script(script).await,
            Self::Sqlite(transaction) => {
                let script = sqlx::raw_sql(AssertSqlSafe(script));
                let done = script.execute(&mut **transaction).await?;
                Ok(done.rows_affected())
            }
        }
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.commit().await,
            Self::Sqlite(transaction) => Ok(transaction.commit().await?),
        }
    }

    pub(crate) async fn roll_back(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.roll_back().await,
            Self::Sqlite(transaction) => Ok(transaction.rollback().await?),
        }
    }
}

pub(super) fn one(rows: Vec<Row>) -> Result<Row, StoreError> {
    let first = rows.into_iter().next();
    first.ok_or_else(|| sqlx::Error::RowNotFound.into())
}
