//! Environment variables: finds unknown ones, and names the variable in errors about its value.

use std::env;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory};

use super::Cli;
use super::config_file::{ConfigFile, map_options};
use super::secrets;

const PREFIX: &str = "VOICE_SYNC_";
/// Variables that Kubernetes sets for a Service with the name voice-sync, and those of this repository's tests.
const OTHERS: [&str; 3] = ["VOICE_SYNC_SERVICE_", "VOICE_SYNC_PORT", "VOICE_SYNC_TEST_"];
/// Streams may be named without a prefix.
const MAY_BE_BLANK: &str = "event-prefix";
/// The maximum number of wrong letters in a misspelt name.
const MISSPELT: usize = 4;

fn all_arguments(command: &Command) -> Vec<&Arg> {
    let below = command.get_subcommands().flat_map(all_arguments);
    command.get_arguments().chain(below).collect()
}

/// Makes blank variables count as unset, as an `EnvironmentFile` or Compose sets them for lack of a value.
pub(super) fn without_blank(command: Command) -> Command {
    let is_blank = |option: &Arg| {
        let value = option.get_env().and_then(env::var_os);
        let is_blank = value.is_some_and(|value| value.to_string_lossy().trim().is_empty());
        is_blank && option.get_long() != Some(MAY_BE_BLANK)
    };
    map_options(command, &|option| match is_blank(&option) {
        true => option.env(Resettable::Reset),
        false => option,
    })
}

/// An error that lists the unknown variables with voice-sync's prefix: they may be misspelt.
pub(super) fn unknown(command: &mut Command) -> Option<clap::Error> {
    let variables = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let says = unknown_among(variables, &known(&Cli::command()));
    let message = (!says.is_empty()).then(|| says.join("\n"))?;
    Some(command.error(ErrorKind::UnknownArgument, message))
}

fn known(command: &Command) -> Vec<String> {
    let of_arguments = all_arguments(command).into_iter().filter_map(Arg::get_env);
    let of_arguments = of_arguments.map(|name| name.to_string_lossy().into_owned());
    let failpoints = cfg!(feature = "failpoints").then_some("VOICE_SYNC_FAILPOINTS");
    let others = secrets::variables().chain(failpoints);
    of_arguments
        .chain(others.map(ToOwned::to_owned))
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

fn unknown_among(variables: impl Iterator<Item = String>, known: &[String]) -> Vec<String> {
    let is_unknown = |name: &String| {
        name.starts_with(PREFIX)
            && !known.contains(name)
            && !OTHERS.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut unknown: Vec<_> = variables.filter(is_unknown).collect();
    unknown.sort();
    let says = unknown.iter().map(|name| {
        let distance = |known: &&String| strsim::levenshtein(known, name);
        let nearest = known.iter().min_by_key(distance);
        match nearest.filter(|nearest| distance(nearest) <= MISSPELT) {
            Some(nearest) => format!("unknown variable {name}; did you mean {nearest}?"),
            None => format!("unknown variable {name}; `voice-sync help` lists all of them"),
        }
    });
    says.collect()
}

/// Adds the name of the variable to an error about its value, unless the value is from the command line.
pub(super) fn named(
    mut error: clap::Error,
    command: &Command,
    file: Option<&ConfigFile>,
) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = argument.split([' ', '=']).next().unwrap_or_default();
    let is_given = env::args().any(|given| {
        given
            .strip_prefix(flag)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let is_it = |argument: &&Arg| argument.get_long() == flag.strip_prefix("--");
    let variable = all_arguments(command)
        .into_iter()
        .find(is_it)
        .and_then(Arg::get_env)
        .filter(|name| !is_given && env::var_os(name).is_some());
    if let (None, false, Some(file)) = (variable, is_given, file)
        && let Some(key) = flag.strip_prefix("--").filter(|key| file.has(key))
    {
        let place = format!("{key} in {}", file.path.display());
        error.insert(ContextKind::InvalidArg, ContextValue::String(place));
    }
    if let Some(name) = variable {
        let name = ContextValue::String(name.to_string_lossy().into_owned());
        error.insert(ContextKind::InvalidArg, name);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_unknown_variables_except_those_of_kubernetes() {
        let known = known(&Cli::command());
        let says = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            unknown_among(names, &known)
        };
        assert_eq!(
            says(&[
                "PATH",
                "VOICE_SYNC_CONCURRENCY",
                "VOICE_SYNC_NUDGE_LIMIT",
                "VOICE_SYNC_HINTS_TOKEN_FILE",
                "VOICE_SYNC_SERVICE_HOST",
                "VOICE_SYNC_PORT_9090_TCP_ADDR",
                "VOICE_SYNCD_SERVICE_PORT",
            ]),
            [""; 0]
        );
        assert_eq!(
            says(&["VOICE_SYNC_CONCURENCY", "VOICE_SYNC_WHATEVER_THIS_IS"]),
            [
                "unknown variable VOICE_SYNC_CONCURENCY; did you mean VOICE_SYNC_CONCURRENCY?",
                "unknown variable VOICE_SYNC_WHATEVER_THIS_IS; `voice-sync help` lists all of them"
            ]
        );
    }
}
