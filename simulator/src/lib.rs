//! A simulator of the part of the ElevenLabs voices API that voice-sync uses.
//!
//! It looks voices up one by one and in lists, adds and deletes them, and gives each a [`Fate`]:
//! what becomes of it, and when. Around that it can be slow, limited, broken or down. Answers have
//! the shape that ElevenLabs' published OpenAPI description gives them, so that its official SDKs
//! work with the simulator as well.
//!
//! A voice's fate is told by its name (`Anna [ready 5s]`), by a seed file, or by a synthetic id
//! (`sim-ready5s-0001`): such a voice exists from the simulator's start without having been added.
//!
//! ```
//! use voice_sync_simulator::{Options, Simulator};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let simulator = Simulator::start(([127, 0, 0, 1], 0).into(), Options::default()).await?;
//! simulator.add_voice("anna", "Anna [ready 5s]");
//! println!("{}/v1/voices/anna", simulator.url());
//! simulator.stop().await;
//! # Ok(())
//! # }
//! ```

mod account;
mod answer;
mod attributes;
mod fate;
mod faults;
mod listing;
mod options;
mod plan;
mod preview;
mod request;
mod seed;
mod server;
mod single;
mod training;
mod voice;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use account::Speech;
pub use answer::{Answer, Delivery};
pub use fate::Fate;
pub use options::{ErrorFormat, Options, Outage, OutageError};
pub use plan::{FateError, Plan};
pub use request::{Counts, Request};
pub use seed::SeedError;

/// How long [`Simulator::stop`] waits for requests that are under way.
const GRACE: Duration = Duration::from_secs(2);

/// A running simulator, served by a background task until it is stopped or dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<server::Shared>,
    closing: watch::Sender<bool>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Simulator {
    /// Starts a simulator that listens on this address, HTTP/1.1 and HTTP/2 without TLS; port 0
    /// picks a free one. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If it cannot listen there.
    pub async fn start(address: SocketAddr, options: Options) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(server::Shared::new(options, closed.clone()));
        let router = server::router(Arc::clone(&shared));
        // Small answers must not wait for more to send: that would be measured as latency. If it
        // cannot be set, the connection is gone already.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let serving = axum::serve(listener, router)
            .with_graceful_shutdown(wait_for(closed))
            .into_future();
        Ok(Self {
            address,
            shared,
            closing,
            serving: tokio::spawn(serving),
        })
    }

    /// Where it listens, as in `http://127.0.0.1:8900`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a voice, created now, in place of the one that has this id already. Its fate is read
    /// from its name.
    pub fn add_voice(&self, voice_id: &str, name: &str) {
        self.shared.account_mut().add(voice_id, name, None);
    }

    /// Adds the voices of a seed file, `[{"voice_id": "…", "name": "…", "fate": "ready 5s"}]`, and
    /// tells how many they are. Without a `fate` it is read from the name.
    ///
    /// # Errors
    ///
    /// If that is not what the text holds; then no voice was added.
    pub fn load_seed(&self, json: &str) -> Result<usize, SeedError> {
        let voices = seed::read(json)?;
        let mut account = self.shared.account_mut();
        for (voice_id, name, plan) in &voices {
            account.add(voice_id, name, *plan);
        }
        Ok(voices.len())
    }

    /// Removes a voice, synthetic and premade ones included, and tells whether there was one.
    pub fn remove_voice(&self, voice_id: &str) -> bool {
        self.shared.account_mut().remove(voice_id)
    }

    /// What was spoken so far, in the order in which it was answered.
    #[must_use]
    pub fn speeches(&self) -> Vec<Speech> {
        self.shared.account().speeches().to_vec()
    }

    /// How many requests came since the start or the last [`Simulator::forget_requests`].
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.log.counts()
    }

    /// Those requests in the order in which they came, if [`Options::record_requests`] keeps them.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Empties the log of requests and sets the counts to zero.
    pub fn forget_requests(&self) {
        self.shared.log.forget();
    }

    /// Asks this script, in place of the one before, about every request: what it answers is
    /// answered instead of anything else, be it the key's refusal, a limit or a voice. Scripted
    /// answers take their own delay only, and no place among concurrent requests.
    pub fn script(&self, script: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) {
        self.shared.set_script(Arc::new(script));
    }

    /// Stops: nothing new is accepted, requests under way are answered without further delay.
    pub async fn stop(mut self) {
        self.closing.send_replace(true);
        if tokio::time::timeout(GRACE, &mut self.serving)
            .await
            .is_err()
        {
            self.serving.abort();
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        self.serving.abort();
    }
}

async fn wait_for(mut closed: watch::Receiver<bool>) {
    // An error means that the simulator is gone, which is as good a reason to stop.
    drop(closed.wait_for(|closing| *closing).await);
}
