//! Tables from before `status`, `preview_url` and `completed_at`: as they are, and adopted.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::app::{App, Pool, Variant};
use crate::support::binary::{Ended, VoiceSync, end, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::simulator;

const ALL: [Variant; 3] = [Variant::B, Variant::Pooled, Variant::E36];

/// Voices that were cloned two years ago: one is ready, one banned, one has no preview.
async fn app(variant: Variant, more_columns: &str) -> App {
    let ddl = format!(
        "CREATE TABLE voices (
             id char(36) PRIMARY KEY, user_id char(36), elevenlabs_voice_id varchar(100) NOT NULL,
             created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP {more_columns});
         INSERT INTO voices (id, elevenlabs_voice_id, created_at)
         VALUES ('0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', '2024-11-02 08:00:00'),
                ('1b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-banned-1', '2024-11-02 08:00:00'),
                ('2b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-nopreview-1', '2024-11-02 08:00:00')"
    );
    match variant {
        Variant::E36 => App::sqlite(variant, &ddl).await,
        Variant::A | Variant::B | Variant::D | Variant::Pooled | Variant::E32 => {
            App::postgres(variant, &ddl).await
        }
    }
}

fn adopt(app: &App) -> VoiceSync {
    VoiceSync::new(&["migrate", "--adopt"]).env("DATABASE_URL", &app.url)
}

async fn pass(app: &App, bus: &Bus, arguments: &[&str]) -> Ended {
    let provider = simulator().await;
    sync_once(&app.url, &provider.url())
        .publishing_to(bus)
        .arg("--auto-migrate")
        .args(arguments)
        .run()
        .await
}

