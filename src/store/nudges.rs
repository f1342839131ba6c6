//! Nudges: each one is recorded before its request is sent, once per voice of the provider.

use std::time::Duration;

use uuid::Uuid;

use super::survey::Nudging;
use super::values::{NudgeClaim, NudgePermit};
use super::{CLOCK_SLACK, DAY, Store, StoreError};
use crate::core::nudge::{MAX_STOP, Nudge, NudgeAnswer, NudgeOutcome};

/// `pg_advisory_xact_lock` key: the ASCII bytes of "voicenud". Only one nudge is claimed at a time.
const LOCK_KEY: i64 = 0x766f_6963_656e_7564;
/// A nudge without an answer counts as in flight for this time at most.
const UNDER_WAY: Duration = Duration::from_secs(45);
/// A nudged voice is looked up after this time.
const DUE_IN: Duration = Duration::from_secs(2);
/// When to try again while another nudge is in flight, and after the daily limit is reached.
const BUSY: Duration = Duration::from_secs(1);
const LIMITED: Duration = Duration::from_secs(5 * 60);

impl Store {
    pub(super) async fn claim_nudge_once(
        &self,
        claim: &NudgeClaim,
        limit: u32,
    ) -> Result<NudgePermit, StoreError> {
        let (table, dialect, now) = (&self.table, self.dialect(), self.dialect().now());
        let [nudges, provider] = ["nudges", "provider"].map(|table| dialect.own(table));
        let alone = format!("SELECT pg_advisory_xact_lock({LOCK_KEY})");
        let mut transaction = self.database.begin_with(&alone).await?;
        let mut args = self.database.args();
        let [provider_id, account] = [
            dialect.text(&args.bind(claim.provider_id.as_str())),
            args.bind(claim.account),
        ];
        let sql = format!(
            "SELECT (SELECT nudge_id FROM {nudges} WHERE provider_id = {provider_id} AND answer <> '{unsent}') AS earlier,
                    EXISTS (SELECT 1 FROM {name} v WHERE {is_row} AND {is_processing}
                            AND {row_provider_id} = {provider_id}) AS waits,
                    {today} AS today,
                    EXISTS (SELECT 1 FROM {nudges} g WHERE g.account = {account} AND g.answer = '{sent}'
                            AND g.nudged_at > {now} - {under_way} AND g.nudged_at <= {now}) AS is_busy,
                    (SELECT {stopped_for} FROM {provider} p WHERE p.account = {account}) AS stopped_for",
            name = table.table,
            is_row = table.has_key(&mut args, &[claim.row.as_str().to_owned()]),
            is_processing = table.is_processing(),
            row_provider_id = table.provider_id,
            today = self.nudges_today("count(*)", &account),
            sent = Nudge::Sent.as_str(),
            unsent = Nudge::Unsent.as_str(),
            under_way = dialect.span(UNDER_WAY),
            stopped_for = dialect.seconds_until("p.nudging_stopped_until", MAX_STOP),
        );
        let row = transaction.fetch_one(sql, args).await?;
        let stopped_for: Duration = row.get_optional("stopped_for")?.unwrap_or_default();
        let refusal = match row.get_optional::<Uuid>("earlier")? {
            // It was claimed by this call, whose reply was lost.
            Some(earlier) if earlier == claim.nudge_id => Some(NudgePermit::Granted),
            Some(_) => Some(NudgePermit::Needless),
            None if !row.get::<bool>("waits")? => Some(NudgePermit::Needless),
            None if !stopped_for.is_zero() => Some(NudgePermit::NotNow(stopped_for)),
            None if row.count("today")? >= u64::from(limit) => Some(NudgePermit::NotNow(LIMITED)),
            None if row.get("is_busy")? => Some(NudgePermit::NotNow(BUSY)),
            None => None,
        };
        if let Some(permit) = refusal {
            transaction.roll_back().await?;
            return Ok(permit);
        }
        let mut args = self.database.args();
        let values = [
            args.bind(claim.provider_id.as_str()),
            args.bind(claim.nudge_id),
            args.bind(claim.account),
            args.bind(claim.row.as_str()),
            args.bind(claim.characters),
        ];
        let sql = format!(
            "INSERT INTO {nudges} AS g (provider_id, nudge_id, account, row_id, characters, nudged_at)
             VALUES ({values}, {now})
             ON CONFLICT (provider_id) DO UPDATE
             SET nudge_id = EXCLUDED.nudge_id, account = EXCLUDED.account, row_id = EXCLUDED.row_id,
                 characters = EXCLUDED.characters, nudged_at = EXCLUDED.nudged_at, answered_at = NULL,
                 answer = '{sent}', detail = NULL
             WHERE g.answer = '{unsent}'",
            values = values.join(", "),
            sent = Nudge::Sent.as_str(),
            unsent = Nudge::Unsent.as_str(),
        );
        transaction.execute(sql, args).await?;
        transaction.commit().await?;
        Ok(NudgePermit::Granted)
    }

