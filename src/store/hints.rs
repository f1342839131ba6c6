//! Hints: requests to look voices up now.

use std::time::Duration;

use uuid::Uuid;

use super::values::{Hinted, Selection};
use super::{Store, StoreError, TableSql};

/// The shortest time between two lookups of a voice that are caused by hints.
pub const HINT_SPACING: Duration = Duration::from_secs(5);
/// The same for voices that cannot be looked up or stored.
const TROUBLED_SPACING: Duration = Duration::from_secs(5 * 60);
/// How long a voice is due by a hint that brought no answer.
pub(super) const HINT_LASTS: Duration = Duration::from_secs(5 * 60);

impl Store {
    /// A voice is due by a hint while `next_due` equals `hinted_at`, which a note changes. A hint that comes while
    /// the voice is being looked up may be newer than the answer. So it makes the voice due again, some time after
    /// the previous hint. A flood of hints therefore costs one lookup in that time, and not one write per hint.
    pub(super) async fn hint_once(&self, names: &[String]) -> Result<Hinted, StoreError> {
        let (table, dialect) = (&self.table, self.dialect());
        let now = dialect.now();
        let selection = Selection::Named(names.to_vec());
        // On SQLite, a hint for no voice takes no write lock.
        let voices = self.count_once(&selection).await?;
        if voices == 0 {
            return Ok(Hinted::default());
        }
        let mut args = self.database.args();
        let condition = table.is_selected(&mut args, &selection);
        let is_leased = table.is_leased("w.row_id", None);
        let spacing = format!(
            "CASE WHEN w.strikes > 0 OR w.unanswered > 0 THEN {} ELSE {} END",
            dialect.span(TROUBLED_SPACING),
            dialect.span(HINT_SPACING)
        );
        // A hint further in the future was given before the database's clock was set back.
        let is_possible = format!("w.hinted_at <= {now} + ({spacing})");
        let before = format!("CASE WHEN {is_possible} THEN w.hinted_at + ({spacing}) END");
        let due = dialect.greatest(&before, now);
        let sql = format!(
            "INSERT INTO {voices} AS w (row_id, provider_id, run_id, first_seen, scheduled_at, next_due, hinted_at)
             SELECT {row_id}, {provider_id}, {nobody}, {now}, {now}, {now}, {now} FROM {name} v WHERE {condition}
             ORDER BY {row_id}
             ON CONFLICT (row_id) DO UPDATE SET next_due = {due}, hinted_at = {due}
             WHERE {is_current}
               AND NOT ({is_hinted} AND {is_possible} AND (w.next_due > {now} OR NOT {is_leased}))",
            voices = dialect.own("voices"),
            row_id = table.row_id(),
            provider_id = table.provider_id,
            nobody = args.bind(Uuid::nil()),
            name = table.table,
            is_current = TableSql::is_current("EXCLUDED.provider_id"),
            is_hinted = dialect.is_hinted(),
        );
        let changed = self.database.execute(sql, args).await?;
        Ok(Hinted { voices, changed })
    }
}
