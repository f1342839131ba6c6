//! Passes, what they leave behind for the next one, and what is removed in time.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{NOW, SqliteStore, milliseconds};
use crate::store::{KEPT, Memory, Run, StoreError, TIDIED_AT_ONCE};
use crate::voice::RowId;

impl SqliteStore {
    pub(in crate::store) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        let resume_after: Option<Option<String>> =
            sqlx::query_scalar("SELECT resume_after FROM voice_sync_runs ORDER BY id DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await?;
        let sql = format!(
            "SELECT u.key FROM voice_sync_provider p, json_each(p.unlisted) u
             WHERE p.account = $1 AND u.value > {NOW}"
        );
        let unlisted: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(account.to_string())
            .fetch_all(&self.pool)
            .await?;
        Ok(Memory {
            resume_after: resume_after.flatten().map(RowId::new),
            unlisted: unlisted.into_iter().collect(),
        })
    }

    pub(in crate::store) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const LEARN: &str = "
            INSERT INTO voice_sync_provider (account, unlisted) VALUES ($1, $2)
            ON CONFLICT (account) DO UPDATE SET unlisted = json_patch(unlisted, excluded.unlisted)";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let sql = format!(
            "INSERT INTO voice_sync_runs (run_id, account, started_at, finished_at, duration_ms,
                                          exit_code, found, counts, resume_after)
             VALUES ($1, $2, $3, {NOW}, $4, $5, $6, $7, $8) RETURNING finished_at"
        );
        let finished_at: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(run.run_id.to_string())
            .bind(run.account.map(|account| account.to_string()))
            .bind(run.started_at.timestamp_millis())
            .bind(milliseconds(run.duration))
            .bind(run.exit_code)
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(run.counts.to_string())
            .bind(run.resume_after.as_ref().map(RowId::as_str))
            .fetch_one(&mut *transaction)
            .await?;
        if let (Some(account), false) = (run.account, run.unlisted.is_empty()) {
            let until = finished_at + milliseconds(Duration::from_secs(60 * 60));
            let unlisted: serde_json::Map<_, _> = run
                .unlisted
                .iter()
                .map(|kind| (kind.clone(), json!(until)))
                .collect();
            sqlx::query(LEARN)
                .bind(account.to_string())
                .bind(serde_json::Value::Object(unlisted).to_string())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn tidy(&self) -> Result<(), StoreError> {
        const EVENTS: &str = "
            DELETE FROM voice_sync_outbox WHERE id IN (
                SELECT id FROM (SELECT id, published_at FROM voice_sync_outbox ORDER BY id LIMIT $2)
                WHERE published_at < $1)";
        const RUNS: &str = "
            DELETE FROM voice_sync_runs WHERE id IN (
                SELECT id FROM (SELECT id, finished_at FROM voice_sync_runs ORDER BY id LIMIT $2)
                WHERE finished_at < $1)";
        let Self {
            table,
            id,
            status,
            processing,
            ..
        } = self;
        let voices = format!(
            "DELETE FROM voice_sync_voices WHERE row_id IN (
                 SELECT w.row_id FROM voice_sync_voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < {NOW} - 86400000)
                   AND (w.failed_at < $1
                        OR (w.failed_at IS NULL
                            AND COALESCE(w.last_asked, w.first_seen) < {NOW} - 3600000
                            AND NOT EXISTS (SELECT 1 FROM {table} v
                                            WHERE v.{id} = +w.row_id AND v.{status} = {processing})))
                 LIMIT $2)"
        );
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let present: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")))
            .fetch_one(&mut *transaction)
            .await?;
        for sql in [
            AssertSqlSafe(EVENTS.to_owned()),
            AssertSqlSafe(RUNS.to_owned()),
            AssertSqlSafe(voices),
        ] {
            sqlx::query(sql)
                .bind(present - milliseconds(KEPT))
                .bind(TIDIED_AT_ONCE)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
