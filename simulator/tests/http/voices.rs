//! Single voices: what their fates make of them, and how they come and go.

use std::time::Duration;

use serde_json::{Value, json};
use voice_sync_simulator::{Fate, Options, SeedError, Speech};

use super::Api;

fn preview(voice_id: &str) -> Value {
    json!(format!(
        "https://storage.example.com/previews/{voice_id}.mp3"
    ))
}

#[tokio::test]
async fn every_voice_has_the_fields_that_the_schema_requires() {
    let api = Api::plain().await;
    for fate in Fate::ALL {
        if fate == Fate::Missing {
            continue;
        }
        let voice = api.voice(&format!("sim-{}-1", fate.word())).await;
        for field in ["voice_id", "name"] {
            assert!(voice[field].is_string(), "{fate:?} {field}");
        }
        for field in [
            "available_for_tiers",
            "high_quality_base_model_ids",
            "samples",
        ] {
            assert!(voice[field].is_array(), "{fate:?} {field}");
        }
        assert!(voice["labels"].is_object(), "{fate:?}");
        assert!(
            voice["created_at_unix"].as_u64() > Some(1_600_000_000),
            "{fate:?}"
        );
        if fate != Fate::Malformed {
            assert!(voice["category"].is_string(), "{fate:?}");
            assert!(voice["fine_tuning"]["state"].is_object(), "{fate:?}");
            let size = voice.to_string().len();
            assert!((1_800..5_500).contains(&size), "{fate:?}: {size}");
        }
    }
}

