//! Takes voices in processing, page by page, and leases the voices of each claim.

use uuid::Uuid;

use super::args::{Args, Column, Value};
use super::database::Transaction;
use super::dialect::Dialect;
use super::row::Row;
use super::values::{LeaseId, Page, Selection};
use super::{LEASE, Store, StoreError, visit};
use crate::core::nudge::Nudge;
use crate::core::transition::Claimed;
use crate::core::verdict::Age;
use crate::core::voice::Position;

/// `pg_advisory_xact_lock` key: the ASCII bytes of "voicelse". Only one claim runs at a time: of two at once, neither
/// would see the other's lease.
const LOCK_KEY: i64 = 0x766f_6963_656c_7365;

impl Store {
    pub(super) async fn claim_once(
        &self,
        run_id: Uuid,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        // If there is nothing to do, it takes no write lock on SQLite: the application may be writing. (The first of
        // the due voices may be the only one that is no longer due.)
        if self.dialect() == Dialect::Sqlite {
            let first = selection.read_at().map_or(1, |_| limit);
            let (sql, args) = self.page_sql(run_id, selection, first);
            if self.database.fetch_all(sql, args).await?.is_empty() {
                return Ok(Page::default());
            }
        }
        // In a statement of its own, because a statement that waits for a lock sees only what was there before it
        // waited: the next statement sees the leases of other processes. A lease that is lost in a crash of the server costs only a lookup, so the commit does not wait for
        // the disk.
        let alone =
            format!("SET LOCAL synchronous_commit = off; SELECT pg_advisory_xact_lock({LOCK_KEY})");
        let mut transaction = self.database.begin_with(&alone).await?;
        let (sql, args) = self.page_sql(run_id, selection, limit);
        let mut page = page(&transaction.fetch_all(sql, args).await?, limit)?;
        if page.voices.is_empty() {
            transaction.roll_back().await?;
            return Ok(page);
        }
        if page.reclaimed > 0 {
            self.end_expired_leases(&mut transaction).await?;
        }
        page.lease = Some(self.lease(&mut transaction, run_id, &page.voices).await?);
        visit("store.claim.commit").await?;
        transaction.commit().await?;
        Ok(page)
    }

    pub(super) async fn peek_once(
        &self,
        selection: &Selection,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let (sql, args) = self.page_sql(Uuid::nil(), selection, limit);
        page(&self.database.fetch_all(sql, args).await?, limit)
    }

    pub(super) async fn count_once(&self, selection: &Selection) -> Result<u64, StoreError> {
        let (page, args) = self.page_sql(Uuid::nil(), selection, u32::MAX);
        let sql = format!("SELECT count(*) AS voices FROM ({page}) p WHERE NOT p.is_skipped");
        self.database.fetch_one(sql, args).await?.count("voices")
    }

