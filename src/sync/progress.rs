//! The state of a running pass, shared by its workers.

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
    /// Requests and retries before this pass.
    pub(super) requests_before: (u64, u64),
    pub(super) deadline: Option<Instant>,
    pub(super) claims: tokio::sync::Mutex<Claims>,
    pub(super) isolation: Isolation,
    /// Lookup workers without a batch.
    pub(super) idle: AtomicUsize,
    /// The maximum number of batches that a writer applies at once.
    pub(super) bulk: AtomicUsize,
    /// Kinds of voices that the list did not return in an earlier pass.
    pub(super) unlisted: HashSet<String>,
    /// Whether earlier passes met a mass absence.
    pub(super) mass_absence: bool,
    /// Whether the key found voices within a day before this pass.
    pub(super) key_works: bool,
    pub(super) bus_is_down: AtomicBool,
    /// Failures of the event bus in a row; `None` until the database was read.
    pub(super) bus_failures: tokio::sync::Mutex<Option<u32>>,
    pub(super) queue_is_down: AtomicBool,
    tally: Mutex<Tally>,
}

/// The voices that were claimed, and those that are left to claim.
pub(super) struct Claims {
    pub(super) segments: Segments,
    /// Batches of the last page.
    pub(super) ready: VecDeque<Batch>,
    /// Voices that earlier passes isolated.
    pub(super) apart: Apart,
    /// Voices that are not claimed by this time are left to the next pass. Isolated voices have their own time limit.
    pub(super) until: Option<Instant>,
}

/// Voices that earlier passes isolated. They come after the others.
pub(super) enum Apart {
    /// There are some, but they are not read yet.
    Unread,
    Known(Isolated),
    /// The cursor is at these voices, until this time. New ones come first.
    Begun {
        until: Instant,
        all: usize,
        new: usize,
    },
    /// There are none, or they are claimed with the others.
    Nothing,
}

impl Apart {
    /// Whether there are any, as far as is known.
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

    /// Whether the time is over for the voices at the cursor: isolated ones, or the others.
    pub(super) fn is_over(&self) -> bool {
        let until = match self.apart {
            Apart::Begun { until, .. } => Some(until),
            Apart::Unread | Apart::Known(_) | Apart::Nothing => self.until,
        };
        until.is_some_and(|until| Instant::now() >= until)
    }

    /// Isolated voices that the cursor did not reach and that are not known to be unanswerable.
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

    /// Queues parts of a batch for lookups of their own. During an outage, the walk over the table continues; once many
    /// voices wait, failed ones are left to the next pass.
    pub(super) fn isolate(&self, parts: Vec<Batch>) {
        let is_outage = self.tally().looks_like_an_outage();
        if !is_outage || !self.isolation.is_pressing() {
            self.isolation.push(parts);
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the pass from claiming more voices. The first reason is kept.
    pub(super) fn stop(&self, stop_reason: StopReason) {
        self.tally().stop_reason.get_or_insert(stop_reason);
    }

    /// A database error replaces any other reason, because nothing more can be written. The first of several errors is
    /// kept.
    pub(super) fn database_failed(&self, error: &StoreError) {
        let stop_reason = &mut self.tally().stop_reason;
        if !matches!(stop_reason, Some(StopReason::Database(..))) {
            *stop_reason = Some(StopReason::Database(error.exit(), error.to_string()));
        }
    }
}
