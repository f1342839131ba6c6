//! Batches: what goes through the steps together.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::segments::Place;
use crate::core::transition::{Claimed, Note, Transition};
use crate::core::voice::ProviderVoiceId;
use crate::provider::lookup::{Mode, next_steps};
use crate::store::{LeaseId, Page};

/// Voices that go through the steps together.
pub(super) struct Batch {
    /// Where in the walk over the table it was claimed; nowhere, if by name.
    pub(super) place: Option<Place>,
    /// In the order of their positions.
    pub(super) voices: Vec<Claimed>,
    /// Taken before the lease began, so that it never seems longer than it is.
    pub(super) claimed_at: Instant,
    /// How to ask about them.
    pub(super) mode: Mode,
    /// What batches of one claim share: it ends when all of them are written down.
    pub(super) lease: Option<Arc<LeaseId>>,
}

/// What judging a batch came to.
pub(super) struct Judged {
    pub(super) transitions: Vec<Transition>,
    pub(super) notes: Vec<Note>,
    /// These are as of the batch.
    pub(super) claimed_at: Instant,
    pub(super) lease: Option<Arc<LeaseId>>,
}

/// A page in batches of one size, but for the last one.
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
    /// Takes the voices out whose request failed, in the parts to ask about next.
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
            // What is left of it is known by a mark of its own, and not by its place.
            place: None,
            voices,
            claimed_at: self.claimed_at,
            mode,
            lease: self.lease.clone(),
        };
        next_steps(voices).into_iter().map(batch).collect()
    }
}
