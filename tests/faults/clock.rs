//! A host whose clock jumps, as libfaketime makes a program believe.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::scene::{DECIDED, Scene};
use crate::support::app::{App, Variant};
use crate::support::binary::end;
use crate::support::from_scripts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_moves_nothing() {
    for (before, after) in [("+0", "+1h"), ("+0", "-1h"), ("+1h", "-1h")] {
        let app = App::new(Variant::A).await;
        let scene = Scene::within(app, DECIDED, 2000, Duration::from_millis(50)).await;
        let directory = TempDir::new().expect("a directory");
        let clock = directory.path().join("clock");
        fs::write(&clock, before).expect("the clock is set");
        let jumping = scene
            .command()
            .env("LD_PRELOAD", from_scripts("VOICE_SYNC_TEST_FAKETIME"))
            .env("FAKETIME_TIMESTAMP_FILE", clock.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
            // No clock of this kind ever jumps on a real host.
            .env("DONT_FAKE_MONOTONIC", "1");
        let jumping = jumping.arg("--concurrency=1").start();
        let steady = scene.command().arg("--concurrency=1").start();
        while scene.provider.counts().list < 4 {
            tokio::task::yield_now().await;
        }
        fs::write(&clock, after).expect("the clock jumps");
        let ended = join_all([jumping, steady].map(end)).await;
        for run in &ended {
            run.expect_code(0);
        }
        let began = ended[0].report()["started_at"].clone();
        let finished = ended[0].report()["finished_at"].clone();
        println!("{before}, then {after}: from {began} to {finished}");
        let apart = |text: serde_json::Value| {
            let time = chrono::DateTime::parse_from_rfc3339(text.as_str().expect("a time"));
            time.expect("a time").timestamp()
        };
        let jump = apart(finished) - apart(began);
        assert!(jump.abs() > 3000, "it was made to believe so: {jump} s");
        let asked: usize = scene
            .provider
            .requests()
            .iter()
            .map(|request| request.voice_ids.len())
            .sum();
        assert_eq!(asked, 2000, "no lease ended early, nobody asked twice");
        scene.recover().await;
        scene.check().await;
    }
}