    pub(super) async fn settle_nudge_once(
        &self,
        claim: &NudgeClaim,
        answer: &NudgeAnswer,
    ) -> Result<NudgeOutcome, StoreError> {
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let [nudges, provider, voices] =
            ["nudges", "provider", "voices"].map(|table| dialect.own(table));
        let mut transaction = self.database.begin().await?;
        let mut args = self.database.args();
        let account = args.bind(claim.account);
        let spoke = format!(
            "count(*) FILTER (WHERE g.answer = '{}')",
            Nudge::Spoke.as_str()
        );
        let sql = format!("SELECT {} AS spoke", self.nudges_today(&spoke, &account));
        let others_spoke = transaction.fetch_one(sql, args).await?.count("spoke")? > 0;
        let outcome = answer.outcome(others_spoke);
        let mut args = self.database.args();
        let sql = format!(
            "UPDATE {nudges} SET answered_at = {now}, answer = {}, detail = {} WHERE nudge_id = {}",
            args.bind(outcome.nudge.as_str()),
            args.bind(answer.says()),
            args.bind(claim.nudge_id)
        );
        transaction.execute(sql, args).await?;
        if outcome.nudge == Nudge::Spoke {
            let mut args = self.database.args();
            let due = format!("{now} + {}", dialect.span(DUE_IN));
            let sql = format!(
                "UPDATE {voices} SET next_due = {due}, hinted_at = {due}
                 WHERE row_id = {} AND provider_id = {} AND failed_at IS NULL",
                args.bind(claim.row.as_str()),
                args.bind(claim.provider_id.as_str()),
            );
            transaction.execute(sql, args).await?;
        }
        if let Some(pause) = outcome.pause {
            let mut args = self.database.args();
            let until = format!("{now} + {}", dialect.seconds(&args.bind(pause)));
            // Only reasons that an operator should act on are stored.
            let reason = answer.says().filter(|_| outcome.nudge == Nudge::Refused);
            let sql = format!(
                "INSERT INTO {provider} AS p (account, nudging_stopped_until, nudging_stopped_by)
                 VALUES ({}, {until}, {})
                 ON CONFLICT (account) DO UPDATE
                 SET nudging_stopped_until = EXCLUDED.nudging_stopped_until,
                     nudging_stopped_by = EXCLUDED.nudging_stopped_by",
                args.bind(claim.account),
                args.bind(reason),
            );
            transaction.execute(sql, args).await?;
        }
        transaction.commit().await?;
        Ok(outcome)
    }

    pub(super) async fn nudging_once(&self, account: Uuid) -> Result<Nudging, StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let account = args.bind(account);
        let spoken = format!(
            "CAST(COALESCE(sum(g.characters) FILTER (WHERE g.answer = '{}'), 0) AS bigint)",
            Nudge::Spoke.as_str()
        );
        let sql = format!(
            "SELECT {today} AS today, {characters} AS characters, p.nudging_stopped_by AS stopped_by,
                    {stopped_for} AS stopped_for
             FROM (SELECT 1 AS one) o LEFT JOIN {provider} p ON p.account = {account}",
            today = self.nudges_today("count(*)", &account),
            characters = self.nudges_today(&spoken, &account),
            stopped_for = dialect.seconds_until("p.nudging_stopped_until", MAX_STOP),
            provider = dialect.own("provider"),
        );
        let row = self.database.fetch_one(sql, args).await?;
        Ok(Nudging {
            today: row.count("today")?,
            characters: row.count("characters")?,
            stopped_for: row.get("stopped_for")?,
            stopped_by: row.get_optional("stopped_by")?,
        })
    }

    /// A summary of the nudges `g` of a day of an account.
    pub(super) fn nudges_today(&self, what: &str, account: &str) -> String {
        let dialect = self.dialect();
        format!(
            "(SELECT {what} FROM {nudges} g WHERE g.account = {account} AND g.answer <> '{unsent}'
                AND g.nudged_at > {now} - {day} AND g.nudged_at <= {now} + {slack})",
            nudges = dialect.own("nudges"),
            unsent = Nudge::Unsent.as_str(),
            now = dialect.now(),
            day = dialect.span(DAY),
            slack = dialect.span(CLOCK_SLACK),
        )
    }
}
