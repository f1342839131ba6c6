//! Voices that are due, new or isolated, and their numbers.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::dialect::Dialect;
use super::row::Row;
use super::values::{Agenda, Asked, Isolated, Overview, Upcoming};
use super::{LEASE, MAX_BUS_PAUSE, NEXT, OUTBOX_LEASE, REFUSED, Store, StoreError, present};
use crate::core::request_budget::MAX_PAUSE;
use crate::core::verdict::Stage;

/// A voice is looked up often if the time between two lookups is at most this. An index has the same number.
const SOON: Duration = Duration::from_secs(30);
/// The maximum number of distinct statuses that are read.
const STATUSES_READ: u32 = 1000;

impl Store {
    pub(super) async fn overview_once(&self) -> Result<Overview, StoreError> {
        let (table, dialect) = (&self.table, self.dialect());
        let is_restarted = super::TableSql::is_restarted(&table.provider_id);
        let is_current = super::TableSql::is_current(&table.provider_id);
        let clock = match dialect {
            Dialect::Postgres => "date_part('epoch', clock_timestamp())",
            Dialect::Sqlite => "unixepoch('subsec')",
        };
        let sql = format!(
            "SELECT count(*) AS processing, max({age}) AS oldest,
                    count(*) FILTER (WHERE {is_current} AND {is_set_aside}) AS set_aside,
                    count(*) FILTER (WHERE {is_current} AND w.unanswered > 0) AS unanswerable,
                    {clock} AS clock
             FROM {name} v LEFT JOIN {known} w ON w.row_id = {row_id}
             WHERE {is_processing} AND v.{id} IS NOT NULL",
            age = table.age(&table.made_at(), &is_restarted),
            is_set_aside = table.is_set_aside(),
            name = table.table,
            known = table.known(),
            row_id = table.row_id(),
            is_processing = table.is_processing(),
            id = table.id,
        );
        let row = self.database.fetch_one(sql, self.database.args()).await?;
        let (outbox, oldest_event) = self.waiting_events().await?;
        let last_success = self.last_success().await?;
        Ok(Overview {
            processing: row.get("processing")?,
            oldest: row.get_optional("oldest")?,
            set_aside: row.get("set_aside")?,
            unanswerable: row.get("unanswerable")?,
            outbox,
            oldest_event,
            clock_ahead: row.get::<f64>("clock")? - present(),
            last_success,
        })
    }

    pub(super) async fn statuses_once(
        &self,
        sample: Option<u32>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let (table, status) = (&self.table.table, &self.table.status);
        let mut args = self.database.args();
        let rows = match sample {
            None => format!("SELECT v.{status} AS status FROM {table} v"),
            Some(rows) => format!(
                "SELECT * FROM (SELECT v.{position} AS position, v.{status} AS status FROM {table} v LIMIT {rows}) f
                 UNION
                 SELECT * FROM (SELECT v.{position}, v.{status} FROM {table} v ORDER BY 1 DESC LIMIT {rows}) l",
                rows = args.limit(rows),
                position = self.table.position,
            ),
        };
        let sql = format!(
            "SELECT CAST(s.status AS text) AS status, count(*) AS voices FROM ({rows}) s
             WHERE s.status IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {most}",
            most = args.limit(STATUSES_READ),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let statuses = rows.iter();
        statuses
            .map(|row| Ok((row.get("status")?, row.count("voices")?)))
            .collect()
    }

    async fn last_success(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        if !self.has_own_tables() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT finished_at FROM {} WHERE command IS NULL AND exit_code = 0 ORDER BY id DESC LIMIT 1",
            self.dialect().own("runs")
        );
        let rows = self.database.fetch_all(sql, self.database.args()).await?;
        rows.first().map(|row| row.get("finished_at")).transpose()
    }

