//! Parts of batches whose request failed, until somebody asks about them: see [`crate::core::bisect`].
//!
//! Batches that nobody has asked about yet come first, so that bad voices do not hold up good ones. But the
//! voices of a part are leased since their batch was claimed, and memory has its limit.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::batch::Batch;
use super::pace::ASKING_TIME;

/// Voices that wait to be isolated before new batches wait for them.
const MOST_VOICES: usize = 1000;
/// Part of its lease that a voice may wait before new batches wait for it.
const LONGEST_WAIT: Duration = ASKING_TIME;

#[derive(Default)]
pub(super) struct Isolation {
    state: Mutex<State>,
    /// Wakes workers that wait for parts, or for the last batch to come to its end.
    changed: Notify,
}

#[derive(Default)]
struct State {
    parts: VecDeque<Batch>,
    /// Batches and parts that workers have: each may come back in parts.
    under_way: usize,
}

/// A batch that a worker has.
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

    /// The next part: the one that has waited for longest or, while nothing was answered about any voice
    /// (`is_unclear`), the smallest one. So it takes few requests to find out whether single voices are bad or all
    /// lookups fail.
    pub(super) fn pop(&self, is_unclear: bool) -> Option<Batch> {
        let parts = &mut self.state().parts;
        match is_unclear {
            true => parts.pop_back(),
            false => parts.pop_front(),
        }
    }

    /// Whether a part has waited for so long, or so many wait, that they come before new batches.
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

    /// Counts a batch as under way for as long as this lives.
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
