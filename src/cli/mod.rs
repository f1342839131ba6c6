//! The command line.

mod daemon;
mod doctor;
mod fail;
mod inspect;
mod list;
mod manual;
mod migrate;
mod open;
mod options;
mod outbox;
mod output;
mod retry;
mod runs;
mod secrets;
mod shutdown;
mod status;
mod sync_once;
mod variables;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::open::{COMMAND_TIMEOUT, OwnTables, at, in_time, open, own_tables};
use self::options::{Budget, Events, Nudge, Options, Output, interval};
use self::output::{confirm, print, show, unwritten, width};
use crate::core::exit::{Exit, Failed};
use crate::telemetry::logs::LogFormat;

const EXIT_CODES: &str = "\
Exit codes:
   0  everything due was looked at, events are out
   1  somebody was asked whether to go on, and did not say yes
   2  wrong usage
  69  the database could not be reached: run again
  74  local input or output failed, such as a full disk: run again
  75  temporary: provider or event bus down, or time over, with work left: the next run goes on
  77  the key is refused, or is of another workspace: do not run again
  78  configuration, schema, or a missing privilege: do not run again
 101  a bug: run again, and report it

Each option may also be given by its variable. A secret may stand in a file that
DATABASE_URL_FILE, REDIS_URL_FILE or ELEVENLABS_API_KEY_FILE names.";

/// Finishes what an application began: moves voices cloned with ElevenLabs from processing to
/// completed or failed.
#[derive(Debug, Parser)]
#[command(name = "voice-sync", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
    /// What was given, and where: on the command line, in a variable, or not at all.
    #[arg(skip)]
    given: ArgMatches,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask about every voice in processing once, and exit.
    SyncOnce(sync_once::SyncOnce),
    /// Ask about voices whenever one is due, until told to stop.
    Daemon(daemon::Daemon),
    /// Make or update voice-sync's own tables.
    Migrate(migrate::Migrate),
    /// Look whether everything fits and works, and say what to do where it does not. Changes nothing.
    #[command(after_help = "\
Examples:
  voice-sync doctor
  voice-sync doctor --output json | jq '.findings[] | select(.state != \"ok\")'")]
    Doctor,
    /// Show how things stand, and what needs attention.
    Status(status::StatusCommand),
    /// Show everything that is known of a voice, and what an answer about it means.
    Inspect(inspect::Inspect),
    /// List voices: in processing, failed, missing, set aside.
    List(list::List),
    /// Fail voices in processing that can never be completed.
    Fail(fail::Fail),
    /// Put failed voices back to processing, and have voices that are set aside asked about again.
    Retry(retry::Retry),
    /// Show the events of transitions, publish them again, or remove them.
    Outbox(outbox::Outbox),
    /// Show the last passes, and the commands that changed something.
    Runs(runs::Runs),
    /// Print a shell's completions.
    Completions(manual::Completions),
    /// Print the manual page, or write those of all commands.
    Man(manual::Manual),
}

impl Cli {
    /// Reads the command line and the environment. Wrong usage ends the process.
    pub fn read() -> Self {
        let mut command = Self::command();
        let given = command.try_get_matches_from_mut(std::env::args_os());
        let given = given.unwrap_or_else(|error| variables::named(error, &command).exit());
        if let Some(error) = variables::unknown(&mut command) {
            error.exit();
        }
        let read = Self::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
        Self { given, ..read }
    }

    /// How log lines should look.
    pub fn log_format(&self) -> LogFormat {
        self.options.log_format
    }

    /// Runs the command. What it prints is on stdout; an error is the caller's to show.
    pub async fn run(self) -> Result<Exit, Failed> {
        match self.command {
            Command::SyncOnce(command) => command.run(self.options).await,
            Command::Daemon(command) => command.run(self.options).await,
            Command::Migrate(command) => command.run(&self.options).await,
            Command::Doctor => doctor::run(&self.options, &self.given).await,
            Command::Status(command) => command.run(&self.options).await,
            Command::Inspect(command) => command.run(&self.options).await,
            Command::List(command) => command.run(&self.options).await,
            Command::Fail(command) => command.run(&self.options).await,
            Command::Retry(command) => command.run(&self.options).await,
            Command::Outbox(command) => command.run(&self.options).await,
            Command::Runs(command) => command.run(&self.options).await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

/// Why a command that has to end ends without what was under way.
const UNFINISHED: &str = "what was under way did not come to its end in time; leases expire by themselves, and the next run goes on";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
