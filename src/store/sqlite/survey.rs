//! What operators are shown.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::claim::{age, lossy, timestamp, witnessed};
use super::{NOW, SqliteStore, elapsed, is_ahead, milliseconds, milliseconds_until};
use crate::backlog::{BAND_ENDS, Backlog, BacklogKind};
use crate::breaker;
use crate::retry;
use crate::sketch::Sketch;
use crate::standing::Standing;
use crate::store::survey::{
    Account, EventFilter, EventRecord, FailingBus, LedgerEntry, Notes, RowState, Survey,
    VoiceRecord, Wanted, forms,
};
use crate::store::{LONGEST_BUS_PAUSE, NEWEST_RUNS, SET_ASIDE, StoreError, UNLISTED};
use crate::verdict::AgeFrom;
use crate::voice::RowId;

/// Which events, by the JSON object `$1`: see [`EventFilter`].
pub(super) fn wanted_events() -> String {
    format!(
        "(($1 ->> 'published') IS NULL OR (published_at IS NOT NULL) = ($1 ->> 'published'))
         AND (json_array_length($1, '$.names') = 0
              OR event_id IN (SELECT value FROM json_each($1, '$.names'))
              OR voice_id IN (SELECT value FROM json_each($1, '$.names')))
         AND occurred_at <= {NOW} - ($1 ->> 'older_than')
         AND (($1 ->> 'since') IS NULL OR occurred_at >= {NOW} - ($1 ->> 'since'))"
    )
}

/// The parameter of [`wanted_events`].
pub(super) fn event_parameter(filter: &EventFilter) -> String {
    let span = |span| milliseconds(EventFilter::bounded(span));
    json!({"published": filter.published, "names": filter.all_names(),
           "older_than": span(filter.older_than), "since": filter.since.map(span)})
    .to_string()
}

/// A stored time in milliseconds since 1970, if SQLite can read it.
fn moment(text: &str) -> String {
    format!(
        "CASE WHEN {text} GLOB '[0-9]*' AND {text} NOT GLOB '*[^0-9]*'
              THEN CAST({text} AS INTEGER) * CASE WHEN length({text}) > 11 THEN 1 ELSE 1000 END
              ELSE CAST(unixepoch({text}, 'subsec') * 1000 AS INTEGER) END"
    )
}

/// The later of two times; where there is one only, that one.
fn later(one: &str, other: &str) -> String {
    format!("max(COALESCE({one}, {other}), COALESCE({other}, {one}))")
}

