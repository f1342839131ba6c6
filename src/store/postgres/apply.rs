//! Writing down what became of claimed voices.

use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::outbox::event;
use super::{PostgresStore, seconds};
use crate::events::EventType;
use crate::store::{
    Applied, MAX_STRIKES, MissingVoice, Note, OVERTAKEN, Record, SET_ASIDE, StoreError, Target,
    Transition,
};
use crate::voice::RowId;

/// How long a bulk waits for rows that the application has locked, before it goes on without them.
const LOCK_TIMEOUT: &str = "900ms";

/// What a bulk does about rows that somebody else has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Locked {
    /// It waits a moment: locks of the application are mostly short, and looking first costs time.
    Wait,
    /// It leaves them out.
    Skip,
}

impl PostgresStore {
    pub(in crate::store) async fn apply(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
    ) -> Result<Applied, StoreError> {
        match self
            .apply_bulk(run_id, transitions, record, Locked::Wait)
            .await
        {
            Err(StoreError::Contended(_)) => {
                self.apply_bulk(run_id, transitions, record, Locked::Skip)
                    .await
            }
            done => done,
        }
    }

    async fn apply_bulk(
        &self,
        run_id: Uuid,
        transitions: &[Transition],
        record: Record,
        locked: Locked,
    ) -> Result<Applied, StoreError> {
        let mut ids = Vec::with_capacity(transitions.len());
        let mut provider_ids = Vec::with_capacity(transitions.len());
        let mut completes = Vec::with_capacity(transitions.len());
        let mut previews = Vec::with_capacity(transitions.len());
        let mut reasons = Vec::with_capacity(transitions.len());
        let mut event_ids = Vec::with_capacity(transitions.len());
        for transition in transitions {
            let Transition {
                row,
                provider_id,
                target,
            } = transition;
            let (preview, reason) = match target {
                Target::Completed { preview_url } => (preview_url.as_deref(), None),
                Target::Failed { reason } => (None, Some(reason.as_str())),
            };
            ids.push(row.as_str());
            provider_ids.push(provider_id.as_str());
            completes.push(reason.is_none());
            previews.push(preview);
            reasons.push(reason);
            event_ids.push(transition.event_id());
        }
        let (created, updated) = (EventType::VoiceCreated, EventType::VoiceUpdated);
        let (table, unchanged) = (&self.table, self.unchanged());
        let (free, is_free, left_out) = match locked {
            Locked::Wait => (String::new(), "TRUE", String::new()),
            Locked::Skip => (
                format!(
                    "free AS MATERIALIZED (
                         SELECT a.id FROM {table} v JOIN answer a ON {unchanged}
                         FOR NO KEY UPDATE OF v SKIP LOCKED
                     ),"
                ),
                "a.id IN (SELECT id FROM free)",
                format!(
                    "UNION ALL
                     SELECT a.id::text, TRUE, NULL, NULL, NULL, NULL, NULL, NULL
                     FROM {table} v JOIN answer a ON {unchanged}
                     WHERE a.id NOT IN (SELECT id FROM free)"
                ),
            ),
        };
        let kept = match self.keeps_completions() {
            true => {
                "kept AS (
                     INSERT INTO voice_sync.completions (row_id, provider_id, preview_url)
                     SELECT row_id, provider_id, preview FROM moved WHERE completes
                     ON CONFLICT (row_id) DO UPDATE
                     SET provider_id = EXCLUDED.provider_id, preview_url = EXCLUDED.preview_url,
                         completed_at = EXCLUDED.completed_at
                 ),"
            }
            false => "",
        };
        let (answer, update) = (self.answer(), self.update(is_free));
        // PostgreSQL takes `moved` for a single row, and joins it by comparing all with all: 20,000
        // comparisons for 100 rows. So nothing is joined with it but by an index, or looked up in it but by
        // a hash.
        let sql = format!(
            "WITH {answer},
             {free}
             moved AS ({update}),
             {kept}
             recorded AS (
                 INSERT INTO voice_sync.outbox (event_id, run_id, event_type, voice_id, user_id,
                                                leased_until)
                 SELECT event_id, $7, CASE WHEN completes THEN '{created}' ELSE '{updated}' END,
                        row_id, user_id, now() + make_interval(secs => $9)
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
                 DELETE FROM voice_sync.voices w USING moved m
                 WHERE m.completes AND w.row_id = m.row_id AND w.run_id = $7
             ),
             unmoved AS MATERIALIZED (
                 SELECT a.id::text AS row_id FROM answer a
                 WHERE a.id::text NOT IN (SELECT row_id FROM moved)
             ),
             overtaken AS (
                 UPDATE voice_sync.voices w
                 SET lease_until = NULL, scheduled_at = now(),
                     next_due = now() + make_interval(secs => $10)
                 FROM unmoved u
                 WHERE w.row_id = u.row_id AND w.run_id = $7
             )
             SELECT voice_id AS row_id, FALSE AS locked, id, event_id, event_type, voice_id, user_id,
                    occurred_at
             FROM recorded
             UNION ALL
             SELECT row_id, FALSE, NULL, NULL, NULL, NULL, NULL, NULL FROM moved WHERE NOT $8
             {left_out}
             ORDER BY id"
        );
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(AssertSqlSafe(sql))
            .bind(ids)
            .bind(provider_ids)
            .bind(completes)
            .bind(previews)
            .bind(reasons)
            .bind(event_ids)
            .bind(run_id)
            .bind(record.is_wanted())
            .bind(record.lease().as_secs_f64())
            .bind(OVERTAKEN.as_secs_f64())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        let mut applied = Applied::default();
        for row in rows {
            let id = RowId::new(row.try_get::<String, _>("row_id")?);
            match row.try_get("locked")? {
                true => applied.locked.insert(id),
                false => applied.moved.insert(id),
            };
            if row.try_get::<Option<i64>, _>("id")?.is_some() {
                applied.events.extend(event(&row)?);
            }
        }
        Ok(applied)
    }

    /// Has the database plan the update of a bulk, which it refuses to do where it would refuse the
    /// update itself, whatever the rows.
    pub(in crate::store) async fn explain_update(&self) -> Result<(), StoreError> {
        let (answer, update) = (self.answer(), self.update("TRUE"));
        let sql = format!("EXPLAIN WITH {answer}, moved AS ({update}) SELECT FROM moved");
        let nothing: [&str; 0] = [];
        let mut session = self.sessions.begin().await?;
        session
            .query(AssertSqlSafe(sql))
            .bind(nothing)
            .bind(nothing)
            .bind([true; 0])
            .bind(nothing)
            .bind(nothing)
            .bind(Vec::<Uuid>::new())
            .fetch_all(&mut *session)
            .await?;
        session.keep().await
    }

    /// The answers, `$1` to `$6`, as a table.
    fn answer(&self) -> String {
        let id_type = &self.id_type;
        // A setting that is local to the transaction, and so to this statement: it holds for the
        // locks that are taken once `answer` is read.
        format!(
            "patience AS MATERIALIZED (
                 SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', TRUE)
             ),
             answer AS (
                 SELECT a.* FROM patience,
                        unnest($1::text[]::{id_type}[], $2::text[], $3::bool[], $4::text[],
                               $5::text[], $6::uuid[])
                            AS a (id, provider_id, completes, preview, reason, event_id)
             )"
        )
    }

    /// What a row has to be for its answer still to count.
    fn unchanged(&self) -> String {
        let Self {
            id,
            status,
            processing,
            provider_id,
            ..
        } = self;
        format!("v.{id} = a.id AND v.{status} = {processing} AND v.{provider_id} = a.provider_id")
    }

    /// The one statement that writes to the application's table.
    fn update(&self, is_free: &str) -> String {
        let Self {
            table,
            status,
            user_id,
            preview_url,
            completed_at,
            completed,
            failed,
            completed_now,
            ..
        } = self;
        let preview = preview_url.iter().map(|column| {
            format!(
                ", {column} = CASE WHEN a.completes THEN COALESCE(a.preview, v.{column}) ELSE v.{column} END"
            )
        });
        let moment = completed_at.iter().map(|column| {
            format!(", {column} = CASE WHEN a.completes THEN {completed_now} ELSE v.{column} END")
        });
        let (others, unchanged) = (preview.chain(moment).collect::<String>(), self.unchanged());
        format!(
            "UPDATE {table} v
             SET {status} = CASE WHEN a.completes THEN {completed} ELSE {failed} END {others}
             FROM answer a
             WHERE {unchanged} AND {is_free}
             RETURNING a.id::text AS row_id, a.provider_id, a.completes, a.preview, a.reason,
                       a.event_id, {user_id} AS user_id"
        )
    }

    pub(in crate::store) async fn note(
        &self,
        run_id: Uuid,
        account: Uuid,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        const NOTE: &str = "
            UPDATE voice_sync.voices w
            SET lease_until = NULL, scheduled_at = now(),
                next_due = now() + make_interval(secs => n.again_in),
                last_asked = CASE WHEN n.answered THEN now() ELSE w.last_asked END,
                kind = COALESCE(n.kind, w.kind),
                stage = CASE WHEN n.answered THEN n.stage ELSE w.stage END,
                missing_account = CASE WHEN n.seen = 'missing' THEN $9
                                       WHEN NOT n.answered THEN w.missing_account END,
                missing_count = CASE WHEN n.seen = 'missing' THEN
                                         CASE WHEN w.missing_account = $9 THEN w.missing_count ELSE 0 END + 1
                                     WHEN n.answered THEN 0 ELSE w.missing_count END,
                missing_since = CASE WHEN n.seen = 'missing' THEN
                                         CASE WHEN w.missing_account = $9 THEN COALESCE(w.missing_since, now())
                                              ELSE now() END
                                     WHEN NOT n.answered THEN w.missing_since END,
                strikes = CASE WHEN n.seen = 'set_aside' THEN w.strikes + 1
                               WHEN n.answered THEN 0 ELSE w.strikes END,
                isolated = n.seen IN ('unanswerable', 'suspected') OR w.isolated AND NOT n.answered,
                unanswered = CASE WHEN n.answered THEN 0
                                  ELSE w.unanswered + (n.seen = 'unanswerable')::int END,
                unanswered_since = CASE WHEN NOT n.answered THEN
                                            CASE WHEN n.seen = 'unanswerable'
                                                 THEN COALESCE(w.unanswered_since, now())
                                                 ELSE w.unanswered_since END END,
                set_aside_until = CASE WHEN n.seen = 'set_aside' AND w.strikes + 1 >= $7
                                       THEN now() + make_interval(secs => $8) END,
                trouble = n.trouble
            FROM (SELECT *, seen NOT IN ('unanswerable', 'suspected', 'unavailable') AS answered
                  FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $10::float8[])
                           AS n (row_id, seen, kind, stage, trouble, again_in)) n
            WHERE w.row_id = n.row_id AND w.run_id = $1
              AND (w.lease_until IS NOT NULL OR n.seen = 'set_aside')";
        let mut rows = Vec::with_capacity(notes.len());
        let mut seens = Vec::with_capacity(notes.len());
        let mut kinds = Vec::with_capacity(notes.len());
        let mut stages = Vec::with_capacity(notes.len());
        let mut troubles = Vec::with_capacity(notes.len());
        let mut pauses = Vec::with_capacity(notes.len());
        for Note {
            row,
            seen,
            again_in,
        } in notes
        {
            pauses.push(again_in.as_secs_f64());
            let (word, kind, stage, trouble) = seen.columns();
            rows.push(row.as_str());
            seens.push(word);
            kinds.push(kind);
            stages.push(stage);
            troubles.push(trouble);
        }
        let mut session = self.sessions.begin().await?;
        session
            .query(NOTE)
            .bind(run_id)
            .bind(rows)
            .bind(seens)
            .bind(kinds)
            .bind(stages)
            .bind(troubles)
            .bind(i32::try_from(MAX_STRIKES).unwrap_or(i32::MAX))
            .bind(SET_ASIDE.as_secs_f64())
            .bind(account)
            .bind(pauses)
            .execute(&mut *session)
            .await?;
        session.keep().await?;
        Ok(())
    }

    pub(in crate::store) async fn missing(
        &self,
        run_id: Uuid,
        account: Uuid,
        after: Option<&RowId>,
        limit: u32,
    ) -> Result<Vec<MissingVoice>, StoreError> {
        const MISSING: &str = "
            SELECT w.row_id, w.provider_id, w.missing_count,
                   extract(epoch FROM now() - w.missing_since)::float8 AS lasting,
                   (SELECT extract(epoch FROM now() - p.found_at)::float8
                    FROM voice_sync.provider p WHERE p.account = $2) AS last_found
            FROM voice_sync.voices w
            WHERE w.run_id = $1 AND w.missing_count > 0 AND w.trouble IS NULL
               AND w.lease_until IS NULL AND w.provider_id IS NOT NULL
              AND w.row_id > $3
            ORDER BY w.row_id LIMIT $4";
        let mut session = self.sessions.begin().await?;
        let rows = session
            .query(MISSING)
            .bind(run_id)
            .bind(account)
            .bind(after.map_or("", RowId::as_str))
            .bind(i64::from(limit))
            .fetch_all(&mut *session)
            .await?;
        session.keep().await?;
        rows.into_iter()
            .map(|row| {
                Ok(MissingVoice {
                    row: RowId::new(row.try_get::<String, _>("row_id")?),
                    provider_id: row.try_get("provider_id")?,
                    times: row.try_get::<i32, _>("missing_count")?.unsigned_abs(),
                    lasting: seconds(row.try_get("lasting")?),
                    last_found: row.try_get::<Option<f64>, _>("last_found")?.map(seconds),
                })
            })
            .collect()
    }
}
