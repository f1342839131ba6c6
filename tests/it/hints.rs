//! Hints over HTTP: whom they are taken from, and what comes of them.

use std::process::Command;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use voice_sync_simulator::Simulator;

use crate::daemon::migrated;
use crate::support::app::{App, NewVoice, Variant, row_id};
use crate::support::binary::VoiceSync;
use crate::support::daemon::Daemon;
use crate::support::fates::simulator;
use crate::support::from_scripts;

const BOTH: [Variant; 2] = [Variant::A, Variant::E32];
const SECRET: &str = "wsec_0123456789";
const TOKEN: &str = "hints-token-0123456789";

/// A daemon that would look a voice up again in a minute at the earliest, unless it is told to.
fn patient(app: &App, provider: &Simulator) -> VoiceSync {
    VoiceSync::new(&[
        "daemon",
        "--interval=24h",
        "--request-budget=1/min",
        "--listen=127.0.0.1:0",
    ])
    .env("DATABASE_URL", &app.url)
    .env("ELEVENLABS_BASE_URL", provider.url())
    .env("ELEVENLABS_WEBHOOK_SECRET", SECRET)
}

/// The header of a webhook.
fn signature(secret: &str, time: i64, body: &str) -> String {
    let mut code = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
    code.update(format!("{time}.{body}").as_bytes());
    let digest = code.finalize().into_bytes();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={time},v0={digest}")
}

async fn send_webhook(daemon: &mut Daemon, body: &str) -> u16 {
    let signature = signature(SECRET, chrono::Utc::now().timestamp(), body);
    let headers = [("ElevenLabs-Signature", signature.as_str())];
    let path = "/webhooks/elevenlabs";
    daemon.post(path, &headers, body.as_bytes()).await.0
}

async fn send_hint(daemon: &mut Daemon, token: &str, body: &str) -> u16 {
    let authorization = format!("Bearer {token}");
    let headers = [("Authorization", authorization.as_str())];
    daemon.post("/hints", &headers, body.as_bytes()).await.0
}

