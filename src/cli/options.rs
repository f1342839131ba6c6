//! The options of every command, and their values.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anstream::ColorChoice;
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::filter::LevelFilter;

use super::secrets::{self, DATABASE_URL, REDIS_URL};
use crate::core::exit::Failed;
use crate::core::nudge::NudgeRules;
use crate::core::request_budget::RequestBudget;
use crate::core::verdict::{AgeFrom, OnTimeout, Rules};
use crate::events::publisher::{Kind, Publisher};
use crate::events::queue::Queue;
use crate::provider::lookup::Strategy;
use crate::provider::{BaseUrl, Provider, Speech};
use crate::store::{ColumnNames, DatabaseUrl, NaiveZone, Names, StatusValues, TableName};
use crate::sync::Nudger;
use crate::telemetry::logs::{self, Format, LogOptions};
use crate::telemetry::metrics::NudgeMetrics;

const UNUSABLE_REDIS: &str = "the Redis URL (--redis-url, REDIS_URL, or REDIS_HOST with REDIS_PORT and REDIS_DB) cannot be used";

const DATABASE: &str = "Database";
const PROVIDER: &str = "Provider";
const EVENTS: &str = "Events";
const VERDICTS: &str = "Verdicts";
const OUTPUT: &str = "Output";

/// Options of every command. `-h` hides those that are rarely needed.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Read options from this TOML file.
    ///
    /// Its keys are the long options. The command line and the environment take precedence. By default, it is
    /// /etc/voice-sync/config.toml, if that exists.
    #[arg(long, global = true, value_name = "FILE", env = "VOICE_SYNC_CONFIG", help_heading = OUTPUT, hide_env_values = true)]
    pub(super) config: Option<PathBuf>,

    /// The application's database: postgresql://… or sqlite:///….
    ///
    /// A driver such as +asyncpg is accepted. DATABASE_URL_FILE names a file that holds the URL.
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true, help_heading = DATABASE)]
    pub(super) database_url: Option<String>,

    /// The application's table, with its schema if that is not on the search path.
    #[arg(long, global = true, value_name = "NAME", env = "VOICE_SYNC_TABLE", default_value = "voices",
        hide_short_help = true, help_heading = DATABASE)]
    pub(super) table: String,

    /// Columns with other names: id=…,user_id=…,elevenlabs_voice_id=…,status=…,preview_url=…,created_at=…,completed_at=…
    #[arg(long, global = true, value_name = "NAMES", env = "VOICE_SYNC_COLUMNS", default_value = "", hide_default_value = true,
        hide_short_help = true, help_heading = DATABASE)]
    pub(super) columns: String,

    /// Other values of the status column: processing=…,completed=…,failed=…
    #[arg(long, global = true, value_name = "VALUES", env = "VOICE_SYNC_STATUS_VALUES", default_value = "", hide_default_value = true,
        hide_short_help = true, help_heading = DATABASE)]
    pub(super) status_values: String,

    /// The time zone of created_at and completed_at, if these columns have none (PostgreSQL).
    #[arg(long, global = true, value_name = "ZONE", env = "VOICE_SYNC_NAIVE_TIMEZONE", default_value = "UTC",
        hide_short_help = true, help_heading = DATABASE)]
    pub(super) naive_timezone: String,

    /// Create or update voice-sync's own tables when a command needs them [default: on for SQLite, off for PostgreSQL].
    #[arg(long, global = true, value_name = "BOOL", env = "VOICE_SYNC_AUTO_MIGRATE", value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_short_help = true, help_heading = DATABASE)]
    pub(super) auto_migrate: Option<bool>,

    /// The provider's API.
    #[arg(
        help = "The provider's API [default: https://api.elevenlabs.io]",long, global = true, value_name = "URL", env = "ELEVENLABS_BASE_URL", hide_env_values = true,
        hide_short_help = true, help_heading = PROVIDER)]
    pub(super) api_url: Option<String>,

    /// A file that holds the API key [env: ELEVENLABS_API_KEY_FILE].
    ///
    /// The variable ELEVENLABS_API_KEY holds the key itself.
    #[arg(long, global = true, value_name = "PATH", help_heading = PROVIDER)]
    pub(super) api_key_file: Option<PathBuf>,

    /// The highest number of concurrent requests to the provider.
    #[arg(long, global = true, value_name = "N", env = "VOICE_SYNC_CONCURRENCY", default_value = "4", value_parser = concurrency,
        hide_short_help = true, help_heading = PROVIDER)]
    pub(super) concurrency: NonZeroU32,

    /// How to look voices up: batches of 100, or one request per voice.
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_LOOKUP", default_value_t, hide_short_help = true,
        help_heading = PROVIDER)]
    pub(super) lookup: Strategy,

    /// The event bus. Without it, no events are recorded.
    ///
    /// REDIS_URL_FILE names a file that holds the URL. If there is no URL, REDIS_HOST, REDIS_PORT, REDIS_PASSWORD and
    /// REDIS_DB are read.
    #[arg(long, global = true, value_name = "URL", env = "REDIS_URL", hide_env_values = true, help_heading = EVENTS)]
    pub(super) redis_url: Option<String>,

    /// How events are published [default: stream, if there is an event bus].
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_EVENTS", hide_short_help = true, help_heading = EVENTS)]
    pub(super) events: Option<Events>,

    /// The prefix of the names of streams or channels.
    #[arg(long, global = true, value_name = "TEXT", env = "VOICE_SYNC_EVENT_PREFIX", default_value = "events:",
        hide_short_help = true, help_heading = EVENTS)]
    pub(super) event_prefix: String,

    /// The number of entries that a stream keeps at least.
    #[arg(long, global = true, value_name = "N", env = "VOICE_SYNC_EVENT_MAXLEN", default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=i64::MAX.unsigned_abs()), hide_short_help = true, help_heading = EVENTS)]
    pub(super) event_maxlen: u64,

    /// The key in Redis of the application's own queue: a set of row ids, or a list of JSON jobs [default: none].
    #[arg(long, global = true, value_name = "KEY", env = "VOICE_SYNC_QUEUE", hide_short_help = true, help_heading = EVENTS)]
    pub(super) queue: Option<String>,

    /// How long a voice may stay in processing, or "never".
    #[arg(long, global = true, value_name = "DURATION", env = "VOICE_SYNC_FAIL_AFTER", default_value = "24h", value_parser = limit,
        hide_short_help = true, help_heading = VERDICTS)]
    pub(super) fail_after: Limit,

    /// When this time begins: when voice-sync first saw the voice, or when its row was created.
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_AGE_FROM", default_value_t, hide_short_help = true,
        help_heading = VERDICTS)]
    pub(super) age_from: AgeFrom,

    /// What happens to a voice when this time is over.
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_ON_TIMEOUT", default_value_t, hide_short_help = true,
        help_heading = VERDICTS)]
    pub(super) on_timeout: OnTimeout,

    /// How long a voice must be missing at the provider before it fails. 0s fails it at once.
    #[arg(long, global = true, value_name = "DURATION", env = "VOICE_SYNC_MISSING_AFTER", default_value = "15m",
        value_parser = humantime::parse_duration, hide_short_help = true, help_heading = VERDICTS)]
    pub(super) missing_after: Duration,

    /// The fine-tuning models that decide about professional voices, separated by commas [default: all].
    #[arg(long, global = true, value_name = "MODELS", env = "VOICE_SYNC_MODELS", value_delimiter = ',', hide_short_help = true,
        help_heading = VERDICTS)]
    pub(super) models: Vec<String>,

    /// The format of results, on stdout.
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_OUTPUT", default_value_t, help_heading = OUTPUT)]
    pub(super) output: Output,

    /// The format of log lines and errors, on stderr [auto: JSON in the systemd journal and in containers, otherwise text].
    #[arg(long, global = true, value_enum, env = "VOICE_SYNC_LOG_FORMAT", default_value_t, hide_short_help = true,
        help_heading = OUTPUT)]
    pub(super) log_format: LogFormat,

    /// Log warnings and errors only. `sync-once` then prints no report as text.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub(super) quiet: bool,

    /// Log each transition, and passes with nothing to do.
    #[arg(short, long, global = true, help_heading = OUTPUT)]
    pub(super) verbose: bool,

    /// When to use colors [auto: on a terminal, unless NO_COLOR is set].
    #[arg(long, global = true, value_enum, value_name = "WHEN", env = "VOICE_SYNC_COLOR", default_value_t, hide_short_help = true,
        help_heading = OUTPUT)]
    pub(super) color: Color,
}

