//! voice-sync as it is, and as it would be with one of the classic mistakes.

use std::time::Duration;

use sqlx::SqlitePool;
use uuid::Uuid;
use voice_sync::core::event::{BatchId, OutboxEvent, event_id};
use voice_sync::core::transition::{Claimed, Target, Transition};
use voice_sync::core::verdict::Age;
use voice_sync::core::voice::{Position, RowId};
use voice_sync::store::{Applied, Page};

use super::Fate;

/// How the instances work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// With the store's own methods, in voice-sync's own order.
    Sound,
    /// With `apply` written by hand, and no mistake in it.
    ByHand,
    /// Looks whether the clone is still the one, and not whether the row is still in processing.
    OverwritesFinishedRows,
    /// Looks whether the row is still in processing, and not whether the clone is still the one.
    ForgetsTheProviderId,
    /// Publishes what it is about to do.
    PublishesBeforeTheCommit,
    /// Commits the row first and its event then.
    RecordsInASecondTransaction,
    /// Marks events as published before they are.
    MarksBeforePublishing,
    /// Marks a batch as published when the first of its events is.
    MarksPartOfABatch,
    /// Takes what is in processing, whoever is at it.
    IgnoresLeases,
}

/// What `apply`, written by hand, looks after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Care {
    status: bool,
    provider_id: bool,
    one_transaction: bool,
}

impl Program {
    /// `None` is the store's own `apply`.
    pub(super) fn care(self) -> Option<Care> {
        let all = Care {
            status: true,
            provider_id: true,
            one_transaction: true,
        };
        match self {
            Self::Sound
            | Self::PublishesBeforeTheCommit
            | Self::MarksBeforePublishing
            | Self::MarksPartOfABatch
            | Self::IgnoresLeases => None,
            Self::ByHand => Some(all),
            Self::OverwritesFinishedRows => Some(Care {
                status: false,
                ..all
            }),
            Self::ForgetsTheProviderId => Some(Care {
                provider_id: false,
                ..all
            }),
            Self::RecordsInASecondTransaction => Some(Care {
                one_transaction: false,
                ..all
            }),
        }
    }
}

/// An event as it will be once its transition is committed, if it ever is.
pub(super) fn foretold(transition: &Transition) -> OutboxEvent {
    let Transition {
        row,
        provider_id,
        target,
    } = transition;
    let event_type = target.event_type();
    OutboxEvent {
        id: 0,
        batch: BatchId(Uuid::nil()),
        event_id: event_id(row, provider_id, event_type),
        event_type,
        voice_id: hyphenated(row.as_str()),
        user_id: None,
        occurred_at: chrono::Utc::now(),
    }
}

/// What `Store::apply` does, in plain SQL, as far as it takes care of it.
pub(super) async fn apply_by_hand(
    pool: &SqlitePool,
    care: Care,
    run_id: Uuid,
    transitions: &[Transition],
    fate: Fate,
) -> sqlx::Result<Applied> {
    const MOVE: &str = "
        UPDATE voices
        SET status = $2, preview_url = COALESCE($3, preview_url),
            completed_at = CASE $2 WHEN 'completed' THEN strftime('%Y-%m-%d %H:%M:%f000', 'now')
                                   ELSE completed_at END
        WHERE id = $1 AND (status = 'processing' OR NOT $4) AND (elevenlabs_voice_id = $5 OR NOT $6)
        RETURNING user_id";
    const RECORD: &str = "
        INSERT INTO voice_sync_outbox (event_id, event_type, voice_id, user_id, batch_id)
        VALUES ($1, $2, $3, $4, $5)";
    const BATCH: &str = "
        INSERT INTO voice_sync_batches (batch_id, run_id, recorded_at, first_id, last_id, events)
        SELECT batch_id, $2, CAST(unixepoch('subsec') * 1000 AS INTEGER), id, id, 1
        FROM voice_sync_outbox WHERE batch_id = $1";
    let mut applied = Applied::default();
    let mut transaction = pool.begin().await?;
    for transition in transitions {
        let (status, preview) = match &transition.target {
            Target::Completed { preview_url } => ("completed", preview_url.as_deref()),
            Target::Failed { reason: _ } => ("failed", None),
        };
        let row = transition.row.as_str();
        let moved: Option<String> = sqlx::query_scalar(MOVE)
            .bind(row)
            .bind(status)
            .bind(preview)
            .bind(care.status)
            .bind(transition.provider_id.as_str())
            .bind(care.provider_id)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(user) = moved else { continue };
        applied.moved.insert(RowId::new(row));
        if !care.one_transaction {
            transaction.commit().await?;
            transaction = pool.begin().await?;
            if fate == Fate::ReplyLost {
                break;
            }
        }
        let event_type = transition.target.event_type();
        let batch = Uuid::new_v4().to_string();
        sqlx::query(RECORD)
            .bind(event_id(&transition.row, &transition.provider_id, event_type).to_string())
            .bind(event_type.as_str())
            .bind(hyphenated(row))
            .bind(hyphenated(&user))
            .bind(&batch)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(BATCH)
            .bind(&batch)
            .bind(run_id.to_string())
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(applied)
}

/// A page of what is in processing, as if there were no leases.
pub(super) async fn claim_by_hand(
    pool: &SqlitePool,
    after: Option<&Position>,
    limit: u32,
) -> sqlx::Result<Page> {
    const PAGE: &str = "SELECT id, elevenlabs_voice_id FROM voices
                        WHERE status = 'processing' AND id > $1 ORDER BY id LIMIT $2";
    let rows: Vec<(String, String)> = sqlx::query_as(PAGE)
        .bind(after.map_or("", Position::as_str))
        .bind(limit)
        .fetch_all(pool)
        .await?;
    let last = match rows.len() >= limit as usize {
        true => rows.last().map(|(row, _)| Position::new(row)),
        false => None,
    };
    let voices = rows.into_iter().map(|(row, provider_id)| Claimed {
        position: Position::new(row.clone()),
        row: RowId::new(row),
        provider_id: Some(provider_id),
        age: Age::default(),
        unasked_for: Duration::ZERO,
        kind: None,
        is_isolated: false,
        unanswered: 0,
        nudge: None,
    });
    Ok(Page {
        voices: voices.collect(),
        last,
        ..Page::default()
    })
}

/// A UUID as events have it.
pub(super) fn hyphenated(stored: &str) -> String {
    let uuid = Uuid::parse_str(stored).expect("the application's keys are UUIDs");
    uuid.hyphenated().to_string()
}
