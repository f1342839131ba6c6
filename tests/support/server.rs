//! Servers of a test's own, which may be treated badly.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Started by the script that starts those of all tests; they end when its input does.
pub(crate) struct OwnServers {
    variables: HashMap<String, String>,
    script: Child,
}

impl OwnServers {
    pub(crate) fn postgres() -> Self {
        Self::start(&["VOICE_SYNC_TEST_DATABASE_URL"], "")
    }

    pub(crate) fn redis() -> Self {
        Self::start(&["VOICE_SYNC_TEST_REDIS_URL"], "")
    }

    /// A PostgreSQL and a Redis, with certificates.
    pub(crate) fn with_tls() -> Self {
        let both = ["VOICE_SYNC_TEST_DATABASE_URL", "VOICE_SYNC_TEST_REDIS_URL"];
        Self::start(&both, "1")
    }

    /// Those that these variables name; the others are there already.
    fn start(variables: &[&str], tls: &str) -> Self {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/with-servers"));
        script
            .args(["sh", "-c", "env | grep ^VOICE_SYNC_TEST_; echo; cat"])
            .env("VOICE_SYNC_TEST_TLS", tls)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for variable in variables {
            script.env_remove(variable);
        }
        let mut script = script.spawn().expect("the script starts");
        let output = BufReader::new(script.stdout.take().expect("its output"));
        let variables = output
            .lines()
            .map(|line| line.expect("text"))
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                let (name, value) = line.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect();
        Self { variables, script }
    }

    /// What the script tells by a variable.
    pub(crate) fn told(&self, variable: &str) -> &str {
        let value = self.variables.get(variable);
        value.unwrap_or_else(|| panic!("the script does not tell {variable}"))
    }

    pub(crate) fn database_url(&self) -> &str {
        self.told("VOICE_SYNC_TEST_DATABASE_URL")
    }

    pub(crate) fn redis_url(&self) -> &str {
        self.told("VOICE_SYNC_TEST_REDIS_URL")
    }

    pub(crate) async fn restart_postgres(&self) {
        let mut restart = Command::new(self.told("VOICE_SYNC_TEST_RESTART_POSTGRES"));
        let status = tokio::task::spawn_blocking(move || restart.status()).await;
        assert!(status.expect("joins").expect("the script runs").success());
    }
}

impl Drop for OwnServers {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        // What cannot be waited for cleans up after itself all the same.
        let _status = self.script.wait();
    }
}
