//! One turn of the daemon.

use std::time::{Duration, Instant};

use tracing::warn;

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

/// Voices that are looked at together at the most. If more are due, they have their turn afterwards.
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
    Passed {
        report: Box<Report>,
        /// When the request budget has room for another one.
        free_in: Duration,
    },
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
    /// How long voices took, as the ledger had it a while ago.
    survival: Survival,
    learning: DutyCycle,
    /// A version of the database in which there were no voices without a schedule, and when all of them were last
    /// looked at.
    none_unscheduled: Option<(String, Instant)>,
}

/// How old the metrics of the backlog may be where nothing happens.
const IDLE_OVERVIEW: Duration = Duration::from_secs(60);
/// The same where no voice is in processing, and counting them costs little.
const EMPTY_OVERVIEW: Duration = Duration::from_secs(5);
/// How old what was learned of completion times may be.
const LEARN_AGAIN: Duration = Duration::from_secs(60);
/// A voice without a schedule comes from a write, or from a lease that ended by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(120);

impl Default for DutyCycles {
    fn default() -> Self {
        Self {
            unscheduled: DutyCycle::one_of(20),
            overview: DutyCycle::one_of(200),
            survival: Survival::default(),
            learning: DutyCycle::one_of(100),
            none_unscheduled: None,
        }
    }
}

/// Asks about the voices that the request budget has room for, if it is worth a request, and publishes events that
/// wait. The pass's own scope says how.
pub async fn tick(
    pass: Pass<'_>,
    budget: RequestBudget,
    metrics: &Metrics,
    looks: &mut DutyCycles,
) -> Tick {
    let room = pass.voices_a_request() * budget.requests_in(MIN_PAUSE);
    let mut agenda = match agenda(&pass, room, looks).await {
        Ok(agenda) => agenda,
        Err(error) => {
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
        // Not while isolated voices wait for their turn, which takes requests of their own: hints could go on for ever.
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

/// Not worth failing for: what was learned before is as good.
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

/// Whether a hint makes a voice due that can share a request.
fn is_hinted(voice: &Upcoming) -> bool {
    voice.is_hinted && !voice.is_isolated && voice.due_in.is_zero()
}

/// Those that are asked about now.
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
        let unscheduled = match unscheduled {
            Err(error) if !agenda.voices.is_empty() => {
                warn!(%error, "new voices could not be found; known voices are looked up");
                return Ok(agenda);
            }
            unscheduled => unscheduled?,
        };
        // Those that are found now stay to be found until they have a schedule.
        looks.none_unscheduled = match (unscheduled.is_empty(), none) {
            (true, none) => Some((agenda.version.clone(), none.map_or(began, |(_, at)| at))),
            (false, none) => none,
        };
        agenda.begin_with(unscheduled, DUE_AT_ONCE);
    }
    Ok(agenda)
}

/// When the first voice is due, if any is scheduled.
fn next_in(agenda: &Agenda) -> Option<Duration> {
    agenda.voices.iter().map(|voice| voice.due_in).min()
}
