//! Whether the provider works. This is decided by requests that name no voice, because a failure of a request that
//! names one may be caused by the voice.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

use super::admission::Admission;
use super::error::ProviderError;
use super::request::{Attempt, Purpose, Try};
use super::{LIST, Provider, RequestDeadline, wire};
use crate::core::lookup::UnavailableKind;
use crate::provider::state::backoff::{self, Cause};

/// It has the form of an id, but no voice has it. "Not found" is an answer too.
pub(crate) const NO_VOICE: &str = "voiceSyncLiveness000";
/// After a failed liveness request, other failures count as failures of the provider for this time.
const FAILURE_HOLDS: Duration = Duration::from_secs(5);
/// How long to wait for answers to other requests.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long the list is not used if it fails while single lookups work.
const LIST_FAILS_FOR: Duration = Duration::from_secs(60);

impl Provider {
    /// Whether the provider answered any request since this moment. If there was none, sends a request that names no
    /// voice. `None` if that request could not be sent or was throttled.
    ///
    /// It uses the admission of a request that has ended.
    pub(super) async fn works(
        &self,
        since: Instant,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> Option<bool> {
        let mut failed_at = self.liveness_failed_at.lock().await;
        let others = self.traffic.is_served_since(since);
        if timeout(self.time_for_others(), others).await == Ok(true) {
            return Some(true);
        }
        let answered_at = self.traffic.answered_at();
        let holds = |at: Instant| at >= since || at.elapsed() < FAILURE_HOLDS;
        if self.is_down() || *failed_at > answered_at && failed_at.is_some_and(holds) {
            return Some(false);
        }
        match self.liveness(deadline, place).await {
            Err(ProviderError::Throttled { retry_after, .. }) => {
                let pause = backoff::pause(1, Cause::Throttled, None, fastrand::f64());
                self.traffic.begin_cooldown(retry_after.unwrap_or(pause));
                None
            }
            Err(ProviderError::Unavailable(failure))
                if failure.kind == UnavailableKind::NotAsked =>
            {
                None
            }
            Err(ProviderError::Unavailable(failure)) => {
                if let Some(pause) = failure.retry_after {
                    self.traffic.begin_cooldown(pause);
                }
                *failed_at = Some(Instant::now());
                Some(false)
            }
            Ok(())
            | Err(
                ProviderError::NotFound
                | ProviderError::NoSuchEndpoint(_)
                | ProviderError::Unauthorized(..)
                | ProviderError::Forbidden(..)
                | ProviderError::Rejected(..)
                | ProviderError::Unanswerable(_),
            ) => Some(true),
        }
    }

    /// Whether voices may be looked up. If the provider failed lately, one request that names no voice decides. It
    /// alternates between the list and a single lookup, because only one of them may work.
    pub(super) async fn is_ready(&self, deadline: RequestDeadline<'_>) -> bool {
        if self.traffic.opened() == 0 || self.is_down() {
            return true;
        }
        let Ok(place) = self.traffic.admit(deadline, false).await else {
            return false;
        };
        let opened = self.traffic.opened();
        // Another request may have found out meanwhile.
        let is_ready = opened == 0
            || match opened % 2 == 1 && !self.has_no_list() {
                true => shows_life(&self.shortest_list(deadline, &place).await),
                false => shows_life(&self.nobodys_voice(deadline, &place).await),
            };
        self.traffic.release(place);
        is_ready
    }

    /// How long to wait for requests in flight, whose answers may make a liveness request unnecessary.
    fn time_for_others(&self) -> Duration {
        let usual = self.latency().saturating_mul(4);
        usual.clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    /// The cheapest list request or, if there is no list or it fails, a single lookup. A list that fails while single
    /// lookups work is not used for a while.
    async fn liveness(
        &self,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> Result<(), ProviderError> {
        if self.has_no_list() {
            return self.nobodys_voice(deadline, place).await;
        }
        match self.shortest_list(deadline, place).await {
            Err(ProviderError::Unavailable(failure)) if failure.kind.may_lie_in_a_voice() => {}
            other => return other,
        }
        let answer = self.nobodys_voice(deadline, place).await;
        if shows_life(&answer) {
            warn!(url = %self.base, "the list of voices fails, but single lookups work; looking voices up one by one \
                                     for a minute");
            self.pass_over_list(LIST_FAILS_FOR);
        }
        answer
    }

    async fn shortest_list(
        &self,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> Result<(), ProviderError> {
        let path = format!("{LIST}?page_size=1&include_total_count=false");
        let purpose = Purpose::Liveness;
        let attempt = self.try_once(&path, purpose, deadline, Try::First, wire::list_page, place);
        attempt.await.map(drop).map_err(Attempt::error)
    }

    async fn nobodys_voice(
        &self,
        deadline: RequestDeadline<'_>,
        place: &Admission<'_>,
    ) -> Result<(), ProviderError> {
        let path = format!("/v1/voices/{NO_VOICE}");
        let purpose = Purpose::Liveness;
        let attempt = self.try_once(&path, purpose, deadline, Try::First, wire::voice, place);
        attempt.await.map(drop).map_err(Attempt::error)
    }
}

/// Whether this is an answer. "Not found" is one.
fn shows_life(answer: &Result<(), ProviderError>) -> bool {
    !matches!(
        answer,
        Err(ProviderError::Unavailable(_) | ProviderError::Throttled { .. })
    )
}
