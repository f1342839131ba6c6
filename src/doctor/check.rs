//! The result of a check, and what to do about it. Pure.

use std::fmt;

use anstyle::AnsiColor;
use serde::{Serialize, Serializer};

use crate::core::exit::Exit;
use crate::core::format::in_line;

/// One line of `voice-sync doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in a word or two.
    pub check: &'static str,
    pub state: State,
    /// The result.
    pub says: String,
    /// What to do, if anything.
    pub advice: Option<String>,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No problem.
    Fine,
    /// It works, but may cause problems.
    Doubtful,
    /// `sync-once` would exit with this code.
    Broken(Exit),
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Doubtful => "warning",
            Self::Broken(_) => "error",
        }
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Check {
    /// The check passed.
    pub fn fine(check: &'static str, says: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Fine,
            says: says.into(),
            advice: None,
        }
    }

    /// It works, but may cause problems; with advice.
    pub fn doubtful(
        check: &'static str,
        says: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            check,
            state: State::Doubtful,
            says: says.into(),
            advice: Some(advice.into()),
        }
    }

    /// The check failed: `sync-once` would exit with this code.
    pub fn broken(check: &'static str, exit: Exit, says: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Broken(exit),
            says: says.into(),
            advice: None,
        }
    }

    /// As text for a terminal, with its state in color.
    pub fn colored(&self) -> String {
        let color = match self.state {
            State::Fine => AnsiColor::Green,
            State::Doubtful => AnsiColor::Yellow,
            State::Broken(_) => AnsiColor::Red,
        };
        let (style, text) = (color.on_default(), self.to_string());
        let (state, rest) = text.split_at(self.state.as_str().len());
        format!("{style}{state}{style:#}{rest}")
    }

    /// With what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            check,
            state,
            says,
            advice,
        } = self;
        write!(f, "{:<8} {check:<14} {}", state.as_str(), in_line(says))?;
        match advice {
            Some(advice) => write!(f, "\n{:24}→ {}", "", in_line(advice)),
            None => Ok(()),
        }
    }
}

/// The code that `sync-once` would exit with: that of the first failed check.
pub fn exit(checks: &[Check]) -> Exit {
    let broken = checks.iter().find_map(|check| match check.state {
        State::Broken(exit) => Some(exit),
        State::Fine | State::Doubtful => None,
    });
    broken.unwrap_or(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_error_decides_the_exit_code() {
        let fine = Check::fine("database", "there");
        let doubtful = Check::doubtful("index", "none", "make one");
        assert_eq!(exit(&[fine.clone(), doubtful.clone()]), Exit::Success);
        let key = Check::broken("key", Exit::Key, "refused").advise("give another");
        let bus = Check::broken("event bus", Exit::Temporary, "away");
        assert_eq!(exit(&[fine, doubtful.clone(), key.clone(), bus]), Exit::Key);
        assert_eq!(
            doubtful.to_string(),
            "warning  index          none\n                        → make one"
        );
        let forged = Check::doubtful("index", "a\nok       b", "c\u{1b}[2J\u{2028}d");
        assert_eq!(
            forged.to_string(),
            "warning  index          a ok       b\n                        → c [2J d"
        );
        assert_eq!(
            serde_json::to_string(&key).expect("serialises"),
            r#"{"check":"key","state":"error","says":"refused","advice":"give another"}"#
        );
    }
}
