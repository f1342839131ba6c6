//! voice-sync's own tables.

use serde_json::Value;

use crate::support::app::{App, Pool, Variant};
use crate::support::binary::{VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::simulator;

fn migrate(app: &App) -> VoiceSync {
    VoiceSync::new(&["migrate"]).env("DATABASE_URL", &app.url)
}

async fn own_tables(app: &App) -> i64 {
    app.number(match app.pool {
        Pool::Postgres(_) => "SELECT count(*) FROM pg_tables WHERE schemaname = 'voice_sync'",
        Pool::Sqlite(_) => {
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name LIKE 'voice_sync_%'"
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_and_concurrent_migrations_are_harmless() {
    for variant in [Variant::A, Variant::E32] {
        let app = App::new(variant).await;
        let runs = futures_util::future::join_all((0..4).map(|_| migrate(&app).run())).await;
        for ended in &runs {
            ended.expect_code(0);
        }
        assert_eq!(own_tables(&app).await, 13, "{variant:?}");
        let again = migrate(&app).run().await;
        again.expect_code(0);
        assert_eq!(again.report()["migrations"], Value::Array(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_dry_run_prints_sql_that_can_be_run_by_hand() {
    for variant in [Variant::A, Variant::E32] {
        let app = App::new(variant).await;
        let dry = migrate(&app)
            .args(&["--dry-run", "--output", "text"])
            .run()
            .await;
        dry.expect_code(0);
        assert_eq!(own_tables(&app).await, 0, "a dry run makes nothing");
        app.execute(&dry.stdout).await;
        assert_eq!(own_tables(&app).await, 13, "{variant:?}");
        let ended = migrate(&app).run().await;
        ended.expect_code(0);
        assert_eq!(ended.report()["migrations"], Value::Array(Vec::new()));
        let provider = simulator().await;
        sync_once(&app.url, &provider.url())
            .run()
            .await
            .expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_migrated_automatically_only_with_auto_migrate() {
    let app = App::new(Variant::A).await;
    app.insert_processing(&["sim-ready-1"]).await;
    let provider = simulator().await;
    let refused = sync_once(&app.url, &provider.url()).run().await;
    refused.expect_code(78);
    assert!(
        refused.stderr.contains("voice-sync migrate"),
        "{}",
        refused.stderr
    );
    assert!(provider.requests().is_empty(), "nothing was asked");
    assert_eq!(own_tables(&app).await, 0);
    let ended = sync_once(&app.url, &provider.url())
        .arg("--auto-migrate")
        .run()
        .await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_own_tables_of_a_newer_version() {
    for variant in [Variant::A, Variant::E32] {
        let app = App::new(variant).await;
        migrate(&app).run().await.expect_code(0);
        let blob = if variant == Variant::A {
            "'\\x00'"
        } else {
            "x'00'"
        };
        app.execute(&format!(
            "INSERT INTO {} (version, description, success, checksum, execution_time)
             VALUES (999, 'from the future', TRUE, {blob}, 0)",
            app.own("migrations")
        ))
        .await;
        let provider = simulator().await;
        for command in [migrate(&app), sync_once(&app.url, &provider.url())] {
            let ended = command.run().await;
            ended.expect_code(78);
            assert!(ended.stderr.contains("newer version"), "{}", ended.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_privileges_suffice_after_migration() {
    let app = App::new(Variant::A).await;
    app.insert_processing(&["sim-ready-1", "sim-banned-1", "sim-pvctraining-1"])
        .await;
    migrate(&app).run().await.expect_code(0);
    let role = format!("runner_{}", uuid::Uuid::new_v4().simple());
    app.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'runs';
         GRANT USAGE ON SCHEMA voice_sync TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA voice_sync TO {role};
         GRANT SELECT ON voices TO {role};
         GRANT UPDATE (status, preview_url, completed_at) ON voices TO {role};"
    ))
    .await;
    let (_, host) = app.url.rsplit_once('@').expect("a login");
    let url = format!("postgresql://{role}:runs@{host}");
    let provider = simulator().await;
    let ended = sync_once(&url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!((ended.count("completed"), ended.count("failed")), (1, 1));
    for command in [
        ["status"].as_slice(),
        &["runs"],
        &["inspect", "sim-banned-1"],
        &["outbox", "list"],
        &["outbox", "resend", "--since", "1h", "--yes"],
        &["outbox", "purge", "--yes"],
        &["retry", "--all-failed", "--yes"],
        &["retry", "--set-aside", "--yes"],
    ] {
        let command = VoiceSync::new(command)
            .env("DATABASE_URL", &url)
            .env("ELEVENLABS_BASE_URL", provider.url());
        command.run().await.expect_code(0);
    }
    assert_eq!(app.row("sim-banned-1").await.status, "processing");

    app.execute("INSERT INTO voices SELECT gen_random_uuid(), user_id, 'sim-ready-2', name FROM voices LIMIT 1").await;
    app.execute(&format!(
        "REVOKE UPDATE (completed_at) ON voices FROM {role}"
    ))
    .await;
    let ended = sync_once(&url, &provider.url()).run().await;
    ended.expect_code(78);
    for word in ["privilege", &role, "GRANT UPDATE", "completed_at"] {
        assert!(
            ended.stderr.contains(word),
            "{word} is not in {}",
            ended.stderr
        );
    }
    let migrated = VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &url)
        .run()
        .await;
    migrated.expect_code(0);
    app.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn example_roles_have_exactly_the_required_privileges() {
    let app = App::new(Variant::A).await;
    app.insert_processing(&["sim-ready-1", "sim-banned-1", "sim-pvctraining-1"])
        .await;
    // Roles are the server's, which other tests use as well.
    let suffix = uuid::Uuid::new_v4().simple();
    let named = |text: &str| {
        ["owner", "migrator", "runtime"]
            .iter()
            .fold(text.to_owned(), |text, role| {
                let role = format!("voice_sync_{role}");
                text.replace(&role, &format!("{role}_{suffix}"))
            })
    };
    app.execute(&named(include_str!("../../examples/sql/roles.sql")))
        .await;
    app.execute(&named(
        "ALTER ROLE voice_sync_migrator PASSWORD 'word';
         ALTER ROLE voice_sync_runtime PASSWORD 'word'",
    ))
    .await;
    let (_, host) = app.url.rsplit_once('@').expect("a login");
    let url = |role: &str| named(&format!("postgresql://voice_sync_{role}:word@{host}"));
    let (provider, bus) = (simulator().await, Bus::new().await);
    let migrated = |role| VoiceSync::new(&["migrate"]).env("DATABASE_URL", url(role));
    let refused = migrated("runtime").run().await;
    refused.expect_code(78);
    assert!(refused.stderr.contains("privilege"), "{}", refused.stderr);
    migrated("migrator").run().await.expect_code(0);
    let ended = sync_once(&url("runtime"), &provider.url())
        .publishing_to(&bus)
        .run()
        .await;
    ended.expect_code(0);
    assert_eq!(ended.count("events_published"), 2);

    let doctor = || {
        VoiceSync::new(&["doctor"])
            .env("DATABASE_URL", url("runtime"))
            .env("ELEVENLABS_BASE_URL", provider.url())
            .publishing_to(&bus)
    };
    let ended = doctor().run().await;
    ended.expect_code(0);
    assert!(!ended.stdout.contains("xmin"), "{}", ended.stdout);
    for arguments in [
        &["sync-once", "--dry-run"][..],
        &["sync-once", "--due"],
        &["status"],
        &["inspect", "sim-ready-1"],
        &["status", "--check"],
        &["list", "--failed"],
        &["retry", "--all-failed", "--yes"],
        &["fail", "sim-pvctraining-1", "--reason=test"],
        &["outbox", "list"],
        &["outbox", "record", "--since=1h", "--yes"],
        &["outbox", "resend", "--since=1h", "--yes"],
        &["outbox", "purge", "--older-than=1d", "--yes"],
        &["runs"],
    ] {
        let command = VoiceSync::new(arguments)
            .env("DATABASE_URL", url("runtime"))
            .env("ELEVENLABS_BASE_URL", provider.url());
        command.publishing_to(&bus).run().await.expect_code(0);
    }
    let sees_new_voices = async |voices: [&str; 3]| {
        let mut daemon =
            Daemon::start(daemon(&url("runtime"), &provider.url()).publishing_to(&bus));
        daemon.wait_until_answers("/readyz", 200).await;
        for voice in voices {
            app.insert_processing(&[voice]).await;
            daemon
                .wait_for("a new voice is completed", async || {
                    (app.row(voice).await.status == "completed").then_some(())
                })
                .await;
        }
        assert!(daemon.said("WARN").is_empty(), "{}", daemon.log());
        daemon.stop().await;
    };
    sees_new_voices(["sim-ready-2", "sim-ready-3", "sim-ready-4"]).await;
    // Grants by hand may lack the system column. Then the daemon reads all voices in processing.
    app.execute(&named(
        "REVOKE SELECT (xmin) ON voices FROM voice_sync_runtime",
    ))
    .await;
    sees_new_voices(["sim-ready-5", "sim-ready-6", "sim-ready-7"]).await;
    let doctor = doctor().run().await;
    doctor.expect_code(0);
    assert!(
        doctor.stdout.contains("GRANT SELECT (xmin)"),
        "{}",
        doctor.stdout
    );

    let runtime = sqlx::PgPool::connect(&url("runtime"))
        .await
        .expect("connects");
    for beyond in [
        "UPDATE voices SET name = 'mine'",
        "SELECT name FROM voices",
        "DELETE FROM voices",
        "UPDATE voice_sync.migrations SET description = 'mine'",
        "DELETE FROM voice_sync.migrations",
        "INSERT INTO voice_sync.adoptions (table_name) VALUES ('mine')",
        "DELETE FROM voice_sync.completions",
        "DELETE FROM voice_sync.nudges",
        "CREATE TABLE voice_sync.mine ()",
        "TRUNCATE voice_sync.outbox",
    ] {
        let done = sqlx::raw_sql(beyond).execute(&runtime).await;
        assert!(done.is_err(), "{beyond}");
    }
    runtime.close().await;
    app.execute(&named(
        "DROP OWNED BY voice_sync_runtime, voice_sync_owner CASCADE;
         DROP ROLE voice_sync_migrator, voice_sync_runtime, voice_sync_owner",
    ))
    .await;
}
