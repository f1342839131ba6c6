//! What an instance of voice-sync knows, and what a crash takes with it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use voice_sync::events::OutboxEvent;
use voice_sync::store::Transition;
use voice_sync::voice::{Position, RowId};

/// What an instance has in its memory.
pub(super) struct Instance {
    pub(super) run_id: Uuid,
    /// Where its pass goes on.
    pub(super) after: Option<Position>,
    /// Its pass has come to the end of the table.
    pub(super) at_the_end: bool,
    pub(super) claimed: BTreeMap<RowId, String>,
    pub(super) answers: Vec<Transition>,
    pub(super) unanswered: Vec<RowId>,
    /// It waits for the reply to `apply`, and asks again before it does anything else.
    pub(super) repeats: bool,
    /// What such a call may have moved.
    pub(super) moved_before: BTreeSet<RowId>,
    pub(super) events: Vec<InHand>,
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
        }
    }

    pub(super) fn holds_voices(&self) -> bool {
        !(self.claimed.is_empty() && self.answers.is_empty() && self.unanswered.is_empty())
    }
}

pub(super) fn in_hand(events: Vec<OutboxEvent>) -> impl Iterator<Item = InHand> {
    events.into_iter().map(|event| InHand {
        event,
        half_done: false,
    })
}

/// One half of publishing and marking is done for these events: the first is remembered, and after
/// the second they are out of hand.
pub(super) fn half_way(events: &mut Vec<InHand>, ids: &BTreeSet<i64>, second: bool) {
    let is_meant =
        |in_hand: &InHand| in_hand.half_done == second && ids.contains(&in_hand.event.id);
    match second {
        true => events.retain(|in_hand| !is_meant(in_hand)),
        false => events
            .iter_mut()
            .for_each(|in_hand| in_hand.half_done |= ids.contains(&in_hand.event.id)),
    }
}
