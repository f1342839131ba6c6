//! Taking voices in processing, page by page.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{PostgresStore, is_ahead, seconds};
use crate::store::{
    Agenda, Claimed, Isolated, LEASE, LONGEST_BUS_PAUSE, LONGEST_ISOLATED_SCHEDULE,
    LONGEST_SCHEDULE, NEXT, OUTBOX_LEASE, Overview, Page, REFUSED, SET_ASIDE, Selection,
    StoreError, Upcoming, present,
};
use crate::verdict::Age;
use crate::voice::{Position, RowId};

impl PostgresStore {
    /// Whether the row `v` has one of the keys that are this parameter.
    pub(super) fn is_row(&self, parameter: u8) -> String {
        let Self { id, id_type, .. } = self;
        // A text that can be no key of the column's type must not be cast to it.
        match is_castable(id_type) {
            true => format!("v.{id} = ANY(${parameter}::text[]::{id_type}[])"),
            false => format!("v.{id}::text = ANY(${parameter}::text[])"),
        }
    }

    /// Whether the row `v` is the one that is known as `w` in `voice_sync.voices`, which may have rows of another
    /// table too: their keys may be of another type.
    pub(super) fn is_row_of_own(&self) -> String {
        let Self { id, id_type, .. } = self;
        let digits = |least: i64, most: i64| {
            format!(
                "CASE WHEN w.row_id ~ '^-?[0-9]{{1,19}}$' THEN
                     CASE WHEN w.row_id::numeric BETWEEN {least} AND {most} THEN w.row_id::{id_type} END END"
            )
        };
        let key = match id_type.as_str() {
            "uuid" => "CASE WHEN w.row_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN w.row_id::uuid END".to_owned(),
            "bigint" => digits(i64::MIN, i64::MAX),
            "integer" => digits(i32::MIN.into(), i32::MAX.into()),
            "smallint" => digits(i16::MIN.into(), i16::MAX.into()),
            other if is_castable(other) => format!("w.row_id::{other}"),
            _ => return format!("v.{id}::text = w.row_id"),
        };
        format!("v.{id} = {key}")
    }

