//! Nudging previews: voices that get none before they speak.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;
use voice_sync::core::nudge::NudgeAnswer;
use voice_sync::core::voice::{ProviderVoiceId, RowId};
use voice_sync::store::{NudgeClaim, NudgePermit, Store};
use voice_sync_simulator::{Answer, Simulator};

use crate::daemon::migrated;
use crate::support::app::{App, Variant, row_id};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::simulator;

const BOTH: [Variant; 2] = [Variant::A, Variant::E32];

/// A pass that nudges what is older than this.
fn nudging(app: &App, provider: &Simulator, after: &str) -> VoiceSync {
    sync_once(&app.url, &provider.url()).args(&["--nudge-previews", after])
}

fn spoken(provider: &Simulator) -> Vec<String> {
    let speeches = provider.speeches();
    let mut voices: Vec<_> = speeches.into_iter().map(|said| said.voice_id).collect();
    voices.sort();
    voices
}

fn counts(ended: &Ended) -> (u64, u64) {
    (ended.count("nudged"), ended.count("nudge_characters"))
}

async fn inspect(app: &App, provider: &Simulator, id: &str) -> Value {
    let inspect = VoiceSync::new(&["inspect", id])
        .env("DATABASE_URL", &app.url)
        .env("ELEVENLABS_BASE_URL", provider.url());
    let ended = inspect.run().await;
    ended.expect_code(0);
    serde_json::from_str::<Value>(&ended.stdout).expect("JSON")[0].clone()
}

/// Voices are nudged only if the option is set, and each at most once, whatever the outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_silent_voice_is_nudged_once_and_completes() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let ids = [
            "sim-silent-1",
            "sim-silent-2",
            "sim-nopreview-1",
            "sim-ready-1",
        ];
        let others = [
            "sim-pvctraining-1",
            "sim-unverified-1",
            "sim-missing-1",
            "sim-banned-1",
        ];
        app.insert_processing(&ids).await;
        app.insert_processing(&others).await;
        let unasked = sync_once(&app.url, &provider.url()).run().await;
        assert_eq!((counts(&unasked), provider.counts().speech), ((0, 0), 0));
        // It is younger than that for voice-sync, whatever its row says.
        let young = nudging(&app, &provider, "1h").run().await;
        assert_eq!((counts(&young), provider.counts().speech), ((0, 0), 0));
        let dry = nudging(&app, &provider, "0s").arg("--dry-run").run().await;
        assert_eq!((counts(&dry), provider.counts().speech), ((0, 0), 0));

        let text =
            nudging(&app, &provider, "0s").args(&["--nudge-text", "Hallo", "--nudge-model", "m1"]);
        let nudged = text.run().await;
        nudged.expect_code(0);
        assert_eq!(counts(&nudged), (3, 15));
        assert_eq!(
            spoken(&provider),
            ["sim-nopreview-1", "sim-silent-1", "sim-silent-2"]
        );
        let said = provider.speeches();
        assert!(
            said.iter()
                .all(|said| said.text == "Hallo" && said.model_id == "m1"),
            "{said:?}"
        );

        let soon = match variant {
            Variant::A => "next_due BETWEEN now() AND now() + interval '2 seconds'",
            Variant::B | Variant::D | Variant::Pooled | Variant::E32 | Variant::E36 => {
                "next_due - CAST(unixepoch('subsec') * 1000 AS INTEGER) BETWEEN 0 AND 2000"
            }
        };
        let soon = format!("SELECT count(*) FROM {} WHERE {soon}", app.own("voices"));
        assert_eq!(app.number(&soon).await, 3, "they are due in two seconds");
        let then = nudging(&app, &provider, "0s").run().await;
        assert_eq!((then.count("completed"), counts(&then)), (2, (0, 0)));
        for _ in 0..3 {
            let again = nudging(&app, &provider, "0s").run().await;
            assert_eq!((again.count("completed"), counts(&again)), (0, (0, 0)));
        }
        assert_eq!(provider.counts().speech, 3);
        let nudge = &inspect(&app, &provider, "sim-nopreview-1").await["row"]["nudge"];
        assert_eq!(nudge["answer"], "spoke");

        // Put back, and cloned anew under the same id: the provider's voice has spoken.
        app.execute("UPDATE voices SET status = 'processing', preview_url = NULL")
            .await;
        let back = nudging(&app, &provider, "0s").run().await;
        assert_eq!(counts(&back), (0, 0));
    }
}

