//! What operators see, and what they mend.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use serde_json::{Value, json};
use uuid::Uuid;
use voice_sync::store::{CommandRun, Selection, VoiceFilter, Wanted};
use voice_sync_simulator::{Counts, Options};

use crate::support::app::{App, NewVoice, Pool, Variant, row_id};
use crate::support::binary::{Ended, VoiceSync, end};
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::simulator_with;
use crate::support::site::{ALL, Site};

/// The line of the log that has these words.
fn logged(ended: &Ended, words: &str) -> Value {
    let lines = ended.stderr.lines();
    let mut lines = lines.filter(|line| line.contains(words));
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("{words:?} in {}", ended.stderr));
    serde_json::from_str(line).expect("a line of JSON")
}

/// A command's JSON.
async fn json(command: VoiceSync) -> Value {
    let ended = command.run().await;
    ended.expect_code(0);
    ended.report()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_kinds_ages_passes_and_completion_times() {
    for variant in ALL {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&[
                "sim-ready-1",
                "sim-ready-2",
                "sim-nopreview-1",
                "sim-pvctraining-1",
                "sim-pvcunverified-1",
                "sim-unverified-1",
                "sim-missing-1",
                "no id",
            ])
            .await;
        site.sync_once().run().await.expect_code(0);
        site.sync_once().run().await.expect_code(0);
        site.sync_once().run().await.expect_code(0);
        let status = json(site.run(&["status"])).await;
        let backlog = &status["backlog"];
        let kinds = [
            "processing",
            "young",
            "training",
            "waiting_for_owner",
            "missing",
            "overdue",
            "set_aside",
        ];
        let counts = kinds.map(|kind| backlog[kind].as_u64().expect("a number"));
        assert_eq!(counts, [6, 1, 1, 2, 1, 0, 1], "{variant:?}: {status:#}");
        assert_eq!(
            backlog["ages"][0],
            json!({"less_than_seconds": 60, "voices": 6}),
            "{variant:?}"
        );
        assert_eq!(
            status["oldest"].as_array().map(Vec::len),
            Some(5),
            "{variant:?}"
        );
        let runs = status["runs"].as_array().expect("a list");
        let due: Vec<_> = runs
            .iter()
            .map(|run| run["counts"]["due"].as_u64())
            .collect();
        assert_eq!(
            due,
            [Some(6), Some(6), Some(8)],
            "{variant:?}: newest first"
        );
        assert_eq!(status["completion_times"]["voices"], 2, "{variant:?}");
        let p99 = status["completion_times"]["p99_seconds"].as_f64();
        assert!(p99.is_some_and(|p99| p99 < 60.0), "{variant:?}: {p99:?}");
        let provider = &status["provider"][0];
        assert_eq!(provider["breaker"], "closed", "{variant:?}: {status:#}");
        assert!(
            provider["last_found_at"].is_string(),
            "{variant:?}: {status:#}"
        );
        assert_eq!(status["outbox"]["pending"], 0, "{variant:?}");
        assert_eq!(
            status["attention"].as_array().map(Vec::len),
            Some(1),
            "{variant:?}: {status:#}"
        );

        // Looking changed nothing.
        assert_eq!(
            json(site.run(&["runs"])).await.as_array().map(Vec::len),
            Some(3),
            "{variant:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_counts_ages_like_a_pass() {
    for (variant, past) in [
        (Variant::A, "now() AT TIME ZONE 'UTC' - interval '2 days'"),
        (Variant::D, "now() - interval '2 days'"),
        (
            Variant::E32,
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-2 days')",
        ),
        (Variant::E36, "unixepoch('now', '-2 days')"),
    ] {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-nopreview-1", "sim-nopreview-2"])
            .await;
        let old = format!("UPDATE voices SET created_at = {past} WHERE name = 'sim-nopreview-1'");
        site.app.execute(&old).await;
        let status = json(site.run(&["status"])).await;
        assert_eq!(status["backlog"]["overdue"], 0, "nobody saw it for so long");
        let status = json(site.run(&["status", "--age-from", "created"])).await;
        assert_eq!(status["backlog"]["overdue"], 1, "{variant:?}: {status:#}");
        assert_eq!(
            status["backlog"]["ages"][6]["voices"], 1,
            "{variant:?}: {status:#}"
        );
        let oldest = &status["oldest"][0];
        assert_eq!(oldest["provider_id"], "sim-nopreview-1", "{variant:?}");
        let age = oldest["age_seconds"].as_f64().expect("a number");
        assert!((172_800.0..172_900.0).contains(&age), "{variant:?}: {age}");
        let never = ["status", "--fail-after", "never", "--age-from", "created"];
        let never = json(site.run(&never)).await;
        assert_eq!(never["backlog"]["overdue"], 0, "{variant:?}");

        // It fails, and is put back: its age begins anew.
        let created = ["--age-from", "created"];
        site.sync_once().args(&created).run().await.expect_code(0);
        let retried = json(site.run(&["retry", "sim-nopreview-1"])).await;
        assert_eq!(
            retried["put_back"].as_array().map(Vec::len),
            Some(1),
            "{variant:?}: {retried}"
        );
        let status = json(site.run(&["status"])).await;
        assert_eq!(
            status["backlog"]["ages"][0]["voices"], 2,
            "{variant:?}: {status:#}"
        );
        assert_eq!(
            site.sync_once().run().await.count("processing"),
            2,
            "{variant:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_works_on_a_database_without_own_tables() {
    for variant in ALL {
        let app = App::new(variant).await;
        app.insert_processing(&["sim-ready-1"]).await;
        let at = |command: &[&str]| VoiceSync::new(command).env("DATABASE_URL", &app.url);
        let status = json(at(&["status"])).await;
        assert_eq!(status["backlog"]["young"], 1, "{variant:?}");
        assert_eq!(status["oldest"][0]["notes"], Value::Null, "{variant:?}");
        assert_eq!(json(at(&["runs"])).await, json!([]), "{variant:?}");
        assert_eq!(
            json(at(&["outbox", "list"])).await,
            json!([]),
            "{variant:?}"
        );
        let inspected = json(at(&["inspect", "sim-ready-1", "--offline"])).await;
        assert_eq!(inspected[0]["row"]["status"], "processing", "{variant:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_check_reports_problems_in_one_line() {
    let site = Site::new(Variant::A).await;
    site.app.insert_processing(&["sim-nopreview-1"]).await;
    let check = |more: &[&str]| {
        let command = site.run(&["status", "--check"]).args(more);
        command.env("VOICE_SYNC_OUTPUT", "text").run()
    };
    let never = check(&[]).await;
    never.expect_code(75);
    assert!(
        never
            .stdout
            .starts_with("VOICE-SYNC ATTENTION: no pass has run on this database | processing=1;")
    );
    site.sync_once().run().await.expect_code(0);
    let well = check(&[]).await;
    well.expect_code(0);
    assert!(
        well.stdout.starts_with("VOICE-SYNC OK: 1 in processing"),
        "{}",
        well.stdout
    );
    assert_eq!(well.stdout.lines().count(), 1, "{}", well.stdout);
    for limit in ["--max-age=1ms", "--max-backlog=0", "--max-silence=1ms"] {
        check(&[limit]).await.expect_code(75);
    }
    let checked = site.run(&["status", "--check", "--max-backlog", "0"]);
    let checked = checked.run().await;
    checked.expect_code(75);
    assert_eq!(checked.report()["exit_code"], 75);
    // Who only looks is not alarmed.
    let looked = json(site.run(&["status", "--max-backlog", "0"])).await;
    assert_eq!(
        (&looked["exit_code"], &looked["needs_attention"]),
        (&json!(0), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_status_values_are_reported_by_pass_daemon_doctor_and_status() {
    let site_with = async |variant, statuses: &[&str]| {
        let site = Site::new(variant).await;
        for (number, status) in statuses.iter().enumerate() {
            let voice = format!("sim-ready-{number}");
            site.app.insert_processing(&[&voice]).await;
            site.app
                .execute(&format!(
                    "UPDATE voices SET status = '{status}' WHERE elevenlabs_voice_id = '{voice}'"
                ))
                .await;
        }
        site
    };
    let findings = async |site: &Site, values: &[&str]| {
        let found = json(site.run(&["doctor"]).args(values)).await;
        let findings = found["findings"].as_array().expect("findings");
        let mut findings = findings.iter();
        let statuses = findings.find(|found| found["check"] == "statuses");
        statuses.expect("is checked").clone()
    };
    for variant in [Variant::B, Variant::E32] {
        for (values, statuses, doubted, voices, code) in [
            ("", &["PROCESSING", "PROCESSING"][..], "PROCESSING", 2, 75),
            ("processing=PROC", &["processing"], "processing", 1, 75),
            // Once a row has the configured value, it may be meant.
            (
                "completed=DONE",
                &["processing", "completed"],
                "completed",
                1,
                0,
            ),
            ("failed=BROKEN", &["processing", "failed"], "failed", 1, 75),
        ] {
            let site = site_with(variant, statuses).await;
            let values: Vec<_> = match values {
                "" => Vec::new(),
                values => vec!["--status-values", values],
            };
            assert_eq!(findings(&site, &values).await["state"], "warning");
            let pass = site.sync_once().env("VOICE_SYNC_LOG_FORMAT", "json");
            let ended = pass.args(&values).run().await;
            ended.expect_code(0);
            let warning = logged(&ended, "status_values_doubtful");
            assert_eq!(
                (&warning["status"], &warning["rows"]),
                (&json!(doubted), &json!(voices))
            );
            let checked = site.run(&["status", "--check"]).args(&values).run().await;
            checked.expect_code(code);
            assert!(
                code == 0 || checked.stdout.contains("--status-values"),
                "{}",
                checked.stdout
            );
            let watching = daemon(&site.app.url, &site.provider.url());
            let mut watching = Daemon::start(watching.args(&values));
            watching.wait_until_said("status_values_doubtful").await;
            watching.stop().await;
        }

        // A status of the application's own is no reason to warn, even if its name is similar.
        let site = site_with(variant, &["processing_upload"]).await;
        let ended = site.sync_once().run().await;
        assert!(
            !ended.stderr.contains("processing_upload"),
            "{}",
            ended.stderr
        );
        let checked = site.run(&["status", "--check"]).run().await;
        checked.expect_code(0);
        let site = site_with(variant, &["archived", "archived", "completed"]).await;
        let ended = site.sync_once().run().await;
        ended.expect_code(0);
        assert!(!ended.stderr.contains("archived"), "{}", ended.stderr);
        let found = findings(&site, &[]).await;
        assert_eq!(found["state"], "ok");
        let says = found["says"].as_str().expect("a text");
        assert!(says.contains("archived (2 rows)"), "{says}");
        let checked = site.run(&["status", "--check"]).run().await;
        checked.expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_voice_name_is_a_usage_error_without_side_effects() {
    for variant in [Variant::A, Variant::E36] {
        let site = Site::new(variant).await;
        site.app.insert_processing(&["sim-ready-1"]).await;
        let named = ["--voice", "sim-ready-1", "typo", "other\u{7}"];
        let ended = site.sync_once().args(&named).run().await;
        ended.expect_code(2);
        assert!(ended.stderr.contains("typo, other"), "{}", ended.stderr);
        assert_eq!(site.app.row("sim-ready-1").await.status, "processing");
        assert_eq!(site.provider.counts(), Counts::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_over_named_voices_does_not_count_as_a_full_pass() {
    let site = Site::new(Variant::A).await;
    site.app
        .insert_processing(&["sim-nopreview-1", "sim-nopreview-2"])
        .await;
    let named = ["--voice", "sim-nopreview-1"];
    site.sync_once().args(&named).run().await.expect_code(0);
    let runs = json(site.run(&["runs"])).await;
    assert_eq!(runs[0]["command"], "sync-once --voice");
    let checked = site.run(&["status", "--check"]).run().await;
    checked.expect_code(75);
    assert!(
        checked.stdout.contains("no pass has run on this database"),
        "{}",
        checked.stdout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_that_finds_only_leased_voices_is_not_recorded() {
    for variant in [Variant::A, Variant::E32] {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-ready-1", "sim-ready-2"])
            .await;
        let store = site.app.store().await;
        let page = store.claim(Uuid::new_v4(), &Selection::all(), 10).await;
        assert_eq!(page.expect("claims").voices.len(), 2);
        let ended = site.sync_once().run().await;
        ended.expect_code(0);
        assert_eq!(ended.count("leased_elsewhere"), 2);
        assert_eq!(json(site.run(&["runs"])).await, json!([]), "{variant:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_only_passes_with_an_effect() {
    let site = Site::new(Variant::E32).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    for _ in 0..3 {
        site.sync_once().run().await.expect_code(0);
    }
    let status = json(site.run(&["status"])).await;
    let runs = status["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(runs[0]["counts"]["completed"], 1);
    assert_eq!(status["attention"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_key_does_not_hide_the_state_of_the_right_key() {
    for variant in [Variant::A, Variant::E32] {
        let site = Site::new(variant).await;
        site.app.insert_processing(&["sim-nopreview-1"]).await;
        site.sync_once().run().await.expect_code(0);
        let wrong = site.sync_once().env("ELEVENLABS_API_KEY", "wrong");
        wrong.run().await;
        let found = |status: Value| status["provider"][0]["last_found_at"].is_string();
        assert!(found(json(site.run(&["status"])).await), "{variant:?}");
        let other = site
            .run(&["status"])
            .env("ELEVENLABS_API_KEY", "never used");
        assert_eq!(
            json(other).await["provider"].as_array().map(Vec::len),
            Some(1)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purged_events_are_not_reported_as_a_second_poller() {
    for variant in [Variant::A, Variant::E36] {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-ready-1", "sim-ready-2"])
            .await;
        site.sync_once().run().await.expect_code(0);
        let purge = site.run(&["outbox", "purge", "--older-than", "0s", "--yes"]);
        purge.run().await.expect_code(0);
        site.app.insert_processing(&["sim-ready-3"]).await;
        site.sync_once().run().await.expect_code(0);
        let poller = async || {
            let found = json(site.run(&["doctor"])).await;
            let found = found["findings"].as_array().expect("findings").clone();
            let poller = found
                .into_iter()
                .find(|found| found["check"] == "second poller");
            poller.expect("is checked")["state"].clone()
        };
        assert_eq!(poller().await, "ok", "{variant:?}");
        // One that there is is still found.
        site.app.insert_processing(&["sim-ready-4"]).await;
        let finish = match variant {
            Variant::A => {
                "UPDATE voices SET status = 'completed', completed_at = now() WHERE status = 'processing'"
            }
            Variant::B | Variant::D | Variant::Pooled | Variant::E32 | Variant::E36 => {
                "UPDATE voices SET status = 'completed', completed_at = datetime('now', '+1 second') WHERE status = 'processing'"
            }
        };
        site.app.execute(finish).await;
        assert_eq!(poller().await, "warning", "{variant:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_aside_voices_are_logged_in_one_line_per_kind_of_reason() {
    let site = Site::new(Variant::A).await;
    let ids = [
        "no id at all",
        "another/../one",
        "sim-longpreview-1",
        "sim-longpreview-2",
    ];
    site.app.insert_processing(&ids).await;
    let ended = site.sync_once().run().await;
    ended.expect_code(0);
    let lines: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| line.contains("set aside;"))
        .collect();
    assert_eq!(lines.len(), 2, "{}", ended.stderr);
}

/// What `inspect` says, as text.
async fn inspected(site: &Site, id: &str) -> String {
    let command = site.run(&["inspect", id]).env("VOICE_SYNC_OUTPUT", "text");
    let ended = command.run().await;
    ended.expect_code(0);
    assert!(
        !ended.stdout.contains('\x1b'),
        "colours in a pipe: {}",
        ended.stdout
    );
    ended.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_shows_the_verdict_and_its_rule() {
    for variant in [Variant::A, Variant::B, Variant::E32] {
        let site = Site::new(variant).await;
        let ids = [
            "sim-ready-1",
            "sim-banned-1",
            "sim-nopreview-1",
            "sim-pvctraining-1",
            "sim-missing-1",
            "sim-longpreview-1",
            "sim-statusfailed-1",
            "no id\u{1b}[2J",
        ];
        site.app.insert_processing(&ids).await;
        for (id, parts) in [
            (
                "sim-ready-1",
                ["completed", "rule 4", "next lookup        now"].as_slice(),
            ),
            ("sim-banned-1", &["failed: banned", "rule 2"]),
            (
                "sim-nopreview-1",
                &["still processing: the provider is preparing it", "rule 4"],
            ),
            (
                "sim-pvctraining-1",
                &["in training", "rule 3", "fine_tuning"],
            ),
            (
                "sim-missing-1",
                &["voice not found", "still processing: missing", "so far: 0"],
            ),
            ("sim-longpreview-1", &["set aside", "3000"]),
            ("sim-statusfailed-1", &["failed: reported", "rule 1"]),
            (ids[7], &["not asked", "no verdict"][..1]),
        ] {
            let said = inspected(&site, id).await;
            for part in parts {
                assert!(
                    said.contains(part),
                    "{variant:?} {id}: {part} is not in\n{said}"
                );
            }
        }
        site.sync_once().run().await.expect_code(0);
        let ready = inspected(&site, &row_id("sim-ready-1").to_string()).await;
        for part in [
            "none: the row is completed",
            "voice.created",
            "published",
            "https://",
        ] {
            assert!(
                ready.contains(part),
                "{variant:?}: {part} is not in\n{ready}"
            );
        }
        let banned = inspected(&site, "sim-banned-1").await;
        for part in [
            "failure            banned",
            "voice.updated",
            "`voice-sync retry`",
        ] {
            assert!(
                banned.contains(part),
                "{variant:?}: {part} is not in\n{banned}"
            );
        }
        let waits = inspected(&site, "sim-nopreview-1").await;
        assert!(
            waits.contains("stage              preparing") && waits.contains("by a daemon"),
            "{waits}"
        );
        let json = json(site.run(&["inspect", "sim-pvctraining-1"])).await;
        assert_eq!(
            json[0]["provider"]["found"]["category"], "professional",
            "{json:#}"
        );
        assert_eq!(json[0]["row"]["notes"]["stage"], "training", "{json:#}");
        assert_eq!(
            json[0]["row"]["row_id"],
            row_id("sim-pvctraining-1").to_string(),
            "{json:#}"
        );
        site.run(&["inspect", "nobody"]).run().await.expect_code(2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_works_without_the_provider() {
    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    let asked = site.provider.counts();
    let offline = json(site.run(&["inspect", "sim-ready-1", "--offline"])).await;
    assert_eq!(offline[0]["provider"], json!({"not_asked": "--offline"}));
    let keyless = json(
        site.run(&["inspect", "sim-ready-1"])
            .without("ELEVENLABS_API_KEY"),
    )
    .await;
    assert!(
        keyless[0]["provider"]["not_asked"].is_string(),
        "{keyless:#}"
    );
    assert_eq!(site.provider.counts().single, asked.single);
    let away = site
        .run(&["inspect", "sim-ready-1"])
        .env("ELEVENLABS_BASE_URL", "http://127.0.0.1:9");
    let away = away.run().await;
    away.expect_code(75);
    let away = away.report();
    assert!(away[0]["provider"]["trouble"].is_string(), "{away:#}");
    assert_eq!(away[0]["verdict"]["outcome"], "none");
    let strict = simulator_with(Options {
        key: Some("the right key".into()),
        ..Options::default()
    })
    .await;
    let refused = site.run(&["inspect", "sim-ready-1"]);
    let refused = refused.env("ELEVENLABS_BASE_URL", strict.url()).run().await;
    refused.expect_code(77);
}

/// The signature in the query of a preview's URL gives access to the preview.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_of_preview_urls_are_hidden() {
    let site = Site::new(Variant::E36).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    site.sync_once().run().await.expect_code(0);
    site.app
        .execute("UPDATE voices SET preview_url = 'https://storage/v.mp3?sig=s3cret'")
        .await;
    for words in [
        &["inspect", "sim-ready-1"][..],
        &["inspect", "sim-ready-1", "--output=text"],
        &["list", "--status=completed"],
        &["list", "--status=completed", "--output=text"],
    ] {
        let shown = site.run(words).run().await;
        shown.expect_code(0);
        assert!(
            !shown.stdout.contains("s3cret"),
            "{words:?}: {}",
            shown.stdout
        );
    }
    let shown = json(site.run(&["inspect", "sim-ready-1"])).await;
    assert_eq!(shown[0]["row"]["preview_url"], "https://storage/v.mp3?…");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_puts_failed_voices_back_to_processing() {
    for variant in ALL {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&[
                "sim-banned-1",
                "sim-pvcfailed-1",
                "sim-ready-1",
                "sim-nopreview-1",
            ])
            .await;
        site.app
            .insert(&[NewVoice {
                status: "failed",
                ..NewVoice::processing("no id")
            }])
            .await;
        site.sync_once().run().await.expect_code(0);
        let failed = async || {
            site.app
                .number("SELECT count(*) FROM voices WHERE CAST(status AS text) = 'failed'")
                .await
        };
        assert_eq!(failed().await, 3, "{variant:?}");

        let dry = json(site.run(&["retry", "--all-failed", "--dry-run"])).await;
        assert_eq!(
            dry["put_back"].as_array().map(Vec::len),
            Some(2),
            "{variant:?}: {dry}"
        );
        assert_eq!(
            dry["left"].as_array().map(Vec::len),
            Some(1),
            "{variant:?}: {dry}"
        );
        assert_eq!(failed().await, 3, "{variant:?}");

        let one = row_id("sim-banned-1").to_string();
        let named = site.run(&["retry", &one, "sim-ready-1"]).run().await;
        named.expect_code(2);
        let named = named.report();
        assert_eq!(named["put_back"], json!([one]), "{variant:?}: {named}");
        assert_eq!(
            named["left"][0]["reason"], "it is completed",
            "{variant:?}: {named}"
        );
        let all = json(site.run(&["retry", "--all-failed", "--yes"])).await;
        let other = row_id("sim-pvcfailed-1").to_string();
        assert_eq!(all["put_back"], json!([other]), "{variant:?}: {all}");
        assert_eq!(failed().await, 1, "{variant:?}");

        let runs = json(site.run(&["runs"])).await;
        assert_eq!(runs[0]["command"], "retry", "{variant:?}: {runs}");
        assert_eq!(runs[0]["counts"], json!({"put_back": 1}));
        assert_eq!(runs[2]["command"], Value::Null, "{variant:?}: {runs}");

        let again = site.sync_once().run().await;
        assert_eq!(
            (again.count("due"), again.count("failed")),
            (3, 2),
            "{variant:?}: {}",
            again.stdout
        );
        let nothing = site.run(&["retry", "sim-ready-1", "nobody"]).run().await;
        nothing.expect_code(2);
        assert_eq!(
            nothing.report()["left"].as_array().map(Vec::len),
            Some(2),
            "{variant:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_skips_a_voice_that_the_application_changed_meanwhile() {
    let site = Site::new(Variant::A).await;
    let store = site.app.store().await;
    site.app
        .insert_processing(&["sim-banned-1", "sim-banned-2"])
        .await;
    site.sync_once().run().await.expect_code(0);
    let wanted = Wanted::Listed(VoiceFilter::Failed, None);
    let records = store.records(&wanted, 10).await.expect("reads");
    site.app
        .execute("UPDATE voices SET elevenlabs_voice_id = 'other' WHERE name = 'sim-banned-1'")
        .await;
    let run = CommandRun::begin("retry");
    let moved = store.put_back(&run, &records).await.expect("puts back");
    assert_eq!(moved.len(), 1);
    // As after a lost reply.
    assert_eq!(
        store.put_back(&run, &records).await.expect("puts back"),
        moved
    );
    assert_eq!(
        store
            .put_back(&CommandRun::begin("retry"), &records)
            .await
            .expect("puts back")
            .len(),
        0
    );
    assert_eq!(site.app.row("other").await.status, "failed");
    assert_eq!(site.app.row("sim-banned-2").await.status, "processing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_releases_voices_that_were_set_aside() {
    for variant in ALL {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-longpreview-1", "sim-nulpreview-1", "sim-nopreview-1"])
            .await;
        for _ in 0..3 {
            site.sync_once().run().await.expect_code(0);
        }
        let set_aside = site.sync_once().run().await;
        assert_eq!(set_aside.count("due"), 1, "{variant:?}");
        let dry = json(site.run(&["retry", "--set-aside", "--dry-run"])).await;
        assert_eq!(
            dry["released"].as_array().map(Vec::len),
            Some(2),
            "{variant:?}: {dry}"
        );
        let told = site.run(&["retry", "--set-aside", "--dry-run"]);
        let told = told.env("VOICE_SYNC_OUTPUT", "text").run().await;
        let listed = format!(
            "  {}: the preview_url has 3000",
            row_id("sim-longpreview-1")
        );
        assert!(
            told.stdout.contains(&listed),
            "{variant:?}: {}",
            told.stdout
        );
        let one = json(site.run(&["retry", "sim-longpreview-1"])).await;
        assert_eq!(
            one["released"].as_array().map(Vec::len),
            Some(1),
            "{variant:?}: {one}"
        );
        let rest = json(site.run(&["retry", "--set-aside", "--yes"])).await;
        assert_eq!(
            rest["released"].as_array().map(Vec::len),
            Some(1),
            "{variant:?}: {rest}"
        );
        assert_eq!(site.sync_once().run().await.count("due"), 3, "{variant:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_handles_more_voices_than_a_page() {
    for variant in [Variant::A, Variant::E32] {
        let site = Site::new(variant).await;
        let voices: Vec<_> = (0..1201)
            .map(|number| NewVoice {
                status: "failed",
                ..NewVoice::processing(format!("sim-ready-{number}"))
            })
            .collect();
        site.app.insert(&voices).await;
        let dry = json(site.run(&["retry", "--all-failed", "--dry-run"])).await;
        assert_eq!(
            dry["put_back"].as_array().map(Vec::len),
            Some(1201),
            "{variant:?}"
        );
        let all = json(site.run(&["retry", "--all-failed", "--yes"])).await;
        assert_eq!(
            all["put_back"].as_array().map(Vec::len),
            Some(1201),
            "{variant:?}"
        );
        assert_eq!(
            site.sync_once().run().await.count("completed"),
            1201,
            "{variant:?}"
        );
    }
}

fn ids(events: &Value) -> Vec<&str> {
    let events = events.as_array().expect("a list");
    events
        .iter()
        .filter_map(|event| event["event_id"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbox_events_can_be_listed_resent_and_purged() {
    for variant in ALL {
        let site = Site::new(variant).await;
        site.app
            .insert_processing(&["sim-ready-1", "sim-banned-1"])
            .await;
        // The bus is away: they are recorded, and wait.
        let away = site.sync_once().env("REDIS_URL", "redis://127.0.0.1:9");
        away.run().await.expect_code(75);
        let waiting = json(site.run(&["outbox", "list"])).await;
        assert_eq!(ids(&waiting).len(), 2, "{variant:?}: {waiting}");
        let status = json(site.run(&["status"])).await;
        assert_eq!(status["outbox"]["pending"], 2, "{variant:?}");
        assert_eq!(
            status["outbox"]["failing_buses"][0]["failures"], 1,
            "{variant:?}"
        );

        site.sync_once().run().await.expect_code(0);
        assert_eq!(
            json(site.run(&["outbox", "list"])).await,
            json!([]),
            "{variant:?}"
        );
        let published = json(site.run(&["outbox", "list", "--published", "--since", "1h"])).await;
        assert_eq!(ids(&published), ids(&waiting), "{variant:?}");
        let voice = row_id("sim-ready-1").to_string();
        let of_voice = json(site.run(&["outbox", "list", "--all", "sim-ready-1"])).await;
        assert_eq!(
            of_voice[0]["event_type"], "voice.created",
            "{variant:?}: {of_voice}"
        );
        assert_eq!(ids(&of_voice).len(), 1, "{variant:?}");

        let resent = site.run(&["outbox", "resend", &voice.to_uppercase()]);
        let resent = json(resent).await;
        assert_eq!(resent["resent"], 1, "{variant:?}");
        assert_eq!(
            site.sync_once().run().await.count("events_published"),
            1,
            "{variant:?}"
        );
        let seen = site.bus.events("voice.created").await;
        let [first, second] = seen.as_slice() else {
            panic!("{variant:?}: {seen:?}")
        };
        assert_eq!(first, second, "{variant:?}: the same event, byte for byte");

        assert_eq!(
            json(site.run(&["outbox", "purge", "--older-than", "1h", "--yes"])).await["purged"],
            0
        );
        let newer = site.run(&["outbox", "purge", &voice, "--older-than", "1h", "--yes"]);
        let newer = newer.run().await;
        newer.expect_code(2);
        assert_eq!(
            newer.report()["left"][0]["reason"],
            "the age of its event is not the one that was asked for",
            "{variant:?}"
        );
        assert_eq!(
            json(site.run(&["outbox", "purge", "--pending", "--yes"])).await["purged"],
            0
        );
        assert_eq!(
            json(site.run(&["outbox", "purge", "--yes"])).await["purged"],
            2,
            "{variant:?}"
        );
        assert_eq!(
            json(site.run(&["outbox", "list", "--all"])).await,
            json!([]),
            "{variant:?}"
        );
        let runs = json(site.run(&["runs"])).await;
        let commands = runs
            .as_array()
            .expect("a list")
            .iter()
            .map(|run| &run["command"]);
        let resends = commands.filter(|command| *command == "outbox resend");
        assert_eq!(resends.count(), 1, "{variant:?}: {runs}");
        site.run(&["outbox", "resend"]).run().await.expect_code(2);
        let typo = site.run(&["outbox", "resend", "typo", &voice]).run().await;
        typo.expect_code(2);
        assert_eq!(
            typo.report()["left"],
            json!([{"id": "typo", "reason": "no event, row or provider id is this"},
                   {"id": voice, "reason": "no event is kept for it; `voice-sync outbox record` records one"}]),
            "{variant:?}"
        );
        assert_eq!(
            json(site.run(&["runs"])).await,
            runs,
            "{variant:?}: nothing was done"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purge_keeps_an_event_that_is_being_published() {
    let site = Site::new(Variant::A).await;
    site.app.insert_processing(&["sim-ready-1"]).await;
    site.sync_once()
        .env("REDIS_URL", "redis://127.0.0.1:9")
        .run()
        .await
        .expect_code(75);
    let batches = site.app.own("batches");
    site.app
        .execute(&format!(
            "UPDATE {batches} SET leased_until = now() + interval '1 minute'"
        ))
        .await;
    assert_eq!(
        json(site.run(&["outbox", "purge", "--pending", "--yes"])).await["purged"],
        0
    );
    site.app
        .execute(&format!("UPDATE {batches} SET leased_until = NULL"))
        .await;
    assert_eq!(
        json(site.run(&["outbox", "purge", "--pending", "--yes"])).await["purged"],
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_printed_in_one_line_each() {
    let site = Site::new(Variant::E36).await;
    let runs = |site: &Site| site.run(&["runs"]).env("VOICE_SYNC_OUTPUT", "text").run();
    assert_eq!(runs(&site).await.stdout, "no pass was made yet\n");
    site.app
        .insert_processing(&["sim-ready-1", "sim-nopreview-1"])
        .await;
    site.sync_once().run().await.expect_code(0);
    let told: Ended = runs(&site).await;
    assert!(
        told.stdout
            .contains("2 due: 1 completed, 1 processing; 1 request"),
        "{}",
        told.stdout
    );
    assert_eq!(told.stdout.lines().count(), 2, "{}", told.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_handles_more_than_600_ids() {
    for variant in [Variant::A, Variant::E36] {
        let site = Site::new(variant).await;
        let ids: Vec<_> = (0..601)
            .map(|number| format!("sim-ready-{number}"))
            .collect();
        let voices: Vec<_> = ids
            .iter()
            .map(|id| NewVoice {
                status: "failed",
                ..NewVoice::processing(id)
            })
            .collect();
        site.app.insert(&voices).await;
        // Half by their rows.
        let rows: Vec<_> = ids
            .iter()
            .take(300)
            .map(|id| row_id(id).to_string())
            .collect();
        let names = rows.iter().chain(&ids[300..]).map(String::as_str);
        let names: Vec<&str> = names.collect();
        let retried = json(site.run(&["retry"]).args(&names)).await;
        assert_eq!(
            retried["put_back"].as_array().map(Vec::len),
            Some(601),
            "{variant:?}"
        );
        assert_eq!(retried["left"], json!([]), "{variant:?}");
        let runs = json(site.run(&["runs"])).await;
        assert_eq!(
            runs[0]["counts"],
            json!({"put_back": 601}),
            "{variant:?}: one entry for all"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_skips_a_locked_row() {
    let site = Site::new(Variant::A).await;
    site.app
        .insert_processing(&["sim-banned-1", "sim-banned-2"])
        .await;
    site.sync_once().run().await.expect_code(0);
    let Pool::Postgres(pool) = &site.app.pool else {
        unreachable!("it is PostgreSQL");
    };
    let mut application = pool.begin().await.expect("begins");
    sqlx::query("UPDATE voices SET name = name WHERE elevenlabs_voice_id = 'sim-banned-1'")
        .execute(&mut *application)
        .await
        .expect("locks");
    let retried = json(site.run(&["retry", "--all-failed", "--yes"])).await;
    let [locked, free] = ["sim-banned-1", "sim-banned-2"].map(|id| row_id(id).to_string());
    assert_eq!(retried["put_back"], json!([free]));
    assert_eq!(retried["left"][0]["id"], json!(locked));
    application.rollback().await.expect("ends");
    assert_eq!(site.app.row("sim-banned-1").await.status, "failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusual_rows_do_not_hide_the_others() {
    const ODD: &str = "
        CREATE TABLE voices (id uuid, user_id uuid, elevenlabs_voice_id text, name text, status text,
                             preview_url text, created_at timestamptz, completed_at timestamptz);
        INSERT INTO voices VALUES
            (NULL, NULL, 'sim-ready-1', '', 'processing', NULL, now(), NULL),
            (gen_random_uuid(), NULL, NULL, '', 'processing', NULL, '290000-01-01', NULL),
            (gen_random_uuid(), NULL, 'sim-ready-2', '', 'processing', NULL, '-infinity', 'infinity'),
            (gen_random_uuid(), NULL, 'sim-ready-3', '', NULL, NULL, NULL, '4000-01-01 BC');";
    let site = Site::on(App::postgres(Variant::A, ODD).await).await;
    let status = json(site.run(&["status"])).await;
    assert_eq!(status["backlog"]["processing"], 2, "{status:#}");
    for id in ["sim-ready-1", "sim-ready-2", "sim-ready-3"] {
        let ended = site.run(&["inspect", id, "--offline"]).run().await;
        ended.expect_code(if id == "sim-ready-1" { 2 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_watch_detects_newly_created_own_tables() {
    let app = App::new(Variant::E36).await;
    app.insert_processing(&["sim-nopreview-1"]).await;
    let watch = VoiceSync::new(&["status", "--watch=100ms"]).env("DATABASE_URL", &app.url);
    let mut child = watch.start();
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a line").expect("reads");
    assert!(
        first.contains("no pass has run on this database"),
        "{first}"
    );
    let site = Site::on(app).await;
    site.sync_once().run().await.expect_code(0);
    let seen = lines
        .by_ref()
        .any(|line| line.expect("reads").contains(r#""due":1"#));
    assert!(seen);
    // Nobody reads any more.
    drop(lines);
    let ended = end(child).await;
    ended.expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_filters_by_status_problem_and_age() {
    for variant in [Variant::A, Variant::D, Variant::E36] {
        let site = Site::new(variant).await;
        let many: Vec<_> = (0..1_001).map(|n| format!("sim-nopreview-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        site.app.insert_processing(&many).await;
        let odd = [
            "sim-banned-1",
            "sim-missing-1",
            "sim-longpreview-1",
            "sim-ready-1",
        ];
        site.app.insert_processing(&odd).await;
        // Skipped after the third time.
        for _ in 0..3 {
            site.sync_once().run().await.expect_code(0);
        }
        let list = async |words: &[&str]| {
            let listed = json(site.run(&["list"]).args(words)).await;
            let listed = listed.as_array().expect("a list").clone();
            let id = |voice: &Value| voice["provider_id"].as_str().expect("an id").to_owned();
            listed.iter().map(id).collect::<BTreeSet<_>>()
        };
        let processing = list(&[]).await;
        let expected = many.iter().chain(&["sim-missing-1", "sim-longpreview-1"]);
        assert_eq!(
            processing,
            expected.map(|id| (*id).to_owned()).collect(),
            "{variant:?}"
        );
        let one = |id: &str| BTreeSet::from([id.to_owned()]);
        assert_eq!(list(&["--failed"]).await, one("sim-banned-1"));
        assert_eq!(list(&["--status", "failed"]).await, one("sim-banned-1"));
        assert_eq!(list(&["--status", "completed"]).await, one("sim-ready-1"));
        assert_eq!(list(&["--missing"]).await, one("sim-missing-1"));
        assert_eq!(list(&["--set-aside"]).await, one("sim-longpreview-1"));
        assert_eq!(list(&["--unanswerable"]).await, BTreeSet::new());
        assert_eq!(list(&["--older-than", "1h"]).await, BTreeSet::new());
        site.app.age_application(7200).await;
        assert_eq!(
            list(&["--older-than", "1h", "--missing"]).await,
            one("sim-missing-1")
        );

        let text = site
            .run(&["list", "--failed"])
            .env("VOICE_SYNC_OUTPUT", "text")
            .run()
            .await;
        text.expect_code(0);
        assert_eq!(text.stdout.lines().count(), 2);
        assert!(
            text.stdout.starts_with("ROW ID ")
                && text.stdout.contains("sim-banned-1")
                && text.stdout.ends_with("banned\n"),
            "{}",
            text.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fail_records_an_event_and_can_be_undone_by_retry() {
    for variant in [Variant::A, Variant::B, Variant::E36] {
        let site = Site::new(variant).await;
        let ids = [
            "sim-nopreview-1",
            "an id/that is none",
            "sim-nopreview-2",
            "sim-ready-1",
        ];
        site.app.insert_processing(&ids).await;
        site.sync_once().run().await;
        let fail = |words: &[&str]| {
            site.run(&["fail", "--reason", "gone\u{7} for good"])
                .args(words)
        };
        let dry = json(fail(&["--dry-run", ids[0]])).await;
        assert_eq!(dry["failed"].as_array().map(Vec::len), Some(1));
        assert_eq!(site.app.row(ids[0]).await.status, "processing");

        let by_row = row_id(ids[1]).to_string();
        let failed = fail(&[ids[0], &by_row, "sim-ready-1", "nobody"])
            .run()
            .await;
        failed.expect_code(2);
        let failed = failed.report();
        assert_eq!(
            failed["failed"].as_array().map(Vec::len),
            Some(2),
            "{failed}"
        );
        assert_eq!(failed["left"].as_array().map(Vec::len), Some(2), "{failed}");
        for (id, status) in ids
            .into_iter()
            .zip(["failed", "failed", "processing", "completed"])
        {
            assert_eq!(site.app.row(id).await.status, status, "{variant:?} {id}");
        }
        let runs = json(site.run(&["runs"])).await;
        assert_eq!(
            (&runs[0]["command"], &runs[0]["counts"]),
            (&json!("fail"), &json!({"failed": 2}))
        );
        let shown = inspected(&site, ids[0]).await;
        assert!(shown.contains("for good"), "{shown}");

        // Nothing is failed twice, and the events come with the next pass.
        fail(&[ids[0]]).run().await.expect_code(2);
        site.sync_once().run().await.expect_code(0);
        assert_eq!(
            site.bus.events("voice.updated").await.len(),
            2,
            "{variant:?}"
        );
        let back = json(site.run(&["retry", ids[0]])).await;
        assert_eq!(back["put_back"].as_array().map(Vec::len), Some(1));
        assert_eq!(site.app.row(ids[0]).await.status, "processing");
    }
    let missing = VoiceSync::new(&["fail", "an-id"]).run().await;
    missing.expect_code(2);
    VoiceSync::new(&["fail", "an-id", "--reason", " "])
        .run()
        .await
        .expect_code(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_events_can_be_recorded_afterwards() {
    for variant in [Variant::A, Variant::B, Variant::E36] {
        let site = Site::new(variant).await;
        let ids = [
            "sim-ready-1",
            "sim-ready-2",
            "sim-banned-1",
            "sim-nopreview-1",
        ];
        site.app.insert_processing(&ids).await;
        let without = site
            .sync_once()
            .without("REDIS_URL")
            .args(&["--events", "none"]);
        without.run().await.expect_code(0);
        let record = |words: &[&str]| site.run(&["outbox", "record"]).args(words);
        assert_eq!(
            json(record(&["--dry-run", "sim-ready-1"])).await["recorded"],
            1
        );
        assert_eq!(json(record(&["sim-ready-1"])).await["recorded"], 1);
        // Once, and of finished voices only.
        let left = record(&["sim-ready-1", "sim-nopreview-1", "nobody"])
            .run()
            .await;
        left.expect_code(2);
        let left = left.report();
        assert_eq!(left["recorded"], 0, "{left}");
        let reasons: BTreeSet<_> = left["left"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|left| left["reason"].as_str().expect("a text"))
            .collect();
        let expected = [
            "its event is recorded already; `voice-sync outbox resend` publishes it again",
            "it is in processing",
            "no row has this as its id or provider id",
        ];
        assert_eq!(reasons, BTreeSet::from(expected), "{variant:?}");
        record(&["--since", "1h"]).run().await.expect_code(2);
        assert_eq!(
            json(record(&["--since", "1h", "--yes"])).await["recorded"],
            2
        );
        assert_eq!(
            json(record(&["--since", "1h", "--yes"])).await["recorded"],
            0
        );
        let nowhere = record(&["sim-ready-1"]).without("REDIS_URL");
        nowhere.run().await.expect_code(2);

        let published = site.sync_once().run().await;
        published.expect_code(0);
        assert_eq!(published.count("events_published"), 3, "{variant:?}");
        let created = site.bus.events("voice.created").await;
        let rows: BTreeSet<_> = ["sim-ready-1", "sim-ready-2"]
            .map(|id| row_id(id).to_string())
            .into();
        let of = |event: &Value| {
            event["payload"]["voice_id"]
                .as_str()
                .expect("an id")
                .to_owned()
        };
        assert_eq!(
            created.iter().map(of).collect::<BTreeSet<_>>(),
            rows,
            "{variant:?}"
        );
        assert_eq!(site.bus.events("voice.updated").await.len(), 1);
    }
}
