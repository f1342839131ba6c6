//! The daemon: runs `sync-once` repeatedly, and sleeps until the next voice is due.
//!
//! A [`tick()`] looks up the voices that are due, if any, and returns the result. The loop only opens the database,
//! sleeps and starts again. The daemon does not end because a dependency is unavailable.

mod allowed_hosts;
mod connections;
mod database_watch;
mod duty_cycle;
mod health;
mod hints;
mod http;
mod status_cache;
mod systemd;
mod tick;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use allowed_hosts::AllowedHosts;
pub use connections::{answer, serve};
pub use database_watch::watch_database;
pub use health::Health;
pub use hints::{Inbox, Secret, router as hints_router};
pub use http::router;
pub use status_cache::{Seen, StatusCache};
pub use systemd::Supervisor;
pub use tick::{DUE_AT_ONCE, DutyCycles, Tick, tick};
pub use wait::until_nothing_waits;

use crate::core::backoff::exponential;
use crate::core::exit::{Exit, Failed};
use crate::core::report::{Obstacle, Part, Report};
use crate::failpoint;
use crate::store::Store;

/// The pause after a tick, even if more voices are already due.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The first and the longest pause after a failed tick.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An open database, with a background task that runs as long as it is open.
pub struct Opened {
    store: Arc<Store>,
    _background: AbortOnDropHandle<()>,
}

impl Opened {
    pub fn new(store: Arc<Store>, background: impl Future<Output = ()> + Send + 'static) -> Self {
        let _background = AbortOnDropHandle::new(tokio::spawn(background));
        Self { store, _background }
    }
}

/// Opens the database and runs one tick after the other until `stop`. `stop` and hints also end the pause between
/// ticks. Returns an error if retrying is useless: invalid configuration, schema or key.
pub async fn run(
    open: impl AsyncFn() -> Result<Opened, Failed>,
    mut turn: impl AsyncFnMut(&Store) -> Tick,
    interval: Duration,
    inbox: &Inbox,
    stop: &CancellationToken,
    health: &Health,
    supervisor: &Supervisor,
) -> Result<(), Failed> {
    let mut failures = 0;
    let mut opened = None;
    // Whether the database was opened again since the last successful tick.
    let mut reopened = false;
    while !stop.is_cancelled() {
        health.moves();
        failpoint::visit("daemon.turn").await;
        let outcome = match &opened {
            None => match stop.run_until_cancelled(open()).await {
                None => return Ok(()),
                Some(Ok(database)) => {
                    opened = Some(database);
                    health.ready();
                    supervisor.ready();
                    continue;
                }
                Some(Err(failed)) => match failed.exit.is_transient() {
                    true => Tick::Unreadable {
                        exit: failed.exit,
                        says: failed.to_string(),
                    },
                    false => return Err(failed),
                },
            },
            Some(database) => turn(&database.store).await,
        };
        match &outcome {
            Tick::Stopped => return Ok(()),
            Tick::Idle { .. } => health.works(Part::Database),
            Tick::Unreadable { says, .. } => {
                health.obstructed(Part::Database, says);
                supervisor.waits();
            }
            Tick::Passed { report, .. } => health.passed(report),
        }
        let (exit, says, pause) = result_of(&outcome, interval);
        let pause = match exit {
            Exit::Success => {
                failures = 0;
                reopened = false;
                pause
            }
            Exit::Database | Exit::Io | Exit::Temporary => again_in(&mut failures),
            // The application may have changed its table. Opening the database again reads it again.
            Exit::Config if !reopened => {
                opened = None;
                reopened = true;
                again_in(&mut failures)
            }
            Exit::Declined | Exit::Usage | Exit::Key | Exit::Config => {
                return Err(Failed::new(exit, anyhow::anyhow!(says)));
            }
        };
        supervisor.status(&health.status(&outcome));
        let pause = pause.max(MIN_PAUSE);
        health.sleeps(pause);
        // After a failure, a hint does not shorten the pause.
        let wakes_on_hints = match &outcome {
            Tick::Idle { .. } => true,
            Tick::Passed { report, .. } => report.exit_code == Exit::Success,
            Tick::Stopped | Tick::Unreadable { .. } => false,
        };
        let sleeping = async {
            match wakes_on_hints {
                // A repeated hint does not end the pause: a hint counts here only if it made a voice due that was not
                // due before.
                true => drop(timeout(pause, inbox.delivered()).await),
                false => sleep(pause).await,
            }
        };
        stop.run_until_cancelled(sleeping).await;
    }
    Ok(())
}

