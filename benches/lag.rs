//! How soon a finished voice is noticed, and how many requests that takes: `cargo bench --bench lag`.
//!
//! 200 voices become ready at random between 5 s and 90 s. The daemon, `sync-once` every 60 s, and a
//! task for each voice that asks every 5 s work side by side on voices of the same times, each with a
//! simulator and an SQLite file of its own. It takes two minutes and prints its seed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use tempfile::TempDir;
use tokio::time::{Instant, interval, sleep, sleep_until};
use voice_sync_simulator::{Options, Simulator};

const VOICES: usize = 200;
const LATENCY: Duration = Duration::from_millis(50);
/// After which everything is ready, and whoever asks every 60 s has asked.
const END: Duration = Duration::from_secs(122);
const BINARY: &str = env!("CARGO_BIN_EXE_voice-sync");

const TABLE: &str = "CREATE TABLE voices (
    id TEXT PRIMARY KEY, user_id TEXT, elevenlabs_voice_id TEXT, status TEXT DEFAULT 'processing',
    preview_url TEXT, created_at DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    completed_at DATETIME)";

/// A provider that began at a known moment, and an application with voices in processing.
struct Site {
    provider: Simulator,
    /// Milliseconds since 1970.
    began: i64,
    path: PathBuf,
    pool: SqlitePool,
    _directory: TempDir,
}

impl Site {
    async fn new(ready_after: &[Duration]) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().join("app.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePool::connect_with(options).await?;
        sqlx::query(TABLE).execute(&pool).await?;
        let options = Options {
            latency: LATENCY,
            ..Options::default()
        };
        let provider = Simulator::start(([127, 0, 0, 1], 0).into(), options).await?;
        let began = chrono::Utc::now().timestamp_millis();
        for (number, after) in ready_after.iter().enumerate() {
            sqlx::query("INSERT INTO voices (id, elevenlabs_voice_id) VALUES ($1, $2)")
                .bind(number.to_string())
                .bind(provider_id(number, *after))
                .execute(&pool)
                .await?;
        }
        Ok(Self {
            provider,
            began,
            path,
            pool,
            _directory: directory,
        })
    }

    fn voice_sync(&self, command: &str) -> tokio::process::Command {
        let mut voice_sync = tokio::process::Command::new(BINARY);
        voice_sync
            .arg(command)
            .env_clear()
            .env("DATABASE_URL", format!("sqlite:///{}", self.path.display()))
            .env("ELEVENLABS_BASE_URL", self.provider.url())
            .env("ELEVENLABS_API_KEY", "any")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        voice_sync
    }

    /// Seconds from each voice's readiness to its row's completion.
    async fn lags(&self, ready_after: &[Duration]) -> anyhow::Result<Vec<f64>> {
        let completed: Vec<(String, i64)> = sqlx::query_as(
            "SELECT id, CAST(unixepoch(completed_at, 'subsec') * 1000 AS INTEGER) FROM voices
             WHERE status = 'completed'",
        )
        .fetch_all(&self.pool)
        .await?;
        ensure!(completed.len() == VOICES, "{} completed", completed.len());
        let lag = |(id, at): &(String, i64)| {
            let after = ready_after[id.parse::<usize>()?];
            Ok((at - self.began) as f64 / 1000.0 - after.as_secs_f64())
        };
        completed.iter().map(lag).collect()
    }

    fn requests(&self) -> u64 {
        let counts = self.provider.counts();
        counts.list + counts.single
    }
}

fn provider_id(number: usize, after: Duration) -> String {
    format!("sim-ready{}ms-{number}", after.as_millis())
}

fn print(who: &str, mut lags: Vec<f64>, requests: u64) {
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share).round() as usize];
    println!(
        "{who:<34} p50 {:>6.2} s   p99 {:>6.2} s   longest {:>6.2} s   {:>6.3} requests a voice",
        at(0.5),
        at(0.99),
        at(1.0),
        requests as f64 / VOICES as f64
    );
}

async fn daemon(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let mut running = site.voice_sync("daemon").spawn()?;
    sleep(END).await;
    running.kill().await?;
    Ok((site.lags(ready_after).await?, site.requests()))
}

async fn every_minute(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let mut minutes = interval(Duration::from_secs(60));
    let end = Instant::now() + END;
    while Instant::now() < end {
        minutes.tick().await;
        site.voice_sync("sync-once").status().await?;
    }
    Ok((site.lags(ready_after).await?, site.requests()))
}

/// What the web process does without voice-sync: it writes nothing here, so it is only measured when
/// each task learns that its voice is ready.
async fn a_task_each(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let client = reqwest::Client::builder().tls_certs_only([]).build()?;
    let url = site.provider.url();
    let began = Instant::now();
    let tasks = ready_after.iter().enumerate().map(|(number, after)| {
        let (client, url) = (
            client.clone(),
            format!("{url}/v1/voices/{}", provider_id(number, *after)),
        );
        async move {
            // Clones are made at different moments.
            sleep_until(began + Duration::from_secs_f64(fastrand::f64() * 5.0)).await;
            let mut rounds = interval(Duration::from_secs(5));
            loop {
                rounds.tick().await;
                let answer = client.get(&url).header("xi-api-key", "any").send().await?;
                let voice: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
                if voice["preview_url"].is_string() {
                    return Ok::<_, anyhow::Error>(
                        began.elapsed().as_secs_f64() - after.as_secs_f64(),
                    );
                }
            }
        }
    });
    let lags = join_all(tasks)
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    Ok((lags, site.requests()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ensure!(Path::new(BINARY).exists(), "there is no {BINARY}");
    voice_sync::tls::install();
    let seed = match std::env::var("VOICE_SYNC_TEST_SEED") {
        Ok(text) => text.parse().context("VOICE_SYNC_TEST_SEED is no number")?,
        Err(_) => fastrand::u64(..),
    };
    println!("VOICE_SYNC_TEST_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let ready_after: Vec<_> = (0..VOICES)
        .map(|_| Duration::from_millis(rng.u64(5_000..90_000)))
        .collect();
    let (one, two, three) = tokio::join!(
        daemon(&ready_after),
        every_minute(&ready_after),
        a_task_each(&ready_after)
    );
    for (who, measured) in [
        ("voice-sync daemon", one),
        ("voice-sync sync-once every 60 s", two),
        ("a task for each voice, every 5 s", three),
    ] {
        let (lags, requests) = measured.context(who)?;
        print(who, lags, requests);
    }
    Ok(())
}
