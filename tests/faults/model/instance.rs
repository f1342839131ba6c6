//! What an instance of voice-sync knows, and what a crash takes with it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use voice_sync::core::event::{BatchId, OutboxEvent};
use voice_sync::core::transition::Transition;
use voice_sync::core::voice::{Position, RowId};
use voice_sync::store::LeaseId;

/// What an instance has in its memory.
pub(super) struct Instance {
    pub(super) run_id: Uuid,
    /// Where its pass goes on.
    pub(super) after: Option<Position>,
    /// Its pass has come to the end of the table.
    pub(super) at_the_end: bool,
    pub(super) claimed: BTreeMap<RowId, String>,
    pub(super) answers: Vec<Transition>,
    pub(super) unanswered: Vec<(RowId, String)>,
    /// It waits for the reply to `apply`, and asks again before it does anything else.
    pub(super) repeats: bool,
    /// What such a call may have moved.
    pub(super) moved_before: BTreeSet<RowId>,
    pub(super) events: Vec<InHand>,
    /// What each claim took and is not written down.
    pub(super) leases: Vec<(LeaseId, BTreeSet<RowId>)>,
}

/// An event leased to an instance.
pub(super) struct InHand {
    pub(super) event: OutboxEvent,
    /// The first half of publishing and marking is done.
    pub(super) half_done: bool,
}

impl Instance {
    pub(super) fn new(run_id: Uuid) -> Self {
        Self {
            run_id,
            after: None,
            at_the_end: false,
            claimed: BTreeMap::new(),
            answers: Vec::new(),
            unanswered: Vec::new(),
            repeats: false,
            moved_before: BTreeSet::new(),
            events: Vec::new(),
            leases: Vec::new(),
        }
    }

    pub(super) fn holds_voices(&self) -> bool {
        !(self.claimed.is_empty() && self.answers.is_empty() && self.unanswered.is_empty())
    }
}

impl Instance {
    /// Takes events in hand, unless it has them.
    pub(super) fn take(&mut self, events: Vec<OutboxEvent>) {
        for event in events {
            if self
                .events
                .iter()
                .all(|in_hand| in_hand.event.id != event.id)
            {
                let half_done = false;
                self.events.push(InHand { event, half_done });
            }
        }
    }

    /// Events whose batches are in hand with all their events, or with any, of which the first half is done or not.
    pub(super) fn of_batches(&self, half_done: bool, all: bool) -> Vec<OutboxEvent> {
        let is_chosen = |batch: BatchId| {
            let mut of = self
                .events
                .iter()
                .filter(|in_hand| in_hand.event.batch == batch);
            match all {
                true => of.all(|in_hand| in_hand.half_done == half_done),
                false => of.any(|in_hand| in_hand.half_done == half_done),
            }
        };
        let events = self.events.iter().map(|in_hand| &in_hand.event);
        events
            .filter(|event| is_chosen(event.batch))
            .cloned()
            .collect()
    }

    /// These voices are written down. Returns the leases that end with them.
    pub(super) fn written<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a RowId>,
    ) -> Vec<LeaseId> {
        for row in rows {
            for (_, held) in &mut self.leases {
                held.remove(row);
            }
        }
        let is_over = |(_, held): &mut (LeaseId, BTreeSet<RowId>)| held.is_empty();
        self.leases
            .extract_if(.., is_over)
            .map(|(lease, _)| lease)
            .collect()
    }
}

/// One half of publishing and marking is done for these events: the first is remembered, and after
/// the second they are out of hand.
pub(super) fn half_way(events: &mut Vec<InHand>, ids: &BTreeSet<i64>, second: bool) {
    match second {
        true => events.retain(|in_hand| !ids.contains(&in_hand.event.id)),
        false => events
            .iter_mut()
            .for_each(|in_hand| in_hand.half_done |= ids.contains(&in_hand.event.id)),
    }
}
