//! The checks of `voice-sync doctor` for an SQLite file.

use sqlx::{AssertSqlSafe, SqlitePool};

use super::check::Check;
use super::database::{self, SMALL_TABLE, found};
use crate::store::{Dialect, Identifier, Names, StoreError, is_indexed, make_index};

/// Checks the version, the journal mode, and that the file can be written to.
pub(super) async fn file(pool: &SqlitePool) -> Result<Check, StoreError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(pool)
        .await?;
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(pool)
        .await?;
    // A pass would notice this at its first write: SQLite grants the lock even if the file is read-only.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("CREATE TABLE voice_sync_doctor (trial)")
        .execute(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let says = format!("SQLite {version}, journal mode {journal}");
    Ok(match journal == "wal" {
        true => Check::fine("database", says),
        false => Check::doubtful(
            "database",
            says,
            "run `PRAGMA journal_mode = wal` once; otherwise, writers wait for all readers",
        ),
    })
}

pub(super) async fn table(pool: &SqlitePool, names: &Names) -> Vec<Check> {
    vec![
        found("obstacles", obstacles(pool, names).await),
        found("index", index(pool, names).await),
    ]
}

async fn obstacles(pool: &SqlitePool, names: &Names) -> Result<Check, StoreError> {
    const TRIGGERS: &str = "
        SELECT name FROM sqlite_schema
        WHERE type = 'trigger' AND lower(tbl_name) = lower($1) AND upper(sql) LIKE '%UPDATE%'";
    let triggers: Vec<String> = sqlx::query_scalar(TRIGGERS)
        .bind(names.table.parts().1)
        .fetch_all(pool)
        .await?;
    const TABLE: &str =
        "SELECT sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower($1)";
    let table: Option<String> = sqlx::query_scalar(TABLE)
        .bind(names.table.parts().1)
        .fetch_optional(pool)
        .await?;
    let checks = checks(&table.unwrap_or_default())
        .into_iter()
        .filter(|check| !allows(check, names))
        .map(|check| format!("CHECK {check}"));
    let triggers = triggers.into_iter().map(|name| format!("trigger {name}"));
    let obstacles: Vec<String> = triggers.chain(checks).collect();
    Ok(match obstacles.is_empty() {
        true => Check::fine("obstacles", "no trigger or constraint can refuse an update"),
        false => Check::doubtful(
            "obstacles",
            format!("{} may refuse an update", obstacles.join(", ")),
            "check that they allow voice-sync to write the status, the preview URL and the completion time",
        ),
    })
}

async fn index(pool: &SqlitePool, names: &Names) -> Result<Check, StoreError> {
    let serves = is_indexed(pool, names).await?;
    let table = names.table.quoted();
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {SMALL_TABLE})");
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(pool)
        .await?;
    Ok(database::index(
        rows.unsigned_abs(),
        serves,
        make_index(Dialect::Sqlite, names),
    ))
}

/// The CHECK conditions of a table, each with its parentheses.
fn checks(statement: &str) -> Vec<String> {
    let parts = statement.to_ascii_uppercase();
    parts
        .match_indices("CHECK")
        .filter_map(|(at, word)| {
            let rest = statement[at + word.len()..].trim_start();
            let mut depth = 0;
            let end = rest.find(|c: char| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            })?;
            rest.starts_with('(').then(|| rest[..=end].to_owned())
        })
        .collect()
}

/// Whether a condition does not concern the columns that voice-sync writes, or lists the values that it writes.
fn allows(check: &str, names: &Names) -> bool {
    let c = &names.columns;
    let mentions = |name: &Identifier| {
        let name = name.as_str().to_ascii_lowercase();
        check.to_ascii_lowercase().contains(&name)
    };
    let others = mentions(&c.preview_url) || mentions(&c.completed_at);
    !others && (!mentions(&c.status) || database::lists_ours(check, names))
}
