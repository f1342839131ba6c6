//! Several processes on one backlog, and processes that die.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use voice_sync_simulator::{Options, Simulator};

use crate::support::app::{App, NewVoice, Variant};
use crate::support::binary::{VoiceSync, end, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::simulator_with;

struct Scene {
    app: App,
    provider: Simulator,
    bus: Bus,
}

impl Scene {
    async fn new(variant: Variant, voices: usize) -> Self {
        let app = App::new(variant).await;
        let fates = ["ready", "pvcfailed", "statuscompleted", "banned"];
        let ids = (0..voices).map(|n| format!("sim-{}-{n:05}", fates[n % fates.len()]));
        app.insert(&ids.map(NewVoice::processing).collect::<Vec<_>>())
            .await;
        drop(app.store().await);
        let latency = Duration::from_millis(5);
        let provider = simulator_with(Options {
            latency,
            ..Options::default()
        })
        .await;
        Self {
            app,
            provider,
            bus: Bus::new().await,
        }
    }

    fn command(&self) -> VoiceSync {
        sync_once(&self.app.url, &self.provider.url()).publishing_to(&self.bus)
    }

    /// Every row is where its fate sends it, and has its event: at least once, always the same.
    async fn check(&self, voices: usize) {
        let mut expected = BTreeMap::from([
            ("voice.created", BTreeSet::new()),
            ("voice.updated", BTreeSet::new()),
        ]);
        let rows = self.app.rows().await;
        assert_eq!(rows.len(), voices);
        for (id, row) in rows {
            let completes = id.contains("ready") || id.contains("completed");
            assert_eq!(
                row.status,
                if completes { "completed" } else { "failed" },
                "{id}"
            );
            let event_type = if completes {
                "voice.created"
            } else {
                "voice.updated"
            };
            let voice = crate::support::app::row_id(&id).to_string();
            expected
                .get_mut(event_type)
                .expect("one of the two")
                .insert(voice);
        }
        for (event_type, voices) in expected {
            let mut bodies = BTreeMap::new();
            for event in self.bus.events(event_type).await {
                let id = event["event_id"].as_str().expect("an id").to_owned();
                if let Some(before) = bodies.insert(id, event.clone()) {
                    assert_eq!(before, event, "an event is the same on every publication");
                }
            }
            let told: BTreeSet<_> = bodies
                .values()
                .map(|event| {
                    event["payload"]["voice_id"]
                        .as_str()
                        .expect("an id")
                        .to_owned()
                })
                .collect();
            assert_eq!(bodies.len(), told.len(), "one event for each transition");
            assert!(told == voices, "{event_type} exactly where a row was moved");
        }
    }
}

async fn each_voice_is_asked_about_by_one_process(
    variant: Variant,
    processes: usize,
    voices: usize,
) {
    let scene = Scene::new(variant, voices).await;
    let ended = join_all((0..processes).map(|_| scene.command().run())).await;
    for run in &ended {
        run.expect_code(0);
    }
    let moved: u64 = ended
        .iter()
        .map(|run| run.count("completed") + run.count("failed"))
        .sum();
    assert_eq!(moved, voices as u64);
    assert_eq!(
        ended.iter().map(|run| run.count("superseded")).sum::<u64>(),
        0
    );
    let asked: Vec<_> = scene
        .provider
        .requests()
        .into_iter()
        .flat_map(|request| request.voice_ids)
        .collect();
    assert_eq!(asked.len(), voices, "nobody was asked about twice");
    scene.check(voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_on_postgresql_share_the_work() {
    each_voice_is_asked_about_by_one_process(Variant::A, 6, 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_processes_on_sqlite_share_the_work() {
    each_voice_is_asked_about_by_one_process(Variant::E32, 3, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_processes_ask_about_one_voice_once() {
    each_voice_is_asked_about_by_one_process(Variant::D, 20, 1).await;
}

/// Kills processes with SIGKILL after a random number of requests, and lets others go on.
/// `VOICE_SYNC_TEST_SEED` and `VOICE_SYNC_TEST_KILLS` repeat a run or make it longer.
async fn killed_processes_lose_nothing(variant: Variant, voices: usize) {
    let number = |name: &str, or: u64| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(or)
    };
    let seed = number("VOICE_SYNC_TEST_SEED", fastrand::u64(..));
    let kills = number("VOICE_SYNC_TEST_KILLS", 12);
    println!("VOICE_SYNC_TEST_SEED={seed}");
    let mut dice = Rng::with_seed(seed);
    let scene = Scene::new(variant, voices).await;
    let mut killed = 0;
    for _ in 0..kills {
        let mut running: Vec<_> = (0..3).map(|_| scene.command().start()).collect();
        let count = || scene.provider.counts().list;
        let until = count() + dice.u64(0..4);
        let mut turns = dice.u32(0..2000);
        while (count() < until || turns > 0)
            && running
                .iter_mut()
                .any(|child| matches!(child.try_wait(), Ok(None)))
        {
            turns = turns.saturating_sub(1);
            tokio::task::yield_now().await;
        }
        for child in &mut running {
            if dice.u8(0..3) > 0 {
                killed += u32::from(matches!(child.try_wait(), Ok(None)));
                child.kill().expect("it is ours to kill");
            }
        }
        join_all(running.into_iter().map(end)).await;
        // The leases of the dead, of voices and of events, run out.
        scene.app.age_own_tables(61).await;
    }
    println!("{killed} processes were killed while they ran");
    scene.command().run().await.expect_code(0);
    scene.check(voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_lose_nothing_on_postgresql() {
    killed_processes_lose_nothing(Variant::A, 4000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_lose_nothing_on_sqlite() {
    killed_processes_lose_nothing(Variant::E32, 1500).await;
}
