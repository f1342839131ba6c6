//! What operators mend.

use std::collections::HashSet;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::survey::{event_parameter, wanted_events};
use super::{NOW, SqliteStore, milliseconds};
use crate::store::StoreError;
use crate::store::survey::{EventFilter, VoiceRecord};
use crate::store::values::CommandRun;
use crate::voice::RowId;

impl SqliteStore {
    pub(in crate::store) async fn put_back(
        &self,
        run_id: Uuid,
        voices: &[VoiceRecord],
    ) -> Result<HashSet<RowId>, StoreError> {
        let Self {
            table,
            id,
            provider_id,
            status,
            processing,
            failed,
            ..
        } = self;
        let update = format!(
            "UPDATE {table} AS v SET {status} = {processing}
             FROM (SELECT value ->> 'row' AS id, value ->> 'provider_id' AS provider_id
                   FROM json_each($1)) a
             WHERE v.{id} = a.id AND +v.{status} = {failed} AND CAST(v.{provider_id} AS TEXT) = a.provider_id
             RETURNING CAST({id} AS TEXT) AS row_id, CAST({provider_id} AS TEXT) AS provider_id"
        );
        // Its age begins anew: else the next answer would find it overdue.
        let note = format!(
            "INSERT INTO voice_sync_voices (row_id, provider_id, run_id, first_seen, restarted_at)
             SELECT value ->> 0, value ->> 1, $2, {NOW}, {NOW} FROM json_each($1) WHERE TRUE
             ON CONFLICT (row_id) DO UPDATE
             SET provider_id = excluded.provider_id, run_id = excluded.run_id,
                 restarted_at = excluded.restarted_at, lease_until = NULL, kind = NULL, stage = NULL,
                 missing_count = 0, missing_since = NULL, strikes = 0, set_aside_until = NULL,
                 trouble = NULL, failed_at = NULL, failure = NULL, next_due = NULL"
        );
        let wanted: Vec<_> = voices
            .iter()
            .map(|voice| json!({"row": voice.row.as_str(), "provider_id": voice.provider_id}))
            .collect();
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let rows = sqlx::query(AssertSqlSafe(update))
            .bind(json!(wanted).to_string())
            .fetch_all(&mut *transaction)
            .await?;
        let mut moved = Vec::with_capacity(rows.len());
        for row in &rows {
            let row: (String, String) = (row.try_get("row_id")?, row.try_get("provider_id")?);
            moved.push(row);
        }
        sqlx::query(AssertSqlSafe(note))
            .bind(json!(moved).to_string())
            .bind(run_id.to_string())
            .execute(&mut *transaction)
            .await?;
        // With those of an earlier try whose reply was lost.
        let rows: Vec<&str> = voices.iter().map(|voice| voice.row.as_str()).collect();
        let moved: Vec<String> = sqlx::query_scalar(
            "SELECT row_id FROM voice_sync_voices
             WHERE row_id IN (SELECT value FROM json_each($1)) AND run_id = $2",
        )
        .bind(json!(rows).to_string())
        .bind(run_id.to_string())
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(moved.into_iter().map(RowId::new).collect())
    }

    pub(in crate::store) async fn release(
        &self,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        let sql = format!(
            "UPDATE voice_sync_voices
             SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = NULL
             WHERE row_id IN (SELECT value FROM json_each($1)) AND set_aside_until > {NOW} RETURNING row_id"
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(json!(rows).to_string())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(RowId::new).collect())
    }

    pub(in crate::store) async fn resend(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let wanted = wanted_events();
        let sql = format!(
            "UPDATE voice_sync_outbox SET published_at = NULL, leased_until = NULL
             WHERE {wanted} AND published_at IS NOT NULL"
        );
        self.change_events(sql, filter).await
    }

    pub(in crate::store) async fn purge(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let wanted = wanted_events();
        let sql = format!(
            "DELETE FROM voice_sync_outbox
             WHERE {wanted} AND (leased_until IS NULL OR leased_until <= {NOW} OR published_at IS NOT NULL)"
        );
        self.change_events(sql, filter).await
    }

    async fn change_events(&self, sql: String, filter: &EventFilter) -> Result<u64, StoreError> {
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(event_parameter(filter))
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }

    pub(in crate::store) async fn record_command(
        &self,
        run: &CommandRun,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO voice_sync_runs (run_id, command, started_at, finished_at, duration_ms, exit_code,
                                          found, counts)
             VALUES ($1, $2, $3, {NOW}, $4, $5, 0, $6) ON CONFLICT (run_id) DO NOTHING"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(run.run_id.to_string())
            .bind(run.command)
            .bind(run.started_at.timestamp_millis())
            .bind(milliseconds(run.duration))
            .bind(run.exit_code)
            .bind(run.counts.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