impl SqliteStore {
    /// The voices in processing, with their ages in milliseconds, as `p`.
    fn backlog_sql(&self) -> String {
        let Self {
            table,
            id,
            provider_id,
            status,
            created_at,
            completed_before,
            processing,
            ..
        } = self;
        let (known, adopted) = (self.known(), self.adopted());
        let is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE);
        let (created, completed) = (moment(created_at), moment(completed_before));
        let made = later("created", "completed");
        let since = later("made", "restarted_at");
        let seen = later("first_seen", "restarted_at");
        format!(
            "WITH joined AS (
                 SELECT CAST(v.{id} AS TEXT) AS row_id,
                        max({created}, COALESCE({adopted}, 0)) AS created, {completed} AS completed,
                        w.row_id IS NOT NULL AND (w.provider_id IS NOT CAST(v.{provider_id} AS TEXT)
                                                  OR w.failed_at IS NOT NULL) AS restarts,
                        w.first_seen, w.restarted_at, w.last_asked, w.kind, w.stage, w.missing_count,
                        {is_set_aside}
                            AND w.provider_id IS CAST(v.{provider_id} AS TEXT) AS is_set_aside,
                        w.unanswered
                 FROM {table} v LEFT JOIN {known} w ON w.row_id = CAST(v.{id} AS TEXT)
                 WHERE v.{status} = {processing} AND v.{id} IS NOT NULL
             ),
             past AS (
                 SELECT row_id, restarts, first_seen, restarted_at, last_asked, kind, stage, missing_count, is_set_aside, unanswered,
                        CASE WHEN created <= {NOW} THEN created END AS created,
                        CASE WHEN completed <= {NOW} THEN completed END AS completed
                 FROM joined
             ),
             made AS (SELECT *, {made} AS made FROM past),
             p AS (
                 SELECT *, CASE WHEN restarts THEN 0
                           ELSE max(0, {NOW} - COALESCE({since}, first_seen, {NOW})) END AS age,
                        CASE WHEN restarts THEN 0
                             ELSE max(0, {NOW} - COALESCE({seen}, {NOW})) END AS witnessed
                 FROM made
             )"
        )
    }

    pub(in crate::store) async fn survey(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
        runs: u32,
    ) -> Result<Survey, StoreError> {
        let backlog = self.backlog_sql();
        let groups = format!(
            "{backlog}
             SELECT CASE WHEN is_set_aside THEN 'set_aside'
                         WHEN NOT restarts AND unanswered > 0 THEN 'unanswerable'
                         WHEN NOT restarts AND missing_count > 0 THEN 'missing'
                         WHEN NOT restarts AND kind = 'professional' AND stage <> 'preparing' THEN stage
                         WHEN iif($3 AND completed IS NULL, age, witnessed) > $2 THEN 'overdue'
                         WHEN NOT restarts AND stage IN ('training', 'waiting_for_owner') THEN stage
                         ELSE 'young' END AS kind,
                    (SELECT count(*) FROM json_each($1) e WHERE e.value <= age) AS band,
                    count(*) AS voices, max(age) AS oldest,
                    max(min(age, COALESCE({NOW} - last_asked, age))) AS unasked
             FROM p GROUP BY 1, 2"
        );
        let first = format!("{backlog} SELECT row_id FROM p ORDER BY age DESC, row_id LIMIT $1");
        let present = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")));
        let present = present.fetch_one(&self.pool).await?;
        let mut survey = Survey {
            read_at: DateTime::from_timestamp_millis(present).unwrap_or_default(),
            has_own_tables: self.own_tables,
            ..Survey::default()
        };
        let rows = sqlx::query(AssertSqlSafe(groups))
            .bind(json!(BAND_ENDS.map(milliseconds)).to_string())
            .bind(fail_after.map(milliseconds))
            .bind(age_from == AgeFrom::Created)
            .fetch_all(&self.pool)
            .await?;
        survey.backlog = counted(&rows)?;
        let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(first))
            .bind(oldest)
            .fetch_all(&self.pool)
            .await?;
        if self.own_tables {
            self.read_own(&mut survey).await?;
        }
        survey.oldest = self.records(&Wanted::Rows(ids), oldest).await?;
        survey
            .oldest
            .sort_by_key(|record| std::cmp::Reverse(record.age));
        survey.runs = self.runs(runs).await?;
        Ok(survey)
    }

    async fn read_own(&self, survey: &mut Survey) -> Result<(), StoreError> {
        let outbox = format!(
            "SELECT count(*), {NOW} - min(occurred_at) FROM voice_sync_outbox WHERE published_at IS NULL"
        );
        const TIMES: &str = "
            SELECT CAST(t.key AS INTEGER) AS bucket, sum(t.value) AS voices
            FROM voice_sync_runs r, json_each(r.completion_times) t GROUP BY 1";
        let accounts = format!(
            "SELECT p.account, p.opened, p.concurrency, p.found_at, p.mass_absence_since,
                    {} AS open_for, {} AS hold_for,
                    (SELECT json_group_array(u.key) FROM json_each(p.unlisted) u WHERE {}) AS unlisted
             FROM voice_sync_provider p
             WHERE p.account = (SELECT account FROM (SELECT * FROM voice_sync_runs ORDER BY id DESC LIMIT $1)
                                WHERE account IS NOT NULL ORDER BY id DESC LIMIT 1)",
            milliseconds_until("p.open_until", breaker::LONGEST_PAUSE),
            milliseconds_until("p.hold_until", retry::LONGEST_TOLD),
            is_ahead("u.value", UNLISTED)
        );
        let buses = format!(
            "SELECT failures, {} AS left_alone FROM voice_sync_buses
             WHERE retry_at > {NOW} - 3600000 ORDER BY retry_at",
            milliseconds_until("retry_at", LONGEST_BUS_PAUSE)
        );
        let row = sqlx::query(AssertSqlSafe(outbox))
            .fetch_one(&self.pool)
            .await?;
        survey.pending_events = row.try_get::<i64, _>(0)?.unsigned_abs();
        survey.oldest_event = row.try_get::<Option<i64>, _>(1)?.map(elapsed);
        let mut times = Sketch::default();
        for row in sqlx::query(TIMES).fetch_all(&self.pool).await? {
            times.add_to_bucket(
                row.try_get("bucket")?,
                row.try_get::<i64, _>("voices")?.unsigned_abs(),
            );
        }
        survey.completion_times = times;
        let rows = sqlx::query(AssertSqlSafe(accounts)).bind(NEWEST_RUNS);
        for row in rows.fetch_all(&self.pool).await? {
            let unlisted: String = row.try_get("unlisted")?;
            survey.accounts.push(Account {
                account: id(&row, "account")?,
                standing: Standing {
                    opened: row.try_get("opened")?,
                    open_for: elapsed(row.try_get("open_for")?),
                    hold_for: elapsed(row.try_get("hold_for")?),
                    concurrency: row.try_get("concurrency")?,
                },
                found_at: time(&row, "found_at")?,
                unlisted: serde_json::from_str(&unlisted).unwrap_or_default(),
                mass_absence_since: time(&row, "mass_absence_since")?,
            });
        }
        for row in sqlx::query(AssertSqlSafe(buses))
            .fetch_all(&self.pool)
            .await?
        {
            survey.failing_buses.push(FailingBus {
                failures: row.try_get("failures")?,
                left_alone_for: elapsed(row.try_get("left_alone")?),
            });
        }
        Ok(())
    }

    pub(in crate::store) async fn records(
        &self,
        wanted: &Wanted,
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        let Self {
            table,
            id,
            user_id,
            provider_id,
            status,
            preview_url,
            created_at,
            completed_before,
            processing,
            completed,
            failed,
            ..
        } = self;
        let preview = match (preview_url, self.own_tables) {
            (Some(column), _) => format!("CAST(v.{column} AS TEXT)"),
            (None, true) => format!(
                "(SELECT c.preview_url FROM voice_sync_completions c WHERE c.row_id = CAST(v.{id} AS TEXT))"
            ),
            (None, false) => "NULL".to_owned(),
        };
        let (condition, keys, after) = match wanted {
            Wanted::Rows(rows) => (
                format!("v.{id} IN (SELECT value FROM json_each($1))"),
                rows.iter().flat_map(|row| forms(row)).collect(),
                None,
            ),
            Wanted::ProviderIds(ids) => (
                format!("v.{provider_id} IN (SELECT value FROM json_each($1))"),
                ids.clone(),
                None,
            ),
            Wanted::Failed(row) => (format!("v.{status} = {failed}"), Vec::new(), row.as_ref()),
            Wanted::SetAside(row) => (
                format!(
                    "v.{status} = {processing} AND {}
                     AND w.provider_id IS CAST(v.{provider_id} AS TEXT)",
                    is_ahead("w.set_aside_until", SET_ASIDE)
                ),
                Vec::new(),
                row.as_ref(),
            ),
        };
        let after_it = after
            .map(|_| format!("AND v.{id} > ($2 ->> 0)"))
            .unwrap_or_default();
        let (known, adopted) = (self.known(), self.adopted());
        let sql = format!(
            "SELECT CAST(v.{id} AS TEXT) AS row_id, {user_id} AS user_id,
                    CAST(v.{provider_id} AS TEXT) AS row_provider_id, CAST(v.{status} AS TEXT) AS status,
                    CASE v.{status} WHEN {processing} THEN 'processing' WHEN {completed} THEN 'completed'
                                    WHEN {failed} THEN 'failed' ELSE 'other' END AS state,
                    {preview} AS preview_url, {created_at} AS created_at, {adopted} AS adopted_at,
                    {completed_before} AS completed_before, {NOW} AS present,
                    w.row_id IS NOT NULL AS known,
                    w.row_id IS NOT NULL AND (w.provider_id IS NOT CAST(v.{provider_id} AS TEXT)
                                              OR w.failed_at IS NOT NULL) AS restarts,
                    w.provider_id, w.first_seen, w.restarted_at, w.last_asked, w.next_due, w.lease_until,
                    w.run_id, w.kind, w.stage, w.missing_count, w.missing_since, w.strikes,
                    w.set_aside_until, w.trouble, w.failed_at, w.failure, w.unanswered, w.unanswered_since
             FROM {table} v LEFT JOIN {known} w ON w.row_id = CAST(v.{id} AS TEXT)
             WHERE {condition} AND v.{id} IS NOT NULL {after_it} ORDER BY v.{id} LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(json!(keys).to_string())
            .bind(json!([after.map(RowId::as_str)]).to_string())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let records = rows.iter().map(|row| self.record(row));
        Ok(records.collect::<Result<_, _>>()?)
    }

    fn record(&self, row: &SqliteRow) -> Result<VoiceRecord, sqlx::Error> {
        let row_id: String = row.try_get("row_id")?;
        let state = RowState::parse(row.try_get("state")?);
        let written = |column| {
            let text: Option<String> = row.try_get(column)?;
            Ok::<_, sqlx::Error>(text.as_deref().and_then(timestamp))
        };
        let in_processing = state == RowState::Processing;
        let user: Option<String> = row.try_get("user_id")?;
        let notes = match row.try_get("known")? {
            false => None,
            true => Some(Notes {
                provider_id: row.try_get("provider_id")?,
                first_seen: time(row, "first_seen")?.unwrap_or_default(),
                restarted_at: time(row, "restarted_at")?,
                last_asked: time(row, "last_asked")?,
                next_due: time(row, "next_due")?,
                lease_until: time(row, "lease_until")?,
                run_id: id(row, "run_id")?,
                kind: row.try_get("kind")?,
                stage: row.try_get("stage")?,
                missing_count: row.try_get("missing_count")?,
                missing_since: time(row, "missing_since")?,
                strikes: row.try_get("strikes")?,
                set_aside_until: time(row, "set_aside_until")?,
                trouble: row.try_get("trouble")?,
                failed_at: time(row, "failed_at")?,
                failure: row.try_get("failure")?,
                unanswered: row.try_get("unanswered")?,
                unanswered_since: time(row, "unanswered_since")?,
            }),
        };
        Ok(VoiceRecord {
            voice_id: self.id_form.read(&row_id),
            row: RowId::new(row_id),
            user_id: user.map(|user| self.user_id_form.read(&user)),
            provider_id: lossy(row, "row_provider_id")?,
            status: lossy(row, "status")?.unwrap_or_default(),
            state,
            preview_url: lossy(row, "preview_url")?,
            created_at: written("created_at")?,
            completed_at: written("completed_before")?,
            age: in_processing.then(|| age(row)).transpose()?,
            witnessed: in_processing.then(|| witnessed(row)).transpose()?,
            notes,
        })
    }

    pub(in crate::store) async fn events(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let wanted = wanted_events();
        let sql = format!(
            "SELECT id, event_id, run_id, event_type, voice_id, user_id, occurred_at, leased_until,
                    published_at
             FROM voice_sync_outbox WHERE {wanted} ORDER BY id DESC LIMIT $2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(event_parameter(filter))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let event = |row: &SqliteRow| {
            Ok::<_, sqlx::Error>(EventRecord {
                id: row.try_get("id")?,
                event_id: id(row, "event_id")?,
                run_id: id(row, "run_id")?,
                event_type: row.try_get("event_type")?,
                voice_id: row.try_get("voice_id")?,
                user_id: row.try_get("user_id")?,
                occurred_at: time(row, "occurred_at")?.unwrap_or_default(),
                leased_until: time(row, "leased_until")?,
                published_at: time(row, "published_at")?,
            })
        };
        Ok(rows.iter().map(event).collect::<Result<_, _>>()?)
    }

    pub(in crate::store) async fn runs(&self, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        const RUNS: &str = "
            SELECT run_id, command, started_at, finished_at, duration_ms, exit_code, counts
            FROM voice_sync_runs ORDER BY id DESC LIMIT $1";
        if !self.own_tables {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(RUNS).bind(limit).fetch_all(&self.pool).await?;
        let entry = |row: &SqliteRow| {
            let counts: String = row.try_get("counts")?;
            Ok::<_, sqlx::Error>(LedgerEntry {
                run_id: id(row, "run_id")?,
                command: row.try_get("command")?,
                started_at: time(row, "started_at")?.unwrap_or_default(),
                finished_at: time(row, "finished_at")?.unwrap_or_default(),
                duration: elapsed(row.try_get("duration_ms")?),
                exit_code: row.try_get("exit_code")?,
                counts: serde_json::from_str(&counts).unwrap_or(Value::Null),
            })
        };
        Ok(rows.iter().map(entry).collect::<Result<_, _>>()?)
    }
}

fn counted(rows: &[SqliteRow]) -> Result<Backlog, sqlx::Error> {
    let mut backlog = Backlog::default();
    for row in rows {
        let kind = BacklogKind::parse(row.try_get("kind")?).unwrap_or(BacklogKind::Young);
        let band = usize::try_from(row.try_get::<i64, _>("band")?).unwrap_or(0);
        let voices: i64 = row.try_get("voices")?;
        let [oldest, unasked] =
            ["oldest", "unasked"].map(|column| row.try_get(column).map(elapsed));
        backlog.add(kind, band, voices.unsigned_abs(), oldest?, unasked?);
    }
    Ok(backlog)
}

fn time(row: &SqliteRow, column: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let stored: Option<i64> = row.try_get(column)?;
    Ok(stored.and_then(DateTime::from_timestamp_millis))
}

/// An id of our own; nil, if somebody else wrote there.
fn id(row: &SqliteRow, column: &str) -> Result<Uuid, sqlx::Error> {
    let stored: String = row.try_get(column)?;
    Ok(Uuid::parse_str(&stored).unwrap_or_default())
}
