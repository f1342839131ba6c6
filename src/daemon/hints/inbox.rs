//! Hints that wait to be written to the database, in few statements even if many arrive.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use crate::store::{HINT_SPACING, Hinted, Store};
use crate::telemetry::metrics::HintMetrics;

/// The maximum number of waiting ids, each counted once. Further ids are refused until there is room.
const MOST: usize = 10_000;
/// Ids per statement.
const AT_ONCE: usize = 1000;
/// The pause after each statement: at least this long, and at least this multiple of the statement's duration. If the
/// column of provider ids has no index, a statement reads all voices in processing.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_SHARE: u32 = 4;
/// The pause after a failed statement, which is retried.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Row and provider ids of hints that are not written yet. They are lost when the process ends; then the voices are
/// looked up on their schedule.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    delivered: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    ids: HashMap<String, Hint>,
    hints: u64,
    /// Ids that were written recently, and when. The next hint about such an id waits, as it would in the database.
    written: HashMap<String, Instant>,
}

/// The last hint about an id.
#[derive(Debug, Clone, Copy)]
struct Hint {
    /// A hint that arrives while an earlier one is being written has a new number, and is written too.
    number: u64,
    not_before: Instant,
}

/// The inbox has no room for more ids.
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
        let (number, now) = (waiting.hints, Instant::now());
        let mut any_due = false;
        for id in ids {
            let written = waiting.written.get(&id);
            let not_before = written.map_or(now, |at| *at + HINT_SPACING);
            any_due |= not_before <= now;
            waiting.ids.insert(id, Hint { number, not_before });
        }
        drop(waiting);
        if any_due {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// The ids that may be written now, or the time when the next one may be written.
    fn take(&self) -> Result<(Vec<String>, Vec<u64>), Option<Instant>> {
        let (waiting, now) = (self.waiting(), Instant::now());
        let due = waiting
            .ids
            .iter()
            .filter(|(_, hint)| hint.not_before <= now);
        let due = due
            .take(AT_ONCE)
            .map(|(id, hint)| (id.clone(), hint.number));
        let (ids, numbers): (Vec<_>, Vec<_>) = due.unzip();
        match ids.is_empty() {
            true => Err(waiting.ids.values().map(|hint| hint.not_before).min()),
            false => Ok((ids, numbers)),
        }
    }

    /// Removes ids that were written, or that are given up.
    fn remove(&self, ids: &[String], numbers: &[u64]) {
        let (mut waiting, now) = (self.waiting(), Instant::now());
        waiting.written.retain(|_, at| now < *at + HINT_SPACING);
        for (id, number) in ids.iter().zip(numbers) {
            match waiting.ids.get_mut(id) {
                Some(hint) if hint.number == *number => drop(waiting.ids.remove(id)),
                Some(hint) => hint.not_before = now + HINT_SPACING,
                None => {}
            }
            if waiting.written.len() < MOST {
                waiting.written.insert(id.clone(), now);
            }
        }
    }

    /// Writes hints to the database as they arrive, until it is dropped.
    pub async fn deliver(&self, store: &Store, metrics: &HintMetrics) {
        loop {
            let (ids, numbers) = match self.take() {
                Ok(due) => due,
                Err(next) => {
                    let next = next.unwrap_or_else(|| Instant::now() + HINT_SPACING);
                    let _arrived = timeout_at(next, self.arrived.notified()).await;
                    continue;
                }
            };
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
                    // The database would refuse these ids again, and they would block the others.
                    self.remove(&ids, &numbers);
                    warn!(%error, hints = ids.len(), "the database refuses these hints, so they are dropped; the voices are looked up on schedule");
                    sleep(PAUSE_AFTER_FAILURE).await;
                }
                Err(error) => {
                    warn!(%error, "hints could not be written to the database; voice-sync tries again");
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

    #[tokio::test]
    async fn full_inbox_rejects_new_hints() {
        let inbox = Inbox::default();
        let id = |n: usize| vec![n.to_string()];
        for n in 0..MOST {
            assert_eq!(inbox.put(id(n)), Ok(()));
        }
        assert_eq!(inbox.put(id(MOST)), Err(Full));
        assert_eq!(inbox.put(id(0)), Ok(()), "it waits already");
        assert_eq!(inbox.waiting().ids.len(), MOST);
    }

    #[tokio::test]
    async fn hint_repeated_during_a_write_is_kept_for_later() {
        let inbox = Inbox::default();
        let put = |id: &str| inbox.put(vec![id.to_owned()]).expect("there is room");
        put("a");
        put("b");
        let (ids, numbers) = inbox.take().expect("two wait");
        put("a");
        inbox.remove(&ids, &numbers);
        assert!(matches!(inbox.take(), Err(Some(_))), "not at once again");
        assert_eq!(inbox.waiting().ids.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_hint_is_written_once_in_five_seconds() {
        let inbox = Inbox::default();
        let mut written = 0;
        for _ in 0..1000 {
            inbox.put(vec!["a".to_owned()]).expect("there is room");
            if let Ok((ids, numbers)) = inbox.take() {
                inbox.remove(&ids, &numbers);
                written += 1;
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert_eq!(written, 2);
    }
}
