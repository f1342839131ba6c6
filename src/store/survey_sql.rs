//! Queries for what operators are shown.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::args::Args;
use super::dialect::Dialect;
use super::ledger::texts;
use super::provider_state::{state, state_columns};
use super::row::Row;
use super::survey::{
    Account, FailingBus, Notes, NudgeRecord, RowState, Survey, VoiceFilter, VoiceRecord, Wanted,
};
use super::{LEASE, MAX_BUS_PAUSE, NEWEST_RUNS, Store, StoreError, UNLISTED};
use crate::core::backlog::{BAND_ENDS, BacklogKind};
use crate::core::nudge::Nudge;
use crate::core::quantiles::Quantiles;
use crate::core::request_budget::RequestBudget;
use crate::core::verdict::AgeFrom;
use crate::core::voice::RowId;

/// A bus whose last failure is older is not shown.
const FAILED_LATELY: Duration = Duration::from_secs(60 * 60);

impl Store {
    pub(super) async fn survey_once(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
        runs: u32,
        account: Option<Uuid>,
    ) -> Result<Survey, StoreError> {
        let present = format!("SELECT {} AS present", self.dialect().now());
        let present = self
            .database
            .fetch_one(present, self.database.args())
            .await?;
        let mut survey = Survey {
            read_at: present.get("present")?,
            has_own_tables: self.has_own_tables(),
            ..Survey::default()
        };
        let (sql, args) = self.backlog_sql(fail_after, age_from, oldest);
        let mut ids = Vec::new();
        for row in &self.database.fetch_all(sql, args).await? {
            if let Some(id) = row.get_optional("row_id")? {
                ids.push(id);
                continue;
            }
            let kind: String = row.get("kind")?;
            let kind = BacklogKind::parse(&kind).unwrap_or(BacklogKind::Young);
            let band = usize::try_from(row.count("band")?).unwrap_or(0);
            let (oldest, unasked) = (row.get("oldest")?, row.get("unasked")?);
            survey
                .backlog
                .add(kind, band, row.count("voices")?, oldest, unasked);
        }
        if self.has_own_tables() {
            let (events, oldest_event) = self.waiting_events().await?;
            survey.pending_events = events.unsigned_abs();
            survey.oldest_event = oldest_event;
            survey.completion_times = self.completion_times().await?;
            survey.completion_times_by_kind = self.completion_times_by_kind_once().await?;
            survey.accounts = self.accounts(account).await?;
            survey.failing_buses = self.failing_buses().await?;
        }
        survey.oldest = self.records_once(&Wanted::Rows(ids), oldest).await?;
        survey.oldest.sort_by_key(|record| Reverse(record.age));
        survey.runs = self.runs_once(runs).await?;
        Ok(survey)
    }

