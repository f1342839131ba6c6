//! When a pass stops, and how many voices it takes at once.

use std::time::Duration;

use tokio::time::Instant;

use super::progress::Progress;
use super::{BATCHES_AT_ONCE, Pass};
use crate::core::missing::MassAbsenceGuard;
use crate::core::report::StopReason;
use crate::provider::lookup::{BATCH, Mode, Strategy};

/// The part of the lease in which the voices of a batch should be looked up.
pub(super) const ASKING_TIME: Duration = Duration::from_secs(15);
/// The same if other voices may become due meanwhile.
const SHORT_ASKING_TIME: Duration = Duration::from_secs(2);
/// The longest pause requested by the provider that a pass waits for. After a longer one, the next run continues.
pub(crate) const MAX_COOLDOWN: Duration = Duration::from_secs(10);
/// Lookup workers in addition to the allowed number of concurrent requests.
const SPARE_WORKERS: usize = 2;

/// After a bulk that takes longer than `LONG_BULK`, the next one is smaller. After a full bulk that takes less than
/// `SHORT_BULK`, the next one is larger. So rows are not locked for too long, even if the database writes slowly.
const LONG_BULK: Duration = Duration::from_secs(1);
const SHORT_BULK: Duration = Duration::from_millis(250);

/// The maximum number of batches in the next bulk.
pub(super) fn next_bulk(most: usize, had: usize, took: Duration) -> usize {
    if took > LONG_BULK {
        (most / 2).max(1)
    } else if took < SHORT_BULK && had == most {
        (most * 2).min(BATCHES_AT_ONCE)
    } else {
        most
    }
}

impl Pass<'_> {
    pub(super) fn reason_to_stop(&self, progress: &Progress) -> Option<StopReason> {
        if let Some(reason) = self.provider.key_refused() {
            Some(StopReason::KeyRefused(reason.to_owned()))
        } else if let Some(guard) =
            Some(progress.tally().guard).filter(MassAbsenceGuard::finds_nothing)
        {
            Some(StopReason::OtherWorkspace(guard))
        } else if self.stop.is_cancelled() {
            Some(StopReason::Stopped)
        } else if self.is_over(progress) {
            Some(StopReason::TimeOver)
        } else if self.provider.is_down() || self.provider.held_for() > MAX_COOLDOWN {
            Some(StopReason::ProviderDown)
        } else {
            None
        }
    }

    /// Whether each voice needs a request of its own.
    pub(super) fn asks_singly(&self) -> bool {
        self.strategy == Strategy::Single || self.provider.has_no_list()
    }

    /// The number of voices per request.
    pub(crate) fn voices_a_request(&self) -> usize {
        match self.asks_singly() {
            true => 1,
            false => BATCH,
        }
    }

    pub(super) fn lookup_workers(&self) -> usize {
        self.provider.concurrency() + SPARE_WORKERS
    }

    pub(super) fn is_over(&self, progress: &Progress) -> bool {
        let over = |deadline| Instant::now() >= deadline;
        self.stop.is_cancelled() || progress.deadline.is_some_and(over)
    }

    /// The number of voices in a batch: as many as a list request can contain. If many voices need a request of their
    /// own, only as many as can be looked up within their lease.
    pub(super) fn batch_size(&self, progress: &Progress, mode: Mode) -> usize {
        let (requests_a_voice, latency) = match mode {
            // Each request may run into its time limit.
            Mode::Isolated => (1.0, self.provider.single_timeout()),
            Mode::Batch | Mode::Part | Mode::Single | Mode::OneByOne => {
                let requests = match self.asks_singly() {
                    true => 1.0,
                    false => progress.tally().singles_a_voice(),
                };
                (requests, self.provider.latency())
            }
        };
        let at_once = self.provider.concurrency();
        let in_flight = self.lookup_workers();
        let latency = latency.as_secs_f64().max(0.001);
        let time = match self.scope.continuous {
            true => SHORT_ASKING_TIME,
            false => ASKING_TIME,
        };
        let in_time = time.as_secs_f64() / latency * at_once as f64 / in_flight as f64;
        ((in_time / requests_a_voice.max(0.001)) as usize).clamp(1, BATCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_size_grows_when_quick_and_full_and_shrinks_when_slow() {
        let (quick, slow) = (Duration::from_millis(20), Duration::from_secs(2));
        assert_eq!(next_bulk(1, 1, quick), 2);
        assert_eq!(next_bulk(8, 8, quick), BATCHES_AT_ONCE);
        assert_eq!(next_bulk(8, 3, quick), 8);
        assert_eq!(next_bulk(8, 8, Duration::from_millis(500)), 8);
        assert_eq!(next_bulk(8, 3, slow), 4);
        assert_eq!(next_bulk(1, 1, slow), 1);
    }
}
