//! A connection to either database: statements, their parameters and rows.

use std::borrow::Cow;
use std::convert::identity;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Column as _, Row as _, Sqlite, SqlitePool, TypeInfo as _};
use uuid::Uuid;

use super::dialect::Dialect;
use super::{Access, DatabaseUrl, StoreError, postgres, sqlite};
use crate::core::voice::RowId;

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
    encoded: Encoded,
    count: usize,
    /// Why one could not be encoded.
    error: Option<sqlx::Error>,
}

enum Encoded {
    Postgres(PgArguments),
    Sqlite(SqliteArguments),
}

/// A parameter. A null has a type as well: PostgreSQL prepares a statement for the types of its first parameters.
pub(crate) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Boolean(Option<bool>),
    Id(Option<Uuid>),
    Moment(Option<DateTime<Utc>>),
    /// Several of them: an array on PostgreSQL, one of JSON on SQLite.
    Column(Column<'a>),
}

/// A column of rows that are given to a statement.
pub(crate) enum Column<'a> {
    Text(Vec<Option<&'a str>>),
    Real(Vec<f64>),
    Boolean(Vec<bool>),
    Id(Vec<Uuid>),
    Integer(Vec<i64>),
}

/// Rows that are given to a statement: of each item one, with these columns. Types are those of PostgreSQL.
pub(crate) struct Columns<'a, T> {
    items: &'a [T],
    columns: Vec<(&'a str, &'a str, Column<'a>)>,
}

impl<'a, T> Columns<'a, T> {
    pub(crate) fn of(items: &'a [T]) -> Self {
        let columns = Vec::new();
        Self { items, columns }
    }

    pub(crate) fn text(self, name: &'a str, of: impl FnMut(&'a T) -> Option<&'a str>) -> Self {
        self.key(name, "text", of)
    }

    /// A text that is cast to a type.
    pub(crate) fn key(
        self,
        name: &'a str,
        sql_type: &'a str,
        of: impl FnMut(&'a T) -> Option<&'a str>,
    ) -> Self {
        let column = Column::Text(self.items.iter().map(of).collect());
        self.and(name, sql_type, column)
    }

    pub(crate) fn real(self, name: &'a str, of: impl FnMut(&'a T) -> f64) -> Self {
        let column = Column::Real(self.items.iter().map(of).collect());
        self.and(name, "double precision", column)
    }

    pub(crate) fn boolean(self, name: &'a str, of: impl FnMut(&'a T) -> bool) -> Self {
        let column = Column::Boolean(self.items.iter().map(of).collect());
        self.and(name, "boolean", column)
    }

    pub(crate) fn id(self, name: &'a str, of: impl FnMut(&'a T) -> Uuid) -> Self {
        let column = Column::Id(self.items.iter().map(of).collect());
        self.and(name, "uuid", column)
    }

    pub(crate) fn integer(self, name: &'a str, of: impl FnMut(&'a T) -> i64) -> Self {
        let column = Column::Integer(self.items.iter().map(of).collect());
        self.and(name, "bigint", column)
    }

    fn and(mut self, name: &'a str, sql_type: &'a str, column: Column<'a>) -> Self {
        self.columns.push((name, sql_type, column));
        self
    }
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

pub(super) fn one(rows: Vec<Row>) -> Result<Row, StoreError> {
    let first = rows.into_iter().next();
    first.ok_or_else(|| sqlx::Error::RowNotFound.into())
}