/// If the provider refuses speech because of its own limits, only nudging stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_speech_stops_nudging_but_not_the_pass() {
    for (status, code) in [
        (401, "quota_exceeded"),
        (401, "missing_permissions"),
        (401, "invalid_api_key"),
        (402, "payment_required"),
        (403, "missing_permissions"),
        (429, "rate_limit_exceeded"),
        (429, "too_many_concurrent_requests"),
    ] {
        let (app, provider) = (migrated(Variant::A).await, simulator().await);
        app.insert_processing(&[
            "sim-silent-1",
            "sim-silent-2",
            "sim-silent-3",
            "sim-nopreview-1",
        ])
        .await;
        provider.script(move |request| {
            let is_speech = request.path.starts_with("/v1/text-to-speech/");
            is_speech.then(|| Answer::error(status, code, "no more"))
        });
        let stopped = nudging(&app, &provider, "0s").run().await;
        stopped.expect_code(0);
        assert_eq!(
            (stopped.count("processing"), counts(&stopped)),
            (4, (1, 0)),
            "{code}"
        );
        assert_eq!(
            stopped.stderr.matches("refuses text-to-speech").count(),
            1,
            "{}",
            stopped.stderr
        );
        let later = nudging(&app, &provider, "0s").run().await;
        later.expect_code(0);
        assert_eq!(
            (counts(&later), provider.counts().speech),
            ((0, 0), 1),
            "{code}"
        );

        let command = |name| {
            VoiceSync::new(&[name])
                .env("DATABASE_URL", &app.url)
                .env("ELEVENLABS_BASE_URL", provider.url())
        };
        let seen = command("status").run().await;
        let says = "refuses text-to-speech; no previews are nudged for another";
        assert!(
            seen.stdout.contains(says) && seen.stdout.contains(code),
            "{}",
            seen.stdout
        );
        let doctor = command("doctor").run().await;
        assert!(doctor.stdout.contains(says), "{}", doctor.stdout);

        // The pause ends by itself; the voice that was refused had its turn.
        provider.script(|_| None);
        app.age_own_tables(7 * 60 * 60).await;
        let again = nudging(&app, &provider, "0s").run().await;
        assert_eq!(counts(&again), (3, 6), "{code}");
    }
}

