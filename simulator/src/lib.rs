//! A simulator of the part of the ElevenLabs voices API that voice-sync uses.
//!
//! It looks up voices one by one and in lists, adds and deletes them, and gives each a [`Fate`]: how the voice
//! develops, and when. The simulator can also be slow, limited, broken or unavailable. Answers have the format of
//! ElevenLabs' published OpenAPI description, so that its official SDKs also work with the simulator.
//!
//! A voice's fate is in its name (`Anna [ready 5s]`), in a seed file, or in a synthetic id (`sim-ready5s-0001`). A
//! voice with a synthetic id exists from the simulator's start without having been added.
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

/// How long [`Simulator::stop`] waits for requests in progress.
const GRACE: Duration = Duration::from_secs(2);

/// A running simulator. A background task serves requests until it is stopped or dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<server::Shared>,
    closing: watch::Sender<bool>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Simulator {
    /// Starts a simulator that listens at this address for HTTP/1.1 and HTTP/2 without TLS. Port 0 selects a free port.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If it cannot listen at the address.
    pub async fn start(address: SocketAddr, options: Options) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(server::Shared::new(options, closed.clone()));
        let router = server::router(Arc::clone(&shared));
        // Small packets must be sent at once; a delay would be measured as latency. If the option cannot be set, the
        // connection is already closed.
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

    /// The base URL, such as `http://127.0.0.1:8900`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a voice that is created now. It replaces a voice with the same id. The name determines its fate.
    pub fn add_voice(&self, voice_id: &str, name: &str) {
        self.shared.account_mut().add(voice_id, name, None);
    }

    /// Adds the voices of a seed file, `[{"voice_id": "…", "name": "…", "fate": "ready 5s"}]`, and returns their
    /// number. Without a `fate`, the name determines the fate.
    ///
    /// # Errors
    ///
    /// If the text is not a valid seed file; then no voice is added.
    pub fn load_seed(&self, json: &str) -> Result<usize, SeedError> {
        let voices = seed::read(json)?;
        let mut account = self.shared.account_mut();
        for (voice_id, name, plan) in &voices {
            account.add(voice_id, name, *plan);
        }
        Ok(voices.len())
    }

    /// Removes a voice, which may also be synthetic or premade. Returns whether it existed.
    pub fn remove_voice(&self, voice_id: &str) -> bool {
        self.shared.account_mut().remove(voice_id)
    }

    /// The requests for speech that were answered with audio, in the order of their answers.
    #[must_use]
    pub fn speeches(&self) -> Vec<Speech> {
        self.shared.account().speeches().to_vec()
    }

    /// The number of requests since the start or the last [`Simulator::forget_requests`].
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.log.counts()
    }

    /// These requests in the order of their arrival, if [`Options::record_requests`] keeps them.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Deletes the recorded requests and sets the counts to zero.
    pub fn forget_requests(&self) {
        self.shared.log.forget();
    }

    /// Calls this script for every request; it replaces an earlier script. An answer of the script takes precedence
    /// over everything else, including the key check, limits and voices. Scripted answers have only their own delay,
    /// and do not count as concurrent requests.
    pub fn script(&self, script: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) {
        self.shared.set_script(Arc::new(script));
    }

    /// Stops: no new requests are accepted, and requests in progress are answered without further delay.
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
    // An error means that the simulator was dropped, which also ends the wait.
    drop(closed.wait_for(|closing| *closing).await);
}
