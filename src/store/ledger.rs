//! The ledger: passes, what they leave for the next one, and what is removed after some time.

use std::collections::HashSet;
use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use super::args::{Args, Column};
use super::database::Transaction;
use super::outbox::PUBLISHED_AT;
use super::provider_state::{state, state_columns};
use super::survey::LedgerEntry;
use super::values::{CommandRun, NextPass, PriorState, Run};
use super::{DAY, KEPT, NEWEST_RUNS, RUNS_KEPT, Store, StoreError, UNLISTED};
use crate::core::provider_state::{RETRY_WINDOW, Spent};
use crate::core::voice::Position;

/// Notes about voices that are no longer in processing are deleted after this time.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

impl Store {
    pub(super) async fn load_state_once(&self, account: Uuid) -> Result<PriorState, StoreError> {
        if !self.has_own_tables() {
            return Ok(PriorState::default());
        }
        let dialect = self.dialect();
        let now = dialect.now();
        let mut args = self.database.args();
        let account = args.bind(account);
        let unlisted = dialect.is_ahead(&dialect.stored_moment("u.value"), UNLISTED);
        let sql = format!(
            "SELECT (SELECT resume_after FROM {cursors} WHERE table_name = {table}) AS resume_after,
                    (SELECT {kinds} FROM {members} u WHERE {unlisted}) AS unlisted,
                    p.mass_absence_since IS NOT NULL AS mass_absence,
                    EXISTS (SELECT 1 FROM {voices} w
                            WHERE w.isolated AND w.failed_at IS NULL AND NOT {is_quarantined}) AS any_isolated,
                    COALESCE(p.found_at > {now} - {day}, FALSE) AS key_works,
                    s.requests, s.retries, {state_columns}
             FROM (SELECT {requests} AS requests, {retries} AS retries
                   FROM (SELECT * FROM {runs} ORDER BY id DESC LIMIT {newest}) r
                   WHERE r.account = {account} AND r.finished_at > {now} - {window}) s
             LEFT JOIN {provider} p ON p.account = {account}",
            cursors = dialect.own("cursors"),
            table = args.bind(self.table.table.as_str()),
            kinds = dialect.json_texts("u.key"),
            members = dialect.members("p.unlisted"),
            voices = dialect.own("voices"),
            is_quarantined = self.table.is_quarantined(),
            day = dialect.span(DAY),
            state_columns = state_columns(dialect),
            requests = sum_of("requests"),
            retries = sum_of("retries"),
            runs = dialect.own("runs"),
            newest = args.limit(NEWEST_RUNS),
            window = dialect.span(RETRY_WINDOW),
            provider = dialect.own("provider"),
        );
        let row = self.database.fetch_one(sql, args).await?;
        let resume_after: Option<String> = row.get_optional("resume_after")?;
        Ok(PriorState {
            resume_after: resume_after
                .filter(|position| self.table.could_be_position(position))
                .map(Position::new),
            unlisted: texts(&row.get::<String>("unlisted")?).into_iter().collect(),
            any_isolated: row.get("any_isolated")?,
            mass_absence: row.get("mass_absence")?,
            key_works: row.get("key_works")?,
            provider: state(&row)?,
            spent: Spent::counted(row.get("requests")?, row.get("retries")?),
        })
    }

