//! The simulator as a client meets it, over real HTTP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod lists;
mod running;
mod voices;

use std::future::Future;

use reqwest::{Client, ClientBuilder, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use voice_sync_simulator::{Options, Simulator};

/// A simulator together with a client that has a key for it.
struct Api {
    simulator: Simulator,
    client: Client,
}

/// What the simulator answered; a body that is no JSON is text.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

/// A client in the making. Built together with voice-sync, reqwest has TLS and wants to know which
/// implementation it is, even where none is used.
fn client_builder() -> ClientBuilder {
    // An error says that one is installed already, which is what is wanted.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
}

impl Api {
    async fn start(options: Options) -> Self {
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into(), options)
            .await
            .unwrap();
        // A connection a request: where the time is paused it jumps, and idle ones with it.
        let client = client_builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .user_agent("test/1")
            .build()
            .unwrap();
        Self { simulator, client }
    }

    async fn plain() -> Self {
        Self::start(Options::default()).await
    }

    fn url(&self, path: &str) -> String {
        self.simulator.url() + path
    }

    fn get(&self, path: &str) -> impl Future<Output = Reply> + Send + use<> {
        send(self.client.get(self.url(path)).header("xi-api-key", "any"))
    }

    fn delete(&self, path: &str) -> impl Future<Output = Reply> + Send + use<> {
        send(
            self.client
                .delete(self.url(path))
                .header("xi-api-key", "any"),
        )
    }

    /// Adds a voice with a form of these parts; those that are called `files` are files.
    fn add(&self, parts: &[(&str, &str)]) -> impl Future<Output = Reply> + Send + use<> {
        let mut form = String::new();
        for (name, content) in parts {
            let file = if *name == "files" {
                "; filename=\"a.mp3\""
            } else {
                ""
            };
            form += &format!(
                "--edge\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n"
            );
        }
        let request = self
            .client
            .post(self.url("/v1/voices/add"))
            .header("xi-api-key", "any")
            .header("content-type", "multipart/form-data; boundary=edge");
        send(request.body(form + "--edge--\r\n"))
    }

    /// Has a voice say a text.
    fn speak(&self, voice_id: &str, text: &str) -> impl Future<Output = Reply> + Send + use<> {
        let request = self
            .client
            .post(self.url(&format!("/v1/text-to-speech/{voice_id}")))
            .header("xi-api-key", "any");
        let body = serde_json::json!({"text": text, "model_id": "eleven_flash_v2_5"});
        send(request.body(body.to_string()))
    }

    async fn voice(&self, voice_id: &str) -> Value {
        let reply = self.get(&format!("/v1/voices/{voice_id}")).await;
        assert_eq!(reply.status, 200, "{voice_id}: {}", reply.body);
        reply.body
    }

    /// Waits until so many requests have come.
    async fn arrived(&self, number: usize) {
        while self.simulator.requests().len() < number {
            tokio::task::yield_now().await;
        }
    }
}

impl Reply {
    fn code(&self) -> &str {
        self.body["detail"]["status"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The ids in a list, those of the premade voices apart.
    fn ids(&self) -> Vec<&str> {
        self.listed(|category| category != "premade")
    }

    fn premade(&self) -> Vec<&str> {
        self.listed(|category| category == "premade")
    }

    fn listed(&self, wanted: impl Fn(&Value) -> bool) -> Vec<&str> {
        let voices = self.body["voices"].as_array().unwrap().iter();
        voices
            .filter(|voice| wanted(&voice["category"]))
            .map(|voice| voice["voice_id"].as_str().unwrap())
            .collect()
    }
}

async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Reply {
        status,
        headers,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}
