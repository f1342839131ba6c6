//! Passes, what they leave behind for the next one, and what is removed in time.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::PostgresStore;
use crate::store::{KEPT, Memory, Run, StoreError, TIDIED_AT_ONCE};
use crate::voice::RowId;

impl PostgresStore {
    pub(in crate::store) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        const REMEMBER: &str = "
            SELECT (SELECT resume_after FROM voice_sync.runs ORDER BY id DESC LIMIT 1),
                   ARRAY(SELECT u.key FROM voice_sync.provider p, jsonb_each_text(p.unlisted) u
                         WHERE p.account = $1 AND u.value::timestamptz > now())";
        let (resume_after, unlisted): (Option<String>, Vec<String>) = sqlx::query_as(REMEMBER)
            .bind(account)
            .fetch_one(&self.pool)
            .await?;
        Ok(Memory {
            resume_after: resume_after.map(RowId::new),
            unlisted: unlisted.into_iter().collect(),
        })
    }

    pub(in crate::store) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const RECORD: &str = "
            WITH learned AS (
                INSERT INTO voice_sync.provider (account, unlisted)
                SELECT $2, jsonb_object_agg(kind, now() + interval '1 hour')
                FROM unnest($9::text[]) kind WHERE $2 IS NOT NULL HAVING count(*) > 0
                ON CONFLICT (account) DO UPDATE
                SET unlisted = voice_sync.provider.unlisted || EXCLUDED.unlisted
            )
            INSERT INTO voice_sync.runs (run_id, account, started_at, duration_ms, exit_code, found,
                                         counts, resume_after)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(RECORD)
            .bind(run.run_id)
            .bind(run.account)
            .bind(run.started_at)
            .bind(i64::try_from(run.duration.as_millis()).unwrap_or(i64::MAX))
            .bind(i16::from(run.exit_code))
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(&run.counts)
            .bind(run.resume_after.as_ref().map(RowId::as_str))
            .bind(&run.unlisted)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn tidy(&self) -> Result<(), StoreError> {
        let Self {
            table,
            id,
            id_type,
            status,
            processing,
            ..
        } = self;
        // Only the oldest rows are looked at, by their primary keys: no scan, whatever the size.
        let sql = format!(
            "WITH old_events AS (
                 DELETE FROM voice_sync.outbox WHERE id IN (
                     SELECT id FROM (SELECT id, published_at FROM voice_sync.outbox
                                     ORDER BY id LIMIT $2) o
                     WHERE published_at < now() - make_interval(secs => $1))
             ),
             old_runs AS (
                 DELETE FROM voice_sync.runs WHERE id IN (
                     SELECT id FROM (SELECT id, finished_at FROM voice_sync.runs
                                     ORDER BY id LIMIT $2) r
                     WHERE finished_at < now() - make_interval(secs => $1))
             ),
             left_behind AS (
                 SELECT w.row_id FROM voice_sync.voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < now() - interval '1 day')
                   AND (w.failed_at < now() - make_interval(secs => $1)
                        OR (w.failed_at IS NULL
                            AND COALESCE(w.last_asked, w.first_seen) < now() - interval '1 hour'
                            AND NOT EXISTS (
                                SELECT FROM {table} v WHERE v.{id} = w.row_id::{id_type}
                                AND v.{status} = {processing})))
                 LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM voice_sync.voices w USING left_behind l WHERE w.row_id = l.row_id"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(KEPT.as_secs_f64())
            .bind(TIDIED_AT_ONCE)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
