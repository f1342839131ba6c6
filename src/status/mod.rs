//! What `voice-sync status` and the daemon's page show, and what needs attention. Pure.

mod page;
mod text;

use std::time::Duration;

use serde_json::{Value, json};

pub use page::{Nonce, page};
pub use text::text;
pub(crate) use text::{HEADING, runs, table};

use crate::core::backlog::BacklogKind;
use crate::core::exit::Exit;
use crate::core::format::{number_of, span, timestamp};
use crate::core::missing::MASS_ABSENCE_ADVICE;
use crate::core::quantiles::Quantiles;
use crate::core::request_budget::RequestBudget;
use crate::core::schedule;
use crate::store::{Account, LedgerEntry, STATUS_ADVICE, Survey};

/// Limits from which on something needs attention. The alerts in `examples/prometheus` have the same limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Voices in processing.
    pub backlog: Option<u64>,
    /// Age of the oldest of them. Professional voices in training or waiting for their owners do not count.
    pub age: Duration,
    /// Voices that are set aside.
    pub set_aside: u64,
    /// Time since the last successful pass, and since the last answer about the voice that waits for longest.
    pub silence: Duration,
    /// How long an event may wait.
    pub event_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backlog: None,
            age: Duration::from_secs(2 * 24 * 60 * 60),
            set_aside: 0,
            silence: Duration::from_secs(15 * 60),
            event_age: Duration::from_secs(5 * 60),
        }
    }
}

/// The status at one moment, and what needs attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// What the database contains about it.
    pub survey: Survey,
    /// What needs attention, each with what to do.
    pub attention: Vec<Attention>,
}

/// Something that needs attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    pub severity: Severity,
    /// What was seen.
    pub says: String,
    /// What to do about it.
    pub advice: String,
}

/// How soon somebody should act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Some voices need a person.
    Warning,
    /// Voices do not finish, or nobody hears of it.
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Status {
    /// Finds what needs attention in a survey.
    pub fn new(survey: Survey, limits: &Limits) -> Self {
        let attention = attention(&survey, limits);
        Self { survey, attention }
    }

    /// The highest severity of what needs attention.
    pub fn severity(&self) -> Option<Severity> {
        self.attention
            .iter()
            .map(|attention| attention.severity)
            .max()
    }

    /// How long the oldest voice has been in processing.
    pub fn oldest_age(&self) -> Option<Duration> {
        let backlog = &self.survey.backlog;
        BacklogKind::ALL
            .into_iter()
            .filter_map(|kind| backlog.oldest(kind))
            .max()
    }

    /// The request budget of an account, compared with the backlog.
    fn budget(&self, account: &Account) -> Option<Budget> {
        let (budget, voices_a_request) = account.budget?;
        let voices = self.survey.backlog.all();
        Some(Budget {
            budget,
            voices_a_request,
            round: budget.round(voices, voices_a_request),
            enough: RequestBudget::enough_for(voices, voices_a_request, schedule::LONGEST),
        })
    }

    /// The status as JSON.
    pub fn json(&self) -> Value {
        let Self { survey, attention } = self;
        let Survey {
            read_at,
            has_own_tables: _,
            backlog,
            oldest,
            runs,
            completion_times,
            completion_times_by_kind,
            accounts,
            pending_events,
            oldest_event,
            failing_buses,
            status_doubts: _,
        } = survey;
        let times = |times: &Quantiles| {
            let quantile = |part| times.quantile(part).map(|span| span.as_secs_f64());
            json!({"voices": times.count(), "p50_seconds": quantile(0.5), "p90_seconds": quantile(0.9),
                   "p99_seconds": quantile(0.99)})
        };
        let mut all_times = times(completion_times);
        let by_kind = completion_times_by_kind.iter();
        all_times["by_kind"] = by_kind
            .map(|(kind, of_kind)| (kind.clone(), times(of_kind)))
            .collect();
        let buses = failing_buses.iter().map(|bus| {
            json!({"failures": bus.failures, "left_alone_for_seconds": bus.backing_off_for.as_secs_f64()})
        });
        let accounts = accounts.iter().map(|account| {
            let Account {
                account: id,
                state,
                found_at,
                unlisted,
                mass_absence_since,
                budget: _,
                nudging,
            } = account;
            let nudging = json!({"today": nudging.today, "characters": nudging.characters,
                                 "stopped_for_seconds": nudging.stopped_for.as_secs_f64(),
                                 "stopped_by": nudging.stopped_by});
            let budget = self.budget(account).map(|budget| {
                json!({"requests_per_minute": 60.0 / budget.budget.spacing().as_secs_f64(),
                       "voices_per_request": budget.voices_a_request, "round_seconds": budget.round.as_secs_f64(),
                       "enough_per_minute": budget.enough})
            });
            json!({"account": id, "breaker": Breaker::of(account).as_str(),
                   "open_for_seconds": state.open_for.as_secs_f64(),
                   "not_before_seconds": state.cooldown.as_secs_f64(), "limit": state.concurrency,
                   "last_found_at": found_at.map(timestamp), "unlisted": unlisted,
                   "mass_absence_since": mass_absence_since.map(timestamp), "request_budget": budget,
                   "nudging": nudging})
        });
        let attention = attention
            .iter()
            .map(|a| json!({"severity": a.severity.as_str(), "says": a.says, "advice": a.advice}));
        json!({
            "read_at": timestamp(*read_at),
            "backlog": backlog,
            "oldest": oldest,
            "runs": runs,
            "provider": accounts.collect::<Vec<_>>(),
            "outbox": {"pending": pending_events,
                       "oldest_age_seconds": oldest_event.map(|age| age.as_secs_f64()),
                       "failing_buses": buses.collect::<Vec<_>>()},
            "completion_times": all_times,
            "needs_attention": !self.attention.is_empty(),
            "attention": attention.collect::<Vec<_>>(),
        })
    }
}

