//! The time at which a command must end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// A deadline that can be moved earlier, but never later. Clones share it.
#[derive(Debug, Clone)]
pub struct Deadline(watch::Sender<Option<Instant>>);

impl Deadline {
    /// No deadline yet.
    pub fn never() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Moves the deadline to this time, unless it is already earlier.
    pub fn bring_forward(&self, to: Instant) {
        self.0.send_if_modified(|at| {
            let is_nearer = at.is_none_or(|at| to < at);
            if is_nearer {
                *at = Some(to);
            }
            is_nearer
        });
    }

    /// The remaining time; `None` if there is no deadline.
    pub fn left(&self) -> Option<Duration> {
        let at = *self.0.borrow();
        at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Waits until the deadline has passed.
    pub async fn passed(&self) {
        let mut moved = self.0.subscribe();
        loop {
            let at = *moved.borrow_and_update();
            let over = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                _ = moved.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn deadline_can_only_be_brought_forward() {
        let deadline = Deadline::never();
        assert_eq!((deadline.left(), deadline.is_over()), (None, false));
        let waiting = tokio::spawn({
            let deadline = deadline.clone();
            async move { deadline.passed().await }
        });
        assert!(timeout(1000 * SECOND, deadline.passed()).await.is_err());
        deadline.bring_forward(Instant::now() + 10 * SECOND);
        deadline.bring_forward(Instant::now() + 60 * SECOND);
        assert_eq!(deadline.left(), Some(10 * SECOND));
        deadline.bring_forward(Instant::now() + 5 * SECOND);
        advance(4 * SECOND).await;
        assert!(!deadline.is_over() && !waiting.is_finished());
        waiting.await.expect("it waits no longer");
        assert_eq!(
            (deadline.left(), deadline.is_over()),
            (Some(Duration::ZERO), true)
        );
        deadline.passed().await;
    }
}
