//! What a daemon costs beside a backlog that is not due.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use sqlx::PgPool;
use tokio::time::sleep;
use voice_sync_simulator::Answer;
use wait4::Wait4;

use crate::contender::{Contender, Lookup, daemon, migrate};
use crate::site::{Engine, Site};

const VOICES: [u64; 3] = [1000, 100_000, 300_000];
const TIME: Duration = Duration::from_secs(60);
/// Ticks of proc_pid_stat(5) in a second: <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
const TICKS: f64 = 100.0;

/// Prints what a minute takes of a core, of the daemon and of the PostgreSQL server.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!(
        "a daemon for {} s, all voices looked up lately, none due:",
        TIME.as_secs()
    );
    for engine in [Engine::Sqlite, Engine::Postgres] {
        for voices in VOICES {
            let site = Site::new(engine, voices, Duration::ZERO).await?;
            // Found, and still processing.
            site.provider.script(|request| {
                let voices = request.voice_ids.iter();
                let voices: Vec<_> = voices.map(|id| json!({"voice_id": id})).collect();
                Some(Answer::json(200, json!({"voices": voices}).to_string()))
            });
            migrate(&site).await?;
            Contender::VoiceSync(Lookup::Batch).run(&site, 10).await?;
            site.put_off().await?;
            let before = server(&site).await?;
            let mut command = daemon(&site)?;
            let child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            sleep(TIME).await;
            let id = child.id().to_string();
            let told = std::process::Command::new("kill").arg(&id).status()?;
            ensure!(told.success(), "the daemon ended by itself");
            let usage = tokio::task::spawn_blocking(move || child.wait4()).await??;
            let own = (usage.rusage.utime + usage.rusage.stime).as_secs_f64();
            let of_server = server(&site).await? - before;
            println!(
                "{engine:<11} {voices:>7} voices   daemon {:>5.2} %   server {:>5.2} %",
                own / TIME.as_secs_f64() * 100.0,
                of_server / TIME.as_secs_f64() * 100.0
            );
            site.close().await?;
        }
    }
    Ok(())
}

/// CPU seconds of a PostgreSQL server, of its sessions that have ended; none of an SQLite.
async fn server(site: &Site) -> anyhow::Result<f64> {
    let Ok(pool) = site.postgres() else {
        return Ok(0.0);
    };
    let session = own_session(pool).await?;
    let parent = stat(session)?.get(1).context("a parent")?.to_owned();
    let fields = stat(parent)?;
    // utime, stime, cutime and cstime, which are the fields 14 to 17.
    let ticks: i64 = fields.iter().skip(11).take(4).sum();
    Ok(ticks as f64 / TICKS)
}

async fn own_session(pool: &PgPool) -> anyhow::Result<i64> {
    let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(pool)
        .await?;
    Ok(id.into())
}

/// The numbers of proc_pid_stat(5) from the third field on; the state, which is none, counts as 0.
fn stat(process: i64) -> anyhow::Result<Vec<i64>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("a name")?;
    let fields = fields.split_whitespace();
    Ok(fields.map(|field| field.parse().unwrap_or(0)).collect())
}
