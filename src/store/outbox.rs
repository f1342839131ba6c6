//! Events between their transition and their publication, by batch.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::args::{Args, Column, Columns};
use super::database::Transaction;
use super::row::Row;
use super::settlement::{Settlement, Unpublished};
use super::values::{LeasedEvents, Pending, Recorded};
use super::{OUTBOX_LEASE, Store, StoreError};
use crate::core::event::{BatchId, EventType, OutboxEvent};

/// The maximum number of batches that are leased at once.
const MAX_BATCHES: u32 = 200;
/// The maximum number of moved events in one batch.
const MOVED_AT_ONCE: u32 = 500;

/// When the transition of an event of the outbox `o` was committed, and when the event was published, if it was.
/// Events of earlier versions have no batch `b`. To an earlier version that is still running, all other events look
/// published.
pub(super) const OCCURRED_AT: &str = "COALESCE(o.occurred_at, b.recorded_at)";
pub(super) const PUBLISHED_AT: &str =
    "CASE WHEN o.batch_id IS NULL THEN o.published_at ELSE b.published_at END";

/// Columns of an event of the outbox `o`, besides [`OCCURRED_AT`].
const EVENT: &str = "o.id, o.batch_id, o.event_id, o.event_type, o.voice_id, o.user_id";

impl Store {
    /// The outbox `o` joined with its batches `b`.
    pub(super) fn batched_outbox(&self) -> String {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        format!(
            "{batches} b JOIN {outbox} o ON o.id BETWEEN b.first_id AND b.last_id AND o.batch_id = b.batch_id"
        )
    }

    pub(super) async fn lease_events_once(&self, limit: u32) -> Result<LeasedEvents, StoreError> {
        let dialect = self.dialect();
        let batches = dialect.own("batches");
        let mut transaction = self.database.begin().await?;
        self.adopt_events(&mut transaction).await?;
        let mut args = self.database.args();
        let sql = format!(
            "SELECT batch_id, events FROM {batches}
             WHERE published_at IS NULL AND NOT {is_leased}
             ORDER BY leased_until NULLS FIRST, first_id LIMIT {most} {skip_locked}",
            is_leased = dialect.is_ahead("leased_until", OUTBOX_LEASE),
            most = args.limit(MAX_BATCHES),
            skip_locked = dialect.skip_locked(),
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let mut chosen = Vec::new();
        let mut events = 0;
        for row in &rows {
            events += row.count("events")?;
            if !chosen.is_empty() && events > u64::from(limit) {
                break;
            }
            chosen.push(row.get::<Uuid>("batch_id")?);
        }
        if chosen.is_empty() {
            transaction.roll_back().await?;
            return Ok(LeasedEvents::default());
        }
        let ids = || Column::Id(chosen.clone());
        let mut args = self.database.args();
        let sql = format!(
            "UPDATE {batches} SET leased_until = {now} + {lease} WHERE batch_id {is_chosen}",
            now = dialect.now(),
            lease = dialect.span(OUTBOX_LEASE),
            is_chosen = args.is_one_of(ids()),
        );
        transaction.execute(sql, args).await?;
        let mut args = self.database.args();
        let sql = format!(
            "SELECT {EVENT}, {OCCURRED_AT} AS occurred_at FROM {} WHERE b.batch_id {} ORDER BY o.id",
            self.batched_outbox(),
            args.is_one_of(ids())
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let mut empty: HashSet<Uuid> = chosen.into_iter().collect();
        for row in &rows {
            empty.remove(&row.get("batch_id")?);
        }
        self.recount(&mut transaction, empty).await?;
        transaction.commit().await?;
        let mut leased = LeasedEvents::default();
        for row in &rows {
            match event(row)? {
                Some(event) => leased.events.push(event),
                None => leased
                    .unknown
                    .push((BatchId(row.get("batch_id")?), row.get("id")?)),
            }
        }
        Ok(leased)
    }

    /// The events among these that this run recorded earlier.
    pub(super) async fn recorded_once(
        &self,
        run_id: Uuid,
        event_ids: &[Uuid],
    ) -> Result<Vec<Recorded>, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT {EVENT}, {OCCURRED_AT} AS occurred_at, b.published_at IS NOT NULL AS is_published FROM {outbox}
             WHERE b.run_id = {run_id} AND o.event_id {is_any} ORDER BY o.id",
            outbox = self.batched_outbox(),
            run_id = args.bind(run_id),
            is_any = args.is_one_of(Column::Id(event_ids.to_vec())),
        );
        let mut recorded = Vec::new();
        for row in &self.database.fetch_all(sql, args).await? {
            let is_published = row.get("is_published")?;
            recorded.extend(event(row)?.map(|event| Recorded {
                event,
                is_published,
            }));
        }
        Ok(recorded)
    }

