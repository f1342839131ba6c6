//! `sync-once`, end to end: the built binary, a database, the simulator and Redis.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use voice_sync_simulator::{Answer, Options, Outage};

use crate::support::app::{App, NewVoice, Pool, Row, Variant, row_id, user_id};
use crate::support::binary::{KEY, VoiceSync, end, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::{FATES, Outcome, is_listed, outcome, simulator, simulator_with, tally};

/// Ids of every fate in turn, without those named.
pub(crate) fn mixed(n: usize, without: &[&str]) -> Vec<String> {
    let words: Vec<_> = FATES
        .iter()
        .map(|(word, ..)| *word)
        .filter(|w| !without.contains(w))
        .collect();
    (0..n)
        .map(|i| format!("sim-{}-{i:05}", words[i % words.len()]))
        .collect()
}

async fn app_with(variant: Variant, ids: &[String]) -> App {
    let app = App::new(variant).await;
    app.insert(&ids.iter().map(NewVoice::processing).collect::<Vec<_>>())
        .await;
    app
}

/// Makes PostgreSQL's own tables, as a deployment does once; SQLite's make themselves.
async fn migrate(app: &App) {
    if matches!(app.pool, Pool::Postgres(_)) {
        VoiceSync::new(&["migrate"])
            .env("DATABASE_URL", &app.url)
            .run()
            .await
            .expect_code(0);
    }
}

#[track_caller]
fn check_row(provider_id: &str, row: &Row) {
    let status = match outcome(provider_id) {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Processing | Outcome::Missing | Outcome::SetAside | Outcome::Unavailable => {
            "processing"
        }
    };
    assert_eq!(row.status, status, "{provider_id}");
    let preview = format!("https://storage.example.com/previews/{provider_id}.mp3");
    let expected = (outcome(provider_id) == Outcome::Completed).then_some(preview);
    assert_eq!(row.preview_url, expected, "{provider_id}");
    assert_eq!(
        row.completed_at.is_some(),
        status == "completed",
        "{provider_id}"
    );
}

/// Everything that issue and README promise of a pass, for `n` voices of all fates.
pub(crate) async fn every_voice_gets_what_its_fate_says(variant: Variant, n: usize) {
    let ids = mixed(n, &["malformed"]);
    let app = app_with(variant, &ids).await;
    migrate(&app).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    let command = || {
        sync_once(&app.url, &provider.url())
            .publishing_to(&bus)
            .env("VOICE_SYNC_EVENT_MAXLEN", "100000")
    };
    let first = command().run().await;
    first.expect_code(0);

    let rows = app.rows().await;
    assert_eq!(rows.len(), n);
    for (id, row) in &rows {
        check_row(id, row);
    }
    let expected = tally(&ids);
    let of = |outcome| expected.get(&outcome).copied().unwrap_or_default();
    for (field, count) in [
        ("due", n as u64),
        ("looked_up", n as u64),
        ("completed", of(Outcome::Completed)),
        ("failed", of(Outcome::Failed)),
        ("processing", of(Outcome::Processing)),
        ("missing", of(Outcome::Missing)),
        ("set_aside", of(Outcome::SetAside)),
        ("unavailable", 0),
        ("superseded", 0),
        ("retries", 0),
        (
            "events_recorded",
            of(Outcome::Completed) + of(Outcome::Failed),
        ),
        (
            "events_published",
            of(Outcome::Completed) + of(Outcome::Failed),
        ),
        ("events_pending", 0),
        ("exit_code", 0),
    ] {
        assert_eq!(first.count(field), count, "{field} in {}", first.stdout);
    }

    let unlisted = ids.iter().filter(|id| !is_listed(id)).count() as u64;
    let (lists, singles) = (provider.counts().list, provider.counts().single);
    assert_eq!(
        (lists, singles),
        (n.div_ceil(100) as u64, unlisted),
        "requests"
    );
    assert_eq!(first.count("requests"), lists + singles);

    let created = bus.events("voice.created").await;
    let updated = bus.events("voice.updated").await;
    check_events(&created, "voice.created", &ids, Outcome::Completed);
    check_events(&updated, "voice.updated", &ids, Outcome::Failed);

    let second = command().run().await;
    second.expect_code(0);
    assert_eq!(app.rows().await, rows, "a second run changes nothing");
    assert_eq!((second.count("completed"), second.count("failed")), (0, 0));
    assert_eq!(
        bus.events("voice.created").await.len(),
        created.len(),
        "and publishes nothing"
    );
    assert_eq!(bus.events("voice.updated").await.len(), updated.len());
}

fn check_events(events: &[Value], event_type: &str, ids: &[String], of: Outcome) {
    let told: BTreeSet<_> = events
        .iter()
        .map(|event| {
            event["payload"]["voice_id"]
                .as_str()
                .expect("an id")
                .to_owned()
        })
        .collect();
    let moved: Vec<_> = ids.iter().filter(|id| outcome(id) == of).collect();
    assert_eq!(
        told,
        moved.iter().map(|id| row_id(id).to_string()).collect(),
        "{event_type}"
    );
    assert_eq!(
        events.len(),
        moved.len(),
        "one {event_type} for each transition"
    );
    let users: BTreeSet<_> = moved.iter().map(|id| user_id(id).to_string()).collect();
    for event in events {
        assert_eq!(event["type"], event_type);
        assert!(users.contains(event["payload"]["user_id"].as_str().expect("a user")));
    }
}

macro_rules! on_variants {
    ($($name:ident: $variant:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                every_voice_gets_what_its_fate_says(Variant::$variant, 320).await;
            }
        )+
    };
}

