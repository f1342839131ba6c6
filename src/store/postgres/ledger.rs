//! Passes, what they leave behind for the next one, and what is removed in time.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::claim::{could_be, quarantined};
use super::{PostgresStore, is_ahead, seconds, seconds_until};
use crate::breaker;
use crate::budget::{Spent, WINDOW};
use crate::missing::MassAbsence;
use crate::retry;
use crate::standing::Standing;
use crate::store::{KEPT, Memory, NEWEST_RUNS, PROBE, RUNS_KEPT, Run, StoreError, UNLISTED};
use crate::verdict::Failure;
use crate::voice::Position;

/// What [`standing`] reads, of `voice_sync.provider p`.
pub(super) fn standing_sql() -> String {
    let open_for = seconds_until("p.open_until", breaker::LONGEST_PAUSE);
    let hold_for = seconds_until("p.hold_until", retry::LONGEST_TOLD);
    format!("p.opened, p.concurrency, {open_for} AS open_for, {hold_for} AS hold_for")
}

/// The later one of two moments, unless the first is over.
fn later(moment: &str, other: &str, longest: Duration) -> String {
    let is_ahead = is_ahead(moment, longest);
    format!("CASE WHEN {is_ahead} THEN GREATEST({moment}, {other}) ELSE {other} END")
}

impl PostgresStore {
    pub(in crate::store) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        if !self.own_tables {
            return Ok(Memory::default());
        }
        let (standing_sql, quarantined) = (standing_sql(), quarantined());
        let is_unlisted = is_ahead("u.value::timestamptz", UNLISTED);
        let sql = format!(
            "SELECT (SELECT resume_after FROM voice_sync.cursors WHERE table_name = $2) AS resume_after,
                    ARRAY(SELECT u.key FROM jsonb_each_text(p.unlisted) u
                          WHERE {is_unlisted}) AS unlisted,
                    p.mass_absence_since IS NOT NULL AS mass_absence,
                    EXISTS (SELECT FROM voice_sync.voices w
                            WHERE w.isolated AND w.failed_at IS NULL AND NOT {quarantined}) AS any_isolated,
                    COALESCE(p.found_at > now() - interval '1 day', FALSE) AS key_works,
                    s.requests, s.retries, {standing_sql}
             FROM (SELECT COALESCE(sum((counts ->> 'requests')::bigint), 0)::bigint AS requests,
                          COALESCE(sum((counts ->> 'retries')::bigint), 0)::bigint AS retries
                   FROM (SELECT * FROM voice_sync.runs ORDER BY id DESC LIMIT $3) r
                   WHERE r.account = $1 AND r.finished_at > now() - make_interval(secs => $4)) s
             LEFT JOIN voice_sync.provider p ON p.account = $1"
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(account)
            .bind(&self.table)
            .bind(i64::from(NEWEST_RUNS))
            .bind(WINDOW.as_secs_f64())
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        let unlisted: Vec<String> = row.try_get("unlisted")?;
        Ok(Memory {
            resume_after: row
                .try_get::<Option<String>, _>("resume_after")?
                .filter(|row| could_be(row, &self.id_type))
                .map(Position::new),
            unlisted: unlisted.into_iter().collect(),
            any_isolated: row.try_get("any_isolated")?,
            mass_absence: row.try_get("mass_absence")?,
            key_works: row.try_get("key_works")?,
            standing: standing(&row)?,
            spent: Spent::counted(row.try_get("requests")?, row.try_get("retries")?),
        })
    }

    pub(in crate::store) async fn standing(&self, account: Uuid) -> Result<Standing, StoreError> {
        let sql = format!(
            "SELECT {} FROM voice_sync.provider p WHERE account = $1",
            standing_sql()
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(account)
            .fetch_optional(&mut *session)
            .await?;
        session.keep().await?;
        let standing = row.map(|row| standing(&row)).transpose()?;
        Ok(standing.unwrap_or_default())
    }

    pub(in crate::store) async fn keep_standing(
        &self,
        account: Uuid,
        run_id: Uuid,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let (open_until, hold_until) = (
            later(
                "p.open_until",
                "EXCLUDED.open_until",
                breaker::LONGEST_PAUSE,
            ),
            later("p.hold_until", "EXCLUDED.hold_until", retry::LONGEST_TOLD),
        );
        let sql = format!(
            "INSERT INTO voice_sync.provider AS p (account, opened, open_until, hold_until, concurrency)
            VALUES ($1, $2, CASE WHEN $2 > 0 THEN now() + make_interval(secs => $3) END,
                    CASE WHEN $4 > 0 THEN now() + make_interval(secs => $4) END, $5)
            ON CONFLICT (account) DO UPDATE
            SET opened = CASE EXCLUDED.opened WHEN 0 THEN 0
                                              ELSE GREATEST(p.opened, EXCLUDED.opened) END,
                open_until = CASE EXCLUDED.opened WHEN 0 THEN NULL ELSE {open_until} END,
                probe_until = CASE WHEN EXCLUDED.opened > 0 AND p.probed_by <> $6
                                   THEN p.probe_until END,
                hold_until = {hold_until},
                concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency)"
        );
        let Standing {
            opened,
            open_for,
            hold_for,
            concurrency,
        } = standing;
        let mut session = self.sessions.begin().await?;
        session
            .query(AssertSqlSafe(sql))
            .bind(account)
            .bind(i32::try_from(opened).unwrap_or(i32::MAX))
            .bind(open_for.as_secs_f64())
            .bind(hold_for.as_secs_f64())
            .bind(concurrency)
            .bind(run_id)
            .execute(&mut *session)
            .await?;
        session.keep().await
    }

