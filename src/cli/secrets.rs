//! From what a user said, on the command line, in the environment and in files, to values that are
//! known to make sense. Nothing here connects to anything.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use secrecy::{ExposeSecret, SecretString};

/// A value that may stand in a variable or in a file that a variable names, as orchestrators mount
/// secrets. An empty variable counts as none.
pub(crate) struct Source {
    /// The variable with the value itself.
    pub(crate) variable: &'static str,
    /// The variable with a path.
    pub(crate) file_variable: &'static str,
    /// The name of systemd's credential with the value, if it may be one.
    credential: Option<&'static str>,
}

/// The database.
pub(crate) const DATABASE_URL: Source = Source {
    variable: "DATABASE_URL",
    file_variable: "DATABASE_URL_FILE",
    credential: None,
};
/// The event bus.
pub(crate) const REDIS_URL: Source = Source {
    variable: "REDIS_URL",
    file_variable: "REDIS_URL_FILE",
    credential: None,
};
/// Where systemd puts credentials.
pub(crate) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The provider's key.
pub(crate) const API_KEY: Source = Source {
    variable: "ELEVENLABS_API_KEY",
    file_variable: "ELEVENLABS_API_KEY_FILE",
    credential: Some("elevenlabs-api-key"),
};
/// What webhooks are signed with.
const WEBHOOK_SECRET: Source = Source {
    variable: "ELEVENLABS_WEBHOOK_SECRET",
    file_variable: "ELEVENLABS_WEBHOOK_SECRET_FILE",
    credential: Some("elevenlabs-webhook-secret"),
};
/// What the application says along with its hints.
const HINTS_TOKEN: Source = Source {
    variable: "VOICE_SYNC_HINTS_TOKEN",
    file_variable: "VOICE_SYNC_HINTS_TOKEN_FILE",
    credential: Some("voice-sync-hints-token"),
};

/// The variables of these that begin with voice-sync's own name.
pub(crate) fn variables() -> [&'static str; 2] {
    [HINTS_TOKEN.variable, HINTS_TOKEN.file_variable]
}

impl Source {
    /// Both variables at once is an error: one of them is a mistake, and nobody could tell which.
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

    /// Which of the variables is set, if any.
    pub(crate) fn origin(&self) -> Option<&'static str> {
        [self.variable, self.file_variable]
            .into_iter()
            .find(|name| variable(name).is_some())
    }

    /// From the environment, else systemd's credentials.
    fn find(&self) -> anyhow::Result<Option<SecretString>> {
        let given = variable(self.variable).map(|value| value.trim().to_owned());
        let found = self.resolve(given)?;
        let directory = variable(CREDENTIALS).zip(self.credential);
        match (found, directory) {
            (None, Some((directory, name))) => {
                let path = Path::new(&directory).join(name);
                let is_there = path.exists();
                is_there
                    .then(|| read_secret(&path, CREDENTIALS))
                    .transpose()
            }
            (found, _) => Ok(found),
        }
    }

    /// `given` is the flag, or else the variable. Where there is neither, the file is read.
    pub(crate) fn resolve(&self, given: Option<String>) -> anyhow::Result<Option<SecretString>> {
        self.check()?;
        let file = variable(self.file_variable);
        match (given.filter(|value| !value.trim().is_empty()), file) {
            (Some(value), _) => Ok(Some(value.into())),
            (None, Some(path)) => read_secret(Path::new(&path), self.file_variable).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The provider's key: from `--api-key-file`, else the environment, else systemd's credentials. It is
/// never taken from the command line itself, which every user of the machine can read.
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

/// What webhooks are signed with, and the token of the application's hints, which is the same unless it has one of its
/// own. Without them, no hints are taken.
pub(crate) fn hint_secrets() -> anyhow::Result<(Option<SecretString>, Option<SecretString>)> {
    let (secret, token) = (WEBHOOK_SECRET.find()?, HINTS_TOKEN.find()?);
    let token = token.or_else(|| secret.clone());
    Ok((secret, token))
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
