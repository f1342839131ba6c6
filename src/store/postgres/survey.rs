//! What operators are shown.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::claim::could_be;
use super::ledger::standing_sql;
use super::session::Session;
use super::{PostgresStore, is_ahead, seconds, seconds_until};
use crate::backlog::{BAND_ENDS, Backlog, BacklogKind};
use crate::sketch::Sketch;
use crate::standing::Standing;
use crate::store::survey::{
    Account, EventFilter, EventRecord, FailingBus, LedgerEntry, Notes, RowState, Survey,
    VoiceRecord, Wanted,
};
use crate::store::{LONGEST_BUS_PAUSE, NEWEST_RUNS, SET_ASIDE, StoreError, UNLISTED};
use crate::verdict::AgeFrom;
use crate::voice::RowId;

/// Which events, by four parameters of which the first has this number: see [`EventFilter`].
pub(super) fn wanted_events(first: u8) -> String {
    let [published, names, older, since] = [first, first + 1, first + 2, first + 3];
    format!(
        "(${published}::bool IS NULL OR (published_at IS NOT NULL) = ${published})
         AND (cardinality(${names}::text[]) = 0 OR event_id::text = ANY(${names}) OR voice_id = ANY(${names}))
         AND occurred_at <= now() - make_interval(secs => ${older})
         AND (${since}::float8 IS NULL OR occurred_at >= now() - make_interval(secs => ${since}))"
    )
}

