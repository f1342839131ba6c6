//! The wall time of a pass over the limit that the provider's latency sets, and the database's share.

use std::time::Duration;

use crate::contender::{Contender, Lookup};
use crate::site::{Engine, Site};
use crate::{middle, pass, share};

/// Combinations whose limit alone takes longer are left out.
const LONGEST: Duration = Duration::from_secs(60);
/// Of a short pass, the middle of so many runs is shown.
const RUNS: usize = 3;
const SHORT: Duration = Duration::from_secs(2);

/// Prints the ratio for each combination.
pub(crate) async fn show() -> anyhow::Result<()> {
    println!(
        "database    voices  lookup  latency  at once    limit    share     wall   wall / (limit + share)   CPU"
    );
    for engine in [Engine::Postgres, Engine::Sqlite] {
        for voices in [1000, 10_000, 100_000] {
            let share = database_share(engine, voices).await?;
            for lookup in [Lookup::Batch, Lookup::Single] {
                for latency in [50, 100].map(Duration::from_millis) {
                    for concurrency in [4, 10, 50] {
                        let limit = limit(voices, lookup, latency, concurrency);
                        if limit <= LONGEST {
                            one(engine, voices, lookup, latency, concurrency, limit, share).await?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// What the provider's latency alone takes.
fn limit(voices: u64, lookup: Lookup, latency: Duration, concurrency: u64) -> Duration {
    let requests = match lookup {
        Lookup::Batch => voices.div_ceil(100),
        Lookup::Single => voices,
    };
    latency * u32::try_from(requests.div_ceil(concurrency)).unwrap_or(u32::MAX)
}

/// What voice-sync's own operations take, one after the other, on a database of the same contents.
async fn database_share(engine: Engine, voices: u64) -> anyhow::Result<Duration> {
    let mut shares = Vec::new();
    for _ in 0..RUNS {
        shares.push(share::by_operations(engine, voices).await?.iter().sum());
    }
    shares.sort();
    Ok(shares[RUNS / 2])
}

async fn one(
    engine: Engine,
    voices: u64,
    lookup: Lookup,
    latency: Duration,
    concurrency: u64,
    limit: Duration,
    share: Duration,
) -> anyhow::Result<()> {
    let runs = if limit < SHORT { RUNS } else { 1 };
    let mut all = Vec::with_capacity(runs);
    for _ in 0..runs {
        let site = Site::new(engine, voices, latency).await?;
        all.push(pass(Contender::VoiceSync(lookup), site, concurrency).await?);
    }
    let run = middle(all);
    let (limit, share, wall) = (
        limit.as_secs_f64(),
        share.as_secs_f64(),
        run.wall.as_secs_f64(),
    );
    println!(
        "{engine:<10} {voices:>7}  {lookup:<6}  {latency:>7?}  {concurrency:>7}  {limit:>7.3}  {share:>7.3}  {wall:>7.3}   {:>22.2}   {:>5.2}",
        wall / (limit + share),
        run.cpu.as_secs_f64(),
    );
    Ok(())
}
