//! Changes of voices by operators. Each change is recorded in the ledger, in its own transaction.

use std::collections::HashSet;

use super::args::Columns;
use super::database::Transaction;
use super::dialect::Dialect;
use super::row::Row;
use super::survey::VoiceRecord;
use super::values::CommandRun;
use super::{Store, StoreError};
use crate::core::voice::RowId;

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
        // A row that the application has locked is skipped: it may be about to change.
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

    /// Restarts the ages of voices: otherwise, the next answer would find them overdue.
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
             SET set_aside_until = NULL, strikes = 0, trouble = NULL, next_due = {now}, unanswered = 0, run_id = {run_id}
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
    pub(super) async fn changed_by(
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
}
