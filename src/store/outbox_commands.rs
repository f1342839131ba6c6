//! Commands of operators on the outbox. Each change is recorded in the ledger, in its own transaction.

use std::collections::HashSet;

use uuid::Uuid;

use super::args::{Args, Column};
use super::database::Transaction;
use super::outbox::{OCCURRED_AT, PUBLISHED_AT};
use super::survey::{EventFilter, EventRecord};
use super::values::CommandRun;
use super::{OUTBOX_LEASE, Store, StoreError};

/// Events that one statement moves into one batch, or removes.
const BATCH: u32 = 500;

impl Store {
    pub(super) async fn events_once(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT o.id, o.event_id, COALESCE(o.run_id, b.run_id) AS run_id, o.event_type, o.voice_id, o.user_id,
                    {OCCURRED_AT} AS occurred_at, COALESCE(b.leased_until, o.leased_until) AS leased_until,
                    {PUBLISHED_AT} AS published_at
             FROM {outbox} o LEFT JOIN {batches} b ON b.batch_id = o.batch_id
             WHERE {is_wanted} ORDER BY o.id DESC LIMIT {limit}",
            outbox = self.dialect().own("outbox"),
            batches = self.dialect().own("batches"),
            is_wanted = self.is_wanted_event(&mut args, filter),
            limit = args.limit(limit),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let events = rows.iter().map(|row| {
            Ok(EventRecord {
                id: row.get("id")?,
                event_id: row.get("event_id")?,
                run_id: row.get_optional::<Uuid>("run_id")?.unwrap_or_default(),
                event_type: row.get("event_type")?,
                voice_id: row.get("voice_id")?,
                user_id: row.get_optional("user_id")?,
                occurred_at: row.get_optional("occurred_at")?.unwrap_or_default(),
                leased_until: row.get_optional("leased_until")?,
                published_at: row.get_optional("published_at")?,
            })
        });
        events.collect()
    }

    pub(super) async fn count_events_once(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT count(*) AS events FROM {outbox} o LEFT JOIN {batches} b ON b.batch_id = o.batch_id WHERE {is_wanted}",
            outbox = self.dialect().own("outbox"),
            batches = self.dialect().own("batches"),
            is_wanted = self.is_wanted_event(&mut args, filter),
        );
        self.database.fetch_one(sql, args).await?.count("events")
    }

    /// Whether an event of the outbox `o`, with its batch `b`, passes the filter.
    fn is_wanted_event(&self, args: &mut Args, filter: &EventFilter) -> String {
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let mut conditions = vec![format!(
            "{OCCURRED_AT} <= {now} - {}",
            dialect.span(EventFilter::bounded(filter.older_than))
        )];
        if let Some(since) = filter.since {
            let since = dialect.span(EventFilter::bounded(since));
            conditions.push(format!("{OCCURRED_AT} >= {now} - {since}"));
        }
        if let Some(published) = filter.published {
            let is = if published { "IS NOT NULL" } else { "IS NULL" };
            conditions.push(format!("{PUBLISHED_AT} {is}"));
        }
        let names = filter.all_names();
        if !names.is_empty() {
            conditions.push(format!(
                "(CAST(o.event_id AS text) {} OR o.voice_id {})",
                args.is_any("text", &names),
                args.is_any("text", &names)
            ));
        }
        conditions.join(" AND ")
    }

    pub(super) async fn resend_once(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.database.begin().await?;
        let (mut resent, mut last) = (0, None);
        let is_published = format!("{PUBLISHED_AT} IS NOT NULL");
        loop {
            let page = self.page_of_events(&mut transaction, filter, &is_published, last);
            let page = page.await?;
            if page.is_empty() {
                break;
            }
            let ids: Vec<i64> = page.iter().map(|(id, _)| *id).collect();
            let old: HashSet<Uuid> = page.iter().filter_map(|(_, batch)| *batch).collect();
            last = ids.last().copied();
            let batch = Uuid::new_v4();
            let args = self.database.args();
            resent += self
                .rebatch(&mut transaction, args, ids, batch, "TRUE")
                .await?;
            self.make_batch(&mut transaction, batch, "NULL").await?;
            self.recount(&mut transaction, old).await?;
        }
        let total = self
            .enter_command(&mut transaction, run, "resent", resent)
            .await?;
        transaction.commit().await?;
        Ok(total)
    }

    pub(super) async fn purge_once(
        &self,
        run: &CommandRun,
        filter: &EventFilter,
    ) -> Result<u64, StoreError> {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        let is_leased = |leased_until| self.dialect().is_ahead(leased_until, OUTBOX_LEASE);
        let is_free = format!(
            "(NOT {} OR {PUBLISHED_AT} IS NOT NULL)",
            is_leased("COALESCE(b.leased_until, o.leased_until)")
        );
        let mut transaction = self.database.begin().await?;
        let (mut purged, mut last) = (0, None);
        loop {
            let page = self.page_of_events(&mut transaction, filter, &is_free, last);
            let page = page.await?;
            let Some((id, _)) = page.last() else {
                break;
            };
            last = Some(*id);
            let of: HashSet<Uuid> = page.iter().filter_map(|(_, batch)| *batch).collect();
            // Locked before anything is removed: a process may have started to publish one of them meanwhile.
            let mut args = self.database.args();
            let free = format!(
                "SELECT batch_id FROM {batches} WHERE batch_id {} AND (NOT {} OR published_at IS NOT NULL) {}",
                args.is_one_of(Column::Id(of.into_iter().collect())),
                is_leased("leased_until"),
                self.dialect().skip_locked()
            );
            let free = transaction.fetch_all(free, args).await?;
            let free = free.iter().map(|row| row.get("batch_id"));
            let free = free.collect::<Result<HashSet<Uuid>, _>>()?;
            let ids = page
                .iter()
                .filter(|(_, batch)| batch.is_none_or(|batch| free.contains(&batch)));
            let mut args = self.database.args();
            let remove = format!(
                "DELETE FROM {outbox} WHERE id {}",
                args.is_one_of(Column::Integer(ids.map(|(id, _)| *id).collect()))
            );
            purged += transaction.execute(remove, args).await?;
            self.recount(&mut transaction, free).await?;
        }
        let total = self
            .enter_command(&mut transaction, run, "purged", purged)
            .await?;
        transaction.commit().await?;
        Ok(total)
    }

    /// The next events after an id that pass the filter and a condition, with their batches.
    async fn page_of_events(
        &self,
        transaction: &mut Transaction<'_>,
        filter: &EventFilter,
        condition: &str,
        after: Option<i64>,
    ) -> Result<Vec<(i64, Option<Uuid>)>, StoreError> {
        let [outbox, batches] = ["outbox", "batches"].map(|table| self.dialect().own(table));
        let mut args = self.database.args();
        let sql = format!(
            "SELECT o.id, o.batch_id FROM {outbox} o LEFT JOIN {batches} b ON b.batch_id = o.batch_id
             WHERE {} AND {condition} AND o.id > {} ORDER BY o.id LIMIT {}",
            self.is_wanted_event(&mut args, filter),
            args.bind(after.unwrap_or(0)),
            args.limit(BATCH)
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let page = rows
            .iter()
            .map(|row| Ok((row.get("id")?, row.get_optional("batch_id")?)));
        page.collect()
    }
}
