//! The application's table: the names in the user's configuration, and the columns in the catalog.

use std::fmt;

use thiserror::Error;

use super::zone::NaiveZone;
use crate::core::format::number_of;

/// Why a word of the configuration cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidName {
    /// Empty, or with a NUL byte.
    #[error("{0:?} cannot be the name of a table or column")]
    Identifier(String),
    /// Not of the form `key=value,…`.
    #[error("{0:?} is not of the form key=value")]
    Pair(String),
    /// An unknown key.
    #[error("{key:?} is not one of {known}")]
    Key {
        /// The key that was given.
        key: String,
        /// The known keys.
        known: String,
    },
    /// The same name for two things.
    #[error("{0:?} is used for two different things")]
    Shared(String),
    /// The same key twice.
    #[error("{0:?} is given twice")]
    Repeated(String),
}

/// A name that is always quoted in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    /// Accepts any name that a database allows.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        match text.is_empty() || text.contains('\0') {
            true => Err(InvalidName::Identifier(text.to_owned())),
            false => Ok(Self(text.to_owned())),
        }
    }

    /// The name without quotes, to compare it with the catalog.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in double quotes.
    pub fn quoted(&self) -> String {
        quoted(&self.0)
    }
}

/// A name in double quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `table` or `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    schema: Option<Identifier>,
    name: Identifier,
}

impl TableName {
    /// Reads `--table`.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(Identifier::parse(schema)?), name),
            None => (None, text),
        };
        let name = Identifier::parse(name)?;
        Ok(Self { schema, name })
    }

    /// The name in SQL, quoted.
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", schema.quoted(), self.name.quoted()),
            None => self.name.quoted(),
        }
    }

    /// Schema and name, without quotes.
    pub fn parts(&self) -> (Option<&str>, &str) {
        (
            self.schema.as_ref().map(Identifier::as_str),
            self.name.as_str(),
        )
    }
}

/// The names of the seven columns that voice-sync uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnNames {
    /// Primary key.
    pub id: Identifier,
    /// The voice's user, for events.
    pub user_id: Identifier,
    pub elevenlabs_voice_id: Identifier,
    /// The status.
    pub status: Identifier,
    /// The preview, written on completion.
    pub preview_url: Identifier,
    /// When the row was created, read for the voice's age.
    pub created_at: Identifier,
    /// When the voice was completed, written on completion.
    pub completed_at: Identifier,
}

impl ColumnNames {
    /// Reads `--columns`: `id=voice_pk,status=state`. A column that is not listed keeps its default name.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let keys = [
            "id",
            "user_id",
            "elevenlabs_voice_id",
            "status",
            "preview_url",
            "created_at",
            "completed_at",
        ];
        let [
            id,
            user_id,
            elevenlabs_voice_id,
            status,
            preview_url,
            created_at,
            completed_at,
        ] = pairs(text, keys)?;
        Ok(Self {
            id: Identifier::parse(&id)?,
            user_id: Identifier::parse(&user_id)?,
            elevenlabs_voice_id: Identifier::parse(&elevenlabs_voice_id)?,
            status: Identifier::parse(&status)?,
            preview_url: Identifier::parse(&preview_url)?,
            created_at: Identifier::parse(&created_at)?,
            completed_at: Identifier::parse(&completed_at)?,
        })
    }
}

impl fmt::Display for ColumnNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            user_id,
            elevenlabs_voice_id,
            status,
            preview_url,
            created_at,
            completed_at,
        } = self;
        write!(
            f,
            "id={},user_id={},elevenlabs_voice_id={},status={},preview_url={},created_at={},completed_at={}",
            id.as_str(),
            user_id.as_str(),
            elevenlabs_voice_id.as_str(),
            status.as_str(),
            preview_url.as_str(),
            created_at.as_str(),
            completed_at.as_str()
        )
    }
}

/// The values that the application writes for each status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusValues {
    /// Not finished yet.
    pub processing: String,
    pub completed: String,
    /// It will never be ready.
    pub failed: String,
}

