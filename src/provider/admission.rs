//! Which requests may be sent, and when. This combines the circuit breaker, the retry budget, the concurrency limit
//! and the provider's `Retry-After` for one process.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::RequestDeadline;
use crate::core::provider_state::{Pressure, ProviderState, Spent, StateChange};
use crate::provider::state::breaker::Breaker;
use crate::provider::state::concurrency_limit::{Begun, ConcurrencyLimit, Plan};
use crate::provider::state::retry_budget::RetryBudget;

/// If the provider answered within this time, the open circuit breaker of another process is ignored.
const KNOWS_BETTER: Duration = Duration::from_secs(5);

pub(super) struct Traffic {
    gate: Semaphore,
    state: Mutex<State>,
    /// Notified when there is something that other processes should know.
    changed: Notify,
    /// Notified when a request in flight has ended.
    settled: Notify,
}

struct State {
    breaker: Breaker,
    /// No request is sent before this moment, because the circuit breaker is open.
    open_until: Option<Instant>,
    /// No request is sent before this moment, because the provider asked for it.
    hold_until: Option<Instant>,
    /// When the last request was answered.
    answered_at: Option<Instant>,
    budget: RetryBudget,
    limit: ConcurrencyLimit,
    /// Permits of the semaphore, including those in use.
    places: u32,
    taken: u32,
    /// Requests in flight. An admission can also belong to a request that has ended and whose failure is being
    /// attributed.
    sending: u32,
    /// Whether there is something that other processes should know: about the circuit breaker, or a cooldown.
    breaker_changed: bool,
    pause_changed: bool,
}

/// The permission for one concurrent request.
pub(super) struct Admission<'a> {
    permit: SemaphorePermit<'a>,
    begun: Begun,
}

/// A request in flight.
pub(super) struct Sending<'a>(&'a Traffic);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.state().sending -= 1;
        self.0.settled.notify_waiters();
    }
}

/// The result of a request, for the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer of any content.
    Answered,
    /// 429 because of too many concurrent requests.
    TooMany,
    /// 429 for another reason.
    Busy,
    /// No answer, or one that says "later".
    Unavailable,
    /// Cancelled by this process: it carries no information.
    Abandoned,
}

