//! Keys and passwords appear nowhere.

use tempfile::TempDir;

use crate::support::app::{App, Variant};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::{FATES, simulator, simulator_with};
use voice_sync_simulator::{Answer, Options};

const KEY: &str = "sk_canary_key_5f1d9c";
const PASSWORD: &str = "canary_password_77ab";

#[track_caller]
fn no_canary(what: &str, ended: &Ended) {
    for (stream, text) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        for canary in [KEY, &KEY[..12], PASSWORD] {
            assert!(
                !text.contains(canary),
                "{canary} on {stream} of {what}:\n{text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_printed_at_trace_log_level() {
    let ids: Vec<String> = FATES
        .iter()
        .map(|(word, ..)| format!("sim-{word}-1"))
        .collect();
    let app = App::new(Variant::A).await;
    app.insert_processing(&ids.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let role = format!("canary_{}", uuid::Uuid::new_v4().simple());
    app.execute(&format!(
        "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'"
    ))
    .await;
    let (_, host) = app.url.rsplit_once('@').expect("a login");
    let url = format!("postgresql+asyncpg://{role}:{PASSWORD}@{host}");
    let bus = Bus::new().await;
    let (_, redis_host) = bus.url.rsplit_once('@').expect("a login");
    let right = simulator_with(Options {
        key: Some(KEY.into()),
        ..Options::default()
    })
    .await;
    let wrong = simulator().await;
    // Some servers repeat the key that they refuse, whole or in part.
    let said = format!("Invalid API key: {KEY}, {}...", &KEY[..12]);
    wrong.script(move |_| Some(Answer::error(401, "invalid_api_key", &said)));
    let traced = |command: VoiceSync| {
        command
            .env("RUST_LOG", "trace")
            .env("ELEVENLABS_API_KEY", KEY)
    };

    let runs = [
        (
            "migrate",
            traced(VoiceSync::new(&["migrate"])).env("DATABASE_URL", &url),
        ),
        ("a refused key", traced(sync_once(&url, &wrong.url()))),
        (
            "a wrong Redis password",
            traced(sync_once(&url, &right.url()))
                .env("REDIS_URL", format!("redis://u:{PASSWORD}@{redis_host}")),
        ),
        (
            "status",
            traced(VoiceSync::new(&["status"])).env("DATABASE_URL", &url),
        ),
        (
            "inspect",
            traced(VoiceSync::new(&["inspect", "sim-ready-1"]))
                .env("DATABASE_URL", &url)
                .env("ELEVENLABS_BASE_URL", wrong.url()),
        ),
        (
            "everything",
            traced(sync_once(&url, &right.url()))
                .env("REDIS_URL", &bus.url)
                .args(&["--output", "text"]),
        ),
        (
            "a database that is away",
            traced(sync_once(
                &format!("postgresql://u:{PASSWORD}@127.0.0.1:1/d"),
                &right.url(),
            )),
        ),
        (
            "an unusable URL",
            traced(sync_once(&format!("{PASSWORD}@host/db"), &right.url())),
        ),
        (
            "an unusable port",
            traced(sync_once(
                &format!("postgresql://u:{PASSWORD}@host:port/db"),
                &right.url(),
            )),
        ),
        (
            "an unusable Redis URL",
            traced(sync_once(&url, &right.url())).env("REDIS_URL", format!("rds://:{PASSWORD}@h")),
        ),
        (
            "an unusable provider",
            traced(sync_once(&url, &format!("https://u:{PASSWORD}@h"))),
        ),
        (
            "help",
            traced(VoiceSync::new(&["sync-once", "--help"]))
                .env("DATABASE_URL", &url)
                .env("REDIS_URL", format!("redis://:{PASSWORD}@h")),
        ),
        (
            "wrong usage",
            traced(sync_once(&url, &right.url())).args(&["--nonsense"]),
        ),
    ];
    for (what, command) in runs {
        let ended = command.run().await;
        no_canary(what, &ended);
        assert!(
            !ended.stdout.is_empty() || !ended.stderr.is_empty(),
            "{what} says something"
        );
    }
    app.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_contains_no_api_key() {
    let app = App::new(Variant::E32).await;
    app.insert_processing(&["sim-ready-1", "sim-unlisted-1", "sim-pvctraining-1"])
        .await;
    let provider = simulator().await;
    let directory = TempDir::new().expect("a directory");
    sync_once(&app.url, &provider.url())
        .env("ELEVENLABS_API_KEY", KEY)
        .within(directory.path())
        .run()
        .await
        .expect_code(0);
    app.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let bytes = std::fs::read(app.directory().join("app.db")).expect("is read");
    assert!(
        !bytes
            .windows(KEY.len())
            .any(|window| window == KEY.as_bytes())
    );
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("is read")
            .count(),
        0,
        "nothing is written beside it"
    );
}
