//! The command line: its options, and the values they stand for.

mod daemon;
mod doctor;
mod inspect;
mod manual;
mod migrate;
mod outbox;
mod retry;
mod runs;
mod secrets;
mod shutdown;
mod status;
mod sync_once;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tracing::{info, warn};

use self::secrets::{DATABASE_URL, REDIS_URL};
use crate::core::exit::{Exit, Failed};
use crate::core::verdict::{AgeFrom, OnTimeout, Rules};
use crate::events::publisher::{Kind, Publisher};
use crate::events::queue::Queue;
use crate::provider::lookup::Strategy;
use crate::provider::{BaseUrl, Provider};
use crate::store::{
    Access, ColumnNames, Database, DatabaseUrl, MigrationState, NaiveZone, Names, StatusValues,
    Store, StoreError, TableName,
};
use crate::telemetry::logs::LogFormat;

/// More than the longest statement of a start, a migration that waits for another, needs.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

const UNUSABLE_REDIS: &str = "the Redis URL (--redis-url or REDIS_URL) cannot be used";

const EXIT_CODES: &str = "\
Exit codes:
   0  everything due was looked at, events are out
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

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Options {
    /// The application's database: postgresql://… or sqlite:///…, with or without a driver such as
    /// +asyncpg [default: sqlite://voice-sync.db].
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DATABASE_URL",
        hide_env_values = true
    )]
    database_url: Option<String>,

    /// The provider.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ELEVENLABS_BASE_URL",
        help = "The provider [default: https://api.elevenlabs.io]",
        hide_env_values = true
    )]
    api_url: Option<String>,

    /// A file that holds the API key [env: ELEVENLABS_API_KEY_FILE=; the key itself: ELEVENLABS_API_KEY].
    #[arg(long, global = true, value_name = "PATH")]
    api_key_file: Option<PathBuf>,

    /// The event bus. Without it no events are recorded.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "REDIS_URL",
        hide_env_values = true
    )]
    redis_url: Option<String>,

    /// How events are published [default: stream if there is a Redis URL].
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_EVENTS")]
    events: Option<Events>,

    /// What the names of streams or channels begin with.
    #[arg(
        long,
        global = true,
        value_name = "TEXT",
        env = "VOICE_SYNC_EVENT_PREFIX",
        default_value = "events:"
    )]
    event_prefix: String,

    /// Entries that a stream keeps at least.
    #[arg(long, global = true, value_name = "N", env = "VOICE_SYNC_EVENT_MAXLEN", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=i64::MAX.unsigned_abs()))]
    event_maxlen: u64,

    /// Most requests to the provider at once.
    #[arg(long, global = true, value_name = "N", env = "VOICE_SYNC_CONCURRENCY", default_value = "4", value_parser = concurrency)]
    concurrency: NonZeroU32,

    /// Ask in batches or singly.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "VOICE_SYNC_LOOKUP",
        default_value_t
    )]
    lookup: Strategy,

    /// How long a voice may be in processing, or "never".
    #[arg(long, global = true, value_name = "DURATION", env = "VOICE_SYNC_FAIL_AFTER", default_value = "24h", value_parser = limit)]
    fail_after: Limit,

    /// From when that counts: since voice-sync first saw the voice, or since its row was created.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "VOICE_SYNC_AGE_FROM",
        default_value_t
    )]
    age_from: AgeFrom,

    /// What becomes of a voice that took longer.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "VOICE_SYNC_ON_TIMEOUT",
        default_value_t
    )]
    on_timeout: OnTimeout,

    /// How long the provider must not know a voice before it fails; 0s: at once.
    #[arg(long, global = true, value_name = "DURATION", env = "VOICE_SYNC_MISSING_AFTER", default_value = "15m", value_parser = humantime::parse_duration)]
    missing_after: Duration,

    /// The fine-tuning models that decide, by commas [default: all].
    #[arg(
        long,
        global = true,
        value_name = "MODELS",
        env = "VOICE_SYNC_MODELS",
        value_delimiter = ','
    )]
    models: Vec<String>,

    /// The application's table, with its schema if that is not on the search path.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "VOICE_SYNC_TABLE",
        default_value = "voices"
    )]
    table: String,

    /// Columns with other names: id=…,user_id=…,elevenlabs_voice_id=…,status=…,preview_url=…,created_at=…,completed_at=…
    #[arg(
        long,
        global = true,
        value_name = "NAMES",
        env = "VOICE_SYNC_COLUMNS",
        default_value = "",
        hide_default_value = true
    )]
    columns: String,

    /// Other status values: processing=…,completed=…,failed=…
    #[arg(
        long,
        global = true,
        value_name = "VALUES",
        env = "VOICE_SYNC_STATUS_VALUES",
        default_value = "",
        hide_default_value = true
    )]
    status_values: String,

    /// The time zone of created_at and completed_at, where these columns have none (PostgreSQL).
    #[arg(
        long,
        global = true,
        value_name = "ZONE",
        env = "VOICE_SYNC_NAIVE_TIMEZONE",
        default_value = "UTC"
    )]
    naive_timezone: String,

    /// The key in Redis under which the application notes the voices that wait: a set of row ids, or
    /// a list of JSON jobs [default: none].
    #[arg(long, global = true, value_name = "KEY", env = "VOICE_SYNC_QUEUE")]
    queue: Option<String>,

    /// Make or update voice-sync's own tables where needed [default: on for SQLite, off for PostgreSQL].
    #[arg(long, global = true, value_name = "BOOL", env = "VOICE_SYNC_AUTO_MIGRATE", value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    auto_migrate: Option<bool>,

    /// How log lines look, on stderr.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "VOICE_SYNC_LOG_FORMAT",
        default_value_t
    )]
    log_format: LogFormat,

    /// How results look, on stdout.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "VOICE_SYNC_OUTPUT",
        default_value_t
    )]
    output: Output,
}

