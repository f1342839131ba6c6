//! Nudging previews: sends a short request for speech for voices that still have no preview, one at a time,
//! concurrently with the lookups.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::core::nudge::{Nudge, NudgeRules};
use crate::core::transition::Claimed;
use crate::core::voice::ProviderVoiceId;
use crate::failpoint;
use crate::provider::{Provider, Speech};
use crate::store::{NudgeClaim, NudgePermit, Store, StoreError};
use crate::telemetry::metrics::NudgeMetrics;

/// The maximum number of voices that wait for a nudge. Later passes offer those that do not fit again.
const MOST: usize = 100;
/// The pause while the provider or the database is unavailable.
const PAUSE: Duration = Duration::from_secs(10);
/// How long voices are nudged at the end of a pass. The next pass continues.
const AFTER_PASS: Duration = Duration::from_secs(20);
/// The longest pause before the next check whether voices may be nudged.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Nudges the voices that passes offer.
pub struct Nudger {
    pub rules: NudgeRules,
    speech: Speech,
    runs_beside: bool,
    waiting: Mutex<VecDeque<NudgeClaim>>,
    arrived: Notify,
    metrics: NudgeMetrics,
    /// Nudges that no pass has reported yet.
    nudged: AtomicU64,
    characters: AtomicU64,
}

/// The result of one step.
enum Step {
    /// More voices may wait.
    Done,
    /// No voice waits.
    Nothing,
    /// The next nudge is possible after this time.
    NotNow(Duration),
}

impl Nudger {
    /// `runs_beside` means that the caller runs [`run`](Self::run) concurrently with passes; otherwise voices are
    /// nudged at the end of each pass.
    pub fn new(
        rules: NudgeRules,
        speech: Speech,
        runs_beside: bool,
        metrics: NudgeMetrics,
    ) -> Self {
        Self {
            rules,
            speech,
            runs_beside,
            waiting: Mutex::default(),
            arrived: Notify::new(),
            metrics,
            nudged: AtomicU64::new(0),
            characters: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<NudgeClaim>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a voice to the queue, unless it is already there or the queue is full.
    pub(super) fn offer(&self, claimed: &Claimed, id: &ProviderVoiceId, account: Uuid) {
        let mut waiting = self.waiting();
        if waiting.len() >= MOST || waiting.iter().any(|claim| claim.provider_id == *id) {
            return;
        }
        waiting.push_back(NudgeClaim {
            nudge_id: Uuid::new_v4(),
            account,
            row: claimed.row.clone(),
            provider_id: id.clone(),
            characters: self.speech.characters(),
        });
        drop(waiting);
        self.arrived.notify_one();
    }

    /// The nudges and the spoken characters since the last call.
    pub(super) fn take_counts(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&self.nudged), take(&self.characters))
    }

    /// Nudges one voice after the other, until it is dropped.
    pub async fn run(&self, store: &Store, provider: &Provider) -> Infallible {
        loop {
            match self.step(store, provider).await {
                Step::Done => {}
                Step::Nothing => self.arrived.notified().await,
                Step::NotNow(pause) => sleep(pause.min(LONGEST_PAUSE)).await,
            }
        }
    }

    /// Whether it runs concurrently with passes.
    pub(super) fn runs_beside(&self) -> bool {
        self.runs_beside
    }

    /// Nudges waiting voices after a pass, for a limited time. Voices that may not be nudged now are left to a later
    /// pass. At the deadline, it does not wait for a nudge in progress; the result of that nudge stays unknown.
    pub(super) async fn run_after_pass(
        &self,
        store: &Store,
        provider: &Provider,
        deadline: Option<Instant>,
        stop: &CancellationToken,
    ) {
        let until = Instant::now() + AFTER_PASS;
        let nudging = async {
            while Instant::now() < until
                && !stop.is_cancelled()
                && let Step::Done = self.step(store, provider).await
            {}
        };
        let end = until + PAUSE;
        let end = deadline.map_or(end, |deadline| deadline.min(end));
        let _over = timeout_at(end, nudging).await;
    }

    async fn step(&self, store: &Store, provider: &Provider) -> Step {
        let Some(claim) = self.waiting().front().cloned() else {
            return Step::Nothing;
        };
        if !provider.may_speak() {
            return Step::NotNow(PAUSE);
        }
        match store.claim_nudge(&claim, self.rules.limit).await {
            Ok(NudgePermit::Granted) => {}
            Ok(NudgePermit::Needless) => {
                self.waiting().pop_front();
                return Step::Done;
            }
            Ok(NudgePermit::NotNow(pause)) => return Step::NotNow(pause),
            Err(error) => return failed(&error),
        }
        self.waiting().pop_front();
        failpoint::visit("nudge.before").await;
        let answer = provider.speak(&claim.provider_id, &self.speech).await;
        failpoint::visit("nudge.after").await;
        let outcome = match store.settle_nudge(&claim, &answer).await {
            Ok(outcome) => outcome,
            Err(error) => return failed(&error),
        };
        self.count(&claim, outcome.nudge);
        let (row, id, says) = (&claim.row, &claim.provider_id, answer.says());
        match (outcome.nudge, outcome.pause) {
            (Nudge::Refused, Some(pause)) => warn!(
                says,
                pause_s = pause.as_secs(),
                "the provider refuses text-to-speech: nudging is paused; lookups continue"
            ),
            (answer, pause) => info!(
                voice.row = %row, voice.provider_id = %id, %answer, says, pause_s = pause.map(|pause| pause.as_secs()),
                "voice nudged"
            ),
        }
        Step::Done
    }

    fn count(&self, claim: &NudgeClaim, nudge: Nudge) {
        self.metrics.nudged(nudge);
        if nudge != Nudge::Unsent {
            self.nudged.fetch_add(1, Ordering::Relaxed);
        }
        if nudge == Nudge::Spoke {
            self.characters
                .fetch_add(claim.characters, Ordering::Relaxed);
            self.metrics.characters.inc_by(claim.characters);
        }
    }
}

/// A voice is never nudged again after its nudge was recorded, even if the answer is unknown.
fn failed(error: &StoreError) -> Step {
    warn!(%error, "a nudge could not be written to the database; lookups continue");
    Step::NotNow(PAUSE)
}
