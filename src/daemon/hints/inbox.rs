//! Hints on their way to the database, in few statements however many come.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::store::{Hinted, Store};
use crate::telemetry::metrics::HintMetrics;

/// Ids that wait at the most, each of them once. Further ones are refused until there is room.
const MOST: usize = 10_000;
/// Ids in one statement.
const AT_ONCE: usize = 1000;
/// The pause after each statement: at least so long, and so many times as long as the statement took. Where the column of
/// provider ids has no index, it looks at all voices in processing.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_SHARE: u32 = 4;
/// The pause after one that failed, which is tried again.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Row and provider ids that were hinted at, and are not in the database yet. They are lost with the process: the
/// voices are looked up when their schedule says so.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    delivered: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Ids, each with the number of its last hint: one that comes while an earlier one is being written counts again.
    ids: HashMap<String, u64>,
    hints: u64,
}

/// There is no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, ids: Vec<String>) -> Result<(), Full> {
        let mut waiting = self.waiting();
        let new = ids.iter().filter(|id| !waiting.ids.contains_key(*id));
        if waiting.ids.len() + new.count() > MOST {
            return Err(Full);
        }
        waiting.hints += 1;
        let number = waiting.hints;
        waiting.ids.extend(ids.into_iter().map(|id| (id, number)));
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    fn take(&self) -> (Vec<String>, Vec<u64>) {
        let waiting = self.waiting();
        let hints = waiting.ids.iter().take(AT_ONCE);
        hints.map(|(id, number)| (id.clone(), *number)).unzip()
    }

    fn remove(&self, ids: &[String], numbers: &[u64]) {
        let mut waiting = self.waiting();
        for (id, number) in ids.iter().zip(numbers) {
            if waiting.ids.get(id) == Some(number) {
                waiting.ids.remove(id);
            }
        }
    }

    /// Writes hints into the database as they come, until it is dropped.
    pub async fn deliver(&self, store: &Store, metrics: &HintMetrics) {
        loop {
            let (ids, numbers) = self.take();
            if ids.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let began = Instant::now();
            match store.hint(&ids).await {
                Ok(Hinted { voices, changed }) => {
                    let pause = PAUSE.max(began.elapsed() * PAUSE_SHARE);
                    self.remove(&ids, &numbers);
                    metrics.delivered(voices, (ids.len() as u64).saturating_sub(voices));
                    if changed > 0 {
                        self.delivered.notify_one();
                    }
                    sleep(pause).await;
                }
                Err(error) if !error.is_transient() => {
                    // The same would be refused again, and keep others from being written.
                    self.remove(&ids, &numbers);
                    warn!(%error, hints = ids.len(), "the database refuses hints; they are dropped");
                    sleep(PAUSE_AFTER_FAILURE).await;
                }
                Err(error) => {
                    warn!(%error, "hints could not be written into the database; this is tried again");
                    sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Waits until a hint has made a voice due.
    pub async fn delivered(&self) {
        self.delivered.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_takes_no_more_memory_than_there_is_room_for() {
        let inbox = Inbox::default();
        let id = |n: usize| vec![n.to_string()];
        for n in 0..MOST {
            assert_eq!(inbox.put(id(n)), Ok(()));
        }
        assert_eq!(inbox.put(id(MOST)), Err(Full));
        assert_eq!(inbox.put(id(0)), Ok(()), "it waits already");
        assert_eq!(inbox.waiting().ids.len(), MOST);
    }

    #[test]
    fn a_hint_that_comes_while_an_earlier_one_is_written_waits() {
        let inbox = Inbox::default();
        let put = |id: &str| inbox.put(vec![id.to_owned()]).expect("there is room");
        put("a");
        put("b");
        let (ids, numbers) = inbox.take();
        put("a");
        inbox.remove(&ids, &numbers);
        assert_eq!(inbox.take().0, ["a"]);
    }
}