    /// Voices `w` of `voice_sync.voices`, each with its row `v` in processing if it has the same provider id.
    ///
    /// By index, one row after the other, where a text can be cast to a key: PostgreSQL would rather read all of a
    /// table, in order to hash it, than stop at the first few.
    fn known_in_processing(&self) -> String {
        let Self {
            table,
            id_type,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let is_same = format!(
            "{} AND v.{status} = {processing} AND v.{provider_id} IS NOT DISTINCT FROM w.provider_id",
            self.is_row_of_own()
        );
        match is_castable(id_type) {
            true => format!(
                "voice_sync.voices w CROSS JOIN LATERAL (SELECT FROM {table} v WHERE {is_same} OFFSET 0) v"
            ),
            false => format!("voice_sync.voices w JOIN {table} v ON {is_same}"),
        }
    }

    /// The condition that selects voices, on `v`, and its parameters: rows as bounds `$1`, and names
    /// that may be those of rows `$2` or of voices `$3`.
    fn condition(&self, selection: &Selection) -> (String, [Vec<String>; 3]) {
        let Self {
            id,
            id_type,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let is_row = self.is_row(2);
        let is_named = match selection {
            Selection::Due { .. } => is_row,
            Selection::Range { .. } | Selection::Named(_) | Selection::Hinted { .. } => {
                format!("({is_row} OR v.{provider_id} = ANY($3::text[]))")
            }
        };
        let ([after, up_to], names, filter) = selection.parts(&is_named);
        let mut bounds = Vec::new();
        let is_processing = match selection {
            // By key, whatever index the status has: PostgreSQL may know nothing of a table that is new, and would
            // rather compare all voices in processing with all keys.
            Selection::Due { .. } => format!("(v.{status} = {processing}) IS TRUE"),
            Selection::Range { .. } | Selection::Named(_) | Selection::Hinted { .. } => {
                format!("v.{status} = {processing}")
            }
        };
        let mut condition = format!("{is_processing} AND v.{id} IS NOT NULL{filter}");
        for (comparison, position) in [(">", after), ("<=", up_to)] {
            if let Some(position) = position {
                bounds.push(position.as_str().to_owned());
                let place = bounds.len();
                condition.push_str(&format!(
                    " AND v.{id} {comparison} ($1::text[]::{id_type}[])[{place}]"
                ));
            }
        }
        // A text that is no key of this type is none of a row either.
        let rows = names.iter().filter(|name| could_be(name, id_type));
        let rows = rows.cloned().collect();
        (condition, [bounds, rows, names.to_vec()])
    }

    /// The page of voices in processing, joined with what is known of them.
    ///
    /// By index, one row after the other: PostgreSQL would rather read all of a table whose rows come and
    /// go, and that it has never counted, for each page anew.
    fn page_sql(&self, condition: &str) -> String {
        let Self {
            table,
            id,
            provider_id,
            created_at,
            completed_before,
            ..
        } = self;
        let known = self.known();
        let same = "(w.row_id IS NOT NULL AND w.failed_at IS NULL AND w.provider_id IS NOT DISTINCT FROM p.provider_id)";
        let (leased, set_aside, quarantined) = (
            is_ahead("w.lease_until", LEASE),
            is_ahead("w.set_aside_until", SET_ASIDE),
            quarantined(),
        );
        format!(
            "SELECT p.*, w.row_id IS NOT NULL AS known, w.kind,
                    w.row_id IS NOT NULL AND (w.provider_id IS DISTINCT FROM p.provider_id
                                              OR w.failed_at IS NOT NULL) AS restarts,
                    COALESCE({leased} AND w.run_id <> $5, FALSE) AS leased,
                    COALESCE(w.lease_until IS NOT NULL AND NOT {leased} AND w.run_id <> $5, FALSE) AS abandoned,
                    extract(epoch FROM now() - w.last_asked)::float8 AS asked_ago,
                    {same} AND {set_aside} AS resting,
                    {same} AND w.isolated AS isolated, {same} AND {quarantined} AS quarantined,
                    CASE WHEN {same} THEN w.unanswered ELSE 0 END AS unanswered,
                    w.first_seen, w.restarted_at
             FROM (SELECT v.{id} AS id, v.{id}::text AS row_id, v.{provider_id} AS provider_id,
                          GREATEST({created_at}, {completed_before}) AS created_at,
                          ({completed_before}) IS NOT NULL AS was_finished
                   FROM {table} v WHERE {condition} ORDER BY v.{id} LIMIT $4) p
             LEFT JOIN LATERAL (SELECT * FROM {known} k WHERE k.row_id = p.row_id OFFSET 0) w ON TRUE
             WHERE $6::timestamptz IS NULL OR w.scheduled_at IS NULL OR w.scheduled_at <= $6
                OR w.scheduled_at > now()"
        )
    }

    /// What is known of voices: nothing, where voice-sync has no tables yet.
    pub(super) fn known(&self) -> &'static str {
        match self.own_tables {
            true => "voice_sync.voices",
            false => {
                "(SELECT NULL::text AS row_id, NULL::text AS provider_id, NULL::timestamptz AS first_seen,
                         NULL::timestamptz AS restarted_at, NULL::uuid AS run_id,
                         NULL::timestamptz AS lease_until, NULL::timestamptz AS last_asked,
                         NULL::text AS kind, NULL::text AS stage, NULL::integer AS missing_count,
                         NULL::timestamptz AS missing_since, NULL::integer AS strikes,
                         NULL::timestamptz AS set_aside_until, NULL::text AS trouble,
                         NULL::timestamptz AS failed_at, NULL::text AS failure,
                         NULL::timestamptz AS next_due, NULL::timestamptz AS scheduled_at,
                         NULL::boolean AS isolated, NULL::integer AS unanswered,
                         NULL::timestamptz AS unanswered_since)"
            }
        }
    }

