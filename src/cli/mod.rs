//! The command line.

mod config;
mod config_file;
mod daemon;
mod doctor;
mod fail;
mod failure;
mod inspect;
mod left;
mod list;
mod manual;
mod migrate;
mod open;
mod options;
mod outbox;
mod outbox_record;
mod output;
mod ping;
mod retry;
mod runs;
mod secrets;
mod shutdown;
mod status;
mod sync_once;
mod variables;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Id, Parser, Subcommand};
use tracing::warn;

use self::config_file::ConfigFile;
use self::open::{
    LOOKUP_TIMEOUT, OwnTables, at, in_time, open, own_tables, status_doubts, warn_of_statuses,
};
use self::options::{Budget, Events, Nudge, Options, Output, interval};
use self::output::{confirm, print, show, unwritten, width};
use crate::core::exit::Failed;
use crate::core::report::Report;
use crate::telemetry::logs::LogOptions;

const EXIT_CODES: &str = "\
Exit codes:
   0  everything that was due was looked up, and events are published
   1  you were asked for confirmation and did not say yes
   2  wrong usage
  69  the database could not be reached: run it again
  74  local input or output failed, such as a full disk: run it again
  75  temporary: the provider or the event bus is unavailable, or time is over; the next run continues
  77  the key is refused, or is of another workspace: do not run it again
  78  configuration, schema, or a missing privilege: do not run it again
 101  a bug: run it again, and report it

Each option can also be set by its environment variable, or in the configuration file. DATABASE_URL_FILE,
REDIS_URL_FILE and ELEVENLABS_API_KEY_FILE name files that hold a secret.";
/// With the commit and the target that it was built from and for.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("VOICE_SYNC_COMMIT"),
    ", ",
    env!("VOICE_SYNC_TARGET"),
    ")"
);
const MORE: &str =
    "`voice-sync --help` describes all options of every command, and the exit codes.";

/// Polls ElevenLabs for cloned voices, and moves their rows from processing to completed or failed.
#[derive(Debug, Parser)]
#[command(name = "voice-sync", version, long_version = LONG_VERSION, after_help = MORE, after_long_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Chosen,
    /// The parsed arguments with their sources: the command line, a variable, or the default.
    #[arg(skip)]
    given: ArgMatches,
    #[arg(skip)]
    file: Option<ConfigFile>,
}

#[derive(Debug, Subcommand)]
enum Chosen {
    /// Look up every voice in processing once, and exit.
    SyncOnce(sync_once::SyncOnce),
    /// Look voices up whenever one is due, until stopped.
    Daemon(daemon::Daemon),
    /// Create or update voice-sync's own tables.
    Migrate(migrate::Migrate),
    /// Check the setup, and print a fix for each problem.
    ///
    /// Checks configuration, database, provider and event bus. Changes nothing.
    #[command(after_help = "\
Examples:
  voice-sync doctor
  voice-sync doctor --output json | jq '.findings[] | select(.state != \"ok\")'")]
    Doctor,
    /// Show the backlog, the last passes and the provider, and what needs attention.
    Status(status::StatusCommand),
    /// Show everything about one voice, with its verdict and the rule behind it.
    Inspect(inspect::Inspect),
    /// List voices: in processing, failed, missing, set aside.
    List(list::List),
    /// Fail voices in processing that can never be completed.
    Fail(fail::Fail),
    /// Put failed voices back to processing, and look up again those that are set aside.
    Retry(retry::Retry),
    /// List the events of transitions, publish them again, or remove them.
    Outbox(outbox::Outbox),
    /// List the last passes, and the commands that changed something.
    Runs(runs::Runs),
    /// Check or show the configuration.
    Config(config::Config),
    /// Print completions for a shell.
    Completions(manual::Completions),
    /// Print the manual page, or write the pages of all commands.
    Man(manual::Manual),
}

