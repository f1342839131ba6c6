//! A provider that asks for less: both kinds of 429, with and without a time to wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use voice_sync_simulator::{Answer, Options, Request, Simulator};

use crate::budget;
use crate::support::app::{App, NewVoice, Variant};
use crate::support::binary::{VoiceSync, end, sync_once};
use crate::support::fates::simulator_with;

const CODES: [&str; 2] = ["too_many_concurrent_requests", "system_busy"];

async fn app_with(variant: Variant, voices: usize) -> App {
    let app = App::new(variant).await;
    let ids = (0..voices).map(|n| format!("sim-pvctraining-{n:04}"));
    app.insert(&ids.map(NewVoice::processing).collect::<Vec<_>>())
        .await;
    drop(app.store().await);
    app
}

fn singly(app: &App, provider: &Simulator, concurrency: u32) -> VoiceSync {
    sync_once(&app.url, &provider.url()).args(&[
        "--lookup",
        "single",
        "--concurrency",
        &concurrency.to_string(),
    ])
}

/// Answers the first so many requests with a 429.
fn throttle(provider: &Simulator, first: u64, answer: Answer) {
    let asked = AtomicU64::new(0);
    provider
        .script(move |_| (asked.fetch_add(1, Ordering::Relaxed) < first).then(|| answer.clone()));
}

/// Requests that came after one that was throttled, and before it was time.
fn too_early(requests: &[Request], told: Duration) -> usize {
    let throttled = requests
        .iter()
        .filter(|request| request.status == Some(429));
    throttled
        .map(|refused| {
            let early =
                |request: &&Request| request.at > refused.at && request.at < refused.at + told;
            requests.iter().filter(early).count()
        })
        .max()
        .expect("some were throttled")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_before_retry_after() {
    const CONCURRENCY: u32 = 4;
    for code in CODES {
        for (header, value, told_ms) in [
            ("retry-after", "1", 1000),
            ("retry-after-ms", "600", 600),
            ("x-nothing", "0", 0),
        ] {
            let app = app_with(Variant::E32, 30).await;
            let provider = simulator_with(Options::default()).await;
            let answer = Answer::error(429, code, "slow down").with_header(header, value);
            throttle(&provider, CONCURRENCY.into(), answer);
            let ended = singly(&app, &provider, CONCURRENCY).run().await;
            ended.expect_code(0);
            assert_eq!(ended.count("processing"), 30);
            let early = too_early(&provider.requests(), Duration::from_millis(told_ms));
            // Those that were under way already.
            assert!(
                early < CONCURRENCY as usize,
                "{code}, {header}: {value}: {early} too early"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_instance_also_waits_for_retry_after() {
    for code in CODES {
        let told = Duration::from_secs(budget(2, 9));
        let app = app_with(Variant::A, 150).await;
        let provider = simulator_with(Options::default()).await;
        let answer = Answer::error(429, code, "slow down")
            .with_header("retry-after", &told.as_secs().to_string());
        throttle(&provider, 1, answer);
        let mut first = singly(&app, &provider, 1).start();
        let held = "SELECT count(*) FROM voice_sync.provider WHERE hold_until > now()";
        while app.number(held).await == 0 {
            let over = first.try_wait().expect("it is ours").is_some();
            assert!(!over, "{code}: nobody else was told");
        }
        let second = singly(&app, &provider, 1).run().await;
        let first = end(first).await;
        assert_eq!(too_early(&provider.requests(), told), 0, "{code}");
        assert!(second.count("requests") > 0, "it had something to ask");
        first.expect_code(0);
        second.expect_code(0);
    }
}

/// The most requests that were under way when each of them came, itself included; `latency` is what
/// each took at least.
fn under_way(requests: &[Request], latency: Duration) -> Vec<usize> {
    let overlapping = |now: &Request| {
        let begun = requests.iter().filter(|request| request.at <= now.at);
        begun
            .filter(|request| request.at + latency > now.at)
            .count()
    };
    requests.iter().map(overlapping).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrency_halves_within_a_round_trip_and_recovers_over_runs() {
    const FULL: u32 = 8;
    let latency = Duration::from_millis(60);
    let app = app_with(Variant::A, 100).await;
    let provider = simulator_with(Options {
        latency,
        ..Options::default()
    })
    .await;
    let answer = Answer::error(429, CODES[0], "slow down")
        .with_header("retry-after-ms", "50")
        .after(latency);
    throttle(&provider, FULL.into(), answer);
    let run = async |voices| {
        let command = singly(&app, &provider, FULL).args(&["--limit", voices]);
        command.run().await.expect_code(0);
        let adapted = "SELECT floor(concurrency + 0.001)::bigint FROM voice_sync.provider";
        app.number(adapted).await
    };
    assert_eq!(run("20").await, 6, "4, and one for each ten clean answers");
    let requests = provider.requests();
    let (refused, answered) = requests.split_at(FULL as usize);
    assert!(refused.iter().all(|request| request.status == Some(429)));
    assert_eq!(under_way(refused, latency).into_iter().max(), Some(8));
    for (before, under_way) in under_way(answered, latency).into_iter().enumerate() {
        assert!(
            under_way <= 4 + before / 10,
            "{under_way} at once after {before} more"
        );
    }
    // Runs with little to do each, as cron starts them.
    let mut adapted = Vec::new();
    for _ in 0..6 {
        adapted.push(run("5").await);
    }
    println!("the limit after each run of 5 voices: {adapted:?}");
    assert_eq!(adapted, [6, 7, 7, 8, 8, 8]);
}