    /// Seconds in processing: since the row was made or put back, or else since it was first seen.
    pub(super) const AGE: &str =
        "GREATEST(0, date_part('epoch', now() - CASE WHEN p.restarts THEN now()
        ELSE COALESCE(GREATEST(p.created_at, p.restarted_at), p.first_seen, now()) END))";

    /// Seconds since the row was first seen in processing with this provider id.
    pub(super) const WITNESSED: &str =
        "GREATEST(0, date_part('epoch', now() - CASE WHEN p.restarts THEN now()
        ELSE COALESCE(GREATEST(p.first_seen, p.restarted_at), now()) END))";

    pub(in crate::store) async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (condition, [bounds, rows, names]) = self.condition(selection);
        let skipped = skipped(selection);
        let sql = format!(
            "WITH p AS MATERIALIZED ({page}),
             -- A row that changed since the statement began is locked and not found again by its place:
             -- it counts as leased by whoever changed it.
             free AS MATERIALIZED (
                 SELECT w.place, p.provider_id, p.restarts
                 FROM p CROSS JOIN LATERAL (
                     SELECT k.ctid AS place FROM voice_sync.voices k
                     WHERE k.row_id = p.row_id
                       AND (NOT {leased} OR k.run_id = $5)
                     FOR UPDATE SKIP LOCKED
                 ) w
                 WHERE p.known AND NOT {skipped}
             ),
             renewed AS (
                 UPDATE voice_sync.voices w
                 SET run_id = $5, lease_until = now() + make_interval(secs => $7),
                     provider_id = f.provider_id,
                     first_seen = CASE WHEN f.restarts THEN now() ELSE w.first_seen END,
                     restarted_at = CASE WHEN f.restarts THEN now() ELSE w.restarted_at END,
                     missing_count = CASE WHEN f.restarts THEN 0 ELSE w.missing_count END,
                     missing_since = CASE WHEN f.restarts THEN NULL ELSE w.missing_since END,
                     strikes = CASE WHEN f.restarts THEN 0 ELSE w.strikes END,
                     set_aside_until = NULL,
                     kind = CASE WHEN f.restarts THEN NULL ELSE w.kind END,
                     isolated = w.isolated AND NOT f.restarts,
                     unanswered = CASE WHEN f.restarts THEN 0 ELSE w.unanswered END,
                     unanswered_since = CASE WHEN f.restarts THEN NULL ELSE w.unanswered_since END,
                     failed_at = NULL, failure = NULL
                 FROM free f WHERE w.ctid = f.place
                 RETURNING w.row_id
             ),
             fresh AS (
                 INSERT INTO voice_sync.voices (row_id, provider_id, run_id, lease_until)
                 SELECT p.row_id, p.provider_id, $5, now() + make_interval(secs => $7)
                 FROM p WHERE NOT p.known
                 ON CONFLICT (row_id) DO NOTHING
                 RETURNING row_id
             )
             SELECT p.row_id, p.provider_id, p.kind, {age} AS age, {witnessed} AS witnessed, p.was_finished,
                    p.abandoned, p.asked_ago, p.isolated, p.unanswered, p.resting, p.quarantined,
                    NOT {skipped} AND NOT p.claimed AS leased, p.claimed
             -- By a hash: of one that it takes for a single row, PostgreSQL compares all with all.
             FROM (SELECT p.*, p.row_id IN (TABLE renewed UNION ALL TABLE fresh) AS claimed FROM p) p
             ORDER BY p.id",
            page = self.page_sql(&condition),
            leased = is_ahead("k.lease_until", LEASE),
            age = Self::AGE,
            witnessed = Self::WITNESSED,
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::from(limit))
            .bind(run_id)
            .bind(selection.read_at())
            .bind(LEASE.as_secs_f64())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        page(rows, limit)
    }

    pub(in crate::store) async fn peek(
        &self,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (condition, [bounds, rows, names]) = self.condition(selection);
        let skipped = skipped(selection);
        let sql = format!(
            "SELECT p.row_id, p.provider_id, p.kind, {age} AS age, {witnessed} AS witnessed, p.was_finished,
                    p.abandoned, p.asked_ago, p.isolated, p.unanswered, p.resting, p.quarantined, p.leased,
                    NOT p.leased AND NOT {skipped} AS claimed
             FROM ({page}) p ORDER BY p.id",
            page = self.page_sql(&condition),
            age = Self::AGE,
            witnessed = Self::WITNESSED,
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::from(limit))
            .bind(Uuid::nil())
            .bind(selection.read_at())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        page(rows, limit)
    }

    pub(in crate::store) async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (condition, [bounds, rows, names]) = self.condition(selection);
        let sql = format!(
            "SELECT count(*) FROM ({}) p WHERE NOT {}",
            self.page_sql(&condition),
            skipped(selection)
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::MAX)
            .bind(Uuid::nil())
            .bind(selection.read_at())
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    pub(in crate::store) async fn overview(&self) -> Result<Overview, StoreError> {
        let Self {
            table,
            id,
            provider_id,
            status,
            created_at,
            processing,
            ..
        } = self;
        let sql = format!(
            "SELECT count(*) AS processing,
                    extract(epoch FROM now() - min(COALESCE({created_at}, w.first_seen)))::float8 AS oldest,
                    count(*) FILTER (WHERE {set_aside}
                                     AND w.provider_id IS NOT DISTINCT FROM v.{provider_id}) AS resting,
                    count(*) FILTER (WHERE w.unanswered > 0
                                     AND w.provider_id IS NOT DISTINCT FROM v.{provider_id}) AS unanswerable,
                    (SELECT count(*) FROM voice_sync.outbox WHERE published_at IS NULL) AS outbox,
                    (SELECT extract(epoch FROM now() - min(occurred_at))::float8
                     FROM voice_sync.outbox WHERE published_at IS NULL) AS oldest_event,
                    extract(epoch FROM clock_timestamp())::float8 AS clock
             FROM {table} v LEFT JOIN voice_sync.voices w ON w.row_id = v.{id}::text
             WHERE v.{status} = {processing}",
            set_aside = is_ahead("w.set_aside_until", SET_ASIDE),
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        let age =
            |column| Ok::<_, sqlx::Error>(row.try_get::<Option<f64>, _>(column)?.map(seconds));
        Ok(Overview {
            processing: row.try_get("processing")?,
            oldest: age("oldest")?,
            resting: row.try_get("resting")?,
            unanswerable: row.try_get("unanswerable")?,
            outbox: row.try_get("outbox")?,
            oldest_event: age("oldest_event")?,
            clock_ahead: row.try_get::<f64, _>("clock")? - present(),
        })
    }

    pub(in crate::store) async fn agenda(
        &self,
        most: u32,
        bus: Option<Uuid>,
    ) -> Result<Agenda, StoreError> {
        let known = self.known_in_processing();
        let scheduled = |which: &str, most: &str| {
            format!(
                "SELECT w.row_id, w.kind, w.isolated, w.next_due,
                        w.last_asked IS NOT NULL AND w.missing_count = 0 AND w.trouble IS NULL AS was_found
                 FROM {known}
                 WHERE w.next_due IS NOT NULL AND w.failed_at IS NULL AND {which}
                   AND NOT {is_claimed} AND NOT {is_set_aside}
                 ORDER BY w.next_due LIMIT {most}",
                is_claimed = is_ahead("w.lease_until", LEASE),
                is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE),
            )
        };
        let sql = format!(
            "WITH present AS (
                 SELECT now() AS read_at, txid_current_snapshot()::text AS version,
                        NOT EXISTS (SELECT FROM voice_sync.buses WHERE bus = $2 AND {bus_is_left_alone})
                        AND EXISTS (SELECT FROM voice_sync.outbox WHERE published_at IS NULL AND NOT {is_leased}
                                    AND (leased_until IS NULL OR leased_until > now()
                                         OR leased_until <= now() - make_interval(secs => $3))) AS events_wait
             ),
             upcoming AS ((({due}) UNION ALL ({next})))
             SELECT read_at, version, events_wait, row_id, kind, was_found, isolated,
                    GREATEST(0, extract(epoch FROM next_due - read_at))::float8 AS due_in
             FROM present LEFT JOIN upcoming ON TRUE ORDER BY next_due",
            bus_is_left_alone = is_ahead("retry_at", LONGEST_BUS_PAUSE),
            is_leased = is_ahead("leased_until", OUTBOX_LEASE),
            due = scheduled("w.next_due <= now()", "$1"),
            next = scheduled(
                &format!("w.next_due > now() AND {}", is_scheduled()),
                &NEXT.to_string()
            ),
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(i64::from(most))
            .bind(bus)
            .bind(REFUSED.as_secs_f64())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let mut agenda = Agenda::default();
        for row in &rows {
            agenda.read_at = row.try_get("read_at")?;
            agenda.events_wait = row.try_get("events_wait")?;
            agenda.version = row.try_get("version")?;
            if let Some(id) = row.try_get::<Option<String>, _>("row_id")? {
                agenda.voices.push(Upcoming {
                    row: RowId::new(id),
                    due_in: seconds(row.try_get("due_in")?),
                    kind: row.try_get("kind")?,
                    was_found: row.try_get("was_found")?,
                    is_isolated: row.try_get("isolated")?,
                });
            }
        }
        Ok(agenda)
    }

    pub(in crate::store) async fn unscheduled(
        &self,
        most: u32,
    ) -> Result<Vec<Upcoming>, StoreError> {
        let Self {
            table,
            id,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let sql = format!(
            "SELECT v.{id}::text AS row_id,
                    COALESCE(w.isolated, FALSE) AND w.provider_id IS NOT DISTINCT FROM v.{provider_id} AS isolated
             FROM {table} v LEFT JOIN voice_sync.voices w ON w.row_id = v.{id}::text
             WHERE v.{status} = {processing} AND v.{id} IS NOT NULL AND NOT {is_claimed}
               AND CASE WHEN w.provider_id IS DISTINCT FROM v.{provider_id} OR w.failed_at IS NOT NULL THEN TRUE
                        ELSE NOT {is_set_aside}
                             AND (w.next_due IS NULL OR w.next_due > now() AND NOT {is_scheduled}) END
             LIMIT $1",
            is_claimed = is_ahead("w.lease_until", LEASE),
            is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE),
            is_scheduled = is_scheduled(),
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(i64::from(most))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let voice = |row: &PgRow| {
            let id: String = row.try_get("row_id")?;
            Ok::<_, sqlx::Error>(Upcoming::unscheduled(
                RowId::new(id),
                row.try_get("isolated")?,
            ))
        };
        Ok(rows.iter().map(voice).collect::<Result<_, _>>()?)
    }

    pub(in crate::store) async fn isolated(
        &self,
        run_id: Uuid,
        most: u32,
    ) -> Result<Isolated, StoreError> {
        let sql = format!(
            "SELECT w.row_id, w.unanswered, now() AS read_at FROM voice_sync.voices w
             WHERE w.isolated AND w.failed_at IS NULL AND w.run_id <> $1 AND NOT {}
             ORDER BY w.unanswered, w.next_due NULLS FIRST LIMIT $2",
            quarantined()
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(run_id)
            .bind(i64::from(most))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let mut isolated = Isolated::default();
        for row in &rows {
            isolated.read_at = row.try_get("read_at")?;
            isolated.new += usize::from(row.try_get::<i32, _>("unanswered")? == 0);
            let id: String = row.try_get("row_id")?;
            isolated.rows.push(RowId::new(id));
        }
        Ok(isolated)
    }

    pub(in crate::store) async fn finished(
        &self,
        rows: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let Self {
            table,
            id,
            id_type,
            status,
            completed,
            failed,
            ..
        } = self;
        let (keys, key) = match is_castable(id_type) {
            true => (format!("$1::text[]::{id_type}[]"), id.clone()),
            false => ("$1::text[]".to_owned(), format!("{id}::text")),
        };
        let sql = format!(
            "SELECT a.given FROM unnest($1::text[], {keys}) AS a (given, id)
             JOIN {table} v ON v.{key} = a.id WHERE v.{status} IN ({completed}, {failed})"
        );
        let keys: Vec<_> = rows.iter().filter(|row| could_be(row, id_type)).collect();
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(keys)
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let given = rows.iter().map(|row| row.try_get("given"));
        Ok(given.collect::<Result<_, _>>()?)
    }
}

/// Whether a voice of `voice_sync.voices w` is due later.
fn is_scheduled() -> String {
    format!(
        "CASE WHEN w.isolated THEN {} ELSE {} END",
        is_ahead("w.next_due", LONGEST_ISOLATED_SCHEDULE),
        is_ahead("w.next_due", LONGEST_SCHEDULE)
    )
}

/// Whether a voice of `voice_sync.voices w` cannot be looked up and is not asked about yet.
pub(super) fn quarantined() -> String {
    let is_scheduled = is_ahead("w.next_due", LONGEST_ISOLATED_SCHEDULE);
    format!("COALESCE(w.isolated AND w.unanswered > 1 AND {is_scheduled}, FALSE)")
}

/// Which rows of a page are not taken by this selection. A walk leaves isolated voices to the end of the pass.
fn skipped(selection: &Selection) -> &'static str {
    match selection {
        Selection::Range { .. } | Selection::Hinted { .. } => "(p.resting OR p.isolated)",
        Selection::Due { .. } => "(p.resting OR p.quarantined)",
        Selection::Named(_) => "FALSE",
    }
}

