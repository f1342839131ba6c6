//! Events between their transition and their publication.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use crate::events::{EventType, OutboxEvent};
use crate::store::{OUTBOX_LEASE, Pending, StoreError};

impl PostgresStore {
    pub(in crate::store) async fn take_events(
        &self,
        limit: u32,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        const TAKE: &str = "
            WITH free AS (
                SELECT id FROM voice_sync.outbox
                WHERE published_at IS NULL AND (leased_until IS NULL OR leased_until <= now())
                ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
            ),
            taken AS (
                UPDATE voice_sync.outbox o SET leased_until = now() + make_interval(secs => $2)
                FROM free WHERE o.id = free.id
                RETURNING o.id, o.event_id, o.event_type, o.voice_id, o.user_id, o.occurred_at
            )
            SELECT * FROM taken ORDER BY id";
        let rows = sqlx::query(TAKE)
            .bind(i64::from(limit))
            .bind(OUTBOX_LEASE.as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.extend(event(row)?);
        }
        Ok(events)
    }

    pub(in crate::store) async fn mark_published(&self, ids: &[i64]) -> Result<(), StoreError> {
        const MARK: &str = "UPDATE voice_sync.outbox SET published_at = now()
                            WHERE id = ANY($1) AND published_at IS NULL";
        sqlx::query(MARK).bind(ids).execute(&self.pool).await?;
        Ok(())
    }

    pub(in crate::store) async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        const GIVE_BACK: &str = "UPDATE voice_sync.outbox SET leased_until = NULL
                                 WHERE id = ANY($1) AND published_at IS NULL";
        sqlx::query(GIVE_BACK).bind(ids).execute(&self.pool).await?;
        Ok(())
    }

    pub(in crate::store) async fn pending_events(
        &self,
        up_to: Option<i64>,
    ) -> Result<Pending, StoreError> {
        const PENDING: &str = "
            SELECT count(*), count(*) FILTER (WHERE leased_until IS NULL OR leased_until <= now()),
                   max(id)
            FROM voice_sync.outbox WHERE published_at IS NULL AND id <= $1";
        let (all, unleased, newest): (i64, i64, Option<i64>) = sqlx::query_as(PENDING)
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

pub(super) fn event(row: &PgRow) -> Result<Option<OutboxEvent>, sqlx::Error> {
    let event_type: String = row.try_get("event_type")?;
    // A newer version's event is left for it to publish.
    let Some(event_type) = EventType::parse(&event_type) else {
        return Ok(None);
    };
    Ok(Some(OutboxEvent {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        event_type,
        voice_id: row.try_get("voice_id")?,
        user_id: row.try_get("user_id")?,
        occurred_at: row.try_get::<DateTime<Utc>, _>("occurred_at")?,
    }))
}