impl StatusValues {
    /// Reads `--status-values`: `processing=PROCESSING,…`. A status that is not listed keeps its default value.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let [processing, completed, failed] = pairs(text, ["processing", "completed", "failed"])?;
        for value in [&processing, &completed, &failed] {
            Identifier::parse(value)?;
        }
        Ok(Self {
            processing,
            completed,
            failed,
        })
    }

    /// Configured values that may be wrong, judged by the statuses of some or all rows and their numbers of rows.
    pub fn doubts(&self, statuses: &[(String, u64)]) -> Vec<StatusDoubt> {
        let rows_with = |value: &str| {
            let counted = statuses.iter().find(|(status, _)| status == value);
            counted.map_or(0, |(_, rows)| *rows)
        };
        let keys = [
            ("processing", &self.processing),
            ("completed", &self.completed),
            ("failed", &self.failed),
        ];
        let others = statuses
            .iter()
            .filter(|(status, _)| !self.all().contains(&status.as_str()));
        let doubted = others.filter_map(|(status, rows)| {
            keys.iter().find_map(|(name, configured)| {
                Some(StatusDoubt {
                    name,
                    configured: (*configured).clone(),
                    rows_with_configured: rows_with(configured),
                    found: status.clone(),
                    rows: *rows,
                    likeness: likeness(name, configured, status)?,
                })
            })
        });
        // If rows have the configured value, another name for the same is no reason to doubt it. voice-sync itself writes
        // the two final values.
        doubted
            .filter(|doubt| match doubt.likeness {
                Likeness::Case => true,
                Likeness::Key => doubt.name != "processing" || doubt.rows_with_configured == 0,
                Likeness::Prefix => doubt.rows_with_configured == 0,
            })
            .collect()
    }

    /// All three values.
    pub fn all(&self) -> [&str; 3] {
        [&self.processing, &self.completed, &self.failed]
    }
}

impl fmt::Display for StatusValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processing,
            completed,
            failed,
        } = self;
        write!(
            f,
            "processing={processing},completed={completed},failed={failed}"
        )
    }
}

/// What to do about a [`StatusDoubt`].
pub const STATUS_ADVICE: &str = "set --status-values to the values that the application writes";

/// A configured status value that is probably wrong, because rows have a similar one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusDoubt {
    /// The key in `--status-values`.
    pub name: &'static str,
    pub configured: String,
    /// How many rows have it, of those that were read.
    rows_with_configured: u64,
    /// The status in the table.
    pub found: String,
    /// How many rows have that, of those that were read.
    pub rows: u64,
    likeness: Likeness,
}

/// How a status is like a configured value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    /// Only upper and lower case differ.
    Case,
    /// It is the key of that value in `--status-values`.
    Key,
    /// One is the start of the other, as with the name of an enum member and its value. Only voices in processing.
    Prefix,
}

fn likeness(key: &str, configured: &str, status: &str) -> Option<Likeness> {
    let starts = |one: &str, other: &str| {
        const LEAST: usize = 4;
        let (one, other) = (one.to_lowercase(), other.to_lowercase());
        one.len().min(other.len()) >= LEAST && (one.starts_with(&other) || other.starts_with(&one))
    };
    if status.to_lowercase() == configured.to_lowercase() {
        Some(Likeness::Case)
    } else if status.to_lowercase() == key {
        Some(Likeness::Key)
    } else if key == "processing" && (starts(status, key) || starts(status, configured)) {
        Some(Likeness::Prefix)
    } else {
        None
    }
}

impl StatusDoubt {
    /// Whether a pass logs it: the application may well have a status with a similar name.
    pub fn is_noteworthy(&self) -> bool {
        self.likeness != Likeness::Prefix
    }

    /// Whether the setup is so likely to be wrong that a monitoring system reports it. `waiting` voices are in
    /// processing.
    pub fn needs_attention(&self, waiting: u64) -> bool {
        let is_in_use = match self.name {
            "processing" => waiting > 0,
            _ => self.rows_with_configured > 0,
        };
        match self.likeness {
            Likeness::Case => true,
            Likeness::Key => !is_in_use,
            Likeness::Prefix => false,
        }
    }
}

impl fmt::Display for StatusDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            configured,
            rows_with_configured: _,
            found,
            rows,
            likeness: _,
        } = self;
        let rows = number_of(*rows, "row has", "rows have");
        write!(
            f,
            "{rows} the status {found:?}, which voice-sync ignores: --status-values says {name}={configured}"
        )
    }
}

/// Reads `key=value,…`. A key that is not given has itself as its value.
fn pairs<const N: usize>(text: &str, keys: [&'static str; N]) -> Result<[String; N], InvalidName> {
    let mut values: [Option<String>; N] = std::array::from_fn(|_| None);
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| InvalidName::Pair(pair.to_owned()))?;
        let (key, value) = (key.trim(), value.trim());
        let position =
            keys.iter()
                .position(|known| *known == key)
                .ok_or_else(|| InvalidName::Key {
                    key: key.to_owned(),
                    known: keys.join(", "),
                })?;
        if values[position].replace(value.to_owned()).is_some() {
            return Err(InvalidName::Repeated(key.to_owned()));
        }
    }
    let mut given = values.into_iter().zip(keys);
    let named: [String; N] = std::array::from_fn(|_| {
        let (value, key) = given.next().expect("both have N elements");
        value.unwrap_or_else(|| key.to_owned())
    });
    match named
        .iter()
        .enumerate()
        .find(|(at, name)| named[..*at].contains(name))
    {
        Some((_, name)) => Err(InvalidName::Shared(name.clone())),
        None => Ok(named),
    }
}

