//! What a flood of hints does to the voices, to health checks and to memory: `cargo bench --bench hints`.
//!
//! The application sends a hint for each voice when it is ready, with and without 10,000 webhooks a second for ten
//! seconds: a third with a wrong signature, a third with an old one, a third with a right one, half of these about
//! as many other voices in processing, which stay there. It takes half a minute and prints its seed.

#[path = "../lag/site.rs"]
mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, interval, sleep, sleep_until};

use self::site::{BINARY, Site, provider_id, seed};

const SECRET: &str = "wsec_bench";
const VOICES: usize = 200;
const FLOOD: Duration = Duration::from_secs(10);
const HINTS_A_SECOND: u32 = 10_000;
/// Connections at once.
const SENDERS: u32 = 32;

/// Sends a request on a connection of its own. Returns the status, and how long that took.
async fn ask(address: SocketAddr, request: &str) -> anyhow::Result<(u16, Duration)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let status = std::str::from_utf8(answer.get(9..12).context("an answer")?)?.parse()?;
    Ok((status, began.elapsed()))
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn webhook(secret: &str, time: i64, voice_id: &str) -> String {
    let body = format!(r#"{{"type":"voice_ready","data":{{"voice_id":"{voice_id}"}}}}"#);
    let mut code = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
    code.update(format!("{time}.{body}").as_bytes());
    let digest = code.finalize().into_bytes();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let signature = format!("elevenlabs-signature: t={time},v0={digest}");
    post("/webhooks/elevenlabs", &signature, &body)
}

/// Made beforehand: the sender has less to do than the daemon.
fn flood(seed: u64, ids: &[String]) -> Vec<(u16, String)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let now = chrono::Utc::now().timestamp();
    let mut hint = |number: u32| {
        let id = match rng.bool() {
            true => ids[rng.usize(..ids.len())].clone(),
            false => format!("nobody-{}", rng.u32(..1000)),
        };
        match number % 3 {
            0 => (200, webhook(SECRET, now, &id)),
            1 => (401, webhook(SECRET, now - 3600, &id)),
            _ => (401, webhook("wrong", now, &id)),
        }
    };
    (0..3000).map(&mut hint).collect()
}

async fn send_flood(
    address: SocketAddr,
    requests: &[(u16, String)],
    took: &Mutex<Vec<Duration>>,
) -> anyhow::Result<()> {
    let senders = (0..SENDERS).map(|sender| async move {
        let mut turns = interval(Duration::from_secs(1) * SENDERS / HINTS_A_SECOND);
        let (end, mut at) = (Instant::now() + FLOOD, sender as usize);
        while Instant::now() < end {
            turns.tick().await;
            let (expected, request) = &requests[at % requests.len()];
            let (status, duration) = ask(address, request).await?;
            ensure!(status == *expected, "{status} instead of {expected}");
            took.lock().expect("not poisoned").push(duration);
            at += SENDERS as usize;
        }
        Ok(())
    });
    join_all(senders).await.into_iter().collect()
}

/// Voices that stay in processing. Returns their provider ids.
async fn add_waiting(site: &Site) -> anyhow::Result<Vec<String>> {
    let ids: Vec<_> = (0..VOICES).map(|n| format!("sim-nopreview-{n}")).collect();
    for id in &ids {
        sqlx::query("INSERT INTO voices (id, elevenlabs_voice_id) VALUES ($1, $1)")
            .bind(id)
            .execute(&site.pool)
            .await?;
    }
    Ok(ids)
}

fn resident_kib(id: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("resident memory")?.trim().parse()?)
}

fn quantiles(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize] * 1000.0;
    format!(
        "p50 {:>7.1} ms   p99 {:>7.1} ms   longest {:>7.1} ms   of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        seconds.len()
    )
}

async fn measure(who: &str, ready_after: &[Duration], seed: Option<u64>) -> anyhow::Result<()> {
    let site = Site::new(ready_after).await?;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = free.local_addr()?;
    drop(free);
    let mut daemon = site
        .voice_sync("daemon")
        .args(["--request-budget=100/s", &format!("--listen={address}")])
        .env("ELEVENLABS_WEBHOOK_SECRET", SECRET)
        .spawn()?;
    let id = daemon.id().context("it runs")?;
    while TcpStream::connect(address).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    let ids = ready_after.iter().enumerate();
    let ids: Vec<_> = ids.map(|(n, after)| provider_id(n, *after)).collect();
    let waiting = add_waiting(&site).await?;
    let began = Instant::now();
    let since_made = chrono::Utc::now().timestamp_millis() - site.began;
    let hints = ids.iter().zip(ready_after).map(|(id, after)| async move {
        let since_made = Duration::from_millis(since_made.unsigned_abs());
        sleep_until(began + after.saturating_sub(since_made)).await;
        let authorization = format!("authorization: Bearer {SECRET}");
        let hint = post(
            "/hints",
            &authorization,
            &format!(r#"{{"voice_id":"{id}"}}"#),
        );
        let (status, _) = ask(address, &hint).await?;
        ensure!(status == 200, "{status}");
        Ok(())
    });
    let (alive, flooded) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let health = async {
        let mut turns = interval(Duration::from_millis(20));
        while began.elapsed() < FLOOD {
            turns.tick().await;
            let get = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
            let (status, took) = ask(address, get).await?;
            ensure!(status == 200, "/livez: {status}");
            alive.lock().expect("not poisoned").push(took);
        }
        anyhow::Ok(())
    };
    let requests = seed.map(|seed| flood(seed, &waiting)).unwrap_or_default();
    let before = resident_kib(id)?;
    let flooding = async {
        match requests.is_empty() {
            true => Ok(()),
            false => send_flood(address, &requests, &flooded).await,
        }
    };
    let (hinted, health, flooding) = tokio::join!(join_all(hints), health, flooding);
    hinted.into_iter().collect::<anyhow::Result<()>>()?;
    health.and(flooding)?;
    let after = resident_kib(id)?;
    sleep(Duration::from_secs(3)).await;
    daemon.kill().await?;
    let lags = site.lags(ready_after).await?;
    let seconds = |took: Mutex<Vec<Duration>>| -> Vec<f64> {
        let took = took.into_inner().expect("not poisoned");
        took.iter().map(Duration::as_secs_f64).collect()
    };
    println!("{who}");
    println!("  from ready to completed   {}", quantiles(lags));
    println!("  answer of /livez          {}", quantiles(seconds(alive)));
    let flooded = seconds(flooded);
    if !flooded.is_empty() {
        println!("  answer to a webhook       {}", quantiles(flooded));
    }
    println!("  requests to the provider  {}", site.requests());
    println!("  resident memory           {before} KiB before, {after} KiB after");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ensure!(Path::new(BINARY).exists(), "there is no {BINARY}");
    let seed = seed()?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let ready_after: Vec<_> = (0..VOICES)
        .map(|_| Duration::from_millis(rng.u64(1_000..10_000)))
        .collect();
    measure("without a flood", &ready_after, None).await?;
    measure("10,000 webhooks a second", &ready_after, Some(seed)).await
}