impl Args {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let encoded = match dialect {
            Dialect::Postgres => Encoded::Postgres(PgArguments::default()),
            Dialect::Sqlite => Encoded::Sqlite(SqliteArguments::default()),
        };
        Self {
            encoded,
            count: 0,
            error: None,
        }
    }

    /// Adds a parameter. Returns its placeholder.
    pub(crate) fn bind<'a>(&mut self, value: impl Into<Value<'a>>) -> String {
        let value = value.into();
        let added = match &mut self.encoded {
            Encoded::Postgres(arguments) => match value {
                Value::Text(text) => arguments.add(text),
                Value::Integer(integer) => arguments.add(integer),
                Value::Real(real) => arguments.add(real),
                Value::Boolean(boolean) => arguments.add(boolean),
                Value::Id(id) => arguments.add(id),
                Value::Moment(moment) => arguments.add(moment),
                Value::Column(Column::Text(texts)) => arguments.add(texts),
                Value::Column(Column::Real(reals)) => arguments.add(reals),
                Value::Column(Column::Boolean(booleans)) => arguments.add(booleans),
                Value::Column(Column::Id(ids)) => arguments.add(ids),
                Value::Column(Column::Integer(integers)) => arguments.add(integers),
            },
            Encoded::Sqlite(arguments) => match value {
                Value::Text(text) => arguments.add(text),
                Value::Integer(integer) => arguments.add(integer),
                Value::Real(real) => arguments.add(real),
                Value::Boolean(boolean) => arguments.add(boolean),
                Value::Id(id) => arguments.add(id.map(|id| id.to_string())),
                Value::Moment(moment) => arguments.add(moment.map(|at| at.timestamp_millis())),
                Value::Column(column) => arguments.add(json!(column.json()).to_string()),
            },
        };
        self.added(added)
    }

    fn added(&mut self, added: Result<(), BoxDynError>) -> String {
        if let Err(error) = added {
            self.error.get_or_insert(sqlx::Error::Encode(error));
        }
        self.count += 1;
        format!("${}", self.count)
    }

    /// Whether what stands before is one of these texts, which are of this type on PostgreSQL.
    pub(crate) fn is_any<'a, T: AsRef<str> + ?Sized + 'a>(
        &mut self,
        sql_type: &str,
        texts: impl IntoIterator<Item = &'a T>,
    ) -> String {
        let texts = texts.into_iter().map(|text| Some(text.as_ref())).collect();
        let parameter = self.bind(Value::Column(Column::Text(texts)));
        match self.encoded {
            Encoded::Postgres(_) => format!("= ANY({parameter}::{sql_type}[])"),
            Encoded::Sqlite(_) => format!("IN (SELECT value FROM json_each({parameter}))"),
        }
    }

    /// Whether what stands before is one of these values of its own type.
    pub(crate) fn is_one_of(&mut self, values: Column<'_>) -> String {
        let parameter = self.bind(Value::Column(values));
        match self.encoded {
            Encoded::Postgres(_) => format!("= ANY({parameter})"),
            Encoded::Sqlite(_) => format!("IN (SELECT value FROM json_each({parameter}))"),
        }
    }

    /// Adds rows. Returns what to select from.
    pub(crate) fn rows<T>(&mut self, alias: &str, rows: Columns<'_, T>) -> String {
        let Columns { items, columns } = rows;
        let names: Vec<_> = columns
            .iter()
            .map(|(name, ..)| (*name).to_owned())
            .collect();
        match &mut self.encoded {
            Encoded::Postgres(_) => {
                let arrays = columns.into_iter().map(|(_, sql_type, column)| {
                    format!("{}::{sql_type}[]", self.bind(Value::Column(column)))
                });
                let arrays = arrays.collect::<Vec<_>>().join(", ");
                format!("unnest({arrays}) AS {alias} ({})", names.join(", "))
            }
            Encoded::Sqlite(arguments) => {
                let columns: Vec<_> = columns.iter().map(|(_, _, column)| column.json()).collect();
                let row = |row: usize| columns.iter().map(move |column| &column[row]).collect();
                let rows: Vec<Vec<&Json>> = (0..items.len()).map(row).collect();
                let added = arguments.add(json!(rows).to_string());
                let parameter = self.added(added);
                let values = names.iter().enumerate();
                let values = values.map(|(place, name)| format!("value ->> {place} AS {name}"));
                let values = values.collect::<Vec<_>>().join(", ");
                format!("(SELECT {values} FROM json_each({parameter})) AS {alias}")
            }
        }
    }

    pub(super) fn of_postgres(self) -> Result<PgArguments, sqlx::Error> {
        match (self.error, self.encoded) {
            (None, Encoded::Postgres(arguments)) => Ok(arguments),
            (Some(error), _) => Err(error),
            (None, Encoded::Sqlite(_)) => Err(other_database()),
        }
    }

    fn of_sqlite(self) -> Result<SqliteArguments, sqlx::Error> {
        match (self.error, self.encoded) {
            (None, Encoded::Sqlite(arguments)) => Ok(arguments),
            (Some(error), _) => Err(error),
            (None, Encoded::Postgres(_)) => Err(other_database()),
        }
    }
}

