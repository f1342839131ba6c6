//! Claiming: selects the voices that a worker looks up next, and leases them.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::batch::{Batch, cut};
use super::isolation::UnderWay;
use super::progress::{Apart, Claims, Progress};
use super::{BATCHES_AT_ONCE, Pass};
use crate::provider::lookup::Mode;
use crate::store::StoreError;

/// The maximum number of voices that are isolated from the start of a pass.
const ISOLATED_AT_ONCE: u32 = 10_000;
/// How long they are looked up. They are likely to be bad, and some bad voices run into the time limit of each request.
/// The next pass continues with those whose last lookup is the oldest.
const ISOLATED_TIME: Duration = Duration::from_secs(20);
/// The same if other voices may become due meanwhile.
const SHORT_ISOLATED_TIME: Duration = Duration::from_secs(2);

/// The next step of a worker.
enum Next {
    LookUp(Batch),
    /// Wait: batches of other workers may return parts.
    Wait,
    Nothing,
}

impl Pass<'_> {
    /// Leases the next voices, also for other workers that wait. `None` if there are no more, or if the pass has to
    /// stop.
    pub(super) async fn claim<'p>(
        &self,
        progress: &'p Progress,
    ) -> Result<Option<(Batch, UnderWay<'p>)>, StoreError> {
        progress.idle.fetch_add(1, Ordering::Relaxed);
        // Lets other workers become idle first, so that the first claim serves all of them.
        yield_now().await;
        let claimed = loop {
            let mut changed = pin!(progress.isolation.changed());
            changed.as_mut().enable();
            let mut claims = progress.claims.lock().await;
            match self.claim_next(progress, &mut claims).await {
                Ok(Next::LookUp(batch)) => break Ok(Some((batch, progress.isolation.begin()))),
                Ok(Next::Wait) => {
                    drop(claims);
                    changed.await;
                }
                Ok(Next::Nothing) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        progress.idle.fetch_sub(1, Ordering::Relaxed);
        claimed
    }

    async fn claim_next(
        &self,
        progress: &Progress,
        claims: &mut Claims,
    ) -> Result<Next, StoreError> {
        loop {
            if self.has_no_database(progress) {
                return Ok(Next::Nothing);
            }
            let (is_unclear, is_outage) = {
                let tally = progress.tally();
                (!tally.any_answered, tally.looks_like_an_outage())
            };
            if progress.isolation.is_pressing()
                && !is_outage
                && let Some(part) = progress.isolation.pop(is_unclear)
            {
                return Ok(Next::LookUp(part));
            }
            if let Some(batch) = claims.ready.pop_front() {
                return Ok(Next::LookUp(batch));
            }
            let mode = match claims.is_isolated() {
                true => Mode::Isolated,
                false => Mode::Batch,
            };
            let size = self.batch_size(progress, mode);
            let idle = progress.idle.load(Ordering::Relaxed);
            let next = claims.segments.next(size * idle.clamp(1, BATCHES_AT_ONCE));
            let next = next.filter(|_| !claims.is_over());
            let has_parts = !progress.isolation.is_empty();
            if next.is_none() && is_outage {
                // There may still be answers about voices that earlier passes isolated.
                if self.begin_isolated(progress, claims).await? {
                    continue;
                }
                self.provider.lookups_fail();
            }
            if let Some(stop_reason) = self.reason_to_stop(progress)
                && (next.is_some() || has_parts || stop_reason.is_about_the_key())
            {
                progress.stop(stop_reason);
            }
            let stopped = progress.tally().stop_reason.is_some();
            let Some((selection, limit)) = next.filter(|_| !stopped) else {
                // If the pass has to stop, these parts are released.
                if let Some(part) = progress.isolation.pop(is_unclear) {
                    return Ok(Next::LookUp(part));
                }
                if !progress.isolation.is_idle() {
                    return Ok(Next::Wait);
                }
                match stopped || !self.begin_isolated(progress, claims).await? {
                    true => return Ok(Next::Nothing),
                    false => continue,
                }
            };
            let claimed_at = Instant::now();
            let page = match self.scope.dry_run {
                true => self.store.peek(&selection, limit).await,
                false => self.store.claim(progress.run_id, &selection, limit).await,
            };
            // A database error here would meet each of the other workers too, each after its own time limit.
            let mut page = page.inspect_err(|error| progress.database_failed(error))?;
            let place = claims.segments.advance(&selection, &mut page);
            progress.tally().claimed(&page);
            self.metrics.reclaimed.inc_by(page.reclaimed);
            claims
                .ready
                .extend(cut(page, size, place, claimed_at, mode));
        }
    }

    /// Continues with the voices that earlier passes isolated, after all others have been looked up. Returns whether
    /// there may be more to claim.
    async fn begin_isolated(
        &self,
        progress: &Progress,
        claims: &mut Claims,
    ) -> Result<bool, StoreError> {
        let isolated = match std::mem::replace(&mut claims.apart, Apart::Nothing) {
            Apart::Nothing => return Ok(false),
            begun @ Apart::Begun { .. } => {
                claims.apart = begun;
                return Ok(false);
            }
            Apart::Known(isolated) => isolated,
            Apart::Unread => {
                let isolated = self.store.isolated(progress.run_id, ISOLATED_AT_ONCE).await;
                isolated.inspect_err(|error| progress.database_failed(error))?
            }
        };
        if isolated.rows.is_empty() {
            // The part of the limit that was reserved for them is free for others.
            return Ok(claims.segments.release());
        }
        let longest = match self.scope.continuous {
            true => SHORT_ISOLATED_TIME,
            false => ISOLATED_TIME,
        };
        claims.apart = Apart::Begun {
            until: Instant::now() + longest,
            all: isolated.rows.len(),
            new: isolated.new,
        };
        claims
            .segments
            .continue_with(isolated.rows, isolated.read_at);
        Ok(true)
    }
}