/// Whether [`could_be`] knows which texts can be cast to this type.
fn is_castable(sql_type: &str) -> bool {
    matches!(
        sql_type,
        "uuid" | "bigint" | "integer" | "smallint" | "text" | "character varying" | "bpchar"
    )
}

/// Whether a text that a person typed could be a key of this type at all.
pub(super) fn could_be(text: &str, sql_type: &str) -> bool {
    match sql_type {
        "uuid" => Uuid::try_parse(text).is_ok_and(|_| !text.starts_with("urn:")),
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
            let age = Age {
                created: seconds(row.try_get("age")?),
                witnessed: seconds(row.try_get("witnessed")?),
                was_finished: row.try_get("was_finished")?,
            };
            let asked_ago = row.try_get::<Option<f64>, _>("asked_ago")?.map(seconds);
            page.reclaimed += u64::from(row.try_get::<bool, _>("abandoned")?);
            let id: String = row.try_get("row_id")?;
            page.voices.push(Claimed {
                position: Position::new(id.clone()),
                row: RowId::new(id),
                provider_id: row.try_get("provider_id")?,
                age,
                unasked_for: asked_ago.map_or(age.created, |ago| ago.min(age.created)),
                kind: row.try_get("kind")?,
                is_isolated: row.try_get("isolated")?,
                unanswered: row.try_get::<i32, _>("unanswered")?.unsigned_abs(),
            });
        } else if row.try_get("leased")? {
            page.leased_elsewhere += 1;
        } else if row.try_get("resting")? {
            page.resting += 1;
        } else if row.try_get("quarantined")? {
            page.quarantined += 1;
        }
    }
    if let (true, Some(last)) = (full, rows.last()) {
        page.last = Some(Position::new(last.try_get::<String, _>("row_id")?));
    }
    Ok(page)
}