impl Traffic {
    pub(super) fn new(most: u32) -> Self {
        let limit = ConcurrencyLimit::new(most, None);
        let places = limit.get();
        Self {
            gate: Semaphore::new(places as usize),
            state: Mutex::new(State {
                breaker: Breaker::default(),
                open_until: None,
                hold_until: None,
                answered_at: None,
                budget: RetryBudget::default(),
                limit,
                places,
                taken: 0,
                sending: 0,
                breaker_changed: false,
                pause_changed: false,
            }),
            changed: Notify::new(),
            settled: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues with what other processes learned. If the circuit breaker is half-open, this process is the one that
    /// probes: one request at a time until an answer comes.
    pub(super) fn resume(&self, most: u32, state: ProviderState) {
        let now = Instant::now();
        let ProviderState {
            opened,
            open_for,
            cooldown,
            concurrency,
        } = state;
        let after = |span: Duration| (!span.is_zero()).then(|| now + span);
        let mut state = self.state();
        // What this process saw itself has priority over what it reported.
        if opened != state.breaker.opened() {
            state.breaker = Breaker::resumed(opened);
        }
        state.open_until = after(open_for).filter(|_| opened > 0);
        state.hold_until = state.hold_until.max(after(cooldown));
        if concurrency.is_some() {
            state.limit = ConcurrencyLimit::new(most, concurrency);
        }
        self.resize(&mut state);
    }

    pub(super) fn pressure(&self) -> Pressure {
        let (mut state, now) = (self.state(), Instant::now());
        let closed_until = state.open_until.max(state.hold_until);
        Pressure {
            limit: state.limit.get(),
            is_open: closed_until.is_some_and(|until| until > now),
            retries_left: state.budget.left(now.into_std()),
        }
    }

    /// The state that other processes should know.
    pub(super) fn provider_state(&self) -> ProviderState {
        let (state, now) = (self.state(), Instant::now());
        let left = |moment: Option<Instant>| {
            moment.map_or(Duration::ZERO, |moment| {
                moment.saturating_duration_since(now)
            })
        };
        ProviderState {
            opened: state.breaker.opened(),
            open_for: left(state.open_until),
            cooldown: left(state.hold_until),
            concurrency: state.limit.adapted(),
        }
    }

    /// Counts what other processes used of the retry budget.
    pub(super) fn resume_budget(&self, spent: Spent) {
        let now = Instant::now().into_std();
        self.state().budget.resume(spent, now);
    }

    /// Waits until there is something that other processes should know.
    pub(super) async fn state_changed(&self) {
        self.changed.notified().await;
    }

    /// What has changed since the last call.
    pub(super) fn take_state_change(&self) -> Option<StateChange> {
        let mut state = self.state();
        let breaker = std::mem::take(&mut state.breaker_changed);
        let pause = std::mem::take(&mut state.pause_changed);
        drop(state);
        match (breaker, pause) {
            (true, _) => Some(StateChange::Breaker(self.provider_state())),
            (false, true) => Some(StateChange::Pause(self.provider_state())),
            (false, false) => None,
        }
    }

    /// Applies what another process learned: a cooldown, and its open circuit breaker, unless this process had an
    /// answer a moment ago.
    pub(super) fn merge_remote(&self, remote: ProviderState) {
        let now = Instant::now();
        let mut state = self.state();
        state.hold_until = state.hold_until.max(Some(now + remote.cooldown));
        let knows_better = state
            .answered_at
            .is_some_and(|at| now.duration_since(at) < KNOWS_BETTER);
        if remote.is_open() && !knows_better {
            state.breaker = Breaker::resumed(remote.opened);
            state.open_until = Some(now + remote.open_for);
            self.resize(&mut state);
        }
    }

    /// How often the circuit breaker has opened since the last answer.
    pub(super) fn opened(&self) -> u32 {
        self.state().breaker.opened()
    }

    /// Records the end of a pass.
    pub(super) fn passed(&self) {
        let mut state = self.state();
        if let Some(pause) = state.breaker.passed() {
            self.open(&mut state, pause);
        }
    }

    fn open(&self, state: &mut State, pause: Duration) {
        warn!(
            event = "circuit_open",
            pause_s = pause.as_secs(),
            "provider unavailable; circuit breaker open for {} s; voices stay in processing",
            pause.as_secs()
        );
        state.open_until = Some(Instant::now() + pause);
        state.breaker_changed = true;
        self.changed.notify_one();
    }

    pub(super) fn is_open(&self) -> bool {
        self.state()
            .open_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Opens the circuit breaker, unless it is open.
    pub(super) fn trip(&self) {
        let mut state = self.state();
        if state.open_until.is_none_or(|until| Instant::now() >= until) {
            let pause = state.breaker.trip();
            self.open(&mut state, pause);
        }
    }

    fn count_failure(&self, state: &mut State) {
        let now = Instant::now();
        // Requests that were in flight when the circuit breaker opened do not open it again.
        if state.open_until.is_none_or(|until| now >= until)
            && let Some(pause) = state.breaker.failed(now.into_std())
        {
            self.open(state, pause);
        }
    }

    /// When the last request was answered.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.state().answered_at
    }

    /// How long the provider asked to wait.
    pub(super) fn held_for(&self) -> Duration {
        let until = self.state().hold_until;
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Waits for a permit and until requests are allowed. The error says why no request may be sent.
    pub(super) async fn admit(
        &self,
        deadline: RequestDeadline<'_>,
        again: bool,
    ) -> Result<Admission<'_>, &'static str> {
        let Ok(Ok(permit)) = timeout_at(deadline.until, self.gate.acquire()).await else {
            return Err("no time left for a request");
        };
        loop {
            let held = self
                .state()
                .hold_until
                .filter(|held| *held > Instant::now());
            match held {
                Some(held) if !deadline.sleep_until(held).await => {
                    return Err("the provider asked for a longer pause (Retry-After)");
                }
                Some(_) => {}
                None => break,
            }
        }
        if self.is_open() {
            return Err("circuit breaker open");
        }
        let mut state = self.state();
        state.taken += 1;
        if !again {
            state.budget.first_try(Instant::now().into_std());
        }
        let begun = state.limit.begin();
        Ok(Admission { permit, begun })
    }

    /// Counts a request as in flight while the value exists.
    pub(super) fn sending(&self) -> Sending<'_> {
        self.state().sending += 1;
        Sending(self)
    }

    /// Records the result of a request of this admission.
    pub(super) fn learn(&self, place: &Admission<'_>, outcome: Outcome, plan: Option<Plan>) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(plan) = plan {
            let ours = state.taken;
            state.limit.apply_plan(plan, ours);
        }
        match outcome {
            Outcome::Answered => {
                state.limit.clean();
                state.answered_at = Some(now);
            }
            Outcome::TooMany => state.limit.halve(place.begun),
            Outcome::Unavailable => {
                state.limit.ease();
                self.count_failure(&mut state);
            }
            Outcome::Busy | Outcome::Abandoned => {}
        }
        match outcome {
            Outcome::Answered | Outcome::TooMany | Outcome::Busy => {
                if state.breaker.answered(now.into_std()) {
                    info!(
                        event = "circuit_closed",
                        "the provider answers again; circuit breaker closed"
                    );
                    state.open_until = None;
                    state.breaker_changed = true;
                    self.changed.notify_one();
                }
            }
            Outcome::Unavailable | Outcome::Abandoned => {}
        }
        self.resize(&mut state);
    }

    /// Returns an admission.
    pub(super) fn release(&self, place: Admission<'_>) {
        let mut state = self.state();
        state.taken = state.taken.saturating_sub(1);
        if state.places > wanted(&state) {
            state.places -= 1;
            place.permit.forget();
        }
        self.resize(&mut state);
    }

    /// Waits until a request has been answered since this moment, while any is in flight. Returns whether one was.
    pub(super) async fn is_served_since(&self, since: Instant) -> bool {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            let (answered_at, sending) = {
                let state = self.state();
                (state.answered_at, state.sending)
            };
            if answered_at.is_some_and(|at| at >= since) {
                return true;
            }
            if sending == 0 {
                return false;
            }
            settled.await;
        }
    }

    /// Takes a repetition from the budget. A probe is not repeated.
    pub(super) fn may_retry(&self) -> bool {
        let mut state = self.state();
        state.breaker.opened() == 0 && state.budget.take(Instant::now().into_std())
    }

    /// No request is sent before this time is over.
    pub(super) fn begin_cooldown(&self, pause: Duration) {
        let mut state = self.state();
        let until = Instant::now() + pause;
        if state.hold_until.is_none_or(|held| held < until) {
            state.hold_until = Some(until);
            state.pause_changed = true;
            self.changed.notify_one();
        }
    }

    fn resize(&self, state: &mut State) {
        let wanted = wanted(state);
        if wanted > state.places {
            self.gate.add_permits((wanted - state.places) as usize);
            state.places = wanted;
        } else {
            let surplus = (state.places - wanted) as usize;
            // Permits in use cannot be removed now; this happens when they are returned.
            let removed = self.gate.forget_permits(surplus);
            state.places -= removed as u32;
        }
    }
}

/// The number of permits there should be: one while it is not known whether the provider works.
fn wanted(state: &State) -> u32 {
    match state.breaker.opened() {
        0 => state.limit.get(),
        _ => 1,
    }
}
