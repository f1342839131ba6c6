//! The configuration file. The keys are the long options. The command line and the environment take precedence over the
//! file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use anyhow::{Context, anyhow, bail};
use clap::{Arg, Command};
use toml::{Table, Value};

use super::secrets;

const DEFAULT_PATH: &str = "/etc/voice-sync/config.toml";
const VARIABLE: &str = "VOICE_SYNC_CONFIG";
/// Options of single commands that belong to the setup. All others describe one run, and may not be in a file.
const OF_COMMANDS: [&str; 16] = [
    "request-budget",
    "nudge-previews",
    "nudge-limit",
    "nudge-text",
    "nudge-model",
    "max-runtime",
    "ping-url",
    "metrics-file",
    "interval",
    "listen",
    "allowed-hosts",
    "max-age",
    "max-backlog",
    "max-set-aside",
    "max-silence",
    "max-event-age",
];

/// The contents of a configuration file.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    /// The values as they would be on the command line: one, or several for a list.
    values: BTreeMap<String, Vec<String>>,
}

impl ConfigFile {
    /// Reads the file that the command line or the environment names, or else the one at the default path, if it
    /// exists.
    pub(super) fn read() -> anyhow::Result<Option<Self>> {
        let words: Vec<_> = env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let pair = words.windows(2).find(|pair| pair[0] == "--config");
        let given = pair.map(|pair| pair[1].clone());
        let given = given.or_else(|| {
            let mut words = words.iter();
            words.find_map(|word| word.strip_prefix("--config=").map(ToOwned::to_owned))
        });
        let given = given.or_else(|| {
            env::var(VARIABLE)
                .ok()
                .filter(|path| !path.trim().is_empty())
        });
        let path = PathBuf::from(given.as_deref().unwrap_or(DEFAULT_PATH));
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(path, &text).map(Some),
            Err(error) if given.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Whoever may not enter the directory has no configuration there: it may hold only secrets of root's, which
            // systemd passes on as credentials.
            Err(_) if given.is_none() && is_out_of_reach(&path) => Ok(None),
            Err(error) => Err(error)
                .with_context(|| format!("cannot read the configuration file {}", path.display())),
        }
    }

    fn parse(path: PathBuf, text: &str) -> anyhow::Result<Self> {
        let place = path.display().to_string();
        let table: Table = text
            .parse()
            .with_context(|| format!("cannot read the configuration file {place}"))?;
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let texts = texts(&value).ok_or_else(|| {
                anyhow!(
                    "{key} in {place} is neither a text, a number, true, false nor a list of texts"
                )
            })?;
            values.insert(key, texts);
        }
        Ok(Self { path, values })
    }

    /// Makes the values the defaults of the options with these names.
    pub(super) fn apply(&self, mut command: Command) -> anyhow::Result<Command> {
        let place = self.path.display();
        for key in secrets::take_files(&self.values) {
            if secrets::may_hold_password(key) {
                bail!(
                    "{key} in {place} may hold a password: write it into a file of its own, and name that with {key}-file"
                );
            }
            let known = keys(&command);
            if !known.contains(key) {
                if is_an_option(&command, key) {
                    bail!("{key} in {place} belongs to a single run: give it on the command line");
                }
                let distance = |known: &&String| strsim::levenshtein(known, key);
                let nearest = known
                    .iter()
                    .min_by_key(distance)
                    .filter(|nearest| distance(nearest) <= 4);
                match nearest {
                    Some(nearest) => bail!("unknown key {key} in {place}; did you mean {nearest}?"),
                    None => bail!(
                        "unknown key {key} in {place}; its keys are the long options of voice-sync"
                    ),
                }
            }
            let texts = &self.values[key];
            command = map_options(command, &|option| match option.get_long() == Some(key) {
                // An empty list counts as unset.
                true => option.default_values(texts.clone()),
                false => option,
            });
        }
        Ok(command)
    }

    pub(super) fn has(&self, long: &str) -> bool {
        self.values.contains_key(long)
    }
}

/// Whether the directory denies access, so that it is unknown whether the file exists.
fn is_out_of_reach(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(on) => Some(on.to_string()),
        Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        Value::String(_)
        | Value::Integer(_)
        | Value::Boolean(_)
        | Value::Float(_)
        | Value::Datetime(_)
        | Value::Table(_) => text(value).map(|text| vec![text]),
    }
}

/// The keys of a file, apart from those of secrets.
fn keys(command: &Command) -> Vec<String> {
    let global = global_options(command).filter_map(Arg::get_long);
    let global = global.filter(|long| *long != "config");
    global.chain(OF_COMMANDS).map(ToOwned::to_owned).collect()
}

pub(super) fn global_options(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|option| option.is_global_set())
}

pub(super) fn options_of_setup(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|option| {
        option
            .get_long()
            .is_some_and(|long| OF_COMMANDS.contains(&long))
    })
}

fn is_an_option(command: &Command, long: &str) -> bool {
    command
        .get_arguments()
        .any(|option| option.get_long() == Some(long))
        || command
            .get_subcommands()
            .any(|command| is_an_option(command, long))
}

/// Changes the options of a command and of all commands below it.
pub(super) fn map_options(command: Command, change: &impl Fn(Arg) -> Arg) -> Command {
    let names: Vec<_> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let command = command.mut_args(change);
    names.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| map_options(sub, change))
    })
}

#[cfg(test)]
mod tests {
    use clap::{ArgMatches, CommandFactory};

    use super::*;
    use crate::cli::Cli;

    fn applied(text: &str) -> Result<Command, String> {
        let file = ConfigFile::parse(PathBuf::from("c.toml"), text)
            .map_err(|error| format!("{error:#}"))?;
        file.apply(Cli::command())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn command_line_overrides_the_configuration_file() {
        let text = "concurrency = 7\nfail-after = \"6h\"\ninterval = \"3s\"\nmodels = [\"a\", \"b\"]\nauto-migrate = true\n";
        let command = applied(text).expect("is valid");
        let parsed = |words: &[&str]| command.clone().try_get_matches_from(words).expect("parses");
        let by_file = parsed(&["voice-sync", "daemon"]);
        let raw = |matches: &ArgMatches, id: &str| {
            let (_, matches) = matches.subcommand().expect("a command");
            let raw = matches.get_raw(id).expect("is there");
            raw.map(|value| value.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(raw(&by_file, "concurrency"), ["7"]);
        assert_eq!(raw(&by_file, "interval"), ["3s"]);
        assert_eq!(raw(&by_file, "models"), ["a", "b"]);
        assert_eq!(raw(&by_file, "auto_migrate"), ["true"]);
        let by_both = parsed(&[
            "voice-sync",
            "daemon",
            "--concurrency",
            "9",
            "--interval=1s",
        ]);
        assert_eq!(raw(&by_both, "concurrency"), ["9"]);
        assert_eq!(raw(&by_both, "interval"), ["1s"]);
    }

    #[test]
    fn rejects_invalid_configuration_files_with_the_reason() {
        for (text, says) in [
            ("concurency = 4", "did you mean concurrency?"),
            ("whatever-this-may-be = 4", "its keys are the long options"),
            ("voice = [\"a\"]", "belongs to a single run"),
            (
                "database-url = \"postgresql://u:secret@h/d\"",
                "database-url-file",
            ),
            ("concurrency = 1.5", "neither a text"),
            ("[provider]\nconcurrency = 1", "neither a text"),
            (
                "concurrency = ",
                "cannot read the configuration file c.toml",
            ),
            ("concurrency = 1\nconcurrency = 2", "cannot read"),
        ] {
            let error = applied(text).map(drop).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
