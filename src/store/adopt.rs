//! Giving the application's table the columns that it lacks, for applications that have no
//! migrations of their own to do it.
//!
//! No row is written and nobody waits for long: both databases add a column with a constant default
//! by changing the catalog only (PostgreSQL since version 11), and the lock that this takes is asked
//! for again and again rather than waited for, since all others would queue up behind it.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use sqlx::{AssertSqlSafe, Executor};
use tracing::info;

use super::table::{ColumnNames, Names, literal};
use super::{Database, StoreError, postgres, sqlite};

/// How long one attempt waits for the table.
const LOCK_TIMEOUT: &str = "2s";
/// Attempts, with a pause between them in which others have their turn.
const ATTEMPTS: usize = 30;
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a table's name that go into its index's name, which has at most 63.
const NAME_ROOM: usize = 48;

/// What a table lacks, as statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Run together, in one transaction.
    pub columns: Vec<String>,
    /// Makes an index that serves the voices in processing; on its own, as it takes its time.
    pub index: Option<String>,
}

impl Adoption {
    /// All statements, in their order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().chain(&self.index).map(String::as_str)
    }
}

/// A table as its catalog shows it.
pub(super) struct Shape {
    pub(super) lacks: Lacks,
    /// The type that `completed_at` is to have.
    pub(super) moment: &'static str,
    pub(super) has_index: bool,
}

/// Columns that are not there.
pub(super) struct Lacks {
    status: bool,
    preview_url: bool,
    completed_at: bool,
}

impl Lacks {
    pub(super) fn new(columns: &ColumnNames, is_there: impl Fn(&str) -> bool) -> Self {
        Self {
            status: !is_there(columns.status.as_str()),
            preview_url: !is_there(columns.preview_url.as_str()),
            completed_at: !is_there(columns.completed_at.as_str()),
        }
    }
}

/// Where the two databases differ in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

impl Database {
    /// What the application's table lacks. Nothing is written.
    pub async fn adoption(&self, names: &Names) -> Result<Adoption, StoreError> {
        let (dialect, shape) = match self {
            Self::Postgres(sessions) => {
                (Dialect::Postgres, postgres::shape(sessions, names).await?)
            }
            Self::Sqlite(pool) => (Dialect::Sqlite, sqlite::shape(pool, names).await?),
        };
        Ok(Adoption {
            columns: add_columns(dialect, names, &shape),
            index: (!shape.has_index).then(|| make_index(dialect, names)),
        })
    }

    /// Adds what is lacking, and nothing else. Run again after an error, it goes on.
    pub async fn adopt(&self, names: &Names, adoption: &Adoption) -> Result<(), StoreError> {
        let columns = adoption.columns.concat();
        let attempt = || self.run_together(&columns);
        let patience = ConstantBuilder::new()
            .with_delay(PAUSE)
            .with_max_times(ATTEMPTS);
        if !columns.is_empty() {
            attempt
                .retry(patience)
                .when(StoreError::is_passing)
                .notify(|error, _| {
                    info!(%error, "the table is in use; trying again in a second");
                })
                .await?;
        }
        let Some(index) = &adoption.index else {
            return Ok(());
        };
        match self {
            Self::Postgres(sessions) => postgres::make_index(sessions, names, index).await,
            Self::Sqlite(_) => self.run_together(index).await,
        }
    }

    async fn run_together(&self, statements: &str) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sessions) => {
                let mut transaction = sessions.transaction().await?;
                let impatient = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; {statements}");
                transaction
                    .execute(sqlx::raw_sql(AssertSqlSafe(impatient)))
                    .await?;
                Ok(transaction.commit().await?)
            }
            Self::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                transaction
                    .execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned())))
                    .await?;
                Ok(transaction.commit().await?)
            }
        }
    }
}

fn add_columns(dialect: Dialect, names: &Names, shape: &Shape) -> Vec<String> {
    let (table, c, s) = (names.table.quoted(), &names.columns, &names.statuses);
    let longest = s.all().map(|value| value.chars().count());
    let room = longest.into_iter().fold(20, usize::max);
    let status = format!(
        "{} varchar({room}) NOT NULL DEFAULT {}",
        c.status.quoted(),
        literal(&s.processing)
    );
    let added: Vec<String> = [
        (shape.lacks.status, status),
        (
            shape.lacks.preview_url,
            format!("{} varchar(1024)", c.preview_url.quoted()),
        ),
        (
            shape.lacks.completed_at,
            format!("{} {}", c.completed_at.quoted(), shape.moment),
        ),
    ]
    .into_iter()
    .filter_map(|(is_lacking, column)| is_lacking.then_some(column))
    .collect();
    let adding: Vec<String> = match dialect {
        Dialect::Postgres if added.is_empty() => Vec::new(),
        Dialect::Postgres => vec![format!(
            "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {};",
            added.join(", ADD COLUMN IF NOT EXISTS ")
        )],
        Dialect::Sqlite => added
            .iter()
            .map(|column| format!("ALTER TABLE {table} ADD COLUMN {column};"))
            .collect(),
    };
    let (own, now) = match dialect {
        Dialect::Postgres => ("voice_sync.adoptions", "now()"),
        Dialect::Sqlite => ("voice_sync_adoptions", sqlite::NOW),
    };
    let since = shape.lacks.status.then(|| {
        format!(
            "INSERT INTO {own} (table_name, adopted_at) VALUES ({}, {now}) \
             ON CONFLICT (table_name) DO NOTHING;",
            literal(&table)
        )
    });
    adding.into_iter().chain(since).collect()
}

/// The statement that makes an index which leads to the voices in processing.
pub(super) fn make_index(dialect: Dialect, names: &Names) -> String {
    let (schema, table) = names.table.parts();
    let name = quoted(&index_name(table));
    let target = match (dialect, schema) {
        (Dialect::Postgres, _) => {
            format!(
                "INDEX CONCURRENTLY IF NOT EXISTS {name} ON {}",
                names.table.quoted()
            )
        }
        // Here it is the index that is named with its schema, and the table must not be.
        (Dialect::Sqlite, Some(schema)) => format!(
            "INDEX IF NOT EXISTS {}.{name} ON {}",
            quoted(schema),
            quoted(table)
        ),
        (Dialect::Sqlite, None) => format!("INDEX IF NOT EXISTS {name} ON {}", quoted(table)),
    };
    format!(
        "CREATE {target} ({}) WHERE {} = {};",
        names.columns.id.quoted(),
        names.columns.status.quoted(),
        literal(&names.statuses.processing),
    )
}

/// What the index of a table is called, whole or after an interruption.
pub(super) fn index_name(table: &str) -> String {
    let mut room = NAME_ROOM.min(table.len());
    while !table.is_char_boundary(room) {
        room -= 1;
    }
    format!("ix_{}_processing", &table[..room])
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indexs_name_has_room_in_a_catalog() {
        assert_eq!(index_name("voices"), "ix_voices_processing");
        assert!(index_name(&"ü".repeat(64)).len() <= 63);
    }
}
