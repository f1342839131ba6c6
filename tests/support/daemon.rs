//! The daemon, run as a supervisor would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::app::App;
use super::binary::VoiceSync;

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that runs until it is told to stop, or its test ends.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reading: Option<JoinHandle<()>>,
    address: Option<SocketAddr>,
}

/// A daemon of this database against this provider, listening on a free port.
pub(crate) fn daemon(database_url: &str, api_url: &str) -> VoiceSync {
    VoiceSync::new(&[
        "daemon",
        "--interval=200ms",
        "--request-budget=1000/s",
        "--listen=127.0.0.1:0",
    ])
    .env("DATABASE_URL", database_url)
    .env("ELEVENLABS_BASE_URL", api_url)
}

impl Daemon {
    pub(crate) fn start(command: VoiceSync) -> Self {
        let mut child = command.start();
        let log = Arc::new(Mutex::new(Vec::new()));
        let errors = child.stderr.take().expect("a pipe");
        let lines = log.clone();
        let reading = thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                lines.lock().expect("not poisoned").push(line);
            }
        });
        Self {
            child,
            log,
            reading: Some(reading),
            address: None,
        }
    }

    /// What it said so far, of a message.
    pub(crate) fn said(&self, words: &str) -> Vec<Value> {
        let log = self.log.lock().expect("not poisoned");
        let lines = log.iter().filter(|line| line.contains(words));
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("not poisoned").join("\n")
    }

    /// Polls until there is a value.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(
                Instant::now() < patience,
                "{what}: not in time\n{}",
                self.log()
            );
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn wait_until_said(&self, words: &str) {
        self.wait_for(words, async || (!self.said(words).is_empty()).then_some(()))
            .await;
    }

    /// Waits until so many voices of the application have this status.
    pub(crate) async fn wait_until(&self, app: &App, status: &str, voices: i64) {
        let sql = format!("SELECT count(*) FROM voices WHERE CAST(status AS text) = '{status}'");
        self.wait_for(status, async || {
            (app.number(&sql).await == voices).then_some(())
        })
        .await;
    }

    pub(crate) async fn wait_until_answers(&mut self, path: &str, status: u16) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let (code, body) = self.get(path).await;
            if code == status {
                return;
            }
            let log = self.log();
            assert!(Instant::now() < patience, "{path}: {code} {body}\n{log}");
            tokio::task::yield_now().await;
        }
    }

    /// Status and body of a path.
    pub(crate) async fn get(&mut self, path: &str) -> (u16, String) {
        self.get_at("localhost", path).await
    }

    /// The same, under the name of a host.
    pub(crate) async fn get_at(&mut self, host: &str, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        self.ask(request.as_bytes()).await
    }

    /// The status of a path, with or without a header `Authorization`.
    pub(crate) async fn get_with(&mut self, path: &str, authorization: Option<&str>) -> u16 {
        let header = authorization.map(|value| format!("authorization: {value}\r\n"));
        let header = header.unwrap_or_default();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{header}connection: close\r\n\r\n");
        self.ask(request.as_bytes()).await.0
    }

    /// Posts a body, with headers of its own.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, String) {
        let length = body.len();
        let mut request =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("connection: close\r\n\r\n");
        self.ask(&[request.as_bytes(), body].concat()).await
    }

    async fn ask(&mut self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address().await).expect("connects");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("has a time limit");
        // Whoever is refused may be answered before all of it was read.
        let _sent = stream.write_all(request);
        let mut answer = String::new();
        let _closed = stream.read_to_string(&mut answer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let code = head.split(' ').nth(1).expect("a status");
        (code.parse().expect("a number"), body.to_owned())
    }

    /// Where it listens.
    pub(crate) async fn address(&mut self) -> SocketAddr {
        if self.address.is_none() {
            self.wait_until_said("listening").await;
            let said = self.said("listening");
            let address = said[0]["address"].as_str().expect("an address");
            self.address = Some(address.parse().expect("an address"));
        }
        self.address.expect("found")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("is asked").is_none()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end. Returns its exit code.
    pub(crate) async fn ended(&mut self) -> i32 {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("is asked") {
                break status;
            }
            tokio::task::yield_now().await;
        };
        if let Some(reading) = self.reading.take() {
            reading.join().expect("reads to the end");
        }
        status.code().unwrap_or(-1)
    }

    /// Tells it to stop, which it must do without fault.
    pub(crate) async fn stop(&mut self) {
        self.signal("-TERM");
        let code = self.ended().await;
        assert_eq!(code, 0, "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
