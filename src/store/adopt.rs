//! Giving the application's table the columns that it lacks, for applications that have no
//! migrations of their own to do it.
//!
//! No row is written and nobody waits for long: both databases add a column with a constant default
//! by changing the catalog only (PostgreSQL since version 11), and the lock that this takes is asked
//! for again and again rather than waited for, since all others would queue up behind it.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use tracing::info;

use super::dialect::Dialect;
use super::table::{ColumnNames, Names, TableName, literal, pg_literal, quoted};
use super::{Database, StoreError, postgres, sqlite};

/// How long one attempt waits for the table.
const LOCK_TIMEOUT: &str = "2s";
/// Attempts, with a pause between them in which others have their turn.
const ATTEMPTS: usize = 30;
const PAUSE: Duration = Duration::from_secs(1);
/// Rows whose kept values are written at once.
const AT_ONCE: u32 = 5000;
/// Bytes of a table's name that go into its index's name, which has at most 63.
const NAME_ROOM: usize = 48;

/// What a table lacks, as statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Run together, in one transaction.
    pub columns: Vec<String>,
    /// Writes what was kept meanwhile into columns that are new: some rows at a time, until there are
    /// no more.
    pub restore: Option<String>,
    /// Makes an index that serves the voices in processing; on its own, as it takes its time.
    pub index: Option<String>,
}

impl Adoption {
    /// All statements, in their order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        let later = self.restore.iter().chain(&self.index);
        self.columns.iter().chain(later).map(String::as_str)
    }
}

/// A table as its catalog shows it.
pub(super) struct TableShape {
    pub(super) lacks: Lacks,
    /// The type that `completed_at` is to have.
    pub(super) moment: &'static str,
    /// Of SQLite's strict kind, which knows few types.
    pub(super) is_strict: bool,
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

impl Database {
    /// What the application's table lacks. Nothing is written.
    pub async fn adoption(&self, names: &Names) -> Result<Adoption, StoreError> {
        let (dialect, shape) = match self {
            Self::Postgres(connections) => (
                Dialect::Postgres,
                postgres::shape(connections, names).await?,
            ),
            Self::Sqlite(pool) => (Dialect::Sqlite, sqlite::shape(pool, names).await?),
        };
        Ok(Adoption {
            columns: add_columns(dialect, names, &shape),
            restore: restore(dialect, names, &shape),
            index: (!shape.has_index).then(|| make_index(dialect, names)),
        })
    }

    /// Adds what is lacking, and nothing else. Run again after an error, it goes on.
    pub async fn adopt(&self, names: &Names) -> Result<(), StoreError> {
        let step = || async {
            // Looked at each time: another process may have been faster.
            let Adoption {
                columns,
                restore,
                index,
            } = self.adoption(names).await?;
            if !columns.is_empty() {
                self.run_together(&columns.concat()).await?;
            }
            if let Some(restore) = restore {
                while self.run_together(&restore).await? > 0 {}
            }
            match (self, index) {
                (_, None) => Ok(()),
                (Self::Postgres(connections), Some(index)) => {
                    postgres::make_index(connections, names, &index).await
                }
                (Self::Sqlite(_), Some(index)) => self.run_together(&index).await.map(drop),
            }
        };
        let pauses = ConstantBuilder::new()
            .with_delay(PAUSE)
            .with_max_times(ATTEMPTS)
            .with_jitter();
        step.retry(pauses)
            .when(|error| error.is_transient() || is_done_already(error))
            .notify(|error, _| info!(%error, "the table is locked by another process; trying again shortly"))
            .await
    }

    /// Returns how many rows were changed.
    async fn run_together(&self, statements: &str) -> Result<u64, StoreError> {
        let impatient =
            format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
        let mut transaction = self.begin_with(&impatient).await?;
        let changed = transaction.execute_script(statements.to_owned()).await?;
        transaction.commit().await?;
        Ok(changed)
    }
}

/// SQLite cannot add a column only if it is missing.
fn is_done_already(error: &StoreError) -> bool {
    matches!(error, StoreError::Config(says) if says.contains("duplicate column name"))
}

/// Under which name the time of a table's adoption is kept, as SQL: the same however the table is
/// written.
pub(super) fn adopted_name(dialect: Dialect, table: &TableName) -> String {
    match dialect {
        Dialect::Postgres => format!(
            "(SELECT format('%I.%I', n.nspname, c.relname)
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = to_regclass({}))",
            pg_literal(&table.quoted())
        ),
        Dialect::Sqlite => {
            let (schema, name) = table.parts();
            let name = format!("{}.{name}", schema.unwrap_or("main"));
            literal(&name.to_ascii_lowercase())
        }
    }
}

