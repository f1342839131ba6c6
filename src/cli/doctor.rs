//! `voice-sync doctor`: checks everything that `sync-once` needs, in the same order.

use clap::ArgMatches;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::{self, Setting};
use super::config_file::ConfigFile;
use super::ping::Ping;
use super::{
    Events, LOOKUP_TIMEOUT, Options, Output, OwnTables, at, in_time, own_tables, print, secrets,
};
use crate::core::exit::{Exit, Failed};
use crate::core::format::{number_of, span};
use crate::core::missing::MASS_ABSENCE_ADVICE;
use crate::core::provider_state::ProviderState;
use crate::core::voice::ProviderVoiceId;
use crate::doctor;
use crate::doctor::check::{self, Check, State};
use crate::events::publisher::Publisher;
use crate::events::queue::Queue;
use crate::provider::{Provider, RequestDeadline};
use crate::status::NUDGING_ADVICE;
use crate::store::{Access, Database, DatabaseUrl, Names, Selection, Store, StoreError};
use crate::sync::MAX_COOLDOWN;

const CONFIGURATION: &str = "configuration";
/// The maximum number of voices that are looked up.
const SAMPLE: u32 = 20;

/// Information from the database for the checks of the provider.
#[derive(Default)]
struct Known {
    /// A few voices in processing.
    sample: Vec<ProviderVoiceId>,
    /// The circuit breaker is open: no requests may be sent.
    is_circuit_open: bool,
}

/// The configured components; `None` if their options are invalid.
pub(super) struct Configured {
    pub(super) database: Option<DatabaseUrl>,
    pub(super) names: Option<Names>,
    pub(super) provider: Option<Provider>,
    /// `Some(None)`: no event bus is configured.
    pub(super) publisher: Option<Option<Publisher>>,
    pub(super) queue: Option<Option<Queue>>,
}

/// Checks the options, and connects to nothing.
pub(super) fn configured(
    options: &Options,
    file: Option<&ConfigFile>,
    checks: &mut Vec<Check>,
) -> Configured {
    let configured = Configured {
        database: kept(checks, options.database_url()),
        names: kept(checks, options.names()),
        provider: kept(checks, options.provider()),
        publisher: kept(checks, options.publisher()),
        queue: kept(checks, options.queue()),
    };
    for wrong in config::wrong_values(file) {
        kept::<()>(checks, Err(wrong));
    }
    kept(checks, secrets::listen_token().map_err(Failed::config));
    if let Some(Some(url)) = kept(checks, secrets::PING_URL.find().map_err(Failed::config)) {
        kept(checks, Ping::new(&url).map_err(Failed::usage));
    }
    let hints = kept(checks, secrets::hint_secrets().map_err(Failed::config));
    if let Some((secret, Some(_))) = hints {
        let takes = match secret {
            Some(_) => "signed webhooks, and hints with a token",
            None => "hints with a token",
        };
        let says = format!("a daemon with --listen takes {takes}");
        checks.push(Check::fine(CONFIGURATION, says));
    }
    configured
}

pub(super) async fn run(
    options: &Options,
    given: &ArgMatches,
    file: Option<&ConfigFile>,
) -> Result<Exit, Failed> {
    let mut checks = Vec::new();
    let configured = configured(options, file, &mut checks);
    checks.extend(configuration(&config::settings(
        given,
        options,
        &configured,
        file,
    )));
    let Configured {
        database,
        names,
        provider,
        publisher,
        queue,
    } = configured;
    let mut known = Known::default();
    if let (Some(url), Some(names)) = (&database, &names) {
        let account = provider.as_ref().map(Provider::account);
        let look = look_at(&mut checks, &mut known, options, account, url, names);
        let looked_at = in_time(url, look).await;
        kept(&mut checks, looked_at);
    }
    if known.is_circuit_open {
        checks.push(Check::doubtful(
            "provider",
            "not checked: the circuit breaker is open, or a cooldown is active",
            "run `voice-sync doctor` again when it is over",
        ));
    } else if let Some(provider) = &provider {
        let stop = CancellationToken::new();
        let deadline = RequestDeadline {
            until: tokio::time::Instant::now() + LOOKUP_TIMEOUT,
            stop: &stop,
        };
        let checking =
            doctor::provider::provider(provider, &known.sample, options.lookup, deadline);
        checks.extend(checking.await);
    }
    match publisher {
        Some(Some(publisher)) => checks.extend(doctor::events::bus(&publisher).await),
        Some(None) if options.events == Some(Events::None) => {
            checks.push(Check::fine(
                "event bus",
                "no events are recorded (--events none)",
            ));
        }
        Some(None) => checks.push(Check::doubtful(
            "event bus",
            "not configured: no events are recorded, and the application's cache keeps the old status",
            "set REDIS_URL or REDIS_HOST, or --events none to go without",
        )),
        None => {}
    }
    if let Some(Some(queue)) = queue {
        checks.push(doctor::events::queue(&queue).await);
    }
    let exit = check::exit(&checks);
    print(&text(&checks, exit, options.output))?;
    Ok(exit)
}

/// Returns the value, or adds a check that describes the error.
fn kept<T>(checks: &mut Vec<Check>, result: Result<T, Failed>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Failed { exit, message, .. }) => {
            let check = match exit {
                Exit::Database | Exit::Io => "database",
                Exit::Success
                | Exit::Declined
                | Exit::Usage
                | Exit::Temporary
                | Exit::Key
                | Exit::Config => CONFIGURATION,
            };
            checks.push(Check::broken(check, exit, format!("{message:#}")));
            None
        }
    }
}

