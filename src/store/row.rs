//! The rows that statements return, read in the same way from either database.

use std::convert::identity;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value as Json;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Column as _, Row as _, TypeInfo as _};
use uuid::Uuid;

use super::StoreError;
use crate::core::voice::RowId;

/// A row that a statement returned.
pub(crate) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
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

    /// An array of texts, on PostgreSQL only.
    pub(crate) fn texts(&self, column: &str) -> Result<Vec<String>, StoreError> {
        match self {
            Self::Postgres(row) => Ok(row.try_get(column)?),
            Self::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// A count; zero if null.
    pub(crate) fn count(&self, column: &str) -> Result<u64, StoreError> {
        Ok(self.get::<i64>(column)?.unsigned_abs())
    }

    /// A small count.
    pub(crate) fn times(&self, column: &str) -> Result<u32, StoreError> {
        Ok(u32::try_from(self.count(column)?).unwrap_or(u32::MAX))
    }
}

/// A type that a column of either database can be read as.
pub(crate) trait FromColumn: Sized {
    fn of_postgres(row: &PgRow, column: &str) -> Result<Option<Self>, sqlx::Error>;
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Option<Self>, sqlx::Error>;
}

/// On PostgreSQL, with the column's type. On SQLite, as this type: its values have types of their own, whatever the
/// column's type.
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
    // Invalid UTF-8 is replaced: the application may have stored any bytes.
    String, Vec<u8> => lossy;
    // Nil if another program wrote an invalid value.
    Uuid, String => |text: String| Self::parse_str(&text).unwrap_or_default();
    DateTime<Utc>, i64 => |stored| Self::from_timestamp_millis(stored).unwrap_or_default();
    Json, String => |text: String| serde_json::from_str(&text).unwrap_or_default();
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// From any integer type of PostgreSQL.
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

/// From seconds. A negative value counts as zero.
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