/// A counter of `/metrics`.
async fn metric(daemon: &mut Daemon, name: &str) -> u64 {
    let (_, metrics) = daemon.get("/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    value.trim().parse().expect("a number")
}

/// The content of the hint is ignored: only the provider's answer counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hint_triggers_an_immediate_lookup() {
    const LIES: &str = r#""status":"failed","preview_url":"https://evil.example/x.mp3""#;
    for variant in BOTH {
        let (app, provider) = (migrated(variant).await, simulator().await);
        let ids = ["webhook", "top-level", "by-row", "by-provider", "other"];
        for id in ids {
            provider.add_voice(id, "Anna [unverified]");
        }
        app.insert_processing(&ids).await;
        let daemon = patient(&app, &provider).env("VOICE_SYNC_HINTS_TOKEN", TOKEN);
        let mut daemon = Daemon::start(daemon);
        let noted = format!(
            "SELECT count(*) FROM {} WHERE last_asked IS NOT NULL",
            app.own("voices")
        );
        daemon
            .wait_for("their first lookup", async || {
                (app.number(&noted).await == ids.len() as i64).then_some(())
            })
            .await;
        for id in ids {
            provider.add_voice(id, "Anna [ready]");
        }
        let hinted = format!(
            r#"{{"type":"voice_ready","data":{{"voice_id":"webhook",{LIES}}},"voice_id":"top-level"}}"#
        );
        assert_eq!(send_webhook(&mut daemon, &hinted).await, 200);
        let row = format!(r#"{{"voice_id":"{}",{LIES}}}"#, row_id("by-row"));
        assert_eq!(send_hint(&mut daemon, TOKEN, &row).await, 200);
        let id = r#"{"voice_id":"by-provider"}"#;
        assert_eq!(send_hint(&mut daemon, TOKEN, id).await, 200);
        // The request has room for the one that nobody hinted at, or it is looked up in some minutes.
        let finished = "SELECT count(*) FROM voices WHERE CAST(status AS text) = 'completed'
                        AND elevenlabs_voice_id <> 'other'";
        daemon
            .wait_for("the hinted ones", async || {
                (app.number(finished).await == 4).then_some(())
            })
            .await;
        let lies = "SELECT count(*) FROM voices WHERE preview_url LIKE '%evil%'
                    OR CAST(status AS text) = 'failed'";
        assert_eq!(app.number(lies).await, 0);
        assert!(provider.counts().list <= 4, "{:?}", provider.counts());

        let nobody = r#"{"voice_id":"nobody'OR(1=1)--"}"#;
        assert_eq!(send_hint(&mut daemon, TOKEN, nobody).await, 200);
        // Not every database could hold these.
        for odd in ["nobody\\u0000", "\u{58f0}", "a b"] {
            let odd = format!(r#"{{"voice_id":"{odd}"}}"#);
            assert_eq!(send_hint(&mut daemon, TOKEN, &odd).await, 400, "{odd}");
            assert_eq!(send_webhook(&mut daemon, &odd).await, 200, "{odd}");
        }
        // Two ids may reach the database when the voices are finished already.
        let patience = Instant::now() + Duration::from_secs(60);
        let ids = async |daemon: &mut Daemon, voice| {
            let name = format!("voice_sync_hinted_ids_total{{voice=\"{voice}\"}}");
            metric(daemon, &name).await
        };
        while ids(&mut daemon, "processing").await + ids(&mut daemon, "unknown").await < 5 {
            assert!(Instant::now() < patience, "{}", daemon.log());
        }
        assert!(ids(&mut daemon, "unknown").await >= 1);
        daemon.stop().await;
        for secret in [SECRET, TOKEN] {
            assert!(!daemon.log().contains(secret), "{}", daemon.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejects_hints_without_a_valid_signature_or_token() {
    let (app, provider) = (App::new(Variant::E32).await, simulator().await);
    let mut daemon = Daemon::start(patient(&app, &provider));
    let now = chrono::Utc::now().timestamp();
    let body = r#"{"type":"x","data":{"voice_id":"a"}}"#;
    let large = "x".repeat(64 * 1024 + 1);
    let largest = format!("\"{}\"", "x".repeat(64 * 1024 - 2));
    for (secret, time, signed, sent, expected) in [
        (SECRET, now, body, body, 200),
        (SECRET, now - 1700, body, body, 200),
        (SECRET, now, "{}", "{}", 200),
        (SECRET, now, &largest, &largest, 200),
        (SECRET, now - 1900, body, body, 401),
        ("wrong", now, body, body, 401),
        (SECRET, now, "{}", body, 401),
        (SECRET, now, "{", "{", 400),
        (SECRET, now, &large, &large, 413),
        ("wrong", now, &large, &large, 413),
    ] {
        let signature = signature(secret, time, signed);
        let headers = [("ElevenLabs-Signature", signature.as_str())];
        let path = "/webhooks/elevenlabs";
        let (status, _) = daemon.post(path, &headers, sent.as_bytes()).await;
        assert_eq!(status, expected, "{signature} {}", sent.len());
    }
    let unsigned = daemon.post("/webhooks/elevenlabs", &[], b"{}").await;
    assert_eq!(unsigned.0, 401);
    assert_eq!(daemon.get("/webhooks/elevenlabs").await.0, 405);

    // Without a token of its own, the application says the webhooks' secret.
    for (token, body, expected) in [
        (SECRET, r#"{"voice_id":"a"}"#, 200),
        ("wrong", r#"{"voice_id":"a"}"#, 401),
        ("", r#"{"voice_id":"a"}"#, 401),
        (SECRET, "{}", 400),
        (SECRET, r#"{"voice_id":""}"#, 400),
        (SECRET, r#"{"voice_id":7}"#, 400),
        (SECRET, r#"["a"]"#, 400),
        (SECRET, "a", 400),
        (SECRET, &large, 413),
    ] {
        let status = send_hint(&mut daemon, token, body).await;
        assert_eq!(status, expected, "{token} {}", body.len());
    }
    assert_eq!(daemon.post("/hints", &[], b"{}").await.0, 401);
    let requests = |source, result| {
        format!("voice_sync_hints_total{{source=\"{source}\",result=\"{result}\"}}")
    };
    for (source, result, number) in [
        ("webhook", "accepted", 4),
        ("webhook", "unauthorized", 4),
        ("webhook", "too_large", 2),
        ("webhook", "invalid", 1),
        ("application", "accepted", 1),
        ("application", "unauthorized", 3),
        ("application", "too_large", 1),
        ("application", "invalid", 5),
    ] {
        let name = requests(source, result);
        assert_eq!(metric(&mut daemon, &name).await, number, "{name}");
    }
    assert_eq!(
        daemon.said("a hint was refused").len(),
        2,
        "one a minute for each source"
    );
    daemon.stop().await;
    assert!(!daemon.log().contains(SECRET), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hint_endpoints_do_not_exist_without_a_secret() {
    let (app, provider) = (App::new(Variant::E32).await, simulator().await);
    let none = patient(&app, &provider).without("ELEVENLABS_WEBHOOK_SECRET");
    let mut daemon = Daemon::start(none);
    for path in ["/hints", "/webhooks/elevenlabs"] {
        assert_eq!(daemon.post(path, &[], b"{}").await.0, 404, "{path}");
    }
    daemon.stop().await;

    let token = patient(&app, &provider)
        .without("ELEVENLABS_WEBHOOK_SECRET")
        .env("VOICE_SYNC_HINTS_TOKEN", TOKEN);
    let mut daemon = Daemon::start(token);
    let body = r#"{"voice_id":"a"}"#;
    assert_eq!(send_hint(&mut daemon, TOKEN, body).await, 200);
    assert_eq!(send_webhook(&mut daemon, body).await, 404);
    daemon.stop().await;
}

/// Orchestrators and systemd pass secrets as files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhook_secret_can_be_read_from_a_file() {
    let (app, provider) = (App::new(Variant::E32).await, simulator().await);
    let directory = tempfile::TempDir::new().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("is written");
        path.to_str().expect("is text").to_owned()
    };
    let path = file("elevenlabs-webhook-secret", &format!("{SECRET}\n"));
    let without = || patient(&app, &provider).without("ELEVENLABS_WEBHOOK_SECRET");
    for command in [
        without().env("ELEVENLABS_WEBHOOK_SECRET_FILE", &path),
        without().env(
            "CREDENTIALS_DIRECTORY",
            directory.path().to_str().expect("is text"),
        ),
    ] {
        let mut daemon = Daemon::start(command);
        assert_eq!(send_webhook(&mut daemon, "{}").await, 200);
        daemon.stop().await;
    }
    let empty = file("empty", " \n");
    for (name, value, says) in [
        ("ELEVENLABS_WEBHOOK_SECRET_FILE", path.as_str(), "both set"),
        (
            "VOICE_SYNC_HINTS_TOKEN_FILE",
            "/nowhere",
            "cannot read /nowhere",
        ),
        ("VOICE_SYNC_HINTS_TOKEN_FILE", &empty, "is empty"),
    ] {
        let ended = patient(&app, &provider).env(name, value).run().await;
        ended.expect_code(78);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}

/// A voice that was hinted at while the database failed is looked up once it works again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hint_survives_a_database_error() {
    let (app, provider) = (migrated(Variant::A).await, simulator().await);
    provider.add_voice("late", "Anna [unverified]");
    app.insert(&[NewVoice::processing("late")]).await;
    let failing =
        patient(&app, &provider).env("VOICE_SYNC_FAILPOINTS", "store.hint.before=error@1");
    let mut daemon = Daemon::start(failing);
    let noted = format!(
        "SELECT count(*) FROM {} WHERE last_asked IS NOT NULL",
        app.own("voices")
    );
    daemon
        .wait_for("its first lookup", async || {
            (app.number(&noted).await == 1).then_some(())
        })
        .await;
    provider.add_voice("late", "Anna [ready]");
    let body = r#"{"data":{"voice_id":"late"}}"#;
    assert_eq!(send_webhook(&mut daemon, body).await, 200);
    daemon.wait_until(&app, "completed", 1).await;
    daemon.stop().await;
}

/// The number of hints that wait for a hung database is bounded; further ones are answered with 429.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_hint_inbox_answers_429() {
    let (app, provider) = (migrated(Variant::E32).await, simulator().await);
    let hangs = patient(&app, &provider).env("VOICE_SYNC_FAILPOINTS", "store.hint.before=stall:1h");
    let mut daemon = Daemon::start(hangs);
    let mut answered = 200;
    for number in 0..5_010 {
        let body = format!(r#"{{"voice_id":"a{number}","data":{{"voice_id":"b{number}"}}}}"#);
        answered = send_webhook(&mut daemon, &body).await;
        if answered != 200 {
            assert_eq!((answered, number), (429, 5_000));
            break;
        }
    }
    assert_eq!(answered, 429);
    // One that waits already takes no room.
    assert_eq!(send_webhook(&mut daemon, r#"{"voice_id":"a7"}"#).await, 200);
    daemon.wait_until_answers("/livez", 200).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_accepts_the_same_webhooks_as_the_official_sdk() {
    let (app, provider) = (App::new(Variant::E32).await, simulator().await);
    let mut daemon = Daemon::start(patient(&app, &provider));
    let url = format!("http://{}", daemon.address().await);
    let seed = fastrand::u32(..).to_string();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(from_scripts("VOICE_SYNC_TEST_PYTHON"))
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/python/webhooks.py"
            ))
            .args([&url, SECRET, &seed, "500"])
            .output()
            .expect("python runs")
    });
    let output = output.await.expect("joins");
    let [said, errors] = [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("of 500 accepted"), "{said}");
    daemon.stop().await;
}
