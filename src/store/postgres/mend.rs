//! What operators mend. Each change writes itself into the ledger, in its own statement.

use std::collections::HashSet;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::survey::wanted_events;
use super::{PostgresStore, is_ahead};
use crate::store::survey::{EventFilter, VoiceRecord};
use crate::store::values::CommandRun;
use crate::store::{OUTBOX_LEASE, StoreError};
use crate::voice::RowId;

/// Adds the number of rows of `changed` to the command's entry in the ledger, as its count of that name.
/// `$1` is its id, `$2` the command and `$3` when it began.
fn ledger(count: &str) -> String {
    format!(
        "ledger AS (
             INSERT INTO voice_sync.runs AS r (run_id, command, started_at, duration_ms, exit_code, found, counts)
             SELECT $1, $2, $3, GREATEST(0, extract(epoch FROM clock_timestamp() - $3) * 1000)::bigint, 0, 0,
                    jsonb_build_object('{count}', count(*))
             FROM changed HAVING count(*) > 0
             ON CONFLICT (run_id) DO UPDATE
             SET finished_at = now(), duration_ms = EXCLUDED.duration_ms,
                 counts = r.counts || jsonb_build_object('{count}',
                     COALESCE((r.counts ->> '{count}')::bigint, 0) + (EXCLUDED.counts ->> '{count}')::bigint)
             RETURNING (counts ->> '{count}')::bigint AS counted
         )"
    )
}

impl PostgresStore {
    pub(in crate::store) async fn put_back(
        &self,
        run: &CommandRun,
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
        let ledger = ledger("put_back");
        // A row that the application has locked is left alone: it may be about to change it. The age of the
        // others begins anew: else the next answer would find them overdue.
        let sql = format!(
            "WITH wanted AS (
                 SELECT * FROM unnest($4::text[]::{id_type}[], $5::text[]) AS a (id, provider_id)
             ),
             free AS MATERIALIZED (
                 SELECT a.id FROM {table} v JOIN wanted a ON v.{id} = a.id
                 WHERE v.{status} = {failed} AND v.{provider_id} = a.provider_id
                 FOR NO KEY UPDATE OF v SKIP LOCKED
             ),
             changed AS (
                 UPDATE {table} v SET {status} = {processing} FROM wanted a
                 WHERE v.{id} = a.id AND v.{status} = {failed} AND v.{provider_id} = a.provider_id
                   AND a.id IN (SELECT id FROM free)
                 RETURNING v.{id}::text AS row_id, v.{provider_id} AS provider_id
             ),
             noted AS (
                 INSERT INTO voice_sync.voices (row_id, provider_id, run_id, restarted_at)
                 SELECT row_id, provider_id, $1, now() FROM changed
                 ON CONFLICT (row_id) DO UPDATE
                 SET provider_id = EXCLUDED.provider_id, run_id = EXCLUDED.run_id,
                     restarted_at = EXCLUDED.restarted_at, lease_until = NULL, kind = NULL, stage = NULL,
                     missing_count = 0, missing_since = NULL, strikes = 0, set_aside_until = NULL,
                     trouble = NULL, failed_at = NULL, failure = NULL, next_due = NULL,
                     isolated = FALSE, unanswered = 0, unanswered_since = NULL
             ),
             {ledger}
             SELECT row_id FROM changed
             -- Where the reply of an earlier try was lost.
             UNION SELECT w.row_id FROM voice_sync.voices w JOIN wanted a ON w.row_id = a.id::text
             WHERE w.run_id = $1"
        );
        let rows: Vec<_> = voices.iter().map(|voice| voice.row.as_str()).collect();
        let provider_ids: Vec<_> = voices
            .iter()
            .map(|voice| voice.provider_id.as_deref())
            .collect();
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(run.run_id)
            .bind(run.command)
            .bind(run.started_at)
            .bind(rows)
            .bind(provider_ids)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        row_ids(&rows)
    }

    pub(in crate::store) async fn release(
        &self,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        let ledger = ledger("released");
        let sql = format!(
            "WITH changed AS (
                 UPDATE voice_sync.voices
                 SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = NULL, unanswered = 0, run_id = $1
                 WHERE row_id = ANY($4::text[]) AND (set_aside_until > now() OR unanswered > 0)
                 RETURNING row_id
             ),
             {ledger}
             SELECT row_id FROM changed
             UNION SELECT row_id FROM voice_sync.voices WHERE row_id = ANY($4::text[]) AND run_id = $1"
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(run.run_id)
            .bind(run.command)
            .bind(run.started_at)
            .bind(rows)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        row_ids(&rows)
    }

    pub(in crate::store) async fn resend(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let wanted = wanted_events(4);
        let change = format!(
            "UPDATE voice_sync.outbox SET published_at = NULL, leased_until = NULL
             WHERE {wanted} AND published_at IS NOT NULL RETURNING id"
        );
        self.change_events(run, filter, &change, "resent").await
    }

    pub(in crate::store) async fn purge(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let wanted = wanted_events(4);
        let change = format!(
            "DELETE FROM voice_sync.outbox
             WHERE {wanted}
               AND (NOT {} OR published_at IS NOT NULL) RETURNING id",
            is_ahead("leased_until", OUTBOX_LEASE)
        );
        self.change_events(run, filter, &change, "purged").await
    }

    async fn change_events(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
        change: &str,
        count: &str,
    ) -> Result<u64, StoreError> {
        let ledger = ledger(count);
        // After a lost reply nothing is left to change, and the ledger has the number.
        let sql = format!(
            "WITH changed AS ({change}), {ledger}
             SELECT COALESCE((SELECT counted FROM ledger),
                             (SELECT (counts ->> '{count}')::bigint FROM voice_sync.runs WHERE run_id = $1),
                             0) AS counted"
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(run.run_id)
            .bind(run.command)
            .bind(run.started_at)
            .bind(filter.published)
            .bind(filter.all_names())
            .bind(EventFilter::bounded(filter.older_than).as_secs_f64())
            .bind(
                filter
                    .since
                    .map(|since| EventFilter::bounded(since).as_secs_f64()),
            )
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        Ok(row.try_get::<i64, _>("counted")?.unsigned_abs())
    }
}

fn row_ids(rows: &[PgRow]) -> Result<HashSet<RowId>, StoreError> {
    let id = |row: &PgRow| Ok(RowId::new(row.try_get::<String, _>("row_id")?));
    rows.iter().map(id).collect()
}