/// The request budget, against the voices in processing.
struct Budget {
    budget: RequestBudget,
    voices_a_request: u64,
    /// The time that the budget needs to look all of them up once.
    round: Duration,
    /// Requests per minute that are enough to look all of them up within the longest time between two lookups of a
    /// voice.
    enough: u64,
}

/// What to do if the provider refuses text-to-speech.
pub(crate) const NUDGING_ADVICE: &str =
    "check the credit and the text-to-speech permission of the key; voices are looked up as before";

/// Whether requests may be sent to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breaker {
    Closed,
    Open,
    HalfOpen,
}

impl Breaker {
    fn of(account: &Account) -> Self {
        match (account.state.is_open(), account.state.wants_probe()) {
            (true, _) => Self::Open,
            (false, true) => Self::HalfOpen,
            (false, false) => Self::Closed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

fn attention(survey: &Survey, limits: &Limits) -> Vec<Attention> {
    let Limits {
        backlog,
        age,
        set_aside,
        silence,
        event_age,
    } = limits;
    let mut found = Vec::new();
    let mut add = |severity: Severity, says: String, advice: &str| {
        let advice = advice.to_owned();
        found.push(Attention {
            severity,
            says,
            advice,
        });
    };
    for doubt in &survey.status_doubts {
        add(Severity::Warning, doubt.to_string(), STATUS_ADVICE);
    }
    let processing = survey.backlog.all();
    let mut passes = survey.runs.iter().filter(|run| run.command.is_none());
    let success = passes
        .clone()
        .find(|run| run.exit_code == Exit::Success.code());
    let since = |run: &LedgerEntry| {
        (survey.read_at - run.finished_at)
            .to_std()
            .unwrap_or_default()
    };
    let last = passes.next();
    match last.map(|run| run.exit_code) {
        Some(code) if code == Exit::Key.code() => {
            add(
                Severity::Critical,
                "the last pass ended with 77: the key is refused, or is of another workspace"
                    .to_owned(),
                "set the key of the workspace in which the application clones (ELEVENLABS_API_KEY); `voice-sync \
                 doctor` checks it",
            );
        }
        Some(code) if code == Exit::Config.code() => {
            add(
                Severity::Critical,
                "the last pass ended with 78: the configuration, the schema or a privilege is wrong".to_owned(),
                "run `voice-sync doctor`: it prints the fix",
            );
        }
        Some(_) | None => {}
    }
    // A daemon with nothing to do makes no pass. In that case, no voice waits for an answer either.
    let unasked = survey.backlog.unasked();
    match (last, success) {
        (_, _) if !survey.has_own_tables => add(
            Severity::Critical,
            "voice-sync's own tables are missing: no pass has run on this database".to_owned(),
            "run `voice-sync sync-once`; on PostgreSQL, run `voice-sync migrate` first",
        ),
        (_, _) if processing == 0 => {}
        (None, _) => add(
            Severity::Critical,
            "no pass has run on this database".to_owned(),
            "run `voice-sync sync-once`",
        ),
        (Some(_), _) if unasked <= *silence => {}
        (Some(_), Some(run)) if since(run) <= *silence => {}
        (Some(run), _) => add(
            Severity::Critical,
            format!(
                "a voice has not been checked for {}; the last pass was {} ago and ended with {}",
                span(unasked),
                span(since(run)),
                run.exit_code
            ),
            "check that the timer, the CronJob or the daemon runs; `voice-sync doctor` checks the rest",
        ),
    }
    if let Some(most) = backlog.filter(|most| processing > *most) {
        add(
            Severity::Warning,
            format!(
                "{} in processing, more than {most}",
                number_of(processing, "voice is", "voices are")
            ),
            "`voice-sync runs` shows the last passes: check that they end with 0",
        );
    }
    let hasty = BacklogKind::ALL
        .into_iter()
        .filter(|kind| !kind.takes_its_time() && *kind != BacklogKind::Unanswerable);
    let oldest = hasty.filter_map(|kind| survey.backlog.oldest(kind)).max();
    if let Some(old) = oldest.filter(|old| old > age) {
        let days = "a voice that is neither in training nor waiting for its owner";
        add(
            Severity::Warning,
            format!("{days} has been in processing for {}", span(old)),
            &format!(
                "`voice-sync list --older-than {}` lists such voices, and `voice-sync inspect ID` shows what one waits for",
                humantime::format_duration(*age)
                    .to_string()
                    .replace(' ', "")
            ),
        );
    }
    let aside = survey.backlog.of(BacklogKind::SetAside);
    if aside > *set_aside {
        add(
            Severity::Warning,
            format!("{} set aside", number_of(aside, "voice is", "voices are")),
            "`voice-sync retry --set-aside --dry-run` shows which, and why; without `--dry-run`, they are looked up \
             again",
        );
    }
    let unanswerable = survey.backlog.of(BacklogKind::Unanswerable);
    if let Some(oldest) = survey.backlog.oldest(BacklogKind::Unanswerable) {
        add(
            Severity::Warning,
            format!(
                "{} unanswerable: the provider answers other requests, but none for {}; the oldest has been in \
                 processing for {}",
                number_of(unanswerable, "voice is", "voices are"),
                if unanswerable == 1 { "it" } else { "them" },
                span(oldest)
            ),
            "they stay in processing and are looked up one by one; `voice-sync list --unanswerable` shows their \
             errors; report them to the provider",
        );
    }
    if let Some(waits) = survey.oldest_event.filter(|waits| waits > event_age) {
        let number = number_of(survey.pending_events, "event waits", "events wait");
        add(
            Severity::Critical,
            format!("{number} to be published, the oldest for {}", span(waits)),
            "check that Redis runs and that passes have its URL (REDIS_URL); `voice-sync doctor` shows the error",
        );
    }
    for account in &survey.accounts {
        if account.mass_absence_since.is_some() {
            let missing = survey.backlog.of(BacklogKind::Missing);
            add(
                Severity::Critical,
                format!(
                    "too many voices are missing at the provider ({missing} in processing): the key is probably of another \
                     workspace; no missing voice fails until this is resolved"
                ),
                MASS_ABSENCE_ADVICE,
            );
        }
        if let Some(says) = account.nudging.stops() {
            add(Severity::Warning, says, NUDGING_ADVICE);
        }
        let left = account.state.open_for.max(account.state.cooldown);
        match Breaker::of(account) {
            Breaker::Open => add(
                Severity::Critical,
                format!(
                    "provider unavailable; {} for another {}",
                    match account.state.open_for.is_zero() {
                        true => "it asked for a cooldown",
                        false => "circuit breaker open",
                    },
                    span(left)
                ),
                "nothing to do: lookups continue when this time is over",
            ),
            Breaker::HalfOpen => add(
                Severity::Warning,
                "the provider did not answer the last requests; circuit breaker half-open"
                    .to_owned(),
                "nothing to do: the next pass sends a probe",
            ),
            Breaker::Closed => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
