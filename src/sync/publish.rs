//! Publishing: events of this pass, and events that earlier passes or other processes left in the outbox.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::Pass;
use super::finish::Ending;
use super::progress::Progress;
use crate::core::event::OutboxEvent;
use crate::events::backoff;
use crate::events::publisher::{BATCH, Publication, Publisher};
use crate::store::{BusPermit, LeasedEvents, StoreError};

/// How long a pass waits for events that another process is publishing, or was publishing when it crashed.
const OTHERS_EVENTS: Duration = Duration::from_secs(17);

/// How long a pass publishes the rest of the outbox if voices may become due meanwhile.
const OUTBOX_TIME: Duration = Duration::from_secs(1);
/// If the bus refuses this many events in a row, the pass publishes no more.
const MOST_REFUSED: u64 = 5 * BATCH as u64;

const POLL_OTHERS: Duration = Duration::from_millis(250);

impl Pass<'_> {
    /// Publishes the events of a bulk right after it is committed.
    pub(super) async fn publish_new(
        &self,
        progress: &Progress,
        events: Vec<OutboxEvent>,
    ) -> Result<(), StoreError> {
        match self.publisher.filter(|_| !events.is_empty()) {
            Some(publisher) => {
                let leased = LeasedEvents::from(events);
                self.publish(progress, publisher, &leased).await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Publishes events that are leased to this pass, marks the published ones, and releases the others. Events that
    /// the bus refuses come after all others from then on. After a failure of the bus, the rest of the pass only
    /// records events; the end of the pass and the next pass try again. Returns the number of published events.
    pub(super) async fn publish(
        &self,
        progress: &Progress,
        publisher: &Publisher,
        leased: &LeasedEvents,
    ) -> Result<u64, StoreError> {
        let Publication {
            published,
            refused,
            refusal,
            failure: _,
        } = self
            .try_to_publish(progress, publisher, &leased.events)
            .await?;
        self.store
            .settle_events(leased, &published, &refused)
            .await?;
        let mut tally = progress.tally();
        tally.counts.events_published += published.len() as u64;
        if let Some(reason) = refusal {
            let events = refused.len();
            warn!(
                events, %reason,
                "the event bus refuses these events; they stay in the outbox, and other events are published"
            );
            tally.bus_error.get_or_insert(reason);
        }
        Ok(published.len() as u64)
    }

    /// Publishes one batch at a time, so that only one of them waits for a bus that hangs.
    async fn try_to_publish(
        &self,
        progress: &Progress,
        publisher: &Publisher,
        events: &[OutboxEvent],
    ) -> Result<Publication, StoreError> {
        let mut failures = progress.bus_failures.lock().await;
        // A database that failed for one batch would fail for the others too.
        if progress.bus_is_down.load(Ordering::Relaxed) || self.has_no_database(progress) {
            return Ok(Publication::default());
        }
        let failures = match *failures {
            Some(ref mut failures) => failures,
            None => match self.bus_turn(progress, publisher).await? {
                BusPermit::Works => failures.insert(0),
                BusPermit::Probe { failures: before } => failures.insert(before),
                BusPermit::BackingOff(pause) => {
                    let pause_ms = pause.as_millis();
                    let says = format!("it failed recently; the next try is in {pause_ms} ms");
                    // A failure of this pass says more.
                    if progress.tally().bus_error.is_none() {
                        self.bus_fails(progress, says);
                    }
                    progress.bus_is_down.store(true, Ordering::Relaxed);
                    return Ok(Publication::default());
                }
            },
        };
        let publication = publisher.publish(events).await;
        match &publication.failure {
            None => {
                if std::mem::take(failures) > 0 {
                    if !self.scope.continuous {
                        info!("the event bus works again");
                    }
                    // If this fails, these events must still be marked as published.
                    if let Err(error) = self.store.bus_works(publisher.bus()).await {
                        warn!(%error, "other processes could not be informed");
                    }
                }
            }
            Some(reason) => {
                self.bus_fails(progress, reason.clone());
                let failures = failures.saturating_add(1);
                let pause = backoff::pause(failures, fastrand::f64());
                self.store
                    .bus_failed(publisher.bus(), failures, pause)
                    .await?;
            }
        }
        Ok(publication)
    }

    fn bus_fails(&self, progress: &Progress, reason: String) {
        progress.bus_is_down.store(true, Ordering::Relaxed);
        if !self.scope.continuous {
            error!(event = "events_not_published", %reason, "events cannot be published; they stay in the outbox, and the next pass tries again");
        }
        progress.tally().bus_error = Some(reason);
    }

    async fn bus_turn(
        &self,
        progress: &Progress,
        publisher: &Publisher,
    ) -> Result<BusPermit, StoreError> {
        let turn = self
            .store
            .bus_permit(publisher.bus(), progress.run_id)
            .await;
        turn.inspect_err(|error| progress.database_failed(error))
    }

    /// Publishes the rest of the outbox, from this pass or earlier ones. It waits for events that another process has
    /// leased: the lease of a crashed process expires in a few seconds.
    pub(super) async fn publish_rest(
        &self,
        progress: &Progress,
        ending: &mut Ending,
    ) -> Result<(), StoreError> {
        let Some(publisher) = self.publisher else {
            return Ok(());
        };
        // If the bus failed, the rest of the pass only recorded events; by now it may be possible to try again.
        if progress.bus_is_down.swap(false, Ordering::Relaxed) {
            *progress.bus_failures.lock().await = None;
        }
        let mut pending = self.store.pending_events(None).await?;
        // Other processes may record events while this pass ends; they publish these events themselves.
        let ours = pending.newest;
        let began = Instant::now();
        let (mut refused_in_a_row, mut is_counted) = (0, true);
        // A pass that has to stop still tries once.
        for round in 0.. {
            let others_only = pending.unleased == 0;
            let is_over = match self.scope.continuous {
                true => self.is_over(progress) || began.elapsed() >= OUTBOX_TIME,
                false => self.is_over(progress),
            };
            if pending.all == 0
                || progress.bus_is_down.load(Ordering::Relaxed)
                || round > 0 && is_over
                || refused_in_a_row >= pending.all.min(MOST_REFUSED)
                || others_only && (self.scope.continuous || began.elapsed() >= OTHERS_EVENTS)
            {
                break;
            }
            let leased = self.store.lease_events(BATCH as u32).await?;
            let events = leased.events.len() + leased.unknown.len();
            let published = match events {
                0 => {
                    sleep(POLL_OTHERS).await;
                    0
                }
                _ => self.publish(progress, publisher, &leased).await?,
            };
            match published {
                0 => refused_in_a_row += events as u64,
                _ => refused_in_a_row = 0,
            }
            (self.observe)(&progress.tally().counts);
            // Counting takes longer the more events there are, so they are not counted while there are many.
            is_counted = events < BATCH;
            if is_counted {
                pending = self.store.pending_events(ours).await?;
            } else {
                pending.all = pending.all.saturating_sub(published);
                pending.unleased = pending.unleased.saturating_sub(published);
            }
        }
        if !is_counted {
            pending = self.store.pending_events(ours).await?;
        }
        progress.tally().counts.events_pending = pending.all;
        ending.events_stuck = match self.scope.continuous {
            true => pending.unleased > 0 && progress.bus_is_down.load(Ordering::Relaxed),
            false => pending.all > 0,
        };
        if ending.events_stuck && !self.scope.continuous {
            warn!(
                events.pending = pending.all,
                "events wait in the outbox; the next pass publishes them"
            );
        }
        Ok(())
    }
}
