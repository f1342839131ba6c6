//! The store on SQLite: a write transaction of a few statements for each operation.
//!
//! Bulk parameters are one JSON array each. SQLite has a single writer, so `BEGIN IMMEDIATE` is all
//! the coordination there is. The file's journal mode is the application's choice and stays.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Row, SqlitePool};
use tracing::warn;
use uuid::Uuid;

use super::table::{Identifier, Misfit, Names, absent, literal};
use super::{
    ACQUIRE_TIMEOUT, Access, Applied, Claimed, KEPT, LEASE, MAX_STRIKES, Memory, MissingVoice,
    Note, OUTBOX_LEASE, Page, Pending, Record, Run, SET_ASIDE, Selection, StoreError,
    TIDIED_AT_ONCE, Target, Transition,
};
use crate::events::{EventType, OutboxEvent, event_id};
use crate::voice::RowId;

/// How long to wait for the application to finish a write of its own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The present in whole milliseconds since 1970.
const NOW: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

pub(super) async fn connect(path: &Path, access: Access) -> Result<SqlitePool, StoreError> {
    if !path.exists() {
        return Err(StoreError::Config(format!(
            "there is no file {}; give the application's database with --database-url",
            path.display()
        )));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(access == Access::ReadOnly)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options);
    // Opening is lazy in SQLite itself: the first read finds out whether this is a database.
    sqlx::query("SELECT count(*) FROM sqlite_schema")
        .execute(&pool)
        .await?;
    Ok(pool)
}

/// How a column holds a UUID or another key, and how it reads to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    /// As it stands.
    Plain,
    /// SQLAlchemy's `CHAR(32)`: a UUID without its dashes, which events have.
    BareUuid,
}

/// The application's table as SQL needs it: names quoted, values quoted.
pub struct SqliteStore {
    pool: SqlitePool,
    table: String,
    id: String,
    id_form: KeyForm,
    user_id: String,
    user_id_form: KeyForm,
    provider_id: String,
    status: String,
    preview_url: String,
    completed_at: String,
    created_at: String,
    processing: String,
    completed: String,
    failed: String,
    preview_room: Option<usize>,
    own_tables: bool,
}

struct Column {
    name: String,
    declared: String,
}

impl SqliteStore {
    pub(super) async fn open(
        pool: SqlitePool,
        names: &Names,
        own_tables: bool,
    ) -> Result<Self, StoreError> {
        let table = names.table.quoted();
        let (schema, name) = names.table.parts();
        let columns: Vec<Column> = sqlx::query("SELECT name, type FROM pragma_table_info($1, $2)")
            .bind(name)
            .bind(schema.unwrap_or("main"))
            .fetch_all(&pool)
            .await?
            .into_iter()
            .map(|row| {
                Ok::<_, sqlx::Error>(Column {
                    name: row.try_get("name")?,
                    declared: row.try_get::<String, _>("type")?.to_ascii_uppercase(),
                })
            })
            .collect::<Result<_, _>>()?;
        if columns.is_empty() {
            return Err(Misfit::NoTable { table }.into());
        }
        // SQLite compares the names of columns without regard to ASCII case.
        let find = |name: &Identifier| {
            columns
                .iter()
                .find(|column| column.name.eq_ignore_ascii_case(name.as_str()))
        };
        let c = &names.columns;
        let needed = [
            &c.id,
            &c.elevenlabs_voice_id,
            &c.status,
            &c.preview_url,
            &c.completed_at,
        ];
        absent(&table, &needed.map(|name| (name, find(name).is_some())))?;
        let form = |name: &Identifier| match find(name) {
            Some(column) if length(&column.declared) == Some(32) => KeyForm::BareUuid,
            Some(_) | None => KeyForm::Plain,
        };
        let created_at = match find(&c.created_at) {
            Some(_) => format!("CAST(v.{} AS TEXT)", c.created_at.quoted()),
            None => "NULL".to_owned(),
        };
        let user_id = match find(&c.user_id) {
            Some(_) => format!("CAST({} AS TEXT)", c.user_id.quoted()),
            None => {
                warn!(
                    column = c.user_id.as_str(),
                    "the table has no such column; events carry no user"
                );
                "NULL".to_owned()
            }
        };
        Ok(Self {
            id: c.id.quoted(),
            id_form: form(&c.id),
            user_id,
            user_id_form: form(&c.user_id),
            provider_id: c.elevenlabs_voice_id.quoted(),
            status: c.status.quoted(),
            preview_url: c.preview_url.quoted(),
            completed_at: c.completed_at.quoted(),
            created_at,
            processing: literal(&names.statuses.processing),
            completed: literal(&names.statuses.completed),
            failed: literal(&names.statuses.failed),
            preview_room: find(&c.preview_url).and_then(|column| length(&column.declared)),
            own_tables,
            table,
            pool,
        })
    }

