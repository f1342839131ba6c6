//! A provider whose answers are wrong: lists that lie, and bodies that are none.

use std::collections::HashMap;
use std::io::Write;
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use voice_sync_simulator::{Answer, Request};

use super::rogue::{FAULTS, List, Rogue};
use crate::budget;
use crate::scene::{DECIDED, Scene};
use crate::support::app::{App, NewVoice, Variant};
use crate::support::binary::{Ended, end, sync_once};
use crate::support::fates::simulator;
use crate::support::from_scripts;

const BATCH: usize = 100;
/// Pages of one list that are followed at the most.
const PAGES: usize = 10;

/// A voice of a [`Scene`] as the simulator shows it, cut down to what decides.
fn shown(id: &str) -> Value {
    let word = id.split('-').nth(1).expect("a synthetic id");
    match word {
        "ready" => json!({"voice_id": id, "preview_url": "https://x/p"}),
        "pvcfailed" => json!({"voice_id": id, "category": "professional",
            "fine_tuning": {"state": {"m": "failed"}}}),
        "statuscompleted" => json!({"voice_id": id, "status": "completed"}),
        "banned" => json!({"voice_id": id, "safety_control": "BAN"}),
        other => panic!("no scene has a voice {other}"),
    }
}

fn stranger(number: usize) -> Value {
    json!({"voice_id": format!("stranger{number}"), "safety_control": "BAN"})
}

fn page(voices: impl IntoIterator<Item = Value>, next: Option<&str>) -> Answer {
    let voices: Vec<Value> = voices.into_iter().collect();
    let body = json!({"voices": voices, "has_more": next.is_some(), "next_page_token": next});
    Answer::json(200, body.to_string())
}

/// A list that lies, and the most requests that a hundred voices may then take.
struct Lie {
    name: &'static str,
    /// What it answers to these ids when it is asked about them for the nth time, from 0.
    tells: fn(&[String], usize) -> Answer,
    requests: usize,
}

