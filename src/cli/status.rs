//! `voice-sync status`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use tokio::signal;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Options, Output, at, failure, in_time, interval, open, print, show, status_doubts, unwritten,
    width,
};
use crate::core::backlog::BacklogKind;
use crate::core::exit::{Exit, Failed};
use crate::core::format::{in_line, span};
use crate::core::verdict::AgeFrom;
use crate::status::{Attention, Limits, Severity, Status, text};
use crate::store::{Access, DatabaseUrl, LedgerEntry, Names, Store};

/// Show the backlog, the last passes and the provider, and what needs attention.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync status
  voice-sync status --watch
  voice-sync status --output json | jq .backlog
  voice-sync status --check --max-age 6h --max-backlog 10000")]
pub(super) struct StatusCommand {
    /// Print a line that says whether anything needs attention, and one for each problem. Exit with 75 if anything does. With =nagios, exit as a Nagios plugin does:
    /// 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    #[arg(long, value_enum, value_name = "CODES", num_args = 0..=1, require_equals = true, default_missing_value = "sysexits")]
    check: Option<CheckCodes>,

    /// Show it repeatedly, every 2 s or at this interval.
    #[arg(long, value_name = "DURATION", value_parser = interval, num_args = 0..=1,
        require_equals = true, default_missing_value = "2s", conflicts_with = "check")]
    watch: Option<Duration>,

    /// Report a voice that has been in processing for longer. Voices in training, and those that wait for their owner, do
    /// not count.
    #[arg(long, value_name = "DURATION", default_value = "2d", value_parser = humantime::parse_duration)]
    max_age: Duration,

    /// Report more voices in processing than this [default: no limit].
    #[arg(long, value_name = "N")]
    max_backlog: Option<u64>,

    /// Report more voices that are set aside than this.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_set_aside: u64,

    /// Report that no pass succeeded for this time while voices are in processing.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    max_silence: Duration,

    /// Report an event that has waited longer to be published.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    max_event_age: Duration,
}

/// The exit codes of `--check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CheckCodes {
    /// 0, or 75 if anything needs attention.
    Sysexits,
    /// Those of monitoring plugins.
    Nagios,
}

/// The maximum number of voices, and of passes, that are shown.
const OLDEST: u32 = 5;
const RUNS: usize = 5;
/// The maximum number of passes that are searched for the last successful one.
const RUNS_READ: u32 = 500;

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

    pub(super) async fn run(&self, options: &Options) -> Result<ExitCode, Failed> {
        let nagios = self.check == Some(CheckCodes::Nagios);
        let code = self.show(options).await;
        if let (Some(_), Output::Text, Err(failed)) = (self.check, options.output, &code) {
            // Monitoring systems show the output of a plugin.
            print(&unknown(&failed.to_string()))?;
        }
        match code {
            Err(failed) if nagios => {
                failure::report(&failed, options.log().format, options.output);
                Ok(NAGIOS_UNKNOWN.into())
            }
            code => code,
        }
    }

    async fn show(&self, options: &Options) -> Result<ExitCode, Failed> {
        let (url, names) = (options.database_url()?, options.names()?);
        let mut viewer = Viewer {
            url,
            names,
            auto_migrate: options.auto_migrate,
            fail_after: options.rules().fail_after,
            age_from: options.rules().age_from,
            limits: self.limits(),
            // `status` works without a key, too.
            account: options.provider().ok().map(|provider| provider.account()),
            store: None,
        };
        let Some(interval) = self.watch else {
            let status = viewer.look().await?;
            print(&self.shown(&status, options.output))?;
            return Ok(self.code(&status).into());
        };
        let redraws = io::stdout().is_terminal() && options.output == Output::Text;
        let watching = async {
            loop {
                let shown = match viewer.look().await {
                    Ok(status) => self.shown(&status, options.output),
                    // A database that is unavailable may come back, and the user may be waiting for it.
                    Err(failed) if failed.exit == Exit::Database => match options.output {
                        Output::Json => failure::json(&failed).to_string(),
                        Output::Text => failed.to_string(),
                    },
                    Err(failed) => return Err(failed),
                };
                if redraws {
                    io::stdout().write_all(CLEAR).map_err(unwritten)?;
                }
                if !show(&shown).map_err(unwritten)? {
                    return Ok(());
                }
                sleep(interval).await;
            }
        };
        tokio::select! {
            _ = signal::ctrl_c() => {}
            ended = watching => ended?,
        }
        Ok(Exit::Success.into())
    }

    fn code(&self, status: &Status) -> u8 {
        match (self.check, status.severity()) {
            (None, _) | (Some(_), None) => Exit::Success.code(),
            (Some(CheckCodes::Sysexits), Some(_)) => Exit::Temporary.code(),
            (Some(CheckCodes::Nagios), Some(Severity::Warning)) => 1,
            (Some(CheckCodes::Nagios), Some(Severity::Critical)) => 2,
        }
    }

    /// The status with the exit code of this command.
    fn json(&self, status: &Status) -> Value {
        let mut json = status.json();
        json["exit_code"] = self.code(status).into();
        json
    }

    fn shown(&self, status: &Status, output: Output) -> String {
        match (output, self.check) {
            (Output::Json, _) => self.json(status).to_string(),
            (Output::Text, Some(codes)) => in_one_line(status, &self.limits(), codes),
            (Output::Text, None) => text(status, width()).trim_end().to_owned(),
        }
    }
}

