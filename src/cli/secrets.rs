//! Reads secrets and addresses from the command line, the environment and files. Nothing here connects to anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

use anyhow::{Context, anyhow, bail};
use secrecy::{ExposeSecret, SecretString};

/// The sources of a value: a variable, or a file whose path is in a variable, as orchestrators mount secrets. An empty
/// variable counts as unset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// The variable that contains the value.
    pub(crate) variable: &'static str,
    /// The variable that contains the path of a file with the value.
    pub(crate) file_variable: &'static str,
    /// The key in the configuration file that contains the path.
    key: &'static str,
    /// The name of the systemd credential that contains the value, if there is one.
    credential: Option<&'static str>,
}

/// Whether a value may contain a password. A configuration file contains the path of a file for it instead.
pub(crate) fn may_hold_password(key: &str) -> bool {
    SOURCES.iter().any(|source| source.name() == key)
}

/// The paths in the configuration file, by key. They are read once, at the start.
static FILES: OnceLock<BTreeMap<String, String>> = OnceLock::new();

/// Takes the paths of secrets from the values of a configuration file. Returns the other keys.
pub(crate) fn take_files(values: &BTreeMap<String, Vec<String>>) -> Vec<&String> {
    let is_secret = |key: &String| SOURCES.iter().any(|source| source.key == key);
    let (secrets, others): (Vec<_>, Vec<_>) = values.iter().partition(|(key, _)| is_secret(key));
    let files = secrets
        .into_iter()
        .map(|(key, texts)| (key.clone(), texts.concat()));
    let _again = FILES.set(files.collect());
    others.into_iter().map(|(key, _)| key).collect()
}

pub(crate) const DATABASE_URL: Source = Source {
    variable: "DATABASE_URL",
    file_variable: "DATABASE_URL_FILE",
    key: "database-url-file",
    credential: None,
};
pub(crate) const REDIS_URL: Source = Source {
    variable: "REDIS_URL",
    file_variable: "REDIS_URL_FILE",
    key: "redis-url-file",
    credential: None,
};
/// The variable with the directory of systemd's credentials.
pub(crate) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
pub(crate) const API_KEY: Source = Source {
    variable: "ELEVENLABS_API_KEY",
    file_variable: "ELEVENLABS_API_KEY_FILE",
    key: "api-key-file",
    credential: Some("elevenlabs-api-key"),
};
/// The key of webhook signatures.
const WEBHOOK_SECRET: Source = Source {
    variable: "ELEVENLABS_WEBHOOK_SECRET",
    file_variable: "ELEVENLABS_WEBHOOK_SECRET_FILE",
    key: "webhook-secret-file",
    credential: Some("elevenlabs-webhook-secret"),
};
/// The bearer token of the application's hints.
const HINTS_TOKEN: Source = Source {
    variable: "VOICE_SYNC_HINTS_TOKEN",
    file_variable: "VOICE_SYNC_HINTS_TOKEN_FILE",
    key: "hints-token-file",
    credential: Some("voice-sync-hints-token"),
};

/// The URL of a dead man's switch. The URL is secret.
pub(crate) const PING_URL: Source = Source {
    variable: "VOICE_SYNC_PING_URL",
    file_variable: "VOICE_SYNC_PING_URL_FILE",
    key: "ping-url-file",
    credential: Some("voice-sync-ping-url"),
};
/// The token of clients of `--listen`.
const LISTEN_TOKEN: Source = Source {
    variable: "VOICE_SYNC_LISTEN_TOKEN",
    file_variable: "VOICE_SYNC_LISTEN_TOKEN_FILE",
    key: "listen-token-file",
    credential: Some("voice-sync-listen-token"),
};
const SOURCES: [Source; 7] = [
    DATABASE_URL,
    REDIS_URL,
    API_KEY,
    WEBHOOK_SECRET,
    HINTS_TOKEN,
    PING_URL,
    LISTEN_TOKEN,
];
/// Secrets without an option of every command.
pub(crate) const OTHER_SECRETS: [Source; 4] = [PING_URL, LISTEN_TOKEN, WEBHOOK_SECRET, HINTS_TOKEN];

/// The URL of a dead man's switch, if there is one: from the option, or else from the variable.
pub(crate) fn ping_url(given: Option<String>) -> anyhow::Result<Option<SecretString>> {
    PING_URL.find_unless(given)
}

pub(crate) fn listen_token() -> anyhow::Result<Option<SecretString>> {
    LISTEN_TOKEN.find()
}

/// The variables of these sources that begin with voice-sync's prefix.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    let variables = SOURCES
        .into_iter()
        .flat_map(|source| [source.variable, source.file_variable]);
    variables.filter(|name| name.starts_with("VOICE_SYNC_"))
}

