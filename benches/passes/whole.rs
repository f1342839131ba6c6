//! A thousand voices, the whole process.

use crate::contender::{Contender, Lookup};
use crate::site::{Engine, Site};
use crate::{CONCURRENCY, LATENCY, middle, pass};

/// Runs of which the middle one is shown.
const RUNS: usize = 5;

/// A thousand voices, by each contender.
pub(crate) async fn show() -> anyhow::Result<()> {
    const VOICES: u64 = 1000;
    println!(
        "{VOICES} voices, latency {LATENCY:?}, {CONCURRENCY} at once, the whole process; the middle of {RUNS} runs:"
    );
    let contenders = [
        (Engine::Postgres, Contender::VoiceSync(Lookup::Batch)),
        (Engine::Sqlite, Contender::VoiceSync(Lookup::Batch)),
        (Engine::Postgres, Contender::Asyncio(Lookup::Batch)),
        (Engine::Postgres, Contender::Plain(Lookup::Batch)),
        (Engine::Postgres, Contender::VoiceSync(Lookup::Single)),
        (Engine::Postgres, Contender::Asyncio(Lookup::Single)),
    ];
    for (engine, contender) in contenders {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let site = Site::new(engine, VOICES, LATENCY).await?;
            runs.push(pass(contender, site, CONCURRENCY).await?);
        }
        let middle = middle(runs);
        println!(
            "{engine:<11} {:<34} {:>6.3} s   CPU {:>6.3} s",
            contender.to_string(),
            middle.wall.as_secs_f64(),
            middle.cpu.as_secs_f64(),
        );
    }
    let site = Site::new(Engine::Postgres, VOICES, LATENCY).await?;
    let run = pass(Contender::Sequential, site, CONCURRENCY).await?;
    let (wall, cpu) = (run.wall.as_secs_f64(), run.cpu.as_secs_f64());
    println!("PostgreSQL  one after the other, once          {wall:>6.3} s   CPU {cpu:>6.3} s");
    Ok(())
}
