//! The store on PostgreSQL: one statement, and so one transaction, for each operation.
//!
//! Parameters are arrays, cast to the column's type (`$1::text[]::uuid[]`): columns are never cast,
//! so that their indexes serve. Own rows are locked with SKIP LOCKED, and no lock outlives its
//! statement.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, PgPool, Row};
use tracing::warn;
use uuid::Uuid;

use super::table::{Identifier, Misfit, Names, absent, literal};
use super::{
    ACQUIRE_TIMEOUT, Applied, Claimed, KEPT, LEASE, MAX_STRIKES, Memory, MissingVoice, Note,
    OUTBOX_LEASE, Page, Pending, Record, Run, SET_ASIDE, Seen, Selection, StoreError,
    TIDIED_AT_ONCE, Target, Transition,
};
use crate::events::{EventType, OutboxEvent, event_id};
use crate::voice::RowId;

/// Connections: enough to claim, apply and relay at once, few enough for any server.
const POOL_SIZE: u32 = 4;

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgPool, StoreError> {
    crate::tls::install();
    // A ping before each statement would double the round trips; a dead connection shows itself by
    // an error that is tried again.
    let pool = PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options.clone());
    pool.acquire().await?;
    Ok(pool)
}

/// The application's table as SQL needs it: names quoted, values quoted and cast.
pub struct PostgresStore {
    pool: PgPool,
    table: String,
    id: String,
    id_type: String,
    user_id: String,
    provider_id: String,
    status: String,
    preview_url: String,
    completed_at: String,
    created_at: String,
    processing: String,
    completed: String,
    failed: String,
    /// The present, in the type of the column `completed_at`.
    completed_now: &'static str,
    preview_room: Option<usize>,
    own_tables: bool,
}

struct Column {
    name: String,
    sql_type: String,
    /// Of `varchar(n)`.
    length: Option<usize>,
    labels: Vec<String>,
}

const COLUMNS: &str = "
    SELECT a.attname::text AS name,
           format_type(a.atttypid, NULL) AS sql_type,
           CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
                THEN a.atttypmod - 4 END AS length,
           ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = a.atttypid
                 ORDER BY e.enumsortorder) AS labels
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

impl PostgresStore {
    pub(super) async fn open(
        pool: PgPool,
        names: &Names,
        own_tables: bool,
    ) -> Result<Self, StoreError> {
        let table = names.table.quoted();
        let columns: Vec<Column> = sqlx::query(COLUMNS)
            .bind(&table)
            .fetch_all(&pool)
            .await?
            .into_iter()
            .map(column)
            .collect::<Result<_, _>>()?;
        if columns.is_empty() {
            return Err(Misfit::NoTable { table }.into());
        }
        let find = |name: &Identifier| columns.iter().find(|column| column.name == name.as_str());
        let c = &names.columns;
        let needed = [
            &c.id,
            &c.elevenlabs_voice_id,
            &c.status,
            &c.preview_url,
            &c.completed_at,
        ];
        absent(&table, &needed.map(|name| (name, find(name).is_some())))?;
        let [
            Some(id),
            Some(provider_id),
            Some(status),
            Some(preview_url),
            Some(completed_at),
        ] = needed.map(find)
        else {
            unreachable!("absent() has found them all");
        };

        check_labels(&table, status, names)?;
        let completed_now = match completed_at.sql_type.as_str() {
            "timestamp without time zone" => "(now() AT TIME ZONE 'UTC')",
            "timestamp with time zone" => "now()",
            "text" | "character varying" => {
                "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
            }
            _ => {
                return Err(Misfit::Type {
                    table,
                    column: c.completed_at.quoted(),
                    sql_type: completed_at.sql_type.clone(),
                    wanted: "timestamp or timestamptz",
                }
                .into());
            }
        };
        let created = find(&c.created_at);
        let created_at = match created.map(|column| column.sql_type.as_str()) {
            Some("timestamp without time zone") => {
                format!("(v.{} AT TIME ZONE 'UTC')", c.created_at.quoted())
            }
            Some("timestamp with time zone") => format!("v.{}", c.created_at.quoted()),
            Some(other) => {
                warn!(
                    column = c.created_at.as_str(),
                    sql_type = other,
                    "the column is no timestamp; voices age from when they are first seen"
                );
                "NULL::timestamptz".to_owned()
            }
            None => "NULL::timestamptz".to_owned(),
        };
        let user_id = match find(&c.user_id) {
            Some(_) => format!("v.{}::text", c.user_id.quoted()),
            None => {
                warn!(
                    column = c.user_id.as_str(),
                    "the table has no such column; events carry no user"
                );
                "NULL::text".to_owned()
            }
        };
        let value = |text: &str| format!("{}::{}", literal(text), status.sql_type);
        Ok(Self {
            id: c.id.quoted(),
            id_type: id.sql_type.clone(),
            user_id,
            provider_id: format!("{}::text", c.elevenlabs_voice_id.quoted()),
            status: c.status.quoted(),
            preview_url: c.preview_url.quoted(),
            completed_at: c.completed_at.quoted(),
            created_at,
            processing: value(&names.statuses.processing),
            completed: value(&names.statuses.completed),
            failed: value(&names.statuses.failed),
            completed_now,
            preview_room: preview_url.length,
            own_tables,
            table,
            pool,
        }
        .with_plain_provider_id(provider_id))
    }

