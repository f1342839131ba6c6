//! Applying: transitions with their events, and notes of the other voices.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;

use super::judge::note;
use super::progress::Progress;
use super::{Judged, Pass};
use crate::events::OutboxEvent;
use crate::isolate::split;
use crate::meters::Reason;
use crate::provider::error::printable;
use crate::store::{Applied, LEASE, Note, Record, Seen, StoreError, Transition};

impl Pass<'_> {
    /// Makes the transitions of some batches happen, with their events, and notes the rest.
    pub(super) async fn apply(
        &self,
        progress: &Progress,
        batches: Vec<Judged>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let (mut transitions, mut notes) = (Vec::new(), Vec::new());
        for judged in batches {
            if judged.claimed_at.elapsed() < LEASE {
                transitions.extend(judged.transitions);
                notes.extend(judged.notes);
                continue;
            }
            // By now another process may have asked about the same voices.
            let voices = judged.transitions.len() + judged.notes.len();
            self.meters.stale.inc_by(voices as u64);
            warn!(
                voices,
                "held for longer than their lease; the answers are dropped"
            );
        }
        let mut events = Vec::new();
        if self.scope.dry_run {
            let moved = transitions.iter().map(|t| t.row.clone()).collect();
            let as_if = Applied {
                moved,
                ..Applied::default()
            };
            progress
                .tally()
                .transitions(&transitions, &as_if, "would be");
        } else {
            // A pass may come by a row twice, as where it was cloned anew: each answer is one of its own.
            let mut rows = HashSet::with_capacity(transitions.len());
            let (first, again) = transitions
                .into_iter()
                .partition(|transition: &Transition| rows.insert(transition.row.clone()));
            events = self.apply_each(progress, first, &mut notes).await?;
            events.extend(self.apply_each(progress, again, &mut notes).await?);
            self.store
                .note(progress.run_id, self.provider.account(), &notes)
                .await?;
        }
        self.count_notes(progress, &notes);
        Ok(events)
    }

    /// Applies in bulk. A bulk that the database refuses is split until the rows that it refuses are alone;
    /// these are set aside.
    pub(super) async fn apply_each(
        &self,
        progress: &Progress,
        transitions: Vec<Transition>,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let record = match (self.relay, progress.bus_is_down.load(Ordering::Relaxed)) {
            (None, _) => Record::Nothing,
            (Some(_), true) => Record::ForAnyone,
            (Some(_), false) => Record::ForMe,
        };
        let mut events = Vec::new();
        let mut refused = Vec::new();
        let mut bulks = vec![transitions];
        while let Some(mut bulk) = bulks.pop() {
            match self.store.apply(progress.run_id, &bulk, record).await {
                Ok(applied) => {
                    progress.tally().transitions(&bulk, &applied, "is");
                    events.extend(applied.events);
                }
                Err(error) if !self.store.refuses_rows(&error).await? => return Err(error),
                Err(_) if bulk.len() > 1 => bulks.extend(split(bulk).requests()),
                Err(error) => refused.extend(bulk.pop().map(|one| (one.row, error))),
            }
        }
        let lies_in_rows = progress.tally().refused(&refused);
        for (row, error) in refused {
            let seen = match lies_in_rows {
                true => {
                    self.meters.set_aside(Reason::Refused);
                    Seen::SetAside(printable(&format!(
                        "the database refuses the change: {error}"
                    )))
                }
                false => Seen::Unavailable(printable(&error.to_string())),
            };
            notes.push(note(row, seen, Duration::ZERO));
        }
        Ok(if record == Record::ForMe {
            events
        } else {
            Vec::new()
        })
    }

    pub(super) fn count_notes(&self, progress: &Progress, notes: &[Note]) {
        let mut tally = progress.tally();
        for Note { row, seen, .. } in notes {
            match seen {
                Seen::Processing { .. } => tally.counts.processing += 1,
                Seen::Missing => tally.counts.missing += 1,
                Seen::SetAside(reason) => tally.set_aside(row, reason),
                Seen::Unavailable(_) | Seen::Unanswerable { .. } | Seen::Suspected(_) => {}
            }
        }
    }
}
