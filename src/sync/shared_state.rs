//! The state of the provider that processes share through the database during a pass.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Pass;
use super::pace::MAX_COOLDOWN;
use super::progress::Progress;
use crate::core::provider_state::StateChange;
use crate::core::report::StopReason;
use crate::store::StoreError;

/// How often the state of other processes is read.
const READ_EVERY: Duration = Duration::from_secs(1);

impl Pass<'_> {
    /// Until the batches are done, writes changes of the provider's state at once, and merges the state of other
    /// processes.
    pub(super) async fn sync_state(
        &self,
        progress: &Progress,
        done: &CancellationToken,
    ) -> Result<(), StoreError> {
        if self.scope.dry_run {
            return Ok(());
        }
        loop {
            let change = timeout(READ_EVERY, self.provider.state_changed());
            let shared = match done.run_until_cancelled(change).await {
                // A change that was taken must be written.
                Some(Ok(())) => Some(self.share_state(progress).await),
                Some(Err(_nothing_changed)) => {
                    let reading = self.read_shared_state(progress);
                    done.run_until_cancelled(reading).await
                }
                None => None,
            };
            match shared {
                Some(shared) => shared.inspect_err(|error| progress.database_failed(error))?,
                None => return Ok(()),
            }
        }
    }

    /// Shares that the circuit breaker opened or closed, or that the provider requested a pause.
    pub(super) async fn share_state(&self, progress: &Progress) -> Result<(), StoreError> {
        let account = self.provider.account();
        match self
            .provider
            .take_state_change()
            .filter(|_| !self.scope.dry_run)
        {
            Some(StateChange::Breaker(state)) => {
                let run_id = progress.run_id;
                self.store.save_provider_state(account, run_id, state).await
            }
            Some(StateChange::Pause(state)) => self.store.save_cooldown(account, state).await,
            None => Ok(()),
        }
    }

    async fn read_shared_state(&self, progress: &Progress) -> Result<(), StoreError> {
        let state = self.store.provider_state(self.provider.account()).await?;
        if self.provider.merge_remote(state) || state.cooldown > MAX_COOLDOWN {
            progress.stop(StopReason::ProviderDown);
        }
        Ok(())
    }
}