    pub(super) async fn settle_once(
        &self,
        settlement: &Settlement,
        new: [Uuid; 2],
    ) -> Result<(), StoreError> {
        let Settlement {
            published,
            refused,
            unpublished,
        } = settlement;
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let batches = dialect.own("batches");
        // A lost mark only means that the events are published again.
        let quick = "SET LOCAL synchronous_commit = off";
        let mut transaction = self.database.begin_with(quick).await?;
        for (
            Unpublished {
                batches: whole,
                events,
            },
            leased_until,
            new,
        ) in [(refused, now, new[0]), (unpublished, "NULL", new[1])]
        {
            self.move_events(&mut transaction, events, leased_until, new)
                .await?;
            if !whole.is_empty() {
                let mut args = self.database.args();
                let sql = format!(
                    "UPDATE {batches} SET leased_until = {leased_until}
                     WHERE published_at IS NULL AND batch_id {}",
                    args.is_one_of(Column::Id(whole.iter().map(|BatchId(id)| *id).collect()))
                );
                transaction.execute(sql, args).await?;
            }
        }
        if !published.is_empty() {
            let mut args = self.database.args();
            let rows = Columns::of(published)
                .id("batch_id", |(BatchId(id), _)| *id)
                .integer("events", |(_, events)| {
                    i64::try_from(*events).unwrap_or(i64::MAX)
                });
            let rows = args.rows("p", rows);
            // The state of the other events in the batch is not known. A batch that has fewer events lost them
            // because somebody deleted them by hand.
            let sql = format!(
                "UPDATE {batches} AS b SET published_at = {now} FROM {rows}
                 WHERE b.batch_id = p.batch_id AND b.published_at IS NULL
                   AND (b.events = p.events OR {all} <= p.events)",
                all = self.events_of_batch(),
            );
            transaction.execute(sql, args).await?;
        }
        transaction.commit().await
    }

