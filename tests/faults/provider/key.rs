//! A key that is refused, and a key that knows none of the voices.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use voice_sync_simulator::Answer;

use crate::budget;
use crate::scene::{DECIDED, Scene};
use crate::support::app::Variant;

const CONCURRENCY: usize = 4;

/// After so many requests, every answer is this refusal.
async fn a_refusal_stops_the_run(status: u16, code: &'static str, lookup: &str, good: u64) {
    let voices = if lookup == "single" { 60 } else { 700 };
    let scene = Scene::new(Variant::E32, DECIDED, voices).await;
    let asked = AtomicU64::new(0);
    scene.provider.script(move |_| {
        (asked.fetch_add(1, Ordering::Relaxed) >= good).then(|| Answer::error(status, code, "no"))
    });
    let what = format!("HTTP {status} {code} after {good} requests, {lookup}");
    let ended = scene.command().args(&["--lookup", lookup]).run().await;
    let requests = scene.provider.requests();
    let refused = requests.iter().filter(|r| r.status == Some(status)).count();
    println!("{what}: {refused} requests refused");
    assert_eq!(ended.code, 77, "{what}: {}", ended.stderr);
    assert!(ended.stderr.contains(code), "{what}: {}", ended.stderr);
    assert!(refused <= CONCURRENCY, "{what}: {refused} were refused");
    assert_eq!(ended.count("set_aside"), 0, "{what}");
    assert_eq!(ended.count("due"), voices as u64, "{what}");

    let good: BTreeSet<String> = requests
        .into_iter()
        .filter(|request| request.status == Some(200))
        .flat_map(|request| request.voice_ids)
        .collect();
    let moved: BTreeSet<String> = scene
        .app
        .rows()
        .await
        .into_iter()
        .filter(|(_, row)| row.status != "processing")
        .map(|(id, _)| id)
        .collect();
    assert!(moved == good, "{what}: only good answers change rows");

    scene.provider.script(|_| None);
    scene.command().run().await.expect_code(0);
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_key_stops_the_run_after_the_requests_in_flight() {
    // Later than that, nothing is left to ask: 700 voices take seven lists.
    let steps = |most| (0..=most).step_by(budget(4, 1) as usize);
    for (status, code) in [
        (401, "invalid_api_key"),
        (401, "missing_permissions"),
        (403, "missing_permissions"),
        (401, "quota_exceeded"),
    ] {
        for good in steps(6) {
            a_refusal_stops_the_run(status, code, "auto", good).await;
        }
        for good in steps(budget(4, 55)) {
            a_refusal_stops_the_run(status, code, "single", good).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_that_finds_no_voice_never_fails_any() {
    // The same key found voices yesterday, or it never did.
    for found_before in [false, true] {
        let voices = 150;
        let scene = Scene::new(Variant::A, DECIDED, voices).await;
        if found_before {
            let run = scene.command().args(&["--limit", "50"]).run().await;
            run.expect_code(0);
        }
        scene.provider.script(|request| {
            Some(match request.path.as_str() {
                "/v2/voices" => Answer::json(200, r#"{"voices":[],"has_more":false}"#),
                _ => Answer::error(404, "voice_not_found", "no such voice"),
            })
        });
        scene.provider.forget_requests();
        let before = scene.app.rows().await;
        let runs = budget(4, 30);
        for _ in 0..runs {
            let run = scene.command().run().await;
            run.expect_code(77);
            assert_eq!(run.count("failed"), 0);
            assert!(run.stderr.contains("another workspace"), "{}", run.stderr);
            scene.app.age_own_tables(10 * 60).await;
        }
        let counts = scene.provider.counts();
        println!(
            "{runs} runs: {} lists, {} single lookups",
            counts.list, counts.single
        );
        // Several instances, each of which sees a part only.
        for run in join_all((0..5).map(|_| scene.command().run())).await {
            assert_eq!(run.count("failed"), 0);
        }
        assert!(scene.app.rows().await == before, "no row changed");
    }
}
