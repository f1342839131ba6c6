//! Events, from the transition to the consumer.

use redis::{AsyncTypedCommands, Client};
use serde_json::Value;
use std::process::Command;
use tempfile::NamedTempFile;

use crate::support::app::{App, NewVoice, Variant, row_id, user_id};
use crate::support::binary::sync_once;
use crate::support::bus::Bus;
use crate::support::fates::simulator;
use crate::support::from_scripts;

/// What the application's consumers do with an event, as its developers would write it.
const CONSUMER: &str = r#"
import sys
from datetime import datetime
from uuid import UUID
from pydantic import BaseModel, ConfigDict

class Payload(BaseModel):
    model_config = ConfigDict(extra="forbid")
    voice_id: UUID
    user_id: UUID

class Event(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: str
    payload: dict
    timestamp: datetime
    source: str
    event_id: str

for line in open(sys.argv[1]):
    event = Event.model_validate_json(line)
    payload = Payload.model_validate(event.payload)
    assert str(payload.voice_id) == event.payload["voice_id"], "dashes included"
    assert event.timestamp.tzinfo is None, "naive UTC"
    print("valid", event.type)
"#;

async fn app_with(ids: &[&str]) -> App {
    let app = App::new(Variant::E32).await;
    app.insert_processing(ids).await;
    app
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pydantic_model_of_the_application_accepts_events() {
    let app = app_with(&["sim-ready-1", "sim-banned-1"]).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    sync_once(&app.url, &provider.url())
        .publishing_to(&bus)
        .run()
        .await
        .expect_code(0);
    let events = [
        bus.events("voice.created").await,
        bus.events("voice.updated").await,
    ]
    .concat();
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines.join("\n")).expect("is written");
    let output = Command::new(from_scripts("VOICE_SYNC_TEST_PYTHON"))
        .args(["-c", CONSUMER])
        .arg(file.path())
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said.trim(), "valid voice.created\nvalid voice.updated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pubsub_channel_receives_the_same_body() {
    let app = app_with(&["sim-ready-1"]).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    let client = Client::open(bus.url.as_str()).expect("a URL");
    let mut listener = client.get_async_pubsub().await.expect("Redis answers");
    listener
        .subscribe(format!("{}voice.created", bus.prefix))
        .await
        .expect("subscribes");
    sync_once(&app.url, &provider.url())
        .publishing_to(&bus)
        .args(&["--events", "pubsub"])
        .run()
        .await
        .expect_code(0);
    let message = futures_util::StreamExt::next(&mut listener.into_on_message())
        .await
        .expect("a message");
    let body: Value = serde_json::from_slice(message.get_payload_bytes()).expect("JSON");
    assert_eq!(body["type"], "voice.created");
    assert_eq!(
        body["payload"]["voice_id"],
        row_id("sim-ready-1").to_string()
    );
    assert_eq!(
        body["payload"]["user_id"],
        user_id("sim-ready-1").to_string()
    );
    assert_eq!(body["source"], "voice-sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpublished_events_wait_for_the_next_run() {
    let ids: Vec<String> = (0..250).map(|n| format!("sim-ready-{n}")).collect();
    let app = App::new(Variant::A).await;
    app.insert(&ids.iter().map(NewVoice::processing).collect::<Vec<_>>())
        .await;
    drop(app.store().await);
    let (provider, bus) = (simulator().await, Bus::new().await);
    let run = async |redis: &str| {
        sync_once(&app.url, &provider.url())
            .env("REDIS_URL", redis)
            .env("VOICE_SYNC_EVENT_PREFIX", &bus.prefix)
            .run()
            .await
    };
    let wrong_password = bus.url.replacen("redis://:", "redis://:not", 1);
    for redis in ["redis://127.0.0.1:1", &wrong_password] {
        let ended = run(redis).await;
        ended.expect_code(75);
        assert_eq!(ended.count("events_pending"), 250, "{redis}");
        assert_eq!(ended.count("events_published"), 0);
        assert!(
            ended.stderr.contains("events wait in the outbox"),
            "{}",
            ended.stderr
        );
    }
    let at_once = run(&wrong_password).await;
    at_once.expect_code(75);
    assert!(
        at_once.stderr.contains("the next try is in"),
        "{}",
        at_once.stderr
    );
    app.age_own_tables(60).await;
    let status = "SELECT count(*) FROM voices WHERE status = 'completed'";
    assert_eq!(app.number(status).await, 250, "transitions went on");
    let recovered = run(&bus.url).await;
    recovered.expect_code(0);
    assert_eq!(
        (
            recovered.count("events_published"),
            recovered.count("events_pending")
        ),
        (250, 0)
    );
    assert_eq!(bus.events("voice.created").await.len(), 250);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_refused_by_redis_waits_and_others_are_published() {
    let app = app_with(&["sim-ready-1", "sim-banned-1"]).await;
    let (provider, bus) = (simulator().await, Bus::new().await);
    let mut connection = bus.connection.clone();
    let stream = format!("{}voice.updated", bus.prefix);
    connection
        .set(&stream, "not a stream")
        .await
        .expect("is set");
    let run = async || {
        sync_once(&app.url, &provider.url())
            .publishing_to(&bus)
            .run()
            .await
    };
    let ended = run().await;
    ended.expect_code(75);
    assert_eq!(
        (
            ended.count("events_published"),
            ended.count("events_pending")
        ),
        (1, 1)
    );
    assert!(ended.stderr.contains("WRONGTYPE"), "{}", ended.stderr);
    connection.del(&stream).await.expect("is removed");
    app.age_own_tables(60).await;
    run().await.expect_code(0);
    assert_eq!(bus.events("voice.created").await.len(), 1);
    assert_eq!(bus.events("voice.updated").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_recorded_without_a_bus() {
    let app = app_with(&["sim-ready-1"]).await;
    let provider = simulator().await;
    let ended = sync_once(&app.url, &provider.url()).run().await;
    ended.expect_code(0);
    assert_eq!(
        (ended.count("completed"), ended.count("events_recorded")),
        (1, 0)
    );
    let app2 = app_with(&["sim-ready-1"]).await;
    let ended = sync_once(&app2.url, &provider.url())
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .args(&["--events", "none"])
        .run()
        .await;
    ended.expect_code(0);
    assert_eq!(
        app2.number("SELECT count(*) FROM voice_sync_outbox").await,
        0
    );
}