    /// Text columns are compared as they are; only other types need a cast to be read.
    fn with_plain_provider_id(mut self, column: &Column) -> Self {
        if matches!(column.sql_type.as_str(), "text" | "character varying") {
            self.provider_id
                .truncate(self.provider_id.len() - "::text".len());
        }
        self
    }

    pub(super) fn into_pool(self) -> PgPool {
        self.pool
    }

    pub(super) fn preview_room(&self) -> Option<usize> {
        self.preview_room
    }

    /// The condition that selects voices, on `v`, and its parameters `$1` and `$2`.
    fn condition(&self, selection: &Selection) -> (String, [Vec<String>; 2]) {
        let Self {
            id,
            id_type,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let base = format!("v.{status} = {processing}");
        match selection {
            Selection::Range { after, up_to } => {
                let mut condition = base;
                let bound =
                    |row: &Option<RowId>| row.iter().map(|r| r.as_str().to_owned()).collect();
                if after.is_some() {
                    condition.push_str(&format!(" AND v.{id} > ($1::text[]::{id_type}[])[1]"));
                }
                if up_to.is_some() {
                    condition.push_str(&format!(" AND v.{id} <= ($2::text[]::{id_type}[])[1]"));
                }
                (condition, [bound(after), bound(up_to)])
            }
            Selection::Named(names) => {
                // A text that is no key of this type is none of a row either.
                let rows = names
                    .iter()
                    .filter(|name| could_be(name, id_type))
                    .cloned()
                    .collect();
                let condition = format!(
                    "{base} AND (v.{id} = ANY($1::text[]::{id_type}[]) OR v.{provider_id} = ANY($2::text[]))"
                );
                (condition, [rows, names.clone()])
            }
        }
    }

    /// The page of voices in processing, joined with what is known of them.
    fn page_sql(&self, condition: &str) -> String {
        let Self {
            table,
            id,
            provider_id,
            created_at,
            ..
        } = self;
        let known = match self.own_tables {
            true => "voice_sync.voices",
            false => {
                "(SELECT NULL::text AS row_id, NULL::text AS provider_id, NULL::timestamptz AS first_seen,
                         NULL::timestamptz AS restarted_at, NULL::uuid AS run_id,
                         NULL::timestamptz AS lease_until, NULL::text AS kind,
                         NULL::timestamptz AS set_aside_until, NULL::timestamptz AS failed_at)"
            }
        };
        format!(
            "SELECT p.*, w.row_id IS NOT NULL AS known, w.kind,
                    w.row_id IS NOT NULL AND (w.provider_id IS DISTINCT FROM p.provider_id
                                              OR w.failed_at IS NOT NULL) AS restarts,
                    COALESCE(w.lease_until > now() AND w.run_id <> $4, FALSE) AS leased,
                    COALESCE(w.set_aside_until > now(), FALSE)
                        AND w.provider_id IS NOT DISTINCT FROM p.provider_id AS resting,
                    w.first_seen, w.restarted_at
             FROM (SELECT v.{id} AS id, v.{id}::text AS row_id, v.{provider_id} AS provider_id,
                          {created_at} AS created_at
                   FROM {table} v WHERE {condition} ORDER BY v.{id} LIMIT $3) p
             LEFT JOIN {known} w ON w.row_id = p.row_id"
        )
    }

