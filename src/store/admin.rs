//! What operators change. Each change enters itself into the ledger, in its own transaction.

use std::collections::HashSet;

use uuid::Uuid;

use super::database::{Column, Columns, Row, Transaction};
use super::dialect::Dialect;
use super::outbox::PUBLISHED_AT;
use super::survey::{EventFilter, VoiceRecord};
use super::values::CommandRun;
use super::{OUTBOX_LEASE, Store, StoreError};
use crate::core::voice::RowId;

/// Events that are moved into one batch, or removed, by one statement.
const BATCH: u32 = 500;

impl Store {
    pub(super) async fn put_back_once(
        &self,
        run: &CommandRun,
        voices: &[VoiceRecord],
    ) -> Result<HashSet<RowId>, StoreError> {
        let mut transaction = self.database.begin().await?;
        let table = &self.table;
        let mut args = self.database.args();
        let wanted = Columns::of(voices)
            .key("id", &table.id_type, |voice| Some(voice.row.as_str()))
            .text("provider_id", |voice| voice.provider_id.as_deref());
        let wanted = args.rows("a", wanted);
        let is_same = format!(
            "v.{} = a.id AND v.{} = {} AND {} = a.provider_id",
            table.id, table.status, table.failed, table.provider_id
        );
        // A row that the application has locked is left alone: it may be about to change it.
        let (free, is_free) = match self.dialect() {
            Dialect::Postgres => (
                format!(
                    "WITH free AS MATERIALIZED (
                         SELECT v.{id} AS id FROM {name} v JOIN {wanted} ON {is_same}
                         FOR NO KEY UPDATE OF v SKIP LOCKED
                     )",
                    id = table.id,
                    name = table.table,
                ),
                format!("v.{} IN (SELECT id FROM free) AND", table.id),
            ),
            Dialect::Sqlite => (String::new(), String::new()),
        };
        let sql = format!(
            "{free} UPDATE {name} AS v SET {status} = {processing} FROM {wanted}
             WHERE {is_free} {is_same} RETURNING {returned}",
            name = table.table,
            status = table.status,
            processing = table.processing,
            returned = table.returned,
        );
        let changed = transaction.fetch_all(sql, args).await?;
        self.begin_anew(&mut transaction, run, &changed).await?;
        self.enter_command(&mut transaction, run, "put_back", changed.len() as u64)
            .await?;
        let rows: Vec<_> = voices.iter().map(|voice| voice.row.as_str()).collect();
        let back = self.changed_by(&mut transaction, run, &rows).await?;
        transaction.commit().await?;
        Ok(back)
    }

    /// Has the ages of voices begin anew: else the next answer would find them overdue.
    async fn begin_anew(
        &self,
        transaction: &mut Transaction<'_>,
        run: &CommandRun,
        changed: &[Row],
    ) -> Result<(), StoreError> {
        let mut voices = Vec::with_capacity(changed.len());
        for row in changed {
            let id: (String, String) = (row.get("row_id")?, row.get("provider_id")?);
            voices.push(id);
        }
        let mut args = self.database.args();
        let (run_id, now) = (args.bind(run.run_id), self.dialect().now());
        let rows = Columns::of(&voices)
            .text("row_id", |(row, _)| Some(row))
            .text("provider_id", |(_, provider_id)| Some(provider_id));
        let rows = args.rows("c", rows);
        let sql = format!(
            "INSERT INTO {voices} (row_id, provider_id, run_id, first_seen, restarted_at)
             SELECT row_id, provider_id, {run_id}, {now}, {now} FROM {rows} WHERE TRUE
             ON CONFLICT (row_id) DO UPDATE
             SET provider_id = EXCLUDED.provider_id, run_id = EXCLUDED.run_id, restarted_at = EXCLUDED.restarted_at,
                 kind = NULL, stage = NULL, missing_count = 0, missing_since = NULL, strikes = 0,
                 set_aside_until = NULL, trouble = NULL, failed_at = NULL, failure = NULL, next_due = NULL,
                 isolated = FALSE, unanswered = 0, unanswered_since = NULL",
            voices = self.dialect().own("voices"),
        );
        transaction.execute(sql, args).await.map(drop)
    }

    pub(super) async fn release_once(
        &self,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        let mut transaction = self.database.begin().await?;
        let mut args = self.database.args();
        let sql = format!(
            "UPDATE {voices}
             SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = NULL, unanswered = 0, run_id = {run_id}
             WHERE row_id {is_any} AND (set_aside_until > {now} OR unanswered > 0)",
            voices = self.dialect().own("voices"),
            run_id = args.bind(run.run_id),
            is_any = args.is_any("text", rows.iter().copied()),
            now = self.dialect().now(),
        );
        let released = transaction.execute(sql, args).await?;
        self.enter_command(&mut transaction, run, "released", released)
            .await?;
        let released = self.changed_by(&mut transaction, run, rows).await?;
        transaction.commit().await?;
        Ok(released)
    }

    /// Those of these voices that a command has changed, in this try or an earlier one whose reply was lost.
    async fn changed_by(
        &self,
        transaction: &mut Transaction<'_>,
        run: &CommandRun,
        rows: &[&str],
    ) -> Result<HashSet<RowId>, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT row_id FROM {} WHERE row_id {} AND run_id = {}",
            self.dialect().own("voices"),
            args.is_any("text", rows.iter().copied()),
            args.bind(run.run_id)
        );
        let rows = transaction.fetch_all(sql, args).await?;
        rows.iter().map(|row| row.get("row_id")).collect()
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
            // Locked before anything is removed: a process may have begun to publish one meanwhile.
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

    /// Events, with their batches, that the filter and a condition let through: the next ones after an id.
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
            args.bind(BATCH)
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let page = rows
            .iter()
            .map(|row| Ok((row.get("id")?, row.get_optional("batch_id")?)));
        page.collect()
    }
}
