//! A provider that speaks HTTP badly: some answers break the protocol, or never end.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const MIB: usize = 1024 * 1024;
const HUNDRED_MB: usize = 100_000_000;

/// What single lookups of `bad-<word>` get; every other voice is listed, and ready.
pub(crate) const FAULTS: [&str; 12] = [
    "malformed",
    "html",
    "empty",
    "cut",
    "types",
    "stranger",
    "huge",
    "endless",
    "bomb",
    "slow",
    "silent",
    "redirect",
];

/// How the list answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// With the voices that it was asked for, save those that are bad.
    Fair,
    /// As fairly, and then with as many voices nobody asked for as fit under the size limit.
    Crowded,
}

/// A running provider; it ends with its test.
pub(crate) struct Rogue {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Rogue {
    /// `elsewhere` is where it redirects to.
    pub(crate) async fn start(list: List, elsewhere: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let (bomb, elsewhere) = (Arc::new(bomb()), Arc::new(elsewhere));
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (bomb, elsewhere) = (Arc::clone(&bomb), Arc::clone(&elsewhere));
                tokio::spawn(async move {
                    // That whoever asked hangs up is what some of the answers are for.
                    let _hung_up = serve(client, list, &bomb, &elsewhere).await;
                });
            }
        });
        Self { address, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A hundred kilobytes that become a hundred megabytes.
fn bomb() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..100 {
        encoder.write_all(&[b' '; MIB]).expect("memory takes it");
    }
    encoder.finish().expect("memory takes it")
}

/// Answers one request; the connection ends with it.
async fn serve(mut client: TcpStream, list: List, bomb: &[u8], elsewhere: &str) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let target = request.split(' ').nth(1).unwrap_or_default();
    let Some(id) = target.strip_prefix("/v1/voices/") else {
        return send(&mut client, "200 OK", &[], &listed(target, list)).await;
    };
    let voice = json!({"voice_id": id, "preview_url": "https://x/p"}).to_string();
    let ok = "200 OK";
    match id.strip_prefix("bad-").unwrap_or_default() {
        "malformed" => send(&mut client, ok, &[], b"{\"voice_id\": ").await,
        "html" => send(&mut client, ok, &[], b"<html><h1>Welcome</h1></html>").await,
        "empty" => send(&mut client, ok, &[], b"").await,
        "cut" => {
            head(&mut client, ok, &["content-length: 1000"]).await?;
            client.write_all(voice.as_bytes()).await
        }
        "types" => {
            let body = json!({"voice_id": id, "preview_url": 7, "fine_tuning": "yes"});
            send(&mut client, ok, &[], body.to_string().as_bytes()).await
        }
        "stranger" => {
            let body = voice.replace(id, "somebody-else");
            send(&mut client, ok, &[], body.as_bytes()).await
        }
        "huge" => {
            let length = format!("content-length: {HUNDRED_MB}");
            head(&mut client, ok, &[&length]).await?;
            flood(&mut client).await
        }
        "endless" => {
            head(&mut client, ok, &[]).await?;
            flood(&mut client).await
        }
        "bomb" => send(&mut client, ok, &["content-encoding: gzip"], bomb).await,
        "slow" => {
            let length = format!("content-length: {}", voice.len());
            head(&mut client, ok, &[&length]).await?;
            for byte in voice.bytes() {
                client.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        "silent" => client.read(&mut [0; 1]).await.map(drop),
        "redirect" => {
            let location = format!("location: {elsewhere}/v1/voices/{id}");
            send(&mut client, "307 Temporary Redirect", &[&location], b"").await
        }
        _ => send(&mut client, ok, &[], voice.as_bytes()).await,
    }
}

fn listed(target: &str, list: List) -> Vec<u8> {
    const STRANGER: &[u8] = br#",{"voice_id":""}"#;
    let mut body = br#"{"voices":["#.to_vec();
    let voices: Vec<String> = target
        .split('&')
        .filter_map(|parameter| parameter.strip_prefix("voice_ids="))
        .filter(|id| !id.starts_with("bad-"))
        .map(|id| json!({"voice_id": id, "preview_url": format!("https://x/{id}")}).to_string())
        .collect();
    body.extend_from_slice(voices.join(",").as_bytes());
    while list == List::Crowded && body.len() < 8 * MIB - 64 {
        body.extend_from_slice(STRANGER);
    }
    body.extend_from_slice(b"]}");
    body
}

async fn head(client: &mut TcpStream, status: &str, headers: &[&str]) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    client.write_all(head.as_bytes()).await
}

async fn send(
    client: &mut TcpStream,
    status: &str,
    headers: &[&str],
    body: &[u8],
) -> io::Result<()> {
    let length = format!("content-length: {}", body.len());
    let headers: Vec<&str> = headers.iter().copied().chain([length.as_str()]).collect();
    head(client, status, &headers).await?;
    client.write_all(body).await
}

/// Goes on for as long as anybody reads, though not for ever.
async fn flood(client: &mut TcpStream) -> io::Result<()> {
    let spaces = [b' '; 64 * 1024];
    for _ in 0..HUNDRED_MB.div_ceil(spaces.len()) {
        client.write_all(&spaces).await?;
    }
    Ok(())
}