    pub(in crate::store) async fn keep_pause(
        &self,
        account: Uuid,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let hold_until = later("p.hold_until", "EXCLUDED.hold_until", retry::LONGEST_TOLD);
        let sql = format!(
            "INSERT INTO voice_sync.provider AS p (account, hold_until, concurrency)
            VALUES ($1, now() + make_interval(secs => $2), $3)
            ON CONFLICT (account) DO UPDATE
            SET hold_until = {hold_until},
                concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency)"
        );
        let mut session = self.sessions.begin().await?;
        session
            .query(AssertSqlSafe(sql))
            .bind(account)
            .bind(standing.hold_for.as_secs_f64())
            .bind(standing.concurrency)
            .execute(&mut *session)
            .await?;
        session.keep().await
    }

    pub(in crate::store) async fn claim_probe(
        &self,
        account: Uuid,
        run_id: Uuid,
    ) -> Result<bool, StoreError> {
        let is_open = is_ahead("open_until", breaker::LONGEST_PAUSE);
        let is_probed = is_ahead("probe_until", PROBE);
        let sql = format!(
            "UPDATE voice_sync.provider
             SET probe_until = now() + make_interval(secs => $2), probed_by = $3
             WHERE account = $1 AND opened > 0 AND NOT {is_open} AND (NOT {is_probed} OR probed_by = $3)"
        );
        let mut session = self.sessions.begin().await?;
        let done = session
            .query(AssertSqlSafe(sql))
            .bind(account)
            .bind(PROBE.as_secs_f64())
            .bind(run_id)
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(done.rows_affected() > 0)
    }

    pub(in crate::store) async fn mass_absence(
        &self,
        account: Uuid,
    ) -> Result<MassAbsence, StoreError> {
        let Self {
            table,
            status,
            processing,
            ..
        } = self;
        let missing = format!(
            "SELECT count(*) FILTER (WHERE failed_at IS NULL AND EXISTS (
                        SELECT FROM {table} v
                        WHERE {is_row} AND v.{status} = {processing})) AS missing,
                    GREATEST(count(*) FILTER (WHERE failure = $2 AND failed_at > now() - interval '1 day'),
                             (SELECT sum((counts ->> 'failed_missing')::bigint)::bigint FROM voice_sync.runs
                              WHERE account = $1 AND finished_at > now() - interval '1 day')) AS failed,
                    (SELECT mass_absence_since IS NOT NULL FROM voice_sync.provider
                     WHERE account = $1) AS lasts
             FROM voice_sync.voices w WHERE missing_account = $1 AND missing_count > 0",
            is_row = self.is_row_of_own()
        );
        const FOUND: &str = "
            SELECT (SELECT count(*) FROM (
                        SELECT FROM voice_sync.voices
                        WHERE missing_count = 0 AND unanswered = 0 AND failed_at IS NULL
                          AND last_asked > now() - interval '1 day' AND kind IS NOT NULL LIMIT $2) w)
                 + (SELECT COALESCE(sum((counts ->> 'completed')::bigint), 0)::bigint FROM voice_sync.runs
                    WHERE account = $1 AND finished_at > now() - interval '1 day') AS found";
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(missing))
            .bind(account)
            .bind(Failure::Missing.to_string())
            .fetch_one(&mut *session)
            .await?;
        let count = |column| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
        let (missing, failed) = (count("missing")?, count("failed")?);
        let enough = MassAbsence::enough_found(missing + failed);
        let found = session
            .query(FOUND)
            .bind(account)
            .bind(i64::try_from(enough).unwrap_or(i64::MAX))
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        Ok(MassAbsence {
            missing,
            failed,
            found: found.try_get::<i64, _>("found")?.unsigned_abs(),
            lasts: row.try_get::<Option<bool>, _>("lasts")?.unwrap_or(false),
        })
    }

    pub(in crate::store) async fn keep_mass_absence(
        &self,
        account: Uuid,
        lasts: bool,
    ) -> Result<(), StoreError> {
        const KEEP: &str = "
            INSERT INTO voice_sync.provider AS p (account, mass_absence_since)
            VALUES ($1, CASE WHEN $2 THEN now() END)
            ON CONFLICT (account) DO UPDATE
            SET mass_absence_since = CASE WHEN $2 THEN COALESCE(p.mass_absence_since, now()) END";
        let mut session = self.sessions.begin().await?;
        session
            .query(KEEP)
            .bind(account)
            .bind(lasts)
            .execute(&mut *session)
            .await?;
        session.keep().await
    }

    pub(in crate::store) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const RECORD: &str = "
            WITH learned AS (
                INSERT INTO voice_sync.provider AS p (account, unlisted, found_at, concurrency)
                SELECT $2, COALESCE(jsonb_object_agg(kind, now() + interval '1 hour')
                                    FILTER (WHERE kind IS NOT NULL), '{}'),
                       CASE WHEN $6 > 0 THEN now() END, $12
                FROM unnest($8::text[]) kind HAVING $2 IS NOT NULL
                ON CONFLICT (account) DO UPDATE
                SET unlisted = p.unlisted || EXCLUDED.unlisted,
                    found_at = COALESCE(EXCLUDED.found_at, p.found_at),
                    concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency)
            ),
            stopped AS (
                INSERT INTO voice_sync.cursors (table_name, resume_after)
                SELECT $9, $10 WHERE $11 AND $10 IS NOT NULL
                ON CONFLICT (table_name) DO UPDATE SET resume_after = EXCLUDED.resume_after
            ),
            finished AS (
                DELETE FROM voice_sync.cursors WHERE table_name = $9 AND $11 AND $10 IS NULL
            )
            INSERT INTO voice_sync.runs (run_id, account, started_at, duration_ms, exit_code, found,
                                         counts, completion_times)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $13)
            ON CONFLICT (run_id) DO NOTHING";
        let (moves_cursor, resume_after) = run.cursor.columns();
        let mut session = self.sessions.begin().await?;
        session
            .query(RECORD)
            .bind(run.run_id)
            .bind(run.account)
            .bind(run.started_at)
            .bind(i64::try_from(run.duration.as_millis()).unwrap_or(i64::MAX))
            .bind(i16::from(run.exit_code))
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(&run.counts)
            .bind(&run.unlisted)
            .bind(&self.table)
            .bind(resume_after)
            .bind(moves_cursor)
            .bind(run.concurrency)
            .bind(run.completion_times())
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(())
    }

    pub(in crate::store) async fn tidy(&self, at_once: u32) -> Result<(), StoreError> {
        let Self {
            table,
            id,
            id_type,
            status,
            processing,
            failed,
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
                     WHERE finished_at < now() - make_interval(secs => $1)
                        OR id <= (SELECT max(id) FROM voice_sync.runs) - {RUNS_KEPT})
             ),
             left_behind AS (
                 SELECT w.row_id FROM voice_sync.voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < now() - interval '1 day')
                   AND COALESCE(w.failed_at, w.last_asked, w.first_seen) < now()
                       - CASE WHEN w.failed_at IS NULL THEN interval '1 hour'
                              ELSE make_interval(secs => $1) END
                   AND NOT EXISTS (
                       SELECT FROM {table} v WHERE v.{id} = w.row_id::{id_type}
                       AND v.{status} = CASE WHEN w.failed_at IS NULL THEN {processing}
                                             ELSE {failed} END)
                 LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM voice_sync.voices w USING left_behind l WHERE w.row_id = l.row_id"
        );
        let mut session = self.sessions.begin().await?;
        session
            .query(AssertSqlSafe(sql))
            .bind(KEPT.as_secs_f64())
            .bind(i64::from(at_once))
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(())
    }
}

/// Of an account that is not known, all is absent.
fn standing(row: &PgRow) -> Result<Standing, sqlx::Error> {
    let span = |column| {
        let span: Option<f64> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(span.map_or(Duration::ZERO, seconds))
    };
    let opened: Option<i32> = row.try_get("opened")?;
    Ok(Standing {
        opened: opened.unwrap_or(0).unsigned_abs(),
        open_for: span("open_for")?,
        hold_for: span("hold_for")?,
        concurrency: row.try_get("concurrency")?,
    })
}
