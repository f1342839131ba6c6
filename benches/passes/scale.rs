//! Several processes that share a backlog.

use std::time::Instant;

use futures_util::future::try_join_all;

use crate::contender::{Contender, Lookup, migrate};
use crate::site::{Engine, Site};
use crate::{LATENCY, MANY};

/// Prints how much faster several are than one.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!("{MANY} voices on PostgreSQL, latency {LATENCY:?}, in batches:");
    for concurrency in [1, 2, 10] {
        let mut alone = None;
        for processes in [1, 2, 4] {
            let site = Site::new(Engine::Postgres, MANY, LATENCY).await?;
            migrate(&site).await?;
            let began = Instant::now();
            let run = |_| Contender::VoiceSync(Lookup::Batch).run(&site, concurrency);
            let runs = try_join_all((0..processes).map(run)).await?;
            let wall = began.elapsed().as_secs_f64();
            site.expect_all_completed().await?;
            site.close().await?;
            let cpu: f64 = runs.iter().map(|run| run.cpu.as_secs_f64()).sum();
            println!(
                "{processes} at {concurrency:>2} requests each   {wall:>6.2} s   {:>5.2} times one   CPU {cpu:>5.2} s",
                *alone.get_or_insert(wall) / wall,
            );
        }
    }
    Ok(())
}
