//! The start of a pass: the state that earlier passes saved, and the voices that come first.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::progress::{Apart, Progress};
use super::segments::Segments;
use super::{Pass, Scope, Which};
use crate::core::provider_state::ProviderState;
use crate::core::report::StopReason;
use crate::core::schedule;
use crate::core::voice::RowId;
use crate::store::{Agenda, Isolated, PriorState, StoreError, Upcoming};

/// How long a pass claims voices if other voices may become due meanwhile, especially new ones.
const POLL_TIME: Duration = Duration::from_secs(3);
/// The share of a limit that is reserved for isolated voices, which come after all others.
const ISOLATED_SHARE: f64 = 0.1;

impl Pass<'_> {
    /// Creates the state of a pass at its beginning.
    pub(super) fn start(&self, prior: PriorState, started: Instant) -> Progress {
        let Scope {
            which,
            limit,
            until,
            dry_run: _,
            budget: _,
            continuous: _,
        } = self.scope;
        let mut segments = match which {
            Which::All => Segments::over_all(*limit, prior.resume_after),
            Which::Named(names) => Segments::over_names(*limit, names.clone()),
            Which::Due(agenda) => {
                let rows = self.topped_up(agenda, &prior.unlisted);
                Segments::over_due(*limit, rows, agenda.read_at)
            }
        };
        let isolated = match which {
            Which::All if prior.any_isolated => Apart::Unread,
            Which::All | Which::Named(_) => Apart::Nothing,
            Which::Due(agenda) => Apart::Known(isolated(agenda)),
        };
        if isolated.any() {
            // With a small limit, some passes include one of them, at random.
            let share = limit.map(|limit| limit as f64 * ISOLATED_SHARE + fastrand::f64());
            segments.reserve(share.map_or(0, |share| share as u64));
        }
        let requests_before = (self.provider.requests(), self.provider.retries());
        let mut progress = Progress::new(
            Uuid::new_v4(),
            started,
            requests_before,
            *until,
            segments,
            isolated,
            prior.unlisted,
        );
        progress.mass_absence = prior.mass_absence;
        progress.key_works = prior.key_works;
        progress
    }

    /// The voices that are due, filled up with later ones to the size of a request. Only voices that the list returns
    /// are added; others would need a request of their own.
    fn topped_up(&self, agenda: &Agenda, unlisted: &HashSet<String>) -> Vec<RowId> {
        let room = self.voices_a_request();
        let is_due = |voice: &&Upcoming| voice.due_in.is_zero();
        let others = agenda.voices.iter().filter(|voice| !voice.is_isolated);
        let (due, later): (Vec<_>, Vec<_>) = others.partition(is_due);
        let spare = schedule::topped_up(due.len().max(1), room) - due.len();
        let is_listed = |kind: &String| !unlisted.contains(kind);
        let free = later
            .into_iter()
            .filter(|voice| voice.was_found && voice.kind.as_ref().is_some_and(is_listed));
        let chosen = due.into_iter().chain(free.take(spare));
        chosen.map(|voice| voice.row.clone()).collect()
    }

    /// Applies the shared state of the provider. While the circuit breaker is open, no process sends requests. For the
    /// half-open probe, one process sends a request.
    pub(super) async fn begin(
        &self,
        progress: &Progress,
        state: ProviderState,
    ) -> Result<(), StoreError> {
        let may_probe = state.wants_probe()
            && !self.scope.dry_run
            && self
                .store
                .claim_probe(self.provider.account(), progress.run_id)
                .await?;
        if state.is_open() || state.wants_probe() && !may_probe {
            progress.stop(StopReason::ProviderDown);
        }
        self.provider.resume(state);
        // A pass that may not send requests leaves the jobs in the queue.
        if progress.tally().stop_reason.is_none() {
            let hints = self.hints(progress).await;
            let mut claims = progress.claims.lock().await;
            claims.segments.begin_with(hints);
            claims.until = self.scope.continuous.then(|| Instant::now() + POLL_TIME);
        }
        Ok(())
    }
}

/// The isolated voices that are due. They are looked up after the others.
fn isolated(agenda: &Agenda) -> Isolated {
    let voices = agenda.voices.iter();
    let rows = voices.filter(|voice| voice.is_isolated && voice.due_in.is_zero());
    Isolated {
        read_at: agenda.read_at,
        rows: rows.map(|voice| voice.row.clone()).collect(),
        new: 0,
    }
}
