//! A TCP proxy that stands between voice-sync and a server, and does to connections what networks do.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use url::Url;

/// What becomes of connections, those that are open included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Weather {
    /// They work.
    Fair,
    /// They are cut, and new ones as soon as they are made.
    Cut,
    /// They stay open, and nothing passes.
    HalfOpen,
    /// Everything passes later.
    Late(Duration),
    /// Each is cut after so many bytes of answers.
    CutAfter(u64),
    /// So many answers of a hundred are swallowed, and their connections cut: what was asked was
    /// done, and nobody learns of it.
    AnswersLost(u8),
}

/// A running proxy; it ends with its test.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    connections: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to the server of this URL.
    pub(crate) async fn to(url: &str, port: u16) -> Self {
        let url = Url::parse(url).expect("a URL");
        let host = url.host_str().expect("a host").to_owned();
        let server = (host, url.port().unwrap_or(port));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let (weather, seen) = watch::channel(Weather::Fair);
        let connections = Arc::new(AtomicU64::new(0));
        let made = Arc::clone(&connections);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                made.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(pass(client, server.clone(), seen.clone()));
            }
        });
        Self {
            address,
            weather,
            connections,
            serving,
        }
    }

    /// The same URL by way of the proxy.
    pub(crate) fn through(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a URL");
        url.set_ip_host(self.address.ip()).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.to_string()
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(client: TcpStream, server: (String, u16), weather: watch::Receiver<Weather>) {
    let mut until_cut = weather.clone();
    let passing = async {
        let server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Whichever ends first, the other half is dropped with it.
        tokio::select! {
            asked = questions(from_client, to_server, weather.clone()) => asked,
            answered = answers(from_server, to_client, weather) => answered,
        }
    };
    tokio::select! {
        // That a connection breaks is what this is for.
        _broken = passing => {}
        _ = until_cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn questions(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        is_fair_enough(&mut weather).await;
        to.write_all(&buffer[..read]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        is_fair_enough(&mut weather).await;
        let now = *weather.borrow();
        match now {
            Weather::CutAfter(limit) if passed + read as u64 > limit => {
                let rest = usize::try_from(limit.saturating_sub(passed)).unwrap_or(0);
                return to.write_all(&buffer[..rest]).await;
            }
            Weather::AnswersLost(percent) if fastrand::u8(..100) < percent => return Ok(()),
            Weather::Fair
            | Weather::Cut
            | Weather::HalfOpen
            | Weather::Late(_)
            | Weather::CutAfter(_)
            | Weather::AnswersLost(_) => {}
        }
        passed += read as u64;
        to.write_all(&buffer[..read]).await?;
    }
}

/// Waits until what was read may go on.
async fn is_fair_enough(weather: &mut watch::Receiver<Weather>) {
    let now = *weather.borrow();
    if let Weather::Late(delay) = now {
        tokio::time::sleep(delay).await;
    }
    // The sender goes with the test.
    let _gone = weather
        .wait_for(|weather| *weather != Weather::HalfOpen)
        .await;
}
