//! Batches: groups of voices that are looked up, judged and applied together.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::segments::Place;
use crate::core::transition::{Claimed, Note, Transition};
use crate::core::voice::ProviderVoiceId;
use crate::provider::lookup::{Mode, next_steps};
use crate::store::{LeaseId, Page};

/// Voices that are looked up, judged and applied together.
pub(super) struct Batch {
    /// The place in the walk over the table at which the batch was claimed; `None` if it was claimed by name.
    pub(super) place: Option<Place>,
    /// In the order of their positions.
    pub(super) voices: Vec<Claimed>,
    /// Taken before the lease began, so that the lease is never assumed to be longer than it is.
    pub(super) claimed_at: Instant,
    /// How the voices are looked up.
    pub(super) mode: Mode,
    /// Shared by the batches of one claim. The lease ends when all of them are written.
    pub(super) lease: Option<Arc<LeaseId>>,
}

/// The result of judging a batch.
pub(super) struct Judged {
    pub(super) transitions: Vec<Transition>,
    pub(super) notes: Vec<Note>,
    /// Copied from the batch.
    pub(super) claimed_at: Instant,
    pub(super) lease: Option<Arc<LeaseId>>,
}

/// Cuts a page into batches of one size; the last one may be smaller.
pub(super) fn cut(
    page: Page,
    size: usize,
    mut place: Option<Place>,
    claimed_at: Instant,
    mode: Mode,
) -> Vec<Batch> {
    let lease = page.lease.map(Arc::new);
    let mut voices = page.voices;
    let mut batches = Vec::with_capacity(voices.len().div_ceil(size));
    while !voices.is_empty() {
        let rest = voices.split_off(size.min(voices.len()));
        let next = place.as_ref().map(|place| place.behind(&voices));
        batches.push(Batch {
            place: std::mem::replace(&mut place, next),
            voices: std::mem::replace(&mut voices, rest),
            claimed_at,
            mode,
            lease: lease.clone(),
        });
    }
    batches
}

impl Batch {
    /// Removes the voices whose request failed, and returns them in the parts to look up next.
    pub(super) fn take_failed(&mut self, failed: &[ProviderVoiceId]) -> Vec<Batch> {
        if failed.is_empty() {
            return Vec::new();
        }
        let failed: HashSet<_> = failed.iter().collect();
        let is_failed = |id: &ProviderVoiceId| failed.contains(id);
        let (voices, rest) = std::mem::take(&mut self.voices)
            .into_iter()
            .partition(|voice| voice.checked_id().is_ok_and(|id| is_failed(&id)));
        self.voices = rest;
        let batch = |(mode, voices)| Batch {
            // Voices of these parts that are not looked up have a note of their own, so the place is not needed.
            place: None,
            voices,
            claimed_at: self.claimed_at,
            mode,
            lease: self.lease.clone(),
        };
        next_steps(voices).into_iter().map(batch).collect()
    }
}
