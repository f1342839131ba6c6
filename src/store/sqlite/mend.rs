//! What operators mend. Each change writes itself into the ledger, in its own transaction.

use std::collections::HashSet;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row, Sqlite, Transaction};

use super::survey::{event_parameter, wanted_events};
use super::{NOW, SqliteStore, is_ahead};
use crate::store::survey::{EventFilter, VoiceRecord};
use crate::store::values::CommandRun;
use crate::store::{OUTBOX_LEASE, StoreError};
use crate::voice::RowId;

/// Adds a number to the command's entry in the ledger, as its count of that name. Returns what the entry
/// then has: more than was added, where the reply of an earlier try was lost.
async fn enter(
    transaction: &mut Transaction<'static, Sqlite>,
    run: &CommandRun,
    count: &str,
    number: u64,
) -> Result<u64, StoreError> {
    let add = format!(
        "INSERT INTO voice_sync_runs (run_id, command, started_at, finished_at, duration_ms, exit_code, found,
                                      counts)
         VALUES ($1, $2, $3, {NOW}, max(0, {NOW} - $3), 0, 0, json_object('{count}', $4))
         ON CONFLICT (run_id) DO UPDATE
         SET finished_at = excluded.finished_at, duration_ms = excluded.duration_ms,
             counts = json_set(counts, '$.{count}', COALESCE(counts ->> '{count}', 0) + $4)"
    );
    let total = format!("SELECT counts ->> '{count}' FROM voice_sync_runs WHERE run_id = $1");
    if number > 0 {
        sqlx::query(AssertSqlSafe(add))
            .bind(run.run_id.to_string())
            .bind(run.command)
            .bind(run.started_at.timestamp_millis())
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .execute(&mut **transaction)
            .await?;
    }
    let total: Option<Option<i64>> = sqlx::query_scalar(AssertSqlSafe(total))
        .bind(run.run_id.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    Ok(total.flatten().unwrap_or(0).unsigned_abs())
}

impl SqliteStore {
    pub(in crate::store) async fn put_back(
        &self,
        run: &CommandRun,
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
                 trouble = NULL, failed_at = NULL, failure = NULL, next_due = NULL,
                     isolated = FALSE, unanswered = 0, unanswered_since = NULL"
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
            .bind(run.run_id.to_string())
            .execute(&mut *transaction)
            .await?;
        enter(&mut transaction, run, "put_back", moved.len() as u64).await?;
        let rows: Vec<&str> = voices.iter().map(|voice| voice.row.as_str()).collect();
        let moved = marked(&mut transaction, run, &rows).await?;
        transaction.commit().await?;
        Ok(moved)
    }

    pub(in crate::store) async fn release(
        &self,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        let sql = format!(
            "UPDATE voice_sync_voices
             SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = NULL, unanswered = 0, run_id = $2
             WHERE row_id IN (SELECT value FROM json_each($1)) 
               AND (set_aside_until > {NOW} OR unanswered > 0)"
        );
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(json!(rows).to_string())
            .bind(run.run_id.to_string())
            .execute(&mut *transaction)
            .await?;
        enter(&mut transaction, run, "released", done.rows_affected()).await?;
        let released = marked(&mut transaction, run, rows).await?;
        transaction.commit().await?;
        Ok(released)
    }

    pub(in crate::store) async fn resend(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let wanted = wanted_events();
        let sql = format!(
            "UPDATE voice_sync_outbox SET published_at = NULL, leased_until = NULL
             WHERE {wanted} AND published_at IS NOT NULL"
        );
        self.change_events(run, filter, sql, "resent").await
    }

    pub(in crate::store) async fn purge(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let wanted = wanted_events();
        let sql = format!(
            "DELETE FROM voice_sync_outbox
             WHERE {wanted} AND (NOT {} OR published_at IS NOT NULL)",
            is_ahead("leased_until", OUTBOX_LEASE)
        );
        self.change_events(run, filter, sql, "purged").await
    }

    async fn change_events(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
        sql: String,
        count: &str,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(event_parameter(filter))
            .execute(&mut *transaction)
            .await?;
        let total = enter(&mut transaction, run, count, done.rows_affected()).await?;
        transaction.commit().await?;
        Ok(total)
    }
}

/// Those of these voices that a command has marked as changed by it, in this try or an earlier one whose
/// reply was lost.
async fn marked(
    transaction: &mut Transaction<'static, Sqlite>,
    run: &CommandRun,
    rows: &[&str],
) -> Result<HashSet<RowId>, StoreError> {
    const MARKED: &str = "SELECT row_id FROM voice_sync_voices
                          WHERE row_id IN (SELECT value FROM json_each($1)) AND run_id = $2";
    let rows: Vec<String> = sqlx::query_scalar(MARKED)
        .bind(json!(rows).to_string())
        .bind(run.run_id.to_string())
        .fetch_all(&mut **transaction)
        .await?;
    Ok(rows.into_iter().map(RowId::new).collect())
}
