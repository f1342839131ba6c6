//! Shutdown on signals.

use std::process;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::core::exit::Exit;
use crate::deadline::Deadline;
use crate::failpoint;

/// A command ends within this time after a signal, even if something hangs. Kubernetes waits for 30 s.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(25);

/// Cancels `stop` on SIGTERM or SIGINT. A pass then claims no more voices and finishes its work in progress, until
/// `deadline` at the latest. A second signal ends the process at once; leases then expire. Signals are handled as soon
/// as this function has returned.
pub(crate) fn on_signal(stop: CancellationToken, deadline: Deadline) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be caught; a signal ends the process at once");
        return;
    };
    tokio::spawn(async move {
        for signals in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if signals > 1 {
                process::exit(Exit::Temporary.code().into());
            }
            info!(
                "received a signal: finishing lookups and writes; a second signal ends the process at once"
            );
            stop.cancel();
            let limit = failpoint::limit("shutdown.timeout", SHUTDOWN_TIMEOUT);
            deadline.bring_forward(Instant::now() + limit);
        }
    });
}