/// With `--on-timeout complete`, voices that speak complete without a preview, and those that do not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_timeout_voices_that_speak_complete_and_others_fail() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let ids = [
            "sim-nopreview-speaks",
            "sim-nopreview-mute",
            "sim-nopreview-unclear",
            "sim-nopreview-never",
        ];
        app.insert_processing(&ids[..3]).await;
        provider.script(|request| {
            let id = request.path.strip_prefix("/v1/text-to-speech/")?;
            match id {
                "sim-nopreview-mute" => {
                    Some(Answer::error(403, "voice_access_denied", "it is not yours"))
                }
                "sim-nopreview-unclear" => Some(Answer::error(500, "internal_server_error", "oh")),
                _ => None,
            }
        });
        // What is unclear makes the others wait for a while.
        let mut all = (0, 0);
        for _ in 0..3 {
            let (nudged, characters) = counts(&nudging(&app, &provider, "0s").run().await);
            all = (all.0 + nudged, all.1 + characters);
            app.age_own_tables(16 * 60).await;
        }
        assert_eq!(all, (3, 2));
        app.insert_processing(&ids[3..]).await;
        sync_once(&app.url, &provider.url())
            .run()
            .await
            .expect_code(0);
        app.age_own_tables(25 * 60 * 60).await;
        let timed_out = sync_once(&app.url, &provider.url())
            .args(&["--on-timeout", "complete"])
            .run()
            .await;
        timed_out.expect_code(0);
        assert_eq!(
            (timed_out.count("completed"), timed_out.count("failed")),
            (3, 1),
            "{variant:?}"
        );
        let failed = "SELECT count(*) FROM voices WHERE CAST(status AS text) = 'failed'
                      AND elevenlabs_voice_id = 'sim-nopreview-mute'";
        assert_eq!(app.number(failed).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_nudge_does_not_block_lookups_of_the_daemon() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        provider.script(|request| {
            let is_speech = request.path.starts_with("/v1/text-to-speech/");
            is_speech.then(|| Answer::empty(200).after(Duration::from_secs(3600)))
        });
        app.insert_processing(&["sim-silent-1"]).await;
        let command = daemon(&app.url, &provider.url()).args(&["--nudge-previews", "100ms"]);
        let mut running = Daemon::start(command);
        running
            .wait_for("a nudge", async || {
                (provider.counts().speech > 0).then_some(())
            })
            .await;
        app.insert_processing(&["sim-ready-1", "sim-ready-2"]).await;
        running.wait_until(&app, "completed", 2).await;
        running.stop().await;
        assert_eq!(provider.counts().speech, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_once_with_wait_nudges_silent_voices() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        app.insert_processing(&["sim-silent-1", "sim-silent-2", "sim-ready-1"])
            .await;
        let waits =
            nudging(&app, &provider, "100ms").args(&["--wait=50s", "--request-budget=100/s"]);
        let waited = waits.run().await;
        waited.expect_code(0);
        assert_eq!(waited.count("completed"), 3);
        assert_eq!(counts(&waited), (2, 4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_nudge_each_voice_once() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let ids: Vec<_> = (0..5).map(|n| format!("sim-silent-{n}")).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        app.insert_processing(&ids).await;
        let start = || {
            let command = daemon(&app.url, &provider.url()).args(&["--nudge-previews", "100ms"]);
            Daemon::start(command)
        };
        let mut daemons = [start(), start()];
        daemons[0].wait_until(&app, "completed", 5).await;
        for daemon in &mut daemons {
            daemon.stop().await;
        }
        assert_eq!(spoken(&provider), ids);
    }
}

/// A wrong model must not use up the only nudge of every voice, and one bad voice must not stop the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_request_stops_nudging_unless_other_voices_speak() {
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let ids = [
            "sim-silent-1",
            "sim-silent-2",
            "sim-silent-3",
            "sim-silent-4",
        ];
        app.insert_processing(&ids).await;
        let reject = |only: Option<&'static str>| {
            provider.script(move |request| {
                let id = request.path.strip_prefix("/v1/text-to-speech/")?;
                let is_rejected = only.is_none_or(|only| only == id);
                is_rejected
                    .then(|| Answer::error(400, "invalid_uid", "An invalid ID has been received"))
            });
        };
        reject(None);
        let wrong = nudging(&app, &provider, "0s").run().await;
        assert_eq!(counts(&wrong), (1, 0));
        assert!(
            wrong.stderr.contains("refuses text-to-speech"),
            "{}",
            wrong.stderr
        );
        app.age_own_tables(7 * 60 * 60).await;
        provider.script(|_| None);
        let one = nudging(&app, &provider, "0s")
            .arg("--nudge-limit=2")
            .run()
            .await;
        assert_eq!(counts(&one), (1, 2));
        let spoken = spoken(&provider);
        let left: Vec<_> = ids
            .into_iter()
            .filter(|id| !spoken.contains(&(*id).to_owned()))
            .collect();
        // One of these was refused before: whichever of the others it is, the last one speaks.
        let mut rest = 0;
        for odd in left {
            reject(Some(odd));
            rest += counts(&nudging(&app, &provider, "0s").run().await).0;
        }
        assert_eq!(rest, 2);
    }
}

