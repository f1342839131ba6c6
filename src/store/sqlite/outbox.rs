//! Events between their transition and their publication.

use chrono::DateTime;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{NOW, SqliteStore, milliseconds};
use crate::events::{EventType, OutboxEvent};
use crate::store::{OUTBOX_LEASE, Pending, StoreError};

impl SqliteStore {
    pub(in crate::store) async fn take_events(
        &self,
        limit: u32,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let sql = format!(
            "UPDATE voice_sync_outbox SET leased_until = {NOW} + $2
             WHERE id IN (SELECT id FROM voice_sync_outbox
                          WHERE published_at IS NULL
                            AND (leased_until IS NULL OR leased_until <= {NOW})
                          ORDER BY id LIMIT $1)
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

    pub(in crate::store) async fn pending_events(
        &self,
        up_to: Option<i64>,
    ) -> Result<Pending, StoreError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE leased_until IS NULL OR leased_until <= {NOW}),
                    max(id)
             FROM voice_sync_outbox WHERE published_at IS NULL AND id <= $1"
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