    /// The voices in processing, counted by kind and age band, and then the oldest of them.
    ///
    /// What both parts need of each voice is computed once: with a million voices, the join takes longest.
    fn backlog_sql(
        &self,
        fail_after: Option<Duration>,
        age_from: AgeFrom,
        oldest: u32,
    ) -> (String, Args) {
        let (table, dialect) = (&self.table, self.dialect());
        let mut args = self.database.args();
        let is_restarted = super::TableSql::is_restarted(&table.provider_id);
        let is_current = super::TableSql::is_current(&table.provider_id);
        let counted = match age_from {
            AgeFrom::FirstSeen => "witnessed",
            AgeFrom::Created => "CASE WHEN was_finished THEN witnessed ELSE age END",
        };
        let is_overdue = fail_after.map_or("FALSE".to_owned(), |limit| {
            format!("{counted} > {}", args.bind(limit))
        });
        let bands =
            BAND_ENDS.map(|end| format!("CASE WHEN age >= {} THEN 1 ELSE 0 END", end.as_secs()));
        let sql = format!(
            "WITH p AS (
                 SELECT {row_id} AS row_id, {is_current} AS is_current, {is_current} AND {is_set_aside} AS is_set_aside,
                        {completed_before} IS NOT NULL AS was_finished, w.unanswered, w.missing_count, w.kind, w.stage,
                        {age} AS age, {witnessed} AS witnessed, {asked_ago} AS asked_ago
                 FROM {name} v LEFT JOIN {known} w ON w.row_id = {row_id}
                 WHERE {is_processing} AND v.{id} IS NOT NULL
             )
             SELECT CASE WHEN is_set_aside THEN 'set_aside'
                         WHEN is_current AND unanswered > 0 THEN 'unanswerable'
                         WHEN is_current AND missing_count > 0 THEN 'missing'
                         WHEN is_current AND kind = 'professional' AND stage <> 'preparing' THEN stage
                         WHEN {is_overdue} THEN 'overdue'
                         WHEN is_current AND stage IN ('training', 'waiting_for_owner') THEN stage
                         ELSE 'young' END AS kind,
                    {bands} AS band, count(*) AS voices, max(age) AS oldest,
                    max({unasked}) AS unasked, CAST(NULL AS text) AS row_id
             FROM p GROUP BY 1, 2
             UNION ALL
             SELECT * FROM (SELECT CAST(NULL AS text), CAST(NULL AS integer), CAST(NULL AS bigint), age,
                                   CAST(NULL AS double precision), row_id
                            FROM p ORDER BY age DESC, row_id LIMIT {oldest}) o",
            row_id = table.row_id(),
            is_set_aside = table.is_set_aside(),
            completed_before = table.completed_before,
            age = table.age(&table.made_at(), &is_restarted),
            witnessed = table.witnessed(&is_restarted),
            asked_ago = dialect.since("w.last_asked"),
            name = table.table,
            known = table.known(),
            is_processing = table.is_processing(),
            id = table.id,
            bands = bands.join(" + "),
            unasked = dialect.least("age", "COALESCE(asked_ago, age)"),
            oldest = args.limit(oldest),
        );
        (sql, args)
    }

    async fn completion_times(&self) -> Result<Quantiles, StoreError> {
        let dialect = self.dialect();
        let sql = format!(
            "SELECT CAST(t.key AS integer) AS bucket, {sum} AS voices FROM {runs} r, {times} t GROUP BY 1",
            sum = sum_of_voices(dialect),
            runs = dialect.own("runs"),
            times = dialect.members("r.completion_times")
        );
        let mut times = Quantiles::default();
        for row in &self.database.fetch_all(sql, self.database.args()).await? {
            add_bucket(&mut times, row)?;
        }
        Ok(times)
    }

    pub(super) async fn completion_times_by_kind_once(
        &self,
    ) -> Result<BTreeMap<String, Quantiles>, StoreError> {
        let dialect = self.dialect();
        let sql = format!(
            "SELECT k.key AS kind, CAST(t.key AS integer) AS bucket, {sum} AS voices
             FROM {runs} r, {kinds} k, {times} t GROUP BY 1, 2",
            sum = sum_of_voices(dialect),
            runs = dialect.own("runs"),
            kinds = dialect.members("r.completion_times_by_kind"),
            times = dialect.members(&dialect.json("k.value")),
        );
        let mut kinds = BTreeMap::new();
        for row in &self.database.fetch_all(sql, self.database.args()).await? {
            add_bucket(kinds.entry(row.get("kind")?).or_default(), row)?;
        }
        Ok(kinds)
    }

    /// This account, if passes used it; otherwise the account of the newest pass that used one.
    async fn accounts(&self, account: Option<Uuid>) -> Result<Vec<Account>, StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let is_unlisted = dialect.is_ahead(&dialect.stored_moment("u.value"), UNLISTED);
        let sql = format!(
            "SELECT p.account, p.found_at, p.mass_absence_since, p.request_spacing, p.voices_a_request, {state},
                    (SELECT {kinds} FROM {members} u WHERE {is_unlisted}) AS unlisted
             FROM {provider} p
             WHERE p.account = COALESCE(
                 (SELECT account FROM {provider} WHERE account = {account}),
                 (SELECT account FROM (SELECT * FROM {runs} ORDER BY id DESC LIMIT {newest}) r
                  WHERE account IS NOT NULL ORDER BY id DESC LIMIT 1))",
            account = args.bind(account),
            state = state_columns(dialect),
            kinds = dialect.json_texts("u.key"),
            members = dialect.members("p.unlisted"),
            provider = dialect.own("provider"),
            runs = dialect.own("runs"),
            newest = args.limit(NEWEST_RUNS),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in &rows {
            let account = row.get("account")?;
            let mut unlisted = texts(&row.get::<String>("unlisted")?);
            unlisted.sort_unstable();
            let spacing: Option<Duration> = row.get_optional("request_spacing")?;
            let voices_a_request: Option<i64> = row.get_optional("voices_a_request")?;
            let voices_a_request = voices_a_request.and_then(|voices| u64::try_from(voices).ok());
            accounts.push(Account {
                account,
                state: state(row)?,
                found_at: row.get_optional("found_at")?,
                unlisted,
                mass_absence_since: row.get_optional("mass_absence_since")?,
                budget: spacing.map(RequestBudget::one_in).zip(voices_a_request),
                nudging: self.nudging_once(account).await?,
            });
        }
        Ok(accounts)
    }

    async fn failing_buses(&self) -> Result<Vec<FailingBus>, StoreError> {
        let dialect = self.dialect();
        let sql = format!(
            "SELECT failures, {left} AS backing_off FROM {buses}
             WHERE retry_at > {now} - {lately} ORDER BY retry_at",
            left = dialect.seconds_until("retry_at", MAX_BUS_PAUSE),
            buses = dialect.own("buses"),
            now = dialect.now(),
            lately = dialect.span(FAILED_LATELY),
        );
        let rows = self.database.fetch_all(sql, self.database.args()).await?;
        let buses = rows.iter().map(|row| {
            Ok(FailingBus {
                failures: row.times("failures")?,
                backing_off_for: row.get("backing_off")?,
            })
        });
        buses.collect()
    }

    pub(super) async fn records_once(
        &self,
        wanted: &Wanted,
        limit: u32,
    ) -> Result<Vec<VoiceRecord>, StoreError> {
        let (table, dialect) = (&self.table, self.dialect());
        let mut args = self.database.args();
        let own_preview = format!(
            "(SELECT c.preview_url FROM {} c WHERE c.row_id = {})",
            dialect.own("completions"),
            table.row_id()
        );
        let preview = match (&table.preview_url, table.has_own_tables) {
            (Some(column), _) => format!("CAST(v.{column} AS text)"),
            (None, true) => own_preview,
            (None, false) => "CAST(NULL AS text)".to_owned(),
        };
        let condition = self.is_wanted(&mut args, wanted);
        let is_restarted = super::TableSql::is_restarted(&table.provider_id);
        // A moment that Rust cannot represent counts as none.
        let shown = |moment: &str| match dialect {
            Dialect::Postgres => format!(
                "CASE WHEN {moment} BETWEEN '0001-01-01Z' AND '9999-12-31Z' THEN {moment} END"
            ),
            Dialect::Sqlite => moment.to_owned(),
        };
        let lease = match table.has_own_tables {
            false => "CAST(NULL AS timestamptz)".to_owned(),
            true => format!(
                "(SELECT max(l.lease_until) FROM {} l WHERE {} IN ({}) AND {})",
                dialect.own("leases"),
                table.row_id(),
                dialect.voices_of_lease(),
                dialect.is_ahead("l.lease_until", LEASE)
            ),
        };
        let sql = format!(
            "SELECT {row_id} AS row_id, {user_id} AS user_id, {provider_id} AS row_provider_id,
                    CAST(v.{status} AS text) AS status,
                    CASE v.{status} WHEN {processing} THEN 'processing' WHEN {completed} THEN 'completed'
                                    WHEN {failed} THEN 'failed' ELSE 'other' END AS state,
                    {preview} AS preview_url, {created_at} AS created_at, {completed_at} AS completed_at,
                    {age} AS age, {witnessed} AS witnessed, {lease} AS lease_until,
                    w.row_id IS NOT NULL AS known, w.provider_id, w.first_seen, w.restarted_at, w.last_asked,
                    w.next_due, w.run_id, w.kind, w.stage, w.missing_count, w.missing_since, w.strikes,
                    w.set_aside_until, w.trouble, w.failed_at, w.failure, w.unanswered, w.unanswered_since,
                    {nudge} AS nudge, {nudged_at} AS nudged_at, {nudge_detail} AS nudge_detail
             FROM {name} v LEFT JOIN {known} w ON w.row_id = {row_id}
             WHERE {condition} AND v.{id} IS NOT NULL ORDER BY v.{id} LIMIT {limit}",
            row_id = table.row_id(),
            user_id = table.user_id,
            provider_id = table.provider_id,
            status = table.status,
            processing = table.processing,
            completed = table.completed,
            failed = table.failed,
            created_at = shown(&table.created_at),
            completed_at = shown(&table.completed_before),
            age = table.age(&table.made_at(), &is_restarted),
            witnessed = table.witnessed(&is_restarted),
            name = table.table,
            nudge = table.nudge(&table.provider_id, "answer"),
            nudged_at = match table.has_own_tables {
                true => table.nudge(&table.provider_id, "nudged_at"),
                false => "CAST(NULL AS timestamptz)".to_owned(),
            },
            nudge_detail = table.nudge(&table.provider_id, "detail"),
            known = table.known(),
            id = table.id,
            limit = args.limit(limit),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        rows.iter().map(|row| self.record_of(row)).collect()
    }

    fn is_wanted(&self, args: &mut Args, wanted: &Wanted) -> String {
        let table = &self.table;
        match wanted {
            Wanted::Rows(rows) => table.has_key(args, rows),
            Wanted::ProviderIds(ids) => {
                let ids = ids.iter().filter(|id| !id.contains('\0'));
                format!("{} {}", table.provider_key, args.is_any("text", ids))
            }
            Wanted::Listed(filter, after) => {
                let after = after.as_ref().map(|row| {
                    let key = table.bind_key(args, row.as_str());
                    format!(" AND v.{} > {key}", table.id)
                });
                self.is_listed(*filter) + &after.unwrap_or_default()
            }
        }
    }

    fn is_listed(&self, filter: VoiceFilter) -> String {
        let table = &self.table;
        let noted = |condition: &str| {
            let is_current = super::TableSql::is_current(&table.provider_id);
            format!("{} AND {is_current} AND {condition}", table.is_processing())
        };
        match filter {
            VoiceFilter::Processing => table.is_processing(),
            VoiceFilter::Completed => format!("v.{} = {}", table.status, table.completed),
            VoiceFilter::Failed => format!("v.{} = {}", table.status, table.failed),
            VoiceFilter::SetAside => noted(&table.is_set_aside()),
            VoiceFilter::Missing => noted("w.missing_count > 0"),
            VoiceFilter::Unanswerable => noted("w.unanswered > 0"),
        }
    }

    fn record_of(&self, row: &Row) -> Result<VoiceRecord, StoreError> {
        let row_id: String = row.get("row_id")?;
        let state = RowState::parse(&row.get::<String>("state")?);
        let in_processing = state == RowState::Processing;
        let user: Option<String> = row.get_optional("user_id")?;
        let lease_until: Option<DateTime<Utc>> = row.get_optional("lease_until")?;
        let notes = match row.get("known")? {
            false => None,
            true => Some(notes(row, lease_until)?),
        };
        let [age, witnessed] = ["age", "witnessed"].map(|column| row.get(column));
        let nudge: Option<String> = row.get_optional("nudge")?;
        let nudge = nudge.map(|answer| {
            Ok::<_, StoreError>(NudgeRecord {
                nudged_at: row.get("nudged_at")?,
                answer: Nudge::parse(&answer),
                detail: row.get_optional("nudge_detail")?,
            })
        });
        Ok(VoiceRecord {
            voice_id: self.table.id_form.read(&row_id),
            row: RowId::new(row_id),
            user_id: user.map(|user| self.table.user_id_form.read(&user)),
            provider_id: row.get_optional("row_provider_id")?,
            status: row.get_optional("status")?.unwrap_or_default(),
            state,
            preview_url: row.get_optional("preview_url")?,
            created_at: row.get_optional("created_at")?,
            completed_at: row.get_optional("completed_at")?,
            age: Some(age?).filter(|_| in_processing),
            witnessed: Some(witnessed?).filter(|_| in_processing),
            lease_until,
            notes,
            nudge: nudge.transpose()?,
        })
    }
}

