//! Makes transitions: rows, their events and the notes about their voices, in one transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::args::{Args, Column, Columns};
use super::database::Transaction;
use super::dialect::Dialect;
use super::row::Row;
use super::values::{Applied, CommandRun, Record};
use super::{OUTBOX_LEASE, Store, StoreError, visit};
use crate::core::event::{BatchId, OutboxEvent};
use crate::core::transition::{Target, Transition};
use crate::core::voice::RowId;

/// How long a bulk waits for rows that the application has locked, before it skips them.
const LOCK_TIMEOUT: &str = "900ms";

/// What a bulk does about rows that are locked by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Locked {
    /// Waits a moment: the application's locks are usually short, and a check for locks takes time.
    Wait,
    /// Skips them.
    Skip,
}

/// A transition that was made.
struct Moved<'a> {
    transition: &'a Transition,
    user_id: Option<String>,
}

impl Store {
    pub(super) async fn apply_once(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        match self
            .apply_bulk(run_id, transitions, record, Locked::Wait)
            .await
        {
            Err(StoreError::Contended(_)) if self.dialect() == Dialect::Postgres => {
                self.apply_bulk(run_id, transitions, record, Locked::Skip)
                    .await
            }
            done => done,
        }
    }

    async fn apply_bulk(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
        locked: Locked,
    ) -> Result<Applied, StoreError> {
        let impatient = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
        let mut transaction = self.database.begin_with(&impatient).await?;
        let applied = self
            .apply_in(&mut transaction, run_id, transitions, record, locked)
            .await;
        match applied {
            Ok(applied) => {
                visit("store.apply.commit").await?;
                transaction.commit().await?;
                Ok(applied)
            }
            Err(error) => {
                // If the database refused something, the connection can still be used.
                if !matches!(error, StoreError::Unreachable(_)) {
                    transaction.roll_back().await.ok();
                }
                Err(error)
            }
        }
    }

    /// Fails voices for a command, which is entered into the ledger with them. Returns those that it has failed, in this try
    /// or an earlier one whose reply was lost.
    pub(super) async fn fail_once(
        &self,
        run: &CommandRun,
        transitions: &[Transition],
        record: Record,
    ) -> Result<HashSet<RowId>, StoreError> {
        let impatient = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
        let mut transaction = self.database.begin_with(&impatient).await?;
        let applied = self
            .apply_in(
                &mut transaction,
                run.run_id,
                transitions,
                record,
                Locked::Wait,
            )
            .await?;
        let failed = applied.moved.len() as u64;
        self.enter_command(&mut transaction, run, "failed", failed)
            .await?;
        let rows: Vec<_> = transitions.iter().map(|t| t.row.as_str()).collect();
        let failed = self.changed_by(&mut transaction, run, &rows).await?;
        transaction.commit().await?;
        Ok(failed)
    }

    /// Those of these transitions that happened, whose rows are as they left them, and that have no event.
    pub(super) async fn without_event_once(
        &self,
        transitions: &[Transition],
    ) -> Result<Vec<Transition>, StoreError> {
        let mut transaction = self.database.begin().await?;
        let lacking = self.lacking_events(&mut transaction, transitions).await?;
        let lacking = lacking.into_iter().map(|moved| moved.transition.clone());
        Ok(lacking.collect())
    }

    /// Records the events of these, for any process to publish. Returns how many the command has recorded in all.
    pub(super) async fn record_events_once(
        &self,
        run: &CommandRun,
        transitions: &[Transition],
    ) -> Result<u64, StoreError> {
        let mut transaction = self.database.begin().await?;
        let lacking = self.lacking_events(&mut transaction, transitions).await?;
        if !lacking.is_empty() {
            self.record(&mut transaction, run.run_id, &lacking, Record::ForAnyone)
                .await?;
        }
        let number = lacking.len() as u64;
        let total = self
            .enter_command(&mut transaction, run, "recorded", number)
            .await?;
        transaction.commit().await?;
        Ok(total)
    }

