//! A connection to either database: statements, their parameters and rows.

use std::convert::identity;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Column as _, Row as _, Sqlite, SqlitePool, ValueRef};
use uuid::Uuid;

use super::dialect::Dialect;
use super::{Access, DatabaseUrl, StoreError, postgres, sqlite};

/// A connected database whose application table has not been looked at.
pub enum Database {
    /// A few connections.
    Postgres(Box<postgres::Connections>),
    /// A single one.
    Sqlite(SqlitePool),
}

/// Several statements of which all or none have an effect. Without a commit, none has.
pub(crate) enum Transaction<'a> {
    Postgres(Box<postgres::Transaction<'a>>),
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

/// The parameters of a statement, each known by the placeholder that it got.
pub(crate) struct Args {
    dialect: Dialect,
    values: Vec<Value>,
}

/// A parameter. A null has a type as well: PostgreSQL prepares a statement for the types of its first parameters.
pub(crate) enum Value {
    Text(Option<String>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Boolean(Option<bool>),
    Id(Option<Uuid>),
    Moment(Option<DateTime<Utc>>),
    /// An array on PostgreSQL, one of JSON on SQLite.
    Texts(Vec<Option<String>>),
    Reals(Vec<f64>),
    Booleans(Vec<bool>),
    /// Of SQLite only: rows as arrays of JSON.
    Rows(String),
}

/// A column of rows that are given to a statement.
pub(crate) enum Column {
    Text(Vec<Option<String>>),
    Real(Vec<f64>),
    Boolean(Vec<bool>),
}

/// A row that a statement gave.
pub(crate) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Database {
    /// Connects, and shows that it works with one cheap statement.
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

    /// Returns how many rows were changed.
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

    /// Begins a transaction that writes; on PostgreSQL, with these statements, in the same round trip.
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

    /// Returns how many rows were changed.
    pub(crate) async fn execute(&mut self, sql: String, args: Args) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(transaction) => transaction.execute(sql, args).await,
            Self::Sqlite(transaction) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), args.of_sqlite()?);
                Ok(query.execute(&mut **transaction).await?.rows_affected())
            }
        }
    }

    /// Runs statements without parameters, one after the other. Returns how many rows were changed.
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

fn one(rows: Vec<Row>) -> Result<Row, StoreError> {
    let first = rows.into_iter().next();
    first.ok_or_else(|| sqlx::Error::RowNotFound.into())
}

impl Args {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            values: Vec::new(),
        }
    }

    /// Adds a parameter. Returns its placeholder.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// Whether what stands before is one of these texts, which are of this type on PostgreSQL.
    pub(crate) fn is_any<T: Into<String>>(
        &mut self,
        sql_type: &str,
        texts: impl IntoIterator<Item = T>,
    ) -> String {
        let texts = texts.into_iter().map(|text| Some(text.into()));
        let parameter = self.bind(Value::Texts(texts.collect()));
        match self.dialect {
            Dialect::Postgres => format!("= ANY({parameter}::{sql_type}[])"),
            Dialect::Sqlite => format!("IN (SELECT value FROM json_each({parameter}))"),
        }
    }

    /// Adds rows, given by their columns: each with its name, its type on PostgreSQL and its values. Returns what to
    /// select from.
    pub(crate) fn rows(&mut self, alias: &str, columns: Vec<(&str, &str, Column)>) -> String {
        let names: Vec<_> = columns
            .iter()
            .map(|(name, ..)| (*name).to_owned())
            .collect();
        match self.dialect {
            Dialect::Postgres => {
                let arrays: Vec<_> = columns
                    .into_iter()
                    .map(|(_, sql_type, column)| {
                        let array = match column {
                            Column::Text(texts) => Value::Texts(texts),
                            Column::Real(reals) => Value::Reals(reals),
                            Column::Boolean(booleans) => Value::Booleans(booleans),
                        };
                        format!("{}::{sql_type}[]", self.bind(array))
                    })
                    .collect();
                format!(
                    "unnest({}) AS {alias} ({})",
                    arrays.join(", "),
                    names.join(", ")
                )
            }
            Dialect::Sqlite => {
                let columns: Vec<Vec<Json>> = columns
                    .into_iter()
                    .map(|(_, _, column)| match column {
                        Column::Text(texts) => texts.into_iter().map(Json::from).collect(),
                        Column::Real(reals) => reals.into_iter().map(Json::from).collect(),
                        Column::Boolean(flags) => flags.into_iter().map(Json::from).collect(),
                    })
                    .collect();
                let rows = columns.first().map_or(0, Vec::len);
                let rows: Vec<Vec<&Json>> = (0..rows)
                    .map(|row| columns.iter().map(|column| &column[row]).collect())
                    .collect();
                let parameter = self.bind(Value::Rows(json!(rows).to_string()));
                let values: Vec<_> = names
                    .iter()
                    .enumerate()
                    .map(|(place, name)| format!("value ->> {place} AS {name}"))
                    .collect();
                format!(
                    "(SELECT {} FROM json_each({parameter})) AS {alias}",
                    values.join(", ")
                )
            }
        }
    }

    pub(super) fn of_postgres(self) -> Result<PgArguments, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for value in self.values {
            let added = match value {
                Value::Text(text) => arguments.add(text),
                Value::Rows(rows) => arguments.add(rows),
                Value::Integer(integer) => arguments.add(integer),
                Value::Real(real) => arguments.add(real),
                Value::Boolean(boolean) => arguments.add(boolean),
                Value::Id(id) => arguments.add(id),
                Value::Moment(moment) => arguments.add(moment),
                Value::Texts(texts) => arguments.add(texts),
                Value::Reals(reals) => arguments.add(reals),
                Value::Booleans(booleans) => arguments.add(booleans),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }

    fn of_sqlite(self) -> Result<SqliteArguments, sqlx::Error> {
        let mut arguments = SqliteArguments::default();
        for value in self.values {
            let added = match value {
                Value::Text(text) => arguments.add(text),
                Value::Rows(rows) => arguments.add(rows),
                Value::Integer(integer) => arguments.add(integer),
                Value::Real(real) => arguments.add(real),
                Value::Boolean(boolean) => arguments.add(boolean),
                Value::Id(id) => arguments.add(id.map(|id| id.to_string())),
                Value::Moment(moment) => arguments.add(moment.map(|at| at.timestamp_millis())),
                Value::Texts(texts) => arguments.add(json!(texts).to_string()),
                Value::Reals(reals) => arguments.add(json!(reals).to_string()),
                Value::Booleans(booleans) => arguments.add(json!(booleans).to_string()),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }
}

/// Values of these types, and none of them.
macro_rules! value {
    ($($from:ty => $variant:ident, $convert:expr;)+) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(Some($convert(value)))
            }
        }

        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map($convert))
            }
        }
    )+};
}

