//! `sync-once --wait`: ticks like the daemon's, until nothing is in processing or time is over.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{DutyCycles, Health, MIN_PAUSE, Tick, again_in, pause_after, tick};
use crate::core::exit::Exit;
use crate::core::report::{Part, Report, StopReason};
use crate::core::request_budget::RequestBudget;
use crate::store::{Selection, Store};
use crate::sync::{Pass, Scope};
use crate::telemetry::exposition::Metrics;

/// New voices are found within this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Continues after a first pass, on the same schedule as the daemon. The report covers all passes.
pub async fn until_nothing_waits(
    pass: Pass<'_>,
    budget: RequestBudget,
    metrics: &Metrics,
    mut report: Report,
    deadline: Option<Instant>,
) -> Report {
    let health = Health::default();
    let (mut failures, mut looks) = (0, DutyCycles::default());
    loop {
        if report.exit_code != Exit::Success && !report.exit_code.is_transient() {
            return report;
        }
        let now = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        if pass.stop.is_cancelled() || left.is_some_and(|left| left.is_zero()) {
            let stop_reason = match pass.stop.is_cancelled() {
                true => StopReason::Stopped,
                false => StopReason::TimeOver,
            };
            warn!("{stop_reason}");
            return report.stopped(&stop_reason);
        }
        let scope = Scope {
            until: deadline,
            continuous: true,
            ..Scope::default()
        };
        let turn = Pass {
            scope: &scope,
            ..pass
        };
        let pause = match tick(turn, budget, metrics, &mut looks).await {
            Tick::Idle { next_in: None } => match waits(pass.store).await {
                // Other processes have leased these voices.
                true => INTERVAL,
                false => return report,
            },
            Tick::Idle {
                next_in: Some(next_in),
            } => next_in.min(INTERVAL),
            Tick::Passed {
                report: later,
                free_in,
            } => {
                health.passed(&later);
                let pause = pause_after(&later, free_in, INTERVAL);
                report.merge(*later);
                match pause {
                    Some(pause) => {
                        failures = 0;
                        pause
                    }
                    None => again_in(&mut failures),
                }
            }
            Tick::Stopped => Duration::ZERO,
            Tick::Unreadable { says, .. } => {
                health.obstructed(Part::Database, &says);
                again_in(&mut failures)
            }
        };
        let pause = left.map_or(pause, |left| left.min(pause)).max(MIN_PAUSE);
        pass.stop.run_until_cancelled(sleep(pause)).await;
    }
}

/// Whether voices are in processing, not counting those that are set aside. If the database does not answer, the next
/// tick reports it.
async fn waits(store: &Store) -> bool {
    store
        .count(&Selection::all())
        .await
        .map_or(true, |voices| voices > 0)
}
