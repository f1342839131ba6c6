//! What `voice-sync doctor` says of an SQLite file.

use sqlx::{AssertSqlSafe, Row, SqlitePool};

use super::{NOW, SqliteStore, elapsed};
use crate::finding::Finding;
use crate::store::adopt::Dialect;
use crate::store::checkup::{self, SMALL_TABLE, counted, found};
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
        Ok(match triggers.is_empty() {
            true => Finding::fine("obstacles", "no trigger is in the way"),
            false => Finding::doubtful(
                "obstacles",
                format!("triggers {} may refuse an update", triggers.join(", ")),
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
            Dialect::Sqlite,
            names,
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
    // The condition of a partial index is only known as it was written: with quotes or without.
    const SERVES: &str = "
        SELECT EXISTS (SELECT 1 FROM pragma_index_list($1) l, pragma_index_info(l.name) i
                       WHERE i.seqno = 0 AND lower(i.name) = lower($2))
            OR EXISTS (SELECT 1 FROM (SELECT lower(substr(sql, instr(lower(sql), ' where '))) AS clause
                                      FROM sqlite_schema
                                      WHERE type = 'index' AND lower(tbl_name) = lower($1))
                       WHERE instr(clause, lower($2)) > 0 OR instr(clause, lower($3)) > 0)";
    let serves = sqlx::query_scalar(SERVES)
        .bind(names.table.parts().1)
        .bind(names.columns.status.as_str())
        .bind(names.columns.status.quoted());
    Ok(serves.fetch_one(pool).await?)
}
