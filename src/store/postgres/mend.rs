//! What operators mend.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::survey::WANTED_EVENTS;
use crate::store::StoreError;
use crate::store::survey::{EventFilter, VoiceRecord};
use crate::store::values::CommandRun;
use crate::voice::RowId;

impl PostgresStore {
    pub(in crate::store) async fn put_back(
        &self,
        run_id: Uuid,
        voices: &[VoiceRecord],
    ) -> Result<HashSet<RowId>, StoreError> {
        let Self {
            table,
            id,
            id_type,
            provider_id,
            status,
            processing,
            failed,
            ..
        } = self;
        // Its age begins anew: else the next answer would find it overdue.
        let sql = format!(
            "WITH wanted AS (
                 SELECT * FROM unnest($1::text[]::{id_type}[], $2::text[]) AS a (id, provider_id)
             ),
             moved AS (
                 UPDATE {table} v SET {status} = {processing} FROM wanted a
                 WHERE v.{id} = a.id AND v.{status} = {failed} AND v.{provider_id} = a.provider_id
                 RETURNING v.{id}::text AS row_id, v.{provider_id} AS provider_id
             ),
             noted AS (
                 INSERT INTO voice_sync.voices (row_id, provider_id, run_id, restarted_at)
                 SELECT row_id, provider_id, $3, now() FROM moved
                 ON CONFLICT (row_id) DO UPDATE
                 SET provider_id = EXCLUDED.provider_id, run_id = EXCLUDED.run_id,
                     restarted_at = EXCLUDED.restarted_at, lease_until = NULL, kind = NULL, stage = NULL,
                     missing_count = 0, missing_since = NULL, strikes = 0, set_aside_until = NULL,
                     trouble = NULL, failed_at = NULL, failure = NULL, next_due = NULL
             )
             SELECT row_id FROM moved
             -- Where the reply of an earlier try was lost.
             UNION SELECT w.row_id FROM voice_sync.voices w JOIN wanted a ON w.row_id = a.id::text
             WHERE w.run_id = $3"
        );
        let rows: Vec<_> = voices.iter().map(|voice| voice.row.as_str()).collect();
        let provider_ids: Vec<_> = voices
            .iter()
            .map(|voice| voice.provider_id.as_deref())
            .collect();
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(rows)
            .bind(provider_ids)
            .bind(run_id)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let moved = rows
            .iter()
            .map(|row| Ok(RowId::new(row.try_get::<String, _>("row_id")?)));
        moved.collect()
    }

    pub(in crate::store) async fn release(
        &self,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        const RELEASE: &str = "
            UPDATE voice_sync.voices SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = NULL
            WHERE row_id = ANY($1::text[]) AND set_aside_until > now() RETURNING row_id";
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(RELEASE)
            .bind(rows)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let released = rows
            .iter()
            .map(|row| Ok(RowId::new(row.try_get::<String, _>("row_id")?)));
        released.collect()
    }

    pub(in crate::store) async fn resend(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let sql = format!(
            "UPDATE voice_sync.outbox SET published_at = NULL, leased_until = NULL
             WHERE {WANTED_EVENTS} AND published_at IS NOT NULL"
        );
        self.change_events(sql, filter).await
    }

    pub(in crate::store) async fn purge(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let sql = format!(
            "DELETE FROM voice_sync.outbox
             WHERE {WANTED_EVENTS} AND (leased_until IS NULL OR leased_until <= now() OR published_at IS NOT NULL)"
        );
        self.change_events(sql, filter).await
    }

    async fn change_events(&self, sql: String, filter: &EventFilter) -> Result<u64, StoreError> {
        let mut session = self.sessions.begin().await?;
        let done = session
            .query(AssertSqlSafe(sql))
            .bind(filter.published)
            .bind(&filter.names)
            .bind(filter.older_than.as_secs_f64())
            .bind(filter.since.map(|since| since.as_secs_f64()))
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(done.rows_affected())
    }

    pub(in crate::store) async fn record_command(
        &self,
        run: &CommandRun,
    ) -> Result<(), StoreError> {
        const RECORD: &str = "
            INSERT INTO voice_sync.runs (run_id, command, started_at, duration_ms, exit_code, found, counts)
            VALUES ($1, $2, $3, $4, $5, 0, $6)
            ON CONFLICT (run_id) DO NOTHING";
        let mut session = self.sessions.begin().await?;
        session
            .query(RECORD)
            .bind(run.run_id)
            .bind(run.command)
            .bind(run.started_at)
            .bind(i64::try_from(run.duration.as_millis()).unwrap_or(i64::MAX))
            .bind(i16::from(run.exit_code))
            .bind(&run.counts)
            .execute(&mut *session)
            .await?;
        session.keep().await
    }
}
