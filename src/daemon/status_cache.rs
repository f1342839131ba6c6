//! The status for the daemon's page, at a bounded cost to the database.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::status::Status;

/// How long a status is shown, to any number of readers.
const FRESH: Duration = Duration::from_secs(2);
/// A status that took long to read is shown for this many times as long.
const SHARE: u32 = 20;
/// The time limit for reading the status.
const LONGEST: Duration = Duration::from_secs(10);

type Look = Box<dyn Fn() -> BoxFuture<'static, Result<Status, String>> + Send + Sync>;

/// A status, or the reason why it could not be read.
pub type Seen = Result<Status, String>;

/// Reads the status on request, once at a time and not too often.
pub struct StatusCache {
    look: Look,
    /// The last status, and the time until which it is shown.
    last: Mutex<Option<(Instant, Arc<Seen>)>>,
}

impl StatusCache {
    /// Creates a cache that reads the status with this function.
    pub fn new(look: impl Fn() -> BoxFuture<'static, Seen> + Send + Sync + 'static) -> Self {
        Self {
            look: Box::new(look),
            last: Mutex::default(),
        }
    }

    /// The current status, or a recent one. If a caller disconnects, the read in progress continues, and the next
    /// caller gets its result.
    pub async fn status(self: &Arc<Self>) -> Arc<Seen> {
        let cache = Arc::clone(self);
        let looking = tokio::spawn(async move { cache.refreshed().await });
        looking
            .await
            .unwrap_or_else(|error| Arc::new(Err(error.to_string())))
    }

    async fn refreshed(&self) -> Arc<Seen> {
        let mut last = self.last.lock().await;
        let began = Instant::now();
        match last.as_ref() {
            Some((until, seen)) if *until > began => return Arc::clone(seen),
            Some(_) | None => {}
        }
        let seen = timeout(LONGEST, (self.look)()).await;
        let seen = Arc::new(seen.unwrap_or_else(|_elapsed| {
            Err(format!(
                "the database did not answer within {} s",
                LONGEST.as_secs()
            ))
        }));
        let until = Instant::now() + FRESH.max(began.elapsed() * SHARE);
        *last = Some((until, Arc::clone(&seen)));
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn status_is_cached_for_20_times_its_cost() {
        let looks = Arc::new(AtomicU32::new(0));
        let counted = looks.clone();
        let cache = Arc::new(StatusCache::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                sleep(Duration::from_secs(1)).await;
                Err("away".to_owned())
            })
        }));
        // A browser that disconnects at once.
        assert!(
            timeout(Duration::from_millis(1), cache.status())
                .await
                .is_err()
        );
        let both = tokio::join!(cache.status(), cache.status());
        assert_eq!(
            both.0.as_ref().as_ref().err().map(String::as_str),
            Some("away")
        );
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        sleep(Duration::from_secs(19)).await;
        cache.status().await;
        assert_eq!(
            looks.load(Ordering::Relaxed),
            1,
            "it took a second, so it is shown for 20"
        );
        sleep(Duration::from_secs(2)).await;
        cache.status().await;
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn status_request_times_out() {
        let cache = Arc::new(StatusCache::new(|| Box::pin(pending())));
        assert!(cache.status().await.is_err());
        let quick = Arc::new(StatusCache::new(|| Box::pin(ready(Err(String::new())))));
        assert!(quick.status().await.is_err());
    }
}
