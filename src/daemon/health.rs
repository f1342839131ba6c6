//! Liveness, readiness and current failures of the daemon.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Tick;
use crate::core::report::{Part, Report};
use crate::failpoint;

/// The loop runs at least this often, unless it hangs. Every wait in a pass has a shorter limit, even if the provider
/// or the database is slow.
const STALLED: Duration = Duration::from_secs(90);

/// The health of the daemon, for probes and supervisors.
pub struct Health(Mutex<State>);

struct State {
    /// The loop must run again by this time.
    moves_by: Instant,
    is_ready: bool,
    /// Current failures, and since when they have lasted.
    obstacles: BTreeMap<Part, (Instant, String)>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State {
            moves_by: Instant::now() + STALLED,
            is_ready: false,
            obstacles: BTreeMap::new(),
        }))
    }
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the loop runs.
    pub fn moves(&self) {
        self.sleeps(Duration::ZERO);
    }

    /// Records that the loop pauses for this time.
    pub fn sleeps(&self, pause: Duration) {
        let limit = failpoint::limit("daemon.stalled", STALLED);
        self.state().moves_by = Instant::now() + pause + limit;
    }

    /// Records that database and schema are valid.
    pub fn ready(&self) {
        self.works(Part::Database);
        self.state().is_ready = true;
    }

    /// Whether the loop runs as it should. Dependencies do not count.
    pub fn is_alive(&self) -> bool {
        Instant::now() <= self.state().moves_by
    }

    /// Why the daemon is not ready; `None` if it is ready.
    pub fn not_ready_reason(&self) -> Option<String> {
        let is_ready = self.state().is_ready;
        self.database_failure()
            .or_else(|| (!is_ready).then(|| "starting".to_owned()))
    }

    /// The current failure of the database, if any.
    pub(super) fn database_failure(&self) -> Option<String> {
        let state = self.state();
        let (_, says) = state.obstacles.get(&Part::Database)?;
        Some(format!("database: {says}"))
    }

    /// Records a failure that the daemon survives, and logs it once.
    pub(super) fn obstructed(&self, part: Part, says: &str) {
        self.obstructed_since(part, Instant::now(), says);
    }

    /// Records a failure that began earlier, and logs it once.
    pub(super) fn obstructed_since(&self, part: Part, since: Instant, says: &str) {
        let mut state = self.state();
        if let Some((known_since, known)) = state.obstacles.get_mut(&part) {
            *known_since = since.min(*known_since);
            says.clone_into(known);
            return;
        }
        state.obstacles.insert(part, (since, says.to_owned()));
        drop(state);
        warn!(event = "unavailable", %part, reason = says, "the {part} is unavailable; voice-sync keeps trying");
    }

    /// Records that a failure is over, and logs it once.
    pub(super) fn works(&self, part: Part) {
        let Some((since, _)) = self.state().obstacles.remove(&part) else {
            return;
        };
        let lasted_s = since.elapsed().as_secs();
        info!(event = "available", %part, lasted_s, "the {part} works again");
    }

    pub(super) fn passed(&self, report: &Report) {
        let ends = !report.exit_code.is_transient() && !report.key_works;
        for obstacle in report.obstacles.iter().filter(|_| !ends) {
            self.obstructed(obstacle.part, &obstacle.says);
        }
        let counts = &report.counts;
        let worked = [
            (Part::Database, true),
            (Part::Provider, counts.looked_up > 0),
            (
                Part::EventBus,
                counts.events_published > 0 || counts.events_pending == 0,
            ),
        ];
        for (part, worked) in worked {
            let hindered = report
                .obstacles
                .iter()
                .any(|obstacle| obstacle.part == part);
            if worked && !hindered {
                self.works(part);
            }
        }
    }

    /// One line for people: the result of the last tick, and current failures.
    pub(super) fn status(&self, last: &Tick) -> String {
        let turn = match last {
            Tick::Idle { next_in: None } => "nothing is due".to_owned(),
            Tick::Idle {
                next_in: Some(next_in),
            } => format!("next voice due in {next_in:.1?}"),
            Tick::Passed { report, .. } => {
                let c = &report.counts;
                format!(
                    "last pass: {} looked up, {} completed, {} failed, exit {}",
                    c.looked_up,
                    c.completed,
                    c.failed,
                    report.exit_code.code()
                )
            }
            Tick::Stopped => "stopping".to_owned(),
            Tick::Unreadable { .. } => "waiting for the database".to_owned(),
        };
        let in_the_way: Vec<_> = self.state().obstacles.keys().map(Part::to_string).collect();
        match in_the_way.is_empty() {
            true => turn,
            false => format!("{turn}; unavailable: {}", in_the_way.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalled_loop_is_not_alive() {
        let health = Health::default();
        assert!(health.is_alive());
        health.sleeps(Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(health.is_alive(), "it slept as it said");
        health.moves();
        tokio::time::advance(STALLED).await;
        assert!(health.is_alive());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.is_alive());
        health.moves();
        assert!(health.is_alive());
    }

    #[tokio::test]
    async fn only_the_database_affects_readiness() {
        let health = Health::default();
        assert_eq!(health.not_ready_reason().as_deref(), Some("starting"));
        health.ready();
        health.obstructed(Part::Provider, "away");
        assert_eq!(health.not_ready_reason(), None);
        health.obstructed(Part::Database, "away");
        assert_eq!(health.not_ready_reason().as_deref(), Some("database: away"));
        assert!(health.is_alive());
        health.works(Part::Database);
        assert_eq!(health.not_ready_reason(), None);
    }
}
