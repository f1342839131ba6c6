//! A host whose clock jumps, as libfaketime makes a program believe.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;

use uuid::Uuid;
use voice_sync::store::Selection;
use voice_sync_simulator::{Answer, Request};

use crate::proxy::{Proxy, Weather};
use crate::scene::{DECIDED, Scene};
use crate::support::app::{App, Variant};
use crate::support::binary::end;
use crate::support::from_scripts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jump_of_the_local_clock_does_not_affect_leases() {
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

/// Checks everything that waits for a time by the database's clock: leases, cooldown, an open breaker, its half-open
/// probe, event bus backoff, leased events and schedules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_is_set_back_delays_no_pass_on_postgresql() {
    is_set_back_in_each_way(Variant::A, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_is_set_back_delays_no_due_pass_on_postgresql() {
    is_set_back_in_each_way(Variant::A, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_is_set_back_delays_no_pass_on_sqlite() {
    is_set_back_in_each_way(Variant::E32, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_is_set_back_delays_no_due_pass_on_sqlite() {
    is_set_back_in_each_way(Variant::E32, true).await;
}

async fn is_set_back_in_each_way(variant: Variant, due: bool) {
    const HOUR: i64 = 60 * 60;
    for (set_back, failure) in [(HOUR, 503), (HOUR, 429), (400 * 24 * HOUR, 503)] {
        is_set_back(variant, set_back, failure, due).await;
    }
}

async fn is_set_back(variant: Variant, set_back: i64, failure: u16, due: bool) {
    let mut scene = Scene::new(variant, DECIDED, 10).await;
    let proxy = Proxy::to(&scene.bus.url, 6379).await;
    let redis = proxy.through(&scene.bus.url);
    let command = |scene: &Scene| {
        let command = scene.command().env("REDIS_URL", &redis);
        match due {
            true => command.arg("--due"),
            false => command,
        }
    };
    proxy.set(Weather::Cut);
    command(&scene).run().await.expect_code(75);
    assert_eq!(scene.undecided().await, 0);
    // A publisher that crashed.
    let store = scene.app.store().await;
    let leased = store.lease_events(3).await.expect("leases");
    assert!(!leased.events.is_empty());
    scene.add(DECIDED, 20).await;
    scene.provider.script(move |_: &Request| {
        Some(Answer::html(failure, "Trouble").with_header("retry-after", "250"))
    });
    command(&scene).run().await.expect_code(75);
    scene.provider.script(|_: &Request| None);
    // A lookup that crashed.
    scene.add(DECIDED, 20).await;
    let everyone = Selection::Range {
        after: None,
        up_to: None,
        except: Vec::new(),
    };
    let claimed = store.claim(Uuid::new_v4(), &everyone, 30).await;
    assert!(!claimed.expect("claims").voices.is_empty());
    proxy.set(Weather::Fair);
    let held_up = command(&scene).run().await;
    held_up.expect_code(75);
    assert_eq!(held_up.count("looked_up"), 0, "the control");

    scene.app.age_own_tables(-set_back).await;
    let label = format!("{variant:?} {set_back} s, HTTP {failure}, --due: {due}");
    let run = command(&scene).run().await;
    assert_eq!(run.code, 0, "{label}: {}\n{}", run.stdout, run.stderr);
    assert_eq!(scene.undecided().await, 0, "{label}");
    scene.check().await;
}
