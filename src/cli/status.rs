//! `voice-sync status`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::{Options, Output, at, in_time, open, print, width};
use crate::daemon::Seen;
use crate::exit::{Exit, Failed};
use crate::status::{Limits, Status, text};
use crate::store::{Access, DatabaseUrl, Names, Store, StoreError};
use crate::words::span;

/// Show how things stand, and what needs attention.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync status
  voice-sync status --watch
  voice-sync status --output json | jq .backlog
  voice-sync status --check --max-age 6h --max-backlog 10000")]
pub(super) struct StatusCommand {
    /// Say in one line whether anything needs attention, as monitoring plugins do, and exit with 75 if so.
    #[arg(long)]
    check: bool,

    /// Show it again and again, every 2 s or as often as this says.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, num_args = 0..=1,
        require_equals = true, default_missing_value = "2s", conflicts_with = "check")]
    watch: Option<Duration>,

    /// Attention is needed if a voice has been in processing for longer, unless it is in training or waits for its
    /// owner.
    #[arg(long, value_name = "DURATION", default_value = "2d", value_parser = humantime::parse_duration)]
    max_age: Duration,

    /// Attention is needed if more voices are in processing [default: any number is fine].
    #[arg(long, value_name = "N")]
    max_backlog: Option<u64>,

    /// Attention is needed if more voices are set aside.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_set_aside: u64,

    /// Attention is needed if voices are in processing and no pass succeeded for so long.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    max_silence: Duration,

    /// Attention is needed if an event waits longer to be published.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    max_event_age: Duration,
}

/// Voices, and passes, that are shown.
pub(super) const OLDEST: u32 = 5;
pub(super) const RUNS: u32 = 5;
/// Passes among which one that succeeded is looked for.
const RUNS_READ: u32 = 500;

/// How things stand. Of the ledger, it keeps the newest entries.
pub(super) async fn status(
    store: &Store,
    fail_after: Option<Duration>,
    limits: &Limits,
) -> Result<Status, StoreError> {
    let survey = store.survey(fail_after, OLDEST, RUNS_READ).await?;
    let mut status = Status::new(survey, limits);
    status.survey.runs.truncate(RUNS as usize);
    Ok(status)
}

impl StatusCommand {
    fn limits(&self) -> Limits {
        Limits {
            backlog: self.max_backlog,
            age: self.max_age,
            set_aside: self.max_set_aside,
            silence: self.max_silence,
            event_age: self.max_event_age,
        }
    }

    pub(super) async fn run(self, options: &Options) -> Result<Exit, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let (fail_after, limits) = (options.rules().fail_after, self.limits());
        let opening = open(&url, &names, options.auto_migrate, Access::ReadOnly);
        let store = in_time(&url, opening).await?;
        // From before the first look: what comes while it looks is not lost.
        let mut interrupts = signal(SignalKind::interrupt())
            .context("interrupts cannot be caught")
            .map_err(|message| Failed {
                exit: Exit::Io,
                message,
            })?;
        loop {
            let status = status(&store, fail_after, &limits)
                .await
                .map_err(at(&url))?;
            let shown = match (options.output, self.check) {
                (Output::Json, _) => status.json().to_string(),
                (Output::Text, true) => in_one_line(&status),
                (Output::Text, false) => text(&status, width()).trim_end().to_owned(),
            };
            let Some(interval) = self.watch else {
                print(&shown)?;
                return Ok(match self.check {
                    true => status.exit(),
                    false => Exit::Success,
                });
            };
            let redraws = io::stdout().is_terminal() && options.output == Output::Text;
            print(&format!("{}{shown}", if redraws { CLEAR } else { "" }))?;
            tokio::select! {
                _ = interrupts.recv() => return Ok(Exit::Success),
                () = sleep(interval) => {}
            }
        }
    }
}

/// Of a terminal: to the upper left corner, and nothing below it.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// As plugins of Nagios, Icinga and the like print it: a line for people, `|`, and numbers with their units
/// (<https://www.monitoring-plugins.org/doc/guidelines.html>); what needs attention is in the lines below.
fn in_one_line(status: &Status) -> String {
    let survey = &status.survey;
    let seconds = |span: Option<Duration>| span.unwrap_or_default().as_secs();
    let (processing, oldest) = (survey.backlog.all(), status.oldest_age());
    let verdict = match status.attention.first() {
        None => format!(
            "OK: {processing} in processing{}",
            oldest
                .map(|age| format!(", the oldest for {}", span(age)))
                .unwrap_or_default()
        ),
        Some(first) => format!("ATTENTION: {}", first.says),
    };
    let rest = status
        .attention
        .iter()
        .map(|item| format!("\n{} → {}", item.says, item.advice));
    format!(
        "VOICE-SYNC {verdict} | processing={processing} oldest_age={}s pending_events={} \
         oldest_event_age={}s{}",
        seconds(oldest),
        survey.pending_events,
        seconds(survey.oldest_event),
        rest.collect::<String>()
    )
}

/// Looks for the daemon's page, by connections of its own: it takes none from the passes.
pub(super) struct Viewer {
    pub(super) url: DatabaseUrl,
    pub(super) names: Names,
    pub(super) fail_after: Option<Duration>,
    /// Opened when somebody looks, and again after trouble.
    pub(super) store: Mutex<Option<Store>>,
}

impl Viewer {
    /// How things stand, or in words why that is not known.
    pub(super) async fn look(&self) -> Seen {
        let mut opened = self.store.lock().await;
        let store = match opened.take() {
            Some(store) => store,
            None => open(&self.url, &self.names, None, Access::ReadOnly)
                .await
                .map_err(|failed| failed.to_string())?,
        };
        let seen = status(&store, self.fail_after, &Limits::default()).await;
        let seen = seen.map_err(|error| at(&self.url)(error).to_string())?;
        *opened = Some(store);
        Ok(seen)
    }
}
