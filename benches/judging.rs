//! What an answer of a hundred voices costs once it is here: `cargo bench --bench judging`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use serde_json::{Value, json};
use voice_sync::core::verdict::{AgeFrom, OnTimeout, Rules, judge};
use voice_sync::provider::wire;
use voice_sync_simulator::{Options, Simulator};

const VOICES: u64 = 100;
const AGE: Duration = Duration::from_secs(60);

/// What the simulator answers for a batch, in the shape of the provider's description.
async fn answer() -> anyhow::Result<String> {
    let provider = Simulator::start(([127, 0, 0, 1], 0).into(), Options::default()).await?;
    let ids: String = (0..VOICES)
        .map(|n| format!("&voice_ids=sim-ready-{n}"))
        .collect();
    let url = format!("{}/v2/voices?page_size={VOICES}{ids}", provider.url());
    let request = reqwest::Client::new().get(url).header("xi-api-key", "any");
    let body = request.send().await?.error_for_status()?.text().await?;
    provider.stop().await;
    Ok(body)
}

/// The same answer with so many samples a voice, of about 200 bytes each.
fn with_samples(answer: &str, samples: usize) -> anyhow::Result<String> {
    let mut page: Value = serde_json::from_str(answer)?;
    let sample = json!({
        "sample_id": "DCwhRBWXzGAHq8TQ4Fs18", "file_name": "recording-of-a-voice.mp3",
        "mime_type": "audio/mpeg", "size_bytes": 1_000_000, "hash": "d41d8cd98f00b204e9800998ecf8427e",
        "duration_secs": 12.5, "remove_background_noise": false, "has_isolated_audio": true,
    });
    let voices = page["voices"].as_array_mut();
    for voice in voices.into_iter().flatten() {
        voice["samples"] = json!(vec![&sample; samples]);
    }
    Ok(page.to_string())
}

fn main() -> anyhow::Result<()> {
    voice_sync::tls::install();
    let runtime = tokio::runtime::Runtime::new()?;
    let plain = runtime.block_on(answer())?;
    let rules = Rules {
        fail_after: Some(Duration::from_secs(24 * 60 * 60)),
        age_from: AgeFrom::default(),
        on_timeout: OnTimeout::default(),
        models: None,
    };
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("parse and judge");
    // Elements are voices: what criterion shows is the time of a batch, and voices a second.
    group.throughput(Throughput::Elements(VOICES));
    for samples in [0, 100] {
        let body = match samples {
            0 => plain.clone(),
            samples => with_samples(&plain, samples)?,
        };
        let each = body.len() as u64 / VOICES;
        let id = BenchmarkId::new("100 voices", format!("{each} bytes each"));
        group.bench_with_input(id, body.as_bytes(), |bencher, body| {
            bencher.iter(|| {
                let page = wire::list_page(black_box(body)).unwrap_or_default();
                for voice in &page.voices {
                    black_box(judge(voice, AGE, &rules));
                }
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
