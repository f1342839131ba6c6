//! One turn of the daemon.

use std::time::{Duration, Instant};

use tracing::warn;

use super::duty_cycle::DutyCycle;
use crate::core::exit::Exit;
use crate::core::report::Report;
use crate::events::publisher::Publisher;
use crate::store::{Agenda, StoreError, Upcoming};
use crate::sync::{Pass, Scope, Which};
use crate::telemetry::exposition::Metrics;

/// Voices that are looked at together. If more are due, they have their turn afterwards.
pub const DUE_AT_ONCE: u32 = 10_000;

/// What a turn came to.
#[derive(Debug)]
pub enum Tick {
    /// Nothing was due.
    Idle {
        /// When something will be; `None` if nothing is scheduled.
        next_in: Option<Duration>,
    },
    /// There was a pass.
    Passed(Box<Report>),
    /// The database could not be asked what is due.
    Unreadable {
        /// What `sync-once` would exit with.
        exit: Exit,
        says: String,
    },
}

/// What turns do at a bounded cost to the database, where there are many voices.
#[derive(Debug)]
pub struct DutyCycles {
    unscheduled: DutyCycle,
    overview: DutyCycle,
    /// The version of the database in which there were no voices without a schedule, and when that was seen.
    none_unscheduled: Option<(String, Instant)>,
}

/// How old the metrics of the backlog may be where nothing happens.
const IDLE_OVERVIEW: Duration = Duration::from_secs(60);
/// A voice without a schedule comes from a write, or from a lease that ended by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Default for DutyCycles {
    fn default() -> Self {
        Self {
            unscheduled: DutyCycle::one_of(20),
            overview: DutyCycle::one_of(100),
            none_unscheduled: None,
        }
    }
}

/// Asks about the voices that are due, if there are any, and publishes events that wait. The pass's
/// own scope says how; which voices, the agenda says.
pub async fn tick(pass: Pass<'_>, metrics: &Metrics, looks: &mut DutyCycles) -> Tick {
    let agenda = match agenda(&pass, looks).await {
        Ok(agenda) => agenda,
        Err(error) => {
            return Tick::Unreadable {
                exit: error.exit(),
                says: error.to_string(),
            };
        }
    };
    let events_wait = agenda.events_wait && pass.publisher.is_some();
    if !events_wait && !agenda.voices.iter().any(is_due) {
        metrics.succeeded();
        let pause = match agenda.voices.is_empty() {
            true => Duration::ZERO,
            false => IDLE_OVERVIEW,
        };
        overview(&pass, metrics, looks, pause).await;
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
    overview(&pass, metrics, looks, Duration::ZERO).await;
    Tick::Passed(Box::new(report))
}

/// Not worth failing for: the next turn finds out by itself what is wrong.
async fn overview(pass: &Pass<'_>, metrics: &Metrics, looks: &mut DutyCycles, pause: Duration) {
    let began = Instant::now();
    if !looks.overview.is_due_after(pause, began) {
        return;
    }
    let overview = pass.store.overview().await;
    looks.overview.took(began.elapsed(), Instant::now());
    if let Ok(overview) = overview {
        metrics.stand(&overview);
    }
}

/// What is due and what comes next. Voices without a schedule are looked for where anything was written since there
/// were none, and not each time where there are many others, except if nothing else is there.
async fn agenda(pass: &Pass<'_>, looks: &mut DutyCycles) -> Result<Agenda, StoreError> {
    let bus = pass.publisher.map(Publisher::bus);
    let mut agenda = pass.store.agenda(DUE_AT_ONCE, bus).await?;
    let began = Instant::now();
    let is_unchanged = |(version, at): &(String, Instant)| {
        *version == agenda.version && began.duration_since(*at) < LOOK_AGAIN
    };
    let were_none = looks.none_unscheduled.as_ref().is_some_and(is_unchanged);
    if !were_none && (agenda.voices.is_empty() || looks.unscheduled.is_due(began)) {
        let unscheduled = pass.store.unscheduled(DUE_AT_ONCE).await;
        looks.unscheduled.took(began.elapsed(), Instant::now());
        let unscheduled = match unscheduled {
            Err(error) if !agenda.voices.is_empty() => {
                warn!(%error, "new voices could not be looked for; those that are known are looked up meanwhile");
                return Ok(agenda);
            }
            unscheduled => unscheduled?,
        };
        let is_none = unscheduled.is_empty();
        looks.none_unscheduled = is_none.then(|| (agenda.version.clone(), began));
        agenda.begin_with(unscheduled, DUE_AT_ONCE);
    }
    Ok(agenda)
}

fn is_due(voice: &Upcoming) -> bool {
    voice.due_in.is_zero()
}

fn next_in(agenda: &Agenda) -> Option<Duration> {
    agenda.voices.first().map(|voice| voice.due_in)
}
