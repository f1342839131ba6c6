//! What completions write: bytes of the write-ahead log, and rows of voice-sync's own that die. Neither depends on
//! the machine.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use sqlx::{Row, SqlitePool};

use crate::CONCURRENCY;
use crate::contender::{Contender, Lookup, migrate};
use crate::share::{by_hand, by_hand_on_sqlite};
use crate::site::{Engine, Site};

const VOICES: u64 = 20_000;

/// By hand, and by a whole pass with events.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!("{VOICES} completions with events, latency 0:");
    let site = Site::new(Engine::Postgres, VOICES, Duration::ZERO).await?;
    let before = postgres_wal(&site).await?;
    by_hand(&site).await?;
    let hand = postgres_wal(&site).await? - before;
    site.close().await?;
    let site = Site::new(Engine::Postgres, VOICES, Duration::ZERO).await?;
    migrate(&site).await?;
    let before = postgres_wal(&site).await?;
    let voice_sync = Contender::VoiceSync(Lookup::Batch);
    voice_sync.run(&site, CONCURRENCY).await?;
    let pass = postgres_wal(&site).await? - before;
    site.expect_all_completed().await?;
    let dead = dead_rows(&site).await?;
    site.close().await?;
    print("PostgreSQL", hand, pass);
    let per_voice = dead as f64 / VOICES as f64;
    println!("PostgreSQL  dead rows of voice-sync's own: {per_voice:.4} a completion");

    let site = Site::new(Engine::Sqlite, VOICES, Duration::ZERO).await?;
    let hand = sqlite_wal(&site, async |site| by_hand_on_sqlite(site).await).await?;
    site.close().await?;
    let site = Site::new(Engine::Sqlite, VOICES, Duration::ZERO).await?;
    migrate(&site).await?;
    let pass = sqlite_wal(&site, async |site| {
        voice_sync.run(site, CONCURRENCY).await.map(drop)
    })
    .await?;
    site.expect_all_completed().await?;
    site.close().await?;
    print("SQLite", hand, pass);
    Ok(())
}

fn print(engine: &str, hand: u64, pass: u64) {
    let a_voice = |bytes: u64| bytes as f64 / VOICES as f64;
    println!(
        "{engine:<11} by hand {:>6.0} bytes a completion; sync-once {:>6.0}, {:.2} times",
        a_voice(hand),
        a_voice(pass),
        pass as f64 / hand as f64
    );
}

async fn postgres_wal(site: &Site) -> anyhow::Result<u64> {
    const WRITTEN: &str = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
    let written: i64 = sqlx::query_scalar(WRITTEN)
        .fetch_one(site.postgres()?)
        .await?;
    Ok(written.unsigned_abs())
}

/// Rows that were changed or removed.
async fn dead_rows(site: &Site) -> anyhow::Result<i64> {
    const DEAD: &str = "
        SELECT pg_stat_force_next_flush(), (
            SELECT sum(n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables WHERE schemaname = 'voice_sync')";
    Ok(sqlx::query(DEAD)
        .fetch_one(site.postgres()?)
        .await?
        .try_get(1)?)
}

/// Bytes that something writes to the write-ahead log. As long as somebody reads, it does not begin anew.
async fn sqlite_wal(
    site: &Site,
    work: impl AsyncFnOnce(&Site) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let path = site
        .database_url
        .strip_prefix("sqlite:///")
        .context("a path")?;
    let path = path.strip_prefix("file:").unwrap_or(path);
    let pool = SqlitePool::connect(&format!("sqlite://{path}")).await?;
    sqlx::query("PRAGMA journal_mode = wal")
        .execute(&pool)
        .await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&pool)
        .await?;
    let mut reading = pool.begin().await?;
    sqlx::query("SELECT count(*) FROM voices")
        .fetch_one(&mut *reading)
        .await?;
    work(site).await?;
    let written = fs::metadata(format!("{path}-wal"))?.len();
    reading.rollback().await?;
    pool.close().await;
    Ok(written)
}
