//! How far a pass goes, how much it takes at once, and what it shares with others about the provider.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{BATCHES_AT_ONCE, POLL_TIME, Pass};
use crate::missing::Fuse;
use crate::provider::lookup::{BATCH, Mode, Strategy};
use crate::report::Halt;
use crate::standing::{News, Standing};
use crate::store::StoreError;

/// Part of the lease in which the voices of a batch should have been asked about.
pub(super) const ASKING_TIME: Duration = Duration::from_secs(15);
/// The same where others may come due meanwhile.
const SHORT_ASKING_TIME: Duration = Duration::from_secs(2);
/// A pause that the provider asks for is waited out, unless it is longer: then the next run goes on.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(10);
/// How often the database is asked what other processes learned of the provider.
const HEAR_EVERY: Duration = Duration::from_secs(1);

/// A bulk that takes longer than the one is followed by a smaller one, a full one that takes less than
/// the other by a larger one: rows stay locked no longer than an application bears, however slow it is
/// to write one.
const LONG_BULK: Duration = Duration::from_secs(1);
const SHORT_BULK: Duration = Duration::from_millis(250);

/// How many batches the next bulk may have.
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
    /// Heeds what others learned of the provider: while its breaker is open nobody asks, and when it
    /// is time to probe, one process does.
    pub(super) async fn begin(
        &self,
        progress: &Progress,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let may_probe = standing.wants_probe()
            && !self.scope.dry_run
            && self
                .store
                .claim_probe(self.provider.account(), progress.run_id)
                .await?;
        if standing.is_open() || standing.wants_probe() && !may_probe {
            progress.halt(Halt::ProviderDown);
        }
        self.provider.resume(standing);
        // Who may not ask leaves the jobs to others.
        if progress.tally().halt.is_none() {
            let hints = self.hints(progress).await;
            let mut claims = progress.claims.lock().await;
            claims.cursor.begin_with(hints);
            claims.until = self.scope.goes_on.then(|| Instant::now() + POLL_TIME);
        }
        self.all_batches(progress).await
    }

    pub(super) fn reason_to_halt(&self, progress: &Progress) -> Option<Halt> {
        if let Some(reason) = self.provider.key_refused() {
            Some(Halt::KeyRefused(reason.to_owned()))
        } else if let Some(fuse) = Some(progress.tally().fuse).filter(Fuse::is_hopeless) {
            Some(Halt::OtherWorkspace(fuse))
        } else if self.stop.is_cancelled() {
            Some(Halt::Stopped)
        } else if self.is_over(progress) {
            Some(Halt::TimeOver)
        } else if self.provider.is_down() || self.provider.held_for() > LONGEST_HOLD {
            Some(Halt::ProviderDown)
        } else {
            None
        }
    }

    pub(super) fn is_over(&self, progress: &Progress) -> bool {
        let over = |deadline| Instant::now() >= deadline;
        self.stop.is_cancelled() || progress.deadline.is_some_and(over)
    }

    /// Voices of a batch: as many as a list request carries, but no more than can be asked
    /// about within their lease where many take a request of their own.
    pub(super) fn batch_size(&self, progress: &Progress, mode: Mode) -> usize {
        let singly = self.strategy == Strategy::Single || self.provider.has_no_list();
        let (requests_a_voice, latency) = match mode {
            // Each may hang.
            Mode::Isolated => (1.0, self.provider.single_timeout()),
            Mode::Batch | Mode::Part | Mode::Single | Mode::OneByOne => {
                let requests = match singly {
                    true => 1.0,
                    false => progress.tally().singles_a_voice(),
                };
                (requests, self.provider.latency())
            }
        };
        let at_once = self.provider.concurrency();
        let in_flight = self.lookup_workers();
        let latency = latency.as_secs_f64().max(0.001);
        let time = match self.scope.goes_on {
            true => SHORT_ASKING_TIME,
            false => ASKING_TIME,
        };
        let in_time = time.as_secs_f64() / latency * at_once as f64 / in_flight as f64;
        ((in_time / requests_a_voice.max(0.001)) as usize).clamp(1, BATCH)
    }

    /// Until the batches are done, tells other processes at once what this one learns of the
    /// provider, and heeds what they learned.
    pub(super) async fn sync_state(
        &self,
        progress: &Progress,
        done: &CancellationToken,
    ) -> Result<(), StoreError> {
        if self.scope.dry_run {
            return Ok(());
        }
        loop {
            let news = timeout(HEAR_EVERY, self.provider.has_news());
            let shared = match done.run_until_cancelled(news).await {
                // Once it is taken it must be told.
                Some(Ok(())) => Some(self.tell_others(progress).await),
                Some(Err(_nothing_new)) => {
                    let hearing = self.hear_from_others(progress);
                    done.run_until_cancelled(hearing).await
                }
                None => None,
            };
            match shared {
                Some(shared) => shared.inspect_err(|error| progress.database_failed(error))?,
                None => return Ok(()),
            }
        }
    }

    /// Tells other processes where the breaker opened or closed, or a pause was asked for.
    pub(super) async fn tell_others(&self, progress: &Progress) -> Result<(), StoreError> {
        let account = self.provider.account();
        match self.provider.take_news().filter(|_| !self.scope.dry_run) {
            Some(News::Breaker(standing)) => {
                let run_id = progress.run_id;
                self.store.keep_standing(account, run_id, standing).await
            }
            Some(News::Pause(standing)) => self.store.keep_pause(account, standing).await,
            None => Ok(()),
        }
    }

    async fn hear_from_others(&self, progress: &Progress) -> Result<(), StoreError> {
        let standing = self.store.standing(self.provider.account()).await?;
        if self.provider.heed(standing) || standing.hold_for > LONGEST_HOLD {
            progress.halt(Halt::ProviderDown);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulks_grow_while_they_are_full_and_quick_and_shrink_when_they_are_slow() {
        let (quick, slow) = (Duration::from_millis(20), Duration::from_secs(2));
        assert_eq!(next_bulk(1, 1, quick), 2);
        assert_eq!(next_bulk(8, 8, quick), BATCHES_AT_ONCE);
        assert_eq!(next_bulk(8, 3, quick), 8);
        assert_eq!(next_bulk(8, 8, Duration::from_millis(500)), 8);
        assert_eq!(next_bulk(8, 3, slow), 4);
        assert_eq!(next_bulk(1, 1, slow), 1);
    }
}
