//! Wrong configuration: one message that names the thing, the value and the way out; nothing is
//! asked, and nothing written.

use tempfile::TempDir;

use crate::support::app::{App, Variant};
use crate::support::binary::{VoiceSync, sync_once};
use crate::support::fates::simulator;

struct Case {
    name: &'static str,
    change: fn(VoiceSync) -> VoiceSync,
    code: i32,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "unknown parameter in the database URL",
        change: |c| c.env("DATABASE_URL", "postgresql://u:hidden@h/d?sslmod=require"),
        code: 2,
        says: &["DATABASE_URL", "sslmod", "remove it"],
    },
    Case {
        name: "unknown scheme",
        change: |c| c.env("DATABASE_URL", "mysql://u:hidden@h/d"),
        code: 2,
        says: &["mysql", "postgresql://"],
    },
    Case {
        name: "missing database file",
        change: |c| c.env("DATABASE_URL", "sqlite:///absent.db"),
        code: 78,
        says: &["absent.db", "--database-url"],
    },
    Case {
        name: "missing key file",
        change: |c| c.args(&["--api-key-file", "absent.key"]),
        code: 78,
        says: &["absent.key", "--api-key-file"],
    },
    Case {
        name: "missing key file by variable",
        change: |c| {
            c.without("ELEVENLABS_API_KEY")
                .env("ELEVENLABS_API_KEY_FILE", "absent.key")
        },
        code: 78,
        says: &["absent.key", "ELEVENLABS_API_KEY_FILE"],
    },
    Case {
        name: "no key at all",
        change: |c| c.env("ELEVENLABS_API_KEY", ""),
        code: 78,
        says: &["no API key", "--api-key-file"],
    },
    Case {
        name: "a key with a line break",
        change: |c| c.env("ELEVENLABS_API_KEY", "hid\nden"),
        code: 78,
        says: &["API key", "line break"],
    },
    Case {
        name: "key and key file",
        change: |c| c.env("ELEVENLABS_API_KEY_FILE", "some.key"),
        code: 78,
        says: &["ELEVENLABS_API_KEY", "ELEVENLABS_API_KEY_FILE", "unset one"],
    },
    Case {
        name: "database URL and its file",
        change: |c| c.env("DATABASE_URL_FILE", "some.url"),
        code: 78,
        says: &["DATABASE_URL", "DATABASE_URL_FILE", "unset one"],
    },
    Case {
        name: "Redis URL and its file",
        change: |c| {
            c.env("REDIS_URL", "redis://:hidden@h")
                .env("REDIS_URL_FILE", "some.url")
        },
        code: 78,
        says: &["REDIS_URL", "REDIS_URL_FILE", "unset one"],
    },
    Case {
        name: "a Redis URL that is none",
        change: |c| c.env("REDIS_URL", "http://:hidden@h"),
        code: 2,
        says: &["REDIS_URL", "redis://"],
    },
    Case {
        name: "events without a Redis",
        change: |c| c.args(&["--events", "stream"]),
        code: 2,
        says: &["--events", "REDIS_URL"],
    },
    Case {
        name: "no such table",
        change: |c| c.args(&["--table", "vices"]),
        code: 78,
        says: &["\"vices\"", "--table"],
    },
    Case {
        name: "no such column",
        change: |c| c.args(&["--columns", "status=state,id=pk"]),
        code: 78,
        says: &["\"pk\"", "\"state\"", "--columns"],
    },
    Case {
        name: "no such column, of those that may be absent",
        change: |c| c.args(&["--columns", "user_id=owner,created_at=born"]),
        code: 78,
        says: &[
            "\"owner\"",
            "\"born\"",
            "--columns",
            "elevenlabs_voice_id, name",
        ],
    },
    Case {
        name: "an unknown parameter in the Redis URL",
        change: |c| c.env("REDIS_URL", "redis://:hidden@h/0?retries=3"),
        code: 2,
        says: &["REDIS_URL", "retries", "remove it"],
    },
    Case {
        name: "a provider's URL with its version",
        change: |c| c.env("ELEVENLABS_BASE_URL", "https://api.elevenlabs.io/v1"),
        code: 2,
        says: &["ELEVENLABS_BASE_URL", "/v1", "remove that"],
    },
    Case {
        name: "one value for two statuses",
        change: |c| c.args(&["--status-values", "failed=processing"]),
        code: 2,
        says: &["--status-values", "processing", "two different things"],
    },
    Case {
        name: "a limit of 0",
        change: |c| c.args(&["--limit", "0"]),
        code: 2,
        says: &["--limit", "0"],
    },
    Case {
        name: "an unknown column key",
        change: |c| c.args(&["--columns", "state=status"]),
        code: 2,
        says: &["--columns", "\"state\"", "elevenlabs_voice_id"],
    },
    Case {
        name: "a provider in the clear",
        change: |c| c.env("ELEVENLABS_BASE_URL", "http://api.elevenlabs.io"),
        code: 2,
        says: &["ELEVENLABS_BASE_URL", "api.elevenlabs.io", "https://"],
    },
    Case {
        name: "a concurrency of 0",
        change: |c| c.args(&["--concurrency", "0"]),
        code: 2,
        says: &["--concurrency", "'0'", "1 to 1000"],
    },
    Case {
        name: "a duration that does not parse",
        change: |c| c.args(&["--fail-after", "soon"]),
        code: 2,
        says: &["--fail-after", "'soon'"],
    },
    Case {
        name: "a duration by variable that does not parse",
        change: |c| c.env("VOICE_SYNC_MISSING_AFTER", "5 minuets"),
        code: 2,
        says: &["VOICE_SYNC_MISSING_AFTER", "5 minuets"],
    },
    Case {
        name: "a choice by variable that there is not",
        change: |c| c.env("VOICE_SYNC_LOOKUP", "bach"),
        code: 2,
        says: &["VOICE_SYNC_LOOKUP", "'bach'", "batch"],
    },
    Case {
        name: "a value on the command line, beside a variable",
        change: |c| {
            c.env("VOICE_SYNC_CONCURRENCY", "4")
                .args(&["--concurrency", "many"])
        },
        code: 2,
        says: &["--concurrency", "'many'"],
    },
    Case {
        name: "a misspelt variable",
        change: |c| c.env("VOICE_SYNC_CONCURENCY", "5"),
        code: 2,
        says: &[
            "VOICE_SYNC_CONCURENCY",
            "did you mean VOICE_SYNC_CONCURRENCY",
        ],
    },
    Case {
        name: "no database",
        change: |c| c.without("DATABASE_URL"),
        code: 78,
        says: &["no database", "DATABASE_URL", "--database-url"],
    },
    Case {
        name: "an unknown flag",
        change: |c| c.args(&["--concurency", "5"]),
        code: 2,
        says: &["--concurency", "--concurrency"],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_invalid_input_is_reported_without_side_effects() {
    let app = App::new(Variant::E32).await;
    app.insert_processing(&["sim-ready-1"]).await;
    let before = app.rows().await;
    let provider = simulator().await;
    let empty = TempDir::new().expect("a directory");
    for Case {
        name,
        change,
        code,
        says,
    } in CASES
    {
        let ended = change(sync_once(&app.url, &provider.url()))
            .within(empty.path())
            .run()
            .await;
        assert_eq!(
            ended.code, *code,
            "{name}: {}{}",
            ended.stdout, ended.stderr
        );
        for word in *says {
            let said = ended.stderr.replace("\\\"", "\"");
            assert!(said.contains(word), "{name}: {word:?} is not in {said}");
        }
        assert!(!ended.stderr.contains("hidden"), "{name}: {}", ended.stderr);
        assert_eq!(ended.report()["error"]["code"], *code, "{name}");
        assert!(provider.requests().is_empty(), "{name}");
    }
    assert_eq!(app.rows().await, before);
    let own = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'voice_sync_%'";
    assert_eq!(app.number(own).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_a_status_that_is_missing_from_the_enum() {
    let app = App::new(Variant::A).await;
    app.insert_processing(&["sim-ready-1"]).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url())
        .args(&["--auto-migrate", "--status-values", "completed=DONE"])
        .run()
        .await;
    ended.expect_code(78);
    for word in ["DONE", "processing, completed, failed", "--status-values"] {
        assert!(
            ended.stderr.contains(word),
            "{word} is not in {}",
            ended.stderr
        );
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'voice_sync'";
    assert_eq!(
        app.number(schemas).await,
        0,
        "nothing is made in a database that does not fit"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_a_file_that_is_not_a_database() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("notes.db");
    std::fs::write(
        &path,
        "this is no database, and long enough to be looked at closely",
    )
    .expect("is written");
    let provider = simulator().await;
    let ended = sync_once(&format!("sqlite:///{}", path.display()), &provider.url())
        .run()
        .await;
    ended.expect_code(78);
    assert!(ended.stderr.contains("notes.db"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_database_exits_with_code_69() {
    let provider = simulator().await;
    let ended = sync_once("postgresql://u:hidden@127.0.0.1:1/d", &provider.url())
        .run()
        .await;
    ended.expect_code(69);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hidden"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_database_password_exits_with_code_78() {
    let app = App::new(Variant::A).await;
    let (_, host) = app.url.rsplit_once('@').expect("a login");
    let provider = simulator().await;
    let ended = sync_once(
        &format!("postgresql://postgres:hidden@{host}"),
        &provider.url(),
    )
    .run()
    .await;
    ended.expect_code(78);
    assert!(ended.stderr.contains("login"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hidden"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_can_be_read_from_files() {
    let app = App::new(Variant::E32).await;
    app.insert_processing(&["sim-ready-1"]).await;
    let provider = simulator().await;
    let directory = TempDir::new().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("is written");
        path.display().to_string()
    };
    file("elevenlabs-api-key", "from systemd\n");
    for command in [
        sync_once(&app.url, &provider.url())
            .without("DATABASE_URL")
            .env("DATABASE_URL_FILE", file("url", &format!("{}\n", app.url)))
            .without("ELEVENLABS_API_KEY")
            .env("ELEVENLABS_API_KEY_FILE", file("key", "a key\n")),
        sync_once(&app.url, &provider.url())
            .without("ELEVENLABS_API_KEY")
            .env(
                "CREDENTIALS_DIRECTORY",
                directory.path().display().to_string(),
            ),
    ] {
        command.run().await.expect_code(0);
    }
    assert_eq!(app.row("sim-ready-1").await.status, "completed");
}
