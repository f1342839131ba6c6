//! The results for leased events, batch by batch. Pure.

use std::collections::{BTreeMap, HashSet};

use super::values::LeasedEvents;
use crate::core::event::BatchId;

/// The results for the events of some batches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settlement {
    /// Batches with published events, and their numbers: these are all that is left in a batch once the others were
    /// moved.
    pub(super) published: Vec<(BatchId, usize)>,
    pub(super) refused: Unpublished,
    pub(super) unpublished: Unpublished,
}

/// Whole batches, and events of other batches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpublished {
    pub(super) batches: Vec<BatchId>,
    pub(super) events: Vec<(BatchId, i64)>,
}

impl Settlement {
    /// The results for these events, which are all of their batches.
    pub(super) fn new(leased: &LeasedEvents, published: &[i64], refused: &[i64]) -> Self {
        let [published, refused] =
            [published, refused].map(|ids| ids.iter().collect::<HashSet<_>>());
        let mut batches: BTreeMap<BatchId, [Vec<i64>; 3]> = BTreeMap::new();
        for event in &leased.events {
            let of = if published.contains(&event.id) {
                0
            } else if refused.contains(&event.id) {
                1
            } else {
                2
            };
            batches.entry(event.batch).or_default()[of].push(event.id);
        }
        for (batch, id) in &leased.unknown {
            batches.entry(*batch).or_default()[1].push(*id);
        }
        let mut settlement = Self::default();
        for (batch, [published, refused, rest]) in batches {
            if !published.is_empty() {
                settlement.published.push((batch, published.len()));
            }
            for (events, into) in [
                (&refused, &mut settlement.refused),
                (&rest, &mut settlement.unpublished),
            ] {
                let is_whole = events.len() == published.len() + refused.len() + rest.len();
                match is_whole {
                    true => into.batches.push(batch),
                    false => into.events.extend(events.iter().map(|id| (batch, *id))),
                }
            }
        }
        settlement
    }
}