    pub(super) async fn agenda_once(
        &self,
        most: u32,
        bus: Option<Uuid>,
        account: Option<Uuid>,
    ) -> Result<Agenda, StoreError> {
        let (table, dialect) = (&self.table, self.dialect());
        let now = dialect.now();
        let mut args = self.database.args();
        let [most, next] = [most, NEXT].map(|rows| args.limit(rows));
        let is_soon = format!("w.next_due - w.scheduled_at < {}", dialect.span(SOON));
        let is_seldom = format!("({is_soon}) IS NOT TRUE");
        let is_hinted = dialect.is_hinted();
        let scheduled = |which: &str, order: &str, limit: &str| {
            format!(
                "SELECT * FROM (
                     SELECT w.row_id, w.kind, w.isolated, w.next_due,
                            w.last_asked IS NOT NULL AND w.missing_count = 0 AND w.trouble IS NULL AS was_found,
                            w.stage, {asked_ago} AS asked_ago, {witnessed} AS witnessed,
                            COALESCE({is_soon}, FALSE) AS is_often, {is_hinted} AS is_hinted
                     FROM {known}
                     WHERE w.next_due IS NOT NULL AND w.failed_at IS NULL AND {which}
                       AND NOT {is_set_aside} AND NOT {is_leased}
                     ORDER BY {order} LIMIT {limit}) s",
                known = table.known_in_processing(),
                is_set_aside = table.is_set_aside(),
                is_leased = table.is_leased("w.row_id", None),
                asked_ago = dialect.since("w.last_asked"),
                witnessed = table.witnessed("FALSE"),
            )
        };
        let is_later = format!("w.next_due > {now} AND {}", table.is_scheduled());
        let budget_in = account.map_or("CAST(NULL AS double precision)".to_owned(), |account| {
            format!(
                "(SELECT {} FROM {} p WHERE p.account = {})",
                dialect.seconds_until("p.next_request_at", MAX_PAUSE),
                dialect.own("provider"),
                args.bind(account)
            )
        });
        let bus_is_backing_off = bus.map_or("FALSE".to_owned(), |bus| {
            format!(
                "EXISTS (SELECT 1 FROM {} WHERE bus = {} AND {})",
                dialect.own("buses"),
                args.bind(bus),
                dialect.is_ahead("retry_at", MAX_BUS_PAUSE)
            )
        });
        let version = match dialect {
            Dialect::Postgres => "txid_current_snapshot()::text",
            Dialect::Sqlite => "(SELECT CAST(data_version AS text) FROM pragma_data_version)",
        };
        let sql = format!(
            "WITH present AS (
                 SELECT {now} AS read_at, {version} AS version,
                        NOT {bus_is_backing_off}
                        AND EXISTS (SELECT 1 FROM {unpublished} WHERE NOT {is_leased}
                                    AND (leased_until IS NULL OR leased_until > {now}
                                         OR leased_until <= {now} - {refused})) AS events_wait,
                        EXISTS (SELECT 1 FROM {leases} WHERE NOT {is_held}) AS any_lease_expired,
                        {budget_in} AS budget_in
             ),
             upcoming AS ({hinted} UNION ALL {soon} UNION ALL {due} UNION ALL {isolated} UNION ALL {later})
             SELECT read_at, version, events_wait, any_lease_expired, budget_in, row_id, kind, was_found, isolated,
                    stage, asked_ago, witnessed, is_often, is_hinted, {due_in} AS due_in
             FROM present LEFT JOIN upcoming ON TRUE ORDER BY next_due",
            leases = dialect.own("leases"),
            is_held = dialect.is_ahead("lease_until", LEASE),
            unpublished = self.unpublished(),
            is_leased = dialect.is_ahead("leased_until", OUTBOX_LEASE),
            refused = dialect.span(REFUSED),
            hinted = scheduled(
                "w.next_due = w.hinted_at AND NOT w.isolated",
                "w.next_due",
                &most
            ),
            soon = scheduled(
                &format!("NOT w.isolated AND NOT {is_hinted} AND {is_soon} AND (w.next_due <= {now} OR {is_later})"),
                "w.next_due",
                &most
            ),
            due = scheduled(
                &format!("w.next_due <= {now} AND NOT w.isolated AND NOT {is_hinted} AND {is_seldom}"),
                "w.next_due",
                &most
            ),
            // In the order of a partial index.
            isolated = scheduled(
                &format!("w.next_due <= {now} AND w.isolated"),
                "w.unanswered, w.next_due",
                &most
            ),
            later = scheduled(
                &format!("{is_later} AND (w.isolated OR {is_seldom} AND NOT {is_hinted})"),
                "w.next_due",
                &next
            ),
            due_in = dialect.between("read_at", "next_due"),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let mut agenda = Agenda::default();
        for row in &rows {
            agenda.read_at = row.get("read_at")?;
            agenda.events_wait = row.get("events_wait")?;
            agenda.version = row.get("version")?;
            agenda.any_lease_expired = row.get("any_lease_expired")?;
            agenda.budget_in = row.get_optional("budget_in")?.unwrap_or_default();
            if let Some(row_id) = row.get_optional("row_id")? {
                agenda.voices.push(Upcoming {
                    row: row_id,
                    due_in: row.get("due_in")?,
                    kind: row.get_optional("kind")?,
                    was_found: row.get("was_found")?,
                    is_isolated: row.get("isolated")?,
                    is_hinted: row.get("is_hinted")?,
                    asked: asked(row)?,
                });
            }
        }
        Ok(agenda)
    }

    pub(super) async fn unscheduled_once(
        &self,
        most: u32,
        since: Option<&str>,
    ) -> Result<Vec<Upcoming>, StoreError> {
        let (table, dialect) = (&self.table, self.dialect());
        let mut args = self.database.args();
        let is_new = since.map_or("TRUE".to_owned(), |version| {
            table.is_written_since(&mut args, version)
        });
        let is_current = super::TableSql::is_current(&table.provider_id);
        let sql = format!(
            "SELECT {row_id} AS row_id, {is_current} AND w.isolated AS isolated
             FROM {name} v LEFT JOIN {voices} w ON w.row_id = {row_id}
             WHERE {is_processing} AND v.{id} IS NOT NULL AND {is_new} AND NOT {is_leased}
               AND CASE WHEN {is_current}
                        THEN NOT {is_set_aside}
                             AND (w.next_due IS NULL OR w.next_due > {now} AND NOT {is_scheduled})
                        ELSE TRUE END
             LIMIT {most}",
            row_id = table.row_id(),
            name = table.table,
            voices = dialect.own("voices"),
            is_processing = table.is_processing(),
            id = table.id,
            is_leased = table.is_leased(&table.row_id(), None),
            is_set_aside = table.is_set_aside(),
            now = dialect.now(),
            is_scheduled = table.is_scheduled(),
            most = args.limit(most),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let voice = |row: &Row| {
            Ok(Upcoming::unscheduled(
                row.get("row_id")?,
                row.get("isolated")?,
            ))
        };
        rows.iter().map(voice).collect()
    }

    pub(super) async fn isolated_once(
        &self,
        run_id: Uuid,
        most: u32,
    ) -> Result<Isolated, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT w.row_id, w.unanswered, {now} AS read_at FROM {voices} w
             WHERE w.isolated AND w.failed_at IS NULL AND w.run_id <> {run_id} AND NOT {is_quarantined}
             ORDER BY w.unanswered, w.next_due NULLS FIRST LIMIT {most}",
            now = self.dialect().now(),
            voices = self.dialect().own("voices"),
            run_id = args.bind(run_id),
            is_quarantined = self.table.is_quarantined(),
            most = args.limit(most),
        );
        let mut isolated = Isolated::default();
        for row in &self.database.fetch_all(sql, args).await? {
            isolated.read_at = row.get("read_at")?;
            isolated.new += usize::from(row.times("unanswered")? == 0);
            isolated.rows.push(row.get("row_id")?);
        }
        Ok(isolated)
    }
}

/// `None` if the voice cannot finish without a change by its owner, or with another key.
fn asked(row: &Row) -> Result<Option<Asked>, StoreError> {
    let stage: Option<String> = row.get_optional("stage")?;
    let waits_for_owner = stage.is_some_and(|stage| stage == Stage::WaitingForOwner.as_str());
    let ago: Option<Duration> = row.get_optional("asked_ago")?;
    let ago = ago.filter(|_| !waits_for_owner);
    let (age, is_often) = (row.get("witnessed")?, row.get("is_often")?);
    let is_found: bool = row.get("was_found")?;
    Ok(ago
        .filter(|_| is_found)
        .map(|ago| Asked { ago, age, is_often }))
}