value! {
    &str => Text, str::to_owned;
    String => Text, identity;
    i64 => Integer, identity;
    u32 => Integer, i64::from;
    f64 => Real, identity;
    bool => Boolean, identity;
    Uuid => Id, identity;
    DateTime<Utc> => Moment, identity;
    // In seconds.
    Duration => Real, |span: Duration| span.as_secs_f64();
}

impl Row {
    /// A value that is not null.
    pub(crate) fn get<T: FromColumn>(&self, column: &str) -> Result<T, StoreError> {
        let null = || sqlx::Error::ColumnDecode {
            index: column.to_owned(),
            source: Box::new(sqlx::error::UnexpectedNullError),
        };
        Ok(self.get_optional(column)?.ok_or_else(null)?)
    }

    pub(crate) fn get_optional<T: FromColumn>(
        &self,
        column: &str,
    ) -> Result<Option<T>, StoreError> {
        let value = match self {
            Self::Postgres(row) => match row.try_get_raw(column)?.is_null() {
                true => None,
                false => Some(T::of_postgres(row, column)?),
            },
            Self::Sqlite(row) => match row.try_get_raw(column)?.is_null() {
                true => None,
                false => Some(T::of_sqlite(row, column)?),
            },
        };
        Ok(value)
    }

    /// An array of texts, of PostgreSQL only.
    pub(crate) fn texts(&self, column: &str) -> Result<Vec<String>, StoreError> {
        match self {
            Self::Postgres(row) => Ok(row.try_get(column)?),
            Self::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// A count, or none.
    pub(crate) fn count(&self, column: &str) -> Result<u64, StoreError> {
        Ok(self.get::<i64>(column)?.unsigned_abs())
    }

    /// A small count.
    pub(crate) fn times(&self, column: &str) -> Result<u32, StoreError> {
        Ok(u32::try_from(self.count(column)?).unwrap_or(u32::MAX))
    }
}

/// A type that a column of either database is read as.
pub(crate) trait FromColumn: Sized {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error>;
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error>;
}

impl FromColumn for i64 {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        use sqlx::TypeInfo as _;
        match row.column(column).type_info().name() {
            "INT2" => Ok(row.try_get::<i16, _>(column)?.into()),
            "INT4" => Ok(row.try_get::<i32, _>(column)?.into()),
            _ => row.try_get(column),
        }
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get_unchecked(column)
    }
}

impl FromColumn for f64 {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get_unchecked(column)
    }
}

impl FromColumn for bool {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        Ok(row.try_get_unchecked::<i64, _>(column)? != 0)
    }
}

/// On SQLite, whatever bytes the application stored.
impl FromColumn for String {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let bytes: Vec<u8> = row.try_get_unchecked(column)?;
        Ok(Self::from_utf8_lossy(&bytes).into_owned())
    }
}

/// On SQLite nil, if somebody else wrote there.
impl FromColumn for Uuid {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let text = String::of_sqlite(row, column)?;
        Ok(Self::parse_str(&text).unwrap_or_default())
    }
}

impl FromColumn for DateTime<Utc> {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let milliseconds = i64::of_sqlite(row, column)?;
        Ok(Self::from_timestamp_millis(milliseconds).unwrap_or_default())
    }
}

/// From seconds. What is below zero is none.
impl FromColumn for Duration {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        f64::of_postgres(row, column).map(seconds)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        f64::of_sqlite(row, column).map(seconds)
    }
}

impl FromColumn for Json {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get(column)
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let text = String::of_sqlite(row, column)?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
