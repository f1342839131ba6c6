//! A provider that is down, or half down. Simulated time passes by ageing what voice-sync remembers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use voice_sync_simulator::Answer;

use crate::scene::{DECIDED, Scene};
use crate::support::app::Variant;
use crate::support::binary::Ended;
use crate::{budget, rng};

const OUTAGE_S: u64 = 600;

/// Five instances, each to its end, and then a while in which none runs.
async fn round(scene: &Scene, pause_s: u64) -> Vec<Ended> {
    let ended = join_all((0..5).map(|_| scene.command().run())).await;
    let pause_s = u32::try_from(pause_s).expect("a short pause");
    scene.app.age_own_tables(pause_s).await;
    ended
}

async fn recovers_from_a_ten_minute_outage(answer: Answer, voices: usize) {
    // Five processes are as many as a small machine connects to PostgreSQL in time.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = TURN.lock().await;
    let scene = Scene::new(Variant::A, DECIDED, voices).await;
    let what = format!("{voices} voices, HTTP {}", answer.status);
    scene.provider.script(move |_| Some(answer.clone()));
    let before = scene.app.rows().await;
    let pause_s = budget(60, 5);
    for _ in 0..OUTAGE_S.div_ceil(pause_s) {
        for run in round(&scene, pause_s).await {
            // Where others have leased everything, nothing is left to complain of.
            let leased = run.code == 0 && run.count("due") == run.count("leased_elsewhere");
            run.expect_code(if leased { 0 } else { 75 });
        }
    }
    assert!(scene.app.rows().await == before, "{what}: no row changed");
    let requests = scene.provider.requests().len();

    scene.provider.script(|_| None);
    let mut after_s = 0;
    let left = "SELECT count(*) FROM voices WHERE status = 'processing'";
    let all = scene.app.number(left).await;
    loop {
        round(&scene, pause_s).await;
        if scene.app.number(left).await < all {
            break;
        }
        after_s += pause_s;
        assert!(after_s <= 300, "{what}: no success in {after_s} s");
    }
    println!(
        "{what}: {requests} requests in {OUTAGE_S} s; first success within {after_s} s after it"
    );
    assert!(requests <= 60, "{what}: {requests} requests");
    for _ in 0..3 {
        round(&scene, pause_s).await;
    }
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_from_a_ten_minute_outage_with_a_long_backlog() {
    recovers_from_a_ten_minute_outage(Answer::html(503, "down"), 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_from_a_ten_minute_outage_with_a_few_voices() {
    recovers_from_a_ten_minute_outage(Answer::error(500, "internal", "oops"), 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_from_a_ten_minute_outage_with_retry_after() {
    let answer = Answer::html(503, "down").with_header("retry-after-ms", "20");
    recovers_from_a_ten_minute_outage(answer, 350).await;
}

/// What half of all requests are answered with, each in its turn.
fn errors(number: u64) -> Answer {
    match number % 4 {
        0 => Answer::error(500, "internal_server_error", "Something went wrong."),
        1 => Answer::html(502, "Bad Gateway"),
        2 => Answer::html(504, "Gateway Time-out"),
        _ => Answer::empty(503),
    }
}

/// What a run asked of the provider, and when.
struct Asked {
    at_s: u64,
    requests: u64,
    retries: u64,
}

/// Lets runs follow each other until nothing is left, and checks how much they repeat in any two
/// minutes.
async fn half_of_all_answers(fails: impl Fn() -> bool + Send + Sync + 'static, voices: usize) {
    let scene = Scene::new(Variant::E32, DECIDED, voices).await;
    let failed = AtomicU64::new(0);
    scene
        .provider
        .script(move |_| fails().then(|| errors(failed.fetch_add(1, Ordering::Relaxed))));
    let (mut runs, mut at_s): (Vec<Asked>, u64) = (Vec::new(), 0);
    loop {
        let run = scene.command().run().await;
        let asked = Asked {
            at_s,
            requests: run.count("requests"),
            retries: run.count("retries"),
        };
        // A pause that is over is followed by the next run; in a longer one time passes faster.
        let pause_s: u32 = if asked.requests > 0 { 16 } else { 60 };
        runs.push(asked);
        if scene.undecided().await == 0 {
            break;
        }
        // Voices that failed alone twice, by accident, are asked about again after a minute.
        let known = run.report()["unanswerable"].as_u64().unwrap_or(0);
        if run.code != 0 {
            run.expect_code(75);
        }
        assert!(
            run.code == 75 || run.count("unavailable") == known,
            "{}",
            run.stdout
        );
        assert!(runs.len() < 100 + voices, "it does not come to an end");
        scene.app.age_own_tables(pause_s).await;
        at_s += u64::from(pause_s);
    }
    let sum = |some: &mut dyn Iterator<Item = &Asked>| {
        some.fold((0, 0), |(first_tries, retries), run| {
            let first = run.requests - run.retries;
            (first_tries + first, retries + run.retries)
        })
    };
    let (first_tries, retries) = sum(&mut runs.iter());
    println!(
        "{voices} voices, {} runs in {at_s} s: {first_tries} first tries, {retries} retries",
        runs.len()
    );
    // Looking back from each repetition: what came before its two minutes earned it nothing.
    for last in runs.iter().filter(|run| run.retries > 0) {
        let within = |run: &&Asked| run.at_s <= last.at_s && run.at_s + 120 > last.at_s;
        let (first_tries, retries) = sum(&mut runs.iter().filter(within));
        assert!(
            retries <= 10.max(first_tries / 10),
            "{retries} retries of {first_tries} first tries in the two minutes before {} s",
            last.at_s
        );
    }
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completes_all_voices_if_every_second_answer_is_an_error() {
    let number = AtomicU64::new(0);
    let fails = move || number.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
    half_of_all_answers(fails, budget(2000, 20_000) as usize).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completes_all_voices_if_a_random_half_of_answers_are_errors() {
    let rng = Mutex::new(rng());
    let fails = move || rng.lock().expect("nobody panics with it").bool();
    half_of_all_answers(fails, budget(2000, 20_000) as usize).await;
}
