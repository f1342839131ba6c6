//! A server of a test's own, which may be treated badly.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Started by the script that starts those of all tests; it ends when its input does.
pub(crate) struct OwnServer {
    pub(crate) url: String,
    /// A command, where there is one.
    restart: String,
    script: Child,
}

impl OwnServer {
    pub(crate) fn postgres() -> Self {
        Self::start("VOICE_SYNC_TEST_DATABASE_URL")
    }

    pub(crate) fn redis() -> Self {
        Self::start("VOICE_SYNC_TEST_REDIS_URL")
    }

    /// The one that this variable names; the others are there already.
    fn start(variable: &str) -> Self {
        let tell = format!("echo ${variable}; echo $VOICE_SYNC_TEST_RESTART_POSTGRES; cat");
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/with-servers"))
            .args(["sh", "-c", &tell])
            .env_remove(variable)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script starts");
        let mut lines = BufReader::new(script.stdout.take().expect("its output")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        Self {
            url: line(),
            restart: line(),
            script,
        }
    }

    pub(crate) async fn restart(&self) {
        let mut restart = Command::new(&self.restart);
        let status = tokio::task::spawn_blocking(move || restart.status()).await;
        assert!(status.expect("joins").expect("the script runs").success());
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        // What cannot be waited for cleans up after itself all the same.
        let _status = self.script.wait();
    }
}
