//! What `voice-sync doctor` says of an SQLite file.

use sqlx::{AssertSqlSafe, Row, SqlitePool};

use super::{NOW, SqliteStore, elapsed};
use crate::finding::Finding;
use crate::store::adopt::{Dialect, make_index};
use crate::store::checkup::{self, SMALL_TABLE, Times, counted, found};
use crate::store::table::{Identifier, literal};
use crate::store::{Names, StoreError};

/// Which SQLite it is, and how it keeps readers and writers apart.
pub(in crate::store) async fn checkup(pool: &SqlitePool) -> Result<Finding, StoreError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(pool)
        .await?;
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(pool)
        .await?;
    // As the first write of a pass would find out: SQLite grants the lock on a file that it cannot
    // write to.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("CREATE TABLE voice_sync_doctor (trial)")
        .execute(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let says = format!("SQLite {version}, journal mode {journal}");
    Ok(match journal == "wal" {
        true => Finding::fine("database", says),
        false => Finding::doubtful(
            "database",
            says,
            "run `PRAGMA journal_mode = wal` once: else who writes waits for all who read",
        ),
    })
}

impl SqliteStore {
    pub(in crate::store) async fn checkup(&self, names: &Names, findings: &mut Vec<Finding>) {
        findings.push(checkup::update(self.explain_update().await));
        findings.push(found("obstacles", self.obstacles(names).await));
        findings.push(found("index", self.index(names).await));
        findings.push(counted("backlog", self.backlog().await));
        findings.push(counted("time zone", self.times(names).await));
        if self.own_tables {
            findings.push(counted("second poller", self.second_poller().await));
        }
    }

    async fn obstacles(&self, names: &Names) -> Result<Finding, StoreError> {
        const TRIGGERS: &str = "
            SELECT name FROM sqlite_schema
            WHERE type = 'trigger' AND lower(tbl_name) = lower($1) AND upper(sql) LIKE '%UPDATE%'";
        let triggers: Vec<String> = sqlx::query_scalar(TRIGGERS)
            .bind(names.table.parts().1)
            .fetch_all(&self.pool)
            .await?;
        const TABLE: &str =
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower($1)";
        let table: Option<String> = sqlx::query_scalar(TABLE)
            .bind(names.table.parts().1)
            .fetch_optional(&self.pool)
            .await?;
        let checks = checks(&table.unwrap_or_default())
            .into_iter()
            .filter(|check| !allows(check, names))
            .map(|check| format!("CHECK {check}"));
        let triggers = triggers.into_iter().map(|name| format!("trigger {name}"));
        let obstacles: Vec<String> = triggers.chain(checks).collect();
        Ok(match obstacles.is_empty() {
            true => Finding::fine("obstacles", "no trigger or constraint is in the way"),
            false => Finding::doubtful(
                "obstacles",
                format!("{} may refuse an update", obstacles.join(", ")),
                "see that they let others than the application write status, preview and completion",
            ),
        })
    }

