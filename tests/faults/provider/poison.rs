//! One bad voice, and one small pass: neither stops the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use voice_sync_simulator::{Answer, Request};

use crate::scene::{DECIDED, Scene};
use crate::support::app::Variant;
use crate::support::binary::end;

const BAD: &str = "sim-ready-00000";

fn is_about_the_bad_one(request: &Request) -> bool {
    request.voice_ids.iter().any(|id| id == BAD)
}

/// Whatever is asked about one voice fails. Runs follow each other by the minute.
async fn others_are_finished(answer: Answer, alone_first: bool) {
    let mut scene = Scene::new(Variant::E32, &["ready"], 1).await;
    scene
        .provider
        .script(move |request| is_about_the_bad_one(request).then(|| answer.clone()));
    let minute = async |scene: &Scene| {
        let ended = scene.command().run().await;
        scene.app.age_own_tables(60).await;
        ended
    };
    if alone_first {
        minute(&scene).await.expect_code(75);
        for _ in 0..4 {
            minute(&scene).await.expect_code(0);
        }
    }
    scene.add(DECIDED, 40).await;
    let mut minutes = 0;
    while scene.undecided().await > 1 {
        minute(&scene).await;
        minutes += 1;
        assert!(minutes < 60, "the bad one stops the others");
    }
    println!("40 voices beside a bad one took {minutes} runs");
    scene.provider.script(|_| None);
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_voice_does_not_block_the_others() {
    for answer in [Answer::error(500, "internal", "oops"), Answer::empty(503)] {
        others_are_finished(answer, false).await;
    }
}

/// The breaker is open because of the bad voice when the others are added.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breaker_opened_by_a_lone_bad_voice_does_not_block_later_voices() {
    for answer in [Answer::error(500, "internal", "oops"), Answer::empty(503)] {
        others_are_finished(answer, true).await;
    }
}

/// The pass over one voice sees only failures, while the larger one gets answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_pass_over_one_voice_does_not_stop_a_larger_pass() {
    let scene = Scene::new(Variant::E32, DECIDED, 1500).await;
    scene
        .provider
        .script(|request| is_about_the_bad_one(request).then(|| Answer::empty(503)));
    let many = ["--lookup", "single", "--concurrency", "1"];
    let many = scene.command().args(&many).start();
    while scene.provider.counts().single < 20 {
        tokio::task::yield_now().await;
    }
    let one = scene.command().args(&["--voice", BAD]).run().await;
    assert!([0, 75].contains(&one.code), "{one:?}");
    let ended = end(many).await;
    assert!(ended.count("unavailable") <= 1, "{}", ended.stdout);
    scene.provider.script(|_| None);
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_that_runs_out_of_time_does_not_open_the_breaker() {
    let scene = Scene::new(Variant::E32, DECIDED, 50).await;
    let number = AtomicU64::new(0);
    scene.provider.script(move |_| {
        Some(match number.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::empty(503),
            _ => Answer::empty(200).after(Duration::from_secs(30)),
        })
    });
    let cut = scene.command().args(&["--max-runtime", "1s"]).run().await;
    cut.expect_code(75);
    assert!(cut.count("requests") > 0);
    let opened = "SELECT count(*) FROM voice_sync_provider WHERE opened > 0";
    assert_eq!(scene.app.number(opened).await, 0);
}
