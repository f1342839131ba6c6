//! Parts of batches whose request failed, which wait to be looked up again: see [`crate::core::bisect`].
//!
//! New batches come first, so that bad voices do not delay good ones. There are two limits: the voices of a part are
//! leased since their batch was claimed, and memory is limited.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::batch::Batch;
use super::pace::ASKING_TIME;

/// If more voices than this wait to be isolated, they come before new batches.
const MOST_VOICES: usize = 1000;
/// If a part has waited for this part of its lease, it comes before new batches.
const LONGEST_WAIT: Duration = ASKING_TIME;

#[derive(Default)]
pub(super) struct Isolation {
    state: Mutex<State>,
    /// Wakes workers that wait for parts, or for the end of the last batch.
    changed: Notify,
}

#[derive(Default)]
struct State {
    parts: VecDeque<Batch>,
    /// Batches and parts that workers process now. Each may return parts.
    under_way: usize,
}

/// A batch that a worker processes.
pub(super) struct UnderWay<'a>(&'a Isolation);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Isolation {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, parts: Vec<Batch>) {
        self.state().parts.extend(parts);
        self.changed.notify_waiters();
    }

    /// Returns the next part: the one that has waited longest, or the smallest one while there was no answer about any
    /// voice (`is_unclear`). So few requests show whether single voices are bad or all lookups fail.
    pub(super) fn pop(&self, is_unclear: bool) -> Option<Batch> {
        let parts = &mut self.state().parts;
        match is_unclear {
            true => parts.pop_back(),
            false => parts.pop_front(),
        }
    }

    /// Whether a part has waited too long, or too many voices wait: then parts come before new batches.
    pub(super) fn is_pressing(&self) -> bool {
        let state = self.state();
        let waits = |part: &Batch| part.claimed_at.elapsed() > LONGEST_WAIT;
        let voices = || {
            state
                .parts
                .iter()
                .map(|part| part.voices.len())
                .sum::<usize>()
        };
        state.parts.front().is_some_and(waits) || voices() > MOST_VOICES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().parts.is_empty()
    }

    /// Counts a batch as in progress until the returned value is dropped.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        self.state().under_way += 1;
        UnderWay(self)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().under_way == 0
    }

    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
