//! Applying: writes transitions with their events, and notes about the other voices.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::warn;

use super::Pass;
use super::batch::Judged;
use super::judge::note_of;
use super::progress::Progress;
use crate::core::bisect::split;
use crate::core::event::OutboxEvent;
use crate::core::format::printable;
use crate::core::transition::{Note, Seen, SetAside, Transition};
use crate::store::{Applied, LEASE, LeaseId, Record, StoreError};

impl Pass<'_> {
    /// Makes the transitions of some batches with their events, writes notes about the other voices, and ends the
    /// leases of claims that are completely written.
    pub(super) async fn apply(
        &self,
        progress: &Progress,
        batches: Vec<Judged>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let (mut transitions, mut notes, mut leases) = (Vec::new(), Vec::new(), Vec::new());
        for judged in batches {
            if judged.claimed_at.elapsed() < LEASE {
                transitions.extend(judged.transitions);
                notes.extend(judged.notes);
                leases.extend(judged.lease);
                continue;
            }
            // Another process may have looked up the same voices by now.
            let voices = judged.transitions.len() + judged.notes.len();
            self.metrics.stale.inc_by(voices as u64);
            warn!(
                voices,
                "answers came after the lease had expired and are dropped; the next pass looks the voices up again"
            );
        }
        if self.scope.dry_run {
            let moved = transitions.iter().map(|t| t.row.clone()).collect();
            let as_if = Applied {
                moved,
                ..Applied::default()
            };
            progress
                .tally()
                .transitions(&transitions, &as_if, "would be");
            self.count_notes(progress, &notes);
            return Ok(Vec::new());
        }
        let (decided, of_decided) = progress.tally().take_decided();
        notes.extend(decided);
        leases.extend(of_decided);
        // A pass may claim a row twice, for example if its voice was cloned again. Each answer is applied separately.
        let mut rows = HashSet::with_capacity(transitions.len());
        let (first, again) = transitions
            .into_iter()
            .partition(|transition: &Transition| rows.insert(transition.row.clone()));
        let mut events = self.apply_each(progress, first, &mut notes).await?;
        events.extend(self.apply_each(progress, again, &mut notes).await?);
        self.note(progress, &notes).await?;
        let ended: Vec<LeaseId> = leases.into_iter().filter_map(Arc::into_inner).collect();
        self.store.end_leases(&ended).await?;
        self.count_notes(progress, &notes);
        Ok(events)
    }

    /// Applies transitions in bulk. If the database refuses a bulk, it is split until each refused row is alone; these
    /// rows are set aside.
    pub(super) async fn apply_each(
        &self,
        progress: &Progress,
        transitions: Vec<Transition>,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let record = match (self.publisher, progress.bus_is_down.load(Ordering::Relaxed)) {
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
                    let others = bulk.iter().filter(|t| !applied.moved.contains(&t.row));
                    notes.extend(others.map(|other| note_of(other, Seen::Superseded)));
                    events.extend(applied.events);
                }
                Err(error) if !self.store.refuses_rows(&error).await? => return Err(error),
                Err(_) if bulk.len() > 1 => bulks.extend(split(bulk).requests()),
                Err(error) => refused.extend(bulk.pop().map(|one| (one, error))),
            }
        }
        let lies_in_rows = progress.tally().refused(&refused);
        for (transition, error) in refused {
            let error = printable(&error.to_string());
            let seen = match lies_in_rows {
                true => {
                    let why = SetAside::Refused(error);
                    self.metrics.set_aside(&why);
                    Seen::SetAside(why)
                }
                false => Seen::Unavailable(error),
            };
            notes.push(note_of(&transition, seen));
        }
        Ok(match record {
            Record::ForMe => events,
            Record::ForAnyone | Record::Nothing => Vec::new(),
        })
    }

    pub(super) async fn note(&self, progress: &Progress, notes: &[Note]) -> Result<(), StoreError> {
        let account = self.provider.account();
        self.store.note(progress.run_id, account, notes).await
    }

    pub(super) fn count_notes(&self, progress: &Progress, notes: &[Note]) {
        let mut tally = progress.tally();
        for Note { row, seen, .. } in notes {
            match seen {
                Seen::Processing { .. } => tally.counts.processing += 1,
                Seen::Missing => tally.counts.missing += 1,
                Seen::SetAside(reason) => tally.set_aside(row, reason),
                Seen::Unavailable(_)
                | Seen::Unanswerable { .. }
                | Seen::Suspected(_)
                | Seen::Superseded => {}
            }
        }
    }
}
