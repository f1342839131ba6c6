//! A provider, an application with voices in processing, and how long they waited.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use tempfile::TempDir;
use voice_sync_simulator::{Options, Simulator};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_voice-sync");
const LATENCY: Duration = Duration::from_millis(50);

const TABLE: &str = "CREATE TABLE voices (
    id TEXT PRIMARY KEY, user_id TEXT, elevenlabs_voice_id TEXT, status TEXT DEFAULT 'processing',
    preview_url TEXT, created_at DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    completed_at DATETIME)";

/// A provider that began at a known moment, and an application with voices in processing.
pub(crate) struct Site {
    pub(crate) provider: Simulator,
    /// Milliseconds since 1970.
    pub(crate) began: i64,
    path: PathBuf,
    pub(crate) pool: SqlitePool,
    _directory: TempDir,
}

impl Site {
    pub(crate) async fn new(ready_after: &[Duration]) -> anyhow::Result<Self> {
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

    pub(crate) fn voice_sync(&self, command: &str) -> tokio::process::Command {
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
    pub(crate) async fn lags(&self, ready_after: &[Duration]) -> anyhow::Result<Vec<f64>> {
        let completed: Vec<(String, i64)> = sqlx::query_as(
            "SELECT id, CAST(unixepoch(completed_at, 'subsec') * 1000 AS INTEGER) FROM voices
             WHERE status = 'completed'",
        )
        .fetch_all(&self.pool)
        .await?;
        ensure!(
            completed.len() == ready_after.len(),
            "{} completed",
            completed.len()
        );
        let lag = |(id, at): &(String, i64)| {
            let after = ready_after[id.parse::<usize>()?];
            Ok((at - self.began) as f64 / 1000.0 - after.as_secs_f64())
        };
        completed.iter().map(lag).collect()
    }

    pub(crate) fn requests(&self) -> u64 {
        let counts = self.provider.counts();
        counts.list + counts.single
    }
}

pub(crate) fn provider_id(number: usize, after: Duration) -> String {
    format!("sim-ready{}ms-{number}", after.as_millis())
}

/// The seed of a run, which is printed, and taken from `VOICE_SYNC_TEST_SEED` to repeat it.
pub(crate) fn seed() -> anyhow::Result<u64> {
    let seed = match std::env::var("VOICE_SYNC_TEST_SEED") {
        Ok(text) => text.parse().context("VOICE_SYNC_TEST_SEED is no number")?,
        Err(_) => fastrand::u64(..),
    };
    println!("VOICE_SYNC_TEST_SEED={seed}");
    Ok(seed)
}