/// The user's settings about the application's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub table: TableName,
    pub columns: ColumnNames,
    /// The values in its status column.
    pub statuses: StatusValues,
    /// The time zone of columns without one.
    pub zone: NaiveZone,
}

/// A text in single quotes, for SQLite.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The same for PostgreSQL. Its prefix makes the meaning of backslashes independent of the setting
/// `standard_conforming_strings`.
pub(super) fn pg_literal(text: &str) -> String {
    match text.contains('\\') {
        true => format!("E{}", literal(&text.replace('\\', r"\\"))),
        false => literal(text),
    }
}

/// Why a table is not suitable, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SchemaError {
    /// The table does not exist in this database, or this role cannot see it.
    #[error(
        "there is no table {table}; set --table to the application's table, or run the application's migrations first"
    )]
    NoTable {
        /// The name of the table.
        table: String,
    },
    /// Missing columns that are required, or that the user named.
    #[error(
        "table {table} has no column {columns}; its columns are {there}; if they have other names, set --columns, as \
         in --columns status=state; if they do not exist, add them with `voice-sync migrate --adopt`"
    )]
    NoColumns {
        table: String,
        columns: String,
        /// The columns of the table.
        there: String,
    },
    /// A status that is too long for the column.
    #[error(
        "status value {value:?} is longer than the {room} characters of column {column} of table \
         {table}; set --status-values to what the application writes"
    )]
    NoRoom {
        table: String,
        column: String,
        value: String,
        room: usize,
    },
    /// A missing privilege, and the statement that grants it.
    #[error("role {role} lacks a privilege on table {table}; as its owner, run: {grant}")]
    Privilege {
        role: String,
        table: String,
        grant: String,
    },
    /// A column with an unsuitable type.
    #[error("column {column} of table {table} is of type {sql_type}, not {wanted}")]
    Type {
        table: String,
        column: String,
        sql_type: String,
        /// The right type.
        wanted: &'static str,
    },
    /// Two names that SQLite does not distinguish.
    #[error(
        "column {column} of table {table} is used for two different things: SQLite ignores upper and lower case; set \
         --columns to the right names"
    )]
    Shared { table: String, column: String },
    /// A status that is not a value of the enum.
    #[error(
        "status value {value:?} is not one of {labels} in column {column} of table {table}; set --status-values to \
         what the application writes, as in processing=PROCESSING,completed=COMPLETED,failed=FAILED"
    )]
    Label {
        table: String,
        column: String,
        value: String,
        /// The values of the enum.
        labels: String,
    },
}

/// Whether missing columns may be added to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// All required columns must exist.
    ToWork,
    /// Missing columns that voice-sync writes to will be added.
    ToAdopt,
}

/// Returns an error if columns are missing that are required or that the user named. `there` are the names of the
/// table's columns.
pub(super) fn check_columns(
    table: &str,
    columns: &ColumnNames,
    need: Need,
    there: &[&str],
    same: fn(&str, &str) -> bool,
) -> Result<(), SchemaError> {
    let ColumnNames {
        id,
        user_id,
        elevenlabs_voice_id,
        status,
        preview_url,
        created_at,
        completed_at,
    } = columns;
    let to_work = need == Need::ToWork;
    let missing: Vec<_> = [
        (id, true),
        (user_id, user_id.as_str() != "user_id"),
        (elevenlabs_voice_id, true),
        (status, to_work),
        (
            preview_url,
            to_work && preview_url.as_str() != "preview_url",
        ),
        (created_at, created_at.as_str() != "created_at"),
        (
            completed_at,
            to_work && completed_at.as_str() != "completed_at",
        ),
    ]
    .into_iter()
    .filter(|(name, needed)| *needed && !there.iter().any(|one| same(one, name.as_str())))
    .map(|(name, _)| name.quoted())
    .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(SchemaError::NoColumns {
            table: table.to_owned(),
            columns: missing.join(", "),
            there: there.join(", "),
        }),
    }
}

/// An optional column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingColumn {
    /// The voice's user.
    UserId,
    /// The preview.
    PreviewUrl,
    /// The time of completion.
    CompletedAt,
}

impl MissingColumn {
    /// The configured name of the column.
    pub fn name(self, columns: &ColumnNames) -> &Identifier {
        match self {
            Self::UserId => &columns.user_id,
            Self::PreviewUrl => &columns.preview_url,
            Self::CompletedAt => &columns.completed_at,
        }
    }

