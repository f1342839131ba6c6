//! Bad voices: whatever request names one of them fails, as with a backend that fails on a record. However many
//! there are, the good ones are finished, and the bad ones are left as they are.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use voice_sync_simulator::{Answer, Delivery, Request, Simulator};

use crate::scene::Scene;
use crate::support::app::{App, Variant};
use crate::support::binary::{Ended, VoiceSync};
use crate::support::daemon::{Daemon, daemon};
use crate::{budget, is_full, rng};

/// As of the real provider.
const LATENCY: Duration = Duration::from_millis(50);
const LONGEST_PASS: Duration = Duration::from_secs(60);

/// How a request that names a bad voice fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    InternalError,
    UnavailableForAMinute,
    Hangs,
    OneByteASecond,
    Html,
    CutJson,
    ConnectionClosed,
    Redirect,
    TooLarge,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::InternalError,
        Self::UnavailableForAMinute,
        Self::Hangs,
        Self::OneByteASecond,
        Self::Html,
        Self::CutJson,
        Self::ConnectionClosed,
        Self::Redirect,
        Self::TooLarge,
    ];

    fn answer(self) -> Answer {
        let half = br#"{"voices": [{"voice_id": "sim-"#;
        match self {
            Self::InternalError => Answer::error(500, "internal_server_error", "oops"),
            Self::UnavailableForAMinute => {
                Answer::html(503, "later").with_header("retry-after", "60")
            }
            Self::Hangs => Answer::empty(200).after(Duration::from_secs(3600)),
            Self::OneByteASecond => {
                Answer::json(200, *half).sent(Delivery::Slowly(Duration::from_secs(1)))
            }
            Self::Html => Answer::html(200, "Welcome"),
            Self::CutJson => Answer::json(200, *half),
            Self::ConnectionClosed => Answer::json(200, *half).sent(Delivery::BrokenOff),
            Self::Redirect => Answer::empty(307).with_header("location", "/elsewhere"),
            Self::TooLarge => Answer::json(200, vec![b' '; 9 * 1024 * 1024]),
        }
    }

    fn takes_time(self) -> bool {
        matches!(self, Self::Hangs | Self::OneByteASecond)
    }
}

/// Makes these voices bad, in these ways.
fn spoil(provider: &Simulator, bad: &[(String, Fault)]) {
    let bad = bad.to_vec();
    provider.script(move |request: &Request| {
        let is_named = |(id, _): &&(String, Fault)| request.voice_ids.contains(id);
        bad.iter().find(is_named).map(|(_, fault)| fault.answer())
    });
}

struct Passes {
    ended: Vec<(Ended, Duration)>,
}

/// Passes follow each other by a quarter of a minute until every good voice is done, and at most so many.
async fn passes(scene: &Scene, bad: usize, most: usize) -> Passes {
    let mut ended = Vec::new();
    while scene.undecided().await > bad as i64 {
        assert!(
            ended.len() < most,
            "good voices are left after {most} passes: {ended:?}"
        );
        let began = Instant::now();
        let run = scene.command().args(&["--concurrency", "10"]).run().await;
        ended.push((run, began.elapsed()));
        scene.app.age_own_tables(15).await;
    }
    Passes { ended }
}

/// So many voices, of which the bad ones are chosen at random.
async fn scene(
    variant: Variant,
    voices: usize,
    bad: usize,
    fault: impl Fn(usize) -> Fault,
) -> (Scene, Vec<(String, Fault)>) {
    let scene = Scene::within(App::new(variant).await, &["ready"], voices, LATENCY).await;
    let mut numbers: Vec<usize> = (0..voices).collect();
    rng().shuffle(&mut numbers);
    let bad: Vec<_> = numbers[..bad]
        .iter()
        .enumerate()
        .map(|(place, number)| (format!("sim-ready-{number:05}"), fault(place)))
        .collect();
    spoil(&scene.provider, &bad);
    (scene, bad)
}

/// Requests that name no voice, which show whether the provider works.
fn liveness_requests(provider: &Simulator) -> usize {
    let requests = provider.requests();
    let is_liveness = |request: &&Request| {
        request.voice_ids.is_empty() || request.voice_ids[0].starts_with("voiceSyncLiveness")
    };
    requests.iter().filter(is_liveness).count()
}

