//! Adds missing columns to the application's table, for applications without migrations of their own.
//!
//! No row is written and nobody waits for long: both databases add a column with a constant default by changing only
//! the catalog (PostgreSQL since version 11). The lock for this is requested again and again with a short limit,
//! because all other statements would queue behind a waiting request.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use tracing::info;

use super::dialect::Dialect;
use super::table::{ColumnNames, Names, TableName, literal, pg_literal, quoted};
use super::{Database, StoreError, postgres, sqlite};

/// How long one attempt waits for the lock.
const LOCK_TIMEOUT: &str = "2s";
/// The number of attempts. In the pauses between them, other statements can run.
const ATTEMPTS: usize = 30;
const PAUSE: Duration = Duration::from_secs(1);
/// The number of rows whose stored values are written at once.
const AT_ONCE: u32 = 5000;
/// Bytes of a table's name that go into the name of its index, which has at most 63.
const NAME_ROOM: usize = 48;

/// What a table lacks, as statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Statements that run together, in one transaction.
    pub columns: Vec<String>,
    /// Writes stored values into new columns: some rows at a time, until none are left.
    pub restore: Option<String>,
    /// Creates the index for the voices in processing. It runs alone, because it may take long.
    pub index: Option<String>,
}

impl Adoption {
    /// All statements, in order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        let later = self.restore.iter().chain(&self.index);
        self.columns.iter().chain(later).map(String::as_str)
    }
}

/// A table as its catalog describes it.
pub(super) struct TableShape {
    pub(super) lacks: Lacks,
    /// The type for `completed_at`.
    pub(super) moment: &'static str,
    /// A STRICT table of SQLite, which has few types.
    pub(super) is_strict: bool,
    pub(super) has_index: bool,
}

/// The missing columns.
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

    /// Adds what is missing, and nothing else. After an error, it can be run again.
    pub async fn adopt(&self, names: &Names) -> Result<(), StoreError> {
        let step = || async {
            // Checked each time: another process may have added it meanwhile.
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

    /// Returns the number of changed rows.
    async fn run_together(&self, statements: &str) -> Result<u64, StoreError> {
        let impatient =
            format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
        let mut transaction = self.begin_with(&impatient).await?;
        let changed = transaction.execute_script(statements.to_owned()).await?;
        transaction.commit().await?;
        Ok(changed)
    }
}

/// SQLite has no ADD COLUMN IF NOT EXISTS.
fn is_done_already(error: &StoreError) -> bool {
    matches!(error, StoreError::Config(says) if says.contains("duplicate column name"))
}

/// The name under which the time of a table's adoption is stored, as SQL. It is the same in whatever form the table
/// is given.
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

/// The statement that creates an index for the voices in processing.
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
        // In this statement, the schema belongs to the index, and the table must not have one.
        (Dialect::Sqlite, Some(schema)) => format!(
            "INDEX IF NOT EXISTS {}.{name} ON {}",
            quoted(schema),
            quoted(table)
        ),
        (Dialect::Sqlite, None) => format!("INDEX IF NOT EXISTS {name} ON {}", quoted(table)),
    };
    format!("CREATE {target} {};", of_processing(dialect, names))
}

/// The columns and the condition of such an index.
pub(crate) fn of_processing(dialect: Dialect, names: &Names) -> String {
    format!(
        "({}) WHERE {} = {}",
        names.columns.id.quoted(),
        names.columns.status.quoted(),
        quote(dialect, &names.statuses.processing),
    )
}

/// The name of the index of a table, for a complete or an interrupted one.
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
    fn index_name_fits_the_length_limit_of_postgresql() {
        assert_eq!(index_name("voices"), "ix_voices_processing");
        assert!(index_name(&"ü".repeat(64)).len() <= 63);
    }
}
