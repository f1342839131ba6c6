//! Being told to stop.

use std::process;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::exit::Exit;

/// Cancels `stop` on SIGTERM or SIGINT, after which a pass claims no more and finishes what is under
/// way. A second signal ends the process at once; leases then expire by themselves. Signals are caught
/// from when this returns.
pub fn on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be caught; the process ends at once when told to");
        return;
    };
    tokio::spawn(async move {
        for told in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if told > 1 {
                process::exit(Exit::Temporary.code().into());
            }
            info!("told to stop: finishing what is under way; a second signal ends it at once");
            stop.cancel();
        }
    });
}
