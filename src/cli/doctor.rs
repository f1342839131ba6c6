//! `voice-sync doctor`: looks at everything that `sync-once` would meet, in its order.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cli, Events, Options, Output, OwnTables, at, in_time, own_tables, print};
use crate::events::relay::Relay;
use crate::exit::{Exit, Failed};
use crate::finding::{self, Finding};
use crate::missing::MASS_ABSENCE_ADVICE;
use crate::pass::LONGEST_HOLD;
use crate::provider::{Patience, Provider};
use crate::settings::{API_KEY, CREDENTIALS, DATABASE_URL, REDIS_URL};
use crate::standing::Standing;
use crate::store::{Access, Database, DatabaseUrl, Names, Selection, Store, StoreError};
use crate::voice::ProviderVoiceId;

const CONFIGURATION: &str = "configuration";
/// Voices that the provider is asked about.
const SAMPLE: u32 = 20;

/// What the database says that matters for asking the provider.
#[derive(Default)]
struct Known {
    /// A few voices in processing.
    sample: Vec<ProviderVoiceId>,
    /// Nobody is to ask it now.
    left_in_peace: bool,
}

pub(super) async fn run(options: &Options, given: &ArgMatches) -> Result<Exit, Failed> {
    let mut findings = Vec::new();
    let database = kept(&mut findings, options.database_url());
    let names = kept(&mut findings, options.names());
    let provider = kept(&mut findings, options.provider());
    let relay = kept(&mut findings, options.relay());
    let queue = kept(&mut findings, options.queue());
    findings.extend(configuration(
        given,
        database.as_ref(),
        relay.as_ref().and_then(Option::as_ref),
        provider.as_ref(),
    ));
    let mut known = Known::default();
    if let (Some(url), Some(names)) = (&database, &names) {
        let account = provider.as_ref().map(Provider::account);
        let look = look_at(&mut findings, &mut known, options, account, url, names);
        let looked_at = in_time(url, look).await;
        kept(&mut findings, looked_at);
    }
    if known.left_in_peace {
        findings.push(Finding::doubtful(
            "provider",
            "it was not asked, as it is left in peace",
            "run this again when that is over",
        ));
    } else if let Some(provider) = &provider {
        let stop = CancellationToken::new();
        let patience = Patience {
            until: tokio::time::Instant::now() + super::PATIENCE,
            stop: &stop,
        };
        let checkup = provider.checkup(&known.sample, options.lookup, patience);
        findings.extend(checkup.await);
    }
    match relay {
        Some(Some(relay)) => findings.extend(relay.checkup().await),
        Some(None) if options.events == Some(Events::None) => {
            findings.push(Finding::fine(
                "event bus",
                "no events are recorded, as --events says",
            ));
        }
        Some(None) => findings.push(Finding::doubtful(
            "event bus",
            "there is none: no events are recorded, and nobody hears of a finished voice",
            "give --redis-url or REDIS_URL, or say --events none",
        )),
        None => {}
    }
    if let Some(Some(queue)) = queue {
        findings.push(queue.checkup().await);
    }
    let exit = finding::exit(&findings);
    print(&text(&findings, exit, options.output))?;
    Ok(exit)
}

/// The value, or else a finding that says what is wrong.
fn kept<T>(findings: &mut Vec<Finding>, result: Result<T, Failed>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Failed { exit, message }) => {
            let check = match exit {
                Exit::Database | Exit::Io => "database",
                Exit::Success | Exit::Usage | Exit::Temporary | Exit::Key | Exit::Config => {
                    CONFIGURATION
                }
            };
            findings.push(Finding::broken(check, exit, format!("{message:#}")));
            None
        }
    }
}

/// What was given, and where; what was not is told in one line.
fn configuration(
    given: &ArgMatches,
    database: Option<&DatabaseUrl>,
    relay: Option<&Relay>,
    provider: Option<&Provider>,
) -> Vec<Finding> {
    let given = given.subcommand().map_or(given, |(_, given)| given);
    let command = Cli::command();
    let mut defaults = Vec::new();
    let mut findings = Vec::new();
    for option in command
        .get_arguments()
        .filter(|option| option.is_global_set())
    {
        let name = option.get_id().as_str();
        let words = || {
            let raw = given.get_raw(name).into_iter().flatten();
            let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
            values.join(",")
        };
        let (origin, value) = match name {
            "database_url" => (
                origin(option, given).or(DATABASE_URL.origin()),
                database.map(ToString::to_string),
            ),
            "api_url" => (
                origin(option, given),
                provider.map(|p| p.base().to_string()),
            ),
            "redis_url" => (
                origin(option, given).or(REDIS_URL.origin()),
                relay.map(|relay| format!("Redis at {}", relay.address())),
            ),
            "api_key_file" => (
                origin(option, given)
                    .or(API_KEY.origin())
                    .or(provider.map(|_| CREDENTIALS)),
                provider.map(|_| "there is a key".to_owned()),
            ),
            _ => (origin(option, given), Some(words())),
        };
        let name = name.replace('_', "-");
        match (origin, value.filter(|value| !value.is_empty())) {
            (Some(origin), Some(value)) => findings.push(Finding::fine(
                CONFIGURATION,
                format!("{name}: {value} (from {origin})"),
            )),
            (None, Some(value)) => defaults.push(format!("{name}: {value}")),
            (Some(_) | None, None) => {}
        }
    }
    let defaults = format!("by default, {}", defaults.join(", "));
    findings.push(Finding::fine(CONFIGURATION, defaults));
    findings
}

