//! Notifications to systemd: `sd_notify(3)`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;
use tracing::warn;

use super::Health;

/// Extends the start timeout in microseconds while the daemon waits for the database.
const ANOTHER_MINUTE: u32 = 60_000_000;

/// Sends notifications to the supervisor, if it expects them.
#[derive(Default)]
pub struct Supervisor {
    was_told: AtomicBool,
}

impl Supervisor {
    /// Configuration, database and schema are valid: units that depend on the service may start.
    pub(super) fn ready(&self) {
        if !self.was_told.swap(true, Ordering::Relaxed) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// A start that waits for the database has not failed.
    pub(super) fn waits(&self) {
        if !self.was_told.load(Ordering::Relaxed) {
            tell(&[NotifyState::ExtendTimeoutUsec(ANOTHER_MINUTE)]);
        }
    }

    pub(super) fn status(&self, text: &str) {
        tell(&[NotifyState::Status(text)]);
    }

    /// The daemon finishes its work in progress.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Notifies the watchdog as long as the daemon's loop runs, if the supervisor expects this. Never returns.
    pub async fn watchdog(&self, health: &Health) {
        let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
            return std::future::pending().await;
        };
        let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            if health.is_alive() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be notified");
    }
}
