//! Tables as other applications have them: other keys, names, values and contents. Each pass is made
//! by the built binary.

use serde_json::Value;

use crate::support::app::{App, Variant};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::simulator;

/// A table with a voice that is ready and one that is banned, and what to tell voice-sync of it.
struct Shape {
    /// For PostgreSQL, SQLite, or both.
    variants: &'static [Variant],
    ddl: &'static str,
    arguments: &'static [&'static str],
    /// How many rows the application's own words call completed, and how many failed.
    outcome: &'static str,
}

const POSTGRES: &[Variant] = &[Variant::B];
const SQLITE: &[Variant] = &[Variant::E36];
const BOTH: &[Variant] = &[Variant::B, Variant::E36];

async fn pass(app: &App, bus: &Bus, arguments: &[&str]) -> Ended {
    let provider = simulator().await;
    sync_once(&app.url, &provider.url())
        .publishing_to(bus)
        .arg("--auto-migrate")
        .args(arguments)
        .run()
        .await
}

/// Another command, told the same.
async fn command(name: &str, app: &App, bus: &Bus, arguments: &[&str]) -> Ended {
    let provider = simulator().await;
    VoiceSync::new(&[name])
        .env("DATABASE_URL", &app.url)
        .env("ELEVENLABS_BASE_URL", provider.url())
        .publishing_to(bus)
        .args(arguments)
        .run()
        .await
}

