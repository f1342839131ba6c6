//! Detects an unreachable database early: while operations still repeat statements, long before they give up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// If a statement takes longer, it may be slow, or the database may be unreachable. A check then decides.
const SILENT_AFTER: Duration = Duration::from_millis(1500);

/// The recent results of operations.
#[derive(Debug)]
pub(super) struct Outage(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Operations in flight, and since when there have been any.
    waiting: u32,
    waiting_since: Instant,
    last_answer: Instant,
    /// Since when statements fail, and why.
    failing: Option<(Instant, String)>,
}

/// Why the database may be unreachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspicion {
    /// Statements fail.
    Fails { since: Instant, says: String },
    /// A statement has had no answer for a while, and no other one had an answer either.
    Silent { since: Instant },
}

impl Default for Outage {
    fn default() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            waiting: 0,
            waiting_since: now,
            last_answer: now,
            failing: None,
        }))
    }
}

impl Outage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation as in flight while the returned value exists.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        let mut state = self.state();
        if state.waiting == 0 {
            state.waiting_since = Instant::now();
        }
        state.waiting += 1;
        UnderWay(self)
    }

    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.last_answer = Instant::now();
        state.failing = None;
    }

    pub(super) fn failed(&self, says: &str) {
        let mut state = self.state();
        let since = state.last_answer.max(state.waiting_since);
        let (_, known) = state.failing.get_or_insert_with(|| (since, String::new()));
        says.clone_into(known);
    }

    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        let state = self.state();
        if let Some((since, says)) = state.failing.clone() {
            return Some(Suspicion::Fails { since, says });
        }
        let since = state.last_answer.max(state.waiting_since);
        let is_silent = state.waiting > 0 && since.elapsed() >= SILENT_AFTER;
        is_silent.then_some(Suspicion::Silent { since })
    }
}

/// An operation in flight.
pub(super) struct UnderWay<'a>(&'a Outage);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn outage_is_suspected_until_a_statement_is_answered() {
        let outage = Outage::default();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(outage.suspicion(), None, "no operation is in flight");
        let begun = Instant::now();
        let first = outage.begin();
        tokio::time::advance(SILENT_AFTER).await;
        let second = outage.begin();
        assert_eq!(outage.suspicion(), Some(Suspicion::Silent { since: begun }));
        outage.failed("refused");
        outage.failed("starting up");
        let fails = Suspicion::Fails {
            since: begun,
            says: "starting up".to_owned(),
        };
        assert_eq!(outage.suspicion(), Some(fails.clone()));
        drop(first);
        drop(second);
        assert_eq!(outage.suspicion(), Some(fails), "giving up is no answer");
        outage.answered();
        assert_eq!(outage.suspicion(), None);
    }
}