#[derive(Debug, Args)]
pub(super) struct Budget {
    /// The requests to the provider that all processes with one key may send on average.
    #[arg(
        long,
        value_name = "N/TIME",
        env = "VOICE_SYNC_REQUEST_BUDGET",
        default_value = "60/min"
    )]
    pub(super) request_budget: RequestBudget,
}

#[derive(Debug, Args)]
pub(super) struct Nudge {
    /// Send one short text-to-speech request to each voice that has been in processing for this time and has no preview.
    /// It costs credits. Some instant clones get their preview only then [default: none].
    #[arg(long, value_name = "DURATION", env = "VOICE_SYNC_NUDGE_PREVIEWS", hide_short_help = true, value_parser = humantime::parse_duration)]
    nudge_previews: Option<Duration>,

    /// The number of such requests a day, for all processes with one key.
    #[arg(
        long,
        value_name = "N",
        env = "VOICE_SYNC_NUDGE_LIMIT",
        hide_short_help = true,
        default_value_t = 100
    )]
    nudge_limit: u32,

    /// The text of such a request.
    #[arg(long, value_name = "TEXT", env = "VOICE_SYNC_NUDGE_TEXT", hide_short_help = true, default_value = "Hi", value_parser = nudge_text)]
    nudge_text: String,

    /// The model of such a request.
    #[arg(
        long,
        value_name = "MODEL",
        env = "VOICE_SYNC_NUDGE_MODEL",
        hide_short_help = true,
        default_value = "eleven_flash_v2_5"
    )]
    nudge_model: String,
}

