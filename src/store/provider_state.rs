//! The state of accounts at the provider, shared by all processes that use them.

use std::time::Duration;

use uuid::Uuid;

use super::args::Args;
use super::dialect::Dialect;
use super::row::Row;
use super::{PROBE, Store, StoreError};
use crate::core::provider_state::{MAX_OPEN, MAX_RETRY_AFTER, ProviderState};
use crate::core::request_budget::MAX_PAUSE;

/// The columns that [`state`] reads, of a row `p` of `provider`.
pub(super) fn state_columns(dialect: Dialect) -> String {
    format!(
        "p.opened, p.concurrency, {} AS open_for, {} AS cooldown",
        dialect.seconds_until("p.open_until", MAX_OPEN),
        dialect.seconds_until("p.hold_until", MAX_RETRY_AFTER)
    )
}

/// For an unknown account, all columns are null.
pub(super) fn state(row: &Row) -> Result<ProviderState, StoreError> {
    let span = |column| Ok::<_, StoreError>(row.get_optional(column)?.unwrap_or(Duration::ZERO));
    let opened: Option<i64> = row.get_optional("opened")?;
    Ok(ProviderState {
        opened: opened.map_or(0, |times| u32::try_from(times).unwrap_or(u32::MAX)),
        open_for: span("open_for")?,
        cooldown: span("cooldown")?,
        concurrency: row.get_optional("concurrency")?,
    })
}

/// When an account may send its next request, as SQL.
pub(super) struct NextRequest {
    /// For an unknown account.
    pub(super) first: String,
    /// For the account of the row `p` of `provider`.
    pub(super) again: String,
}

impl Store {
    pub(super) async fn provider_state_once(
        &self,
        account: Uuid,
    ) -> Result<ProviderState, StoreError> {
        let mut args = self.database.args();
        let sql = format!(
            "SELECT {} FROM {} p WHERE account = {}",
            state_columns(self.dialect()),
            self.dialect().own("provider"),
            args.bind(account)
        );
        let row = self.database.fetch_optional(sql, args).await?;
        let state = row.map(|row| state(&row)).transpose()?;
        Ok(state.unwrap_or_default())
    }

    pub(super) async fn save_provider_state_once(
        &self,
        account: Uuid,
        run_id: Uuid,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        let ProviderState {
            opened,
            open_for,
            cooldown,
            concurrency,
        } = state;
        let dialect = self.dialect();
        let mut args = self.database.args();
        let opened = opened.min(i32::MAX.unsigned_abs());
        let (open_until, stays_open) = match opened {
            0 => ("NULL".to_owned(), "NULL".to_owned()),
            _ => (
                self.in_seconds(&args.bind(open_for)),
                dialect.latest("p.open_until", "EXCLUDED.open_until", MAX_OPEN),
            ),
        };
        let hold_until = match cooldown.is_zero() {
            true => "NULL".to_owned(),
            false => self.in_seconds(&args.bind(cooldown)),
        };
        // A closed breaker is closed for all. If several open it at once, the longest pause counts.
        let sql = format!(
            "INSERT INTO {provider} AS p (account, opened, open_until, hold_until, concurrency)
             VALUES ({account}, {opened}, {open_until}, {hold_until}, {concurrency})
             ON CONFLICT (account) DO UPDATE
             SET opened = CASE WHEN EXCLUDED.opened = 0 OR p.opened < EXCLUDED.opened THEN EXCLUDED.opened
                               ELSE p.opened END,
                 open_until = {stays_open},
                 probe_until = CASE WHEN EXCLUDED.opened > 0 AND p.probed_by <> {run_id} THEN p.probe_until END,
                 hold_until = {stays_held},
                 concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency)",
            provider = dialect.own("provider"),
            account = args.bind(account),
            opened = args.bind(opened),
            concurrency = args.bind(concurrency),
            run_id = args.bind(run_id),
            stays_held = dialect.latest("p.hold_until", "EXCLUDED.hold_until", MAX_RETRY_AFTER),
        );
        self.database.execute(sql, args).await.map(drop)
    }

    pub(super) async fn save_cooldown_once(
        &self,
        account: Uuid,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let sql = format!(
            "INSERT INTO {provider} AS p (account, hold_until, concurrency)
             VALUES ({account}, {hold_until}, {concurrency})
             ON CONFLICT (account) DO UPDATE
             SET hold_until = {stays_held}, concurrency = COALESCE(EXCLUDED.concurrency, p.concurrency)",
            provider = dialect.own("provider"),
            account = args.bind(account),
            hold_until = self.in_seconds(&args.bind(state.cooldown)),
            concurrency = args.bind(state.concurrency),
            stays_held = dialect.latest("p.hold_until", "EXCLUDED.hold_until", MAX_RETRY_AFTER),
        );
        self.database.execute(sql, args).await.map(drop)
    }

    /// When an account may send its next request, as SQL, after a pass that started this long ago and used this of
    /// the budget. A value in the past has no effect. One that is further ahead than any pause was set before the
    /// database's clock was set back.
    pub(super) fn next_request_at(
        &self,
        args: &mut Args,
        began_ago: Duration,
        taken: Duration,
    ) -> NextRequest {
        let (dialect, now) = (self.dialect(), self.dialect().now());
        let taken = dialect.seconds(&args.bind(taken));
        let began = format!("{now} - {}", dialect.seconds(&args.bind(began_ago)));
        let furthest = format!("{now} + {}", dialect.span(MAX_PAUSE));
        let free = dialect.greatest(
            &format!("CASE WHEN p.next_request_at <= {furthest} THEN p.next_request_at END"),
            &began,
        );
        NextRequest {
            first: format!("{began} + {taken}"),
            again: dialect.least(&format!("{free} + {taken}"), &furthest),
        }
    }

    pub(super) async fn claim_probe_once(
        &self,
        account: Uuid,
        run_id: Uuid,
    ) -> Result<bool, StoreError> {
        let dialect = self.dialect();
        let mut args = self.database.args();
        let run_id = args.bind(run_id);
        let sql = format!(
            "UPDATE {provider} SET probe_until = {now} + {probe}, probed_by = {run_id}
             WHERE account = {account} AND opened > 0 AND NOT {is_open}
               AND (NOT {is_probed} OR probed_by = {run_id})",
            provider = dialect.own("provider"),
            now = dialect.now(),
            probe = dialect.span(PROBE),
            account = args.bind(account),
            is_open = dialect.is_ahead("open_until", MAX_OPEN),
            is_probed = dialect.is_ahead("probe_until", PROBE),
        );
        Ok(self.database.execute(sql, args).await? > 0)
    }

    /// The moment in this many seconds.
    fn in_seconds(&self, seconds: &str) -> String {
        format!(
            "{} + {}",
            self.dialect().now(),
            self.dialect().seconds(seconds)
        )
    }
}