    async fn index(&self, names: &Names) -> Result<Finding, StoreError> {
        let serves = serves(&self.pool, names).await?;
        let table = &self.table;
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {SMALL_TABLE})");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await?;
        Ok(checkup::index(
            rows.unsigned_abs(),
            serves,
            make_index(Dialect::Sqlite, names),
        ))
    }

    async fn backlog(&self) -> Result<Finding, StoreError> {
        let Self {
            table,
            status,
            processing,
            created_at,
            ..
        } = self;
        // Whatever form the application writes its times in, SQLite's functions read most of them.
        let sql = format!(
            "SELECT count(*), {NOW} - CAST(unixepoch(min({created_at}), 'subsec') * 1000 AS INTEGER)
             FROM {table} v WHERE v.{status} = {processing}"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await?;
        let oldest: Option<i64> = row.try_get(1)?;
        let voices = row.try_get::<i64, _>(0)?.unsigned_abs();
        Ok(checkup::backlog(voices, oldest.map(elapsed)))
    }

    async fn times(&self, names: &Names) -> Result<Finding, StoreError> {
        let Self {
            table,
            id,
            status,
            processing,
            created_at,
            ..
        } = self;
        let created = format!("CAST(unixepoch({created_at}, 'subsec') * 1000 AS INTEGER)");
        let sql = format!(
            "SELECT max({created}) - {NOW} AS ahead,
                    min(w.first_seen - {created}) FILTER (WHERE w.is_late) AS behind,
                    count(*) FILTER (WHERE w.is_late) AS late
             FROM {table} v
             LEFT JOIN (SELECT row_id, first_seen, first_seen > min(first_seen) OVER () + 3600000 AS is_late
                        FROM {known} k) w ON w.row_id = CAST(v.{id} AS TEXT)
             WHERE v.{status} = {processing}",
            known = self.known(),
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await?;
        let span =
            |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(elapsed));
        let times = Times {
            default_in: None,
            ahead: span("ahead")?,
            behind: span("behind")?,
            late: row.try_get("late")?,
        };
        Ok(checkup::times(&times, &names.zone))
    }

    /// Counts rows completed, since the oldest event that is still known, without one of their own.
    async fn second_poller(&self) -> Result<Finding, StoreError> {
        const SINCE: &str = "SELECT min(occurred_at) FROM voice_sync_outbox";
        let since: Option<i64> = sqlx::query_scalar(SINCE).fetch_one(&self.pool).await?;
        let Self {
            table,
            id,
            status,
            completed,
            completed_before,
            ..
        } = self;
        let Some(since) = since else {
            return Ok(checkup::second_poller(None));
        };
        // Events have the dashes that the column may lack.
        let sql = format!(
            "SELECT count(*) FROM {table} v
             WHERE v.{status} = {completed} AND unixepoch({completed_before}, 'subsec') * 1000 > $1
               AND NOT EXISTS (SELECT 1 FROM voice_sync_outbox o
                               WHERE replace(o.voice_id, '-', '') = replace(v.{id}, '-', '')
                                 AND o.event_type = 'voice.created')"
        );
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(since)
            .fetch_one(&self.pool)
            .await?;
        Ok(checkup::second_poller(Some(count.unsigned_abs())))
    }
}

/// Whether an index leads to the voices in processing.
pub(super) async fn serves(pool: &SqlitePool, names: &Names) -> Result<bool, StoreError> {
    const INDEXES: &str = "
        SELECT i.name AS first, l.partial AS is_partial, s.sql AS statement
        FROM pragma_index_list($1) l, pragma_index_info(l.name) i
        LEFT JOIN sqlite_schema s ON s.type = 'index' AND s.name = l.name
        WHERE i.seqno = 0";
    let rows = sqlx::query(INDEXES)
        .bind(names.table.parts().1)
        .fetch_all(pool)
        .await?;
    for row in rows {
        let (first, statement): (Option<String>, Option<String>) =
            (row.try_get("first")?, row.try_get("statement")?);
        let serves = match row.try_get("is_partial")? {
            true => statement.is_some_and(|statement| is_of_processing(&statement, names)),
            false => {
                first.is_some_and(|first| first.eq_ignore_ascii_case(names.columns.status.as_str()))
            }
        };
        if serves {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a partial index has the voices in processing and no others. Its condition is only known
/// as it was written.
fn is_of_processing(statement: &str, names: &Names) -> bool {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let statement = one_line(statement.trim_end_matches([';', ' ', '\n']));
    let ours = format!(
        " WHERE {} = {}",
        names.columns.status.quoted(),
        literal(&names.statuses.processing)
    );
    if statement.ends_with(&one_line(&ours)) {
        return true;
    }
    let Some(at) = statement.to_ascii_lowercase().rfind(" where ") else {
        return false;
    };
    let condition = statement[at + " where ".len()..].trim_matches([' ', '(', ')', ';']);
    let Some((column, value)) = condition.split_once('=') else {
        return false;
    };
    let column = column.trim_matches([' ', '"', '`', '[', ']']);
    let value = value.trim_start_matches('=').trim();
    column.eq_ignore_ascii_case(names.columns.status.as_str())
        && value == literal(&names.statuses.processing)
}

/// The conditions of a table, each with its parentheses.
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

/// Whether a condition is none of what voice-sync writes, or a list that has it.
fn allows(check: &str, names: &Names) -> bool {
    let c = &names.columns;
    let mentions = |name: &Identifier| {
        let name = name.as_str().to_ascii_lowercase();
        check.to_ascii_lowercase().contains(&name)
    };
    let others = mentions(&c.preview_url) || mentions(&c.completed_at);
    !others && (!mentions(&c.status) || checkup::lists_ours(check, names))
}
