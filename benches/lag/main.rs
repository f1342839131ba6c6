//! How soon a finished voice is noticed, and how many requests that takes: `cargo bench --bench lag`.
//!
//! 200 voices become ready at random between 5 s and 90 s. The daemon, `sync-once` every 60 s, and a
//! task for each voice that asks every 5 s work side by side on voices of the same times, each with a
//! simulator and an SQLite file of its own. It takes two minutes and prints its seed.

mod site;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use tokio::time::{Instant, interval, sleep, sleep_until};

use self::site::{BINARY, Site, provider_id, seed};

const VOICES: usize = 200;
/// After which everything is ready, and whoever asks every 60 s has asked.
const END: Duration = Duration::from_secs(122);

fn print(who: &str, mut lags: Vec<f64>, requests: u64) {
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share).round() as usize];
    println!(
        "{who:<34} p50 {:>6.2} s   p99 {:>6.2} s   longest {:>6.2} s   {:>6.3} requests a voice",
        at(0.5),
        at(0.99),
        at(1.0),
        requests as f64 / VOICES as f64
    );
}

async fn daemon(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let mut running = site.voice_sync("daemon").spawn()?;
    sleep(END).await;
    running.kill().await?;
    Ok((site.lags(ready_after).await?, site.requests()))
}

async fn every_minute(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let mut minutes = interval(Duration::from_secs(60));
    let end = Instant::now() + END;
    while Instant::now() < end {
        minutes.tick().await;
        site.voice_sync("sync-once").status().await?;
    }
    Ok((site.lags(ready_after).await?, site.requests()))
}

/// What the web process does without voice-sync: it writes nothing here, so it is only measured when
/// each task learns that its voice is ready.
async fn a_task_each(ready_after: &[Duration]) -> anyhow::Result<(Vec<f64>, u64)> {
    let site = Site::new(ready_after).await?;
    let client = reqwest::Client::builder().tls_certs_only([]).build()?;
    let url = site.provider.url();
    let began = Instant::now();
    let tasks = ready_after.iter().enumerate().map(|(number, after)| {
        let (client, url) = (
            client.clone(),
            format!("{url}/v1/voices/{}", provider_id(number, *after)),
        );
        async move {
            // Clones are made at different moments.
            sleep_until(began + Duration::from_secs_f64(fastrand::f64() * 5.0)).await;
            let mut rounds = interval(Duration::from_secs(5));
            loop {
                rounds.tick().await;
                let answer = client.get(&url).header("xi-api-key", "any").send().await?;
                let voice: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
                if voice["preview_url"].is_string() {
                    return Ok::<_, anyhow::Error>(
                        began.elapsed().as_secs_f64() - after.as_secs_f64(),
                    );
                }
            }
        }
    });
    let lags = join_all(tasks)
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    Ok((lags, site.requests()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ensure!(Path::new(BINARY).exists(), "there is no {BINARY}");
    voice_sync::tls::install();
    let seed = seed()?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let ready_after: Vec<_> = (0..VOICES)
        .map(|_| Duration::from_millis(rng.u64(5_000..90_000)))
        .collect();
    let (one, two, three) = tokio::join!(
        daemon(&ready_after),
        every_minute(&ready_after),
        a_task_each(&ready_after)
    );
    for (who, measured) in [
        ("voice-sync daemon", one),
        ("voice-sync sync-once every 60 s", two),
        ("a task for each voice, every 5 s", three),
    ] {
        let (lags, requests) = measured.context(who)?;
        print(who, lags, requests);
    }
    Ok(())
}
