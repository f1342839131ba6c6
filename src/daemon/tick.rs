//! One tick of the daemon.

use std::mem;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::MIN_PAUSE;
use super::duty_cycle::DutyCycle;
use crate::core::exit::Exit;
use crate::core::report::Report;
use crate::core::request_budget::RequestBudget;
use crate::core::schedule::{self, Candidate, Chance};
use crate::core::survival::Survival;
use crate::events::publisher::Publisher;
use crate::store::{Agenda, Asked, StoreError, Upcoming};
use crate::sync::{Pass, Scope, Which};
use crate::telemetry::exposition::Metrics;

/// The maximum number of due voices that are read at once. Further ones follow in later ticks.
pub const DUE_AT_ONCE: u32 = 10_000;

/// The result of a tick.
#[derive(Debug)]
pub enum Tick {
    /// Nothing was due.
    Idle {
        /// The time until the next voice is due; `None` if nothing is scheduled.
        next_in: Option<Duration>,
    },
    /// A pass ran.
    Passed {
        report: Box<Report>,
        /// The time until the request budget has room for another pass.
        free_in: Duration,
    },
    /// The process is to stop, and nothing was in progress.
    Stopped,
    /// The voices that are due could not be read from the database.
    Unreadable {
        /// The exit code that `sync-once` would return.
        exit: Exit,
        says: String,
    },
}

/// Limits the cost to the database of work that grows with the number of voices.
#[derive(Debug)]
pub struct DutyCycles {
    unscheduled: DutyCycle,
    overview: DutyCycle,
    /// The completion times that were last read from the ledger.
    survival: Survival,
    learning: DutyCycle,
    /// The version of the database at which no voice was without a schedule, and the time of the last full check.
    none_unscheduled: Option<(String, Instant)>,
    /// Whether the last query for voices without a schedule failed. Only the first failure is a warning.
    unscheduled_failed: bool,
}

/// The maximum age of the backlog's metrics if nothing happens.
const IDLE_OVERVIEW: Duration = Duration::from_secs(60);
/// The same if no voice is in processing; then counting is cheap.
const EMPTY_OVERVIEW: Duration = Duration::from_secs(5);
/// The maximum age of the completion times.
const LEARN_AGAIN: Duration = Duration::from_secs(60);
/// The maximum time between full checks for voices without a schedule. Such voices come from a write, or from a lease
/// that expired.
const LOOK_AGAIN: Duration = Duration::from_secs(120);

impl Default for DutyCycles {
    fn default() -> Self {
        Self {
            unscheduled: DutyCycle::one_of(20),
            overview: DutyCycle::one_of(200),
            survival: Survival::default(),
            learning: DutyCycle::one_of(100),
            none_unscheduled: None,
            unscheduled_failed: false,
        }
    }
}

/// Looks up the voices for which the request budget has room, if they justify a request, and publishes waiting events.
/// The pass's own scope is the template.
pub async fn tick(
    pass: Pass<'_>,
    budget: RequestBudget,
    metrics: &Metrics,
    looks: &mut DutyCycles,
) -> Tick {
    let room = pass.voices_a_request() * budget.requests_in(MIN_PAUSE);
    let reading = pass.stop.run_until_cancelled(agenda(&pass, room, looks));
    let mut agenda = match reading.await {
        None => return Tick::Stopped,
        Some(Ok(agenda)) => agenda,
        Some(Err(error)) => {
            metrics.exited(error.exit());
            return Tick::Unreadable {
                exit: error.exit(),
                says: error.to_string(),
            };
        }
    };
    let next_in = next_in(&agenda);
    if !agenda.voices.is_empty() {
        learn(&pass, looks).await;
    }
    let any_hinted = agenda.voices.iter().any(is_hinted);
    let is_isolated = |voice: &Upcoming| voice.is_isolated && voice.due_in.is_zero();
    let any_isolated = agenda.voices.iter().any(is_isolated);
    agenda.voices = match agenda.budget_in {
        Duration::ZERO => chosen(agenda.voices, room, &looks.survival),
        // Not while isolated voices wait. Each of them needs a request of its own, and a steady flow of hints could
        // delay them forever.
        budget_in if any_hinted && !any_isolated && budget.bears_a_hint(budget_in) => {
            chosen(agenda.voices, room, &looks.survival)
        }
        _ => Vec::new(),
    };
    let events_wait = agenda.events_wait && pass.publisher.is_some();
    if !events_wait && agenda.voices.is_empty() {
        metrics.succeeded();
        let pause = match next_in {
            None => EMPTY_OVERVIEW,
            Some(_) => IDLE_OVERVIEW,
        };
        overview(&pass, metrics, looks, pause).await;
        return Tick::Idle {
            next_in: next_in.map(|next| next.max(agenda.budget_in)),
        };
    }
    let scope = Scope {
        which: Which::Due(agenda),
        budget: Some(budget),
        ..pass.scope.clone()
    };
    let pass = Pass {
        scope: &scope,
        ..pass
    };
    let began = Instant::now();
    let report = pass.run().await;
    let taken = pass.spending(report.counts.lookup_requests());
    let free_in = taken.map_or(Duration::ZERO, |spending| {
        spending.taken.saturating_sub(began.elapsed())
    });
    metrics.passed(&report);
    if report.exit_code == Exit::Success && !report.counts.only_met_leases() {
        metrics.succeeded();
    }
    metrics.press(pass.provider.pressure());
    overview(&pass, metrics, looks, Duration::ZERO).await;
    let report = Box::new(report);
    Tick::Passed { report, free_in }
}

