//! A voice is nudged once, for ever: whoever dies, wherever, and however many there are.

use std::collections::BTreeMap;

use voice_sync_simulator::Simulator;

use crate::support::app::{App, Variant};
use crate::support::binary::{VoiceSync, end, sync_once};
use crate::support::fates::simulator;
use crate::{budget, rng};

const POINTS: [&str; 6] = [
    "store.claim_nudge.before",
    "store.claim_nudge.after",
    "nudge.before",
    "nudge.after",
    "store.settle_nudge.before",
    "store.settle_nudge.after",
];

fn silent(number: usize) -> Vec<String> {
    (0..number).map(|n| format!("sim-silent-{n:03}")).collect()
}

async fn site(variant: Variant, voices: usize) -> (App, Simulator) {
    let (app, provider) = (App::new(variant).await, simulator().await);
    let ids = silent(voices);
    app.insert_processing(&ids.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    drop(app.store().await);
    (app, provider)
}

fn nudging(app: &App, provider: &Simulator) -> VoiceSync {
    sync_once(&app.url, &provider.url()).args(&["--nudge-previews=0s", "--nudge-limit=1000"])
}

/// How often each voice was spoken with.
fn speeches(provider: &Simulator) -> BTreeMap<String, u64> {
    let mut speeches = BTreeMap::new();
    for said in provider.speeches() {
        *speeches.entry(said.voice_id).or_default() += 1;
    }
    speeches
}

async fn completed(app: &App) -> usize {
    let sql = "SELECT count(*) FROM voices WHERE CAST(status AS text) = 'completed'";
    usize::try_from(app.number(sql).await).expect("a number")
}

/// Of three voices, the one at which the process died may have lost its nudge, and no other.
async fn dies_at_each_point(variant: Variant) {
    const VOICES: usize = 3;
    for point in POINTS {
        let (app, provider) = site(variant, VOICES).await;
        let dies = nudging(&app, &provider).env("VOICE_SYNC_FAILPOINTS", format!("{point}=abort"));
        let ended = dies.run().await;
        assert_eq!(ended.code, -1, "{point} was not reached: {}", ended.stderr);
        for _ in 0..3 {
            app.age_own_tables(61).await;
            nudging(&app, &provider).run().await.expect_code(0);
        }
        let speeches = speeches(&provider);
        assert!(
            speeches.values().all(|times| *times == 1),
            "{point}: {speeches:?}"
        );
        let lost = match point {
            "store.claim_nudge.after" | "nudge.before" => 1,
            _ => 0,
        };
        assert_eq!(speeches.len(), VOICES - lost, "{point}");
        assert_eq!(completed(&app).await, VOICES - lost, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_during_a_nudge_causes_no_second_nudge_on_postgresql() {
    dies_at_each_point(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_during_a_nudge_causes_no_second_nudge_on_sqlite() {
    dies_at_each_point(Variant::E32).await;
}

/// Database replies are lost and processes crash at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_voice_is_nudged_twice_under_random_faults() {
    let mut rng = rng();
    for variant in [Variant::A, Variant::E32] {
        let voices = usize::try_from(budget(20, 200)).expect("a number");
        let (app, provider) = site(variant, voices).await;
        for _ in 0..budget(6, 60) {
            let failpoints: Vec<_> = POINTS
                .iter()
                .map(|point| match rng.bool() {
                    true => format!("{point}=abort%{}", rng.u8(1..10)),
                    false => format!("{point}=error%{}", rng.u8(1..40)),
                })
                .collect();
            let start = || {
                let command = nudging(&app, &provider);
                command.env("VOICE_SYNC_FAILPOINTS", failpoints.join(";"))
            };
            let both = [start().start(), start().start()];
            for child in both {
                end(child).await;
            }
            app.age_own_tables(rng.i64(0..100)).await;
        }
        app.age_own_tables(61).await;
        for _ in 0..3 {
            nudging(&app, &provider).run().await.expect_code(0);
            app.age_own_tables(61).await;
        }
        let speeches = speeches(&provider);
        assert!(speeches.values().all(|times| *times == 1), "{speeches:?}");
        let written = format!("SELECT count(*) FROM {}", app.own("nudges"));
        assert_eq!(
            app.number(&written).await as usize,
            voices,
            "each had its turn"
        );
        assert_eq!(completed(&app).await, speeches.len());
    }
}