fn quote(dialect: Dialect, text: &str) -> String {
    match dialect {
        Dialect::Postgres => pg_literal(text),
        Dialect::Sqlite => literal(text),
    }
}

fn restore(dialect: Dialect, names: &Names, shape: &TableShape) -> Option<String> {
    let (table, c) = (names.table.quoted(), &names.columns);
    let in_zone = format!(
        "k.completed_at AT TIME ZONE {}",
        pg_literal(names.zone.as_str())
    );
    let (own, own_time) = match (dialect, shape.moment) {
        (Dialect::Sqlite, _) => (
            "voice_sync_completions",
            "strftime('%Y-%m-%d %H:%M:%f000', k.completed_at / 1000.0, 'unixepoch')",
        ),
        (Dialect::Postgres, "timestamp") => ("voice_sync.completions", in_zone.as_str()),
        (Dialect::Postgres, _) => ("voice_sync.completions", "k.completed_at"),
    };
    let new = [
        (
            shape.lacks.preview_url,
            c.preview_url.quoted(),
            "k.preview_url",
        ),
        (shape.lacks.completed_at, c.completed_at.quoted(), own_time),
    ];
    let new: Vec<_> = new.iter().filter(|(is_new, ..)| *is_new).collect();
    if new.is_empty() || shape.lacks.status {
        return None;
    }
    let set: Vec<_> = new
        .iter()
        .map(|(_, column, kept)| format!("{column} = {kept}"))
        .collect();
    let lacking: Vec<_> = new
        .iter()
        .map(|(_, column, kept)| format!("v.{column} IS NULL AND {kept} IS NOT NULL"))
        .collect();
    let id = c.id.quoted();
    Some(format!(
        "UPDATE {table} AS v SET {set} FROM {own} k \
         WHERE CAST(v.{id} AS text) = k.row_id AND v.{provider_id} = k.provider_id \
           AND v.{status} = {completed} AND ({lacking}) \
           AND v.{id} IN (SELECT v.{id} FROM {table} v JOIN {own} k ON CAST(v.{id} AS text) = k.row_id \
                          WHERE v.{provider_id} = k.provider_id AND v.{status} = {completed} \
                            AND ({lacking}) LIMIT {AT_ONCE});",
        set = set.join(", "),
        provider_id = c.elevenlabs_voice_id.quoted(),
        status = c.status.quoted(),
        completed = quote(dialect, &names.statuses.completed),
        lacking = lacking.join(" OR "),
    ))
}

fn add_columns(dialect: Dialect, names: &Names, shape: &TableShape) -> Vec<String> {
    let (table, c, s) = (names.table.quoted(), &names.columns, &names.statuses);
    let typed = |name: &'static str| if shape.is_strict { "text" } else { name };
    let longest = s.all().map(|value| value.chars().count());
    let room = longest.into_iter().fold(20, usize::max);
    let word = match shape.is_strict {
        true => "text".to_owned(),
        false => format!("varchar({room})"),
    };
    let status = format!(
        "{} {word} NOT NULL DEFAULT {}",
        c.status.quoted(),
        quote(dialect, &s.processing)
    );
    let added: Vec<String> = [
        (shape.lacks.status, status),
        (
            shape.lacks.preview_url,
            format!("{} {}", c.preview_url.quoted(), typed("varchar(1024)")),
        ),
        (
            shape.lacks.completed_at,
            format!("{} {}", c.completed_at.quoted(), typed(shape.moment)),
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
    let (own, now) = (dialect.own("adoptions"), dialect.now());
    let since = shape.lacks.status.then(|| {
        format!(
            "INSERT INTO {own} (table_name, adopted_at) VALUES ({}, {now}) \
             ON CONFLICT (table_name) DO UPDATE SET adopted_at = excluded.adopted_at;",
            adopted_name(dialect, &names.table)
        )
    });
    adding.into_iter().chain(since).collect()
}

/// The statement that makes an index which leads to the voices in processing.
pub(crate) fn make_index(dialect: Dialect, names: &Names) -> String {
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
    format!("CREATE {target} {};", of_processing(dialect, names))
}

/// What such an index holds.
pub(crate) fn of_processing(dialect: Dialect, names: &Names) -> String {
    format!(
        "({}) WHERE {} = {}",
        names.columns.id.quoted(),
        names.columns.status.quoted(),
        quote(dialect, &names.statuses.processing),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indexs_name_has_room_in_a_catalog() {
        assert_eq!(index_name("voices"), "ix_voices_processing");
        assert!(index_name(&"ü".repeat(64)).len() <= 63);
    }
}