const LIES: &[Lie] = &[
    Lie {
        name: "cut off after ten",
        tells: |ids, _| page(ids.iter().take(10).map(|id| shown(id)), None),
        requests: 1 + 90,
    },
    Lie {
        name: "reordered, doubled, among strangers",
        tells: |ids, _| {
            let backwards = ids.iter().rev().map(|id| shown(id));
            let voices = (0..5).map(stranger).chain(backwards);
            page(voices.chain(ids.iter().map(|id| shown(id))), None)
        },
        requests: 1,
    },
    Lie {
        name: "endless, with strangers only",
        tells: |_, _| page((0..100).map(stranger), Some("t")),
        requests: 1 + 100,
    },
    Lie {
        name: "endless, with the same half on every page",
        tells: |ids, _| page(ids.iter().take(50).map(|id| shown(id)), Some("t")),
        requests: 2 + 50,
    },
    Lie {
        name: "endless, with a token and a voice of its own on each page",
        tells: |ids, turn| {
            let one = ids.iter().skip(turn).take(1).map(|id| shown(id));
            page(one, Some(&format!("page{turn}")))
        },
        requests: PAGES + 90,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_are_correct_even_if_the_list_is_wrong() {
    let voices = budget(100, 5000) as usize;
    for Lie {
        name,
        tells,
        requests,
    } in LIES
    {
        let scene = Scene::new(Variant::E32, DECIDED, voices).await;
        let turns: Mutex<HashMap<String, usize>> = Mutex::default();
        scene.provider.script(move |request: &Request| {
            let list = request.path == "/v2/voices";
            list.then(|| {
                let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
                let turn = turns.entry(request.voice_ids[0].clone()).or_default();
                let answer = tells(&request.voice_ids, *turn);
                *turn += 1;
                answer
            })
        });
        let ended = scene.command().run().await;
        ended.expect_code(0);
        let counts = scene.provider.counts();
        println!(
            "{name}: {} lists and {} single lookups for {voices} voices",
            counts.list, counts.single
        );
        let most = requests * voices / BATCH;
        assert!(counts.list + counts.single <= most as u64, "{name}");
        scene.check().await;
    }
}

/// Waits for the end of a run, and tells the most memory that it was seen to have, in KiB. Only
/// Linux shows it.
async fn end_with_peak(child: Child) -> (Ended, u64) {
    let path = format!("/proc/{}/status", child.id());
    let ending = tokio::spawn(end(child));
    let (mut peak, mut moments) = (0, tokio::time::interval(Duration::from_millis(2)));
    while !ending.is_finished() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        peak = peak.max(kib.and_then(|kib| kib.parse().ok()).unwrap_or(0));
        moments.tick().await;
    }
    assert!(
        peak > 0 || !cfg!(target_os = "linux"),
        "its memory was seen"
    );
    (ending.await.expect("joins"), peak)
}

const MOST_KIB: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_bodies_affect_only_their_own_voices() {
    let elsewhere = simulator().await;
    let provider = Rogue::start(List::Fair, elsewhere.url()).await;
    let app = App::new(Variant::E32).await;
    let good: Vec<String> = (0..150).map(|n| format!("good-{n}")).collect();
    let bad: Vec<String> = FAULTS.iter().map(|word| format!("bad-{word}")).collect();
    let voices = good.iter().chain(&bad).map(NewVoice::processing);
    app.insert(&voices.collect::<Vec<_>>()).await;
    // The slow ones are given up when the time is over; in full, by their own limit.
    let limit = budget(4, 3600);
    let child = sync_once(&app.url, &provider.url())
        .args(&["--concurrency", "8", "--max-runtime", &format!("{limit}s")])
        .start();
    let (ended, peak) = end_with_peak(child).await;
    ended.expect_code(75);
    println!("at most {peak} KiB: {}", ended.stdout);
    assert_eq!(
        ended.count("completed"),
        good.len() as u64,
        "{}",
        ended.stderr
    );
    assert_eq!(
        ended.count("unavailable"),
        bad.len() as u64,
        "{}",
        ended.stderr
    );
    for (id, row) in app.rows().await {
        let expected = if id.starts_with("bad-") {
            "processing"
        } else {
            "completed"
        };
        assert_eq!(row.status, expected, "{id}");
    }
    assert!(
        elsewhere.requests().is_empty(),
        "neither request nor key got there"
    );
    assert!(peak <= MOST_KIB, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_unrelated_voices_does_not_exhaust_memory() {
    let provider = Rogue::start(List::Crowded, String::new()).await;
    let app = App::new(Variant::E32).await;
    let voices = (0..400).map(|n| NewVoice::processing(format!("good-{n}")));
    app.insert(&voices.collect::<Vec<_>>()).await;
    let child = sync_once(&app.url, &provider.url()).start();
    let (ended, peak) = end_with_peak(child).await;
    println!("at most {peak} KiB: {}", ended.stdout);
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 400);
    assert!(peak <= MOST_KIB, "{peak} KiB");
}

/// Four error bodies of 8 MiB at once, plain and as a gzip bomb: they are not kept, and the status counts as usual.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_error_bodies_do_not_exhaust_memory() {
    const LARGE: usize = 8 << 20;
    const MOST_KIB: u64 = 60 * 1024;
    const MEASURED: &str = "import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)";
    let python = from_scripts("VOICE_SYNC_TEST_PYTHON");
    for (status, zipped) in [(404, false), (500, false), (429, false), (404, true)] {
        let (app, provider) = (App::new(Variant::E32).await, simulator().await);
        app.insert_processing(&["sim-ready-1", "sim-ready-2", "sim-ready-3", "sim-ready-4"])
            .await;
        let body = vec![b'x'; LARGE];
        let mut answer = Answer::json(status, body.clone());
        if zipped {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).expect("is written");
            answer = Answer::json(status, encoder.finish().expect("is zipped"))
                .with_header("content-encoding", "gzip");
        }
        provider.script(move |_: &Request| Some(answer.clone()));
        let run = sync_once(&app.url, &provider.url())
            .args(&["--lookup=single", "--max-runtime=5s"])
            .through(&[&python, "-c", MEASURED])
            .run()
            .await;
        run.expect_code(75);
        assert_eq!(run.count("looked_up"), 0, "{}", run.stdout);
        let measured = run
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("KiB "));
        let kib: u64 = measured.expect("measured").parse().expect("a number");
        assert!(kib < MOST_KIB, "{status}: {kib} KiB");
    }
}
