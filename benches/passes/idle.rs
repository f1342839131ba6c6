//! What a pass costs that finds nothing to do.

use std::time::Duration;

use crate::contender::{Contender, Lookup, migrate};
use crate::site::{Engine, Site};
use crate::{CONCURRENCY, middle};

const RUNS: usize = 41;
const ROWS: u64 = 10_000;

/// Prints the middle run on each database.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!("nothing in processing, {ROWS} voices completed, the middle of {RUNS} runs:");
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let site = Site::new(engine, ROWS, Duration::ZERO).await?;
        migrate(&site).await?;
        site.complete_all().await?;
        let mut runs = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            let run = Contender::VoiceSync(Lookup::Batch).run(&site, CONCURRENCY);
            runs.push(run.await?);
        }
        let run = middle(runs);
        let (wall, cpu) = (run.wall.as_secs_f64() * 1e3, run.cpu.as_secs_f64() * 1e3);
        println!("{engine:<11} {wall:>6.1} ms   CPU {cpu:>5.1} ms");
        site.close().await?;
    }
    Ok(())
}