    pub(super) fn into_pool(self) -> SqlitePool {
        self.pool
    }

    pub(super) fn preview_room(&self) -> Option<usize> {
        self.preview_room
    }

    /// The condition that selects voices, on `v`, and its parameter `$1`, a JSON array.
    ///
    /// Keys are compared through a subquery without affinity of its own, so that the column's
    /// applies: text for `CHAR(32)`, integer for `INTEGER`.
    fn condition(&self, selection: &Selection) -> (String, String) {
        let Self {
            id,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let base = format!("v.{status} = {processing}");
        match selection {
            Selection::Range { after, up_to } => {
                let mut condition = base;
                if after.is_some() {
                    condition.push_str(&format!(" AND v.{id} > ($1 ->> 0)"));
                }
                if up_to.is_some() {
                    condition.push_str(&format!(" AND v.{id} <= ($1 ->> 1)"));
                }
                let bound = |row: &Option<RowId>| row.as_ref().map(|r| r.as_str().to_owned());
                (condition, json!([bound(after), bound(up_to)]).to_string())
            }
            Selection::Named(names) => {
                let condition = format!(
                    "{base} AND (v.{id} IN (SELECT value FROM json_each($1))
                                 OR v.{provider_id} IN (SELECT value FROM json_each($1)))"
                );
                let bare = names
                    .iter()
                    .filter(|_| self.id_form == KeyForm::BareUuid)
                    .filter_map(|name| Uuid::parse_str(name).ok())
                    .map(|uuid| uuid.simple().to_string());
                let all: Vec<String> = names.iter().cloned().chain(bare).collect();
                (condition, json!(all).to_string())
            }
        }
    }