fn origin<'a>(option: &'a Arg, given: &ArgMatches) -> Option<&'a str> {
    let name = option.get_id().as_str();
    let source = given.value_source(name)?;
    // As when it is read: what is blank was not given.
    given
        .get_raw(name)?
        .find(|value| !value.to_string_lossy().trim().is_empty())?;
    if source == ValueSource::CommandLine {
        return Some("the command line");
    }
    let variable = option.get_env()?.to_str();
    variable.filter(|_| source == ValueSource::EnvVariable)
}

/// The database, voice-sync's own tables and the application's. An error is what a pass would end
/// with.
async fn look_at(
    findings: &mut Vec<Finding>,
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
    findings.push(database.checkup().await.map_err(&at)?);
    let state = database.migration_state().await.map_err(&at)?;
    const OWN: &str = "own tables";
    let there = match own_tables(&database, state, options.auto_migrate, Access::ReadWrite) {
        Ok(OwnTables::There) => {
            let version = database.newest_migration();
            findings.push(Finding::fine(
                OWN,
                format!("of version {version}, as needed"),
            ));
            true
        }
        Ok(OwnTables::ToMake | OwnTables::Unneeded) => {
            findings.push(Finding::fine(
                OWN,
                "the next pass makes them or brings them up to date",
            ));
            false
        }
        Err(reason) => {
            findings.push(Finding::broken(OWN, Exit::Config, reason.to_string()));
            false
        }
    };
    let store = Store::open(database, names, there, Access::ReadWrite)
        .await
        .map_err(&at)?;
    store.checkup(names, findings).await;
    if there {
        findings.push(outbox(&store).await.map_err(&at)?);
        if let Some(account) = account {
            let memory = store.remember(account).await.map_err(&at)?;
            let standing = memory.standing;
            known.left_in_peace = standing.is_open() || !standing.hold_for.is_zero();
            findings.push(breaker(standing));
            findings.extend(memory.mass_absence.then(mass_absence));
        }
    }
    known.sample = voices(&store).await.map_err(at)?;
    Ok(())
}

async fn outbox(store: &Store) -> Result<Finding, StoreError> {
    const CHECK: &str = "outbox";
    let pending = store.pending_events(None).await?.all;
    Ok(match pending {
        0 => Finding::fine(CHECK, "no event waits to be published"),
        events => Finding::doubtful(
            CHECK,
            format!("{events} events wait to be published"),
            "the next pass with a Redis URL publishes them",
        ),
    })
}

fn mass_absence() -> Finding {
    Finding::doubtful(
        "missing voices",
        "too many are missing under this key: it is probably of another workspace, and no voice fails for being missing",
        MASS_ABSENCE_ADVICE,
    )
}

fn breaker(standing: Standing) -> Finding {
    const CHECK: &str = "breaker";
    const ADVICE: &str = "wait: it did not answer lately, or asked for a pause itself";
    let pause = standing.open_for.max(standing.hold_for);
    let says = format!("the provider is left in peace for another {pause:.0?}");
    if standing.is_open() || standing.hold_for > LONGEST_HOLD {
        Finding::broken(CHECK, Exit::Temporary, says).advise(ADVICE)
    } else if !standing.hold_for.is_zero() {
        Finding::doubtful(CHECK, says, "a pass waits for so long")
    } else {
        Finding::fine(CHECK, "nothing keeps a pass from asking the provider")
    }
}

/// A few voices in processing that the provider can be asked about.
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

fn text(findings: &[Finding], exit: Exit, output: Output) -> String {
    match output {
        Output::Text => findings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
        Output::Json => json!({"findings": findings, "exit_code": exit.code()}).to_string(),
    }
}
