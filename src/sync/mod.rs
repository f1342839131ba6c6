//! One pass over the voices in processing: claim → look up → judge → apply → publish.
//!
//! There are two kinds of workers. Lookup workers claim, look up and judge one batch after the other. There are a few
//! more of them than concurrent requests are allowed, so that requests continue while other workers claim. Writers
//! apply and publish the judged batches. Claims and writes are bulk statements for all waiting batches: the slower the
//! database, the fewer statements it gets. No transaction is open and no row is locked during a request to the
//! provider.

mod apply;
mod batch;
mod claim;
mod finish;
mod hints;
mod isolation;
mod judge;
mod look_up;
mod nudge;
mod pace;
mod progress;
mod publish;
mod scope;
mod segments;
mod shared_state;
mod start;
mod tally;

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::{join, join_all};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::batch::Judged;
pub use self::nudge::Nudger;
pub(crate) use self::pace::MAX_COOLDOWN;
use self::progress::Progress;
pub use self::scope::{Scope, Which};
use crate::core::provider_state::ProviderState;
use crate::core::report::{Counts, Report};
use crate::core::verdict::Rules;
use crate::events::publisher::Publisher;
use crate::events::queue::Queue;
use crate::provider::Provider;
use crate::provider::lookup::Strategy;
use crate::store::{PriorState, Store, StoreError};
use crate::telemetry::metrics::PassMetrics;

/// One writer can publish while the other one applies.
const WRITERS: usize = 2;
/// The maximum number of batches that one statement claims or applies.
const BATCHES_AT_ONCE: usize = 10;

/// The dependencies and settings of a pass.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub store: &'a Store,
    pub provider: &'a Provider,
    /// Publishes events, if there is an event bus.
    pub publisher: Option<&'a Publisher>,
    /// The application's queue of waiting voices, if there is one.
    pub queue: Option<&'a Queue>,
    /// Nudges voices without a preview, if this is configured.
    pub nudger: Option<&'a Nudger>,
    pub rules: &'a Rules,
    /// How long a voice must be missing before it fails.
    pub missing_after: Duration,
    pub strategy: Strategy,
    pub scope: &'a Scope,
    /// When this is cancelled, the pass claims no more voices.
    pub stop: &'a CancellationToken,
    pub metrics: &'a PassMetrics,
    /// Called with the counts after every batch.
    pub observe: &'a dyn Fn(&Counts),
}

impl Pass<'_> {
    /// Runs the pass to its end. The report contains everything that happened, including database errors.
    pub async fn run(&self) -> Report {
        let (started, started_at) = (Instant::now(), Utc::now());
        let prior = self.store.load_state(self.provider.account()).await;
        let (prior, unreadable) = match prior {
            Ok(prior) => (prior, None),
            Err(error) => (PriorState::default(), Some(error)),
        };
        let (spent, provider_state) = (prior.spent, prior.provider);
        let progress = self.start(prior, started);
        let outcome = match unreadable {
            Some(error) => Err(error),
            None => {
                self.provider.resume_budget(spent);
                self.all_batches(&progress, provider_state).await
            }
        };
        if let Err(error) = outcome {
            progress.database_failed(&error);
        }
        self.finish(progress, started_at).await
    }

    /// Runs the five steps for all batches.
    async fn all_batches(
        &self,
        progress: &Progress,
        provider_state: ProviderState,
    ) -> Result<(), StoreError> {
        self.begin(progress, provider_state).await?;
        let workers = self.lookup_workers();
        let (judged, to_write) = mpsc::channel(workers);
        let to_write = Mutex::new(to_write);
        let done = CancellationToken::new();
        let lookups =
            join_all((0..workers).map(|_| self.look_up_batches(progress, judged.clone())));
        drop(judged);
        let writes = async {
            let outcomes = join_all((0..WRITERS).map(|_| self.write(progress, &to_write))).await;
            to_write.lock().await.close();
            done.cancel();
            outcomes
        };
        let ((looked_up, written), synced) =
            join(join(lookups, writes), self.sync_state(progress, &done)).await;
        looked_up
            .into_iter()
            .chain(written)
            .chain([synced])
            .collect()
    }

    /// Claims, looks up and judges one batch after the other until there are no more.
    async fn look_up_batches(
        &self,
        progress: &Progress,
        judged: mpsc::Sender<Judged>,
    ) -> Result<(), StoreError> {
        while let Some((mut batch, _under_way)) = self.claim(progress).await? {
            let step = self.look_up(progress, &batch).await;
            progress.isolate(batch.take_failed(&step.failed));
            let answers = self.judge(progress, batch, &step.lookups);
            // The receiver is gone only if all writers failed, and they reported that.
            if judged.send(answers).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Applies and publishes all judged batches that wait, until there will be no more.
    async fn write(
        &self,
        progress: &Progress,
        judged: &Mutex<mpsc::Receiver<Judged>>,
    ) -> Result<(), StoreError> {
        // An error that the database returned to one writer would meet the other one too.
        while !self.has_no_database(progress) {
            let mut batches = Vec::new();
            let most = progress.bulk.load(Ordering::Relaxed);
            let waiting = judged.lock().await.recv_many(&mut batches, most).await;
            if waiting == 0 {
                break;
            }
            let began = Instant::now();
            let written = async {
                let events = self.apply(progress, batches).await?;
                let bulk = pace::next_bulk(most, waiting, began.elapsed());
                progress.bulk.store(bulk, Ordering::Relaxed);
                self.publish_new(progress, events).await
            };
            let written = written.await;
            written.inspect_err(|error| progress.database_failed(error))?;
            (self.observe)(&progress.tally().counts);
        }
        Ok(())
    }
}
