//! The parameters of statements, for both databases.

use std::borrow::Cow;
use std::convert::identity;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};
use sqlx::Arguments;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use uuid::Uuid;

use super::dialect::Dialect;

/// The parameters of a statement. Each is named by its placeholder.
pub(crate) struct Args {
    encoded: Encoded,
    count: usize,
    /// Why a parameter could not be encoded.
    error: Option<sqlx::Error>,
}

enum Encoded {
    Postgres(PgArguments),
    Sqlite(SqliteArguments),
}

/// A parameter. A null has a type too, because PostgreSQL prepares a statement for the types of its first parameters.
pub(crate) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Boolean(Option<bool>),
    Id(Option<Uuid>),
    Moment(Option<DateTime<Utc>>),
    /// A list: an array on PostgreSQL, a JSON array on SQLite.
    Column(Column<'a>),
}

/// A column of the rows that are passed to a statement.
pub(crate) enum Column<'a> {
    Text(Vec<Option<&'a str>>),
    Real(Vec<f64>),
    Boolean(Vec<bool>),
    Id(Vec<Uuid>),
    Integer(Vec<i64>),
}

/// Rows that are passed to a statement: one per item, with these columns. The types are PostgreSQL's.
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

    /// A number of rows, for LIMIT. On SQLite it is a literal: from 3.51 on, each new value of a parameter there
    /// makes SQLite prepare the statement again, which takes longer than most statements.
    pub(crate) fn limit(&mut self, rows: u32) -> String {
        match &self.encoded {
            Encoded::Postgres(_) => self.bind(rows),
            Encoded::Sqlite(_) => rows.to_string(),
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

    /// A condition: the value before it is one of these texts, which have this type on PostgreSQL.
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

    /// A condition: the value before it is one of these values of its own type.
    pub(crate) fn is_one_of(&mut self, values: Column<'_>) -> String {
        let parameter = self.bind(Value::Column(values));
        match self.encoded {
            Encoded::Postgres(_) => format!("= ANY({parameter})"),
            Encoded::Sqlite(_) => format!("IN (SELECT value FROM json_each({parameter}))"),
        }
    }

    /// Adds rows. Returns the table expression for them.
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

    pub(super) fn of_sqlite(self) -> Result<SqliteArguments, sqlx::Error> {
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

/// Saturating: no count is larger.
fn saturated(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// An empty list of values, with these types.
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
