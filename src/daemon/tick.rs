//! One turn of the daemon.

use std::time::Duration;

use crate::events::relay::Relay;
use crate::exit::Exit;
use crate::metrics::Metrics;
use crate::pass::{Pass, Scope, Which};
use crate::report::Report;
use crate::store::{Agenda, Overview, Upcoming};

/// Voices that are looked at together. If more are due, they have their turn afterwards.
pub const DUE_AT_ONCE: u32 = 10_000;

/// What a turn came to.
#[derive(Debug)]
pub enum Tick {
    /// Nothing was due.
    Idle {
        /// When something will be; `None` if nothing is in processing.
        next_in: Option<Duration>,
    },
    /// There was a pass.
    Passed(Box<Report>),
    /// The database could not be asked what is due.
    Unreadable {
        /// What `sync-once` would exit with.
        exit: Exit,
        /// Why.
        says: String,
    },
}

/// Asks about the voices that are due, if there are any, and publishes events that wait. The pass's
/// own scope says how; which voices, the agenda says.
pub async fn tick(pass: Pass<'_>, metrics: &Metrics) -> Tick {
    let bus = pass.relay.map(Relay::bus);
    let agenda = match pass.store.agenda(DUE_AT_ONCE, bus).await {
        Ok(agenda) => agenda,
        Err(error) => {
            return Tick::Unreadable {
                exit: error.exit(),
                says: error.to_string(),
            };
        }
    };
    let has_news = agenda.events_wait && pass.relay.is_some();
    if !has_news && !agenda.voices.iter().any(is_due) {
        metrics.succeeded();
        if agenda.voices.is_empty() && !agenda.events_wait {
            metrics.stand(&Overview::default());
        }
        return Tick::Idle {
            next_in: next_in(&agenda),
        };
    }
    let scope = Scope {
        which: Which::Due(agenda),
        ..pass.scope.clone()
    };
    let report = Pass {
        scope: &scope,
        ..pass
    }
    .run()
    .await;
    metrics.passed(&report);
    metrics.press(pass.provider.pressure());
    // Not worth failing for: the next turn finds out by itself what is wrong.
    if let Ok(overview) = pass.store.overview().await {
        metrics.stand(&overview);
    }
    Tick::Passed(Box::new(report))
}

fn is_due(voice: &Upcoming) -> bool {
    voice.due_in.is_zero()
}

fn next_in(agenda: &Agenda) -> Option<Duration> {
    agenda.voices.first().map(|voice| voice.due_in)
}