/// The exit code of a tick, the reason if it failed, and the pause if it did not.
fn result_of(outcome: &Tick, interval: Duration) -> (Exit, String, Duration) {
    match outcome {
        Tick::Idle { next_in } => {
            let pause = next_in.map_or(interval, |next| next.min(interval));
            (Exit::Success, String::new(), pause)
        }
        Tick::Stopped => (Exit::Success, String::new(), Duration::ZERO),
        Tick::Unreadable { exit, says } => (*exit, says.clone(), Duration::ZERO),
        Tick::Passed { report, free_in } => match pause_after(report, *free_in, interval) {
            Some(pause) => (Exit::Success, String::new(), pause),
            None => (report.exit_code, reason(&report.obstacles), Duration::ZERO),
        },
    }
}

/// The pause after a pass; `None` if the pass failed as a whole. Errors of some voices, or of the event bus, must not
/// delay the other voices. Until the request budget has room, only events are published.
fn pause_after(report: &Report, free_in: Duration, interval: Duration) -> Option<Duration> {
    match report.exit_code {
        Exit::Success if report.counts.events_pending > 0 => Some(Duration::ZERO),
        Exit::Success => Some(free_in.min(interval)),
        Exit::Temporary if report.counts.looked_up > 0 => Some(FIRST_PAUSE),
        Exit::Temporary if report.counts.due == 0 => Some(interval),
        Exit::Key if report.key_works => Some(FIRST_PAUSE),
        Exit::Temporary | Exit::Key => None,
        Exit::Declined | Exit::Usage | Exit::Database | Exit::Io | Exit::Config => None,
    }
}

fn again_in(failures: &mut u32) -> Duration {
    *failures = failures.saturating_add(1);
    exponential(FIRST_PAUSE, *failures, LONGEST_PAUSE).mul_f64(0.8 + 0.4 * fastrand::f64())
}

fn reason(obstacles: &[Obstacle]) -> String {
    let said: Vec<_> = obstacles
        .iter()
        .map(|obstacle| obstacle.says.as_str())
        .collect();
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use uuid::Uuid;

    use super::*;
    use crate::core::report::Counts;

    #[test]
    fn partial_failure_causes_no_long_pause() {
        const INTERVAL: Duration = Duration::from_secs(5);
        let pause = |exit_code, due, looked_up, key_works| {
            let report = Report {
                run_id: Uuid::nil(),
                started_at: Utc::now(),
                finished_at: Utc::now(),
                duration_ms: 0,
                dry_run: false,
                counts: Counts {
                    due,
                    looked_up,
                    ..Counts::default()
                },
                exit_code,
                reason: None,
                obstacles: Vec::new(),
                key_works,
            };
            pause_after(&report, Duration::from_secs(2), INTERVAL)
        };
        assert_eq!(
            pause(Exit::Success, 9, 9, false),
            Some(Duration::from_secs(2))
        );
        assert_eq!(pause(Exit::Temporary, 9, 1, false), Some(FIRST_PAUSE));
        assert_eq!(
            pause(Exit::Temporary, 0, 0, false),
            Some(INTERVAL),
            "only the event bus failed"
        );
        assert_eq!(pause(Exit::Key, 9, 9, true), Some(FIRST_PAUSE));
        for (exit, due, looked_up) in [
            (Exit::Temporary, 9, 0),
            (Exit::Key, 9, 9),
            (Exit::Database, 9, 9),
            (Exit::Config, 9, 9),
        ] {
            assert_eq!(pause(exit, due, looked_up, false), None, "{exit:?}");
        }
    }
}