fn outcome(ended: &Ended) -> [u64; 3] {
    ["completed", "failed", "processing"].map(|field| ended.count(field))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_without_the_status_columns_is_refused_until_adopted() {
    for variant in ALL {
        let (app, bus) = (app(variant, "").await, Bus::new().await);
        let refused = pass(&app, &bus, &[]).await;
        refused.expect_code(78);
        assert!(
            refused.stderr.contains("migrate --adopt"),
            "{}",
            refused.stderr
        );

        let ended = adopt(&app).run().await;
        ended.expect_code(0);
        assert_ne!(ended.report()["adoption"], json!([]));
        let again = adopt(&app).run().await;
        again.expect_code(0);
        assert_eq!(again.report()["adoption"], json!([]), "{variant:?}");

        // However old they are, their time in processing begins now.
        assert_eq!(
            outcome(&pass(&app, &bus, &[]).await),
            [1, 1, 1],
            "{variant:?}"
        );
        assert!(app.row("sim-ready-1").await.completed_at.is_some());
        assert!(app.row("sim-ready-1").await.preview_url.is_some());
        // As an application that knows nothing of a status does.
        app.execute(
            "INSERT INTO voices (id, elevenlabs_voice_id)
             VALUES ('3b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-2')",
        )
        .await;
        assert_eq!(outcome(&pass(&app, &bus, &[]).await), [1, 0, 1]);
        app.age_own_tables(25 * 60 * 60).await;
        assert_eq!(outcome(&pass(&app, &bus, &[]).await), [0, 1, 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_adds_only_what_is_missing() {
    for variant in ALL {
        let app = app(
            variant,
            ", status varchar(20) DEFAULT 'processing', preview_url text",
        )
        .await;
        app.execute("CREATE INDEX by_status ON voices (status)")
            .await;
        let ended = adopt(&app).run().await;
        ended.expect_code(0);
        let kind = match app.pool {
            Pool::Postgres(_) => "timestamp",
            Pool::Sqlite(_) => "DATETIME",
        };
        let added = ended.report()["adoption"].clone();
        let statements = added.as_array().expect("a list");
        assert_eq!(statements.len(), 2, "{added}");
        let statement = statements[0].as_str().expect("a text");
        assert!(
            statement.contains(&format!("\"completed_at\" {kind}")),
            "{statement}"
        );
        assert!(!statement.contains("status"), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_dry_run_prints_sql_that_can_be_run_by_hand() {
    let app = app(Variant::B, "").await;
    let dry = adopt(&app)
        .args(&["--dry-run", "--output", "text"])
        .run()
        .await;
    dry.expect_code(0);
    let file = || "SELECT pg_relation_filenode('voices')::bigint";
    let before = app.number(file()).await;
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'";
    assert_eq!(app.number(columns).await, 4, "a dry run adds nothing");
    // One by one, as psql does: an index that is made concurrently allows no other way.
    let (together, index) = dry.stdout.split_once("COMMIT;").expect("a transaction");
    app.execute(&format!("{together} COMMIT")).await;
    app.execute(index).await;
    assert_eq!(app.number(columns).await, 7);
    assert_eq!(
        app.number(file()).await,
        before,
        "the table was not rewritten"
    );
    let again = adopt(&app).run().await;
    assert_eq!(again.report()["adoption"], json!([]));
    assert_eq!(again.report()["migrations"], json!([]));
}

/// A statement that waits for a table lock blocks all later statements, so it must give up and retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_waits_for_a_locked_table_without_blocking_others() {
    let app = app(Variant::B, "").await;
    let Pool::Postgres(pool) = &app.pool else {
        unreachable!("it is a PostgreSQL");
    };
    let mut connection = pool.acquire().await.expect("connects");
    let mut reader = connection.begin().await.expect("begins");
    let select = "SELECT count(*) FROM voices";
    sqlx::query(select)
        .execute(&mut *reader)
        .await
        .expect("reads");
    let adopting = adopt(&app).env("RUST_LOG", "info").start();
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'voices'::regclass";
    for expected in [1, 0, 1] {
        while app.number(waits).await != expected {
            tokio::task::yield_now().await;
        }
    }
    reader.commit().await.expect("commits");
    let ended = end(adopting).await;
    ended.expect_code(0);
    assert!(
        ended.stderr.contains("locked by another process"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_rebuilds_an_invalid_index() {
    let app = app(Variant::B, "").await;
    adopt(&app).run().await.expect_code(0);
    app.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_voices_processing'::regclass",
    )
    .await;
    let ended = adopt(&app).run().await;
    ended.expect_code(0);
    let valid = "SELECT count(*) FROM pg_index
                 WHERE indexrelid = 'ix_voices_processing'::regclass AND indisvalid";
    assert_eq!(app.number(valid).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_without_a_column_are_kept_in_an_own_table() {
    for variant in ALL {
        let (app, bus) = (
            app(variant, ", status varchar(20) DEFAULT 'processing'").await,
            Bus::new().await,
        );
        let dry = pass(&app, &bus, &["--dry-run", "--fail-after", "never"]).await;
        assert_eq!(outcome(&dry), [1, 1, 1]);
        let ended = pass(&app, &bus, &["--fail-after", "never"]).await;
        ended.expect_code(0);
        assert_eq!(outcome(&ended), [1, 1, 1], "{variant:?}");
        for column in ["preview_url", "completed_at"] {
            let warnings = ended.stderr.lines().filter(|line| line.contains(column));
            assert_eq!(warnings.count(), 1, "{column}: {}", ended.stderr);
        }
        assert_eq!(bus.events("voice.created").await.len(), 1);
        let completions = app.own("completions");
        let kept = format!(
            "SELECT count(*) FROM {completions} WHERE preview_url LIKE 'http%' AND completed_at IS NOT NULL
             AND provider_id = 'sim-ready-1' AND row_id LIKE '0b8f1c52%'"
        );
        assert_eq!(app.number(&kept).await, 1, "{variant:?}");

        // Cloned anew, it is young, although it was created long ago.
        app.execute(
            "UPDATE voices SET status = 'processing', elevenlabs_voice_id = 'sim-nopreview-2'
             WHERE elevenlabs_voice_id = 'sim-ready-1'",
        )
        .await;
        assert_eq!(outcome(&pass(&app, &bus, &[]).await), [0, 0, 2]);
        let ended = pass(&app, &bus, &["--age-from", "created"]).await;
        assert_eq!(
            outcome(&ended),
            [0, 1, 1],
            "{variant:?}: the other one is two years old"
        );
    }
}

/// Values that were kept while the columns were missing are copied into the columns once they exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_copies_values_kept_before_into_the_new_columns() {
    for variant in ALL {
        let (app, bus) = (
            app(variant, ", status varchar(20) DEFAULT 'processing'").await,
            Bus::new().await,
        );
        let early = pass(&app, &bus, &["--fail-after", "never"]).await;
        assert_eq!(outcome(&early), [1, 1, 1]);
        adopt(&app).run().await.expect_code(0);
        let row = app.row("sim-ready-1").await;
        assert!(
            row.preview_url
                .is_some_and(|url| url.starts_with("https://")),
            "{variant:?}"
        );
        assert!(
            row.completed_at.is_some_and(|at| at.starts_with("20")),
            "{variant:?}"
        );
        assert_eq!(app.row("sim-banned-1").await.completed_at, None);
        app.execute(
            "UPDATE voices SET status = 'processing', elevenlabs_voice_id = 'sim-nopreview-2',
                               completed_at = NULL
             WHERE elevenlabs_voice_id = 'sim-ready-1'",
        )
        .await;
        let later = pass(&app, &bus, &["--age-from", "created"]).await;
        assert_eq!(
            outcome(&later),
            [0, 1, 1],
            "{variant:?}: cloned anew, it is young"
        );
        let kept = format!("SELECT count(*) FROM {}", app.own("completions"));
        assert_eq!(app.number(&kept).await, 1);
    }
}

/// A row that is not visible may only be hidden, so its kept values are not removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_values_survive_while_their_rows_are_hidden() {
    let (app, bus) = (
        app(Variant::B, ", status varchar(20) DEFAULT 'processing'").await,
        Bus::new().await,
    );
    pass(&app, &bus, &[]).await.expect_code(0);
    app.execute("ALTER TABLE voices RENAME TO hidden").await;
    app.execute("CREATE VIEW voices AS SELECT * FROM hidden WHERE status = 'processing'")
        .await;
    for round in 0..3 {
        app.execute(&format!(
            "INSERT INTO hidden (id, elevenlabs_voice_id) VALUES ('{round}', 'sim-nopreview-{round}7')"
        ))
        .await;
        pass(&app, &bus, &[]).await.expect_code(0);
    }
    assert_eq!(
        app.number("SELECT count(*) FROM voice_sync.completions")
            .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spelling_of_the_table_name_does_not_matter() {
    for (variant, written) in [(Variant::B, "public.voices"), (Variant::E36, "main.VOICES")] {
        let (app, bus) = (app(variant, "").await, Bus::new().await);
        adopt(&app)
            .args(&["--table", written])
            .run()
            .await
            .expect_code(0);
        assert_eq!(
            outcome(&pass(&app, &bus, &[]).await),
            [1, 1, 1],
            "{variant:?}"
        );
        // As if a dump from before had been restored since.
        app.execute(&format!(
            "UPDATE {} SET adopted_at = {}",
            app.own("adoptions"),
            match app.pool {
                Pool::Postgres(_) => "'2020-01-01'",
                Pool::Sqlite(_) => "0",
            }
        ))
        .await;
        app.execute("DROP INDEX ix_voices_processing").await;
        app.execute("ALTER TABLE voices DROP COLUMN status").await;
        adopt(&app).run().await.expect_code(0);
        let again = pass(&app, &bus, &[]).await;
        assert_eq!(
            again.count("processing"),
            1,
            "{variant:?}: it is adopted now"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_adoptions_succeed() {
    for variant in ALL {
        let app = app(variant, "").await;
        VoiceSync::new(&["migrate"])
            .env("DATABASE_URL", &app.url)
            .run()
            .await
            .expect_code(0);
        let runs = futures_util::future::join_all((0..4).map(|_| adopt(&app).run())).await;
        for ended in &runs {
            ended.expect_code(0);
        }
        assert_eq!(
            adopt(&app).run().await.report()["adoption"],
            json!([]),
            "{variant:?}"
        );
    }
}

/// One of two processes that create the index loses its connection and leaves an invalid index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adoption_continues_after_another_was_interrupted() {
    let app = app(Variant::B, ", status varchar(20) DEFAULT 'processing'").await;
    adopt(&app).run().await.expect_code(0);
    app.execute("DROP INDEX ix_voices_processing").await;
    let Pool::Postgres(pool) = &app.pool else {
        unreachable!("it is a PostgreSQL");
    };
    let mut connection = pool.acquire().await.expect("connects");
    let mut writer = connection.begin().await.expect("begins");
    sqlx::query("UPDATE voices SET status = 'processing'")
        .execute(&mut *writer)
        .await
        .expect("writes");
    let first = adopt(&app).start();
    let making = "SELECT count(*) FROM pg_stat_progress_create_index
                  WHERE datname = current_database() AND phase = 'waiting for writers before build'";
    while app.number(making).await != 1 {
        tokio::task::yield_now().await;
    }
    let mut second = adopt(&app).env("RUST_LOG", "info").start();
    let stderr = BufReader::new(second.stderr.take().expect("it is a pipe"));
    let waits = tokio::task::spawn_blocking(move || {
        let mut lines = stderr.lines().map_while(Result::ok);
        (
            lines.any(|line| line.contains("another process is creating an index")),
            lines,
        )
    });
    let (waits, _rest) = waits.await.expect("joins");
    assert!(waits);
    app.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index
         WHERE datname = current_database()",
    )
    .await;
    writer.commit().await.expect("commits");
    end(first).await.expect_code(0);
    end(second).await.expect_code(0);
    assert_eq!(adopt(&app).run().await.report()["adoption"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_adds_valid_types_to_a_strict_sqlite_table() {
    let app = App::sqlite(
        Variant::E36,
        "CREATE TABLE voices (id TEXT PRIMARY KEY, elevenlabs_voice_id TEXT) STRICT;
         INSERT INTO voices VALUES ('1', 'sim-ready-1')",
    )
    .await;
    adopt(&app).run().await.expect_code(0);
    let ended = pass(&app, &Bus::new().await, &[]).await;
    assert_eq!(outcome(&ended), [1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backslashes_are_quoted_without_standard_conforming_strings() {
    let app = app(Variant::B, "").await;
    app.execute("CREATE TABLE victim (x int)").await;
    let database = app.url.rsplit_once('/').expect("a URL").1;
    app.execute(&format!(
        "ALTER DATABASE {database} SET standard_conforming_strings = off"
    ))
    .await;
    let hostile = ["--status-values", r"processing=\'; DROP TABLE victim; --"];
    adopt(&app).args(&hostile).run().await.expect_code(0);
    assert_eq!(
        outcome(&pass(&app, &Bus::new().await, &hostile).await),
        [1, 1, 1]
    );
    assert_eq!(
        app.number("SELECT count(*) FROM victim").await,
        0,
        "it is there"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explicitly_named_column_must_exist() {
    for variant in ALL {
        let app = app(variant, ", status varchar(20) DEFAULT 'processing'").await;
        let named = ["--columns", "preview_url=demo"];
        let ended = pass(&app, &Bus::new().await, &named).await;
        ended.expect_code(78);
        assert!(ended.stderr.contains("demo"), "{}", ended.stderr);
        let ended = adopt(&app).args(&["--columns", "id=key"]).run().await;
        ended.expect_code(78);
        assert_eq!(ended.report()["error"]["code"], 78);
        let own = adopt(&app).args(&named).arg("--dry-run").run().await;
        let added: Value = own.report()["adoption"].clone();
        assert!(added.to_string().contains("demo"), "{added}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_column_and_status_names_are_quoted() {
    const TABLE: &str = "voices\"; drop table users; --";
    let quoted = TABLE.replace('"', "\"\"");
    for variant in [Variant::B, Variant::E36] {
        let app = app(variant, "").await;
        app.execute(&format!(
            "CREATE TABLE users (id text); ALTER TABLE voices RENAME TO \"{quoted}\""
        ))
        .await;
        let names = [
            "--table",
            TABLE,
            "--columns",
            "status=it's; \"state\",preview_url=url;--",
            "--status-values",
            "processing=it's \"being\" done",
        ];
        adopt(&app).args(&names).run().await.expect_code(0);
        let again = adopt(&app).args(&names).run().await;
        assert_eq!(again.report()["adoption"], json!([]), "{variant:?}");
        let ended = pass(&app, &Bus::new().await, &names).await;
        assert_eq!(outcome(&ended), [1, 1, 1], "{variant:?}");
        assert_eq!(
            app.number("SELECT count(*) FROM users").await,
            0,
            "it is there"
        );
    }
}