/// An unavailable provider must not use up a voice's only nudge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsent_nudge_is_retried_later() {
    let app = App::new(Variant::A).await;
    app.insert_processing(&["a"]).await;
    let store = app.store().await;
    let account = Uuid::from_u128(7);
    let first = claim(&app, account, "a");
    assert_eq!(permit(&store, &first).await, NudgePermit::Granted);
    let unsent = NudgeAnswer::Unsent("no connection".to_owned());
    store.settle_nudge(&first, &unsent).await.expect("settles");
    let second = claim(&app, account, "a");
    assert!(matches!(
        permit(&store, &second).await,
        NudgePermit::NotNow(_)
    ));
    let nudging = store.nudging(account).await.expect("reads");
    assert_eq!((nudging.today, nudging.stops()), (0, None));
    app.age_own_tables(61).await;
    assert_eq!(permit(&store, &second).await, NudgePermit::Granted);
    let third = claim(&app, account, "a");
    assert_eq!(permit(&store, &third).await, NudgePermit::Needless);
}

fn claim(app: &App, account: Uuid, id: &str) -> NudgeClaim {
    NudgeClaim {
        nudge_id: Uuid::new_v4(),
        account,
        row: RowId::new(app.stored(row_id(id))),
        provider_id: ProviderVoiceId::parse(id).expect("an id"),
        characters: 2,
    }
}

async fn permit(store: &Store, claim: &NudgeClaim) -> NudgePermit {
    store.claim_nudge(claim, 3).await.expect("is asked")
}

/// One nudge at a time, at most the daily limit, and never the same voice twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_processes_share_the_daily_nudge_limit() {
    for variant in [Variant::A, Variant::B, Variant::E32] {
        let app = App::new(variant).await;
        let ids = ["a", "b", "c", "d", "e"];
        app.insert_processing(&ids).await;
        let store = app.store().await;
        let account = Uuid::from_u128(7);
        let [a, b, c, d, e] = ids.map(|id| claim(&app, account, id));
        assert_eq!(permit(&store, &a).await, NudgePermit::Granted);
        assert_eq!(
            permit(&store, &a).await,
            NudgePermit::Granted,
            "a lost reply"
        );
        let again = claim(&app, account, "a");
        assert_eq!(permit(&store, &again).await, NudgePermit::Needless);
        assert!(
            matches!(permit(&store, &b).await, NudgePermit::NotNow(_)),
            "one is under way"
        );
        let elsewhere = claim(&app, Uuid::from_u128(8), "e");
        assert_eq!(
            permit(&store, &elsewhere).await,
            NudgePermit::Granted,
            "another account"
        );
        store
            .settle_nudge(&a, &NudgeAnswer::Spoke)
            .await
            .expect("settles");
        assert_eq!(permit(&store, &b).await, NudgePermit::Granted);
        // Its process died.
        app.age_own_tables(60).await;
        assert_eq!(permit(&store, &c).await, NudgePermit::Granted);
        let silent = NudgeAnswer::Silent("no".to_owned());
        store.settle_nudge(&c, &silent).await.expect("settles");
        assert!(
            matches!(permit(&store, &d).await, NudgePermit::NotNow(_)),
            "the limit"
        );
        assert_eq!(store.nudging(account).await.expect("reads").today, 3);
        app.age_own_tables(24 * 60 * 60).await;
        assert_eq!(permit(&store, &d).await, NudgePermit::Granted);
        let nobody = claim(&app, account, "nobody");
        assert_eq!(permit(&store, &nobody).await, NudgePermit::Needless);
        assert_eq!(
            permit(&store, &e).await,
            NudgePermit::Needless,
            "nudged by the other account"
        );
        app.execute(
            "UPDATE voices SET elevenlabs_voice_id = 'anew' WHERE elevenlabs_voice_id = 'b'",
        )
        .await;
        assert_eq!(
            permit(&store, &claim(&app, account, "b")).await,
            NudgePermit::Needless
        );
    }
}

#[tokio::test]
async fn rejects_nudge_text_that_is_empty_or_too_long() {
    for text in ["", "  ", &"x".repeat(101)] {
        let ended = VoiceSync::new(&["sync-once", "--nudge-text", text])
            .run()
            .await;
        ended.expect_code(2);
        assert!(
            ended.stderr.contains("1 to 100 characters"),
            "{}",
            ended.stderr
        );
    }
}
