//! The example application's web server, and what a client gets from it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

/// Reached only where something is broken; two cores that also compile are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the application shows a user.
#[derive(Debug)]
pub(super) struct List {
    /// Whether it came from the cache.
    pub(super) cached: bool,
    pub(super) voices: Vec<Value>,
}

impl List {
    pub(super) fn statuses(&self) -> Vec<&str> {
        self.voices
            .iter()
            .map(|voice| voice["status"].as_str().expect("a status"))
            .collect()
    }
}

/// The application's web server, which ends with its test.
pub(super) struct Web {
    process: Child,
    log: Arc<Mutex<String>>,
    /// Reads the log until the server has ended.
    reading: Option<thread::JoinHandle<()>>,
    url: String,
    client: reqwest::Client,
}

impl Web {
    /// Starts it with this Python, whose environment says where everything else is.
    pub(super) async fn start(mut python: Command) -> Self {
        let mut process = python
            .args(["-m", "uvicorn", "app.main:app"])
            // It picks a free one itself, so that nobody can take it in between.
            .args(["--host", "127.0.0.1", "--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("uvicorn starts");
        let lines = BufReader::new(process.stderr.take().expect("is piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, listens) = oneshot::channel();
        let mut listening = Some(listening);
        let written = Arc::clone(&log);
        let reading = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(url) = listening_at(&line)
                    && let Some(listening) = listening.take()
                {
                    // If nobody waits any more, the test has failed already.
                    let _nobody_waits = listening.send(url);
                }
                let mut log = written.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        // An error says that a provider is installed already, which is what is wanted.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("a client");
        let mut web = Self {
            process,
            log,
            reading: Some(reading),
            url: String::new(),
            client,
        };
        web.url = timeout(PATIENCE, listens)
            .await
            .expect("uvicorn listens in time")
            .expect("uvicorn listens");
        web.wait_for("the application is healthy", async || {
            let health = web.client.get(format!("{}/health", web.url)).send().await;
            health.ok()?.status().is_success().then_some(())
        })
        .await;
        web
    }

    /// Has a voice cloned, and returns it as the application shows it.
    pub(super) async fn create(&self, user: Uuid, name: &str) -> Value {
        let sample = "ID3".repeat(1000);
        let form = format!(
            "--part\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n{name}\r\n\
             --part\r\nContent-Disposition: form-data; name=\"sample\"; filename=\"sample.mp3\"\r\n\
             Content-Type: audio/mpeg\r\n\r\n{sample}\r\n--part--\r\n"
        );
        let request = self.client.post(format!("{}/voices", self.url));
        let answer = request
            .header("X-User-Id", user.to_string())
            .header("Content-Type", "multipart/form-data; boundary=part")
            .body(form)
            .send()
            .await
            .expect("the application answers");
        let status = answer.status();
        let body = answer.text().await.expect("a body");
        assert_eq!(status, 201, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    pub(super) async fn list(&self, user: Uuid) -> List {
        let request = self.client.get(format!("{}/voices", self.url));
        let answer = request
            .header("X-User-Id", user.to_string())
            .send()
            .await
            .expect("the application answers");
        assert_eq!(answer.status(), 200);
        let cached = answer.headers()["x-cache"] == "hit";
        let body = answer.bytes().await.expect("a body");
        List {
            cached,
            voices: serde_json::from_slice(&body).expect("JSON"),
        }
    }

    /// Lists until the list does not come from the cache.
    pub(super) async fn fresh_list(&self, user: Uuid) -> List {
        self.wait_for("the cached list is dropped", async || {
            let list = self.list(user).await;
            (!list.cached).then_some(list)
        })
        .await
    }

    /// Asks again and again, each time as soon as the last answer is there.
    pub(super) async fn wait_for<T>(
        &self,
        what: &str,
        mut condition: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        let waiting = async {
            loop {
                if let Some(found) = condition().await {
                    break found;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"))
    }

    fn logged(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// Ends it as a supervisor would, and returns what it logged.
    pub(super) async fn stop(mut self) -> String {
        let told = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(told.success());
        let reading = self.reading.take().expect("is stopped once");
        let ending = tokio::task::spawn_blocking(|| reading.join());
        timeout(PATIENCE, ending)
            .await
            .expect("uvicorn ends in time")
            .expect("joins")
            .expect("the log is read");
        self.logged()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // Errors say that it has ended already.
        let _ended = self.process.kill();
        let _ended = self.process.wait();
        if thread::panicking() {
            eprintln!("the application's log:\n{}", self.logged());
        }
    }
}

/// The address in uvicorn's line that tells it.
fn listening_at(line: &str) -> Option<String> {
    let (_, after) = line.split_once("Uvicorn running on ")?;
    after.split_whitespace().next().map(str::to_owned)
}