/// What an operator expects who knows which voices are bad.
async fn good_ones_are_done(
    variant: Variant,
    voices: usize,
    bad: usize,
    most: usize,
    fault: impl Fn(usize) -> Fault,
) {
    let (scene, bad) = scene(variant, voices, bad, fault).await;
    let what = format!(
        "{variant:?}, {} of {voices} bad: {:?}",
        bad.len(),
        bad.first()
    );
    let takes_time = bad.iter().any(|(_, fault)| fault.takes_time());
    let Passes { ended } = passes(&scene, bad.len(), most).await;
    let (first, _) = &ended[0];
    first.expect_code(if bad.is_empty() { 0 } else { 75 });
    for (run, took) in &ended {
        assert!(!takes_time || *took <= LONGEST_PASS, "{what}: {took:?}");
        assert!(
            run.count("requests") <= 2 * voices as u64,
            "{what}: {}",
            run.stdout
        );
        assert_eq!(run.count("failed"), 0, "{what}");
    }
    let batches = voices.div_ceil(100);
    let liveness = liveness_requests(&scene.provider);
    let more = first.count("requests") as usize - batches;
    println!(
        "{what}: {} passes, {} requests in the first, {liveness} of all name no voice, {:?}",
        ended.len(),
        first.count("requests"),
        ended
            .iter()
            .map(|(_, took)| took.as_millis())
            .collect::<Vec<_>>()
    );
    // A part that begins when all others have ended takes a liveness request of its own: on a busy machine, two may.
    assert!(more <= 16 * bad.len() + 2, "{what}: {more} more requests");

    // Once they are known, nobody is woken up for them.
    if !bad.is_empty() {
        let known = scene.command().run().await;
        known.expect_code(0);
        assert_eq!(
            known.count("unavailable"),
            bad.len() as u64,
            "{what}: {}",
            known.stdout
        );
        scene.app.age_own_tables(15).await;
        let quarantined = scene.command().run().await;
        quarantined.expect_code(0);
        assert_eq!(quarantined.count("unavailable"), bad.len() as u64, "{what}");
        assert_eq!(
            quarantined.count("requests"),
            0,
            "{what}: not asked about for a minute"
        );
    }
    let rows = scene.app.rows().await;
    let ids: BTreeSet<_> = bad.iter().map(|(id, _)| id.as_str()).collect();
    for (id, row) in rows {
        let expected = if ids.contains(id.as_str()) {
            "processing"
        } else {
            "completed"
        };
        assert_eq!(row.status, expected, "{what}: {id}");
    }

    // One good answer clears them.
    scene.provider.script(|_| None);
    scene.recover().await;
    scene.check().await;
}