/// Limits the length of the text, because each character costs credits.
fn nudge_text(text: &str) -> Result<String, String> {
    const MOST: usize = 100;
    let text = text.trim();
    match (1..=MOST).contains(&text.chars().count()) {
        true => Ok(text.to_owned()),
        false => Err(format!("give a text of 1 to {MOST} characters")),
    }
}

impl Nudge {
    pub(super) fn nudger(self, runs_beside: bool, metrics: &NudgeMetrics) -> Option<Nudger> {
        let rules = NudgeRules {
            after: self.nudge_previews?,
            limit: self.nudge_limit,
        };
        let speech = Speech {
            text: self.nudge_text,
            model: self.nudge_model,
        };
        Some(Nudger::new(rules, speech, runs_beside, metrics.clone()))
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum LogFormat {
    #[default]
    Auto,
    /// For people.
    Text,
    /// For programs, one object a line.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Events {
    /// To Redis Streams, one for each type of event.
    Stream,
    /// To Redis channels.
    Pubsub,
    /// Not at all; none are recorded either.
    None,
}

/// A time limit; `None` is "never".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit(pub(super) Option<Duration>);

pub(super) fn limit(text: &str) -> Result<Limit, humantime::DurationError> {
    match text {
        "never" => Ok(Limit(None)),
        text => humantime::parse_duration(text).map(|duration| Limit(Some(duration))),
    }
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (SHORTEST..=LONGEST).contains(&interval) {
        true => Ok(interval),
        false => Err("give a time from 100ms to 24h".to_owned()),
    }
}

pub(super) fn concurrency(text: &str) -> Result<NonZeroU32, String> {
    const MOST: u32 = 1000;
    text.parse::<NonZeroU32>()
        .ok()
        .filter(|number| number.get() <= MOST)
        .ok_or_else(|| format!("give a whole number from 1 to {MOST}"))
}

/// Refuses a reference to a variable that was not expanded: shells and Compose expand them, systemd's EnvironmentFile
/// and Kubernetes do not.
fn refuse_unexpanded(url: &str, what: &str) -> Result<(), Failed> {
    let Some(reference) = url.find("${").map(|at| &url[at..]) else {
        return Ok(());
    };
    let name = reference.split_inclusive('}').next().unwrap_or_default();
    Err(Failed::usage(anyhow!(
        "{what} contains {name}, which was not expanded: write the value itself, or %7B for a brace that belongs there"
    )))
}

impl Options {
    /// The options of the log. Colours on stdout and stderr follow them from then on.
    pub(super) fn log(&self) -> LogOptions {
        let (choice, colour) = match self.color {
            Color::Auto => {
                let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
                (ColorChoice::Auto, logs::is_terminal() && wanted)
            }
            Color::Always => (ColorChoice::Always, true),
            Color::Never => (ColorChoice::Never, false),
        };
        choice.write_global();
        let format = match self.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
            LogFormat::Auto if !logs::is_terminal() && logs::is_for_machines() => Format::Json,
            LogFormat::Auto => Format::Text,
        };
        let level = match (self.quiet, self.verbose) {
            (true, _) => Some(LevelFilter::WARN),
            (false, true) => Some(LevelFilter::DEBUG),
            (false, false) => None,
        };
        LogOptions {
            format,
            colour,
            level,
        }
    }

    pub(super) fn database_url(&self) -> Result<DatabaseUrl, Failed> {
        let url = DATABASE_URL
            .resolve(self.database_url.clone())
            .map_err(Failed::config)?
            .ok_or_else(|| {
                Failed::config(anyhow!(
                    "there is no database; set DATABASE_URL, name a file that holds it with DATABASE_URL_FILE, \
                     or give --database-url"
                ))
            })?;
        refuse_unexpanded(
            url.expose_secret(),
            "the database URL (--database-url or DATABASE_URL)",
        )?;
        DatabaseUrl::parse(url.expose_secret())
            .context("the database URL (--database-url or DATABASE_URL) cannot be used")
            .map_err(Failed::usage)
    }

    pub(super) fn names(&self) -> Result<Names, Failed> {
        let parse = || {
            Ok::<_, anyhow::Error>(Names {
                table: TableName::parse(&self.table).context("--table")?,
                columns: ColumnNames::parse(&self.columns).context("--columns")?,
                statuses: StatusValues::parse(&self.status_values).context("--status-values")?,
                zone: NaiveZone::parse(&self.naive_timezone).context("--naive-timezone")?,
            })
        };
        parse().map_err(Failed::usage)
    }

    pub(super) fn rules(&self) -> Rules {
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

    pub(super) fn provider_url(&self) -> Result<BaseUrl, Failed> {
        let url = self.api_url.as_deref().filter(|url| !url.trim().is_empty());
        BaseUrl::parse(url.unwrap_or("https://api.elevenlabs.io"))
            .context("the provider's URL (--api-url or ELEVENLABS_BASE_URL) cannot be used")
            .map_err(Failed::usage)
    }

    pub(super) fn provider(&self) -> Result<Provider, Failed> {
        let base = self.provider_url()?;
        let key = secrets::api_key(self.api_key_file.clone()).map_err(Failed::config)?;
        Provider::new(base, &key, self.concurrency).map_err(Failed::config)
    }

    pub(super) fn publisher(&self) -> Result<Option<Publisher>, Failed> {
        let url = self.redis_url()?;
        let maxlen = self.event_maxlen;
        let (kind, url) = match (self.events, url) {
            (Some(Events::None), _) | (None, None) => return Ok(None),
            (Some(Events::Stream) | None, Some(url)) => (Kind::Stream { maxlen }, url),
            (Some(Events::Pubsub), Some(url)) => (Kind::PubSub, url),
            (Some(Events::Stream | Events::Pubsub), None) => {
                return Err(Failed::usage(anyhow!(
                    "--events needs a Redis: set REDIS_URL or REDIS_HOST, or --events none to go without"
                )));
            }
        };
        Publisher::new(url.expose_secret(), kind, self.event_prefix.clone())
            .context(UNUSABLE_REDIS)
            .map(Some)
            .map_err(Failed::usage)
    }

    pub(super) fn queue(&self) -> Result<Option<Queue>, Failed> {
        let Some(key) = self.queue.clone().filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        let url = self.redis_url()?.ok_or_else(|| {
            Failed::usage(anyhow!(
                "--queue needs a Redis: give --redis-url or REDIS_URL, or leave --queue out"
            ))
        })?;
        Queue::new(url.expose_secret(), key)
            .context(UNUSABLE_REDIS)
            .map(Some)
            .map_err(Failed::usage)
    }

    pub(super) fn redis_url(&self) -> Result<Option<SecretString>, Failed> {
        let url = REDIS_URL
            .resolve(self.redis_url.clone())
            .map_err(Failed::config)?;
        match url {
            Some(url) => {
                refuse_unexpanded(
                    url.expose_secret(),
                    "the Redis URL (--redis-url or REDIS_URL)",
                )?;
                Ok(Some(url))
            }
            None => Ok(secrets::redis_parts()),
        }
    }

    /// Whether the user disabled events explicitly.
    pub(super) fn wants_no_events(&self) -> bool {
        self.events == Some(Events::None)
    }
}
