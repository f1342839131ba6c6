//! Writing down what became of claimed voices.

use std::collections::HashMap;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::outbox::event;
use super::{NOW, SqliteStore, elapsed, milliseconds};
use crate::store::{
    Applied, MAX_STRIKES, MissingVoice, Note, OVERTAKEN, Record, SET_ASIDE, StoreError, Target,
    Transition, visit,
};
use crate::voice::RowId;

impl SqliteStore {
    pub(in crate::store) async fn apply(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        const RECORD: &str = "
            INSERT INTO voice_sync_outbox (event_id, run_id, event_type, voice_id, user_id,
                                           occurred_at, leased_until)
            SELECT value ->> 'event_id', $4, value ->> 'event_type', value ->> 'voice_id',
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
        const KEEP: &str = "
            INSERT INTO voice_sync_completions (row_id, provider_id, preview_url, completed_at)
            SELECT value ->> 'row', value ->> 'provider_id', value ->> 'preview', $2
            FROM json_each($1) WHERE TRUE
            ON CONFLICT (row_id) DO UPDATE
            SET provider_id = excluded.provider_id, preview_url = excluded.preview_url,
                completed_at = excluded.completed_at";
        const GIVE_BACK: &str = "
            UPDATE voice_sync_voices
            SET lease_until = NULL, scheduled_at = $3, next_due = $3 + $4
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
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let rows = sqlx::query(AssertSqlSafe(self.update()))
            .bind(json!(answers).to_string())
            .fetch_all(&mut *transaction)
            .await?;
        let present: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {NOW}")))
            .fetch_one(&mut *transaction)
            .await?;
        let mut applied = Applied::default();
        let mut users = HashMap::with_capacity(rows.len());
        for row in &rows {
            let user: Option<String> = row.try_get("user_id")?;
            let provider_id: String = row.try_get("provider_id")?;
            let row = RowId::new(row.try_get::<String, _>("row_id")?);
            applied.moved.insert(row.clone());
            users.insert((row, provider_id), user);
        }
        let (mut events, mut explained) = (Vec::new(), Vec::new());
        let (mut forgotten, mut overtaken) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for transition in transitions {
            let Transition {
                row,
                provider_id,
                target,
            } = transition;
            // A row that comes twice moves once, by the answer about the id that it has.
            let user = users.remove(&(row.clone(), provider_id.as_str().to_owned()));
            match (target, &user) {
                (Target::Failed { reason }, Some(_)) => {
                    explained.push(json!({"row": row.as_str(), "reason": reason}));
                }
                (Target::Completed { preview_url }, Some(_)) => {
                    forgotten.push(row.as_str());
                    kept.push(
                        json!({"row": row.as_str(), "provider_id": provider_id.as_str(),
                                     "preview": preview_url}),
                    );
                }
                (Target::Completed { .. } | Target::Failed { .. }, None) => {
                    if !applied.moved.contains(row) {
                        overtaken.push(row.as_str());
                    }
                }
            }
            if let Some(user) = user {
                let event_type = target.event_type();
                events.push(json!({
                    "event_id": transition.event_id(),
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
                .bind(run_id.to_string())
                .fetch_all(&mut *transaction)
                .await?;
            for row in &recorded {
                applied.events.extend(event(row)?);
            }
        }
        if self.keeps_completions() {
            sqlx::query(KEEP)
                .bind(json!(kept).to_string())
                .bind(present)
                .execute(&mut *transaction)
                .await?;
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
        sqlx::query(GIVE_BACK)
            .bind(json!(overtaken).to_string())
            .bind(run_id.to_string())
            .bind(present)
            .bind(milliseconds(OVERTAKEN))
            .execute(&mut *transaction)
            .await?;
        visit("store.apply.commit").await?;
        transaction.commit().await?;
        Ok(applied)
    }

    /// Has SQLite compile the update of a bulk, which it refuses to do where it would refuse the
    /// update itself, whatever the rows.
    pub(in crate::store) async fn explain_update(&self) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(format!("EXPLAIN {}", self.update())))
            .bind("[]")
            .fetch_all(&self.pool)
            .await?;
        Ok(())
    }

    /// The one statement that writes to the application's table; `$1` are the answers.
    fn update(&self) -> String {
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
        let preview = preview_url.iter().map(|column| {
            format!(
                ", {column} = CASE WHEN a.completes THEN COALESCE(a.preview, v.{column}) ELSE v.{column} END"
            )
        });
        // SQLAlchemy writes six digits of a second; SQLite's clock has three.
        let moment = completed_at.iter().map(|column| {
            format!(
                ", {column} = CASE WHEN a.completes THEN strftime('%Y-%m-%d %H:%M:%f000', 'now')
                                   ELSE v.{column} END"
            )
        });
        let others: String = preview.chain(moment).collect();
        // The sign keeps SQLite from going through all voices in processing by the index on their status,
        // and through all answers for each: <https://www.sqlite.org/optoverview.html#uplus>.
        format!(
            "UPDATE {table} AS v
             SET {status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END {others}
             FROM (SELECT value ->> 'row' AS row_id, value ->> 'provider_id' AS provider_id,
                          value ->> 'completes' AS completes, value ->> 'preview' AS preview
                   FROM json_each($1)) a
             WHERE v.{id} = a.row_id AND +v.{status} = {processing}
               AND v.{provider_id} = a.provider_id
             RETURNING CAST({id} AS TEXT) AS row_id, CAST({provider_id} AS TEXT) AS provider_id,
                       {user_id} AS user_id"
        )
    }

    pub(in crate::store) async fn note(
        &self,
        run_id: Uuid,
        account: Uuid,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        let notes: Vec<_> = notes
            .iter()
            .map(
                |Note {
                     row,
                     seen,
                     again_in,
                 }| {
                    let (seen, kind, stage, trouble) = seen.columns();
                    json!({"row": row.as_str(), "seen": seen, "kind": kind, "stage": stage,
                       "trouble": trouble, "again_in": milliseconds(*again_in)})
                },
            )
            .collect();
        let sql = format!(
            "UPDATE voice_sync_voices AS w
             SET lease_until = NULL, scheduled_at = {NOW}, next_due = {NOW} + n.again_in,
                 last_asked = CASE WHEN n.answered THEN {NOW} ELSE w.last_asked END,
                 kind = COALESCE(n.kind, w.kind),
                 stage = CASE WHEN n.answered THEN n.stage ELSE w.stage END,
                 missing_account = CASE WHEN n.seen = 'missing' THEN $5
                                        WHEN NOT n.answered THEN w.missing_account END,
                 missing_count = CASE WHEN n.seen = 'missing' THEN
                                          CASE WHEN w.missing_account = $5 THEN w.missing_count ELSE 0 END + 1
                                      WHEN n.answered THEN 0 ELSE w.missing_count END,
                 missing_since = CASE WHEN n.seen = 'missing' THEN
                                          CASE WHEN w.missing_account = $5 THEN COALESCE(w.missing_since, {NOW})
                                               ELSE {NOW} END
                                      WHEN NOT n.answered THEN w.missing_since END,
                 strikes = CASE WHEN n.seen = 'set_aside' THEN w.strikes + 1
                                WHEN n.answered THEN 0 ELSE w.strikes END,
                 isolated = n.seen IN ('unanswerable', 'suspected') OR w.isolated AND NOT n.answered,
                 unanswered = CASE WHEN n.answered THEN 0
                                   ELSE w.unanswered + (n.seen = 'unanswerable') END,
                 unanswered_since = CASE WHEN NOT n.answered THEN
                                             CASE WHEN n.seen = 'unanswerable'
                                                  THEN COALESCE(w.unanswered_since, {NOW})
                                                  ELSE w.unanswered_since END END,
                 set_aside_until = CASE WHEN n.seen = 'set_aside' AND w.strikes + 1 >= $3
                                        THEN {NOW} + $4 END,
                 trouble = n.trouble
             FROM (SELECT value ->> 'row' AS row_id, value ->> 'seen' AS seen,
                          value ->> 'kind' AS kind, value ->> 'stage' AS stage,
                          value ->> 'trouble' AS trouble, value ->> 'again_in' AS again_in,
                          value ->> 'seen' NOT IN ('unanswerable', 'suspected', 'unavailable') AS answered
                   FROM json_each($1)) n
             WHERE w.row_id = n.row_id AND w.run_id = $2
              AND (w.lease_until IS NOT NULL OR n.seen = 'set_aside')"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(json!(notes).to_string())
            .bind(run_id.to_string())
            .bind(MAX_STRIKES)
            .bind(milliseconds(SET_ASIDE))
            .bind(account.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::store) async fn missing(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        let sql = format!(
            "SELECT w.row_id, w.provider_id, w.missing_count, {NOW} - w.missing_since AS lasting,
                    (SELECT {NOW} - p.found_at FROM voice_sync_provider p
                     WHERE p.account = $2) AS last_found
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
                    last_found: row.try_get::<Option<i64>, _>("last_found")?.map(elapsed),
                })
            })
            .collect()
    }
}