/// How results look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Events {
    /// To Redis Streams, one for each type of event.
    Stream,
    /// To Redis channels.
    Pubsub,
    /// Not at all; none are recorded either.
    None,
}

/// A duration, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<Duration>);

fn limit(text: &str) -> Result<Limit, humantime::DurationError> {
    match text {
        "never" => Ok(Limit(None)),
        text => humantime::parse_duration(text).map(|duration| Limit(Some(duration))),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (SHORTEST..=LONGEST).contains(&interval) {
        true => Ok(interval),
        false => Err("give a time from 100ms to 24h".to_owned()),
    }
}

fn concurrency(text: &str) -> Result<NonZeroU32, String> {
    const MOST: u32 = 1000;
    text.parse::<NonZeroU32>()
        .ok()
        .filter(|number| number.get() <= MOST)
        .ok_or_else(|| format!("give a whole number from 1 to {MOST}"))
}

impl Cli {
    /// Reads the command line and the environment. Wrong usage ends the process.
    pub fn read() -> Self {
        let given = Self::command().get_matches();
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
            Command::Retry(command) => command.run(&self.options).await,
            Command::Outbox(command) => command.run(&self.options).await,
            Command::Runs(command) => command.run(&self.options).await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

impl Options {
    fn database_url(&self) -> Result<DatabaseUrl, Failed> {
        let url = DATABASE_URL
            .resolve(self.database_url.clone())
            .map_err(Failed::config)?
            .unwrap_or_else(|| "sqlite://voice-sync.db".into());
        DatabaseUrl::parse(url.expose_secret())
            .context("the database URL (--database-url or DATABASE_URL) cannot be used")
            .map_err(Failed::config)
    }

    fn names(&self) -> Result<Names, Failed> {
        let parse = || {
            Ok::<_, anyhow::Error>(Names {
                table: TableName::parse(&self.table).context("--table")?,
                columns: ColumnNames::parse(&self.columns).context("--columns")?,
                statuses: StatusValues::parse(&self.status_values).context("--status-values")?,
                zone: NaiveZone::parse(&self.naive_timezone).context("--naive-timezone")?,
            })
        };
        parse().map_err(Failed::config)
    }

    fn rules(&self) -> Rules {
        let models: BTreeSet<String> = self
            .models
            .iter()
            .map(|model| model.trim().to_owned())
            .filter(|model| !model.is_empty())
            .collect();
        Rules {
            fail_after: self.fail_after.0,
            age_from: self.age_from,
            on_timeout: self.on_timeout,
            models: (!models.is_empty()).then_some(models),
        }
    }

    fn provider(&self) -> Result<Provider, Failed> {
        let url = self.api_url.as_deref().filter(|url| !url.trim().is_empty());
        let base = BaseUrl::parse(url.unwrap_or("https://api.elevenlabs.io"))
            .context("the provider's URL (--api-url or ELEVENLABS_BASE_URL) cannot be used")
            .map_err(Failed::config)?;
        let key = secrets::api_key(self.api_key_file.clone()).map_err(Failed::config)?;
        Provider::new(base, &key, self.concurrency).map_err(Failed::config)
    }

    fn publisher(&self) -> Result<Option<Publisher>, Failed> {
        let url = self.redis_url()?;
        let maxlen = self.event_maxlen;
        let (kind, url) = match (self.events, url) {
            (Some(Events::None), _) | (None, None) => return Ok(None),
            (Some(Events::Stream) | None, Some(url)) => (Kind::Stream { maxlen }, url),
            (Some(Events::Pubsub), Some(url)) => (Kind::PubSub, url),
            (Some(Events::Stream | Events::Pubsub), None) => {
                return Err(Failed::config(anyhow!(
                    "--events needs a Redis: give --redis-url or REDIS_URL, or say --events none"
                )));
            }
        };
        Publisher::new(url.expose_secret(), kind, self.event_prefix.clone())
            .context(UNUSABLE_REDIS)
            .map(Some)
            .map_err(Failed::config)
    }

    fn queue(&self) -> Result<Option<Queue>, Failed> {
        let Some(key) = self.queue.clone().filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        let url = self.redis_url()?.ok_or_else(|| {
            Failed::config(anyhow!(
                "--queue needs a Redis: give --redis-url or REDIS_URL, or leave --queue out"
            ))
        })?;
        Queue::new(url.expose_secret(), key)
            .context(UNUSABLE_REDIS)
            .map(Some)
            .map_err(Failed::config)
    }

    fn redis_url(&self) -> Result<Option<SecretString>, Failed> {
        REDIS_URL
            .resolve(self.redis_url.clone())
            .map_err(Failed::config)
    }
}

/// Prints a command's result.
fn print(text: &str) -> Result<(), Failed> {
    show(text).map(|_read| ()).map_err(unwritten)
}

/// Prints a result, and returns whether anybody still reads: who reads no further, as `head` does, has what
/// they wanted. Colours are left out where they are not wanted: in a pipe or a file, with `NO_COLOR`, on a
/// dumb terminal.
fn show(text: &str) -> io::Result<bool> {
    let mut out = anstream::stdout();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

fn unwritten(error: io::Error) -> Failed {
    Failed {
        exit: Exit::Io,
        message: anyhow::Error::from(error).context("the result could not be written to stdout"),
    }
}

/// The columns of the terminal; elsewhere as many as there may be.
fn width() -> u16 {
    // Whoever reads it there wants a line for each thing.
    const IN_A_PIPE: u16 = u16::MAX;
    let size = terminal_size::terminal_size_of(io::stdout());
    size.map_or(IN_A_PIPE, |(width, _)| width.0)
}

/// Whether somebody can be asked.
fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks, on a terminal, and takes only a plain yes for one. Elsewhere the command line was answer enough.
fn confirm(question: &str) -> Result<bool, Failed> {
    if !is_interactive() {
        return Ok(true);
    }
    let ask = || {
        write!(io::stderr(), "{question} [y/N] ")?;
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok::<_, io::Error>(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
    };
    let answer = ask().context("the answer could not be read; --yes goes on without it");
    answer.map_err(|message| Failed {
        exit: Exit::Io,
        message,
    })
}

/// Why a command that has to end ends without what was under way.
const UNFINISHED: &str = "what was under way did not come to its end in time; leases expire by themselves, and the next run goes on";

/// A database error, with which database it is.
fn at(url: &DatabaseUrl) -> impl Fn(StoreError) -> Failed + '_ {
    move |error| Failed {
        exit: error.exit(),
        message: anyhow::Error::from(error).context(url.to_string()),
    }
}

/// Bounds what a command does with its database before its work begins, or, for `migrate`, all of it.
/// A server that takes connections and then says nothing would never be noticed else.
async fn in_time<T>(
    url: &DatabaseUrl,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    timeout(COMMAND_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(Failed {
            exit: Exit::Database,
            message: anyhow!(
                "the {url} did not answer within {} s",
                COMMAND_TIMEOUT.as_secs()
            ),
        })
    })
}

/// What is to be done about voice-sync's own tables before a command can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnTables {
    There,
    /// Nothing either: who only reads can do without.
    Unneeded,
    /// They are made, or brought up to date.
    ToMake,
}

fn own_tables(
    database: &Database,
    state: MigrationState,
    auto_migrate: Option<bool>,
    access: Access,
) -> anyhow::Result<OwnTables> {
    let advice = match access {
        Access::ReadWrite => {
            "run `voice-sync migrate` as a role that may create tables, or add --auto-migrate"
        }
        Access::ReadOnly => "run `voice-sync migrate` as a role that may create tables",
    };
    let by_itself = auto_migrate.unwrap_or(match database {
        Database::Sqlite(_) => true,
        Database::Postgres(_) => false,
    });
    match (state, access) {
        (MigrationState::Current, _) => Ok(OwnTables::There),
        (MigrationState::Ahead { found }, _) => Err(anyhow!(
            "voice-sync's own tables are of a newer version ({found}) than this program knows; run the \
             newer voice-sync"
        )),
        // A first dry run leaves no trace.
        (MigrationState::Absent, Access::ReadOnly) => Ok(OwnTables::Unneeded),
        (MigrationState::Absent | MigrationState::Behind { .. }, Access::ReadWrite)
            if by_itself =>
        {
            Ok(OwnTables::ToMake)
        }
        (MigrationState::Absent, Access::ReadWrite) => {
            Err(anyhow!("voice-sync's own tables are missing; {advice}"))
        }
        (MigrationState::Behind { found, needed }, _) => Err(anyhow!(
            "voice-sync's own tables are of version {found}, and this program needs version {needed}; {advice}"
        )),
    }
}

/// Connects, and makes sure that voice-sync's own tables are as this version needs them.
async fn open(
    url: &DatabaseUrl,
    names: &Names,
    auto_migrate: Option<bool>,
    access: Access,
) -> Result<Store, Failed> {
    let at = at(url);
    let mut database = Database::connect(url, access).await.map_err(&at)?;
    let state = database.migration_state().await.map_err(&at)?;
    let own_tables = own_tables(&database, state, auto_migrate, access)
        .with_context(|| url.to_string())
        .map_err(Failed::config)?;
    if own_tables == OwnTables::ToMake {
        // The table is looked at first: a database that does not fit is left as it is.
        let store = Store::open(database, names, false, access)
            .await
            .map_err(&at)?;
        database = store.into_database();
        database.migrate().await.map_err(&at)?;
        info!("made voice-sync's own tables in the {url}");
    }
    let there = own_tables != OwnTables::Unneeded;
    let store = Store::open(database, names, there, access)
        .await
        .map_err(at)?;
    for column in store.missing_columns() {
        let name = column.name(&names.columns).as_str();
        warn!(
            column = name,
            "there is no such column: {}",
            column.consequence()
        );
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
