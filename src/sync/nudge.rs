//! Nudging previews: a short request for speech to voices that stay without a preview, one at a time, beside the lookups.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use crate::core::nudge::{NudgeAnswer, NudgeRules};
use crate::core::transition::Claimed;
use crate::core::voice::ProviderVoiceId;
use crate::failpoint;
use crate::provider::{Provider, Speech};
use crate::store::{NudgeClaim, NudgePermit, Store, StoreError};
use crate::telemetry::metrics::NudgeMetrics;

/// Voices that wait to be nudged at the most. Those that find no room are offered again by later passes.
const MOST: usize = 100;
/// The pause while the provider is in trouble, or the database.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest pause before it is found out anew whether voices may be nudged.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Nudges the voices that passes offer it.
pub struct Nudger {
    pub rules: NudgeRules,
    speech: Speech,
    waiting: Mutex<VecDeque<NudgeClaim>>,
    arrived: Notify,
    metrics: NudgeMetrics,
    /// Not yet in the report of a pass.
    nudged: AtomicU64,
    characters: AtomicU64,
}

/// What the next step came to.
enum Step {
    /// There may be more.
    Done,
    /// No voice waits.
    Nothing,
    /// The next one is for later.
    NotNow(Duration),
}

impl Nudger {
    pub fn new(rules: NudgeRules, speech: Speech, metrics: NudgeMetrics) -> Self {
        Self {
            rules,
            speech,
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

    /// A voice that is to be nudged when its turn comes.
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

    /// Nudges, and characters that were spoken, since this was last asked.
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

    /// Nudges the voices that wait, but begins none after a moment. Those that may not be nudged now are left to a later
    /// pass.
    pub(super) async fn run_until(&self, store: &Store, provider: &Provider, until: Instant) {
        while Instant::now() < until
            && let Step::Done = self.step(store, provider).await
        {}
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
        self.nudged.fetch_add(1, Ordering::Relaxed);
        self.metrics.nudged(answer.nudge());
        let id = &claim.provider_id;
        match &answer {
            NudgeAnswer::Spoke => {
                let characters = claim.characters;
                self.characters.fetch_add(characters, Ordering::Relaxed);
                self.metrics.characters.inc_by(characters);
                info!(voice.row = %claim.row, voice.provider_id = %id, characters, "nudged: the voice speaks");
            }
            NudgeAnswer::Silent(says) | NudgeAnswer::Unclear(says) => {
                info!(voice.row = %claim.row, voice.provider_id = %id, says, "nudged, without speech");
            }
            NudgeAnswer::Refused { says, pause } => warn!(
                says,
                pause_s = pause.as_secs(),
                "the provider refuses text-to-speech: no previews are nudged meanwhile; lookups go on"
            ),
        }
        match store.settle_nudge(&claim, &answer).await {
            Ok(()) => Step::Done,
            Err(error) => failed(&error),
        }
    }
}

/// A voice whose nudge is written down is never nudged again, whatever is known of the answer.
fn failed(error: &StoreError) -> Step {
    warn!(%error, "a nudge could not be written down; lookups go on");
    Step::NotNow(PAUSE)
}

/// Nudges for a while after the lookups of a pass.
pub(super) async fn nudge_for(
    nudger: &Nudger,
    store: &Store,
    provider: &Provider,
    time: Duration,
    deadline: Option<Instant>,
) {
    let until = Instant::now() + time;
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    // A nudge that is under way then is not waited for: what came of it stays unclear.
    let _over = timeout_at(until + PAUSE, nudger.run_until(store, provider, until)).await;
}
