//! From one version of voice-sync's own tables to the next, with rows in them.

use std::process::Stdio;

use serde_json::Value;
use voice_sync_simulator::Options;

use crate::support::app::{App, Pool, Variant};
use crate::support::binary::{VoiceSync, end, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::{simulator, simulator_with};
use crate::support::from_scripts;

const BOTH: [Variant; 2] = [Variant::A, Variant::E32];

/// Migrations as a person would apply them by hand.
async fn migrations(app: &App) -> Vec<String> {
    let dry = VoiceSync::new(&["migrate", "--dry-run"]).env("DATABASE_URL", &app.url);
    let report = dry.run().await.report();
    let migrations = report["migrations"].as_array().expect("a list");
    let sql = |migration: &Value| migration["sql"].as_str().expect("SQL").to_owned();
    migrations.iter().map(sql).collect()
}

/// What a voice-sync of version 1 leaves behind when it is stopped in the middle of its work: a voice
/// that it has claimed and one that was missing twice, an event that is not published, and a place to
/// go on from.
async fn leave_rows(app: &App) {
    app.insert_processing(&["sim-ready-1", "sim-ready-2", "sim-missing-1"])
        .await;
    let (now, uuid) = match app.pool {
        Pool::Postgres(_) => ("now()", "gen_random_uuid()"),
        Pool::Sqlite(_) => (
            "unixepoch() * 1000",
            "'00000000-0000-4000-8000-000000000001'",
        ),
    };
    let missing = crate::support::app::row_id("sim-missing-1");
    let claimed = crate::support::app::row_id("sim-ready-1");
    app.execute(&format!(
        "INSERT INTO {voices} (row_id, provider_id, first_seen, run_id, lease_until, kind)
         VALUES ('{claimed}', 'sim-ready-1', {now}, {uuid}, {now}, 'cloned');
         INSERT INTO {voices} (row_id, provider_id, first_seen, run_id, missing_count, missing_since)
         VALUES ('{missing}', 'sim-missing-1', {now}, {uuid}, 2, {now});
         INSERT INTO {outbox} (event_id, run_id, event_type, voice_id, occurred_at)
         VALUES ({uuid}, {uuid}, 'voice.created', 'earlier', {now});
         INSERT INTO {runs} (run_id, started_at, finished_at, duration_ms, exit_code, found, counts)
         VALUES ({uuid}, {now}, {now}, 5, 75, 3, '{{}}');
         INSERT INTO {provider} (account, opened, found_at) VALUES ({uuid}, 1, {now});
         INSERT INTO {buses} (bus, failures, retry_at) VALUES ({uuid}, 2, {now});
         INSERT INTO {cursors} (table_name, resume_after) VALUES ('\"voices\"', '{claimed}');",
        voices = app.own("voices"),
        outbox = app.own("outbox"),
        runs = app.own("runs"),
        provider = app.own("provider"),
        buses = app.own("buses"),
        cursors = app.own("cursors"),
        claimed = app.stored(claimed),
        missing = app.stored(missing),
    ))
    .await;
}

const TABLES: [&str; 6] = ["voices", "outbox", "runs", "provider", "buses", "cursors"];

/// The columns of a table of our own, each with its type and whether a row may leave it out.
/// Its name, its type, and whether it can be left out.
type Column = (String, String, bool);

async fn columns(app: &App, table: &str) -> Vec<Column> {
    match &app.pool {
        Pool::Postgres(pool) => sqlx::query_as(
            "SELECT attname::text, format_type(atttypid, atttypmod),
                    NOT attnotnull OR atthasdef OR attidentity <> ''
             FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        )
        .bind(app.own(table))
        .fetch_all(pool)
        .await
        .expect("columns"),
        Pool::Sqlite(pool) => sqlx::query_as(
            "SELECT name, type, pk > 0 OR \"notnull\" = 0 OR dflt_value IS NOT NULL
             FROM pragma_table_info($1)",
        )
        .bind(app.own(table))
        .fetch_all(pool)
        .await
        .expect("columns"),
    }
}

/// What stands in some columns of a table, as one text.
async fn contents(app: &App, table: &str, columns: &[(String, String, bool)]) -> i64 {
    let names: Vec<_> = columns
        .iter()
        .map(|(name, ..)| format!("COALESCE(CAST({name} AS text), '-')"))
        .collect();
    let text = names.join(" || '|' || ");
    let (table, sum) = (
        app.own(table),
        match app.pool {
            Pool::Postgres(_) => {
                format!("hashtext(string_agg({text}, ';' ORDER BY {text}))::bigint")
            }
            Pool::Sqlite(_) => {
                format!("total(length({text})) + total(unicode(substr({text}, -1)))")
            }
        },
    );
    app.number(&format!("SELECT CAST({sum} AS bigint) FROM {table}"))
        .await
}

/// Each migration only adds: the previous version, which is still running, can read and write as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_keep_existing_data_and_only_add() {
    for variant in BOTH {
        let app = App::new(variant).await;
        let migrations = migrations(&app).await;
        let (first, later) = migrations.split_first().expect("the first one");
        app.execute(first).await;
        leave_rows(&app).await;
        for migration in later {
            let mut before = Vec::new();
            for table in TABLES {
                let mut columns = columns(&app, table).await;
                // A migration may put an event into a batch, or take it out of one.
                columns.retain(|(name, ..)| name != "batch_id");
                let contents = contents(&app, table, &columns).await;
                before.push((table, columns, contents));
            }
            app.execute(migration).await;
            for (table, were, held) in before {
                let are = columns(&app, table).await;
                // A column may become one that can be left out.
                let is_kept = |was: &Column, is: &Column| {
                    (&was.0, &was.1) == (&is.0, &is.1) && (is.2 || !was.2)
                };
                for column in &were {
                    assert!(
                        are.iter().any(|is| is_kept(column, is)),
                        "{variant:?} {table}: {column:?} in {are:?}"
                    );
                }
                let is_new = |is: &&Column| !were.iter().any(|was| is_kept(was, is));
                for added in are.iter().filter(is_new) {
                    assert!(added.2, "{variant:?} {table}: {added:?} cannot be left out");
                }
                assert_eq!(
                    contents(&app, table, &were).await,
                    held,
                    "{variant:?} {table}"
                );
            }
        }
        let rest = VoiceSync::new(&["migrate"])
            .env("DATABASE_URL", &app.url)
            .run()
            .await;
        assert_eq!(rest.report()["migrations"], Value::Array(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_version_migrates_only_if_allowed_and_keeps_the_state() {
    for variant in BOTH {
        let (app, bus, provider) = (App::new(variant).await, Bus::new().await, simulator().await);
        app.execute(&migrations(&app).await[0]).await;
        leave_rows(&app).await;
        let pass = || sync_once(&app.url, &provider.url()).publishing_to(&bus);
        let refused = pass().env("VOICE_SYNC_AUTO_MIGRATE", "false").run().await;
        refused.expect_code(78);
        for words in ["of version 1", "voice-sync migrate"] {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
        assert!(provider.requests().is_empty(), "nothing was asked");
        let ended = pass().arg("--auto-migrate").run().await;
        ended.expect_code(0);
        assert_eq!((ended.count("completed"), ended.count("missing")), (2, 1));
        assert_eq!(ended.count("events_published"), 3, "the earlier one too");
        let absence = format!(
            "SELECT CAST(missing_count AS bigint) FROM {} WHERE provider_id = 'sim-missing-1'",
            app.own("voices")
        );
        assert_eq!(app.number(&absence).await, 1, "counted anew, for this key");
    }
}

/// If an older version is publishing an event during the migration, no other process publishes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_events_are_published_once_from_any_schema_version() {
    for (variant, batched, is_published) in [
        (Variant::A, false, false),
        (Variant::A, true, false),
        (Variant::A, true, true),
        (Variant::E32, false, false),
        (Variant::E32, true, false),
        (Variant::E32, true, true),
    ] {
        let (app, bus, provider) = (App::new(variant).await, Bus::new().await, simulator().await);
        let migrations = migrations(&app).await;
        for migration in &migrations[..7] {
            app.execute(migration).await;
        }
        let (now, soon) = match app.pool {
            Pool::Postgres(_) => ("now()", "now() + interval '2 seconds'"),
            Pool::Sqlite(_) => ("unixepoch() * 1000", "unixepoch() * 1000 + 2000"),
        };
        let outbox = app.own("outbox");
        for (number, leased_until) in [(1, "NULL"), (2, soon)] {
            app.execute(&format!(
                "INSERT INTO {outbox} (event_id, run_id, event_type, voice_id, occurred_at, leased_until)
                 VALUES ('{id}', '{id}', 'voice.created', 'earlier-{number}', {now}, {leased_until})",
                id = uuid::Uuid::from_u128(number),
            ))
            .await;
        }
        if batched {
            app.execute(&migrations[7]).await;
        }
        if is_published {
            let batches = app.own("batches");
            app.execute(&format!("UPDATE {batches} SET published_at = {now}"))
                .await;
        }
        let migrated = VoiceSync::new(&["migrate"]).env("DATABASE_URL", &app.url);
        migrated.run().await.expect_code(0);
        app.execute(&format!(
            "UPDATE {outbox} SET published_at = {now} WHERE published_at IS NULL AND voice_id = 'earlier-2'"
        ))
        .await;
        let ended = sync_once(&app.url, &provider.url()).publishing_to(&bus);
        let ended = ended.run().await;
        ended.expect_code(0);
        let expected = u64::from(!is_published);
        let case = format!("{variant:?} {batched} {is_published}");
        assert_eq!(ended.count("events_published"), expected, "{case}");
        assert_eq!(ended.count("events_pending"), 0, "{case}");
    }
}

/// `scripts/test-upgrade` builds the older version and runs this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an older voice-sync: run scripts/test-upgrade REVISION"]
async fn migration_does_not_disturb_a_running_older_version() {
    const VOICES: usize = 1500;
    let older = from_scripts("VOICE_SYNC_TEST_OLDER");
    for variant in BOTH {
        let (app, bus) = (App::new(variant).await, Bus::new().await);
        let slow = simulator_with(Options {
            latency: std::time::Duration::from_millis(50),
            ..Options::default()
        })
        .await;
        let by_hand = |program: &str, command: &str| {
            let mut by_hand = std::process::Command::new(program);
            by_hand
                .arg(command)
                .env_clear()
                .env("DATABASE_URL", &app.url)
                .env("ELEVENLABS_BASE_URL", slow.url())
                .env("ELEVENLABS_API_KEY", "test-key")
                .env("REDIS_URL", &bus.url)
                .env("VOICE_SYNC_EVENT_PREFIX", &bus.prefix)
                .env("VOICE_SYNC_OUTPUT", "json")
                .env("VOICE_SYNC_LOOKUP", "single")
                .env("VOICE_SYNC_CONCURRENCY", "8")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            by_hand.spawn().expect("starts")
        };
        end(by_hand(&older, "migrate")).await.expect_code(0);
        let ids: Vec<String> = (0..VOICES).map(|n| format!("sim-ready-{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        app.insert_processing(&ids).await;
        // In a task, so that its log is read: a full pipe would stop it.
        let running = tokio::spawn(end(by_hand(&older, "sync-once")));
        let claimed = format!("SELECT count(*) FROM {}", app.own("voices"));
        while app.number(&claimed).await == 0 {
            tokio::task::yield_now().await;
        }
        let migrated = VoiceSync::new(&["migrate"]).env("DATABASE_URL", &app.url);
        assert_ne!(
            migrated.run().await.report()["migrations"],
            Value::Array(Vec::new())
        );
        let newer = sync_once(&app.url, &slow.url())
            .publishing_to(&bus)
            .args(&["--lookup", "single", "--concurrency", "8"])
            .run()
            .await;
        newer.expect_code(0);
        let older = running.await.expect("joins");
        older.expect_code(0);
        let shares = [older.count("completed"), newer.count("completed")];
        assert_eq!(shares.iter().sum::<u64>(), VOICES as u64, "{variant:?}");
        assert!(
            shares.iter().all(|share| *share > 0),
            "both work: {shares:?}"
        );
        assert_eq!(bus.events("voice.created").await.len(), VOICES);
        println!("{variant:?}: {shares:?} voices by the older and the newer one");
    }
    let app = App::new(Variant::A).await;
    VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &app.url)
        .run()
        .await
        .expect_code(0);
    let mut refused = std::process::Command::new(&older);
    refused
        .args(["sync-once", "--database-url", &app.url])
        .env("ELEVENLABS_API_KEY", "test-key");
    refused.stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = end(refused.spawn().expect("starts")).await;
    refused.expect_code(78);
    assert!(
        refused.stderr.contains("newer version"),
        "{}",
        refused.stderr
    );
}
