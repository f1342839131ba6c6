//! Events between their transition and their publication.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{PostgresStore, is_ahead, seconds, seconds_until};
use crate::events::{EventType, OutboxEvent};
use crate::store::values::Recorded;
use crate::store::{BUS_PROBE, BusTurn, LONGEST_BUS_PAUSE, OUTBOX_LEASE, Pending, StoreError};

impl PostgresStore {
    pub(in crate::store) async fn take_events(
        &self,
        limit: u32,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let is_leased = is_ahead("leased_until", OUTBOX_LEASE);
        let sql = format!(
            "WITH free AS (
                SELECT id FROM voice_sync.outbox
                WHERE published_at IS NULL AND NOT {is_leased}
                ORDER BY leased_until NULLS FIRST, id LIMIT $1 FOR UPDATE SKIP LOCKED
            ),
            taken AS (
                UPDATE voice_sync.outbox o SET leased_until = now() + make_interval(secs => $2)
                FROM free WHERE o.id = free.id
                RETURNING o.id, o.event_id, o.event_type, o.voice_id, o.user_id, o.occurred_at
            )
            SELECT * FROM taken ORDER BY id"
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(i64::from(limit))
            .bind(OUTBOX_LEASE.as_secs_f64())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.extend(event(row)?);
        }
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
            FROM voice_sync.outbox WHERE run_id = $1 AND event_id = ANY($2) ORDER BY id";
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(RECORDED)
            .bind(run_id)
            .bind(event_ids)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
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
        const MARK: &str = "UPDATE voice_sync.outbox SET published_at = now()
                            WHERE id = ANY($1) AND published_at IS NULL";
        let mut session = self.sessions.begin().await?;
        session.query(MARK).bind(ids).execute(&mut *session).await?;
        session.keep().await?;
        Ok(())
    }

    pub(in crate::store) async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        const GIVE_BACK: &str = "UPDATE voice_sync.outbox SET leased_until = NULL
                                 WHERE id = ANY($1) AND published_at IS NULL";
        let mut session = self.sessions.begin().await?;
        session
            .query(GIVE_BACK)
            .bind(ids)
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(())
    }

    pub(in crate::store) async fn put_events_last(&self, ids: &[i64]) -> Result<(), StoreError> {
        const PUT_LAST: &str = "UPDATE voice_sync.outbox SET leased_until = now()
                                WHERE id = ANY($1) AND published_at IS NULL";
        let mut session = self.sessions.begin().await?;
        session
            .query(PUT_LAST)
            .bind(ids)
            .execute(&mut *session)
            .await?;
        session.keep().await
    }

    pub(in crate::store) async fn pending_events(
        &self,
        up_to: Option<i64>,
    ) -> Result<Pending, StoreError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT {}), max(id)
             FROM voice_sync.outbox WHERE published_at IS NULL AND id <= $1",
            is_ahead("leased_until", OUTBOX_LEASE)
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(up_to.unwrap_or(i64::MAX))
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        Ok(Pending {
            all: row.try_get::<i64, _>(0)?.unsigned_abs(),
            unleased: row.try_get::<i64, _>(1)?.unsigned_abs(),
            newest: row.try_get(2)?,
        })
    }

    pub(in crate::store) async fn bus(
        &self,
        bus: Uuid,
        run_id: Uuid,
    ) -> Result<BusTurn, StoreError> {
        let is_left_alone = is_ahead("retry_at", LONGEST_BUS_PAUSE);
        let left_alone = seconds_until("retry_at", LONGEST_BUS_PAUSE);
        let sql = format!(
            "WITH probe AS (
                UPDATE voice_sync.buses
                SET retry_at = now() + make_interval(secs => $2), probed_by = $3
                WHERE bus = $1 AND (NOT {is_left_alone} OR probed_by = $3)
                RETURNING failures
            )
            SELECT (SELECT failures FROM probe) AS failures, {left_alone} AS left_alone
            FROM voice_sync.buses WHERE bus = $1"
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(bus)
            .bind(BUS_PROBE.as_secs_f64())
            .bind(run_id)
            .fetch_optional(&mut *session)
            .await?;
        session.keep().await?;
        let Some(row) = row else {
            return Ok(BusTurn::Works);
        };
        Ok(match row.try_get::<Option<i32>, _>("failures")? {
            Some(failures) => BusTurn::Probe {
                failures: failures.unsigned_abs(),
            },
            None => BusTurn::LeftAlone(seconds(row.try_get("left_alone")?)),
        })
    }

    pub(in crate::store) async fn bus_failed(
        &self,
        bus: Uuid,
        failures: u32,
        pause: Duration,
    ) -> Result<(), StoreError> {
        // Of several that fail at once, the first one counts.
        const FAILED: &str = "
            INSERT INTO voice_sync.buses AS b (bus, failures, retry_at)
            VALUES ($1, $2, now() + make_interval(secs => $3))
            ON CONFLICT (bus) DO UPDATE
            SET failures = EXCLUDED.failures, retry_at = EXCLUDED.retry_at, probed_by = NULL
            WHERE b.failures < EXCLUDED.failures";
        let mut session = self.sessions.begin().await?;
        session
            .query(FAILED)
            .bind(bus)
            .bind(i32::try_from(failures).unwrap_or(i32::MAX))
            .bind(pause.as_secs_f64())
            .execute(&mut *session)
            .await?;
        session.keep().await
    }

    pub(in crate::store) async fn bus_works(&self, bus: Uuid) -> Result<(), StoreError> {
        const WORKS: &str = "DELETE FROM voice_sync.buses WHERE bus = $1";
        let mut session = self.sessions.begin().await?;
        session
            .query(WORKS)
            .bind(bus)
            .execute(&mut *session)
            .await?;
        session.keep().await
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