/// The options that are set, with their sources; the others in one line.
fn configuration(settings: &[Setting]) -> Vec<Check> {
    let shown = settings
        .iter()
        .filter_map(|setting| Some((setting, setting.value.as_ref()?)));
    let (defaults, set): (Vec<_>, Vec<_>) = shown.partition(|(setting, _)| setting.is_default());
    let mut checks: Vec<_> = set
        .into_iter()
        .map(|(Setting { name, source, .. }, value)| {
            Check::fine(CONFIGURATION, format!("{name}: {value} (from {source})"))
        })
        .collect();
    // Lists of names would hide the rest.
    let is_short =
        |setting: &&Setting| !["columns", "status-values"].contains(&setting.name.as_str());
    let defaults = defaults
        .iter()
        .filter(|(setting, _)| is_short(setting))
        .map(|(setting, value)| format!("{}: {value}", setting.name));
    let defaults = defaults.collect::<Vec<_>>().join(", ");
    checks.push(Check::fine(
        CONFIGURATION,
        format!("by default, {defaults}"),
    ));
    checks
}

/// Checks the database, voice-sync's own tables and the application's table. Returns the error that a pass would end
/// with.
async fn look_at(
    checks: &mut Vec<Check>,
    known: &mut Known,
    options: &Options,
    account: Option<Uuid>,
    url: &DatabaseUrl,
    names: &Names,
) -> Result<(), Failed> {
    let at = at(url);
    let database = Database::connect(url, Access::ReadWrite)
        .await
        .map_err(&at)?;
    checks.push(doctor::database::database(&database).await.map_err(&at)?);
    let state = database.migration_state().await.map_err(&at)?;
    const OWN: &str = "own tables";
    let there = match own_tables(&database, state, options.auto_migrate, Access::ReadWrite) {
        Ok(OwnTables::There) => {
            let version = database.newest_migration();
            checks.push(Check::fine(OWN, format!("version {version}, up to date")));
            true
        }
        Ok(OwnTables::ToMake | OwnTables::Unneeded) => {
            checks.push(Check::fine(OWN, "the next pass creates or updates them"));
            false
        }
        Err(reason) => {
            checks.push(Check::broken(OWN, Exit::Config, reason.to_string()));
            false
        }
    };
    let store = Store::open(database, names, there, Access::ReadWrite)
        .await
        .map_err(&at)?;
    checks.extend(doctor::database::table(&store, names).await);
    if there {
        checks.push(outbox(&store).await.map_err(&at)?);
        if let Some(account) = account {
            let memory = store.load_state(account).await.map_err(&at)?;
            let state = memory.provider;
            known.is_circuit_open = state.is_open() || !state.cooldown.is_zero();
            checks.push(breaker(state));
            checks.extend(memory.mass_absence.then(mass_absence));
            let nudging = store.nudging(account).await.map_err(&at)?;
            let stopped = nudging.stops();
            checks.extend(stopped.map(|says| Check::doubtful("nudging", says, NUDGING_ADVICE)));
        }
    }
    known.sample = voices(&store).await.map_err(at)?;
    Ok(())
}

async fn outbox(store: &Store) -> Result<Check, StoreError> {
    const CHECK: &str = "outbox";
    let pending = store.pending_events(None).await?.all;
    Ok(match pending {
        0 => Check::fine(CHECK, "no events wait to be published"),
        events => Check::doubtful(
            CHECK,
            format!(
                "{} to be published",
                number_of(events, "event waits", "events wait")
            ),
            "the next pass with a Redis URL publishes them",
        ),
    })
}

fn mass_absence() -> Check {
    Check::doubtful(
        "missing voices",
        "too many voices are missing under this key, which is probably of another workspace; no voice fails because it is missing",
        MASS_ABSENCE_ADVICE,
    )
}

fn breaker(state: ProviderState) -> Check {
    const CHECK: &str = "breaker";
    const ADVICE: &str = "wait: the provider was unavailable, or sent Retry-After";
    let pause = state.open_for.max(state.cooldown);
    let says = format!(
        "no request is sent to the provider for another {}",
        span(pause)
    );
    if state.is_open() || state.cooldown > MAX_COOLDOWN {
        Check::broken(CHECK, Exit::Temporary, says).advise(ADVICE)
    } else if !state.cooldown.is_zero() {
        Check::doubtful(CHECK, says, "a pass waits for this time")
    } else {
        Check::fine(CHECK, "closed")
    }
}

/// A few voices in processing that have a valid provider id.
async fn voices(store: &Store) -> Result<Vec<ProviderVoiceId>, StoreError> {
    let page = store.peek(&Selection::all(), SAMPLE).await?;
    let mut ids: Vec<_> = page
        .voices
        .iter()
        .filter_map(|voice| voice.checked_id().ok())
        .collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

fn text(checks: &[Check], exit: Exit, output: Output) -> String {
    match output {
        Output::Text => {
            let lines = checks.iter().map(Check::colored);
            lines
                .chain([summary(checks)])
                .collect::<Vec<_>>()
                .join("\n")
        }
        Output::Json => json!({"findings": checks, "exit_code": exit.code()}).to_string(),
    }
}

fn summary(checks: &[Check]) -> String {
    let count =
        |is: fn(&State) -> bool| checks.iter().filter(|check| is(&check.state)).count() as u64;
    let errors = count(|state| matches!(state, State::Broken(_)));
    let warnings = count(|state| matches!(state, State::Doubtful));
    match (errors, warnings) {
        (0, 0) => "no problems found".to_owned(),
        (errors, warnings) => format!(
            "{}, {}",
            number_of(errors, "error", "errors"),
            number_of(warnings, "warning", "warnings")
        ),
    }
}
