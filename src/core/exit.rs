//! The exit codes, which supervisors act on. The numbers are those of BSD's `sysexits.h`.

use std::process;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Everything due was looked at, events are out. Also: nothing was due.
    Success = 0,
    /// Somebody was asked, and did not say yes. Nothing was done.
    Declined = 1,
    /// Wrong usage. Do not retry.
    Usage = 2,
    /// The database could not be reached. Retry.
    Database = 69,
    /// Local input or output failed, such as a full disk. Retry.
    Io = 74,
    /// Provider or event bus down or throttling, or time over, with work left. The next run goes on.
    Temporary = 75,
    /// The key is refused, or fits another workspace. Do not retry.
    Key = 77,
    /// Configuration, schema, or a missing privilege. Do not retry.
    Config = 78,
}

impl Exit {
    /// Whether the same may succeed a moment later.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Database | Self::Io | Self::Temporary => true,
            Self::Success | Self::Declined | Self::Usage | Self::Key | Self::Config => false,
        }
    }

    /// What to do next after any error with this code.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Success | Self::Declined => None,
            Self::Usage => {
                Some("`voice-sync help` and `voice-sync help COMMAND` describe all options")
            }
            Self::Database => Some(
                "check that the database is running, and DATABASE_URL; no voice is lost, and the next run continues",
            ),
            Self::Io => Some("make room on the disk or correct the path, and run it again"),
            Self::Temporary => Some("run it again later: it continues where it stopped"),
            Self::Key => Some(
                "set the API key of the workspace in which the application clones; `voice-sync doctor` checks it",
            ),
            Self::Config => {
                Some("`voice-sync doctor` checks the setup and prints a fix for each problem")
            }
        }
    }

    /// The number that the supervisor sees.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that says by which code the process exits.
#[derive(Debug, thiserror::Error)]
#[error("{message:#}")]
pub struct Failed {
    pub exit: Exit,
    /// What failed, on what, and why.
    pub message: anyhow::Error,
    hint: Option<&'static str>,
}

impl Failed {
    pub fn new(exit: Exit, message: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// A wrong value.
    pub fn usage(message: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Wrong configuration, schema or privilege.
    pub fn config(message: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Replaces the hint of the exit code.
    pub fn with_hint(self, hint: &'static str) -> Self {
        Self {
            hint: Some(hint),
            ..self
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint.or(self.exit.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_sysexits() {
        let codes = [
            Exit::Success,
            Exit::Declined,
            Exit::Usage,
            Exit::Database,
            Exit::Io,
            Exit::Temporary,
            Exit::Key,
            Exit::Config,
        ]
        .map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 69, 74, 75, 77, 78]);
    }
}