    pub(super) async fn record_run_once(&self, run: &Run) -> Result<(), StoreError> {
        let mut transaction = self.database.begin().await?;
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let mut args = self.database.args();
        let values = [
            args.bind(run.run_id),
            args.bind(run.account),
            args.bind(run.command),
            args.bind(run.started_at),
            args.bind(milliseconds(run.duration)),
            args.bind(i64::from(run.exit_code)),
            args.bind(run.found),
            dialect.json(&args.bind(run.counts.to_string())),
            dialect.json(&args.bind(run.completion_times().map(|times| times.to_string()))),
            dialect.json(
                &args.bind(
                    run.completion_times_by_kind()
                        .map(|times| times.to_string()),
                ),
            ),
        ];
        let sql = format!(
            "INSERT INTO {runs} (run_id, account, command, started_at, duration_ms, exit_code, found, counts,
                                 completion_times, completion_times_by_kind, finished_at)
             VALUES ({values}, {now}) ON CONFLICT (run_id) DO NOTHING",
            runs = dialect.own("runs"),
            values = values.join(", "),
        );
        let entered = transaction.execute(sql, args).await?;
        // An entry that is repeated after a lost reply has already used the budget.
        if let Some(account) = run.account.filter(|_| entered > 0) {
            self.learn(&mut transaction, account, run).await?;
        }
        self.move_cursor(&mut transaction, &run.cursor).await?;
        let mut args = self.database.args();
        let leases = format!(
            "DELETE FROM {} WHERE run_id = {}",
            dialect.own("leases"),
            args.bind(run.run_id)
        );
        transaction.execute(leases, args).await?;
        transaction.commit().await
    }

    /// Stores what a pass learned about the provider.
    async fn learn(
        &self,
        transaction: &mut Transaction<'_>,
        account: Uuid,
        run: &Run,
    ) -> Result<(), StoreError> {
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let mut args = self.database.args();
        let (account, concurrency) = (args.bind(account), args.bind(run.concurrency));
        let kinds = run.unlisted.iter().map(|kind| {
            let until = format!("{now} + {}", dialect.span(UNLISTED));
            format!("{}, {until}", dialect.text(&args.bind(kind.as_str())))
        });
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let found_at = if run.found > 0 { now } else { "NULL" };
        let next = run
            .spending
            .map(|spending| self.next_request_at(&mut args, run.duration, spending.taken));
        let (first, again) = next.map_or(
            ("NULL".to_owned(), "p.next_request_at".to_owned()),
            |next| (next.first, next.again),
        );
        let sql = format!(
            "INSERT INTO {provider} AS p (account, unlisted, found_at, concurrency, next_request_at, request_spacing,
                                          voices_a_request)
             VALUES ({account}, {object}, {found_at}, {concurrency}, {first}, {spacing}, {voices_a_request})
             ON CONFLICT (account) DO UPDATE
             SET unlisted = {merged}, found_at = COALESCE(EXCLUDED.found_at, p.found_at),
                 concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency), next_request_at = {again},
                 request_spacing = COALESCE(EXCLUDED.request_spacing, p.request_spacing),
                 voices_a_request = COALESCE(EXCLUDED.voices_a_request, p.voices_a_request)",
            spacing = args.bind(run.spending.map(|spending| spending.budget.spacing().as_secs_f64())),
            voices_a_request = args.bind(run.spending.map(|spending| spending.voices_a_request as i64)),
            provider = dialect.own("provider"),
            object = dialect.json_object(&kinds),
            merged = dialect.json_merged("p.unlisted", "EXCLUDED.unlisted"),
        );
        transaction.execute(sql, args).await.map(drop)
    }

    async fn move_cursor(
        &self,
        transaction: &mut Transaction<'_>,
        next: &NextPass,
    ) -> Result<(), StoreError> {
        let cursors = self.dialect().own("cursors");
        let mut args = self.database.args();
        let table = args.bind(self.table.table.as_str());
        let sql = match next {
            NextPass::AsBefore => return Ok(()),
            NextPass::FromTheBeginning => {
                format!("DELETE FROM {cursors} WHERE table_name = {table}")
            }
            NextPass::After(position) => format!(
                "INSERT INTO {cursors} (table_name, resume_after) VALUES ({table}, {})
                 ON CONFLICT (table_name) DO UPDATE SET resume_after = EXCLUDED.resume_after",
                args.bind(position.as_str())
            ),
        };
        transaction.execute(sql, args).await.map(drop)
    }

    /// Writes a command to the ledger, in the transaction of its change, or adds to its entry. Returns the entry's
    /// total of this count, which includes earlier attempts whose reply was lost.
    pub(super) async fn enter_command(
        &self,
        transaction: &mut Transaction<'_>,
        run: &CommandRun,
        count: &str,
        number: u64,
    ) -> Result<u64, StoreError> {
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let runs = dialect.own("runs");
        if number > 0 {
            let mut args = self.database.args();
            let number = args.bind(number);
            let before = format!("COALESCE(CAST(r.counts ->> '{count}' AS bigint), 0)");
            let sql = format!(
                "INSERT INTO {runs} AS r (run_id, command, started_at, finished_at, duration_ms, exit_code, found,
                                          counts)
                 VALUES ({run_id}, {command}, {started_at}, {now}, {duration_ms}, 0, 0, {object})
                 ON CONFLICT (run_id) DO UPDATE
                 SET finished_at = EXCLUDED.finished_at, duration_ms = EXCLUDED.duration_ms, counts = {merged}",
                run_id = args.bind(run.run_id),
                command = args.bind(run.command),
                started_at = args.bind(run.started_at),
                duration_ms = args.bind((Utc::now() - run.started_at).num_milliseconds().max(0)),
                object = dialect.json_object(&format!("'{count}', {number}")),
                merged = dialect.json_merged(
                    "r.counts",
                    &dialect.json_object(&format!("'{count}', {before} + {number}"))
                ),
            );
            transaction.execute(sql, args).await?;
        }
        let mut args = self.database.args();
        let sql = format!(
            "SELECT COALESCE(max(CAST(counts ->> '{count}' AS bigint)), 0) AS total FROM {runs}
             WHERE run_id = {}",
            args.bind(run.run_id)
        );
        transaction.fetch_one(sql, args).await?.count("total")
    }

    pub(super) async fn runs_once(&self, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        if !self.has_own_tables() {
            return Ok(Vec::new());
        }
        let mut args = self.database.args();
        let sql = format!(
            "SELECT run_id, command, started_at, finished_at, duration_ms, exit_code, counts
             FROM {} ORDER BY id DESC LIMIT {}",
            self.dialect().own("runs"),
            args.limit(limit)
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let entries = rows.iter().map(|row| {
            Ok(LedgerEntry {
                run_id: row.get("run_id")?,
                command: row.get_optional("command")?,
                started_at: row.get("started_at")?,
                finished_at: row.get("finished_at")?,
                duration: Duration::from_millis(row.count("duration_ms")?),
                exit_code: u8::try_from(row.count("exit_code")?).unwrap_or(u8::MAX),
                counts: row.get("counts")?,
            })
        });
        entries.collect()
    }

    pub(super) async fn tidy_once(&self, at_once: u32) -> Result<u64, StoreError> {
        let mut transaction = self
            .database
            .begin_with("SET LOCAL synchronous_commit = off")
            .await?;
        let mut removed = 0;
        let forget_events = self.events_sql(&mut transaction, at_once).await?;
        for (sql, args) in forget_events
            .into_iter()
            .chain([self.runs_sql(at_once), self.left_behind_sql(at_once)])
        {
            removed += transaction.execute(sql, args).await?;
        }
        // This comes last: a claim that wants to delete the same leases waits for the commit, and all other claims
        // wait for it.
        self.end_expired_leases(&mut transaction).await?;
        transaction.commit().await?;
        Ok(removed)
    }

    /// Removes published events and their batches, oldest first. It needs no scan, whatever the size.
    async fn events_sql(
        &self,
        transaction: &mut Transaction<'_>,
        at_once: u32,
    ) -> Result<Vec<(String, Args)>, StoreError> {
        let dialect = self.dialect();
        let [outbox, batches] = ["outbox", "batches"].map(|table| dialect.own(table));
        let old = format!("{} - {}", dialect.now(), dialect.span(KEPT));
        let mut args = self.database.args();
        let oldest = format!(
            "SELECT o.id, o.batch_id FROM (SELECT * FROM {outbox} ORDER BY id LIMIT {}) o
             LEFT JOIN {batches} b ON b.batch_id = o.batch_id
             WHERE {PUBLISHED_AT} < {old}",
            args.limit(at_once)
        );
        let rows = transaction.fetch_all(oldest, args).await?;
        let mut ids = Vec::with_capacity(rows.len());
        let mut of = HashSet::new();
        for row in &rows {
            ids.push(row.get("id")?);
            of.extend(row.get_optional::<Uuid>("batch_id")?);
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = self.database.args();
        let events = format!(
            "DELETE FROM {outbox} WHERE id {}",
            args.is_one_of(Column::Integer(ids))
        );
        let mut of_batches = self.database.args();
        let empty = format!(
            "DELETE FROM {batches} WHERE published_at < {old} AND batch_id {}
               AND NOT EXISTS (SELECT 1 FROM {outbox} o
                               WHERE o.id BETWEEN first_id AND last_id AND o.batch_id = {batches}.batch_id)",
            of_batches.is_one_of(Column::Id(of.into_iter().collect()))
        );
        Ok(vec![(events, args), (empty, of_batches)])
    }

    fn runs_sql(&self, at_once: u32) -> (String, Args) {
        let (dialect, runs) = (self.dialect(), self.dialect().own("runs"));
        let mut args = self.database.args();
        let sql = format!(
            "DELETE FROM {runs} WHERE id IN (
                 SELECT id FROM (SELECT id, finished_at FROM {runs} ORDER BY id LIMIT {}) r
                 WHERE finished_at < {} - {}
                    OR id <= (SELECT max(id) FROM {runs}) - {RUNS_KEPT})",
            args.limit(at_once),
            dialect.now(),
            dialect.span(KEPT),
        );
        (sql, args)
    }

    /// Deletes notes about voices whose rows are gone, or were finished by another process.
    fn left_behind_sql(&self, at_once: u32) -> (String, Args) {
        let (dialect, table, now) = (self.dialect(), &self.table, self.dialect().now());
        let voices = dialect.own("voices");
        let mut args = self.database.args();
        let sql = format!(
            "DELETE FROM {voices} WHERE row_id IN (
                 SELECT w.row_id FROM {voices} w
                 WHERE COALESCE(w.failed_at, w.last_asked, w.first_seen)
                       < CASE WHEN w.failed_at IS NULL THEN {now} - {forgotten} ELSE {now} - {kept} END
                   AND NOT EXISTS (SELECT 1 FROM {name} v
                                   WHERE {is_row}
                                     AND v.{status} = CASE WHEN w.failed_at IS NULL THEN {processing}
                                                           ELSE {failed} END)
                 LIMIT {most} {skip_locked})",
            forgotten = dialect.span(FORGOTTEN),
            kept = dialect.span(KEPT),
            name = table.table,
            is_row = table.is_row_of_own(),
            status = table.status,
            processing = table.processing,
            failed = table.failed,
            most = args.limit(at_once),
            skip_locked = dialect.skip_locked(),
        );
        (sql, args)
    }
}

/// The sum of a count over entries.
pub(super) fn sum_of(count: &str) -> String {
    format!("CAST(COALESCE(sum(CAST(counts ->> '{count}' AS bigint)), 0) AS bigint)")
}

/// The texts of a JSON array.
pub(super) fn texts(array: &str) -> Vec<String> {
    serde_json::from_str(array).unwrap_or_default()
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Run {
    /// If none completed, nothing is stored.
    fn completion_times(&self) -> Option<Value> {
        let any = self.completion_times.count() > 0;
        any.then(|| json!(self.completion_times))
    }

    fn completion_times_by_kind(&self) -> Option<Value> {
        let times = &self.completion_times_by_kind;
        (!times.is_empty()).then(|| json!(times))
    }
}
