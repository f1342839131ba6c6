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
}

/// The database.
pub(crate) const DATABASE_URL: Source = Source {
    variable: "DATABASE_URL",
    file_variable: "DATABASE_URL_FILE",
};
/// The event bus.
pub(crate) const REDIS_URL: Source = Source {
    variable: "REDIS_URL",
    file_variable: "REDIS_URL_FILE",
};
/// Where systemd puts credentials.
pub(crate) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The provider's key.
pub(crate) const API_KEY: Source = Source {
    variable: "ELEVENLABS_API_KEY",
    file_variable: "ELEVENLABS_API_KEY_FILE",
};

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
    if let Some(key) = API_KEY.resolve(variable(API_KEY.variable))? {
        return Ok(key);
    }
    if let Some(directory) = variable(CREDENTIALS) {
        let path = Path::new(&directory).join("elevenlabs-api-key");
        if path.exists() {
            return read_secret(&path, CREDENTIALS);
        }
    }
    Err(anyhow!(
        "there is no API key; set ELEVENLABS_API_KEY, or name a file that holds it with \
         --api-key-file or ELEVENLABS_API_KEY_FILE"
    ))
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
