//! The application's queue of waiting voices. A failure of the queue is only a warning: the pass reads the table in any
//! case.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Pass;
use super::progress::Progress;
use crate::events::queue::{Hints, Queue};
use crate::store::QueueMembers;

/// The maximum number of jobs that a pass reads.
const MOST_HINTS: u64 = 1000;
/// How long finished voices are searched for. The next pass continues.
const WALK: Duration = Duration::from_secs(5);
/// The same limit if other voices may become due meanwhile.
const SHORT_WALK: Duration = Duration::from_millis(500);

impl Pass<'_> {
    /// Voices to look up first: those in the application's jobs. If the pass has a limit, they take at most half of it,
    /// so that the rest of the table is processed too.
    pub(super) async fn hints(&self, progress: &Progress) -> Vec<String> {
        let Some(queue) = self.queue.filter(|_| self.scope.which.takes_hints()) else {
            return Vec::new();
        };
        let half = self.scope.limit.map_or(u64::MAX, |limit| limit.div_ceil(2));
        let most = half.min(MOST_HINTS);
        match queue.hints(most, !self.scope.dry_run).await {
            Ok(Hints { voices, malformed }) => {
                if malformed > 0 {
                    warn!(
                        malformed,
                        "jobs in the application's queue are not valid and are dropped"
                    );
                }
                if !voices.is_empty() {
                    let voices = voices.len();
                    info!(
                        voices,
                        "jobs in the application's queue: these voices are looked up first"
                    );
                }
                voices
            }
            Err(reason) => {
                do_without(progress, &reason);
                Vec::new()
            }
        }
    }

    /// Removes finished voices from the application's set, also those that voice-sync did not finish.
    pub(super) async fn take_out_finished(&self, progress: &Progress) {
        let Some(queue) = self.queue else { return };
        if progress.queue_is_down.load(Ordering::Relaxed) {
            return;
        }
        match self.take_out(progress, queue).await {
            Ok(0) => {}
            Ok(voices) => info!(
                voices,
                "removed finished voices from the application's queue"
            ),
            Err(reason) => do_without(progress, &reason),
        }
    }

    async fn take_out(&self, progress: &Progress, queue: &Queue) -> anyhow::Result<usize> {
        let Some(mut members) = queue.members().await? else {
            return Ok(0);
        };
        let longest = match self.scope.continuous {
            true => SHORT_WALK,
            false => WALK,
        };
        let deadline = Instant::now() + longest;
        let mut taken_out = 0;
        while let Some(page) = members.next().await? {
            let QueueMembers {
                finished,
                left_over,
            } = self.store.queue_members(queue.key(), &page).await?;
            members.remove(&finished).await?;
            taken_out += finished.len();
            if !left_over.is_empty() {
                members.remove(&left_over).await?;
                self.store.forget_members(queue.key(), &left_over).await?;
                let members = left_over.len();
                info!(
                    members,
                    "removed ids from the application's queue that have had no row for an hour"
                );
            }
            // A pass that has to stop still checks one page.
            if self.is_over(progress) || Instant::now() >= deadline {
                break;
            }
        }
        Ok(taken_out)
    }
}

/// Logs once why this pass no longer uses the queue.
fn do_without(progress: &Progress, reason: &anyhow::Error) {
    progress.queue_is_down.store(true, Ordering::Relaxed);
    warn!(%reason, "the application's queue cannot be used; the pass continues without it");
}
