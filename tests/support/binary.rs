//! The built binary, run as a user would.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::bus::Bus;

/// The key that tests use unless they are about keys.
pub(crate) const KEY: &str = "test-key";

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The report of `sync-once --output json`.
    pub(crate) fn report(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("no report ({error}):\n{}\n{}", self.stdout, self.stderr)
        })
    }

    /// A number of the report.
    pub(crate) fn count(&self, field: &str) -> u64 {
        let report = self.report();
        report[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} is no number in {report}"))
    }

    #[track_caller]
    pub(crate) fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

/// A command line in the making, with an environment that has nothing of the caller's.
#[derive(Clone)]
pub(crate) struct VoiceSync {
    launcher: Vec<OsString>,
    arguments: Vec<OsString>,
    variables: Vec<(String, String)>,
    directory: Option<PathBuf>,
}

impl VoiceSync {
    pub(crate) fn new(command: &[&str]) -> Self {
        let variables = [
            ("ELEVENLABS_API_KEY", KEY),
            ("VOICE_SYNC_OUTPUT", "json"),
            ("VOICE_SYNC_LOG_FORMAT", "json"),
        ];
        Self {
            launcher: Vec::new(),
            arguments: command.iter().map(OsString::from).collect(),
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            directory: None,
        }
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self
    }

    /// Has it run by another program, which gets the command line as its last arguments.
    pub(crate) fn through(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(OsString::from).collect();
        self
    }

    pub(crate) fn within(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Lets it publish to a test's own streams.
    pub(crate) fn publishing_to(self, bus: &Bus) -> Self {
        self.env("REDIS_URL", &bus.url)
            .env("VOICE_SYNC_EVENT_PREFIX", &bus.prefix)
    }

    /// Starts it.
    pub(crate) fn start(self) -> Child {
        let mut words = self.launcher;
        words.push(env!("CARGO_BIN_EXE_voice-sync").into());
        words.extend(self.arguments);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(self.variables);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        command.spawn().expect("the binary starts")
    }

    /// Runs it to its end, beside the simulator that this process serves.
    pub(crate) async fn run(self) -> Ended {
        end(self.start()).await
    }
}

/// Waits for the end of a run.
pub(crate) async fn end(child: Child) -> Ended {
    let waiting = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = waiting
        .await
        .expect("joins")
        .expect("the run is waited for");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `sync-once` of this database against this provider.
pub(crate) fn sync_once(database_url: &str, api_url: &str) -> VoiceSync {
    VoiceSync::new(&["sync-once"])
        .env("DATABASE_URL", database_url)
        .env("ELEVENLABS_BASE_URL", api_url)
}