/// What a voice looks like shortly before its time and at it: category, preview, safety control,
/// status and the training's states.
fn course(fate: Fate, url: Value) -> Option<[Value; 2]> {
    let none = Value::Null;
    let cloned = |preview: &Value, safety: &str, status: Option<&str>| {
        json!(["cloned", preview, safety, status, null, null])
    };
    let professional =
        |preview: &Value, state: &str| json!(["professional", preview, "NONE", null, state, state]);
    let same = |value: Value| [value.clone(), value];
    Some(match fate {
        Fate::Ready | Fate::Unlisted => [cloned(&none, "NONE", None), cloned(&url, "NONE", None)],
        Fate::NoPreview | Fate::Silent | Fate::Unverified => same(cloned(&none, "NONE", None)),
        Fate::Banned => [cloned(&none, "NONE", None), cloned(&none, "BAN", None)],
        Fate::PvcReady => [
            professional(&none, "fine_tuning"),
            professional(&url, "fine_tuned"),
        ],
        Fate::PvcFailed => [
            professional(&none, "fine_tuning"),
            professional(&none, "failed"),
        ],
        Fate::PvcTraining => same(professional(&none, "fine_tuning")),
        Fate::PvcUnverified => same(professional(&none, "not_started")),
        Fate::StatusCompleted => [
            cloned(&none, "NONE", Some("processing")),
            cloned(&url, "NONE", Some("completed")),
        ],
        Fate::StatusFailed => [
            cloned(&none, "NONE", Some("processing")),
            cloned(&none, "NONE", Some("failed")),
        ],
        Fate::StatusProcessing => same(cloned(&none, "NONE", Some("processing"))),
        Fate::Missing | Fate::LongPreview | Fate::NulPreview | Fate::Strange | Fate::Malformed => {
            return None;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn fates_take_effect_at_their_time() {
    let api = Api::plain().await;
    let voices: Vec<_> = Fate::ALL
        .into_iter()
        .filter_map(|fate| {
            let id = format!("sim-{}100s-x", fate.word());
            let course = course(fate, preview(&id))?;
            Some((id, course))
        })
        .collect();
    for (moment, wait) in [90, 10].into_iter().enumerate() {
        tokio::time::advance(Duration::from_secs(wait)).await;
        for (id, course) in &voices {
            let voice = api.voice(id).await;
            let states = &voice["fine_tuning"]["state"];
            let found = json!([
                voice["category"],
                voice["preview_url"],
                voice["safety_control"],
                voice["status"],
                states["eleven_multilingual_v2"],
                states["eleven_turbo_v2_5"],
            ]);
            assert_eq!(found, course[moment], "{id}");
        }
    }
}

#[tokio::test]
async fn some_fates_produce_invalid_or_unknown_values() {
    let api = Api::plain().await;
    let long = api.voice("sim-longpreview-1").await;
    assert_eq!(long["preview_url"].as_str().unwrap().len(), 3_000);
    let nul = api.voice("sim-nulpreview-1").await;
    assert!(nul["preview_url"].as_str().unwrap().contains('\0'));

    let strange = api.voice("sim-strange-1").await;
    assert_eq!(strange["category"], "holographic");
    assert_eq!(
        strange["fine_tuning"]["state"]["eleven_multilingual_v2"],
        "marinating"
    );
    assert!(strange["hologram"].is_object());

    let malformed = api.voice("sim-malformed-1").await;
    assert!(malformed["preview_url"].is_number());
    assert!(malformed["category"].is_object());
    assert!(malformed["fine_tuning"].is_string());

    let verification = |voice: &Value| {
        let part = &voice["voice_verification"];
        [
            part["requires_verification"].clone(),
            part["is_verified"].clone(),
        ]
    };
    for id in ["sim-unverified-1", "sim-pvcunverified-1"] {
        assert_eq!(verification(&api.voice(id).await), [true, false], "{id}");
    }
    assert_eq!(
        verification(&api.voice("sim-pvcready-1").await),
        [true, true]
    );
}

#[tokio::test]
async fn unknown_voices_and_endpoints_are_not_found() {
    let api = Api::plain().await;
    for id in ["nobody", "sim-missing-1", "sim-redy-1", "a%20b%2Fc"] {
        for reply in [
            api.get(&format!("/v1/voices/{id}")).await,
            api.delete(&format!("/v1/voices/{id}")).await,
        ] {
            assert_eq!(
                (reply.status, reply.code()),
                (400, "voice_not_found"),
                "{id}"
            );
        }
    }
    assert_eq!(api.simulator.requests()[6].voice_ids, ["a b/c"]);
    let reply = api.get("/v1/models").await;
    assert_eq!(
        (reply.status, reply.body),
        (404, json!({"detail": "Not Found"}))
    );
    assert_eq!(api.delete("/v2/voices").await.status, 405);
}

#[tokio::test(start_paused = true)]
async fn voices_can_be_added_and_deleted() {
    let api = Api::plain().await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let created = api.add(&[
        ("name", "Anna [ready 5s]"),
        ("files", "ID3"),
        ("files", "ID3"),
    ]);
    let created = created.await;
    assert_eq!(created.status, 200);
    assert_eq!(created.body["requires_verification"], false);
    let id = created.body["voice_id"].as_str().unwrap();
    assert!(
        id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{id}"
    );

    let voice = api.voice(id).await;
    assert_eq!(
        (&voice["name"], &voice["preview_url"]),
        (&json!("Anna [ready 5s]"), &json!(null))
    );
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(api.voice(id).await["preview_url"], preview(id));

    let path = format!("/v1/voices/{id}");
    let deleted = api.delete(&path).await;
    assert_eq!(
        (deleted.status, deleted.body),
        (200, json!({"status": "ok"}))
    );
    assert_eq!(api.get(&path).await.code(), "voice_not_found");
    assert_eq!(api.delete(&path).await.code(), "voice_not_found");
}

#[tokio::test(start_paused = true)]
async fn silent_voice_gets_its_preview_only_after_speech() {
    let api = Api::plain().await;
    api.simulator.add_voice("anna", "Anna [silent 5s]");
    api.simulator.add_voice("bert", "Bert [silent 5s]");
    let spoken = api.speak("anna", "Hi").await;
    assert_eq!(
        (spoken.status, spoken.header("content-type")),
        (200, Some("audio/mpeg"))
    );
    assert_eq!(api.voice("anna").await["preview_url"], Value::Null);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(api.voice("anna").await["preview_url"], preview("anna"));
    assert_eq!(api.voice("bert").await["preview_url"], Value::Null);
    let said = Speech {
        voice_id: "anna".to_owned(),
        text: "Hi".to_owned(),
        model_id: "eleven_flash_v2_5".to_owned(),
    };
    assert_eq!(api.simulator.speeches(), [said]);
    assert_eq!(api.speak("nobody", "Hi").await.code(), "voice_not_found");
}

#[tokio::test]
async fn adding_a_voice_requires_a_name_and_a_file() {
    let api = Api::plain().await;
    for (parts, missing) in [
        (&[("files", "ID3")], "name"),
        (&[("name", "Anna")], "files"),
    ] {
        let reply = api.add(parts).await;
        assert_eq!(reply.status, 422);
        assert_eq!(reply.body["detail"][0]["loc"], json!(["body", missing]));
    }
}

#[tokio::test]
async fn generated_ids_depend_only_on_the_seed() {
    async fn id(seed: u64, lookups: usize) -> Value {
        let options = Options {
            seed,
            jitter: Duration::from_micros(1),
            ..Options::default()
        };
        let api = Api::start(options).await;
        for _ in 0..lookups {
            api.get("/v2/voices").await;
        }
        let reply = api.add(&[("name", "Anna"), ("files", "ID3")]).await;
        reply.body["voice_id"].clone()
    }
    assert_eq!(id(1, 0).await, id(1, 3).await);
    assert_ne!(id(1, 0).await, id(2, 0).await);
}

#[tokio::test]
async fn synthetic_voices_can_be_removed_and_replaced() {
    let api = Api::plain().await;
    let id = "sim-banned-1";
    assert!(api.simulator.remove_voice(id));
    assert!(!api.simulator.remove_voice(id));
    assert_eq!(api.get("/v1/voices/sim-banned-1").await.status, 400);

    api.simulator.add_voice(id, "Anna");
    assert_eq!(api.voice(id).await["safety_control"], "BAN");
    api.simulator.add_voice(id, "Anna [ready]");
    assert_eq!(api.voice(id).await["safety_control"], "NONE");
    assert!(api.simulator.remove_voice(id));
    assert_eq!(api.get("/v1/voices/sim-banned-1").await.status, 400);
}

#[tokio::test]
async fn seed_file_adds_all_of_its_voices_or_none() {
    let api = Api::plain().await;
    let seed = json!([
        {"voice_id": "a", "name": "Anna", "fate": "banned"},
        {"voice_id": "b", "name": "Bert [ready] of old", "fate": "banned"},
        {"voice_id": "c", "name": "Cleo [banned]"},
    ]);
    assert_eq!(api.simulator.load_seed(&seed.to_string()).unwrap(), 3);
    for id in ["a", "b", "c"] {
        assert_eq!(api.voice(id).await["safety_control"], "BAN", "{id}");
    }

    let fate =
        r#"[{"voice_id": "d", "name": "D"}, {"voice_id": "e", "name": "E", "fate": "soon"}]"#;
    let error = api.simulator.load_seed(fate).unwrap_err();
    assert!(matches!(error, SeedError::Fate { voice_id, .. } if voice_id == "e"));
    let error = api.simulator.load_seed(r#"[{"id": "d"}]"#).unwrap_err();
    assert!(matches!(error, SeedError::Json(_)));
    assert_eq!(api.get("/v1/voices/d").await.status, 400);
}