    /// The page of voices in processing, joined with the notes about them.
    ///
    /// By index, one row after the other: without this, PostgreSQL would read the whole table for each page if many
    /// rows change and it has no statistics.
    fn page_sql(&self, run_id: Uuid, selection: &Selection, limit: u32) -> (String, Args) {
        let (table, dialect) = (&self.table, self.dialect());
        let mut args = self.database.args();
        let limit = args.limit(limit);
        let run_id = args.bind(run_id);
        let is_restarted = super::TableSql::is_restarted("p.provider_id");
        let is_current = super::TableSql::is_current("p.provider_id");
        let join = match dialect {
            Dialect::Postgres => format!(
                "LEFT JOIN LATERAL (SELECT * FROM {} k WHERE k.row_id = p.row_id OFFSET 0) w ON TRUE",
                table.known()
            ),
            Dialect::Sqlite => format!("LEFT JOIN {} w ON w.row_id = p.row_id", table.known()),
        };
        let since_read = match selection.read_at() {
            Some(read_at) => {
                let (read_at, now) = (args.bind(read_at), dialect.now());
                format!(
                    "WHERE w.scheduled_at IS NULL OR w.scheduled_at <= {read_at} OR w.scheduled_at > {now}"
                )
            }
            None => String::new(),
        };
        // A walk through the table leaves isolated voices for the end of the pass.
        let is_skipped = match selection {
            Selection::Range { .. } | Selection::Hinted { .. } => {
                "(p.is_set_aside OR p.is_isolated)"
            }
            Selection::Due { .. } => "(p.is_set_aside OR p.is_quarantined)",
            Selection::Named(_) => "FALSE",
        };
        let sql = format!(
            "SELECT p.*, {is_skipped} AS is_skipped FROM (
                 SELECT p.*, w.kind, {age} AS age, {witnessed} AS witnessed,
                        {asked_ago} AS asked_ago,
                        {is_leased} AS is_leased, {was_leased} AS was_leased,
                        {is_current} AND {is_set_aside} AS is_set_aside,
                        {is_current} AND w.isolated AS is_isolated,
                        {is_current} AND {is_quarantined} AS is_quarantined,
                        CASE WHEN {is_current} THEN w.unanswered ELSE 0 END AS unanswered,
                        {nudge} AS nudge
                 FROM (SELECT v.{position} AS place, CAST(v.{position} AS text) AS position, {row_id} AS row_id,
                              {provider_id} AS provider_id, {made_at} AS made_at,
                              {completed_before} IS NOT NULL AS was_finished
                       FROM {name} v WHERE {condition} ORDER BY v.{position} LIMIT {limit}) p
                 {join} {since_read}
             ) p ORDER BY p.place",
            age = table.age("p.made_at", &is_restarted),
            witnessed = table.witnessed(&is_restarted),
            asked_ago = dialect.since("w.last_asked"),
            is_leased = table.is_leased("p.row_id", Some(&run_id)),
            was_leased = table.was_leased("p.row_id", &run_id),
            is_set_aside = table.is_set_aside(),
            is_quarantined = table.is_quarantined(),
            nudge = table.nudge("p.provider_id", "answer"),
            position = table.position,
            row_id = table.row_id(),
            provider_id = table.provider_id,
            made_at = table.made_at(),
            completed_before = table.completed_before,
            name = table.table,
            condition = table.is_selected(&mut args, selection),
        );
        (sql, args)
    }

    async fn lease(
        &self,
        transaction: &mut Transaction<'_>,
        run_id: Uuid,
        voices: &[Claimed],
    ) -> Result<LeaseId, StoreError> {
        let lease_id = Uuid::new_v4();
        let keys = voices.iter().map(|voice| Some(voice.row.as_str()));
        let mut args = self.database.args();
        let values = [
            args.bind(lease_id),
            args.bind(run_id),
            args.bind(Value::Column(Column::Text(keys.collect()))),
        ];
        let sql = format!(
            "INSERT INTO {leases} (lease_id, run_id, voices, lease_until)
             VALUES ({values}, {now} + {lease})",
            leases = self.dialect().own("leases"),
            values = values.join(", "),
            now = self.dialect().now(),
            lease = self.dialect().span(LEASE),
        );
        transaction.execute(sql, args).await?;
        Ok(LeaseId(lease_id))
    }

    pub(super) async fn end_expired_leases(
        &self,
        transaction: &mut Transaction<'_>,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM {} WHERE NOT {}",
            self.dialect().own("leases"),
            self.dialect().is_ahead("lease_until", LEASE)
        );
        transaction.execute(sql, self.database.args()).await?;
        Ok(())
    }

    pub(super) async fn end_leases_once(&self, leases: &[LeaseId]) -> Result<(), StoreError> {
        let mut args = self.database.args();
        let ids = leases.iter().map(|LeaseId(id)| *id);
        let sql = format!(
            "DELETE FROM {} WHERE lease_id {}",
            self.dialect().own("leases"),
            args.is_one_of(Column::Id(ids.collect()))
        );
        self.database.execute(sql, args).await.map(drop)
    }
}

fn page(rows: &[Row], limit: u32) -> Result<Page, StoreError> {
    let mut page = Page::default();
    for row in rows {
        if row.get("is_skipped")? {
            match row.get("is_set_aside")? {
                true => page.set_aside += 1,
                false => page.quarantined += u64::from(row.get::<bool>("is_quarantined")?),
            }
        } else if row.get("is_leased")? {
            page.leased_elsewhere += 1;
        } else {
            page.reclaimed += u64::from(row.get::<bool>("was_leased")?);
            page.voices.push(claimed(row)?);
        }
    }
    if let Some(last) = rows.last().filter(|_| rows.len() >= limit as usize) {
        page.last = Some(Position::new(last.get::<String>("position")?));
    }
    Ok(page)
}

fn claimed(row: &Row) -> Result<Claimed, StoreError> {
    let age = Age {
        created: row.get("age")?,
        witnessed: row.get("witnessed")?,
        was_finished: row.get("was_finished")?,
    };
    let asked_ago = row.get_optional("asked_ago")?;
    let nudge: Option<String> = row.get_optional("nudge")?;
    Ok(Claimed {
        row: row.get("row_id")?,
        position: Position::new(row.get::<String>("position")?),
        provider_id: row.get_optional("provider_id")?,
        age,
        unasked_for: asked_ago.map_or(age.created, |ago| age.created.min(ago)),
        kind: row.get_optional("kind")?,
        is_isolated: row.get("is_isolated")?,
        unanswered: row.times("unanswered")?,
        nudge: nudge.as_deref().map(Nudge::parse),
    })
}