    /// Seconds in processing: since the row was made or put back, or else since it was first seen.
    const AGE: &str = "GREATEST(0, extract(epoch FROM now() - CASE WHEN p.restarts THEN now()
        ELSE COALESCE(GREATEST(p.created_at, p.restarted_at), p.first_seen, now()) END))::float8";

    pub(super) async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (condition, [first, second]) = self.condition(selection);
        let sql = format!(
            "WITH p AS MATERIALIZED ({page}),
             free AS (
                 SELECT w.row_id FROM voice_sync.voices w JOIN p USING (row_id)
                 WHERE (w.lease_until IS NULL OR w.lease_until <= now() OR w.run_id = $4)
                   AND (NOT p.resting OR $6)
                 FOR UPDATE OF w SKIP LOCKED
             ),
             renewed AS (
                 UPDATE voice_sync.voices w
                 SET run_id = $4, lease_until = now() + make_interval(secs => $5),
                     provider_id = p.provider_id,
                     first_seen = CASE WHEN p.restarts THEN now() ELSE w.first_seen END,
                     restarted_at = CASE WHEN p.restarts THEN now() ELSE w.restarted_at END,
                     missing_count = CASE WHEN p.restarts THEN 0 ELSE w.missing_count END,
                     missing_since = CASE WHEN p.restarts THEN NULL ELSE w.missing_since END,
                     strikes = CASE WHEN p.restarts THEN 0 ELSE w.strikes END,
                     set_aside_until = NULL,
                     kind = CASE WHEN p.restarts THEN NULL ELSE w.kind END,
                     failed_at = NULL, failure = NULL
                 FROM free JOIN p USING (row_id) WHERE w.row_id = free.row_id
                 RETURNING w.row_id
             ),
             fresh AS (
                 INSERT INTO voice_sync.voices (row_id, provider_id, run_id, lease_until)
                 SELECT p.row_id, p.provider_id, $4, now() + make_interval(secs => $5)
                 FROM p WHERE NOT p.known
                 ON CONFLICT (row_id) DO NOTHING
                 RETURNING row_id
             )
             SELECT p.row_id, p.provider_id, p.kind, {age} AS age,
                    NOT p.resting AND c.row_id IS NULL AS leased,
                    c.row_id IS NOT NULL AS claimed
             FROM p LEFT JOIN (TABLE renewed UNION ALL TABLE fresh) c USING (row_id)
             ORDER BY p.id",
            page = self.page_sql(&condition),
            age = Self::AGE,
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(first)
            .bind(second)
            .bind(i64::from(limit))
            .bind(run_id)
            .bind(LEASE.as_secs_f64())
            .bind(matches!(selection, Selection::Named(_)))
            .fetch_all(&self.pool)
            .await?;
        page(rows, limit)
    }

    pub(super) async fn peek(&self, selection: &Selection, limit: u32) -> Result<Page, StoreError> {
        let (condition, [first, second]) = self.condition(selection);
        let sql = format!(
            "SELECT p.row_id, p.provider_id, p.kind, {age} AS age, p.leased,
                    NOT p.leased AND (NOT p.resting OR $5) AS claimed
             FROM ({page}) p ORDER BY p.id",
            page = self.page_sql(&condition),
            age = Self::AGE,
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(first)
            .bind(second)
            .bind(i64::from(limit))
            .bind(Uuid::nil())
            .bind(matches!(selection, Selection::Named(_)))
            .fetch_all(&self.pool)
            .await?;
        page(rows, limit)
    }

    pub(super) async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (condition, [first, second]) = self.condition(selection);
        let sql = format!("SELECT count(*) FROM {} v WHERE {condition}", self.table);
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(first)
            .bind(second)
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
        let mut ids = Vec::with_capacity(transitions.len());
        let mut provider_ids = Vec::with_capacity(transitions.len());
        let mut completes = Vec::with_capacity(transitions.len());
        let mut previews = Vec::with_capacity(transitions.len());
        let mut reasons = Vec::with_capacity(transitions.len());
        let mut event_ids = Vec::with_capacity(transitions.len());
        for Transition {
            row,
            provider_id,
            target,
        } in transitions
        {
            let (preview, reason) = match target {
                Target::Completed { preview_url } => (preview_url.as_deref(), None),
                Target::Failed { reason } => (None, Some(reason.as_str())),
            };
            ids.push(row.as_str());
            provider_ids.push(provider_id.as_str());
            completes.push(reason.is_none());
            previews.push(preview);
            reasons.push(reason);
            event_ids.push(event_id(row, provider_id, target.event_type()));
        }
        let Self {
            table,
            id,
            id_type,
            user_id,
            provider_id,
            status,
            preview_url,
            completed_at,
            processing,
            completed,
            failed,
            completed_now,
            ..
        } = self;
        let (created, updated) = (EventType::VoiceCreated, EventType::VoiceUpdated);
        let sql = format!(
            "WITH answer AS (
                 SELECT * FROM unnest($1::text[]::{id_type}[], $2::text[], $3::bool[], $4::text[],
                                      $5::text[], $6::uuid[])
                     AS a (id, provider_id, completes, preview, reason, event_id)
             ),
             moved AS (
                 UPDATE {table} v
                 SET {status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END,
                     {preview_url} = CASE WHEN a.completes THEN COALESCE(a.preview, v.{preview_url})
                                          ELSE v.{preview_url} END,
                     {completed_at} = CASE WHEN a.completes THEN {completed_now}
                                           ELSE v.{completed_at} END
                 FROM answer a
                 WHERE v.{id} = a.id AND v.{status} = {processing} AND v.{provider_id} = a.provider_id
                 RETURNING a.id::text AS row_id, a.completes, a.reason, a.event_id,
                           {user_id} AS user_id
             ),
             recorded AS (
                 INSERT INTO voice_sync.outbox (event_id, event_type, voice_id, user_id, leased_until)
                 SELECT event_id, CASE WHEN completes THEN '{created}' ELSE '{updated}' END, row_id,
                        user_id, now() + make_interval(secs => $9)
                 FROM moved WHERE $8
                 RETURNING id, voice_id, event_id, event_type, user_id, occurred_at
             ),
             explained AS (
                 UPDATE voice_sync.voices w
                 SET lease_until = NULL, last_asked = now(), failed_at = now(), failure = m.reason
                 FROM moved m
                 WHERE NOT m.completes AND w.row_id = m.row_id AND w.run_id = $7
             ),
             forgotten AS (
                 DELETE FROM voice_sync.voices w USING answer a
                 WHERE w.row_id = a.id::text AND w.run_id = $7
                   AND NOT EXISTS (SELECT FROM moved m WHERE m.row_id = w.row_id AND NOT m.completes)
             )
             SELECT m.row_id, r.id, r.event_id, r.event_type, r.voice_id, r.user_id, r.occurred_at
             FROM moved m LEFT JOIN recorded r ON r.voice_id = m.row_id
             ORDER BY r.id"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(ids)
            .bind(provider_ids)
            .bind(completes)
            .bind(previews)
            .bind(reasons)
            .bind(event_ids)
            .bind(run_id)
            .bind(record.is_wanted())
            .bind(record.lease().as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
        let mut applied = Applied::default();
        for row in rows {
            applied
                .moved
                .insert(RowId::new(row.try_get::<String, _>("row_id")?));
            if row.try_get::<Option<i64>, _>("id")?.is_some() {
                applied.events.extend(event(&row)?);
            }
        }
        Ok(applied)
    }

    pub(super) async fn note(&self, run_id: Uuid, notes: &[Note]) -> Result<(), StoreError> {
        const NOTE: &str = "
            UPDATE voice_sync.voices w
            SET lease_until = NULL,
                last_asked = CASE WHEN n.seen = 'unavailable' THEN w.last_asked ELSE now() END,
                kind = COALESCE(n.kind, w.kind),
                stage = CASE WHEN n.seen = 'unavailable' THEN w.stage ELSE n.stage END,
                missing_count = CASE n.seen WHEN 'missing' THEN w.missing_count + 1
                                            WHEN 'unavailable' THEN w.missing_count ELSE 0 END,
                missing_since = CASE n.seen WHEN 'missing' THEN COALESCE(w.missing_since, now())
                                            WHEN 'unavailable' THEN w.missing_since END,
                strikes = CASE n.seen WHEN 'set_aside' THEN w.strikes + 1
                                      WHEN 'unavailable' THEN w.strikes ELSE 0 END,
                set_aside_until = CASE WHEN n.seen = 'set_aside' AND w.strikes + 1 >= $7
                                       THEN now() + make_interval(secs => $8) END,
                trouble = n.trouble
            FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
                     AS n (row_id, seen, kind, stage, trouble)
            WHERE w.row_id = n.row_id AND w.run_id = $1 AND w.lease_until IS NOT NULL";
        let mut rows = Vec::with_capacity(notes.len());
        let mut seens = Vec::with_capacity(notes.len());
        let mut kinds = Vec::with_capacity(notes.len());
        let mut stages = Vec::with_capacity(notes.len());
        let mut troubles = Vec::with_capacity(notes.len());
        for Note { row, seen } in notes {
            let (word, kind, stage, trouble) = seen.columns();
            rows.push(row.as_str());
            seens.push(word);
            kinds.push(kind);
            stages.push(stage);
            troubles.push(trouble);
        }
        sqlx::query(NOTE)
            .bind(run_id)
            .bind(rows)
            .bind(seens)
            .bind(kinds)
            .bind(stages)
            .bind(troubles)
            .bind(i32::try_from(MAX_STRIKES).unwrap_or(i32::MAX))
            .bind(SET_ASIDE.as_secs_f64())
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
        const MISSING: &str = "
            SELECT w.row_id, w.provider_id, w.missing_count,
                   extract(epoch FROM now() - w.missing_since)::float8 AS lasting,
                   EXISTS (SELECT FROM voice_sync.runs r
                           WHERE r.account = $2 AND r.found > 0 AND r.finished_at > w.missing_since
                          ) AS others_found
            FROM voice_sync.voices w
            WHERE w.run_id = $1 AND w.missing_count > 0 AND w.trouble IS NULL
               AND w.lease_until IS NULL AND w.provider_id IS NOT NULL
              AND w.row_id > $3
            ORDER BY w.row_id LIMIT $4";
        let rows = sqlx::query(MISSING)
            .bind(run_id)
            .bind(account)
            .bind(after.map_or("", RowId::as_str))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(MissingVoice {
                    row: RowId::new(row.try_get::<String, _>("row_id")?),
                    provider_id: row.try_get("provider_id")?,
                    times: row.try_get::<i32, _>("missing_count")?.unsigned_abs(),
                    lasting: seconds(row.try_get("lasting")?),
                    others_found: row.try_get("others_found")?,
                })
            })
            .collect()
    }

    pub(super) async fn take_events(&self, limit: u32) -> Result<Vec<OutboxEvent>, StoreError> {
        const TAKE: &str = "
            WITH free AS (
                SELECT id FROM voice_sync.outbox
                WHERE published_at IS NULL AND (leased_until IS NULL OR leased_until <= now())
                ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
            ),
            taken AS (
                UPDATE voice_sync.outbox o SET leased_until = now() + make_interval(secs => $2)
                FROM free WHERE o.id = free.id
                RETURNING o.id, o.event_id, o.event_type, o.voice_id, o.user_id, o.occurred_at
            )
            SELECT * FROM taken ORDER BY id";
        let rows = sqlx::query(TAKE)
            .bind(i64::from(limit))
            .bind(OUTBOX_LEASE.as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.extend(event(row)?);
        }
        Ok(events)
    }

    pub(super) async fn mark_published(&self, ids: &[i64]) -> Result<(), StoreError> {
        const MARK: &str = "UPDATE voice_sync.outbox SET published_at = now()
                            WHERE id = ANY($1) AND published_at IS NULL";
        sqlx::query(MARK).bind(ids).execute(&self.pool).await?;
        Ok(())
    }

    pub(super) async fn give_back_events(&self, ids: &[i64]) -> Result<(), StoreError> {
        const GIVE_BACK: &str = "UPDATE voice_sync.outbox SET leased_until = NULL
                                 WHERE id = ANY($1) AND published_at IS NULL";
        sqlx::query(GIVE_BACK).bind(ids).execute(&self.pool).await?;
        Ok(())
    }

    pub(super) async fn pending_events(&self) -> Result<Pending, StoreError> {
        const PENDING: &str = "
            SELECT count(*), count(*) FILTER (WHERE leased_until IS NULL OR leased_until <= now())
            FROM voice_sync.outbox WHERE published_at IS NULL";
        let (all, unleased): (i64, i64) = sqlx::query_as(PENDING).fetch_one(&self.pool).await?;
        Ok(Pending {
            all: all.unsigned_abs(),
            unleased: unleased.unsigned_abs(),
        })
    }

    pub(super) async fn remember(&self, account: Uuid) -> Result<Memory, StoreError> {
        const REMEMBER: &str = "
            SELECT (SELECT resume_after FROM voice_sync.runs ORDER BY id DESC LIMIT 1),
                   ARRAY(SELECT u.key FROM voice_sync.provider p, jsonb_each_text(p.unlisted) u
                         WHERE p.account = $1 AND u.value::timestamptz > now())";
        let (resume_after, unlisted): (Option<String>, Vec<String>) = sqlx::query_as(REMEMBER)
            .bind(account)
            .fetch_one(&self.pool)
            .await?;
        Ok(Memory {
            resume_after: resume_after.map(RowId::new),
            unlisted: unlisted.into_iter().collect(),
        })
    }

    pub(super) async fn record_run(&self, run: &Run) -> Result<(), StoreError> {
        const RECORD: &str = "
            WITH learned AS (
                INSERT INTO voice_sync.provider (account, unlisted)
                SELECT $2, jsonb_object_agg(kind, now() + interval '1 hour')
                FROM unnest($9::text[]) kind WHERE $2 IS NOT NULL HAVING count(*) > 0
                ON CONFLICT (account) DO UPDATE
                SET unlisted = voice_sync.provider.unlisted || EXCLUDED.unlisted
            )
            INSERT INTO voice_sync.runs (run_id, account, started_at, duration_ms, exit_code, found,
                                         counts, resume_after)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(RECORD)
            .bind(run.run_id)
            .bind(run.account)
            .bind(run.started_at)
            .bind(i64::try_from(run.duration.as_millis()).unwrap_or(i64::MAX))
            .bind(i16::from(run.exit_code))
            .bind(i64::try_from(run.found).unwrap_or(i64::MAX))
            .bind(&run.counts)
            .bind(run.resume_after.as_ref().map(RowId::as_str))
            .bind(&run.unlisted)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn tidy(&self) -> Result<(), StoreError> {
        let Self {
            table,
            id,
            id_type,
            status,
            processing,
            ..
        } = self;
        // Only the oldest rows are looked at, by their primary keys: no scan, whatever the size.
        let sql = format!(
            "WITH old_events AS (
                 DELETE FROM voice_sync.outbox WHERE id IN (
                     SELECT id FROM (SELECT id, published_at FROM voice_sync.outbox
                                     ORDER BY id LIMIT $2) o
                     WHERE published_at < now() - make_interval(secs => $1))
             ),
             old_runs AS (
                 DELETE FROM voice_sync.runs WHERE id IN (
                     SELECT id FROM (SELECT id, finished_at FROM voice_sync.runs
                                     ORDER BY id LIMIT $2) r
                     WHERE finished_at < now() - make_interval(secs => $1))
             ),
             left_behind AS (
                 SELECT w.row_id FROM voice_sync.voices w
                 WHERE (w.lease_until IS NULL OR w.lease_until < now() - interval '1 day')
                   AND (w.failed_at < now() - make_interval(secs => $1)
                        OR (w.failed_at IS NULL
                            AND COALESCE(w.last_asked, w.first_seen) < now() - interval '1 hour'
                            AND NOT EXISTS (
                                SELECT FROM {table} v WHERE v.{id} = w.row_id::{id_type}
                                AND v.{status} = {processing})))
                 LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM voice_sync.voices w USING left_behind l WHERE w.row_id = l.row_id"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(KEPT.as_secs_f64())
            .bind(TIDIED_AT_ONCE)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn column(row: PgRow) -> Result<Column, sqlx::Error> {
    Ok(Column {
        name: row.try_get("name")?,
        sql_type: row.try_get("sql_type")?,
        length: row
            .try_get::<Option<i32>, _>("length")?
            .and_then(|length| usize::try_from(length).ok()),
        labels: row.try_get("labels")?,
    })
}

fn check_labels(table: &str, status: &Column, names: &Names) -> Result<(), Misfit> {
    for value in names.statuses.all() {
        if !status.labels.is_empty() && !status.labels.iter().any(|label| label == value) {
            return Err(Misfit::Label {
                table: table.to_owned(),
                column: names.columns.status.quoted(),
                value: value.to_owned(),
                labels: status.labels.join(", "),
            });
        }
    }
    Ok(())
}

/// Whether a text that a person typed could be a key of this type at all.
fn could_be(text: &str, sql_type: &str) -> bool {
    match sql_type {
        "uuid" => Uuid::parse_str(text).is_ok(),
        "bigint" => text.parse::<i64>().is_ok(),
        "integer" => text.parse::<i32>().is_ok(),
        "smallint" => text.parse::<i16>().is_ok(),
        _ => !text.contains('\0'),
    }
}

fn page(rows: Vec<PgRow>, limit: u32) -> Result<Page, StoreError> {
    let full = rows.len() >= limit as usize;
    let mut page = Page::default();
    for row in &rows {
        if row.try_get("claimed")? {
            page.voices.push(Claimed {
                row: RowId::new(row.try_get::<String, _>("row_id")?),
                provider_id: row.try_get("provider_id")?,
                age: seconds(row.try_get("age")?),
                kind: row.try_get("kind")?,
            });
        } else if row.try_get("leased")? {
            page.leased_elsewhere += 1;
        }
    }
    if let (true, Some(last)) = (full, rows.last()) {
        page.last = Some(RowId::new(last.try_get::<String, _>("row_id")?));
    }
    Ok(page)
}

fn event(row: &PgRow) -> Result<Option<OutboxEvent>, sqlx::Error> {
    let event_type: String = row.try_get("event_type")?;
    // A newer version's event is left for it to publish.
    let Some(event_type) = EventType::parse(&event_type) else {
        return Ok(None);
    };
    Ok(Some(OutboxEvent {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        event_type,
        voice_id: row.try_get("voice_id")?,
        user_id: row.try_get("user_id")?,
        occurred_at: row.try_get::<DateTime<Utc>, _>("occurred_at")?,
    }))
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl Seen {
    /// As the columns `seen`, `kind`, `stage` and `trouble`.
    pub(super) fn columns(&self) -> (&'static str, Option<&str>, Option<String>, Option<&str>) {
        match self {
            Self::Processing { kind, stage } => {
                ("processing", Some(kind), Some(stage.to_string()), None)
            }
            Self::Missing => ("missing", None, None, None),
            Self::SetAside(reason) => ("set_aside", None, None, Some(reason)),
            Self::Unavailable(trouble) => ("unavailable", None, None, Some(trouble)),
        }
    }
}