    fn page_sql(&self, selection: &Selection, condition: &str) -> String {
        let Self {
            table,
            id,
            provider_id,
            created_at,
            ..
        } = self;
        let known = match self.own_tables {
            true => "voice_sync_voices",
            false => {
                "(SELECT NULL AS row_id, NULL AS provider_id, NULL AS first_seen, NULL AS restarted_at,
                         NULL AS run_id, NULL AS lease_until, NULL AS kind, NULL AS set_aside_until,
                         NULL AS failed_at)"
            }
        };
        let named = matches!(selection, Selection::Named(_));
        format!(
            "SELECT p.*, w.kind, {NOW} AS present, w.first_seen, w.restarted_at,
                    w.row_id IS NOT NULL AND (w.provider_id IS NOT p.provider_id
                                              OR w.failed_at IS NOT NULL) AS restarts,
                    COALESCE(w.lease_until > {NOW} AND w.run_id <> $3, 0) AS leased,
                    COALESCE(w.set_aside_until > {NOW}, 0) AND w.provider_id IS p.provider_id
                        AND NOT {named} AS resting
             FROM (SELECT CAST(v.{id} AS TEXT) AS row_id, v.{id} AS id,
                          CAST(v.{provider_id} AS TEXT) AS provider_id, {created_at} AS created_at
                   FROM {table} v WHERE {condition} ORDER BY v.{id} LIMIT $2) p
             LEFT JOIN {known} w ON w.row_id = p.row_id
             ORDER BY p.id"
        )
    }

    pub(super) async fn peek(&self, selection: &Selection, limit: u32) -> Result<Page, StoreError> {
        let (condition, parameter) = self.condition(selection);
        let rows = sqlx::query(AssertSqlSafe(self.page_sql(selection, &condition)))
            .bind(parameter)
            .bind(limit)
            .bind(Uuid::nil().to_string())
            .fetch_all(&self.pool)
            .await?;
        page(&rows, limit)
    }

    pub(super) async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        const CLAIM: &str = "
            INSERT INTO voice_sync_voices (row_id, provider_id, run_id, first_seen, lease_until)
            SELECT value ->> 'row', value ->> 'provider_id', $2, $3, $3 + $4 FROM json_each($1)
            WHERE TRUE
            ON CONFLICT (row_id) DO UPDATE
            SET run_id = excluded.run_id, lease_until = excluded.lease_until,
                set_aside_until = NULL, provider_id = excluded.provider_id";
        const RESTART: &str = "
            UPDATE voice_sync_voices
            SET first_seen = $2, restarted_at = $2, missing_count = 0, missing_since = NULL,
                strikes = 0, kind = NULL, failed_at = NULL, failure = NULL
            WHERE row_id IN (SELECT value FROM json_each($1))";
        let (condition, parameter) = self.condition(selection);
        let sql = self.page_sql(selection, &condition);
        // Nothing to do takes no write lock: the application may be writing.
        let any = sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(&parameter)
            .bind(1)
            .bind(run_id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        if any.is_none() {
            return Ok(Page::default());
        }
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(&parameter)
            .bind(limit)
            .bind(run_id.to_string())
            .fetch_all(&mut *transaction)
            .await?;
        let page = page(&rows, limit)?;
        let mut restarts = Vec::new();
        let mut present: i64 = 0;
        for row in &rows {
            present = row.try_get("present")?;
            if row.try_get("restarts")? && !row.try_get::<bool, _>("leased")? {
                restarts.push(row.try_get::<String, _>("row_id")?);
            }
        }
        let claimed: Vec<_> = page
            .voices
            .iter()
            .map(|voice| json!({"row": voice.row.as_str(), "provider_id": voice.provider_id}))
            .collect();
        sqlx::query(CLAIM)
            .bind(json!(claimed).to_string())
            .bind(run_id.to_string())
            .bind(present)
            .bind(milliseconds(LEASE))
            .execute(&mut *transaction)
            .await?;
        if !restarts.is_empty() {
            sqlx::query(RESTART)
                .bind(json!(restarts).to_string())
                .bind(present)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(page)
    }

    pub(super) async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (condition, parameter) = self.condition(selection);
        let sql = format!("SELECT count(*) FROM {} v WHERE {condition}", self.table);
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(parameter)
            .fetch_one(&self.pool)
            .await?;
        Ok(count.unsigned_abs())
    }

    pub(super) async fn apply(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        const RECORD: &str = "
            INSERT INTO voice_sync_outbox (event_id, event_type, voice_id, user_id, occurred_at,
                                           leased_until)
            SELECT value ->> 'event_id', value ->> 'event_type', value ->> 'voice_id',
                   value ->> 'user_id', $2, $2 + $3
            FROM json_each($1)
            RETURNING id, event_id, event_type, voice_id, user_id, occurred_at";
        const EXPLAIN: &str = "
            UPDATE voice_sync_voices
            SET lease_until = NULL, last_asked = $3, failed_at = $3, failure = a.value ->> 'reason'
            FROM json_each($1) a
            WHERE row_id = a.value ->> 'row' AND run_id = $2";
        const FORGET: &str = "
            DELETE FROM voice_sync_voices
            WHERE row_id IN (SELECT value FROM json_each($1)) AND run_id = $2";
        let answers: Vec<_> = transitions
            .iter()
            .map(
                |Transition {
                     row,
                     provider_id,
                     target,
                 }| {
                    let (preview, reason) = match target {
                        Target::Completed { preview_url } => (preview_url.as_deref(), None),
                        Target::Failed { reason } => (None, Some(reason)),
                    };
                    json!({"row": row.as_str(), "provider_id": provider_id.as_str(),
                       "completes": reason.is_none(), "preview": preview})
                },
            )
            .collect();
        let Self {
            table,
            id,
            user_id,
            provider_id,
            status,
            preview_url,
            completed_at,
            processing,
            completed,
            failed,
            ..
        } = self;
        // SQLAlchemy writes six digits of a second; SQLite's clock has three.
        let sql = format!(
            "UPDATE {table} AS v
             SET {status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END,
                 {preview_url} = CASE WHEN a.completes THEN COALESCE(a.preview, v.{preview_url})
                                      ELSE v.{preview_url} END,
                 {completed_at} = CASE WHEN a.completes
                                       THEN strftime('%Y-%m-%d %H:%M:%f000', 'now')
                                       ELSE v.{completed_at} END
             FROM (SELECT value ->> 'row' AS row_id, value ->> 'provider_id' AS provider_id,
                          value ->> 'completes' AS completes, value ->> 'preview' AS preview
                   FROM json_each($1)) a
             WHERE v.{id} = a.row_id AND v.{status} = {processing}
               AND v.{provider_id} = a.provider_id
             RETURNING CAST({id} AS TEXT) AS row_id, {user_id} AS user_id"
        );
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(json!(answers).to_string())
            .fetch_all(&mut *transaction)
            .await?;
        let present: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")))
            .fetch_one(&mut *transaction)
            .await?;
        let mut users = std::collections::HashMap::with_capacity(rows.len());
        for row in &rows {
            let user: Option<String> = row.try_get("user_id")?;
            users.insert(RowId::new(row.try_get::<String, _>("row_id")?), user);
        }
        let mut applied = Applied::default();
        let (mut events, mut explained, mut forgotten) = (Vec::new(), Vec::new(), Vec::new());
        for Transition {
            row,
            provider_id,
            target,
        } in transitions
        {
            let user = users.get(row);
            match (target, user) {
                (Target::Failed { reason }, Some(_)) => {
                    explained.push(json!({"row": row.as_str(), "reason": reason}));
                }
                (Target::Completed { .. } | Target::Failed { .. }, _) => {
                    forgotten.push(row.as_str())
                }
            }
            if let Some(user) = user {
                let event_type = target.event_type();
                events.push(json!({
                    "event_id": event_id(row, provider_id, event_type),
                    "event_type": event_type.as_str(),
                    "voice_id": self.id_form.read(row.as_str()),
                    "user_id": user.as_deref().map(|user| self.user_id_form.read(user)),
                }));
            }
        }
        if record.is_wanted() && !events.is_empty() {
            let recorded = sqlx::query(RECORD)
                .bind(json!(events).to_string())
                .bind(present)
                .bind(milliseconds(record.lease()))
                .fetch_all(&mut *transaction)
                .await?;
            for row in &recorded {
                applied.events.extend(event(row)?);
            }
        }
        sqlx::query(EXPLAIN)
            .bind(json!(explained).to_string())
            .bind(run_id.to_string())
            .bind(present)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(FORGET)
            .bind(json!(forgotten).to_string())
            .bind(run_id.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        applied.moved = users.into_keys().collect();
        Ok(applied)
    }

    pub(super) async fn note(&self, run_id: Uuid, notes: &[Note]) -> Result<(), StoreError> {
        let notes: Vec<_> = notes
            .iter()
            .map(|Note { row, seen }| {
                let (seen, kind, stage, trouble) = seen.columns();
                json!({"row": row.as_str(), "seen": seen, "kind": kind, "stage": stage,
                       "trouble": trouble})
            })
            .collect();
        let sql = format!(
            "UPDATE voice_sync_voices AS w
             SET lease_until = NULL,
                 last_asked = CASE WHEN n.seen = 'unavailable' THEN w.last_asked ELSE {NOW} END,
                 kind = COALESCE(n.kind, w.kind),
                 stage = CASE WHEN n.seen = 'unavailable' THEN w.stage ELSE n.stage END,
                 missing_count = CASE n.seen WHEN 'missing' THEN w.missing_count + 1
                                             WHEN 'unavailable' THEN w.missing_count ELSE 0 END,
                 missing_since = CASE n.seen WHEN 'missing' THEN COALESCE(w.missing_since, {NOW})
                                             WHEN 'unavailable' THEN w.missing_since END,
                 strikes = CASE n.seen WHEN 'set_aside' THEN w.strikes + 1
                                       WHEN 'unavailable' THEN w.strikes ELSE 0 END,
                 set_aside_until = CASE WHEN n.seen = 'set_aside' AND w.strikes + 1 >= $3
                                        THEN {NOW} + $4 END,
                 trouble = n.trouble
             FROM (SELECT value ->> 'row' AS row_id, value ->> 'seen' AS seen,
                          value ->> 'kind' AS kind, value ->> 'stage' AS stage,
                          value ->> 'trouble' AS trouble FROM json_each($1)) n
             WHERE w.row_id = n.row_id AND w.run_id = $2 AND w.lease_until IS NOT NULL"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(json!(notes).to_string())
            .bind(run_id.to_string())
            .bind(MAX_STRIKES)
            .bind(milliseconds(SET_ASIDE))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn missing(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        let sql = format!(
            "SELECT w.row_id, w.provider_id, w.missing_count, {NOW} - w.missing_since AS lasting,
                    EXISTS (SELECT 1 FROM voice_sync_runs r
                            WHERE r.account = $2 AND r.found > 0
                              AND r.finished_at > w.missing_since) AS others_found
             FROM voice_sync_voices w
             WHERE w.run_id = $1 AND w.missing_count > 0 AND w.trouble IS NULL
               AND w.lease_until IS NULL AND w.provider_id IS NOT NULL
               AND w.row_id > $3
             ORDER BY w.row_id LIMIT $4"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(run_id.to_string())
            .bind(account.to_string())
            .bind(after.map_or("", RowId::as_str))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(MissingVoice {
                    row: RowId::new(row.try_get::<String, _>("row_id")?),
                    provider_id: row.try_get("provider_id")?,
                    times: row.try_get("missing_count")?,
                    lasting: elapsed(row.try_get("lasting")?),
                    others_found: row.try_get("others_found")?,
                })
            })
            .collect()
    }

    pub(super) async fn take_events(&self, limit: u32) -> Result<Vec<OutboxEvent>, StoreError> {
        let sql = format!(
            "UPDATE voice_sync_outbox SET leased_until = {NOW} + $2
             WHERE id IN (SELECT id FROM voice_sync_outbox
                          WHERE published_at IS NULL
                            AND (leased_until IS NULL OR leased_until <= {NOW})
                          ORDER BY id LIMIT $1)
             RETURNING id, event_id, event_type, voice_id, user_id, occurred_at"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(limit)
            .bind(milliseconds(OUTBOX_LEASE))
            .fetch_all(&self.pool)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.extend(event(row)?);
        }
        events.sort_by_key(|event| event.id);
        Ok(events)
    }

    pub(super) async fn mark_published(&self, ids: &[i64]) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE voice_sync_outbox SET published_at = {NOW}
             WHERE id IN (SELECT value FROM json_each($1)) AND published_at IS NULL"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(json!(ids).to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        const GIVE_BACK: &str = "UPDATE voice_sync_outbox SET leased_until = NULL
            WHERE id IN (SELECT value FROM json_each($1)) AND published_at IS NULL";
        sqlx::query(GIVE_BACK)
            .bind(json!(ids).to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn pending_events(&self) -> Result<Pending, StoreError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE leased_until IS NULL OR leased_until <= {NOW})
             FROM voice_sync_outbox WHERE published_at IS NULL"
        );
        let (all, unleased): (i64, i64) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await?;
        Ok(Pending {
            all: all.unsigned_abs(),
            unleased: unleased.unsigned_abs(),
        })
    }

    pub(super) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        let resume_after: Option<Option<String>> =
            sqlx::query_scalar("SELECT resume_after FROM voice_sync_runs ORDER BY id DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await?;
        let sql = format!(
            "SELECT u.key FROM voice_sync_provider p, json_each(p.unlisted) u
             WHERE p.account = $1 AND u.value > {NOW}"
        );
        let unlisted: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(account.to_string())
            .fetch_all(&self.pool)
            .await?;
        Ok(Memory {
            resume_after: resume_after.flatten().map(RowId::new),
            unlisted: unlisted.into_iter().collect(),
        })
    }

    pub(super) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const LEARN: &str = "
            INSERT INTO voice_sync_provider (account, unlisted) VALUES ($1, $2)
            ON CONFLICT (account) DO UPDATE SET unlisted = json_patch(unlisted, excluded.unlisted)";
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let sql = format!(
            "INSERT INTO voice_sync_runs (run_id, account, started_at, finished_at, duration_ms,
                                          exit_code, found, counts, resume_after)
             VALUES ($1, $2, $3, {NOW}, $4, $5, $6, $7, $8) RETURNING finished_at"
        );
        let finished_at: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(run.run_id.to_string())
            .bind(run.account.map(|account| account.to_string()))
            .bind(run.started_at.timestamp_millis())
            .bind(milliseconds(run.duration))
            .bind(run.exit_code)
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(run.counts.to_string())
            .bind(run.resume_after.as_ref().map(RowId::as_str))
            .fetch_one(&mut *transaction)
            .await?;
        if let (Some(account), false) = (run.account, run.unlisted.is_empty()) {
            let until = finished_at + milliseconds(Duration::from_secs(60 * 60));
            let unlisted: serde_json::Map<_, _> = run
                .unlisted
                .iter()
                .map(|kind| (kind.clone(), json!(until)))
                .collect();
            sqlx::query(LEARN)
                .bind(account.to_string())
                .bind(serde_json::Value::Object(unlisted).to_string())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(super) async fn tidy(&self) -> Result<(), StoreError> {
        const EVENTS: &str = "
            DELETE FROM voice_sync_outbox WHERE id IN (
                SELECT id FROM (SELECT id, published_at FROM voice_sync_outbox ORDER BY id LIMIT $2)
                WHERE published_at < $1)";
        const RUNS: &str = "
            DELETE FROM voice_sync_runs WHERE id IN (
                SELECT id FROM (SELECT id, finished_at FROM voice_sync_runs ORDER BY id LIMIT $2)
                WHERE finished_at < $1)";
        let Self {
            table,
            id,
            status,
            processing,
            ..
        } = self;
        let voices = format!(
            "DELETE FROM voice_sync_voices WHERE row_id IN (
                 SELECT w.row_id FROM voice_sync_voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < {NOW} - 86400000)
                   AND (w.failed_at < $1
                        OR (w.failed_at IS NULL
                            AND COALESCE(w.last_asked, w.first_seen) < {NOW} - 3600000
                            AND NOT EXISTS (SELECT 1 FROM {table} v
                                            WHERE v.{id} = +w.row_id AND v.{status} = {processing})))
                 LIMIT $2)"
        );
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let present: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")))
            .fetch_one(&mut *transaction)
            .await?;
        for sql in [
            AssertSqlSafe(EVENTS.to_owned()),
            AssertSqlSafe(RUNS.to_owned()),
            AssertSqlSafe(voices),
        ] {
            sqlx::query(sql)
                .bind(present - milliseconds(KEPT))
                .bind(TIDIED_AT_ONCE)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

impl KeyForm {
    /// A stored key as others read it. What is no UUID after all stays as it is.
    fn read(self, stored: &str) -> String {
        match self {
            Self::Plain => stored.to_owned(),
            Self::BareUuid => Uuid::parse_str(stored)
                .map_or_else(|_| stored.to_owned(), |uuid| uuid.hyphenated().to_string()),
        }
    }
}

/// The `n` of a declared type such as `VARCHAR(n)`.
fn length(declared: &str) -> Option<usize> {
    let (name, rest) = declared.split_once('(')?;
    let is_text = name.contains("CHAR") || name.contains("TEXT");
    rest.strip_suffix(')')?
        .trim()
        .parse()
        .ok()
        .filter(|_| is_text)
}

fn page(rows: &[SqliteRow], limit: u32) -> Result<Page, StoreError> {
    let mut page = Page::default();
    for row in rows {
        let id = RowId::new(row.try_get::<String, _>("row_id")?);
        if rows.len() >= limit as usize {
            page.last = Some(id.clone());
        }
        if row.try_get("leased")? {
            page.leased_elsewhere += 1;
        } else if !row.try_get::<bool, _>("resting")? {
            page.voices.push(Claimed {
                row: id,
                provider_id: row.try_get("provider_id")?,
                age: age(row)?,
                kind: row.try_get("kind")?,
            });
        }
    }
    Ok(page)
}

/// Time in processing: since the row was made or put back, or else since it was first seen.
fn age(row: &SqliteRow) -> Result<Duration, sqlx::Error> {
    let present: i64 = row.try_get("present")?;
    if row.try_get("restarts")? {
        return Ok(Duration::ZERO);
    }
    let created: Option<String> = row.try_get("created_at")?;
    let created = created
        .as_deref()
        .and_then(timestamp)
        .map(|time| time.timestamp_millis());
    let restarted: Option<i64> = row.try_get("restarted_at")?;
    let first_seen: Option<i64> = row.try_get("first_seen")?;
    let since = created.max(restarted).or(first_seen).unwrap_or(present);
    Ok(elapsed(present - since))
}

/// Reads a stored time: SQLAlchemy's text, ISO 8601 with or without a zone, or Unix seconds.
fn timestamp(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .map(|naive| naive.and_utc())
        .or_else(|| {
            DateTime::parse_from_rfc3339(text)
                .ok()
                .map(|time| time.to_utc())
        })
        .or_else(|| {
            DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z")
                .ok()
                .map(|time| time.to_utc())
        })
        .or_else(|| DateTime::from_timestamp(text.parse().ok()?, 0))
}

fn event(row: &SqliteRow) -> Result<Option<OutboxEvent>, sqlx::Error> {
    let event_type: String = row.try_get("event_type")?;
    let event_id: String = row.try_get("event_id")?;
    let occurred_at: i64 = row.try_get("occurred_at")?;
    // A newer version's event is left for it to publish.
    let (Some(event_type), Ok(event_id), Some(occurred_at)) = (
        EventType::parse(&event_type),
        Uuid::parse_str(&event_id),
        DateTime::from_timestamp_millis(occurred_at),
    ) else {
        return Ok(None);
    };
    Ok(Some(OutboxEvent {
        id: row.try_get("id")?,
        event_id,
        event_type,
        voice_id: row.try_get("voice_id")?,
        user_id: row.try_get("user_id")?,
        occurred_at,
    }))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn elapsed(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_stored_time_is_read() {
        for text in [
            "2026-11-02 08:00:00.000000",
            "2026-11-02 08:00:00",
            "2026-11-02T08:00:00",
            "2026-11-02T08:00:00Z",
            "2026-11-02 09:00:00+01:00",
            "2026-11-02T09:00:00.000+01:00",
            "1793606400",
        ] {
            let read = timestamp(text).expect(text);
            assert_eq!(read.timestamp(), 1_793_606_400, "{text}");
        }
        for text in ["", "yesterday", "2026-13-02 08:00:00"] {
            assert_eq!(timestamp(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_column_of_32_characters_holds_a_uuid_without_dashes() {
        assert_eq!(length("CHAR(32)"), Some(32));
        assert_eq!(length("VARCHAR( 1024 )"), Some(1024));
        assert_eq!(length("TEXT"), None);
        assert_eq!(length("NUMERIC(10)"), None);
        let bare = "0b8f1c527f0e4a6e9f7a3a4a4c1f1a11";
        assert_eq!(
            KeyForm::BareUuid.read(bare),
            "0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11"
        );
        assert_eq!(KeyForm::BareUuid.read("seven"), "seven");
        assert_eq!(KeyForm::Plain.read(bare), bare);
    }
}