impl Source {
    /// Fails if both variables are set: one of them is a mistake, and it is unknown which.
    fn check(&self) -> anyhow::Result<()> {
        if variable(self.variable).is_some() && variable(self.file_variable).is_some() {
            bail!(
                "{} and {} are both set; unset one of them",
                self.variable,
                self.file_variable
            );
        }
        Ok(())
    }

    /// The variable that is set, or else the key of the configuration file or systemd's credential, if any.
    pub(crate) fn origin(&self) -> Option<String> {
        let variables = [self.variable, self.file_variable].into_iter();
        let mut set = variables.filter(|name| variable(name).is_some());
        set.next()
            .or(self.file_of_configuration().map(|_| self.key))
            .map(ToOwned::to_owned)
            .or_else(|| Some(format!("{CREDENTIALS}/{}", self.name_of_credential()?)))
    }

    /// The name of the credential, if systemd provides it.
    fn name_of_credential(&self) -> Option<&'static str> {
        let (directory, name) = variable(CREDENTIALS).zip(self.credential)?;
        Path::new(&directory).join(name).exists().then_some(name)
    }

    /// The name among the options.
    pub(crate) fn name(&self) -> &'static str {
        self.key.trim_end_matches("-file")
    }

    fn file_of_configuration(&self) -> Option<String> {
        FILES.get()?.get(self.key).cloned()
    }

    /// The value from the environment, or else from systemd's credentials.
    pub(crate) fn find(&self) -> anyhow::Result<Option<SecretString>> {
        self.find_unless(variable(self.variable))
    }

    /// The given value, or else the one of [`Source::find`].
    fn find_unless(&self, given: Option<String>) -> anyhow::Result<Option<SecretString>> {
        let found = self.resolve(given.map(|value| value.trim().to_owned()))?;
        match (found, self.name_of_credential()) {
            (None, Some(name)) => {
                let directory = variable(CREDENTIALS).unwrap_or_default();
                read_secret(&Path::new(&directory).join(name), CREDENTIALS).map(Some)
            }
            (found, _) => Ok(found),
        }
    }

    /// `given` is the option, or else the variable. Without either, the file is read.
    pub(crate) fn resolve(&self, given: Option<String>) -> anyhow::Result<Option<SecretString>> {
        self.check()?;
        if let Some(value) = given.filter(|value| !value.trim().is_empty()) {
            return Ok(Some(value.into()));
        }
        let by_variable = variable(self.file_variable).map(|path| (path, self.file_variable));
        let by_file = || self.file_of_configuration().map(|path| (path, self.key));
        let file = by_variable.or_else(by_file);
        file.map(|(path, named_by)| read_secret(Path::new(&path), named_by))
            .transpose()
    }
}

/// The provider's key: from `--api-key-file`, or else the environment, or else systemd's credentials. The command line
/// itself cannot contain it, because every user of the machine can read command lines.
pub(crate) fn api_key(flag: Option<PathBuf>) -> anyhow::Result<SecretString> {
    API_KEY.check()?;
    if let Some(path) = flag {
        return read_secret(&path, "--api-key-file");
    }
    API_KEY.find()?.ok_or_else(|| {
        anyhow!(
            "there is no API key; set ELEVENLABS_API_KEY, or name a file that holds it with \
             --api-key-file or ELEVENLABS_API_KEY_FILE"
        )
    })
}

/// The key of webhook signatures, and the token of the application's hints. Without a token of its own, the application
/// uses the key. Without either, no hints are accepted.
pub(crate) fn hint_secrets() -> anyhow::Result<(Option<SecretString>, Option<SecretString>)> {
    let (secret, token) = (WEBHOOK_SECRET.find()?, HINTS_TOKEN.find()?);
    let token = token.or_else(|| secret.clone());
    Ok((secret, token))
}

/// The variables that replace a Redis URL if the application has no such URL.
pub(crate) const REDIS_HOST: &str = "REDIS_HOST";

/// A Redis URL from `REDIS_HOST`, `REDIS_PORT`, `REDIS_PASSWORD` and `REDIS_DB`, if there is a host.
pub(crate) fn redis_parts() -> Option<SecretString> {
    let host = variable(REDIS_HOST)?;
    let part =
        |name: &str, before: &str| variable(name).map(|value| format!("{before}{}", value.trim()));
    let password = variable("REDIS_PASSWORD").map(|password| {
        let encoded: String = password
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        format!(":{encoded}@")
    });
    let (port, database) = (part("REDIS_PORT", ":"), part("REDIS_DB", "/"));
    let parts = [password, Some(host.trim().to_owned()), port, database];
    let url: String = parts.into_iter().flatten().collect();
    Some(format!("redis://{url}").into())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn read_secret(path: &Path, named_by: &str) -> anyhow::Result<SecretString> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {}, which {named_by} names", path.display()))?;
    let secret = SecretString::from(text.trim().to_owned());
    match secret.expose_secret().is_empty() {
        true => Err(anyhow!(
            "{}, which {named_by} names, is empty",
            path.display()
        )),
        false => Ok(secret),
    }
}
