//! How long requests may be sent and answered.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// The deadline of a pass for its requests, and whether the pass was cancelled.
#[derive(Debug, Clone, Copy)]
pub struct RequestDeadline<'a> {
    /// Answers after this moment are of no use.
    pub until: Instant,
    /// Once cancelled, no request is started. Requests in flight may finish.
    pub stop: &'a CancellationToken,
}

impl RequestDeadline<'_> {
    /// Time left for a request that starts now; `None` if none should start.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.until.checked_duration_since(Instant::now())?;
        (!left.is_zero() && !self.stop.is_cancelled()).then_some(left)
    }

    /// Sleeps until `moment`. Returns whether a request may then start: not if the moment is after the deadline, in
    /// which case it returns at once, nor if the pass was cancelled.
    pub(super) async fn sleep_until(&self, moment: Instant) -> bool {
        moment < self.until
            && self
                .stop
                .run_until_cancelled(sleep_until(moment))
                .await
                .is_some()
    }

    /// Waits until requests in flight must be dropped: at the deadline, or some time after cancellation.
    pub(super) async fn is_exhausted(&self, grace: Duration) {
        self.stop.cancelled().await;
        sleep(grace).await;
    }
}
