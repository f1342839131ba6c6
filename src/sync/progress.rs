//! What a pass has seen and done so far, shared by the batches that are under way.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use uuid::Uuid;

use super::batch::Batch;
use super::isolation::Isolation;
use super::segments::Segments;
use super::tally::Tally;
use crate::core::report::StopReason;
use crate::store::{Isolated, StoreError};

pub(super) struct Progress {
    pub(super) run_id: Uuid,
    pub(super) started: Instant,
    /// Requests and repetitions of earlier passes.
    pub(super) requests_before: (u64, u64),
    pub(super) deadline: Option<Instant>,
    pub(super) claims: tokio::sync::Mutex<Claims>,
    pub(super) isolation: Isolation,
    /// Lookup workers without a batch.
    pub(super) idle: AtomicUsize,
    /// Batches that a writer may apply at once.
    pub(super) bulk: AtomicUsize,
    /// Kinds of voices that an earlier pass found the list to leave out.
    pub(super) unlisted: HashSet<String>,
    /// Whether earlier passes met a mass absence.
    pub(super) mass_absence: bool,
    /// Whether the key found voices within a day before this pass.
    pub(super) key_works: bool,
    pub(super) bus_is_down: AtomicBool,
    /// How often in a row the event bus failed, once the database was asked.
    pub(super) bus_failures: tokio::sync::Mutex<Option<u32>>,
    pub(super) queue_is_down: AtomicBool,
    tally: Mutex<Tally>,
}

/// What has been claimed, and what has not.
pub(super) struct Claims {
    pub(super) segments: Segments,
    /// Batches of the last page.
    pub(super) ready: VecDeque<Batch>,
    /// Voices that earlier passes isolated.
    pub(super) apart: Apart,
    /// Voices that are not claimed by then are left to the next pass; isolated ones have a time of their own.
    pub(super) until: Option<Instant>,
}

/// Voices that earlier passes isolated, which come after the others.
pub(super) enum Apart {
    /// There are some.
    Unread,
    Known(Isolated),
    /// The cursor is on them, until a time. Of all of them, the new ones come first.
    Begun {
        until: Instant,
        all: usize,
        new: usize,
    },
    /// There are none, or they are among the others.
    Nothing,
}

impl Apart {
    /// Whether there are any, as far as that is known.
    pub(super) fn any(&self) -> bool {
        match self {
            Self::Unread | Self::Begun { .. } => true,
            Self::Known(isolated) => !isolated.rows.is_empty(),
            Self::Nothing => false,
        }
    }
}

impl Claims {
    pub(super) fn is_isolated(&self) -> bool {
        matches!(self.apart, Apart::Begun { .. })
    }

    /// Whether there is no time left for more of the voices that it is at: those that are isolated, or the others.
    pub(super) fn is_over(&self) -> bool {
        let until = match self.apart {
            Apart::Begun { until, .. } => Some(until),
            Apart::Unread | Apart::Known(_) | Apart::Nothing => self.until,
        };
        until.is_some_and(|until| Instant::now() >= until)
    }

    /// Of the isolated voices that the cursor did not get to, those that are not known to be unanswerable.
    pub(super) fn new_left(&self) -> u64 {
        match self.apart {
            Apart::Begun { all, new, .. } => {
                let asked = all.saturating_sub(self.segments.rows_left());
                new.saturating_sub(asked) as u64
            }
            Apart::Unread | Apart::Known(_) | Apart::Nothing => 0,
        }
    }
}

impl Progress {
    pub(super) fn new(
        run_id: Uuid,
        started: Instant,
        requests_before: (u64, u64),
        deadline: Option<Instant>,
        segments: Segments,
        apart: Apart,
        unlisted: HashSet<String>,
    ) -> Self {
        Self {
            run_id,
            started,
            requests_before,
            deadline,
            claims: tokio::sync::Mutex::new(Claims {
                segments,
                ready: VecDeque::new(),
                apart,
                until: None,
            }),
            isolation: Isolation::default(),
            idle: AtomicUsize::new(0),
            bulk: AtomicUsize::new(1),
            unlisted,
            mass_absence: false,
            key_works: false,
            bus_is_down: AtomicBool::new(false),
            bus_failures: tokio::sync::Mutex::default(),
            queue_is_down: AtomicBool::new(false),
            tally: Mutex::default(),
        }
    }

    /// Has parts of a batch asked about by themselves. In an outage the walk goes on, and what fails is left to the next
    /// pass once many voices wait.
    pub(super) fn isolate(&self, parts: Vec<Batch>) {
        let is_outage = self.tally().looks_like_an_outage();
        if !is_outage || !self.isolation.is_pressing() {
            self.isolation.push(parts);
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the pass from claiming more. The first reason stays.
    pub(super) fn stop(&self, stop_reason: StopReason) {
        self.tally().stop_reason.get_or_insert(stop_reason);
    }

    /// A failing database outweighs any other reason: nothing more can be written. Of several errors,
    /// the first one tells why.
    pub(super) fn database_failed(&self, error: &StoreError) {
        let stop_reason = &mut self.tally().stop_reason;
        if !matches!(stop_reason, Some(StopReason::Database(..))) {
            *stop_reason = Some(StopReason::Database(error.exit(), error.to_string()));
        }
    }
}
