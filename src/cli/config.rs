//! `voice-sync config`.

use std::collections::BTreeSet;

use anyhow::anyhow;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::config_file::{ConfigFile, global_options, options_of_setup};
use super::doctor::{self, Configured};
use super::secrets::{API_KEY, DATABASE_URL, OTHER_SECRETS, PING_URL, REDIS_HOST, REDIS_URL};
use super::{Cli, Options, Output, failure, print, variables};
use crate::core::exit::{Exit, Failed};
use crate::doctor::check::{Check, State};

/// Check or show the configuration: the command line, the environment and the configuration file.
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check the configuration, and connect to nothing.
    #[command(after_help = "\
Examples:
  voice-sync config check
  voice-sync config check --output json")]
    Check,
    /// Show each option with its value and where it comes from. Secrets are not shown.
    #[command(after_help = "\
Examples:
  voice-sync config show
  voice-sync config show --output json | jq '.options[] | select(.source != \"default\")'")]
    Show,
}

/// What a command with options of the setup reads from the environment and the file.
struct OfCommand {
    command: Command,
    given: ArgMatches,
    /// The options whose values are wrong. They are not in `given`.
    wrong: Vec<clap::Error>,
}

fn of_commands(file: Option<&ConfigFile>) -> Vec<OfCommand> {
    let applied = file.and_then(|file| file.apply(Cli::command()).ok());
    let command = variables::without_blank(applied.unwrap_or_else(Cli::command));
    let with_setup = command
        .get_subcommands()
        .filter(|sub| options_of_setup(sub).next().is_some());
    with_setup
        .filter_map(|sub| {
            let (given, wrong) = read(command.clone(), sub.get_name())?;
            let command = sub.clone();
            Some(OfCommand {
                command,
                given,
                wrong,
            })
        })
        .collect()
}

/// clap stops at the first wrong value. Its option is left out then, to find the next one.
fn read(mut command: Command, name: &str) -> Option<(ArgMatches, Vec<clap::Error>)> {
    let mut wrong = Vec::new();
    loop {
        let error = match command.clone().try_get_matches_from(["voice-sync", name]) {
            Ok(given) => return Some((given, wrong)),
            Err(error) => error,
        };
        let ContextValue::String(option) = error.get(ContextKind::InvalidArg)? else {
            return None;
        };
        // An option of every command stays in place.
        let is_known = |known: &clap::Error| {
            known.get(ContextKind::InvalidArg) == error.get(ContextKind::InvalidArg)
        };
        if wrong.iter().any(is_known) {
            return None;
        }
        let long = option.split(' ').next()?.strip_prefix("--")?.to_owned();
        command = command.mut_subcommand(name, |sub| {
            sub.mut_args(|option| match option.get_long() == Some(&long) {
                true => Arg::new(option.get_id().clone()),
                false => option,
            })
        });
        wrong.push(error);
    }
}

/// What is wrong with the values of options that this command itself does not have.
pub(super) fn wrong_values(file: Option<&ConfigFile>) -> Vec<Failed> {
    let command = Cli::command();
    let wrong = of_commands(file).into_iter().flat_map(|sub| sub.wrong);
    let says: BTreeSet<_> = wrong
        .map(|error| failure::message(&variables::named(error, &command, file)))
        .collect();
    says.into_iter()
        .map(|says| Failed::usage(anyhow!(says)))
        .collect()
}

impl Config {
    pub(super) fn run(
        &self,
        options: &Options,
        given: &ArgMatches,
        file: Option<&ConfigFile>,
    ) -> Result<Exit, Failed> {
        let mut checks = Vec::new();
        let configured = doctor::configured(options, file, &mut checks);
        let settings = settings(given, options, &configured, file);
        let exit = crate::doctor::check::exit(&checks);
        let errors = checks
            .iter()
            .filter(|check| matches!(check.state, State::Broken(_)));
        let errors: Vec<&Check> = errors.collect();
        let path = file.map(|file| file.path.display().to_string());
        let shown = match (&self.action, options.output) {
            (Action::Check, Output::Json) => {
                json!({"file": path, "errors": errors.iter().map(|check| &check.says).collect::<Vec<_>>(), "exit_code": exit.code()})
                    .to_string()
            }
            (Action::Check, Output::Text) => {
                let lines = errors.iter().map(|check| format!("error: {}", check.says));
                let verdict = match errors.is_empty() {
                    true => "the configuration is valid".to_owned(),
                    false => format!("{} found", crate::core::format::number_of(errors.len() as u64, "error", "errors")),
                };
                let from = path.map_or("no configuration file".to_owned(), |path| format!("file: {path}"));
                lines.chain([format!("{verdict} ({from})")]).collect::<Vec<_>>().join("\n")
            }
            (Action::Show, Output::Json) => json!({"file": path, "options": settings}).to_string(),
            (Action::Show, Output::Text) => {
                let width = settings.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
                let lines = settings.iter().map(|setting| {
                    let name = &setting.name;
                    let default = setting.default.as_ref().filter(|_| setting.is_default());
                    let value = setting.value.as_ref().or(default);
                    let value = value.map_or("-", String::as_str);
                    format!("{name:<width$}  {value}  ({})", setting.source)
                });
                lines.collect::<Vec<_>>().join("\n")
            }
        };
        print(&shown)?;
        Ok(match self.action {
            Action::Check => exit,
            Action::Show => Exit::Success,
        })
    }
}