async fn fits(shape: Shape) -> Vec<Value> {
    let mut seen = Vec::new();
    for variant in shape.variants {
        let app = match variant {
            Variant::E36 => App::sqlite(*variant, shape.ddl).await,
            Variant::A | Variant::B | Variant::D | Variant::Pooled | Variant::E32 => {
                App::postgres(*variant, shape.ddl).await
            }
        };
        let bus = Bus::new().await;
        let dry = pass(&app, &bus, &[shape.arguments, &["--dry-run"]].concat()).await;
        dry.expect_code(0);
        assert_eq!(
            app.number(shape.outcome).await,
            0,
            "a dry run moves nothing"
        );
        let ended = pass(&app, &bus, shape.arguments).await;
        ended.expect_code(0);
        assert_eq!((ended.count("completed"), ended.count("failed")), (1, 1));
        assert_eq!(app.number(shape.outcome).await, 11, "{variant:?}");
        let of_all: Vec<_> = shape
            .arguments
            .iter()
            .copied()
            .take_while(|word| *word != "--voice")
            .collect();
        let doctor = command("doctor", &app, &bus, &of_all).await;
        doctor.expect_code(0);
        let again = pass(&app, &bus, shape.arguments).await;
        assert_eq!(again.count("completed") + again.count("failed"), 0);
        for event_type in ["voice.created", "voice.updated"] {
            let events = bus.events(event_type).await;
            assert_eq!(events.len(), 1, "{variant:?} {event_type}");
            seen.extend(events.into_iter().map(|event| event["payload"].clone()));
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_ids_may_be_numbers() {
    let payloads = fits(Shape {
        variants: BOTH,
        ddl: "CREATE TABLE voices (
                  id bigint PRIMARY KEY, user_id bigint NOT NULL, elevenlabs_voice_id text,
                  status text NOT NULL, preview_url text, completed_at timestamp, created_at timestamp);
              INSERT INTO voices (id, user_id, elevenlabs_voice_id, status)
              VALUES (9, 70, 'sim-ready-1', 'processing'), (10, 71, 'sim-banned-1', 'processing'),
                     (11, 72, 'sim-nopreview-1', 'processing'), (12, 73, 'sim-ready-2', 'failed')",
        arguments: &[],
        outcome: "SELECT count(*) FILTER (WHERE status = 'completed' AND id = 9)
                         + 10 * count(*) FILTER (WHERE status = 'failed' AND id = 10) FROM voices",
    })
    .await;
    for payload in payloads.chunks(2) {
        assert_eq!(
            (&payload[0]["voice_id"], &payload[0]["user_id"]),
            (&"9".into(), &"70".into())
        );
        assert_eq!(
            (&payload[1]["voice_id"], &payload[1]["user_id"]),
            (&"10".into(), &"71".into())
        );
    }
}

/// A walk over such a table cannot use SQLite's row ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_table_may_have_no_rowid() {
    let columns = "id text PRIMARY KEY NOT NULL, user_id text, elevenlabs_voice_id text,
                   status text NOT NULL, preview_url text, completed_at text";
    for (columns, options) in [
        (columns.to_owned(), "WITHOUT ROWID"),
        (format!("{columns}, _rowid_ text"), ""),
    ] {
        let ddl = format!(
            "CREATE TABLE voices ({columns}) {options};
             INSERT INTO voices (id, elevenlabs_voice_id, status)
             VALUES ('c', 'sim-ready-1', 'processing'), ('a', 'sim-banned-1', 'processing'),
                    ('b', 'sim-ready-2', 'failed')"
        );
        fits(Shape {
            variants: SQLITE,
            ddl: ddl.leak(),
            arguments: &[],
            outcome: "SELECT count(*) FILTER (WHERE status = 'completed' AND id = 'c')
                             + 10 * count(*) FILTER (WHERE status = 'failed' AND id = 'a') FROM voices",
        })
        .await;
    }
}

/// Types whose text form voice-sync does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_ids_may_be_of_other_types() {
    for key in ["numeric", "public_key"] {
        let ddl = format!(
            "CREATE DOMAIN public_key AS bigint CHECK (VALUE > 0);
             CREATE TABLE voices (
                 id {key} PRIMARY KEY, user_id text, elevenlabs_voice_id text,
                 status text NOT NULL, preview_url text, completed_at timestamp);
             INSERT INTO voices (id, elevenlabs_voice_id, status)
             VALUES (1, 'sim-ready-1', 'processing'), (2, 'sim-banned-1', 'processing')"
        );
        fits(Shape {
            variants: POSTGRES,
            ddl: ddl.leak(),
            arguments: &["--voice", "sim-ready-1", "2"],
            outcome: "SELECT count(*) FILTER (WHERE status = 'completed')
                             + 10 * count(*) FILTER (WHERE status = 'failed') FROM voices",
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_ids_may_be_any_text() {
    let payloads = fits(Shape {
        variants: BOTH,
        ddl: "CREATE TABLE voices (
                  id text PRIMARY KEY, user_id text, elevenlabs_voice_id text,
                  status text NOT NULL, preview_url text, completed_at text);
              INSERT INTO voices (id, user_id, elevenlabs_voice_id, status)
              VALUES ('vo''ice {\"1\"}', 'zoë', 'sim-ready-1', 'processing'),
                     ('ünï', NULL, 'sim-banned-1', 'processing')",
        arguments: &[],
        outcome: "SELECT count(*) FILTER (WHERE status = 'completed' AND id LIKE 'vo%')
                         + 10 * count(*) FILTER (WHERE status = 'failed' AND id = 'ünï') FROM voices",
    })
    .await;
    for payload in payloads.chunks(2) {
        assert_eq!(payload[0]["voice_id"], r#"vo'ice {"1"}"#);
        assert_eq!(payload[0]["user_id"], "zoë");
        assert_eq!(
            (&payload[1]["voice_id"], &payload[1]["user_id"]),
            (&"ünï".into(), &Value::Null)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_enum_may_have_uppercase_labels() {
    fits(Shape {
        variants: POSTGRES,
        ddl: "CREATE TYPE voicestatus AS ENUM ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED');
              CREATE TABLE voices (
                  id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid,
                  elevenlabs_voice_id varchar(100), status voicestatus NOT NULL,
                  preview_url varchar(1024), completed_at timestamptz);
              INSERT INTO voices (elevenlabs_voice_id, status)
              VALUES ('sim-ready-1', 'PROCESSING'), ('sim-banned-1', 'PROCESSING'),
                     ('sim-ready-2', 'PENDING')",
        arguments: &[
            "--status-values",
            "processing=PROCESSING,completed=COMPLETED,failed=FAILED",
        ],
        outcome: "SELECT count(*) FILTER (WHERE status = 'COMPLETED')
                         + 10 * count(*) FILTER (WHERE status = 'FAILED') FROM voices",
    })
    .await;
}

const RENAMED: &[&str] = &[
    "--columns",
    "id=Voice Key,user_id=owner,elevenlabs_voice_id=order,status=\"state\",preview_url=url;--,completed_at=done ünï",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_and_columns_may_have_names_that_need_quotes() {
    const COLUMNS: &str = "\"Voice Key\" char(36) PRIMARY KEY, owner char(36), \"order\" text,
        \"\"\"state\"\"\" text, \"url;--\" text, \"done ünï\" timestamp";
    const ROWS: &str =
        "VALUES ('0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', 'processing'),
               ('1b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-banned-1', 'processing')";
    let outcome = "SELECT count(*) FILTER (WHERE \"\"\"state\"\"\" = 'completed' AND \"done ünï\" IS NOT NULL)
                   + 10 * count(*) FILTER (WHERE \"\"\"state\"\"\" = 'failed') FROM \"voices; drop table users\"";
    let ddl = |table: &str| {
        format!(
            "CREATE TABLE users (id text);
             CREATE TABLE {table} ({COLUMNS});
             INSERT INTO {table} (\"Voice Key\", \"order\", \"\"\"state\"\"\") {ROWS}"
        )
    };
    let hostile = ddl("\"voices; drop table users\"").leak();
    for variants in [POSTGRES, SQLITE] {
        fits(Shape {
            variants,
            ddl: hostile,
            arguments: &[&["--table", "voices; drop table users"], RENAMED]
                .concat()
                .leak()[..],
            outcome,
        })
        .await;
    }
    let elsewhere = format!(
        "CREATE SCHEMA \"Other One\"; {}",
        ddl("\"Other One\".\"voices; drop table users\"")
    );
    fits(Shape {
        variants: POSTGRES,
        ddl: elsewhere.leak(),
        arguments: &[&["--table", "Other One.voices; drop table users"], RENAMED]
            .concat()
            .leak()[..],
        outcome: outcome.replace("FROM ", "FROM \"Other One\".").leak(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_table_and_column_names_are_rejected() {
    for variant in [Variant::B, Variant::E36] {
        let app = App::new(variant).await;
        app.insert_processing(&["sim-ready-1"]).await;
        let bus = Bus::new().await;
        let long = "v".repeat(64);
        for table in [
            "voices; drop table voices",
            "voices\"; drop table voices; --",
            "'",
            "\\",
            "völces",
            &long,
            "a.b.c",
        ] {
            let ended = pass(&app, &bus, &["--table", table]).await;
            ended.expect_code(78);
            let named = ["--table", table];
            command("doctor", &app, &bus, &named).await.expect_code(78);
            let adopt = [&["--adopt"], &named[..]].concat();
            command("migrate", &app, &bus, &adopt).await.expect_code(78);
            for columns in [format!("status={table}"), format!("id={table},status=id")] {
                pass(&app, &bus, &["--columns", &columns])
                    .await
                    .expect_code(78);
            }
        }
        let status = "SELECT count(*) FROM voices WHERE status = 'processing'";
        assert_eq!(app.number(status).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_without_user_ids_has_events_without_user_ids() {
    let payloads = fits(Shape {
        variants: BOTH,
        ddl: "CREATE TABLE voices (
                  id char(36) PRIMARY KEY, elevenlabs_voice_id text, status text,
                  preview_url text, completed_at timestamp);
              INSERT INTO voices (id, elevenlabs_voice_id, status)
              VALUES ('0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', 'processing'),
                     ('1b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-banned-1', 'processing')",
        arguments: &[],
        outcome: "SELECT count(*) FILTER (WHERE status = 'completed')
                         + 10 * count(*) FILTER (WHERE status = 'failed') FROM voices",
    })
    .await;
    assert!(payloads.iter().all(|payload| payload["user_id"].is_null()));
}

/// All rows that share a provider id are updated; rows without one are set aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_ids_may_be_shared_null_or_empty() {
    for variant in [Variant::B, Variant::E36] {
        let ddl = "CREATE TABLE voices (
                id char(36) PRIMARY KEY, user_id char(36), elevenlabs_voice_id text, status text,
                preview_url text, completed_at timestamp);
            INSERT INTO voices (id, elevenlabs_voice_id, status)
            VALUES ('0b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', 'processing'),
                   ('1b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', 'processing'),
                   ('2b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', 'sim-ready-1', 'failed'),
                   ('3b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', NULL, 'processing'),
                   ('4b8f1c52-7f0e-4a6e-9f7a-3a4a4c1f1a11', '', 'processing')";
        let app = match variant {
            Variant::E36 => App::sqlite(variant, ddl).await,
            Variant::A | Variant::B | Variant::D | Variant::Pooled | Variant::E32 => {
                App::postgres(variant, ddl).await
            }
        };
        let bus = Bus::new().await;
        let ended = pass(&app, &bus, &[]).await;
        ended.expect_code(0);
        assert_eq!((ended.count("completed"), ended.count("set_aside")), (2, 2));
        assert_eq!(ended.count("requests"), 1, "one voice, asked about once");
        assert_eq!(
            bus.events("voice.created").await.len(),
            2,
            "one for each row"
        );
        let untouched = "SELECT count(*) FROM voices WHERE status = 'failed'";
        assert_eq!(app.number(untouched).await, 1);
    }
}

/// Rows that were looked up become due again, at both ends of the range of each id type, and next to notes about rows
/// of another table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voices_with_any_type_of_row_id_become_due_again() {
    const OLDEST: &str = "00000000-0000-0000-0000-000000000000";
    for (sqlite, key, ids) in [
        (false, "smallint", ["-32768", "32767"]),
        (false, "integer", ["-2147483648", "2147483647"]),
        (
            false,
            "bigint",
            ["-9223372036854775808", "9223372036854775807"],
        ),
        (false, "numeric", ["0.5", "99999999999999999999"]),
        (false, "text", ["a b", "''"]),
        (false, "varchar(9)", ["a b", "ä"]),
        (false, "char(5)", ["a b", "abcde"]),
        (
            false,
            "uuid",
            [OLDEST, "ffffffff-ffff-ffff-ffff-ffffffffffff"],
        ),
        (
            true,
            "INTEGER",
            ["-9223372036854775808", "9223372036854775807"],
        ),
        (true, "TEXT", ["a b", "''"]),
    ] {
        let ddl = format!(
            "CREATE TABLE voices (
                 id {key} PRIMARY KEY, user_id text, elevenlabs_voice_id text,
                 status text NOT NULL, preview_url text, completed_at timestamp);
             INSERT INTO voices (id, elevenlabs_voice_id, status)
             VALUES ('{}', 'sim-nopreview-1', 'processing'), ('{}', 'sim-nopreview-2', 'processing')",
            ids[0], ids[1]
        );
        let app = match sqlite {
            true => App::sqlite(Variant::E32, &ddl).await,
            false => App::postgres(Variant::A, &ddl).await,
        };
        let provider = simulator().await;
        let run = async |due: &[&str]| {
            let run = sync_once(&app.url, &provider.url());
            run.arg("--auto-migrate").args(due).run().await
        };
        assert_eq!(run(&[]).await.count("processing"), 2, "{key}");
        for other in ["not a key", "1e400", "99999999999999999999999"] {
            app.execute(&format!(
                "INSERT INTO {} (row_id, provider_id, run_id, next_due, first_seen)
                 SELECT '{other}', 'x', run_id, next_due, first_seen FROM {0} LIMIT 1",
                app.own("voices")
            ))
            .await;
        }
        for _ in 0..2 {
            assert_eq!(run(&["--due"]).await.count("due"), 0, "{key}: not yet");
            app.age_schedule(600).await;
            assert_eq!(run(&["--due"]).await.count("processing"), 2, "{key}");
        }
    }
}