impl PostgresStore {
    /// The voices in processing, counted by kind and band of age, and then the oldest of them. `$1` has the ends
    /// of the bands, `$2` is from which age on one is overdue, `$4` whether that counts since the row was created,
    /// and `$3` how many are the oldest; ages are in seconds.
    ///
    /// What both need of each voice is worked out once: of a million, joining them takes longest.
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
        let (known, age, witnessed) = (self.known(), Self::AGE, Self::WITNESSED);
        let is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE);
        format!(
            "WITH joined AS (
                 SELECT v.{id}::text AS row_id, GREATEST({created_at}, {completed_before}) AS created_at,
                        w.row_id IS NOT NULL AND (w.provider_id IS DISTINCT FROM v.{provider_id}
                                                  OR w.failed_at IS NOT NULL) AS restarts,
                        w.first_seen, w.restarted_at, w.last_asked, w.kind, w.stage, w.missing_count,
                        {is_set_aside}
                            AND w.provider_id IS NOT DISTINCT FROM v.{provider_id} AS is_set_aside,
                        w.unanswered, ({completed_before}) IS NOT NULL AS was_finished
                 FROM {table} v LEFT JOIN {known} w ON w.row_id = v.{id}::text
                 WHERE v.{status} = {processing} AND v.{id} IS NOT NULL
             ),
             aged AS (SELECT p.*, {age} AS age, {witnessed} AS witnessed FROM joined p OFFSET 0),
             p AS MATERIALIZED (
                 SELECT CASE WHEN is_set_aside THEN 'set_aside'
                             WHEN NOT restarts AND unanswered > 0 THEN 'unanswerable'
                             WHEN NOT restarts AND missing_count > 0 THEN 'missing'
                             WHEN NOT restarts AND kind = 'professional' AND stage <> 'preparing' THEN stage
                             WHEN CASE WHEN $4 AND NOT was_finished THEN age ELSE witnessed END > $2::float8
                             THEN 'overdue'
                             WHEN NOT restarts AND stage IN ('training', 'waiting_for_owner') THEN stage
                             ELSE 'young' END AS kind,
                        age, LEAST(age, date_part('epoch', now() - last_asked)) AS unasked, row_id
                 FROM aged
             )
             (SELECT kind, width_bucket(age, $1::float8[]) AS band, count(*) AS voices, max(age) AS oldest,
                     max(unasked) AS unasked, NULL AS row_id
              FROM p GROUP BY 1, 2)
             UNION ALL
             (SELECT NULL, NULL, NULL, age, NULL, row_id FROM p ORDER BY age DESC, row_id LIMIT $3)"
        )
    }

    pub(in crate::store) async fn survey(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
        runs: u32,
    ) -> Result<Survey, StoreError> {
        let ends = BAND_ENDS.map(|end| end.as_secs_f64());
        let mut session = self.sessions.begin().await?;
        let mut survey = Survey {
            read_at: session
                .query("SELECT now()")
                .fetch_one(&mut *session)
                .await?
                .try_get(0)?,
            has_own_tables: self.own_tables,
            ..Survey::default()
        };
        let rows = session
            .query(AssertSqlSafe(self.backlog_sql()))
            .bind(ends.as_slice())
            .bind(fail_after.map(|limit| limit.as_secs_f64()))
            .bind(i64::from(oldest))
            .bind(age_from == AgeFrom::Created)
            .fetch_all(&mut *session)
            .await?;
        let mut ids = Vec::new();
        for row in &rows {
            match row.try_get("row_id")? {
                Some(id) => ids.push(id),
                None => count(&mut survey.backlog, row)?,
            }
        }
        if self.own_tables {
            read_own(&mut session, &mut survey).await?;
        }
        session.keep().await?;
        survey.oldest = self.records(&Wanted::Rows(ids), oldest).await?;
        survey
            .oldest
            .sort_by_key(|record| std::cmp::Reverse(record.age));
        survey.runs = self.runs(runs).await?;
        Ok(survey)
    }

    pub(in crate::store) async fn records(
        &self,
        wanted: &Wanted,
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        let Self {
            table,
            id,
            id_type,
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
        let preview = preview_url
            .as_ref()
            .map(|column| format!("v.{column}::text"));
        let preview = match (preview, self.own_tables) {
            (Some(column), _) => column,
            (None, true) => format!(
                "(SELECT c.preview_url FROM voice_sync.completions c WHERE c.row_id = v.{id}::text)"
            ),
            (None, false) => "NULL::text".to_owned(),
        };
        let after = format!("v.{id} IS NOT NULL AND v.{id} > ALL ($1::text[]::{id_type}[])");
        let of = |row: &Option<RowId>| row.iter().map(|row| row.as_str().to_owned()).collect();
        let (wanted, keys): (_, Vec<String>) = match wanted {
            Wanted::Rows(rows) => {
                let rows = rows.iter().filter(|row| could_be(row, id_type)).cloned();
                (self.is_row(1), rows.collect())
            }
            Wanted::ProviderIds(ids) => {
                let ids = ids.iter().filter(|id| !id.contains('\0')).cloned();
                (
                    format!("v.{id} IS NOT NULL AND v.{provider_id} = ANY($1::text[])"),
                    ids.collect(),
                )
            }
            Wanted::Failed(row) => (format!("v.{status} = {failed} AND {after}"), of(row)),
            Wanted::SetAside(row) => (
                format!(
                    "v.{status} = {processing} AND {after} AND {}
                     AND w.provider_id IS NOT DISTINCT FROM v.{provider_id}",
                    is_ahead("w.set_aside_until", SET_ASIDE)
                ),
                of(row),
            ),
        };
        // PostgreSQL knows more years than others.
        let shown = |time| {
            format!("(CASE WHEN {time} BETWEEN '0001-01-01Z' AND '9999-12-31Z' THEN {time} END)")
        };
        let (made_at, completed_at) = (shown(created_at), shown(completed_before));
        let (known, age, witnessed) = (self.known(), Self::AGE, Self::WITNESSED);
        let sql = format!(
            "SELECT p.*, CASE WHEN p.state = 'processing' THEN {age} END AS age,
                    CASE WHEN p.state = 'processing' THEN {witnessed} END AS witnessed
             FROM (SELECT v.{id}::text AS row_id, {user_id} AS user_id, v.{provider_id} AS row_provider_id,
                          v.{status}::text AS status,
                          CASE v.{status} WHEN {processing} THEN 'processing' WHEN {completed} THEN 'completed'
                                          WHEN {failed} THEN 'failed' ELSE 'other' END AS state,
                          {preview} AS preview_url, {made_at} AS made_at, {completed_at} AS completed_at,
                          GREATEST({created_at}, {completed_before}) AS created_at,
                          w.row_id IS NOT NULL AS known,
                          w.row_id IS NOT NULL AND (w.provider_id IS DISTINCT FROM v.{provider_id}
                                                    OR w.failed_at IS NOT NULL) AS restarts,
                          w.provider_id, w.first_seen, w.restarted_at, w.last_asked, w.next_due,
                          w.lease_until, w.run_id, w.kind, w.stage, w.missing_count, w.missing_since,
                          w.strikes, w.set_aside_until, w.trouble, w.failed_at, w.failure,
                          w.unanswered, w.unanswered_since
                   FROM {table} v LEFT JOIN {known} w ON w.row_id = v.{id}::text
                   WHERE {wanted}
                   ORDER BY v.{id} LIMIT $2) p"
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(keys)
            .bind(i64::from(limit))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        Ok(rows.iter().map(record).collect::<Result<_, _>>()?)
    }

    pub(in crate::store) async fn events(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let wanted = wanted_events(1);
        let sql = format!(
            "SELECT id, event_id, run_id, event_type, voice_id, user_id, occurred_at, leased_until,
                    published_at
             FROM voice_sync.outbox WHERE {wanted} ORDER BY id DESC LIMIT $5"
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(filter.published)
            .bind(filter.all_names())
            .bind(EventFilter::bounded(filter.older_than).as_secs_f64())
            .bind(
                filter
                    .since
                    .map(|since| EventFilter::bounded(since).as_secs_f64()),
            )
            .bind(i64::from(limit))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let event = |row: &PgRow| {
            Ok::<_, sqlx::Error>(EventRecord {
                id: row.try_get("id")?,
                event_id: row.try_get("event_id")?,
                run_id: row.try_get("run_id")?,
                event_type: row.try_get("event_type")?,
                voice_id: row.try_get("voice_id")?,
                user_id: row.try_get("user_id")?,
                occurred_at: row.try_get("occurred_at")?,
                leased_until: row.try_get("leased_until")?,
                published_at: row.try_get("published_at")?,
            })
        };
        Ok(rows.iter().map(event).collect::<Result<_, _>>()?)
    }

    pub(in crate::store) async fn runs(&self, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        const RUNS: &str = "
            SELECT run_id, command, started_at, finished_at, duration_ms, exit_code, counts
            FROM voice_sync.runs ORDER BY id DESC LIMIT $1";
        if !self.own_tables {
            return Ok(Vec::new());
        }
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(RUNS)
            .bind(i64::from(limit))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let entry = |row: &PgRow| {
            Ok::<_, sqlx::Error>(LedgerEntry {
                run_id: row.try_get("run_id")?,
                command: row.try_get("command")?,
                started_at: row.try_get("started_at")?,
                finished_at: row.try_get("finished_at")?,
                duration: Duration::from_millis(
                    row.try_get::<i64, _>("duration_ms")?.unsigned_abs(),
                ),
                exit_code: u8::try_from(row.try_get::<i16, _>("exit_code")?).unwrap_or(u8::MAX),
                counts: row.try_get("counts")?,
            })
        };
        Ok(rows.iter().map(entry).collect::<Result<_, _>>()?)
    }
}

fn count(backlog: &mut Backlog, row: &PgRow) -> Result<(), sqlx::Error> {
    let kind = BacklogKind::parse(row.try_get("kind")?).unwrap_or(BacklogKind::Young);
    let band = usize::try_from(row.try_get::<i32, _>("band")?).unwrap_or(0);
    let voices: i64 = row.try_get("voices")?;
    let [oldest, unasked] = ["oldest", "unasked"].map(|column| row.try_get(column).map(seconds));
    backlog.add(kind, band, voices.unsigned_abs(), oldest?, unasked?);
    Ok(())
}

async fn read_own(session: &mut Session, survey: &mut Survey) -> Result<(), StoreError> {
    const OUTBOX: &str = "
        SELECT count(*), extract(epoch FROM now() - min(occurred_at))::float8
        FROM voice_sync.outbox WHERE published_at IS NULL";
    const TIMES: &str = "
        SELECT t.key::int AS bucket, LEAST(sum(t.value::numeric), 9e18)::bigint AS voices
        FROM voice_sync.runs, jsonb_each_text(completion_times) t GROUP BY 1";
    let accounts = format!(
        "SELECT p.account, p.found_at, p.mass_absence_since, {},
               ARRAY(SELECT u.key FROM jsonb_each_text(p.unlisted) u WHERE {} ORDER BY 1) AS unlisted
        FROM voice_sync.provider p
        WHERE p.account = (SELECT account FROM (SELECT * FROM voice_sync.runs ORDER BY id DESC LIMIT $1) r
                           WHERE account IS NOT NULL ORDER BY id DESC LIMIT 1)",
        standing_sql(),
        is_ahead("u.value::timestamptz", UNLISTED),
    );
    let buses = format!(
        "SELECT failures, {} AS left_alone
        FROM voice_sync.buses WHERE retry_at > now() - interval '1 hour' ORDER BY retry_at",
        seconds_until("retry_at", LONGEST_BUS_PAUSE)
    );
    let outbox = session.query(OUTBOX).fetch_one(&mut **session).await?;
    survey.pending_events = outbox.try_get::<i64, _>(0)?.unsigned_abs();
    survey.oldest_event = outbox.try_get::<Option<f64>, _>(1)?.map(seconds);
    let mut times = Sketch::default();
    for row in session.query(TIMES).fetch_all(&mut **session).await? {
        times.add_to_bucket(
            row.try_get("bucket")?,
            row.try_get::<i64, _>("voices")?.unsigned_abs(),
        );
    }
    survey.completion_times = times;
    let accounts = session
        .query(AssertSqlSafe(accounts))
        .bind(i64::from(NEWEST_RUNS));
    for row in accounts.fetch_all(&mut **session).await? {
        survey.accounts.push(Account {
            account: row.try_get("account")?,
            standing: Standing {
                opened: row.try_get::<i32, _>("opened")?.unsigned_abs(),
                open_for: seconds(row.try_get("open_for")?),
                hold_for: seconds(row.try_get("hold_for")?),
                concurrency: row.try_get("concurrency")?,
            },
            found_at: row.try_get("found_at")?,
            unlisted: row.try_get("unlisted")?,
            mass_absence_since: row.try_get("mass_absence_since")?,
        });
    }
    for row in session
        .query(AssertSqlSafe(buses))
        .fetch_all(&mut **session)
        .await?
    {
        survey.failing_buses.push(FailingBus {
            failures: row.try_get::<i32, _>("failures")?.unsigned_abs(),
            left_alone_for: seconds(row.try_get("left_alone")?),
        });
    }
    Ok(())
}

fn record(row: &PgRow) -> Result<VoiceRecord, sqlx::Error> {
    let id: String = row.try_get("row_id")?;
    let known: bool = row.try_get("known")?;
    let count = |column| Ok::<_, sqlx::Error>(row.try_get::<i32, _>(column)?.unsigned_abs());
    Ok(VoiceRecord {
        voice_id: id.clone(),
        row: RowId::new(id),
        user_id: row.try_get("user_id")?,
        provider_id: row.try_get("row_provider_id")?,
        status: row
            .try_get::<Option<String>, _>("status")?
            .unwrap_or_default(),
        state: RowState::parse(row.try_get("state")?),
        preview_url: row.try_get("preview_url")?,
        created_at: row.try_get("made_at")?,
        completed_at: row.try_get("completed_at")?,
        age: row.try_get::<Option<f64>, _>("age")?.map(seconds),
        witnessed: row.try_get::<Option<f64>, _>("witnessed")?.map(seconds),
        notes: match known {
            false => None,
            true => Some(Notes {
                provider_id: row.try_get("provider_id")?,
                first_seen: row.try_get("first_seen")?,
                restarted_at: row.try_get("restarted_at")?,
                last_asked: row.try_get("last_asked")?,
                next_due: row.try_get("next_due")?,
                lease_until: row.try_get("lease_until")?,
                run_id: row.try_get::<Uuid, _>("run_id")?,
                kind: row.try_get("kind")?,
                stage: row.try_get("stage")?,
                missing_count: count("missing_count")?,
                missing_since: row.try_get("missing_since")?,
                strikes: count("strikes")?,
                set_aside_until: row.try_get("set_aside_until")?,
                trouble: row.try_get("trouble")?,
                failed_at: row.try_get("failed_at")?,
                failure: row.try_get("failure")?,
                unanswered: count("unanswered")?,
                unanswered_since: row.try_get("unanswered_since")?,
            }),
        },
    })
}
