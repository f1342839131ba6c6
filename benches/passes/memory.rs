//! How much memory a pass takes, by how many voices are in processing.

use std::time::Duration;

use crate::contender::{Contender, Lookup};
use crate::site::{Engine, Site};
use crate::{CONCURRENCY, MANY, pass};

/// Prints the peak for each size, and what the pass took.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!("in processing    among    peak memory     wall      CPU   (batch, latency 0)");
    for (engine, voices, rows) in [
        (Engine::Postgres, 1000, 1000),
        (Engine::Postgres, MANY, MANY),
        (Engine::Postgres, 1_000_000, 10_000_000),
        (Engine::Sqlite, 1000, 1000),
        (Engine::Sqlite, MANY, MANY),
    ] {
        let site = Site::among(engine, voices, rows, Duration::ZERO).await?;
        let run = pass(Contender::VoiceSync(Lookup::Batch), site, CONCURRENCY).await?;
        println!(
            "{voices:>13} {rows:>8}   {:>6.1} MiB   {:>7.2} s {:>7.2} s   {engine}",
            run.peak as f64 / 1024.0,
            run.wall.as_secs_f64(),
            run.cpu.as_secs_f64(),
        );
    }
    Ok(())
}
