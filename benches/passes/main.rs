//! How whole passes do: `scripts/bench passes [FIGURE…]`, of the figures `whole` and `share`.
//!
//! Everybody works on a database of the same contents and with a simulator of the same latency, one
//! after the other, in the same run.

mod contender;
mod share;
mod site;

use std::time::Duration;

use anyhow::bail;

use self::contender::{Contender, Lookup, Usage, migrate};
use self::site::{Engine, Site};

/// Runs of which the middle one is shown, where a run is short.
const RUNS: usize = 5;
const CONCURRENCY: u64 = 10;
const LATENCY: Duration = Duration::from_millis(50);
const MANY: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    // Cargo adds a flag of its own.
    let named = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let named: Vec<String> = named.collect();
    let figures = match named.is_empty() {
        true => vec!["whole".to_owned(), "share".to_owned()],
        false => named,
    };
    for figure in figures {
        match figure.as_str() {
            "whole" => whole().await?,
            "share" => database_share().await?,
            other => bail!("there is no figure {other:?}; there are whole and share"),
        }
    }
    Ok(())
}

/// One pass over a site of its own.
async fn pass(
    contender: Contender,
    engine: Engine,
    voices: u64,
    latency: Duration,
) -> anyhow::Result<Usage> {
    let site = Site::new(engine, voices, latency).await?;
    migrate(&site).await?;
    let usage = contender.run(&site, CONCURRENCY).await?;
    site.expect_all_completed().await?;
    site.close().await?;
    Ok(usage)
}

/// A thousand voices, by each contender.
async fn whole() -> anyhow::Result<()> {
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
            runs.push(pass(contender, engine, VOICES, LATENCY).await?);
        }
        runs.sort_by_key(|run| run.wall);
        let middle = runs[RUNS / 2];
        println!(
            "{engine:<11} {:<34} {:>6.3} s   CPU {:>6.3} s",
            contender.to_string(),
            middle.wall.as_secs_f64(),
            middle.cpu.as_secs_f64(),
        );
    }
    let run = pass(Contender::Sequential, Engine::Postgres, VOICES, LATENCY).await?;
    let (wall, cpu) = (run.wall.as_secs_f64(), run.cpu.as_secs_f64());
    println!("PostgreSQL  one after the other, once          {wall:>6.3} s   CPU {cpu:>6.3} s");
    Ok(())
}

/// What PostgreSQL takes for many completions.
async fn database_share() -> anyhow::Result<()> {
    println!("{MANY} completions on PostgreSQL:");
    let site = Site::new(Engine::Postgres, MANY, Duration::ZERO).await?;
    let by_hand = share::by_hand(&site).await?;
    site.expect_all_completed().await?;
    site.close().await?;
    let times = |time: Duration| time.as_secs_f64() / by_hand.as_secs_f64();
    println!(
        "one statement, by hand            {:>6.2} s",
        by_hand.as_secs_f64()
    );

    let site = Site::new(Engine::Postgres, MANY, Duration::ZERO).await?;
    migrate(&site).await?;
    let [claim, apply, mark] = share::by_operations(&site).await?;
    site.expect_all_completed().await?;
    site.close().await?;
    let all = claim + apply + mark;
    println!(
        "voice-sync's, one after the other {:>6.2} s   {:.2} times (claim {:.2} s, apply {:.2} s, mark {:.2} s)",
        all.as_secs_f64(),
        times(all),
        claim.as_secs_f64(),
        apply.as_secs_f64(),
        mark.as_secs_f64(),
    );
    for contender in [
        Contender::VoiceSync(Lookup::Batch),
        Contender::Asyncio(Lookup::Batch),
    ] {
        let run = pass(contender, Engine::Postgres, MANY, Duration::ZERO).await?;
        println!(
            "{:<33} {:>6.2} s   {:.2} times, latency 0, the whole process (CPU {:.2} s)",
            contender.to_string(),
            run.wall.as_secs_f64(),
            times(run.wall),
            run.cpu.as_secs_f64(),
        );
    }
    Ok(())
}
