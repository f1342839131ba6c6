//! Notes about voices that stay in processing.

use std::borrow::Cow;
use std::collections::HashMap;

use uuid::Uuid;

use super::args::Columns;
use super::hints::HINT_LASTS;
use super::ledger::sum_of;
use super::values::MissingVoice;
use super::{DAY, LEASE, MAX_STRIKES, SET_ASIDE, Store, StoreError};
use crate::core::missing::MassAbsence;
use crate::core::transition::{Note, Seen};
use crate::core::verdict::Failure;
use crate::core::voice::RowId;

impl Store {
    /// `noted` identifies a call, so that a repetition after a lost reply does not count again.
    pub(super) async fn note_once(
        &self,
        run_id: Uuid,
        account: Uuid,
        noted: Uuid,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let [run, account, noted] = [run_id, account, noted].map(|id| args.bind(id));
        // A row that appears twice, by its own id and by the provider's, was looked up once: the last answer counts.
        let last: HashMap<&RowId, &Note> = notes.iter().map(|note| (&note.row, note)).collect();
        // In one order, so that two statements never deadlock on each other's rows.
        let mut noted_rows: Vec<_> = last.into_values().map(NoteRow::new).collect();
        noted_rows.sort_by(|one, other| one.note.row.cmp(&other.note.row));
        let rows = Columns::of(&noted_rows)
            .text("row_id", |row| Some(row.note.row.as_str()))
            .text("provider_id", |row| row.note.provider_id.as_deref())
            .real("again_in", |row| row.note.again_in.as_secs_f64())
            .text("kind", |row| row.kind)
            .text("stage", |row| row.stage)
            .text("trouble", |row| row.last_error.as_deref())
            .boolean("answered", |row| row.is_answered)
            .boolean("isolated", |row| row.is_isolated)
            .boolean("missing", |row| row.note.seen == Seen::Missing)
            .boolean("superseded", |row| row.note.seen == Seen::Superseded)
            .boolean("strike", |row| matches!(row.note.seen, Seen::SetAside(_)))
            .boolean("unanswerable", |row| {
                matches!(row.note.seen, Seen::Unanswerable { .. })
            });
        let rows = args.rows("n", rows);
        let (voices, now) = (dialect.own("voices"), dialect.now());
        let next_due = format!("{now} + {}", dialect.seconds("n.again_in"));
        // The answer may be older than a hint that came since the first claim. A hinted voice without an answer must
        // still be looked up.
        let is_hinted_again = format!(
            "({is_hinted} AND (
                 w.hinted_at > (SELECT min(l.lease_until) FROM {leases} l WHERE l.run_id = {run}) - {lease}
                 OR EXCLUDED.last_asked IS NULL AND NOT EXCLUDED.isolated AND w.hinted_at > {now} - {lasting}))",
            is_hinted = dialect.is_hinted(),
            leases = dialect.own("leases"),
            lease = dialect.span(LEASE),
            lasting = dialect.span(HINT_LASTS)
        );
        let set_aside_until = format!("{now} + {}", dialect.span(SET_ASIDE));
        let is_leased = format!(
            "n.row_id IN ({})",
            dialect.leased_voices(&format!("l.run_id = {run}"))
        );
        // A voice that another process has claimed since then is not changed. If the status was changed by another
        // process that stored the reason of a failure, the reason stays. An answer is recognised by `last_asked`.
        let is_restarted = super::TableSql::is_restarted("EXCLUDED.provider_id");
        let sql = format!(
            "INSERT INTO {voices} AS w (row_id, provider_id, run_id, noted, first_seen, scheduled_at, next_due,
                 last_asked, kind, stage, trouble, missing_account, missing_count, missing_since, strikes, isolated,
                 unanswered, unanswered_since)
             SELECT n.row_id, n.provider_id, {run}, {noted}, {now}, {now}, {next_due},
                 CASE WHEN n.answered THEN {now} END, n.kind, n.stage, n.trouble,
                 CASE WHEN n.missing THEN {account} END, CASE WHEN n.missing THEN 1 ELSE 0 END,
                 CASE WHEN n.missing THEN {now} END, CASE WHEN n.strike THEN 1 ELSE 0 END, n.isolated,
                 CASE WHEN n.unanswerable THEN 1 ELSE 0 END, CASE WHEN n.unanswerable THEN {now} END
             FROM {rows}
             WHERE ({is_leased} OR EXISTS (SELECT 1 FROM {voices} k WHERE k.row_id = n.row_id AND k.run_id = {run}))
               AND NOT (n.superseded
                        AND EXISTS (SELECT 1 FROM {voices} k WHERE k.row_id = n.row_id AND k.failed_at IS NOT NULL))
             ON CONFLICT (row_id) DO UPDATE
             SET provider_id = EXCLUDED.provider_id, run_id = EXCLUDED.run_id, noted = EXCLUDED.noted,
                 failed_at = NULL, failure = NULL, lease_until = NULL,
                 first_seen = CASE WHEN {is_restarted} THEN EXCLUDED.first_seen ELSE w.first_seen END,
                 restarted_at = CASE WHEN {is_restarted} THEN EXCLUDED.first_seen ELSE w.restarted_at END,
                 scheduled_at = EXCLUDED.scheduled_at,
                 next_due = CASE WHEN {is_hinted_again} AND NOT {is_restarted} THEN w.next_due
                                 ELSE EXCLUDED.next_due END,
                 last_asked = COALESCE(EXCLUDED.last_asked, w.last_asked),
                 kind = COALESCE(EXCLUDED.kind, CASE WHEN {is_restarted} THEN NULL ELSE w.kind END),
                 stage = CASE WHEN {is_restarted} OR EXCLUDED.last_asked IS NOT NULL THEN EXCLUDED.stage
                              ELSE w.stage END,
                 trouble = EXCLUDED.trouble,
                 missing_account = CASE WHEN {is_restarted} OR EXCLUDED.last_asked IS NOT NULL
                                        THEN EXCLUDED.missing_account ELSE w.missing_account END,
                 missing_count = CASE WHEN {is_restarted} THEN EXCLUDED.missing_count
                                      WHEN EXCLUDED.missing_count > 0 AND w.missing_account = EXCLUDED.missing_account
                                      THEN w.missing_count + 1
                                      WHEN EXCLUDED.last_asked IS NOT NULL THEN EXCLUDED.missing_count
                                      ELSE w.missing_count END,
                 missing_since = CASE WHEN {is_restarted} THEN EXCLUDED.missing_since
                                      WHEN EXCLUDED.missing_count > 0 AND w.missing_account = EXCLUDED.missing_account
                                      THEN COALESCE(w.missing_since, EXCLUDED.missing_since)
                                      WHEN EXCLUDED.last_asked IS NOT NULL THEN EXCLUDED.missing_since
                                      ELSE w.missing_since END,
                 strikes = CASE WHEN {is_restarted} THEN EXCLUDED.strikes
                                WHEN EXCLUDED.strikes > 0 THEN w.strikes + 1
                                WHEN EXCLUDED.last_asked IS NOT NULL THEN 0 ELSE w.strikes END,
                 set_aside_until = CASE WHEN EXCLUDED.strikes > 0 AND w.strikes + 1 >= {MAX_STRIKES}
                                             AND NOT {is_restarted} THEN {set_aside_until} END,
                 isolated = EXCLUDED.isolated
                            OR w.isolated AND EXCLUDED.last_asked IS NULL AND NOT {is_restarted},
                 unanswered = CASE WHEN {is_restarted} THEN EXCLUDED.unanswered
                                   WHEN EXCLUDED.last_asked IS NOT NULL THEN 0
                                   ELSE w.unanswered + EXCLUDED.unanswered END,
                 unanswered_since = CASE WHEN {is_restarted} THEN EXCLUDED.unanswered_since
                                         WHEN EXCLUDED.last_asked IS NULL
                                         THEN COALESCE(w.unanswered_since, EXCLUDED.unanswered_since) END
             WHERE w.noted IS DISTINCT FROM EXCLUDED.noted"
        );
        self.database.execute(sql, args).await.map(drop)
    }

    pub(super) async fn missing_once(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let sql = format!(
            "SELECT w.row_id, w.provider_id, w.missing_count, {lasting} AS lasting,
                    (SELECT {last_found} FROM {provider} p WHERE p.account = {account}) AS last_found
             FROM {voices} w
             WHERE w.run_id = {run_id} AND w.missing_count > 0 AND w.trouble IS NULL
               AND w.provider_id IS NOT NULL AND w.row_id > {after}
             ORDER BY w.row_id LIMIT {limit}",
            lasting = dialect.since("w.missing_since"),
            last_found = dialect.since("p.found_at"),
            provider = dialect.own("provider"),
            voices = dialect.own("voices"),
            account = args.bind(account),
            run_id = args.bind(run_id),
            after = args.bind(after.map_or("", RowId::as_str)),
            limit = args.limit(limit),
        );
        let rows = self.database.fetch_all(sql, args).await?;
        let missing = rows.iter().map(|row| {
            Ok(MissingVoice {
                row: row.get("row_id")?,
                provider_id: row.get("provider_id")?,
                times: row.times("missing_count")?,
                lasting: row.get("lasting")?,
                last_found: row.get_optional("last_found")?,
            })
        });
        missing.collect()
    }

    pub(super) async fn mass_absence_once(&self, account: Uuid) -> Result<MassAbsence, StoreError> {
        let dialect = self.dialect();
        let [voices, runs, provider] =
            ["voices", "runs", "provider"].map(|table| dialect.own(table));
        let yesterday = format!("{} - {}", dialect.now(), dialect.span(DAY));
        let sum = |name: &str, account: &str| {
            format!(
                "(SELECT {} FROM {runs} WHERE account = {account} AND finished_at > {yesterday})",
                sum_of(name)
            )
        };
        let mut args = self.database.args();
        let (id, failure) = (args.bind(account), args.bind(Failure::Missing.to_string()));
        let failed = dialect.greatest(
            &format!("count(*) FILTER (WHERE failure = {failure} AND failed_at > {yesterday})"),
            &sum("failed_missing", &id),
        );
        let missing = format!(
            "SELECT count(*) FILTER (WHERE failed_at IS NULL AND EXISTS (
                        SELECT 1 FROM {table} v WHERE {is_row} AND {is_processing})) AS missing,
                    {failed} AS failed,
                    COALESCE((SELECT mass_absence_since IS NOT NULL FROM {provider}
                              WHERE account = {id}), FALSE) AS lasts
             FROM {voices} w WHERE missing_account = {id} AND missing_count > 0",
            table = self.table.table,
            is_row = self.table.is_row_of_own(),
            is_processing = self.table.is_processing(),
        );
        let row = self.database.fetch_one(missing, args).await?;
        let (missing, failed) = (row.count("missing")?, row.count("failed")?);
        let enough = MassAbsence::enough_found(missing + failed);
        let mut args = self.database.args();
        let (id, enough) = (args.bind(account), args.bind(enough));
        let found = format!(
            "SELECT (SELECT count(*) FROM (
                         SELECT 1 FROM {voices}
                         WHERE missing_count = 0 AND unanswered = 0 AND failed_at IS NULL
                           AND last_asked > {yesterday} AND kind IS NOT NULL LIMIT {enough}) w)
                    + {} AS found",
            sum("completed", &id)
        );
        let found = self.database.fetch_one(found, args).await?;
        Ok(MassAbsence {
            missing,
            failed,
            found: found.count("found")?,
            lasts: row.get("lasts")?,
        })
    }

    pub(super) async fn save_mass_absence_once(
        &self,
        account: Uuid,
        lasts: bool,
    ) -> Result<(), StoreError> {
        let now = self.dialect().now();
        let (since, again) = match lasts {
            true => (
                now,
                "COALESCE(p.mass_absence_since, EXCLUDED.mass_absence_since)",
            ),
            false => ("NULL", "NULL"),
        };
        let mut args = self.database.args();
        let sql = format!(
            "INSERT INTO {} AS p (account, mass_absence_since) VALUES ({}, {since})
             ON CONFLICT (account) DO UPDATE SET mass_absence_since = {again}",
            self.dialect().own("provider"),
            args.bind(account),
        );
        self.database.execute(sql, args).await.map(drop)
    }
}

/// A note as columns.
struct NoteRow<'a> {
    note: &'a Note,
    kind: Option<&'a str>,
    stage: Option<&'static str>,
    last_error: Option<Cow<'a, str>>,
    /// Whether the provider said something about the voice, or the voice cannot be looked up.
    is_answered: bool,
    is_isolated: bool,
}

impl<'a> NoteRow<'a> {
    fn new(note: &'a Note) -> Self {
        let row = Self {
            note,
            kind: None,
            stage: None,
            last_error: None,
            is_answered: true,
            is_isolated: false,
        };
        match &note.seen {
            Seen::Processing { kind, stage } => Self {
                kind: Some(kind),
                stage: Some(stage.as_str()),
                ..row
            },
            Seen::Missing | Seen::Superseded => row,
            Seen::SetAside(reason) => Self {
                last_error: Some(reason.to_string().into()),
                ..row
            },
            Seen::Unanswerable { reason, times: _ } | Seen::Suspected(reason) => Self {
                last_error: Some(reason.into()),
                is_answered: false,
                is_isolated: true,
                ..row
            },
            Seen::Unavailable(reason) => Self {
                last_error: Some(reason.into()),
                is_answered: false,
                ..row
            },
        }
    }
}