fn quick() -> impl Iterator<Item = Fault> {
    Fault::ALL.into_iter().filter(|fault| !fault.takes_time())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_or_two_bad_voices_do_not_block_the_rest_of_their_batch() {
    for fault in quick() {
        good_ones_are_done(Variant::E32, 100, 1, 1, |_| fault).await;
        good_ones_are_done(Variant::E32, 100, 2, 1, |_| fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_percent_of_bad_voices_does_not_block_the_others() {
    let voices = budget(300, 2000) as usize;
    for fault in quick() {
        good_ones_are_done(Variant::E32, voices, voices / 100, 1, |_| fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_percent_of_bad_voices_do_not_block_the_others() {
    let voices = budget(200, 1000) as usize;
    for fault in quick() {
        good_ones_are_done(Variant::E32, voices, voices / 10, 1, |_| fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_percent_of_bad_voices_do_not_block_the_others() {
    let voices = budget(100, 1000) as usize;
    for fault in quick() {
        good_ones_are_done(Variant::E32, voices, voices / 2, 3, |_| fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voices_whose_lookup_hangs_do_not_block_the_others() {
    let voices = budget(100, 1000) as usize;
    let [hangs, drips] = [Fault::Hangs, Fault::OneByteASecond];
    let mut all = vec![
        (hangs, 100, 1, 2),
        (drips, 100, 2, 2),
        (hangs, voices, voices / 10, 2),
    ];
    if is_full() {
        all.extend([
            (drips, 100, 1, 2),
            (hangs, 100, 2, 2),
            (drips, voices, voices / 10, 2),
        ]);
        all.extend([(hangs, 40, 20, 3), (drips, 40, 20, 3)]);
    }
    for (fault, voices, bad, passes) in all {
        good_ones_are_done(Variant::E32, voices, bad, passes, |_| fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_bad_voices_at_once_do_not_block_the_others() {
    let kinds = Fault::ALL.len();
    let each = budget(2, 10) as usize;
    let bad = kinds * each;
    good_ones_are_done(Variant::A, bad * 20, bad, 2, |place| {
        Fault::ALL[place % kinds]
    })
    .await;
    good_ones_are_done(Variant::Pooled, 100, kinds, 2, |place| {
        Fault::ALL[place % kinds]
    })
    .await;
}

/// If no lookup of any voice is answered, no voice is isolated for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_of_all_voices_counts_as_an_outage() {
    let voices = budget(300, 3000) as usize;
    for fault in quick() {
        let (scene, _) = scene(Variant::E32, voices, voices, |_| fault).await;
        for _ in 0..5 {
            let run = scene.command().args(&["--concurrency", "10"]).run().await;
            run.expect_code(75);
            assert!(run.count("requests") <= 100, "{fault:?}: {}", run.stdout);
            scene.app.age_own_tables(301).await;
        }
        let remembered = format!(
            "SELECT count(*) FROM {} WHERE unanswered > 0",
            scene.app.own("voices")
        );
        assert_eq!(
            scene.app.number(&remembered).await,
            0,
            "{fault:?}: none is blamed"
        );
        scene.provider.script(|_| None);
        scene.recover().await;
        scene.check().await;
    }
}

/// Each killed pass stores enough for the next one to continue from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_passes_make_progress_in_isolating_bad_voices() {
    let voices = 400;
    let (scene, bad) = scene(Variant::E32, voices, 20, |_| Fault::InternalError).await;
    let mut kills = 0;
    while scene.undecided().await > bad.len() as i64 {
        let before = scene.provider.requests().len();
        let mut child = scene.command().start();
        // About a third of what one pass sends in all.
        while scene.provider.requests().len() < before + 60 && matches!(child.try_wait(), Ok(None))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().expect("it is ours to kill");
        child.wait().expect("it ends");
        scene.app.age_own_tables(61).await;
        kills += 1;
        assert!(kills <= 20, "no progress: {} left", scene.undecided().await);
    }
    println!("{kills} killed passes");
    scene.provider.script(|_| None);
    scene.recover().await;
    scene.check().await;
}

/// The same for passes that end by their time limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timed_out_passes_make_progress_in_isolating_bad_voices() {
    let (scene, bad) = scene(Variant::A, 200, 20, |_| Fault::Hangs).await;
    let mut passes = 0;
    while scene.undecided().await > bad.len() as i64 {
        let run = scene.command().args(&["--max-runtime", "10s"]).run().await;
        run.expect_code(75);
        scene.app.age_own_tables(61).await;
        passes += 1;
        assert!(
            passes <= 10,
            "no progress: {} left",
            scene.undecided().await
        );
    }
    println!("{passes} passes of 10 s");
    scene.provider.script(|_| None);
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_finishes_good_voices_despite_bad_ones() {
    for (variant, fault) in [
        (Variant::E32, Fault::InternalError),
        (Variant::A, Fault::Html),
        (Variant::E32, Fault::Hangs),
    ] {
        let (mut scene, bad) = scene(variant, 100, 10, |_| fault).await;
        let command = daemon(&scene.app.url, &scene.provider.url()).publishing_to(&scene.bus);
        let mut daemon = Daemon::start(command);
        daemon.wait_until(&scene.app, "completed", 90).await;
        // Those that come later are not held up either.
        scene.add(&["ready"], 40).await;
        daemon.wait_until(&scene.app, "completed", 130).await;
        daemon.stop().await;
        for (id, _) in &bad {
            assert_eq!(scene.app.row(id).await.status, "processing", "{id}");
        }
        scene.provider.script(|_| None);
        scene.recover().await;
        scene.check().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unanswerable_voices_are_reported_and_can_be_retried() {
    let (scene, bad) = scene(Variant::A, 30, 2, |_| Fault::InternalError).await;
    let run = async |arguments: &[&str]| {
        VoiceSync::new(arguments)
            .env("DATABASE_URL", &scene.app.url)
            .env("ELEVENLABS_BASE_URL", scene.provider.url())
            .run()
            .await
    };
    for code in [75, 0] {
        scene.command().run().await.expect_code(code);
        scene.app.age_own_tables(15).await;
    }
    let status = run(&["status"]).await.report();
    assert_eq!(status["backlog"]["unanswerable"], 2, "{status}");
    assert!(
        status["attention"].to_string().contains("unanswerable"),
        "{status}"
    );
    run(&["status", "--check"]).await.expect_code(75);
    let (id, _) = &bad[0];
    let text = run(&["inspect", id, "--output", "text"]).await.stdout;
    assert!(text.contains("unanswerable"), "{text}");
    assert!(text.contains("HTTP 500"), "{text}");
    // A voice that is named is asked about whatever is known of it.
    let named = scene.command().args(&["--voice", id]).run().await;
    assert_eq!((named.count("due"), named.count("unavailable")), (1, 1));
    assert!(named.count("requests") > 0);

    scene.provider.script(|_| None);
    let quarantined = scene.command().run().await;
    assert_eq!(quarantined.count("completed"), 0);
    run(&["retry", &bad[1].0, "--yes"]).await.expect_code(0);
    let retried = scene.command().run().await;
    assert_eq!(retried.count("completed"), 1, "{}", retried.stdout);
}

/// If `--limit` is always used up, part of it is reserved for isolated voices, which may work again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_leaves_room_for_isolated_voices() {
    for (variant, bad, limit) in [
        (Variant::A, 1, "5"),
        (Variant::E32, 2, "5"),
        (Variant::E32, 20, "50"),
    ] {
        let app = App::new(variant).await;
        let mut scene = Scene::within(app, &["nopreview"], 200, Duration::ZERO).await;
        scene.add(&["ready"], bad).await;
        scene.provider.script(|request| {
            let is_bad = |id: &String| id.starts_with("sim-ready");
            let answer = Answer::html(500, "Internal Server Error");
            request.voice_ids.iter().any(is_bad).then_some(answer)
        });
        scene.command().run().await.expect_code(75);
        scene.provider.script(|_| None);
        let mut passes = 0;
        while scene.undecided().await > 0 {
            scene.app.age_own_tables(3 * 60).await;
            let run = scene.command().args(&["--limit", limit]).run().await;
            run.expect_code(0);
            passes += 1;
            assert!(
                passes < 60,
                "{bad} bad ones, --limit {limit}: {}",
                run.stdout
            );
        }
        println!("{bad} isolated voices, --limit {limit}: {passes} passes");
    }
}