    /// Moves unpublished events into a batch of their own, with a lease of this length. After a lost reply, they are
    /// already there.
    async fn move_events(
        &self,
        transaction: &mut Transaction<'_>,
        events: &[(BatchId, i64)],
        leased_until: &str,
        new: Uuid,
    ) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        let old: HashSet<Uuid> = events.iter().map(|(BatchId(id), _)| *id).collect();
        let mut args = self.database.args();
        let is_unpublished = format!(
            "o.batch_id IN (SELECT batch_id FROM {} WHERE published_at IS NULL AND batch_id {})",
            self.dialect().own("batches"),
            args.is_one_of(Column::Id(old.iter().copied().collect()))
        );
        let ids = events.iter().map(|(_, id)| *id);
        let moved = self
            .rebatch(transaction, args, ids, new, &is_unpublished)
            .await?;
        if moved > 0 {
            self.make_batch(transaction, new, leased_until).await?;
            self.recount(transaction, old).await?;
        }
        Ok(())
    }

    /// Gives events another batch, still to be created, with the values of the previous one. Returns their number.
    pub(super) async fn rebatch(
        &self,
        transaction: &mut Transaction<'_>,
        mut args: Args,
        ids: impl IntoIterator<Item = i64>,
        new: Uuid,
        condition: &str,
    ) -> Result<u64, StoreError> {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        let of_batch = |column: &str| {
            format!("(SELECT b.{column} FROM {batches} b WHERE b.batch_id = o.batch_id)")
        };
        let sql = format!(
            "UPDATE {outbox} AS o
             SET batch_id = {new}, run_id = COALESCE(o.run_id, {run_id}),
                 occurred_at = COALESCE(o.occurred_at, {recorded_at}), leased_until = NULL,
                 published_at = COALESCE(o.published_at, {now})
             WHERE o.id {is_any} AND {condition}",
            new = args.bind(new),
            now = self.dialect().now(),
            run_id = of_batch("run_id"),
            recorded_at = of_batch("recorded_at"),
            is_any = args.is_one_of(Column::Integer(ids.into_iter().collect())),
        );
        transaction.execute(sql, args).await
    }

    /// Creates the batch for events that already have its id.
    pub(super) async fn make_batch(
        &self,
        transaction: &mut Transaction<'_>,
        batch: Uuid,
        leased_until: &str,
    ) -> Result<(), StoreError> {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        let mut args = self.database.args();
        let sql = format!(
            "INSERT INTO {batches} (batch_id, run_id, recorded_at, first_id, last_id, events, leased_until)
             SELECT batch_id, {run_id}, min(occurred_at), min(id), max(id), count(*), {leased_until}
             FROM {outbox} WHERE batch_id = {batch} GROUP BY batch_id",
            run_id = self.dialect().min_id("run_id"),
            batch = args.bind(batch),
        );
        transaction.execute(sql, args).await.map(drop)
    }

    /// The number of events in the batch `b`.
    fn events_of_batch(&self) -> String {
        format!(
            "(SELECT count(*) FROM {} o WHERE o.id BETWEEN b.first_id AND b.last_id AND o.batch_id = b.batch_id)",
            self.dialect().own("outbox")
        )
    }

    /// Counts the events of batches again after some were removed. An empty batch is deleted.
    pub(super) async fn recount(
        &self,
        transaction: &mut Transaction<'_>,
        batches: impl IntoIterator<Item = Uuid>,
    ) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = batches.into_iter().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let batches = self.dialect().own("batches");
        let mut args = self.database.args();
        let count = format!(
            "UPDATE {batches} AS b SET events = {} WHERE batch_id {}",
            self.events_of_batch(),
            args.is_one_of(Column::Id(ids.clone()))
        );
        transaction.execute(count, args).await?;
        let mut args = self.database.args();
        let remove = format!(
            "DELETE FROM {batches} WHERE events = 0 AND batch_id {}",
            args.is_one_of(Column::Id(ids))
        );
        transaction.execute(remove, args).await.map(drop)
    }

    /// Unpublished batches, and events of an earlier version without a batch, each as a batch of its own.
    pub(super) fn unpublished(&self) -> String {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        format!(
            "(SELECT first_id, last_id, events, recorded_at, leased_until FROM {batches} WHERE published_at IS NULL
              UNION ALL
              SELECT id, id, 1, occurred_at, leased_until FROM {outbox}
              WHERE batch_id IS NULL AND published_at IS NULL) u"
        )
    }

    /// Puts events of an earlier version into a batch, unless that version is publishing them itself.
    async fn adopt_events(&self, transaction: &mut Transaction<'_>) -> Result<(), StoreError> {
        let dialect = self.dialect();
        let (outbox, batch) = (dialect.own("outbox"), Uuid::new_v4());
        let mut args = self.database.args();
        let sql = format!(
            "UPDATE {outbox} SET batch_id = {batch}, published_at = {now}
             WHERE id IN (SELECT id FROM {outbox}
                          WHERE batch_id IS NULL AND published_at IS NULL AND NOT {is_leased}
                          ORDER BY id LIMIT {most} {skip_locked})",
            batch = args.bind(batch),
            now = dialect.now(),
            is_leased = dialect.is_ahead("leased_until", OUTBOX_LEASE),
            most = args.limit(MOVED_AT_ONCE),
            skip_locked = dialect.skip_locked(),
        );
        match transaction.execute(sql, args).await? {
            0 => Ok(()),
            _ => self.make_batch(transaction, batch, "NULL").await,
        }
    }

    pub(super) async fn pending_events_once(
        &self,
        up_to: Option<i64>,
    ) -> Result<Pending, StoreError> {
        let mut args = self.database.args();
        let is_leased = self.dialect().is_ahead("leased_until", OUTBOX_LEASE);
        let sql = format!(
            "SELECT CAST(COALESCE(sum(events), 0) AS bigint) AS total,
                    CAST(COALESCE(sum(events) FILTER (WHERE NOT {is_leased}), 0) AS bigint) AS unleased,
                    max(last_id) AS newest
             FROM {unpublished} WHERE first_id <= {up_to}",
            unpublished = self.unpublished(),
            up_to = args.bind(up_to.unwrap_or(i64::MAX)),
        );
        let row = self.database.fetch_one(sql, args).await?;
        Ok(Pending {
            all: row.count("total")?,
            unleased: row.count("unleased")?,
            newest: row.get_optional("newest")?,
        })
    }

    /// The number of waiting events, and how long the oldest of them has waited.
    pub(super) async fn waiting_events(&self) -> Result<(i64, Option<Duration>), StoreError> {
        if !self.has_own_tables() {
            return Ok((0, None));
        }
        let sql = format!(
            "SELECT CAST(COALESCE(sum(events), 0) AS bigint) AS events, {oldest} AS oldest
             FROM {unpublished}",
            oldest = self.dialect().since("min(recorded_at)"),
            unpublished = self.unpublished(),
        );
        let row = self.database.fetch_one(sql, self.database.args()).await?;
        Ok((row.get("events")?, row.get_optional("oldest")?))
    }
}

/// An event of a newer version is not touched: that version publishes it.
fn event(row: &Row) -> Result<Option<OutboxEvent>, StoreError> {
    let event_type: String = row.get("event_type")?;
    let Some(event_type) = EventType::parse(&event_type) else {
        return Ok(None);
    };
    Ok(Some(OutboxEvent {
        id: row.get("id")?,
        batch: BatchId(row.get("batch_id")?),
        event_id: row.get("event_id")?,
        event_type,
        voice_id: row.get("voice_id")?,
        user_id: row.get_optional("user_id")?,
        occurred_at: row.get("occurred_at")?,
    }))
}