/// Saturating: other programs may have written to the table.
fn sum_of_voices(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "LEAST(sum(t.value::numeric), 9e18)::bigint",
        Dialect::Sqlite => "sum(t.value)",
    }
}

fn add_bucket(times: &mut Quantiles, row: &Row) -> Result<(), StoreError> {
    let bucket = i32::try_from(row.get::<i64>("bucket")?).unwrap_or(i32::MAX);
    times.add_to_bucket(bucket, row.count("voices")?);
    Ok(())
}

fn notes(row: &Row, lease_until: Option<DateTime<Utc>>) -> Result<Notes, StoreError> {
    Ok(Notes {
        provider_id: row.get_optional("provider_id")?,
        first_seen: row.get("first_seen")?,
        restarted_at: row.get_optional("restarted_at")?,
        last_asked: row.get_optional("last_asked")?,
        next_due: row.get_optional("next_due")?,
        lease_until,
        run_id: row.get("run_id")?,
        kind: row.get_optional("kind")?,
        stage: row.get_optional("stage")?,
        missing_count: row.times("missing_count")?,
        missing_since: row.get_optional("missing_since")?,
        strikes: row.times("strikes")?,
        set_aside_until: row.get_optional("set_aside_until")?,
        last_error: row.get_optional("trouble")?,
        failed_at: row.get_optional("failed_at")?,
        failure: row.get_optional("failure")?,
        unanswered: row.times("unanswered")?,
        unanswered_since: row.get_optional("unanswered_since")?,
    })
}
