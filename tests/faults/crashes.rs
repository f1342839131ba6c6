//! Processes that die, that stop, and that never learn that their transaction committed.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use voice_sync_simulator::{Answer, Request};

use crate::scene::{DECIDED, MIXED, Scene};
use crate::support::app::Variant;
use crate::support::binary::end;
use crate::{budget, is_full};

/// Where a process may be when it dies, and in which circumstances it gets there.
const POINTS: &[(Circumstances, &[&str])] = &[
    (
        Circumstances::Calm,
        &[
            "store.load_state.before",
            "store.claim.before",
            "store.claim.commit",
            "store.claim.after",
            "store.apply.before",
            "store.apply.commit",
            "store.apply.after",
            "store.note.before",
            "store.note.after",
            "store.end_leases.before",
            "store.end_leases.after",
            "store.bus_permit.after",
            "bus.publish.before",
            "bus.publish.after",
            "store.settle_events.before",
            "store.settle_events.after",
            "store.missing.before",
            "store.pending_events.before",
            "store.record_run.before",
            "store.record_run.after",
            "store.tidy.before",
            "store.tidy.after",
        ],
    ),
    (
        Circumstances::BusDown,
        &["store.bus_failed.before", "store.bus_failed.after"],
    ),
    (
        Circumstances::ProviderDown,
        &[
            "store.save_provider_state.before",
            "store.save_provider_state.after",
        ],
    ),
    (
        Circumstances::ProviderBack,
        &["store.claim_probe.before", "store.claim_probe.after"],
    ),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Circumstances {
    Calm,
    BusDown,
    ProviderDown,
    /// It was down, and nobody knows yet that it no longer is.
    ProviderBack,
}

async fn dies_at(scene: &Scene, circumstances: Circumstances, point: &str) {
    let provider_is = |down: bool| {
        let answer = move |_: &Request| down.then(|| Answer::html(503, "Service Unavailable"));
        scene.provider.script(answer);
    };
    let mut command = scene
        .command()
        .env("VOICE_SYNC_FAILPOINTS", format!("{point}=abort"));
    match circumstances {
        Circumstances::Calm => {}
        Circumstances::BusDown => command = command.env("REDIS_URL", "redis://127.0.0.1:1"),
        Circumstances::ProviderDown => provider_is(true),
        Circumstances::ProviderBack => {
            provider_is(true);
            scene.command().run().await.expect_code(75);
            provider_is(false);
            scene.app.age_own_tables(61).await;
        }
    }
    let ended = command.run().await;
    assert_eq!(ended.code, -1, "{point} was not reached: {}", ended.stderr);
    provider_is(false);
}

/// Somebody dies at each point, and another instance finishes what was begun, once the leases of the
/// dead ran out.
async fn another_instance_recovers_from_a_crash(
    variant: Variant,
    points: &[(Circumstances, &[&str])],
) {
    for (circumstances, points) in points {
        for point in *points {
            let mut scene = Scene::new(variant, MIXED, 160).await;
            for _ in 0..budget(1, 12) {
                dies_at(&scene, *circumstances, point).await;
                let mut rounds = 0;
                // What the dead had asked of its database may come to it a little later: the lease
                // that it takes runs out as well.
                while rounds == 0 || scene.undecided().await > 0 {
                    scene.app.age_own_tables(61).await;
                    scene.command().run().await.expect_code(0);
                    rounds += 1;
                    assert!(rounds <= 3, "nobody goes on after {point}");
                }
                scene.check().await;
                scene.add(MIXED, 16).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_recovers_from_a_crash_at_any_point_on_postgresql() {
    another_instance_recovers_from_a_crash(Variant::A, POINTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_recovers_from_a_crash_at_any_point_on_sqlite() {
    another_instance_recovers_from_a_crash(Variant::E32, POINTS).await;
}

/// Five instances; one after the other is killed and followed by a new one.
async fn killed_instances_lose_nothing(variant: Variant, voices: usize) {
    const INSTANCES: usize = 5;
    let undisturbed = Scene::new(variant, DECIDED, voices).await;
    let begun = Instant::now();
    join_all((0..INSTANCES).map(|_| undisturbed.command().run())).await;
    let undisturbed = begun.elapsed();

    let mut rng = crate::rng();
    let scene = Scene::new(variant, DECIDED, voices).await;
    let begun = Instant::now();
    let mut running: Vec<Child> = (0..INSTANCES).map(|_| scene.command().start()).collect();
    let (mut killed, kills) = (0, budget(12, 200));
    while killed < kills {
        // The instant is the rng's.
        tokio::time::sleep(Duration::from_micros(rng.u64(0..50_000))).await;
        let victim = rng.usize(0..INSTANCES);
        let mut child = std::mem::replace(&mut running[victim], scene.command().start());
        killed += u64::from(matches!(child.try_wait(), Ok(None)));
        child.kill().expect("it is ours to kill");
        end(child).await;
        if scene.undecided().await == 0 && !is_full() {
            break;
        }
    }
    join_all(running.into_iter().map(end)).await;
    while scene.undecided().await > 0 {
        // A small budget has no minute to wait for leases.
        match is_full() {
            true => tokio::time::sleep(Duration::from_secs(1)).await,
            false => scene.app.age_own_tables(61).await,
        }
        join_all((0..INSTANCES).map(|_| scene.command().run())).await;
    }
    println!(
        "{voices} voices, {killed} kills: {:.1} s; undisturbed: {:.1} s",
        begun.elapsed().as_secs_f64(),
        undisturbed.as_secs_f64()
    );
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_instances_lose_nothing_on_postgresql() {
    killed_instances_lose_nothing(Variant::A, budget(3000, 10_000) as usize).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_instances_lose_nothing_on_sqlite() {
    killed_instances_lose_nothing(Variant::E32, budget(1500, 10_000) as usize).await;
}

/// A fifth of all that commits is reported as an error.
async fn a_commit_reported_as_failed_is_not_repeated(variant: Variant) {
    let faults = [
        "claim",
        "apply",
        "note",
        "mark_published",
        "take_events",
        "give_back_events",
        "record_run",
        "bus",
        "claim_probe",
    ]
    .map(|operation| format!("store.{operation}.after=error%20"))
    .join(";");
    for _ in 0..budget(2, 20) {
        let scene = Scene::new(variant, MIXED, 1600).await;
        while scene.undecided().await > 0 {
            let ended = scene
                .command()
                .env("VOICE_SYNC_FAILPOINTS", &faults)
                .run()
                .await;
            assert!([0, 69, 75].contains(&ended.code), "{ended:?}");
            assert_eq!(
                ended.count("superseded"),
                0,
                "each knows its own transitions"
            );
            scene.app.age_own_tables(61).await;
        }
        scene.recover().await;
        scene.check().await;
        let runs = format!(
            "SELECT count(*) - count(DISTINCT run_id) FROM {}",
            scene.app.own("runs")
        );
        assert_eq!(
            scene.app.number(&runs).await,
            0,
            "each pass is in the ledger once"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_reported_as_failed_is_not_repeated_on_postgresql() {
    a_commit_reported_as_failed_is_not_repeated(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_reported_as_failed_is_not_repeated_on_sqlite() {
    a_commit_reported_as_failed_is_not_repeated(Variant::E32).await;
}

/// Dead before it could note that events are out, again and again.
async fn an_event_is_republished_unchanged_after_a_crash(variant: Variant) {
    let mut scene = Scene::new(variant, DECIDED, 8).await;
    let deaths = budget(10, 500);
    for death in 0..deaths {
        dies_at(&scene, Circumstances::Calm, "bus.publish.after").await;
        // The leases of events.
        scene.app.age_own_tables(16).await;
        if death % 5 == 0 {
            scene.add(DECIDED, 2).await;
        }
    }
    scene.recover().await;
    scene.check().await;
    let published = scene.bus.events("voice.created").await.len() as u64;
    assert!(published > deaths, "{published} publications");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_republished_unchanged_after_a_crash_on_postgresql() {
    an_event_is_republished_unchanged_after_a_crash(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_republished_unchanged_after_a_crash_on_sqlite() {
    an_event_is_republished_unchanged_after_a_crash(Variant::E32).await;
}

pub(crate) fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.expect("there is a kill").success());
}

/// A process is suspended until its leases have expired and another has done its work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_after_the_end_of_the_lease_is_dropped() {
    for variant in [Variant::A, Variant::E32] {
        let scene = Scene::new(variant, DECIDED, 300).await;
        let sleeper = scene
            .command()
            .env("VOICE_SYNC_FAILPOINTS", "store.apply.before=stall:2s")
            .start();
        // Not in a transaction: nobody else could write to an SQLite file then.
        let answered = |request: &Request| request.status.is_some();
        while scene
            .provider
            .requests()
            .iter()
            .filter(|r| answered(r))
            .count()
            < 3
        {
            tokio::task::yield_now().await;
        }
        signal(&sleeper, "-STOP");
        if is_full() {
            tokio::time::sleep(Duration::from_secs(3 * 60)).await;
        }
        let mut others = Vec::new();
        while scene.undecided().await > 0 {
            if !is_full() {
                scene.app.age_own_tables(3 * 60).await;
            }
            others.push(scene.command().run().await);
        }
        signal(&sleeper, "-CONT");
        let late = end(sleeper).await;
        let all = others.iter().chain([&late]);
        let moved: u64 = all
            .map(|run| run.count("completed") + run.count("failed"))
            .sum();
        assert_eq!(moved, 300, "none twice");
        let dropped = late.count("superseded") + late.count("unavailable");
        assert!(dropped > 0, "{}", late.stdout);
        scene.recover().await;
        scene.check().await;
    }
}