impl Cli {
    /// Reads the command line and the environment. Wrong usage ends the process.
    pub fn read() -> Self {
        let file = ConfigFile::read().and_then(|file| {
            let applied = file.as_ref().map(|file| file.apply(Self::command()));
            Ok((applied.transpose()?.unwrap_or_else(Self::command), file))
        });
        let (mut command, file) = file.unwrap_or_else(|error| {
            let message = format!("{error:#}");
            failure::usage(&Self::command().error(ErrorKind::ValueValidation, message))
        });
        command = variables::without_blank(command);
        command.build();
        hide_global_options(&mut command);
        let given = command.try_get_matches_from_mut(std::env::args_os());
        let given = given.unwrap_or_else(|error| {
            failure::usage(&variables::named(error, &command, file.as_ref()))
        });
        if let Some(error) = variables::unknown(&mut command) {
            failure::usage(&error);
        }
        let read = Self::from_arg_matches(&given).unwrap_or_else(|error| failure::usage(&error));
        Self {
            given,
            file,
            ..read
        }
    }

    pub fn log(&self) -> LogOptions {
        self.options.log()
    }

    /// Runs the command. Its result is on stdout, errors are on stderr.
    pub async fn run(self) -> ExitCode {
        let (format, output) = (self.log().format, self.options.output);
        match self.run_command().await {
            Ok(code) => code,
            Err(failed) => {
                failure::report(&failed, format, output);
                failed.exit.into()
            }
        }
    }

    async fn run_command(self) -> Result<ExitCode, Failed> {
        let exit = match self.command {
            Chosen::SyncOnce(command) => command.run(self.options).await,
            Chosen::Daemon(command) => command.run(self.options).await,
            Chosen::Migrate(command) => command.run(&self.options).await,
            Chosen::Doctor => doctor::run(&self.options, &self.given, self.file.as_ref()).await,
            Chosen::Config(command) => command.run(&self.options, &self.given, self.file.as_ref()),
            Chosen::Status(command) => return command.run(&self.options).await,
            Chosen::Inspect(command) => command.run(&self.options).await,
            Chosen::List(command) => command.run(&self.options).await,
            Chosen::Fail(command) => command.run(&self.options).await,
            Chosen::Retry(command) => command.run(&self.options).await,
            Chosen::Outbox(command) => command.run(&self.options).await,
            Chosen::Runs(command) => command.run(&self.options).await,
            Chosen::Completions(command) => command.run(),
            Chosen::Man(command) => command.run(),
        };
        exit.map(ExitCode::from)
    }
}

/// Warns of voices that were finished without an event, as the application's cache keeps the old status. Returns whether
/// there were any.
fn warn_without_events(report: &Report) -> bool {
    let voices = report.counts.finished();
    if voices > 0 {
        warn!(
            event = "events_not_recorded",
            voices,
            "no event was recorded for these voices, as there is no event bus: set REDIS_URL or REDIS_HOST, or --events none to go without"
        );
    }
    voices > 0
}

/// The maximum number of changed voices that a command logs one by one, as a pass does.
const LOGGED: usize = 20;

/// The hint of an error about an id.
const FIND_IDS: &str = "`voice-sync list` lists the ids of voices";

/// The error of a command that must end before its work in progress is done.
const UNFINISHED: &str = "stopped with lookups under way, as time is over; their leases expire, and the next run continues";

/// The help of a command describes only its own options. Options of every command are described once.
fn hide_global_options(command: &mut Command) {
    let global: Vec<_> = command
        .get_arguments()
        .filter(|option| option.is_global_set())
        .map(|option| option.get_id().clone())
        .collect();
    fn hide(command: &mut Command, global: &[Id]) {
        for sub in command.get_subcommands_mut() {
            let own = std::mem::take(sub);
            let own = own.mut_args(|option| match global.contains(option.get_id()) {
                true => option.hide(true),
                false => option,
            });
            let more = own.get_after_help().map(|help| format!("{help}\n\n{MORE}"));
            *sub = own.after_help(more.unwrap_or(MORE.to_owned()));
            hide(sub, global);
        }
    }
    hide(command, &global);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
