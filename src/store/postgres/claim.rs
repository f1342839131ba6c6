//! Taking voices in processing, page by page.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{PostgresStore, seconds};
use crate::store::{Claimed, LEASE, Page, Selection, StoreError};
use crate::voice::RowId;

impl PostgresStore {
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
        let is_named =
            format!("(v.{id} = ANY($2::text[]::{id_type}[]) OR v.{provider_id} = ANY($3::text[]))");
        let ([after, up_to], names, filter) = selection.parts(&is_named);
        let mut bounds = Vec::new();
        let mut condition = format!("v.{status} = {processing}{filter}");
        for (comparison, row) in [(">", after), ("<=", up_to)] {
            if let Some(row) = row {
                bounds.push(row.as_str().to_owned());
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
    fn page_sql(&self, condition: &str) -> String {
        let Self {
            table,
            id,
            provider_id,
            created_at,
            completed_before,
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
                    COALESCE(w.lease_until > now() AND w.run_id <> $5, FALSE) AS leased,
                    COALESCE(w.set_aside_until > now(), FALSE)
                        AND w.provider_id IS NOT DISTINCT FROM p.provider_id AS resting,
                    w.first_seen, w.restarted_at
             FROM (SELECT v.{id} AS id, v.{id}::text AS row_id, v.{provider_id} AS provider_id,
                          GREATEST({created_at}, {completed_before}) AS created_at
                   FROM {table} v WHERE {condition} ORDER BY v.{id} LIMIT $4) p
             LEFT JOIN {known} w ON w.row_id = p.row_id"
        )
    }

    /// Seconds in processing: since the row was made or put back, or else since it was first seen.
    const AGE: &str = "GREATEST(0, extract(epoch FROM now() - CASE WHEN p.restarts THEN now()
        ELSE COALESCE(GREATEST(p.created_at, p.restarted_at), p.first_seen, now()) END))::float8";

    pub(in crate::store) async fn claim(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (condition, [bounds, rows, names]) = self.condition(selection);
        let sql = format!(
            "WITH p AS MATERIALIZED ({page}),
             free AS (
                 SELECT w.row_id FROM voice_sync.voices w JOIN p USING (row_id)
                 WHERE (w.lease_until IS NULL OR w.lease_until <= now() OR w.run_id = $5)
                   AND (NOT p.resting OR $7)
                 FOR UPDATE OF w SKIP LOCKED
             ),
             renewed AS (
                 UPDATE voice_sync.voices w
                 SET run_id = $5, lease_until = now() + make_interval(secs => $6),
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
                 SELECT p.row_id, p.provider_id, $5, now() + make_interval(secs => $6)
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
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::from(limit))
            .bind(run_id)
            .bind(LEASE.as_secs_f64())
            .bind(matches!(selection, Selection::Named(_)))
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
        let sql = format!(
            "SELECT p.row_id, p.provider_id, p.kind, {age} AS age, p.leased,
                    NOT p.leased AND (NOT p.resting OR $6) AS claimed
             FROM ({page}) p ORDER BY p.id",
            page = self.page_sql(&condition),
            age = Self::AGE,
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::from(limit))
            .bind(Uuid::nil())
            .bind(matches!(selection, Selection::Named(_)))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        page(rows, limit)
    }

    pub(in crate::store) async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (condition, [bounds, rows, names]) = self.condition(selection);
        let sql = format!(
            "SELECT count(*) FROM ({}) p WHERE NOT p.resting",
            self.page_sql(&condition)
        );
        let mut session = self.sessions.begin().await?;
        let row = session
            .query(AssertSqlSafe(sql))
            .bind(bounds)
            .bind(rows)
            .bind(names)
            .bind(i64::MAX)
            .bind(Uuid::nil())
            .fetch_one(&mut *session)
            .await?;
        session.keep().await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
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
        let sql = format!(
            "SELECT a.given FROM unnest($1::text[], $1::text[]::{id_type}[]) AS a (given, id)
             JOIN {table} v ON v.{id} = a.id WHERE v.{status} IN ({completed}, {failed})"
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
            page.voices.push(Claimed {
                row: RowId::new(row.try_get::<String, _>("row_id")?),
                provider_id: row.try_get("provider_id")?,
                age: seconds(row.try_get("age")?),
                kind: row.try_get("kind")?,
            });
        } else if row.try_get("leased")? {
            page.leased_elsewhere += 1;
        } else {
            page.resting += 1;
        }
    }
    if let (true, Some(last)) = (full, rows.last()) {
        page.last = Some(RowId::new(last.try_get::<String, _>("row_id")?));
    }
    Ok(page)
}
