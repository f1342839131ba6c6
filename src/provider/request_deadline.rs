//! How long to go on asking.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Until when answers are of use, and whether anybody still wants them.
#[derive(Debug, Clone, Copy)]
pub struct RequestDeadline<'a> {
    /// Answers that come later are of no use.
    pub until: Instant,
    /// Once cancelled, no request is begun; those under way are waited for.
    pub stop: &'a CancellationToken,
}

impl RequestDeadline<'_> {
    /// Time that is left for a request begun now; `None` if none should be.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.until.checked_duration_since(Instant::now())?;
        (!left.is_zero() && !self.stop.is_cancelled()).then_some(left)
    }

    /// Sleeps until `moment`. Returns whether a request may then be begun: not if the moment is too
    /// late, in which case nobody waits for it, nor if it was stopped meanwhile.
    pub(super) async fn sleep_until(&self, moment: Instant) -> bool {
        moment < self.until
            && self
                .stop
                .run_until_cancelled(sleep_until(moment))
                .await
                .is_some()
    }

    /// Waits until requests under way are given up: some time after being told to stop.
    pub(super) async fn is_exhausted(&self, grace: Duration) {
        self.stop.cancelled().await;
        sleep(grace).await;
    }
}