/// The first item of the highest severity.
fn most_severe(status: &Status) -> Option<&Attention> {
    let severity = status.severity()?;
    let mut attention = status.attention.iter();
    attention.find(|attention| attention.severity == severity)
}

/// The exit code of a plugin that could not determine a state.
pub(super) const NAGIOS_UNKNOWN: u8 = 3;

/// The output of a plugin that could not determine a state.
pub(super) fn unknown(says: &str) -> String {
    format!("VOICE-SYNC UNKNOWN: {}", in_line(says))
}

/// Terminal codes: move the cursor home and clear everything below.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// The output of plugins for Nagios, Icinga and similar systems: a line for people, `|`, and numbers with their units
/// and limits (<https://www.monitoring-plugins.org/doc/guidelines.html>). The age has no limit there, as voices in
/// training do not count for it. The lines below list what needs attention.
fn in_one_line(status: &Status, limits: &Limits, codes: CheckCodes) -> String {
    let survey = &status.survey;
    let seconds = |span: Option<Duration>| span.unwrap_or_default().as_secs();
    let (processing, oldest) = (survey.backlog.all(), status.oldest_age());
    let backlog = limits
        .backlog
        .map_or(String::new(), |most| most.to_string());
    let verdict = match most_severe(status) {
        None => format!(
            "OK: {processing} in processing{}",
            oldest
                .map(|age| format!(", the oldest for {}", span(age)))
                .unwrap_or_default()
        ),
        Some(first) => {
            let level = match (codes, status.severity()) {
                (CheckCodes::Sysexits, _) => "ATTENTION",
                (CheckCodes::Nagios, Some(Severity::Critical)) => "CRITICAL",
                (CheckCodes::Nagios, Some(Severity::Warning) | None) => "WARNING",
            };
            format!("{level}: {}", first.says)
        }
    };
    let rest = status
        .attention
        .iter()
        .map(|item| format!("\n{} → {}", item.says, item.advice));
    format!(
        "VOICE-SYNC {verdict} | processing={processing};{backlog};;0 oldest_age={}s;;;0 pending_events={};;;0 \
         oldest_event_age={}s;;{};0 set_aside={};{};;0{}",
        seconds(oldest),
        survey.pending_events,
        seconds(survey.oldest_event),
        limits.event_age.as_secs(),
        survey.backlog.of(BacklogKind::SetAside),
        limits.set_aside,
        rest.collect::<String>()
    )
}

/// Reads the status over connections of its own, so that it takes none from passes.
pub(super) struct Viewer {
    pub(super) url: DatabaseUrl,
    pub(super) names: Names,
    pub(super) auto_migrate: Option<bool>,
    pub(super) fail_after: Option<Duration>,
    pub(super) age_from: AgeFrom,
    pub(super) limits: Limits,
    /// The account to show, if a key is configured.
    pub(super) account: Option<Uuid>,
    /// Opened for the first status. Opened again after an error, or if voice-sync's tables may have been created
    /// meanwhile.
    pub(super) store: Option<Store>,
}

impl Viewer {
    /// Reads the current status.
    pub(super) async fn look(&mut self) -> Result<Status, Failed> {
        let store = match self.store.take().filter(Store::has_own_tables) {
            Some(store) => store,
            None => {
                let opening = open(&self.url, &self.names, self.auto_migrate, Access::ReadOnly);
                in_time(&self.url, opening).await?
            }
        };
        let survey = store
            .survey(
                self.fail_after,
                self.age_from,
                OLDEST,
                RUNS_READ,
                self.account,
            )
            .await;
        let mut survey = survey.map_err(at(&self.url))?;
        let doubts = status_doubts(&store, &self.names.statuses).await;
        survey.status_doubts = doubts.unwrap_or_default();
        let waiting = survey.backlog.all();
        survey
            .status_doubts
            .retain(|doubt| doubt.needs_attention(waiting));
        let mut status = Status::new(survey, &self.limits);
        status.survey.runs.retain(LedgerEntry::did_something);
        status.survey.runs.truncate(RUNS);
        self.store = Some(store);
        Ok(status)
    }
}