    async fn lacking_events<'a>(
        &self,
        transaction: &mut Transaction<'_>,
        transitions: &'a [Transition],
    ) -> Result<Vec<Moved<'a>>, StoreError> {
        let table = &self.table;
        let mut args = self.database.args();
        let all: Vec<_> = transitions.iter().collect();
        let answers = self.answers(&mut args, &all);
        let sql = format!(
            "SELECT {row_id} AS row_id, {provider_id} AS provider_id, {user_id} AS user_id
             FROM {name} v JOIN {answers}
               ON v.{id} = a.id AND {provider_key} = a.provider_id
                  AND v.{status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END",
            row_id = table.row_id(),
            provider_id = table.provider_id,
            user_id = table.user_id,
            name = table.table,
            id = table.id,
            provider_key = table.provider_key,
            status = table.status,
            completed = table.completed,
            failed = table.failed,
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let finished = moved(&rows, &all)?;
        let ids: Vec<_> = finished
            .iter()
            .map(|moved| moved.transition.event_id())
            .collect();
        let mut args = self.database.args();
        let sql = format!(
            "SELECT event_id FROM {} WHERE event_id {}",
            self.dialect().own("outbox"),
            args.is_one_of(Column::Id(ids))
        );
        let rows = transaction.fetch_all(sql, args).await?;
        let known = rows.iter().map(|row| row.get("event_id"));
        let known: HashSet<Uuid> = known.collect::<Result<_, _>>()?;
        let lacks = |moved: &Moved<'_>| !known.contains(&moved.transition.event_id());
        Ok(finished.into_iter().filter(lacks).collect())
    }

    async fn apply_in(
        &self,
        transaction: &mut Transaction<'_>,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
        locked: Locked,
    ) -> Result<Applied, StoreError> {
        let mut applied = Applied::default();
        if locked == Locked::Skip {
            applied.locked = self.lock(transaction, transitions).await?;
        }
        let free = transitions
            .iter()
            .filter(|transition| !applied.locked.contains(&transition.row));
        let free: Vec<_> = free.collect();
        let (sql, args) = self.update(&free);
        let rows = transaction.fetch_all(sql, args).await?;
        let moved = moved(&rows, &free)?;
        applied.moved = moved
            .iter()
            .map(|moved| moved.transition.row.clone())
            .collect();
        if record.is_wanted() && !moved.is_empty() {
            applied.events = self.record(transaction, run_id, &moved, record).await?;
        }
        self.keep_completions(transaction, &moved).await?;
        self.forget_completed(transaction, &moved).await?;
        self.note_failures(transaction, run_id, &moved).await?;
        Ok(applied)
    }

    /// Locks the rows of these transitions that nobody else has locked. Returns the locked ones.
    async fn lock(
        &self,
        transaction: &mut Transaction<'_>,
        transitions: &[Transition],
    ) -> Result<HashSet<RowId>, StoreError> {
        let mut args = self.database.args();
        let answers = self.answers(&mut args, &transitions.iter().collect::<Vec<_>>());
        let (table, is_unchanged) = (&self.table.table, self.is_unchanged());
        let sql = format!(
            "WITH unchanged AS MATERIALIZED (SELECT a.id FROM {table} v JOIN {answers} ON {is_unchanged}),
             free AS MATERIALIZED (
                 SELECT v.{id} AS id FROM {table} v WHERE v.{id} IN (SELECT id FROM unchanged)
                 FOR NO KEY UPDATE OF v SKIP LOCKED
             )
             SELECT CAST(id AS text) AS row_id FROM unchanged WHERE id NOT IN (SELECT id FROM free)",
            id = self.table.id,
        );
        let rows = transaction.fetch_all(sql, args).await?;
        rows.iter().map(|row| row.get("row_id")).collect()
    }

    /// The answers as a table `a`.
    fn answers(&self, args: &mut Args, transitions: &[&Transition]) -> String {
        let answers = Columns::of(transitions)
            .key("id", &self.table.id_type, |t| Some(t.row.as_str()))
            .text("provider_id", |t| Some(t.provider_id.as_str()))
            .boolean("completes", |t| t.target.completes())
            .text("preview", |t| t.target.preview_url());
        args.rows("a", answers)
    }

    /// The condition under which an answer still applies to its row.
    fn is_unchanged(&self) -> String {
        let (table, id) = (&self.table, &self.table.id);
        // On SQLite, the sign keeps it from going through all voices in processing by the index on their status,
        // and through all answers for each: <https://www.sqlite.org/optoverview.html#uplus>.
        let sign = match self.dialect() {
            Dialect::Postgres => "",
            Dialect::Sqlite => "+",
        };
        format!(
            "v.{id} = a.id AND {sign}{} AND {} = a.provider_id",
            table.is_processing(),
            table.provider_key
        )
    }

    /// The only statement of a pass that writes to the application's table.
    fn update(&self, transitions: &[&Transition]) -> (String, Args) {
        let table = &self.table;
        let mut args = self.database.args();
        let answers = self.answers(&mut args, transitions);
        let preview = table.preview_url.iter().map(|column| {
            format!(", {column} = CASE WHEN a.completes THEN COALESCE(a.preview, v.{column}) ELSE v.{column} END")
        });
        let moment = table.completed_at.iter().map(|column| {
            let now = &table.completed_now;
            format!(", {column} = CASE WHEN a.completes THEN {now} ELSE v.{column} END")
        });
        let others: String = preview.chain(moment).collect();
        let sql = format!(
            "UPDATE {name} AS v
             SET {status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END {others}
             FROM {answers}
             WHERE {is_unchanged}
             RETURNING {returned}",
            name = table.table,
            returned = table.returned,
            status = table.status,
            completed = table.completed,
            failed = table.failed,
            is_unchanged = self.is_unchanged(),
        );
        (sql, args)
    }

    /// Lets the database plan the update of a bulk. This fails if the database would refuse the update for any row.
    pub(crate) async fn explain_update(&self) -> Result<(), StoreError> {
        let (sql, args) = self.update(&[]);
        self.database
            .fetch_all(format!("EXPLAIN {sql}"), args)
            .await
            .map(drop)
    }

    /// Records the events of these transitions as one batch.
    async fn record(
        &self,
        transaction: &mut Transaction<'_>,
        run_id: Uuid,
        moved: &[Moved<'_>],
        record: Record,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let batch_id = Uuid::new_v4();
        let mut events: Vec<_> = moved.iter().map(|moved| self.event(moved)).collect();
        let mut args = self.database.args();
        let batch = args.bind(batch_id);
        let rows = Columns::of(&events)
            .id("event_id", |event| event.event_id)
            .text("event_type", |event| Some(event.event_type.as_str()))
            .text("voice_id", |event| Some(event.voice_id.as_str()))
            .text("user_id", |event| event.user_id.as_deref());
        let rows = args.rows("e", rows);
        let sql = format!(
            "INSERT INTO {outbox} (batch_id, event_id, event_type, voice_id, user_id, run_id, occurred_at,
                                   published_at)
             SELECT {batch}, event_id, event_type, voice_id, user_id, NULL, NULL, {now} FROM {rows}
             RETURNING id",
            outbox = self.dialect().own("outbox"),
            now = self.dialect().now(),
        );
        // Both databases return and number rows in the order in which they were inserted.
        let rows = transaction.fetch_all(sql, args).await?;
        for (event, row) in events.iter_mut().zip(&rows) {
            event.id = row.get("id")?;
        }
        events.sort_unstable_by_key(|event| event.id);
        let [first, last] = [events.first(), events.last()].map(|event| event.map_or(0, |e| e.id));
        let mut args = self.database.args();
        let values = [
            args.bind(batch_id),
            args.bind(run_id),
            args.bind(first),
            args.bind(last),
            args.bind(events.len()),
        ];
        let now = self.dialect().now();
        let leased_until = match record {
            // The batch counts as tried just now.
            Record::Nothing | Record::ForAnyone => now.to_owned(),
            Record::ForMe => format!("{now} + {}", self.dialect().span(OUTBOX_LEASE)),
        };
        let sql = format!(
            "INSERT INTO {batches} (batch_id, run_id, first_id, last_id, events, recorded_at, leased_until)
             VALUES ({values}, {now}, {leased_until}) RETURNING recorded_at",
            batches = self.dialect().own("batches"),
            values = values.join(", "),
        );
        let recorded_at: DateTime<Utc> =
            transaction.fetch_one(sql, args).await?.get("recorded_at")?;
        for event in &mut events {
            event.batch = BatchId(batch_id);
            event.occurred_at = recorded_at;
        }
        Ok(events)
    }

    fn event(
        &self,
        Moved {
            transition,
            user_id,
        }: &Moved<'_>,
    ) -> OutboxEvent {
        let table = &self.table;
        OutboxEvent {
            id: 0,
            batch: BatchId(Uuid::nil()),
            event_id: transition.event_id(),
            event_type: transition.target.event_type(),
            voice_id: table.id_form.read(transition.row.as_str()),
            user_id: user_id.as_deref().map(|user| table.user_id_form.read(user)),
            occurred_at: DateTime::default(),
        }
    }

    /// Stores values for which the application's table has no columns.
    async fn keep_completions(
        &self,
        transaction: &mut Transaction<'_>,
        moved: &[Moved<'_>],
    ) -> Result<(), StoreError> {
        let completed: Vec<_> = completed(moved).collect();
        if completed.is_empty() || !self.table.keeps_completions() {
            return Ok(());
        }
        let mut args = self.database.args();
        let rows = Columns::of(&completed)
            .text("row_id", |t| Some(t.row.as_str()))
            .text("provider_id", |t| Some(t.provider_id.as_str()))
            .text("preview_url", |t| t.target.preview_url());
        let rows = args.rows("c", rows);
        let sql = format!(
            "INSERT INTO {completions} (row_id, provider_id, preview_url, completed_at)
             SELECT row_id, provider_id, preview_url, {now} FROM {rows} WHERE TRUE
             ON CONFLICT (row_id) DO UPDATE
             SET provider_id = EXCLUDED.provider_id, preview_url = EXCLUDED.preview_url,
                 completed_at = EXCLUDED.completed_at",
            completions = self.dialect().own("completions"),
            now = self.dialect().now(),
        );
        transaction.execute(sql, args).await.map(drop)
    }

    async fn forget_completed(
        &self,
        transaction: &mut Transaction<'_>,
        moved: &[Moved<'_>],
    ) -> Result<(), StoreError> {
        let rows: Vec<_> = completed(moved).map(|t| t.row.as_str()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut args = self.database.args();
        let sql = format!(
            "DELETE FROM {} WHERE row_id {}",
            self.dialect().own("voices"),
            args.is_any("text", rows)
        );
        transaction.execute(sql, args).await.map(drop)
    }

    /// Stores why voices failed.
    async fn note_failures(
        &self,
        transaction: &mut Transaction<'_>,
        run_id: Uuid,
        moved: &[Moved<'_>],
    ) -> Result<(), StoreError> {
        let failed: Vec<_> = moved
            .iter()
            .filter_map(|Moved { transition, .. }| match &transition.target {
                Target::Failed { reason } => Some((*transition, reason.as_str())),
                Target::Completed { .. } => None,
            })
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let mut args = self.database.args();
        let run_id = args.bind(run_id);
        let rows = Columns::of(&failed)
            .text("row_id", |(transition, _)| Some(transition.row.as_str()))
            .text("provider_id", |(transition, _)| {
                Some(transition.provider_id.as_str())
            })
            .text("failure", |(_, reason)| Some(reason));
        let rows = args.rows("f", rows);
        let now = self.dialect().now();
        // The count of lookups that found it missing matters for the mass-absence guard, if it is about the same
        // clone.
        let sql = format!(
            "INSERT INTO {voices} AS w (row_id, provider_id, run_id, first_seen, last_asked, failed_at, failure)
             SELECT row_id, provider_id, {run_id}, {now}, {now}, {now}, failure FROM {rows} WHERE TRUE
             ON CONFLICT (row_id) DO UPDATE
             SET provider_id = EXCLUDED.provider_id, run_id = EXCLUDED.run_id,
                 last_asked = EXCLUDED.last_asked, failed_at = EXCLUDED.failed_at, failure = EXCLUDED.failure,
                 missing_count = CASE WHEN w.provider_id = EXCLUDED.provider_id THEN w.missing_count ELSE 0 END",
            voices = self.dialect().own("voices"),
        );
        transaction.execute(sql, args).await.map(drop)
    }
}

fn completed<'a>(moved: &[Moved<'a>]) -> impl Iterator<Item = &'a Transition> {
    let transitions = moved.iter().map(|moved| moved.transition);
    transitions.filter(|transition| transition.target.completes())
}

/// The transitions that were made. A row that appears twice changes once, by the answer about the id that it has.
fn moved<'a>(rows: &[Row], transitions: &[&'a Transition]) -> Result<Vec<Moved<'a>>, StoreError> {
    let mut users = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: (String, String) = (row.get("row_id")?, row.get("provider_id")?);
        users.insert(id.0, (id.1, row.get_optional("user_id")?));
    }
    let moved = transitions.iter().filter_map(|transition| {
        let (provider_id, _) = users.get(transition.row.as_str())?;
        let is_about_it = provider_id == transition.provider_id.as_str();
        if !is_about_it {
            return None;
        }
        let (_, user_id) = users.remove(transition.row.as_str())?;
        Some(Moved {
            transition,
            user_id,
        })
    });
    Ok(moved.collect())
}