    /// The consequence if it is missing.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::UserId => "events have null for the user; consumers that need a user ignore them",
            Self::PreviewUrl | Self::CompletedAt => {
                "its values are kept in voice-sync's own table of completions"
            }
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::UserId => "if the column has another name, set --columns user_id=…",
            Self::PreviewUrl | Self::CompletedAt => {
                "add it with a migration of the application or with `voice-sync migrate --adopt`; if it has another \
                 name, set --columns"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_and_literals_are_quoted() {
        let name = TableName::parse(r#"app.voices"; DROP TABLE users; --"#).expect("a name");
        assert_eq!(name.quoted(), r#""app"."voices""; DROP TABLE users; --""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(pg_literal("it's"), "'it''s'");
        assert_eq!(pg_literal(r"\'; DROP"), r"E'\\''; DROP'");
        for text in ["", "app.", ".voices", "a\0b"] {
            assert!(TableName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn columns_and_statuses_without_a_mapping_keep_their_names() {
        let columns = ColumnNames::parse("id=pk, status = state").expect("names");
        assert_eq!(columns.id.as_str(), "pk");
        assert_eq!(columns.status.as_str(), "state");
        assert_eq!(columns.user_id.as_str(), "user_id");
        let values = StatusValues::parse("processing=PROCESSING").expect("values");
        assert_eq!(values.all(), ["PROCESSING", "completed", "failed"]);
    }

    #[test]
    fn doubts_a_configured_status_if_rows_have_a_similar_one() {
        type Statuses<'a> = &'a [(&'a str, u64)];
        type Found<'a> = &'a [(&'a str, &'a str)];
        let all_right: &[(&str, Statuses<'_>)] = &[
            ("", &[]),
            ("", &[("completed", 5), ("archived", 9), ("pending", 1)]),
            ("", &[("processing", 1), ("processing_upload", 70)]),
            ("", &[("failed_upload", 3), ("completed", 1)]),
            ("processing=cloning", &[("cloning", 3), ("processing", 70)]),
            (
                "processing=P,completed=C,failed=F",
                &[("P", 1), ("C", 2), ("F", 1)],
            ),
        ];
        let wrong: &[(&str, Statuses<'_>, Found<'_>)] = &[
            ("", &[("PROCESSING", 70)], &[("processing", "PROCESSING")]),
            (
                "",
                &[("PROCESSING", 70), ("COMPLETED", 9), ("Failed", 1)],
                &[
                    ("processing", "PROCESSING"),
                    ("completed", "COMPLETED"),
                    ("failed", "Failed"),
                ],
            ),
            (
                "",
                &[("PROCESSING", 7), ("processing", 2)],
                &[("processing", "PROCESSING")],
            ),
            (
                "processing=PROC",
                &[("processing", 7), ("completed", 2)],
                &[("processing", "processing")],
            ),
            (
                "processing=cloning",
                &[("processing", 7)],
                &[("processing", "processing")],
            ),
            // The pass wrote the wrong value already.
            (
                "completed=DONE",
                &[("DONE", 7), ("completed", 2)],
                &[("completed", "completed")],
            ),
            ("failed=FAILED", &[("failed", 2)], &[("failed", "failed")]),
        ];
        let doubts = |values: &str, statuses: Statuses<'_>| {
            let values = StatusValues::parse(values).expect("values");
            let statuses: Vec<_> = statuses
                .iter()
                .map(|(status, rows)| ((*status).to_owned(), *rows))
                .collect();
            values.doubts(&statuses)
        };
        for (values, statuses) in all_right {
            assert_eq!(doubts(values, statuses), [], "{values:?} {statuses:?}");
        }
        for (values, statuses, expected) in wrong {
            let doubts = doubts(values, statuses);
            let found: Vec<_> = doubts
                .iter()
                .map(|doubt| (doubt.name, doubt.found.as_str()))
                .collect();
            assert_eq!(&found, expected, "{values:?} {statuses:?}");
        }
    }

    #[test]
    fn rejects_invalid_column_and_status_mappings() {
        assert_eq!(
            ColumnNames::parse("id"),
            Err(InvalidName::Pair("id".into()))
        );
        assert_eq!(
            ColumnNames::parse("id=a,id=b"),
            Err(InvalidName::Repeated("id".into()))
        );
        assert!(
            matches!(ColumnNames::parse("ident=a"), Err(InvalidName::Key { key, .. }) if key == "ident")
        );
        let says = |text| StatusValues::parse(text).expect_err("refused").to_string();
        assert!(says("x=a").ends_with("completed, failed"));
        assert!(StatusValues::parse("failed=").is_err());
        let shared = InvalidName::Shared("processing".into());
        assert_eq!(StatusValues::parse("failed=processing"), Err(shared));
    }
}