fn other_database() -> sqlx::Error {
    sqlx::Error::Protocol("parameters of another database".to_owned())
}

impl Column<'_> {
    fn json(&self) -> Vec<Json> {
        match self {
            Self::Text(texts) => texts.iter().map(|text| json!(text)).collect(),
            Self::Real(reals) => reals.iter().map(|real| json!(real)).collect(),
            Self::Boolean(booleans) => booleans.iter().map(|flag| json!(flag)).collect(),
            Self::Id(ids) => ids.iter().map(|id| json!(id)).collect(),
            Self::Integer(integers) => integers.iter().map(|number| json!(number)).collect(),
        }
    }
}

/// No count is larger.
fn saturated(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Values of these types, and none of them.
macro_rules! value {
    ($($from:ty => $variant:ident, $convert:expr;)+) => {$(
        impl<'a> From<$from> for Value<'a> {
            fn from(value: $from) -> Self {
                Self::$variant(Some($convert(value)))
            }
        }

        impl<'a> From<Option<$from>> for Value<'a> {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map($convert))
            }
        }
    )+};
}

value! {
    &'a str => Text, Cow::Borrowed;
    String => Text, Cow::Owned;
    i64 => Integer, identity;
    u32 => Integer, i64::from;
    u64 => Integer, saturated;
    usize => Integer, saturated;
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
        Ok(match self {
            Self::Postgres(row) => T::of_postgres(row, column)?,
            Self::Sqlite(row) => T::of_sqlite(row, column)?,
        })
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
    fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error>;
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error>;
}

/// As PostgreSQL has it, and on SQLite as this type: its values have types of their own, whatever the column's.
macro_rules! from_column {
    ($($type:ty, $stored:ty => $convert:expr;)+) => {$(
        impl FromColumn for $type {
            fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
                row.try_get(column)
            }

            fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
                let stored: Option<$stored> = row.try_get_unchecked(column)?;
                Ok(stored.map($convert))
            }
        }
    )+};
}

from_column! {
    f64, f64 => identity;
    bool, i64 => |stored| stored != 0;
    // Whatever bytes the application stored.
    String, Vec<u8> => lossy;
    // Nil, if somebody else wrote there.
    Uuid, String => |text: String| Self::parse_str(&text).unwrap_or_default();
    DateTime<Utc>, i64 => |stored| Self::from_timestamp_millis(stored).unwrap_or_default();
    Json, String => |text: String| serde_json::from_str(&text).unwrap_or_default();
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Of any of PostgreSQL's integers.
impl FromColumn for i64 {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        Ok(match row.try_column(column)?.type_info().name() {
            "INT2" => row.try_get::<Option<i16>, _>(column)?.map(Self::from),
            "INT4" => row.try_get::<Option<i32>, _>(column)?.map(Self::from),
            _ => row.try_get(column)?,
        })
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        row.try_get_unchecked(column)
    }
}

impl FromColumn for RowId {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        Ok(String::of_postgres(row, column)?.map(Self::new))
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        Ok(String::of_sqlite(row, column)?.map(Self::new))
    }
}

/// From seconds. What is below zero is none.
impl FromColumn for Duration {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        Ok(f64::of_postgres(row, column)?.map(seconds))
    }

    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error> {
        Ok(f64::of_sqlite(row, column)?.map(seconds))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
