//! Looking up: requests the voices of a batch from the provider.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;

use super::Pass;
use super::batch::Batch;
use super::progress::Progress;
use crate::core::lookup::Lookup;
use crate::core::transition::Claimed;
use crate::provider::RequestDeadline;
use crate::provider::lookup::{Mode, Step, Strategy};
use crate::store::LEASE;

/// The part of the lease that is reserved for writing the results.
const LEASE_RESERVE: Duration = Duration::from_secs(10);

impl Pass<'_> {
    /// Looks up each voice of the batch that has a valid id. All voices are looked up together, except for the kinds
    /// that the list does not return.
    pub(super) async fn look_up(&self, progress: &Progress, batch: &Batch) -> Step {
        let lease_ends = batch.claimed_at + LEASE - LEASE_RESERVE;
        let deadline = RequestDeadline {
            until: progress
                .deadline
                .map_or(lease_ends, |deadline| deadline.min(lease_ends)),
            stop: self.stop,
        };
        let mut ids = HashSet::with_capacity(batch.voices.len());
        let mut groups: HashMap<Mode, Vec<_>> = HashMap::new();
        for voice in &batch.voices {
            let id = voice.checked_id().ok();
            if let Some(id) = id.filter(|id| ids.insert(id.clone())) {
                let mode = self.mode(progress, batch.mode, voice);
                groups.entry(mode).or_default().push(id);
            }
        }
        let steps = groups.iter().map(async |(mode, ids)| {
            let step = self.provider.step(ids, *mode, deadline).await;
            (*mode, step)
        });
        let mut all = Step::default();
        let steps = join_all(steps).await;
        let mut tally = progress.tally();
        for (mode, Step { lookups, failed }) in steps {
            let asked_list = match mode {
                Mode::Batch | Mode::Part => !self.provider.has_no_list(),
                Mode::Single | Mode::OneByOne | Mode::Isolated => false,
            };
            for (id, lookup) in &lookups {
                match lookup {
                    Lookup::Found { voice, listed } => {
                        let unknown = tally.found(voice, *listed, asked_list);
                        self.metrics.unknown.inc_by(unknown);
                    }
                    Lookup::Unavailable(error) => tally.unavailable(error, id),
                    Lookup::Missing | Lookup::Rejected(_) => tally.any_answered = true,
                    Lookup::Unanswerable(_) => {}
                }
            }
            all.lookups.extend(lookups);
            all.failed.extend(failed);
        }
        tally.not_asked(batch, &all);
        all
    }

    /// How one voice of a batch is looked up.
    fn mode(&self, progress: &Progress, batch: Mode, voice: &Claimed) -> Mode {
        let is_unlisted = |kind: &String| progress.unlisted.contains(kind);
        match (batch, self.strategy) {
            (Mode::Batch, _) if voice.is_isolated => Mode::Isolated,
            (Mode::Batch, Strategy::Single) => Mode::Single,
            (Mode::Batch, Strategy::Auto) if voice.kind.as_ref().is_some_and(is_unlisted) => {
                Mode::Single
            }
            (Mode::Batch, Strategy::Auto | Strategy::Batch)
            | (Mode::Part | Mode::Single | Mode::OneByOne | Mode::Isolated, _) => batch,
        }
    }
}
