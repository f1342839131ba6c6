//! How whole passes do: `scripts/bench passes [FIGURE…]`, of the figures that `main` names.
//!
//! Everybody works on a database of the same contents and with a simulator of the same latency, one
//! after the other, in the same run.

mod bad;
mod contender;
mod grid;
mod idle;
mod memory;
mod scale;
mod share;
mod site;
mod waiting;
mod wal;
mod whole;

use std::time::Duration;

use anyhow::bail;

use self::contender::{Contender, Usage, migrate};
use self::site::Site;

const CONCURRENCY: u64 = 10;
const LATENCY: Duration = Duration::from_millis(50);
const MANY: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    const FIGURES: [&str; 9] = [
        "whole", "wal", "share", "grid", "memory", "idle", "scale", "bad", "waiting",
    ];
    // Cargo adds a flag of its own.
    let named = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let named: Vec<String> = named.collect();
    let figures = match named.is_empty() {
        true => FIGURES.map(str::to_owned).to_vec(),
        false => named,
    };
    for figure in figures {
        match figure.as_str() {
            "whole" => whole::show().await?,
            "wal" => wal::show().await?,
            "share" => share::show().await?,
            "grid" => grid::show().await?,
            "memory" => memory::show().await?,
            "idle" => idle::show().await?,
            "scale" => scale::show().await?,
            "bad" => bad::show().await?,
            "waiting" => waiting::show().await?,
            other => bail!(
                "there is no figure {other:?}; there are {}",
                FIGURES.join(", ")
            ),
        }
    }
    Ok(())
}

/// One pass over a new site, which it uses up.
async fn pass(contender: Contender, site: Site, concurrency: u64) -> anyhow::Result<Usage> {
    migrate(&site).await?;
    let usage = contender.run(&site, concurrency).await?;
    site.expect_all_completed().await?;
    site.close().await?;
    Ok(usage)
}

/// The run of the middle wall time.
fn middle(mut runs: Vec<Usage>) -> Usage {
    runs.sort_by_key(|run| run.wall);
    runs[runs.len() / 2]
}
