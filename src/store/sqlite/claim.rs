//! Taking voices in processing, page by page.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{NOW, SqliteStore, elapsed, is_ahead, milliseconds};
use crate::store::adopt::{Dialect, adopted_name};
use crate::store::survey::forms;
use crate::store::{
    Agenda, Claimed, Isolated, LEASE, LONGEST_BUS_PAUSE, LONGEST_ISOLATED_SCHEDULE,
    LONGEST_SCHEDULE, NEXT, OUTBOX_LEASE, Overview, Page, REFUSED, SET_ASIDE, Selection,
    StoreError, Upcoming, present, visit,
};
use crate::verdict::Age;
use crate::voice::{Position, RowId};

impl SqliteStore {
    /// The condition that selects voices, on `v`, and its parameter `$1`, a JSON object.
    ///
    /// Keys are compared with expressions that have no affinity of their own, so that the column's
    /// applies: text for `CHAR(32)`, integer for `INTEGER`.
    fn condition(&self, selection: &Selection) -> (String, String) {
        let Self {
            id,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let is_row = format!("v.{id} IN (SELECT value FROM json_each($1, '$.names'))");
        let is_named = match selection {
            Selection::Due { .. } => is_row,
            Selection::Range { .. } | Selection::Named(_) | Selection::Hinted { .. } => format!(
                "({is_row} OR v.{provider_id} IN (SELECT value FROM json_each($1, '$.names')))"
            ),
        };
        let ([after, up_to], names, filter) = selection.parts(&is_named);
        let mut condition = format!("v.{status} = {processing}{filter}");
        for (position, comparison, name) in [(after, ">", "after"), (up_to, "<=", "up_to")] {
            if position.is_some() {
                let column = &self.position;
                condition.push_str(&format!(" AND v.{column} {comparison} ($1 ->> '{name}')"));
            }
        }
        let names: Vec<_> = names.iter().flat_map(|name| forms(name)).collect();
        let parameter = json!({"after": after.map(Position::as_str),
                               "up_to": up_to.map(Position::as_str), "names": names,
                               "read_at": selection.read_at().map(|time| time.timestamp_millis())});
        (condition, parameter.to_string())
    }

    /// What is known of voices: nothing, where voice-sync has no tables yet.
    pub(super) fn known(&self) -> &'static str {
        match self.own_tables {
            true => "voice_sync_voices",
            false => {
                "(SELECT NULL AS row_id, NULL AS provider_id, NULL AS first_seen, NULL AS restarted_at,
                         NULL AS run_id, NULL AS lease_until, NULL AS last_asked, NULL AS kind, NULL AS stage,
                         NULL AS missing_count, NULL AS missing_since, NULL AS strikes,
                         NULL AS set_aside_until, NULL AS trouble, NULL AS failed_at, NULL AS failure,
                         NULL AS next_due, NULL AS scheduled_at, NULL AS isolated, NULL AS unanswered,
                         NULL AS unanswered_since)"
            }
        }
    }

    /// Since when the table has a status, if it was given one later.
    pub(super) fn adopted(&self) -> String {
        match self.own_tables {
            true => format!(
                "(SELECT adopted_at FROM voice_sync_adoptions WHERE table_name = {})",
                adopted_name(Dialect::Sqlite, &self.name)
            ),
            false => "NULL".to_owned(),
        }
    }

    fn page_sql(&self, selection: &Selection, condition: &str) -> String {
        let Self {
            table,
            id,
            position,
            provider_id,
            created_at,
            completed_before,
            ..
        } = self;
        let (known, adopted) = (self.known(), self.adopted());
        let same =
            "(w.row_id IS NOT NULL AND w.failed_at IS NULL AND w.provider_id IS p.provider_id)";
        let (leased, set_aside, quarantined) = (
            is_ahead("w.lease_until", LEASE),
            is_ahead("w.set_aside_until", SET_ASIDE),
            quarantined(),
        );
        let skipped = skipped(selection);
        format!(
            "SELECT p.*, {skipped} AS skipped FROM (
             SELECT p.*, w.kind, {NOW} AS present, w.first_seen, w.restarted_at,
                    w.row_id IS NOT NULL AND (w.provider_id IS NOT p.provider_id
                                              OR w.failed_at IS NOT NULL) AS restarts,
                    COALESCE({leased} AND w.run_id <> $3, 0) AS leased,
                    COALESCE(w.lease_until IS NOT NULL AND NOT {leased} AND w.run_id <> $3, 0) AS abandoned,
                    {NOW} - w.last_asked AS asked_ago,
                    {same} AND {set_aside} AS resting,
                    {same} AND w.isolated AS isolated, {same} AND {quarantined} AS quarantined,
                    iif({same}, w.unanswered, 0) AS unanswered
             FROM (SELECT CAST(v.{id} AS TEXT) AS row_id,
                          v.{position} AS place, CAST(v.{position} AS TEXT) AS position,
                          CAST(v.{provider_id} AS TEXT) AS provider_id, {created_at} AS created_at,
                          {adopted} AS adopted_at,
                          {completed_before} AS completed_before
                   FROM {table} v WHERE {condition} ORDER BY v.{position} LIMIT $2) p
             LEFT JOIN {known} w ON w.row_id = p.row_id
             WHERE ($1 ->> 'read_at') IS NULL OR w.scheduled_at IS NULL
                OR w.scheduled_at <= ($1 ->> 'read_at') OR w.scheduled_at > {NOW}
             ) p ORDER BY p.place"
        )
    }

    pub(in crate::store) async fn peek(
        &self,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (condition, parameter) = self.condition(selection);
        let rows = sqlx::query(AssertSqlSafe(self.page_sql(selection, &condition)))
            .bind(parameter)
            .bind(limit)
            .bind(Uuid::nil().to_string())
            .fetch_all(&self.pool)
            .await?;
        page(&rows, limit)
    }

    pub(in crate::store) async fn claim(
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
                strikes = 0, kind = NULL, failed_at = NULL, failure = NULL,
                isolated = FALSE, unanswered = 0, unanswered_since = NULL
            WHERE row_id IN (SELECT value FROM json_each($1))";
        let (condition, parameter) = self.condition(selection);
        let sql = self.page_sql(selection, &condition);
        // Nothing to do takes no write lock: the application may be writing. (Of voices that are
        // due, the first may be the only one that is no more.)
        let first = selection.read_at().map_or(1, |_| limit);
        let any = sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(&parameter)
            .bind(first)
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
        visit("store.claim.commit").await?;
        transaction.commit().await?;
        Ok(page)
    }

    pub(in crate::store) async fn count(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (condition, parameter) = self.condition(selection);
        let sql = format!(
            "SELECT count(*) FROM ({}) p WHERE NOT p.skipped",
            self.page_sql(selection, &condition)
        );
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(parameter)
            .bind(i64::MAX)
            .bind(Uuid::nil().to_string())
            .fetch_one(&self.pool)
            .await?;
        Ok(count.unsigned_abs())
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
                    {NOW} - min(COALESCE(CAST(unixepoch({created_at}, 'subsec') * 1000 AS INTEGER),
                                         w.first_seen)) AS oldest,
                    count(*) FILTER (WHERE {set_aside}
                                     AND w.provider_id IS v.{provider_id}) AS resting,
                    count(*) FILTER (WHERE w.unanswered > 0
                                     AND w.provider_id IS v.{provider_id}) AS unanswerable,
                    (SELECT count(*) FROM voice_sync_outbox WHERE published_at IS NULL) AS outbox,
                    (SELECT {NOW} - min(occurred_at) FROM voice_sync_outbox
                     WHERE published_at IS NULL) AS oldest_event,
                    {NOW} AS clock
             FROM {table} v LEFT JOIN voice_sync_voices w ON w.row_id = CAST(v.{id} AS TEXT)
             WHERE v.{status} = {processing}",
            set_aside = is_ahead("w.set_aside_until", SET_ASIDE)
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_one(&self.pool)
            .await?;
        let age =
            |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(elapsed));
        Ok(Overview {
            processing: row.try_get("processing")?,
            oldest: age("oldest")?,
            resting: row.try_get("resting")?,
            unanswerable: row.try_get("unanswerable")?,
            outbox: row.try_get("outbox")?,
            oldest_event: age("oldest_event")?,
            clock_ahead: row.try_get::<i64, _>("clock")? as f64 / 1000.0 - present(),
        })
    }

    pub(in crate::store) async fn agenda(
        &self,
        most: u32,
        bus: Option<Uuid>,
    ) -> Result<Agenda, StoreError> {
        let Self {
            table,
            id,
            provider_id,
            status,
            processing,
            ..
        } = self;
        let scheduled = |which: &str, most: &str| {
            format!(
                "SELECT * FROM (
                 SELECT w.row_id, w.kind, w.isolated, w.next_due,
                        w.last_asked IS NOT NULL AND w.missing_count = 0 AND w.trouble IS NULL AS was_found
                 FROM voice_sync_voices w CROSS JOIN {table} v
                 WHERE w.next_due IS NOT NULL AND w.failed_at IS NULL AND {which}
                   AND NOT {is_claimed} AND NOT {is_set_aside}
                   AND v.{id} = w.row_id AND v.{status} = {processing} AND v.{provider_id} IS w.provider_id
                 ORDER BY w.next_due LIMIT {most})",
                is_claimed = is_ahead("w.lease_until", LEASE),
                is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE),
            )
        };
        let sql = format!(
            "WITH present AS MATERIALIZED (
                 SELECT {NOW} AS read_at,
                        (SELECT CAST(data_version AS TEXT) FROM pragma_data_version) AS version,
                        NOT EXISTS (SELECT 1 FROM voice_sync_buses WHERE bus = $2 AND {bus_is_left_alone})
                        AND EXISTS (SELECT 1 FROM voice_sync_outbox WHERE published_at IS NULL AND NOT {is_leased}
                                    AND (leased_until IS NULL OR leased_until > {NOW}
                                         OR leased_until <= {NOW} - $3)) AS events_wait
             ),
             upcoming AS ({due} UNION ALL {next})
             SELECT read_at, version, events_wait, row_id, kind, was_found, isolated,
                    max(0, next_due - read_at) AS due_in
             FROM present LEFT JOIN upcoming ON TRUE ORDER BY next_due",
            bus_is_left_alone = is_ahead("retry_at", LONGEST_BUS_PAUSE),
            is_leased = is_ahead("leased_until", OUTBOX_LEASE),
            due = scheduled(&format!("w.next_due <= {NOW}"), "$1"),
            next = scheduled(
                &format!("w.next_due > {NOW} AND {}", is_scheduled()),
                &NEXT.to_string()
            ),
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(most)
            .bind(bus.map(|bus| bus.to_string()))
            .bind(milliseconds(REFUSED))
            .fetch_all(&self.pool)
            .await?;
        let mut agenda = Agenda::default();
        for row in &rows {
            let read_at = DateTime::from_timestamp_millis(row.try_get("read_at")?);
            agenda.read_at = read_at.unwrap_or_default();
            agenda.events_wait = row.try_get("events_wait")?;
            agenda.version = row.try_get("version")?;
            if let Some(id) = row.try_get::<Option<String>, _>("row_id")? {
                agenda.voices.push(Upcoming {
                    row: RowId::new(id),
                    due_in: elapsed(row.try_get("due_in")?),
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
            "SELECT CAST(v.{id} AS TEXT) AS row_id,
                    COALESCE(w.isolated, 0) AND w.provider_id IS v.{provider_id} AS isolated
             FROM {table} v LEFT JOIN voice_sync_voices w ON w.row_id = CAST(v.{id} AS TEXT)
             WHERE v.{status} = {processing} AND v.{id} IS NOT NULL AND NOT {is_claimed}
               AND CASE WHEN w.provider_id IS NOT v.{provider_id} OR w.failed_at IS NOT NULL THEN 1
                        ELSE NOT {is_set_aside}
                             AND (w.next_due IS NULL OR w.next_due > {NOW} AND NOT {is_scheduled}) END
             LIMIT $1",
            is_claimed = is_ahead("w.lease_until", LEASE),
            is_set_aside = is_ahead("w.set_aside_until", SET_ASIDE),
            is_scheduled = is_scheduled(),
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(most)
            .fetch_all(&self.pool)
            .await?;
        let voice = |row: &SqliteRow| {
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
            "SELECT w.row_id, w.unanswered, {NOW} AS read_at FROM voice_sync_voices w
             WHERE w.isolated AND w.failed_at IS NULL AND w.run_id <> $1 AND NOT {}
             ORDER BY w.unanswered, w.next_due LIMIT $2",
            quarantined()
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(run_id.to_string())
            .bind(most)
            .fetch_all(&self.pool)
            .await?;
        let mut isolated = Isolated::default();
        for row in &rows {
            let read_at = DateTime::from_timestamp_millis(row.try_get("read_at")?);
            isolated.read_at = read_at.unwrap_or_default();
            isolated.new += usize::from(row.try_get::<i64, _>("unanswered")? == 0);
            isolated
                .rows
                .push(RowId::new(row.try_get::<String, _>("row_id")?));
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
            status,
            completed,
            failed,
            ..
        } = self;
        let sql = format!(
            "SELECT DISTINCT g.value ->> 0 FROM json_each($1) g CROSS JOIN {table} v
             ON v.{id} = (g.value ->> 1) WHERE v.{status} IN ({completed}, {failed})"
        );
        let given: Vec<_> = rows
            .iter()
            .flat_map(|row| forms(row).map(move |form| [row.clone(), form]))
            .collect();
        Ok(sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(json!(given).to_string())
            .fetch_all(&self.pool)
            .await?)
    }
}

/// Whether a voice of `voice_sync_voices w` is due later.
fn is_scheduled() -> String {
    format!(
        "iif(w.isolated, {}, {})",
        is_ahead("w.next_due", LONGEST_ISOLATED_SCHEDULE),
        is_ahead("w.next_due", LONGEST_SCHEDULE)
    )
}

/// Whether a voice of `voice_sync_voices w` cannot be looked up and is not asked about yet.
pub(super) fn quarantined() -> String {
    let is_scheduled = is_ahead("w.next_due", LONGEST_ISOLATED_SCHEDULE);
    format!("COALESCE(w.isolated AND w.unanswered > 1 AND {is_scheduled}, 0)")
}

/// Which rows of a page are not taken by this selection. A walk leaves isolated voices to the end of the pass.
fn skipped(selection: &Selection) -> &'static str {
    match selection {
        Selection::Range { .. } | Selection::Hinted { .. } => "(p.resting OR p.isolated)",
        Selection::Due { .. } => "(p.resting OR p.quarantined)",
        Selection::Named(_) => "FALSE",
    }
}

fn page(rows: &[SqliteRow], limit: u32) -> Result<Page, StoreError> {
    let mut page = Page::default();
    for row in rows {
        let position = Position::new(row.try_get::<String, _>("position")?);
        if rows.len() >= limit as usize {
            page.last = Some(position.clone());
        }
        if row.try_get("skipped")? {
            match row.try_get("resting")? {
                true => page.resting += 1,
                false => page.quarantined += u64::from(row.try_get::<bool, _>("quarantined")?),
            }
        } else if row.try_get("leased")? {
            page.leased_elsewhere += 1;
        } else {
            let age = Age {
                created: age(row)?,
                witnessed: witnessed(row)?,
                was_finished: row
                    .try_get::<Option<String>, _>("completed_before")?
                    .is_some(),
            };
            let asked_ago = row.try_get::<Option<i64>, _>("asked_ago")?.map(elapsed);
            page.reclaimed += u64::from(row.try_get::<bool, _>("abandoned")?);
            page.voices.push(Claimed {
                row: RowId::new(row.try_get::<String, _>("row_id")?),
                position,
                provider_id: lossy(row, "provider_id")?,
                age,
                unasked_for: asked_ago.map_or(age.created, |ago| ago.min(age.created)),
                kind: row.try_get("kind")?,
                is_isolated: row.try_get("isolated")?,
                unanswered: row.try_get("unanswered")?,
            });
        }
    }
    Ok(page)
}

/// A text, whatever bytes the application stored: what is no text is no id either.
pub(super) fn lossy(row: &SqliteRow, column: &str) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Time in processing: since the row was made or put back, or else since it was first seen.
pub(super) fn age(row: &SqliteRow) -> Result<Duration, sqlx::Error> {
    let present: i64 = row.try_get("present")?;
    if row.try_get("restarts")? {
        return Ok(Duration::ZERO);
    }
    let moment = |column| {
        let text: Option<String> = row.try_get(column)?;
        let time = text.as_deref().and_then(timestamp);
        // A time that is yet to come is no time that an age could count from.
        let past = time.map(|t| t.timestamp_millis()).filter(|t| *t <= present);
        Ok::<_, sqlx::Error>(past)
    };
    // A row that was completed before and stands in processing again was cloned anew then.
    let adopted: Option<i64> = row.try_get("adopted_at")?;
    let created = moment("created_at")?.map(|created| created.max(adopted.unwrap_or(created)));
    let created = created.max(moment("completed_before")?);
    let restarted: Option<i64> = row.try_get("restarted_at")?;
    let first_seen: Option<i64> = row.try_get("first_seen")?;
    let since = created.max(restarted).or(first_seen).unwrap_or(present);
    Ok(elapsed(present - since))
}

/// Time since the row was first seen in processing with this provider id.
pub(super) fn witnessed(row: &SqliteRow) -> Result<Duration, sqlx::Error> {
    let present: i64 = row.try_get("present")?;
    let restarted: Option<i64> = row.try_get("restarted_at")?;
    let first_seen: Option<i64> = row.try_get("first_seen")?;
    let since = match row.try_get("restarts")? {
        true => present,
        false => first_seen.max(restarted).unwrap_or(present),
    };
    Ok(elapsed(present - since))
}

/// Reads a stored time: SQLAlchemy's text, ISO 8601 with or without a zone, Unix seconds or
/// milliseconds.
pub(super) fn timestamp(text: &str) -> Option<DateTime<Utc>> {
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
        .or_else(|| match text.parse().ok()? {
            milliseconds @ 100_000_000_000.. => DateTime::from_timestamp_millis(milliseconds),
            seconds => DateTime::from_timestamp(seconds, 0),
        })
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
            "1793606400000",
        ] {
            let read = timestamp(text).expect(text);
            assert_eq!(read.timestamp(), 1_793_606_400, "{text}");
        }
        for text in ["", "yesterday", "2026-13-02 08:00:00"] {
            assert_eq!(timestamp(text), None, "{text:?}");
        }
    }
}
