//! Passes, what they leave behind for the next one, and what is removed in time.

use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::claim::quarantined;
use super::{NOW, SqliteStore, elapsed, is_ahead, milliseconds, milliseconds_until};
use crate::breaker;
use crate::budget::{Spent, WINDOW};
use crate::missing::MassAbsence;
use crate::retry;
use crate::standing::Standing;
use crate::store::{KEPT, Memory, NEWEST_RUNS, PROBE, RUNS_KEPT, Run, StoreError, UNLISTED};
use crate::verdict::Failure;
use crate::voice::Position;

/// The later one of two moments, unless the first is over.
fn later(moment: &str, other: &str, longest: Duration) -> String {
    let is_ahead = is_ahead(moment, longest);
    format!("iif({is_ahead}, max({moment}, COALESCE({other}, 0)), {other})")
}

impl SqliteStore {
    pub(in crate::store) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        if !self.own_tables {
            return Ok(Memory::default());
        }
        const CURSOR: &str = "SELECT resume_after FROM voice_sync_cursors WHERE table_name = $1";
        let resume_after: Option<String> = sqlx::query_scalar(CURSOR)
            .bind(&self.table)
            .fetch_optional(&self.pool)
            .await?;
        let sql = format!(
            "SELECT u.key FROM voice_sync_provider p, json_each(p.unlisted) u
             WHERE p.account = $1 AND {}",
            is_ahead("u.value", UNLISTED)
        );
        let unlisted: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(account.to_string())
            .fetch_all(&self.pool)
            .await?;
        let sql = format!(
            "SELECT COALESCE(sum(counts ->> 'requests'), 0), COALESCE(sum(counts ->> 'retries'), 0)
             FROM (SELECT * FROM voice_sync_runs ORDER BY id DESC LIMIT $2)
             WHERE account = $1 AND finished_at > {NOW} - $3"
        );
        let (requests, retries) = sqlx::query_as(AssertSqlSafe(sql))
            .bind(account.to_string())
            .bind(NEWEST_RUNS)
            .bind(milliseconds(WINDOW))
            .fetch_one(&self.pool)
            .await?;
        let isolated = format!(
            "SELECT EXISTS (SELECT 1 FROM voice_sync_voices w
                            WHERE w.isolated AND w.failed_at IS NULL AND NOT {})",
            quarantined()
        );
        let any_isolated = sqlx::query_scalar(AssertSqlSafe(isolated))
            .fetch_one(&self.pool)
            .await?;
        let key = format!(
            "SELECT COALESCE(max(mass_absence_since IS NOT NULL), 0),
                    COALESCE(max(found_at > {NOW} - 86400000), 0)
             FROM voice_sync_provider WHERE account = $1"
        );
        let (mass_absence, key_works) = sqlx::query_as(AssertSqlSafe(key))
            .bind(account.to_string())
            .fetch_one(&self.pool)
            .await?;
        Ok(Memory {
            resume_after: resume_after
                .filter(|position| self.could_be_position(position))
                .map(Position::new),
            unlisted: unlisted.into_iter().collect(),
            any_isolated,
            mass_absence,
            key_works,
            standing: self.standing(account).await?,
            spent: Spent::counted(requests, retries),
        })
    }

    pub(in crate::store) async fn standing(&self, account: Uuid) -> Result<Standing, StoreError> {
        let sql = format!(
            "SELECT opened, concurrency, {} AS open_for, {} AS hold_for
             FROM voice_sync_provider WHERE account = $1",
            milliseconds_until("open_until", breaker::LONGEST_PAUSE),
            milliseconds_until("hold_until", retry::LONGEST_TOLD)
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(account.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else {
            return Ok(Standing::default());
        };
        Ok(Standing {
            opened: row.try_get("opened")?,
            open_for: elapsed(row.try_get("open_for")?),
            hold_for: elapsed(row.try_get("hold_for")?),
            concurrency: row.try_get("concurrency")?,
        })
    }

    pub(in crate::store) async fn keep_standing(
        &self,
        account: Uuid,
        run_id: Uuid,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let (open_until, hold_until) = (
            later("open_until", "excluded.open_until", breaker::LONGEST_PAUSE),
            later("hold_until", "excluded.hold_until", retry::LONGEST_TOLD),
        );
        let sql = format!(
            "INSERT INTO voice_sync_provider (account, opened, open_until, hold_until, concurrency)
             VALUES ($1, $2, CASE WHEN $2 > 0 THEN {NOW} + $3 END,
                     CASE WHEN $4 > 0 THEN {NOW} + $4 END, $5)
             ON CONFLICT (account) DO UPDATE
             SET opened = CASE excluded.opened WHEN 0 THEN 0 ELSE max(opened, excluded.opened) END,
                 open_until = CASE excluded.opened WHEN 0 THEN NULL ELSE {open_until} END,
                 probe_until = CASE WHEN excluded.opened > 0 AND probed_by <> $6
                                    THEN probe_until END,
                 hold_until = {hold_until},
                 concurrency = COALESCE(excluded.concurrency, concurrency)"
        );
        let Standing {
            opened,
            open_for,
            hold_for,
            concurrency,
        } = standing;
        sqlx::query(AssertSqlSafe(sql))
            .bind(account.to_string())
            .bind(opened)
            .bind(milliseconds(open_for))
            .bind(milliseconds(hold_for))
            .bind(concurrency)
            .bind(run_id.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn keep_pause(
        &self,
        account: Uuid,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let hold_until = later("hold_until", "excluded.hold_until", retry::LONGEST_TOLD);
        let sql = format!(
            "INSERT INTO voice_sync_provider (account, hold_until, concurrency)
             VALUES ($1, {NOW} + $2, $3)
             ON CONFLICT (account) DO UPDATE
             SET hold_until = {hold_until},
                 concurrency = COALESCE(excluded.concurrency, concurrency)"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(account.to_string())
            .bind(milliseconds(standing.hold_for))
            .bind(standing.concurrency)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn claim_probe(
        &self,
        account: Uuid,
        run_id: Uuid,
    ) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE voice_sync_provider SET probe_until = {NOW} + $2, probed_by = $3
             WHERE account = $1 AND opened > 0 AND NOT {} AND (NOT {} OR probed_by = $3)",
            is_ahead("open_until", breaker::LONGEST_PAUSE),
            is_ahead("probe_until", PROBE)
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(account.to_string())
            .bind(milliseconds(PROBE))
            .bind(run_id.to_string())
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(in crate::store) async fn mass_absence(
        &self,
        account: Uuid,
    ) -> Result<MassAbsence, StoreError> {
        let Self {
            table,
            id,
            status,
            processing,
            ..
        } = self;
        let missing = format!(
            "SELECT count(*) FILTER (WHERE failed_at IS NULL AND EXISTS (
                        SELECT 1 FROM {table} v WHERE v.{id} = w.row_id AND v.{status} = {processing})),
                    max(count(*) FILTER (WHERE failure = $2 AND failed_at > {NOW} - 86400000),
                        COALESCE((SELECT sum(counts ->> 'failed_missing') FROM voice_sync_runs
                                  WHERE account = $1 AND finished_at > {NOW} - 86400000), 0)),
                    COALESCE((SELECT mass_absence_since IS NOT NULL FROM voice_sync_provider
                              WHERE account = $1), 0)
             FROM voice_sync_voices w WHERE missing_account = $1 AND missing_count > 0"
        );
        let found = format!(
            "SELECT (SELECT count(*) FROM (
                         SELECT 1 FROM voice_sync_voices
                         WHERE missing_count = 0 AND unanswered = 0 AND failed_at IS NULL
                           AND last_asked > {NOW} - 86400000 AND kind IS NOT NULL LIMIT $2))
                  + (SELECT COALESCE(sum(counts ->> 'completed'), 0) FROM voice_sync_runs
                     WHERE account = $1 AND finished_at > {NOW} - 86400000)"
        );
        let (missing, failed, lasts): (i64, i64, bool) = sqlx::query_as(AssertSqlSafe(missing))
            .bind(account.to_string())
            .bind(Failure::Missing.to_string())
            .fetch_one(&self.pool)
            .await?;
        let (missing, failed) = (missing.unsigned_abs(), failed.unsigned_abs());
        let enough = MassAbsence::enough_found(missing + failed);
        let found: i64 = sqlx::query_scalar(AssertSqlSafe(found))
            .bind(account.to_string())
            .bind(i64::try_from(enough).unwrap_or(i64::MAX))
            .fetch_one(&self.pool)
            .await?;
        Ok(MassAbsence {
            missing,
            failed,
            found: found.unsigned_abs(),
            lasts,
        })
    }

    pub(in crate::store) async fn keep_mass_absence(
        &self,
        account: Uuid,
        lasts: bool,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO voice_sync_provider (account, mass_absence_since)
             VALUES ($1, CASE WHEN $2 THEN {NOW} END)
             ON CONFLICT (account) DO UPDATE
             SET mass_absence_since = CASE WHEN $2 THEN COALESCE(mass_absence_since, {NOW}) END"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(account.to_string())
            .bind(lasts)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const LEARN: &str = "
            INSERT INTO voice_sync_provider (account, unlisted, found_at, concurrency)
            VALUES ($1, $2, $3, $4)
            ON CONFLICT (account) DO UPDATE
            SET unlisted = json_patch(unlisted, excluded.unlisted),
                found_at = COALESCE(excluded.found_at, found_at),
                concurrency = COALESCE(excluded.concurrency, concurrency)";
        const STOPPED: &str = "
            INSERT INTO voice_sync_cursors (table_name, resume_after) VALUES ($1, $2)
            ON CONFLICT (table_name) DO UPDATE SET resume_after = excluded.resume_after";
        const FINISHED: &str = "DELETE FROM voice_sync_cursors WHERE table_name = $1";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let sql = format!(
            "INSERT INTO voice_sync_runs (run_id, account, started_at, finished_at, duration_ms,
                                          exit_code, found, counts, completion_times)
             VALUES ($1, $2, $3, {NOW}, $4, $5, $6, $7, $8)
             ON CONFLICT (run_id) DO UPDATE SET finished_at = finished_at RETURNING finished_at"
        );
        let finished_at: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(run.run_id.to_string())
            .bind(run.account.map(|account| account.to_string()))
            .bind(run.started_at.timestamp_millis())
            .bind(milliseconds(run.duration))
            .bind(run.exit_code)
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(run.counts.to_string())
            .bind(run.completion_times().map(|times| times.to_string()))
            .fetch_one(&mut *transaction)
            .await?;
        if let Some(account) = run.account {
            let until = finished_at + milliseconds(Duration::from_secs(60 * 60));
            let unlisted: serde_json::Map<_, _> = run
                .unlisted
                .iter()
                .map(|kind| (kind.clone(), json!(until)))
                .collect();
            sqlx::query(LEARN)
                .bind(account.to_string())
                .bind(serde_json::Value::Object(unlisted).to_string())
                .bind((run.found > 0).then_some(finished_at))
                .bind(run.concurrency)
                .execute(&mut *transaction)
                .await?;
        }
        match run.cursor.columns() {
            (true, Some(row)) => {
                sqlx::query(STOPPED)
                    .bind(&self.table)
                    .bind(row)
                    .execute(&mut *transaction)
                    .await?;
            }
            (true, None) => {
                sqlx::query(FINISHED)
                    .bind(&self.table)
                    .execute(&mut *transaction)
                    .await?;
            }
            (false, _) => {}
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(in crate::store) async fn tidy(&self, at_once: u32) -> Result<(), StoreError> {
        const EVENTS: &str = "
            DELETE FROM voice_sync_outbox WHERE id IN (
                SELECT id FROM (SELECT id, published_at FROM voice_sync_outbox ORDER BY id LIMIT $2)
                WHERE published_at < $1)";
        let runs = format!(
            "DELETE FROM voice_sync_runs WHERE id IN (
                 SELECT id FROM (SELECT id, finished_at FROM voice_sync_runs ORDER BY id LIMIT $2)
                 WHERE finished_at < $1 OR id <= (SELECT max(id) FROM voice_sync_runs) - {RUNS_KEPT})"
        );
        let Self {
            table,
            id,
            status,
            processing,
            failed,
            ..
        } = self;
        let voices = format!(
            "DELETE FROM voice_sync_voices WHERE row_id IN (
                 SELECT w.row_id FROM voice_sync_voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < {NOW} - 86400000)
                   AND COALESCE(w.failed_at, w.last_asked, w.first_seen)
                       < CASE WHEN w.failed_at IS NULL THEN {NOW} - 3600000 ELSE $1 END
                   AND NOT EXISTS (SELECT 1 FROM {table} v
                                   WHERE v.{id} = +w.row_id
                                     AND v.{status} = CASE WHEN w.failed_at IS NULL
                                                      THEN {processing} ELSE {failed} END)
                 LIMIT $2)"
        );
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let present: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")))
            .fetch_one(&mut *transaction)
            .await?;
        for sql in [EVENTS.to_owned(), runs, voices] {
            sqlx::query(AssertSqlSafe(sql))
                .bind(present - milliseconds(KEPT))
                .bind(at_once)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
