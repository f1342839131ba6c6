//! Events between their transition and their publication.

use std::time::Duration;

use chrono::DateTime;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{NOW, SqliteStore, elapsed, is_ahead, milliseconds, milliseconds_until};
use crate::events::{EventType, OutboxEvent};
use crate::store::values::Recorded;
use crate::store::{BUS_PROBE, BusTurn, LONGEST_BUS_PAUSE, OUTBOX_LEASE, Pending, StoreError};

impl SqliteStore {
    pub(in crate::store) async fn take_events(
        &self,
        limit: u32,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let is_leased = is_ahead("leased_until", OUTBOX_LEASE);
        let sql = format!(
            "UPDATE voice_sync_outbox SET leased_until = {NOW} + $2
             WHERE id IN (SELECT id FROM voice_sync_outbox
                          WHERE published_at IS NULL AND NOT {is_leased}
                          ORDER BY leased_until NULLS FIRST, id LIMIT $1)
             RETURNING id, event_id, event_type, voice_id, user_id, occurred_at"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(limit)
            .bind(milliseconds(OUTBOX_LEASE))
            .fetch_all(&self.pool)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.extend(event(row)?);
        }
        events.sort_by_key(|event| event.id);
        Ok(events)
    }

    pub(in crate::store) async fn recorded(
        &self,
        run_id: Uuid,
        event_ids: &[Uuid],
    ) -> Result<Vec<Recorded>, StoreError> {
        const RECORDED: &str = "
            SELECT id, event_id, event_type, voice_id, user_id, occurred_at,
                   published_at IS NOT NULL AS is_published
            FROM voice_sync_outbox
            WHERE run_id = $1 AND event_id IN (SELECT value FROM json_each($2)) ORDER BY id";
        let rows = sqlx::query(RECORDED)
            .bind(run_id.to_string())
            .bind(json!(event_ids).to_string())
            .fetch_all(&self.pool)
            .await?;
        let mut recorded = Vec::with_capacity(rows.len());
        for row in &rows {
            let is_published = row.try_get("is_published")?;
            recorded.extend(event(row)?.map(|event| Recorded {
                event,
                is_published,
            }));
        }
        Ok(recorded)
    }

    pub(in crate::store) async fn mark_published(&self, ids: &[i64]) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE voice_sync_outbox SET published_at = {NOW}
             WHERE id IN (SELECT value FROM json_each($1)) AND published_at IS NULL"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(json!(ids).to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        const GIVE_BACK: &str = "UPDATE voice_sync_outbox SET leased_until = NULL
            WHERE id IN (SELECT value FROM json_each($1)) AND published_at IS NULL";
        sqlx::query(GIVE_BACK)
            .bind(json!(ids).to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn put_events_last(&self, ids: &[i64]) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE voice_sync_outbox SET leased_until = {NOW}
             WHERE id IN (SELECT value FROM json_each($1)) AND published_at IS NULL"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(json!(ids).to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn pending_events(
        &self,
        up_to: Option<i64>,
    ) -> Result<Pending, StoreError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT {}), max(id)
             FROM voice_sync_outbox WHERE published_at IS NULL AND id <= $1",
            is_ahead("leased_until", OUTBOX_LEASE)
        );
        let (all, unleased, newest): (i64, i64, Option<i64>) = sqlx::query_as(AssertSqlSafe(sql))
            .bind(up_to.unwrap_or(i64::MAX))
            .fetch_one(&self.pool)
            .await?;
        Ok(Pending {
            all: all.unsigned_abs(),
            unleased: unleased.unsigned_abs(),
            newest,
        })
    }

    pub(in crate::store) async fn bus(
        &self,
        bus: Uuid,
        run_id: Uuid,
    ) -> Result<BusTurn, StoreError> {
        let sql = format!(
            "SELECT {} FROM voice_sync_buses WHERE bus = $1",
            milliseconds_until("retry_at", LONGEST_BUS_PAUSE)
        );
        let left_alone: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(bus.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(left_alone) = left_alone else {
            return Ok(BusTurn::Works);
        };
        let sql = format!(
            "UPDATE voice_sync_buses SET retry_at = {NOW} + $2, probed_by = $3
             WHERE bus = $1 AND (NOT {} OR probed_by = $3) RETURNING failures",
            is_ahead("retry_at", LONGEST_BUS_PAUSE)
        );
        let failures: Option<u32> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(bus.to_string())
            .bind(milliseconds(BUS_PROBE))
            .bind(run_id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(match failures {
            Some(failures) => BusTurn::Probe { failures },
            None => BusTurn::LeftAlone(elapsed(left_alone)),
        })
    }

    pub(in crate::store) async fn bus_failed(
        &self,
        bus: Uuid,
        failures: u32,
        pause: Duration,
    ) -> Result<(), StoreError> {
        // Of several that fail at once, the first one counts.
        let sql = format!(
            "INSERT INTO voice_sync_buses (bus, failures, retry_at) VALUES ($1, $2, {NOW} + $3)
             ON CONFLICT (bus) DO UPDATE
             SET failures = excluded.failures, retry_at = excluded.retry_at, probed_by = NULL
             WHERE failures < excluded.failures"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(bus.to_string())
            .bind(failures)
            .bind(milliseconds(pause))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn bus_works(&self, bus: Uuid) -> Result<(), StoreError> {
        const WORKS: &str = "DELETE FROM voice_sync_buses WHERE bus = $1";
        sqlx::query(WORKS)
            .bind(bus.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

pub(super) fn event(row: &SqliteRow) -> Result<Option<OutboxEvent>, sqlx::Error> {
    let event_type: String = row.try_get("event_type")?;
    let event_id: String = row.try_get("event_id")?;
    let occurred_at: i64 = row.try_get("occurred_at")?;
    // A newer version's event is left for it to publish.
    let (Some(event_type), Ok(event_id), Some(occurred_at)) = (
        EventType::parse(&event_type),
        Uuid::parse_str(&event_id),
        DateTime::from_timestamp_millis(occurred_at),
    ) else {
        return Ok(None);
    };
    Ok(Some(OutboxEvent {
        id: row.try_get("id")?,
        event_id,
        event_type,
        voice_id: row.try_get("voice_id")?,
        user_id: row.try_get("user_id")?,
        occurred_at,
    }))
}