on_variants!(
    mixed_fates_on_variant_a: A,
    mixed_fates_on_variant_b: B,
    mixed_fates_on_variant_d: D,
    mixed_fates_behind_pgbouncer: Pooled,
    mixed_fates_on_variant_e_with_32_characters: E32,
    mixed_fates_on_variant_e_with_36_characters: E36
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_10000_voices_of_all_fates_on_postgresql() {
    every_voice_gets_what_its_fate_says(Variant::A, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_10000_voices_of_all_fates_on_sqlite() {
    every_voice_gets_what_its_fate_says(Variant::E32, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_on_sqlite_changes_no_byte() {
    let ids = mixed(150, &["malformed"]);
    let app = app_with(Variant::E32, &ids).await;
    let Pool::Sqlite(pool) = &app.pool else {
        unreachable!("E is SQLite")
    };
    app.execute("PRAGMA journal_mode = DELETE").await;
    pool.close().await;
    let directory = app.directory().to_owned();
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&directory)
            .expect("the directory is read")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.clone(), fs::read(path).expect("the file is read")))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let (provider, bus) = (simulator().await, Bus::new().await);
    let ended = sync_once(&app.url, &provider.url())
        .publishing_to(&bus)
        .arg("--dry-run")
        .run()
        .await;
    ended.expect_code(0);
    assert!(files() == before, "a byte changed");
    let expected = tally(&ids);
    assert_eq!(ended.count("completed"), expected[&Outcome::Completed]);
    assert_eq!(ended.count("failed"), expected[&Outcome::Failed]);
    assert_eq!(ended.report()["dry_run"], true);
    assert!(
        ended.stderr.contains("would be completed"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("is completed"), "{}", ended.stderr);
    assert_eq!(ended.count("events_recorded"), 0);
    assert!(bus.events("voice.created").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_on_postgresql_needs_no_own_tables_and_writes_nothing() {
    let ids = mixed(150, &["malformed"]);
    let app = app_with(Variant::A, &ids).await;
    let before = app.rows().await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url())
        .arg("--dry-run")
        .run()
        .await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), tally(&ids)[&Outcome::Completed]);
    assert_eq!(app.rows().await, before);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'voice_sync'";
    assert_eq!(app.number(schemas).await, 0);
    assert_eq!(
        app.number("SELECT sum(n_tup_upd)::bigint FROM pg_stat_user_tables")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_with_a_limit_cover_all_voices_in_turn() {
    let ids: Vec<String> = (0..25).map(|n| format!("sim-pvctraining-{n}")).collect();
    let app = app_with(Variant::E36, &ids).await;
    let provider = simulator().await;
    for round in 1..=3 {
        let ended = sync_once(&app.url, &provider.url())
            .args(&["--limit", "10"])
            .run()
            .await;
        ended.expect_code(0);
        assert_eq!(ended.count("due"), 10, "round {round}");
    }
    let asked: BTreeSet<_> = provider
        .requests()
        .into_iter()
        .flat_map(|request| request.voice_ids)
        .collect();
    assert_eq!(asked.len(), 25, "nobody is left out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_named_voices_are_looked_up() {
    let ids: Vec<String> = (0..5).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    let by_row = row_id("sim-ready-3").to_string();
    let ended = sync_once(&app.url, &provider.url())
        .args(&["--voice", "sim-ready-1", &by_row])
        .run()
        .await;
    ended.expect_code(0);
    let completed: Vec<_> = app
        .rows()
        .await
        .into_iter()
        .filter(|(_, row)| row.status == "completed")
        .map(|(id, _)| id)
        .collect();
    assert_eq!(completed, ["sim-ready-1", "sim-ready-3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voice_named_by_row_and_provider_id_is_looked_up_once() {
    for variant in [Variant::A, Variant::E32] {
        // So many names that they take two statements.
        let ids: Vec<String> = (0..600).map(|n| format!("sim-pvctraining-{n}")).collect();
        let app = app_with(variant, &ids).await;
        migrate(&app).await;
        let provider = simulator().await;
        let rows = ids.iter().map(|id| row_id(id).to_string());
        let names = rows.chain(ids.iter().cloned());
        let options = names.flat_map(|name| ["--voice".to_owned(), name]);
        let options: Vec<String> = options.collect();
        let ended = sync_once(&app.url, &provider.url())
            .args(&options.iter().map(String::as_str).collect::<Vec<_>>())
            .run()
            .await;
        ended.expect_code(0);
        assert_eq!((ended.count("due"), ended.count("processing")), (600, 600));
        assert_eq!(provider.counts().list, 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completion_times_are_recorded_by_kind_of_voice() {
    let ids = ["sim-ready-1", "sim-ready-2", "sim-pvcready-1"].map(str::to_owned);
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 3);
    let store = app.store().await;
    let times = store.completion_times_by_kind().await.expect("reads");
    let counts: Vec<_> = times
        .iter()
        .map(|(kind, times)| (kind.as_str(), times.count()))
        .collect();
    assert_eq!(counts, [("cloned", 2), ("professional", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_run_continues_after_the_time_limit() {
    let ids: Vec<String> = (0..60).map(|n| format!("sim-pvctraining-{n}")).collect();
    let app = app_with(Variant::E36, &ids).await;
    let provider = simulator_with(Options {
        latency: Duration::from_millis(25),
        ..Options::default()
    })
    .await;
    let mut runs = 0;
    let mut asked = BTreeSet::new();
    while asked.len() < ids.len() {
        let ended = sync_once(&app.url, &provider.url())
            .args(&[
                "--lookup",
                "single",
                "--concurrency",
                "1",
                "--max-runtime",
                "400ms",
            ])
            .run()
            .await;
        ended.expect_code(75);
        assert_eq!(ended.count("due"), 60);
        assert_eq!(ended.count("looked_up") + ended.count("unavailable"), 60);
        let answered = provider
            .requests()
            .into_iter()
            .filter(|request| request.status == Some(200));
        asked.extend(answered.flat_map(|request| request.voice_ids));
        runs += 1;
        assert!(
            runs < 300,
            "rows at the end are never reached: {}",
            asked.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_key_changes_no_row() {
    let ids = mixed(300, &[]);
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator_with(Options {
        key: Some("another".into()),
        ..Options::default()
    })
    .await;
    let before = app.rows().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(77);
    assert_eq!(app.rows().await, before);
    assert_eq!(ended.count("due"), 300);
    assert_eq!(ended.count("unavailable"), 300);
    assert!(ended.stderr.contains("invalid_api_key"), "{}", ended.stderr);
    assert!(
        ended.count("requests") <= 4,
        "no more than were in flight: {}",
        ended.count("requests")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_of_another_workspace_changes_no_row() {
    let ids: Vec<String> = (0..500).map(|n| format!("unknown{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    let before = app.rows().await;
    let ended = sync_once(&app.url, &provider.url())
        .args(&["--missing-after", "0s"])
        .run()
        .await;
    ended.expect_code(77);
    assert_eq!(app.rows().await, before);
    assert!(
        ended.stderr.contains("another workspace"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_voice_fails_once_its_absence_is_confirmed() {
    let mut ids: Vec<String> = (0..60).map(|n| format!("sim-pvctraining-{n}")).collect();
    ids.push("gone".into());
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    for round in 1..=3 {
        let ended = sync_once(&app.url, &provider.url()).run().await;
        ended.expect_code(0);
        assert_eq!(ended.count("missing"), 1, "round {round}");
        assert_eq!(app.row("gone").await.status, "processing");
        app.age_own_tables(5 * 60).await;
    }
    let ended = sync_once(&app.url, &provider.url()).run().await;
    assert_eq!(
        (ended.count("missing"), ended.count("failed")),
        (0, 1),
        "{}",
        ended.stdout
    );
    assert_eq!(app.row("gone").await.status, "failed");
    assert!(ended.stderr.contains("missing"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_voice_fails_at_once_with_missing_after_zero() {
    let app = app_with(Variant::D, &["sim-ready-1".to_owned(), "gone".to_owned()]).await;
    migrate(&app).await;
    let provider = simulator().await;
    let command = || sync_once(&app.url, &provider.url()).args(&["--missing-after", "0s"]);
    let dry = command().arg("--dry-run").run().await;
    assert_eq!(
        (dry.count("missing"), dry.count("failed")),
        (0, 1),
        "{}",
        dry.stdout
    );
    let ended = command().run().await;
    assert_eq!(
        (
            ended.count("missing"),
            ended.count("failed"),
            ended.count("completed")
        ),
        (0, 1, 1)
    );
    assert_eq!(app.row("gone").await.status, "failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_fails_no_voice_of_any_age() {
    let ids: Vec<String> = (0..3000).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    app.execute("UPDATE voices SET created_at = '2020-01-01 00:00:00.000000'")
        .await;
    let outage = Outage {
        start: Duration::ZERO,
        length: Duration::from_secs(3600),
    };
    let provider = simulator_with(Options {
        outages: vec![outage],
        ..Options::default()
    })
    .await;
    let before = app.rows().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(75);
    assert_eq!(app.rows().await, before);
    assert_eq!(ended.count("unavailable"), 3000);
    assert!(
        ended.count("requests") <= 30,
        "it gives up: {} requests",
        ended.count("requests")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voice_times_out_only_with_a_fresh_answer() {
    let ids = [
        "sim-nopreview-1",
        "sim-pvctraining-1",
        "sim-ready-1",
        "sim-malformed-1",
    ]
    .map(str::to_owned);
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    app.age_application(25 * 60 * 60).await;
    let provider = simulator().await;
    // Nothing times out by an age that voice-sync did not witness.
    let first = sync_once(&app.url, &provider.url())
        .args(&["--limit", "2", "--voice", "sim-nopreview-1"])
        .run()
        .await;
    first.expect_code(0);
    assert_eq!(app.row("sim-nopreview-1").await.status, "processing");
    app.age_own_tables(25 * 60 * 60).await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(75);
    assert_eq!(app.row("sim-nopreview-1").await.status, "failed");
    assert_eq!(app.row("sim-pvctraining-1").await.status, "processing");
    assert_eq!(app.row("sim-ready-1").await.status, "completed");
    assert_eq!(
        app.row("sim-malformed-1").await.status,
        "processing",
        "no answer, no verdict"
    );
    assert!(ended.stderr.contains("timed_out"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn falls_back_to_single_lookups_without_a_list_endpoint() {
    let of_the_api = |status| Answer::error(status, "not_here", "There is no such endpoint.");
    let of_a_proxy = |status| Answer::html(status, "no");
    // What stands in between says nothing about the endpoint; one more request shows that the provider works.
    for (status, answer, singles) in [403, 404, 405]
        .map(|status| {
            [
                (status, of_the_api(status), 48),
                (status, of_a_proxy(status), 49),
            ]
        })
        .concat()
    {
        let ids = mixed(48, &["malformed"]);
        let app = app_with(Variant::E36, &ids).await;
        let provider = simulator().await;
        provider.script(move |request| (request.path == "/v2/voices").then(|| answer.clone()));
        let ended = sync_once(&app.url, &provider.url()).run().await;
        ended.expect_code(0);
        for (id, row) in &app.rows().await {
            check_row(id, row);
        }
        assert_eq!(provider.counts().single, singles, "HTTP {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_lookup_mode_never_uses_the_list() {
    let ids = mixed(48, &["malformed"]);
    let app = app_with(Variant::E36, &ids).await;
    let provider = simulator().await;
    sync_once(&app.url, &provider.url())
        .args(&["--lookup", "single"])
        .run()
        .await
        .expect_code(0);
    assert_eq!((provider.counts().list, provider.counts().single), (0, 48));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_missing_from_the_list_are_looked_up_singly_next_time() {
    // `unlisted` voices are clones; the list shows professional ones only.
    let mut ids: Vec<String> = (0..5).map(|n| format!("sim-pvctraining-{n}")).collect();
    ids.extend((0..5).map(|n| format!("sim-unlisted1h-{n}")));
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    sync_once(&app.url, &provider.url())
        .run()
        .await
        .expect_code(0);
    assert_eq!((provider.counts().list, provider.counts().single), (1, 5));
    provider.forget_requests();
    sync_once(&app.url, &provider.url())
        .run()
        .await
        .expect_code(0);
    let list: Vec<_> = provider
        .requests()
        .into_iter()
        .filter(|r| r.path == "/v2/voices")
        .collect();
    assert_eq!(list.len(), 1);
    assert_eq!(
        list[0].voice_ids.len(),
        5,
        "the list is asked only about what it shows"
    );
    assert_eq!(provider.counts().single, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_batch_is_bisected_until_the_bad_voice_is_isolated() {
    let ids: Vec<String> = (0..100).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    provider.script(|request| {
        let bad = request.voice_ids.iter().any(|id| id == "sim-ready-37");
        bad.then(|| {
            Answer::json(
                422,
                r#"{"detail":[{"loc":["query"],"msg":"bad","type":"value_error"}]}"#,
            )
        })
    });
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (ended.count("completed"), ended.count("set_aside")),
        (99, 1)
    );
    assert!(
        ended.count("requests") <= 16,
        "{} requests",
        ended.count("requests")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_batch_is_bisected_for_errors_other_than_4xx() {
    let huge = vec![b' '; 9 * 1024 * 1024];
    for answer in [
        Answer::error(500, "internal", "oops"),
        Answer::json(200, huge),
        Answer::html(200, "?"),
    ] {
        let ids: Vec<String> = (0..150).map(|n| format!("sim-ready-{n}")).collect();
        let app = app_with(Variant::E32, &ids).await;
        let provider = simulator().await;
        let status = answer.status;
        provider.script(move |request| {
            let bad = request.path == "/v2/voices"
                && request.voice_ids.iter().any(|id| id == "sim-ready-37");
            bad.then(|| answer.clone())
        });
        let ended = sync_once(&app.url, &provider.url()).run().await;
        ended.expect_code(0);
        assert_eq!(ended.count("completed"), 150, "HTTP {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_that_rejects_everything_sets_no_voice_aside() {
    let ids: Vec<String> = (0..30).map(|n| format!("sim-ready-{n}")).collect();
    for answer in [
        Answer::html(400, "bad request"),
        Answer::error(400, "odd", "everything is odd today"),
        Answer::json(
            422,
            r#"{"detail":[{"loc":["header"],"msg":"bad","type":"value_error"}]}"#,
        ),
    ] {
        let app = app_with(Variant::E32, &ids).await;
        let provider = simulator().await;
        provider.script(move |_| Some(answer.clone()));
        for _ in 0..4 {
            let ended = sync_once(&app.url, &provider.url()).run().await;
            ended.expect_code(75);
            assert_eq!((ended.count("due"), ended.count("set_aside")), (30, 0));
        }
        provider.script(|_| None);
        app.age_own_tables(300).await;
        let ended = sync_once(&app.url, &provider.url()).run().await;
        assert_eq!(ended.count("completed"), 30, "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_endpoint_that_rejects_everything_is_abandoned() {
    let ids: Vec<String> = (0..200).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    provider.script(|request| {
        let list = request.path == "/v2/voices";
        list.then(|| {
            Answer::json(
                422,
                r#"{"detail":[{"loc":["query"],"msg":"bad","type":"t"}]}"#,
            )
        })
    });
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 200);
    assert!(
        provider.counts().list <= 20,
        "{} lists",
        provider.counts().list
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_voice_does_not_count_as_a_refused_key() {
    let ids: Vec<String> = (0..50)
        .map(|n| format!("sim-ready-{n}"))
        .chain(["sim-unlisted-7".into()])
        .collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    provider.script(|request| {
        let private = request.path == "/v1/voices/sim-unlisted-7";
        private.then(|| Answer::error(403, "forbidden", "not yours"))
    });
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (ended.count("completed"), ended.count("set_aside")),
        (50, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nul_characters_in_answers_are_handled() {
    let ids: Vec<String> = (0..120).map(|n| format!("sim-ready-{n:03}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let provider = simulator().await;
    provider.script(|request| {
        let odd = |id: &str| match id {
            "sim-ready-001" => r#"{"voice_id":"sim-ready-001","category":"x\u0000y"}"#.to_owned(),
            "sim-ready-002" => r#"{"voice_id":"sim-ready-002","category":"professional",
                "fine_tuning":{"state":{"m":"failed"},"message":{"m":"too\u0000noisy"}}}"#
                .to_owned(),
            id => format!(r#"{{"voice_id":"{id}","preview_url":"https://x/{id}"}}"#),
        };
        let voices: Vec<_> = request.voice_ids.iter().map(|id| odd(id)).collect();
        Some(Answer::json(
            200,
            format!(r#"{{"voices":[{}]}}"#, voices.join(",")),
        ))
    });
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (
            ended.count("completed"),
            ended.count("processing"),
            ended.count("failed")
        ),
        (118, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_breaker_is_shared_with_the_next_runs() {
    let ids: Vec<String> = (0..500).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let provider = simulator().await;
    provider.script(|_| Some(Answer::html(503, "down")));
    let run = async || sync_once(&app.url, &provider.url()).run().await;
    run().await.expect_code(75);
    let asked = provider.requests().len();
    assert!(asked <= 12, "{asked} requests");
    for _ in 0..3 {
        let ended = run().await;
        ended.expect_code(75);
        assert_eq!((ended.count("due"), ended.count("requests")), (500, 0));
    }
    app.age_own_tables(16).await;
    let probed = run().await;
    probed.expect_code(75);
    assert_eq!(probed.count("requests"), 1, "one probe decides");
    app.age_own_tables(16).await;
    assert_eq!(run().await.count("requests"), 0, "the pause has doubled");

    provider.script(|_| None);
    app.age_own_tables(16).await;
    let healed = run().await;
    healed.expect_code(0);
    assert_eq!(healed.count("completed"), 500);
    assert_eq!(
        app.number("SELECT opened::bigint FROM voice_sync.provider")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_also_applies_to_the_next_run() {
    let ids: Vec<String> = (0..3000).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    provider.script(|_| {
        Some(Answer::error(429, "system_busy", "wait").with_header("retry-after", "120"))
    });
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(75);
    let asked = provider.requests().len();
    assert!(asked <= 4, "{asked} requests");
    let touched = app.number("SELECT count(*) FROM voice_sync_voices").await;
    assert!(
        touched <= 1000,
        "the backlog is not churned through: {touched}"
    );
    provider.script(|_| None);
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(75);
    assert_eq!(ended.count("requests"), 0);
    app.age_own_tables(121).await;
    sync_once(&app.url, &provider.url())
        .run()
        .await
        .expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_halves_the_concurrency_of_the_next_run() {
    let ids: Vec<String> = (0..20).map(|n| format!("sim-pvctraining-{n}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let provider = simulator().await;
    let refused = std::sync::atomic::AtomicBool::new(false);
    provider.script(move |_| {
        let first = !refused.swap(true, std::sync::atomic::Ordering::Relaxed);
        first.then(|| {
            Answer::error(429, "too_many_concurrent_requests", "slow down")
                .with_header("retry-after-ms", "1")
        })
    });
    sync_once(&app.url, &provider.url())
        .args(&["--concurrency", "8"])
        .run()
        .await
        .expect_code(0);
    assert_eq!(
        app.number("SELECT concurrency::bigint FROM voice_sync.provider")
            .await,
        4
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_over_named_voices_do_not_move_the_resume_position() {
    let ids: Vec<String> = (0..25).map(|n| format!("sim-pvctraining-{n}")).collect();
    let app = app_with(Variant::E36, &ids).await;
    let provider = simulator().await;
    for _ in 0..3 {
        sync_once(&app.url, &provider.url())
            .args(&["--limit", "10"])
            .run()
            .await
            .expect_code(0);
        sync_once(&app.url, &provider.url())
            .args(&["--voice", &ids[0]])
            .run()
            .await
            .expect_code(0);
    }
    let asked: BTreeSet<_> = provider
        .requests()
        .into_iter()
        .flat_map(|request| request.voice_ids)
        .collect();
    assert_eq!(asked.len(), 25, "nobody is left out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_row_that_the_database_refuses_is_set_aside() {
    let ids: Vec<String> = (0..100).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    app.execute("ALTER TABLE voices ADD CHECK (elevenlabs_voice_id <> 'sim-ready-37' OR status::text <> 'completed')").await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (ended.count("completed"), ended.count("set_aside")),
        (99, 1)
    );
    assert!(
        ended.stderr.contains("check constraint"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_row_is_skipped_and_the_others_proceed() {
    let ids: Vec<String> = (0..100).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    let run = async || {
        sync_once(&app.url, &provider.url())
            .publishing_to(&bus)
            .run()
            .await
    };
    let Pool::Postgres(pool) = &app.pool else {
        unreachable!("A is PostgreSQL")
    };
    let mut holding = pool.begin().await.expect("begins");
    sqlx::query("SELECT 1 FROM voices WHERE elevenlabs_voice_id = 'sim-ready-37' FOR UPDATE")
        .execute(&mut *holding)
        .await
        .expect("locks");
    let ended = run().await;
    ended.expect_code(75);
    assert_eq!(
        (ended.count("completed"), ended.count("unavailable")),
        (99, 1)
    );
    assert!(ended.stderr.contains("locked"), "{}", ended.stderr);
    assert_eq!(bus.events("voice.created").await.len(), 99);
    holding.rollback().await.expect("unlocks");
    let ended = run().await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 1);
    assert_eq!(bus.events("voice.created").await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn application_changes_win_over_a_lookup_in_flight() {
    let ids = ["sim-ready-1", "sim-ready-2", "sim-ready-3", "sim-ready-4"].map(str::to_owned);
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    let (asked, was_asked) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    provider.script(move |request| {
        if request.path == "/v2/voices" {
            asked.send(()).expect("the test listens");
            tokio::task::block_in_place(|| {
                let waiting = may_go_on.lock().expect("one request at a time");
                waiting.recv().expect("the test goes on");
            });
        }
        None
    });
    let run = tokio::spawn(
        sync_once(&app.url, &provider.url())
            .publishing_to(&bus)
            .run(),
    );
    tokio::task::spawn_blocking(move || was_asked.recv())
        .await
        .expect("joins")
        .expect("is asked");
    app.execute("UPDATE voices SET elevenlabs_voice_id = 'recloned' WHERE elevenlabs_voice_id = 'sim-ready-1'").await;
    app.execute("UPDATE voices SET status = 'failed' WHERE elevenlabs_voice_id = 'sim-ready-2'")
        .await;
    app.execute("DELETE FROM voices WHERE elevenlabs_voice_id = 'sim-ready-3'")
        .await;
    go_on.send(()).expect("the simulator waits");
    let ended = run.await.expect("joins");
    ended.expect_code(0);
    assert_eq!(
        (ended.count("completed"), ended.count("superseded")),
        (1, 3)
    );
    assert_eq!(app.row("recloned").await.status, "processing");
    assert_eq!(app.row("sim-ready-2").await.status, "failed");
    assert_eq!(bus.events("voice.created").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_provider_ids_are_set_aside_without_a_request() {
    let ids = ["../user", "", "a b", "sim-ready-1", "x%2f..", "línea"].map(str::to_owned);
    let app = app_with(Variant::E32, &ids).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!((ended.count("set_aside"), ended.count("completed")), (5, 1));
    for request in provider.requests() {
        assert_eq!(request.path, "/v2/voices");
        assert_eq!(request.voice_ids, ["sim-ready-1"]);
    }
    assert!(
        ended.stderr.contains("voices set aside"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voices_leased_by_another_process_are_skipped() {
    let ids: Vec<String> = (0..5).map(|n| format!("sim-ready-{n}")).collect();
    let app = app_with(Variant::E32, &ids).await;
    let store = app.store().await;
    let all = voice_sync::store::Selection::Range {
        after: None,
        up_to: None,
        except: Vec::new(),
    };
    store
        .claim(uuid::Uuid::new_v4(), &all, 3)
        .await
        .expect("claims");
    drop(store);
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (
            ended.count("due"),
            ended.count("completed"),
            ended.count("leased_elsewhere")
        ),
        (5, 2, 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signal_makes_a_pass_save_its_answers_and_release_its_leases() {
    let ids: Vec<String> = (0..60).map(|n| format!("sim-ready-{n:02}")).collect();
    let app = app_with(Variant::A, &ids).await;
    migrate(&app).await;
    let latency = Duration::from_millis(100);
    let provider = simulator_with(Options {
        latency,
        ..Options::default()
    })
    .await;
    let child = sync_once(&app.url, &provider.url())
        .args(&["--lookup", "single", "--concurrency", "2"])
        .start();
    let answered = || {
        provider
            .requests()
            .iter()
            .filter(|request| request.status.is_some())
            .count()
    };
    while answered() < 4 {
        tokio::task::yield_now().await;
    }
    let told = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(told.success());
    let ended = end(child).await;
    ended.expect_code(75);
    let completed = app
        .number("SELECT count(*) FROM voices WHERE status = 'completed'")
        .await;
    assert_eq!(completed.unsigned_abs(), ended.count("completed"));
    assert_eq!(
        completed.unsigned_abs() as usize,
        answered(),
        "every answer that came is written down"
    );
    assert!(completed < 60, "it did not go on to the end");
    assert_eq!(ended.count("due"), 60);
    let leased = "SELECT count(*) FROM voice_sync.voices WHERE lease_until IS NOT NULL";
    assert_eq!(app.number(leased).await, 0);
    let next = sync_once(&app.url, &provider.url()).run().await;
    next.expect_code(0);
    assert_eq!(next.count("completed") + ended.count("completed"), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_with_nothing_to_do_sends_no_request() {
    let app = App::new(Variant::A).await;
    migrate(&app).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url())
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .run()
        .await;
    ended.expect_code(0);
    assert_eq!((ended.count("due"), ended.count("requests")), (0, 0));
    assert!(provider.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_report_shows_the_counts() {
    let app = app_with(Variant::E32, &["sim-ready-1".to_owned()]).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url())
        .args(&["--output", "text"])
        .run()
        .await;
    ended.expect_code(0);
    assert!(
        ended.stdout.starts_with("1 due, 1 looked up in "),
        "{}",
        ended.stdout
    );
    assert!(
        ended
            .stdout
            .contains("1 completed, 0 failed, 0 still processing"),
        "{}",
        ended.stdout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_the_key_and_a_user_agent() {
    let app = app_with(
        Variant::E32,
        &["sim-ready-1".to_owned(), "sim-unlisted-1".to_owned()],
    )
    .await;
    let provider = simulator_with(Options {
        key: Some(KEY.into()),
        ..Options::default()
    })
    .await;
    sync_once(&app.url, &provider.url())
        .run()
        .await
        .expect_code(0);
    for request in provider.requests() {
        assert!(request.has_key);
        assert!(
            request
                .user_agent
                .expect("is sent")
                .starts_with("voice-sync/")
        );
    }
}