/// An option of the setup, with its value and source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub(super) name: String,
    /// The value, without a password.
    pub(super) value: Option<String>,
    /// What its help says of the default, if that is not a value.
    #[serde(skip)]
    default: Option<String>,
    /// The command line, a variable, the configuration file, or `default`.
    pub(super) source: String,
}

impl Setting {
    const DEFAULT: &str = "default";

    pub(super) fn is_default(&self) -> bool {
        self.source == Self::DEFAULT
    }
}

/// The options of every command, those of single commands, and the secrets.
pub(super) fn settings(
    given: &ArgMatches,
    options: &Options,
    configured: &Configured,
    file: Option<&ConfigFile>,
) -> Vec<Setting> {
    let given = last(given);
    let command = Cli::command();
    let mut settings: Vec<_> = global_options(&command)
        .map(|option| {
            let shown = shown_otherwise(option.get_id().as_str(), options, configured);
            setting(option, given, file, shown)
        })
        .collect();
    for OfCommand { command, given, .. } in of_commands(file) {
        for option in options_of_setup(&command) {
            let option = setting(option, last(&given), file, None);
            let is_known = settings.iter().any(|known| known.name == option.name);
            if !is_known && option.name != PING_URL.name() {
                settings.push(option);
            }
        }
    }
    settings.extend(OTHER_SECRETS.iter().map(|secret| {
        let source = secret.origin();
        Setting {
            name: secret.name().to_owned(),
            value: source.as_ref().map(|_| "set".to_owned()),
            default: None,
            source: source.unwrap_or_else(|| Setting::DEFAULT.to_owned()),
        }
    }));
    settings
}

/// A source of an option in addition to those that clap knows, and the text that is shown as its value.
struct Shown {
    elsewhere: Option<String>,
    value: Option<String>,
}

/// For secrets, for URLs that may hold passwords, and for lists of names.
fn shown_otherwise(id: &str, options: &Options, configured: &Configured) -> Option<Shown> {
    let publisher = configured.publisher.as_ref().and_then(Option::as_ref);
    let names = configured.names.as_ref();
    let (elsewhere, value) = match id {
        "database_url" => (
            DATABASE_URL.origin(),
            configured.database.as_ref().map(ToString::to_string),
        ),
        "api_url" => (
            None,
            options.provider_url().ok().map(|base| base.to_string()),
        ),
        "redis_url" => (
            REDIS_URL
                .origin()
                .or(publisher.map(|_| REDIS_HOST.to_owned())),
            publisher.map(|publisher| format!("Redis at {}", publisher.address())),
        ),
        "api_key_file" => (
            API_KEY.origin(),
            configured.provider.as_ref().map(|_| "set".to_owned()),
        ),
        "columns" => (None, names.map(|names| names.columns.to_string())),
        "status_values" => (None, names.map(|names| names.statuses.to_string())),
        _ => return None,
    };
    Some(Shown { elsewhere, value })
}

fn setting(
    option: &Arg,
    given: &ArgMatches,
    file: Option<&ConfigFile>,
    shown: Option<Shown>,
) -> Setting {
    let id = option.get_id().as_str();
    let Shown { elsewhere, value } = shown.unwrap_or_else(|| {
        let raw = given.get_raw(id).into_iter().flatten();
        let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
        Shown {
            elsewhere: None,
            value: Some(values.join(",")),
        }
    });
    Setting {
        name: id.replace('_', "-"),
        value: value.filter(|value| !value.is_empty()),
        default: documented_default(option),
        source: origin(option, given, file)
            .or(elsewhere)
            .unwrap_or_else(|| Setting::DEFAULT.to_owned()),
    }
}

/// The text after `[default:` in the help of an option whose default is not a value.
fn documented_default(option: &Arg) -> Option<String> {
    let help = option.get_help()?.to_string();
    let (_, text) = help.split_once("[default: ")?;
    text.split_once(']').map(|(text, _)| text.to_owned())
}

/// The arguments of the innermost subcommand.
fn last(given: &ArgMatches) -> &ArgMatches {
    given.subcommand().map_or(given, |(_, given)| last(given))
}

fn origin(option: &Arg, given: &ArgMatches, file: Option<&ConfigFile>) -> Option<String> {
    let name = option.get_id().as_str();
    let source = given.value_source(name)?;
    // As when it is read: a blank value counts as unset.
    given
        .get_raw(name)?
        .find(|value| !value.to_string_lossy().trim().is_empty())?;
    if source == ValueSource::CommandLine {
        return Some("the command line".to_owned());
    }
    if source == ValueSource::EnvVariable {
        return Some(option.get_env()?.to_str()?.to_owned());
    }
    let file = file.filter(|file| option.get_long().is_some_and(|long| file.has(long)))?;
    Some(file.path.display().to_string())
}