/// An error is not fatal: the earlier completion times remain usable.
async fn learn(pass: &Pass<'_>, looks: &mut DutyCycles) {
    let began = Instant::now();
    if !looks.learning.is_due_after(LEARN_AGAIN, began) {
        return;
    }
    let times = pass.store.completion_times_by_kind().await;
    looks.learning.took(began.elapsed(), Instant::now());
    match times {
        Ok(times) => looks.survival = Survival::new(times),
        Err(error) => warn!(%error, "the completion times in the ledger could not be read"),
    }
}

/// Whether a hint made the voice due and it can share a request.
fn is_hinted(voice: &Upcoming) -> bool {
    voice.is_hinted && !voice.is_isolated && voice.due_in.is_zero()
}

/// The voices that are looked up now.
fn chosen(voices: Vec<Upcoming>, room: usize, survival: &Survival) -> Vec<Upcoming> {
    let is_due = |voice: &Upcoming| voice.due_in.is_zero();
    let (isolated, others): (Vec<_>, Vec<_>) =
        voices.into_iter().partition(|voice| voice.is_isolated);
    let candidate = |voice: &Upcoming| match voice.asked {
        _ if is_hinted(voice) => Candidate::Hinted,
        None if is_due(voice) && voice.kind.is_none() => Candidate::New,
        None => Candidate::Seldom(Chance {
            likelihood: 0.0,
            is_due: is_due(voice),
        }),
        Some(Asked { ago, age, is_often }) => {
            let chance = Chance {
                likelihood: survival.likelihood(voice.kind.as_deref(), age, ago),
                is_due: is_due(voice),
            };
            match is_often {
                true => Candidate::Soon(chance),
                false => Candidate::Seldom(chance),
            }
        }
    };
    let candidates: Vec<_> = others.iter().map(candidate).collect();
    let places = schedule::choose(&candidates, room);
    let mut others: Vec<_> = others.into_iter().map(Some).collect();
    let chosen = places.into_iter().filter_map(|place| others[place].take());
    chosen.chain(isolated.into_iter().filter(is_due)).collect()
}

/// An error is not fatal: the next tick finds out what is wrong.
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

/// The voices that are due, and those that come next. Voices without a schedule are searched for if anything was
/// written since there were none. If there are many other voices, this is not done every time, unless nothing else is
/// due.
async fn agenda(
    pass: &Pass<'_>,
    room: usize,
    looks: &mut DutyCycles,
) -> Result<Agenda, StoreError> {
    let bus = pass.publisher.map(Publisher::bus);
    let most = u32::try_from(2 * room).map_or(DUE_AT_ONCE, |most| most.min(DUE_AT_ONCE));
    let account = Some(pass.provider.account());
    let mut agenda = pass.store.agenda(most, bus, account).await?;
    let began = Instant::now();
    let is_valid = |(_, at): &&(String, Instant)| {
        began.duration_since(*at) < LOOK_AGAIN && !agenda.any_lease_expired
    };
    let none = looks.none_unscheduled.as_ref().filter(is_valid).cloned();
    let is_unchanged = none
        .as_ref()
        .is_some_and(|(version, _)| *version == agenda.version);
    if !is_unchanged && (agenda.voices.is_empty() || looks.unscheduled.is_due(began)) {
        let since = none.as_ref().map(|(version, _)| version.as_str());
        let unscheduled = pass.store.unscheduled(most, since).await;
        looks.unscheduled.took(began.elapsed(), Instant::now());
        let has_failed = mem::replace(&mut looks.unscheduled_failed, unscheduled.is_err());
        let unscheduled = match unscheduled {
            Err(error) if !agenda.voices.is_empty() => {
                const SAYS: &str = "new voices could not be found; known voices are looked up";
                match has_failed {
                    false => warn!(%error, "{SAYS}"),
                    true => debug!(%error, "{SAYS}"),
                }
                return Ok(agenda);
            }
            unscheduled => unscheduled?,
        };
        // Voices that are found now stay without a schedule until they are looked up, so they must be found again.
        looks.none_unscheduled = match (unscheduled.is_empty(), none) {
            (true, none) => Some((agenda.version.clone(), none.map_or(began, |(_, at)| at))),
            (false, none) => none,
        };
        agenda.begin_with(unscheduled, DUE_AT_ONCE);
    }
    Ok(agenda)
}

/// The time until the first voice is due, if any is scheduled.
fn next_in(agenda: &Agenda) -> Option<Duration> {
    agenda.voices.iter().map(|voice| voice.due_in).min()
}
