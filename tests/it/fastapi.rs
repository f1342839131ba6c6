//! The example application, with voice-sync beside it: `examples/fastapi`.

mod web;

use std::process::Command;

use redis::AsyncTypedCommands;
use serde_json::{Value, json};
use uuid::Uuid;
use voice_sync_simulator::{Options, Simulator};

use self::web::Web;
use crate::support::app::{App, Variant};
use crate::support::binary::{KEY, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::simulator_with;
use crate::support::from_scripts;

/// The group in which the application reads events.
const GROUP: &str = "cache-service";

/// The application as its developers run it, on servers of its own.
struct Site {
    // First, as fields are dropped in their order: it ends before what it uses.
    web: Web,
    database: App,
    bus: Bus,
    provider: Simulator,
}

impl Site {
    async fn new() -> Self {
        let database = App::postgres(Variant::A, "").await;
        let bus = Bus::new().await;
        let provider = simulator_with(Options {
            key: Some(KEY.into()),
            ..Options::default()
        })
        .await;
        let upgraded = alembic(&database, &["upgrade", "head"]).await;
        assert!(upgraded.succeeded, "{}", upgraded.said);
        let mut python = python(&database);
        python
            .env("REDIS_URL", &bus.url)
            .env("EVENT_PREFIX", &bus.prefix)
            .env("ELEVENLABS_BASE_URL", provider.url())
            .env("ELEVENLABS_API_KEY", KEY);
        let web = Web::start(python).await;
        Self {
            web,
            database,
            bus,
            provider,
        }
    }

    async fn migrate(&self) {
        VoiceSync::new(&["migrate"])
            .env("DATABASE_URL", &self.database.url)
            .run()
            .await
            .expect_code(0);
    }

    fn sync_once(&self) -> VoiceSync {
        sync_once(&self.database.url, &self.provider.url()).publishing_to(&self.bus)
    }

    /// Alembic's own check that the database is what the application's models say.
    async fn expect_no_drift(&self) {
        let check = alembic(&self.database, &["check"]).await;
        assert!(check.succeeded, "{}", check.said);
        assert!(
            check.said.contains("No new upgrade operations detected"),
            "{}",
            check.said
        );
    }

    /// Publishes an event as somebody else than voice-sync.
    async fn publish(&self, event_type: &str, event: &str) {
        let mut redis = self.bus.connection.clone();
        let stream = format!("{}{event_type}", self.bus.prefix);
        redis
            .xadd(stream, "*", &[("event", event), ("type", event_type)])
            .await
            .expect("is published");
    }

    /// Waits until the application has acknowledged all that is in the stream.
    async fn consumed(&self, event_type: &str) {
        let mut redis = self.bus.connection.clone();
        let stream = format!("{}{event_type}", self.bus.prefix);
        self.web
            .wait_for("events are acknowledged", async || {
                let last = redis.xinfo_stream(&stream).await.expect("a stream");
                let groups = redis.xinfo_groups(&stream).await.expect("groups").groups;
                let group = groups.iter().find(|group| group.name == GROUP)?;
                let dealt_with =
                    group.pending == 0 && group.last_delivered_id == last.last_generated_id;
                dealt_with.then_some(())
            })
            .await;
    }
}

/// Python in the application's directory, with an environment that has nothing of the caller's.
fn python(database: &App) -> Command {
    let mut command = Command::new(from_scripts("VOICE_SYNC_TEST_PYTHON"));
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fastapi"))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("DATABASE_URL", &database.url);
    command
}

struct Alembic {
    succeeded: bool,
    said: String,
}

async fn alembic(database: &App, arguments: &[&str]) -> Alembic {
    let mut command = python(database);
    command.args(["-m", "alembic"]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("joins")
        .expect("alembic runs");
    let said = [output.stdout, output.stderr].concat();
    Alembic {
        succeeded: output.status.success(),
        said: String::from_utf8_lossy(&said).into_owned(),
    }
}

fn provider_id(voice: &Value) -> &str {
    voice["elevenlabs_voice_id"].as_str().expect("an id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmodified_application_sees_its_voices_finished() {
    let site = Site::new().await;
    let (early, late) = (Uuid::new_v4(), Uuid::new_v4());
    let ready = site.web.create(early, "Anna [ready]").await;
    site.web.create(early, "Ben [banned]").await;
    let later = site.web.create(late, "Cleo [ready 1h]").await;
    for user in [early, late] {
        let first = site.web.list(user).await;
        assert!(!first.cached);
        assert!(
            first
                .statuses()
                .iter()
                .all(|status| *status == "processing")
        );
        assert!(site.web.list(user).await.cached);
    }

    let looked_at = VoiceSync::new(&["doctor", "--auto-migrate"])
        .env("DATABASE_URL", &site.database.url)
        .env("ELEVENLABS_BASE_URL", site.provider.url())
        .publishing_to(&site.bus);
    looked_at.run().await.expect_code(0);
    let dry = site.sync_once().arg("--dry-run").run().await;
    dry.expect_code(0);
    assert_eq!((dry.count("completed"), dry.count("failed")), (1, 1));
    site.migrate().await;
    site.expect_no_drift().await;
    let before = site.web.list(early).await;
    assert!(before.cached, "nothing has happened yet");
    assert_eq!(before.statuses(), ["processing", "processing"]);

    let pass = site.sync_once().run().await;
    pass.expect_code(0);
    assert_eq!(pass.count("events_published"), 2);
    let after = site.web.fresh_list(early).await;
    assert_eq!(after.statuses(), ["completed", "failed"]);
    let preview = format!(
        "https://storage.example.com/previews/{}.mp3",
        provider_id(&ready)
    );
    assert_eq!(after.voices[0]["preview_url"], preview);
    assert!(after.voices[0]["completed_at"].is_string());
    assert_eq!(after.voices[1]["preview_url"], Value::Null);
    assert_eq!(after.voices[1]["completed_at"], Value::Null);
    let other = site.web.list(late).await;
    assert!(other.cached, "the other user's voice is not finished");
    assert_eq!(other.statuses(), ["processing"]);
    site.expect_no_drift().await;

    // The hour is over.
    site.provider.add_voice(provider_id(&later), "Cleo [ready]");
    let pass = site.sync_once().run().await;
    pass.expect_code(0);
    assert_eq!((pass.count("due"), pass.count("completed")), (1, 1));
    let after = site.web.fresh_list(late).await;
    assert_eq!(after.statuses(), ["completed"]);
    assert!(after.voices[0]["preview_url"].is_string());

    site.database.execute("CREATE TABLE stray (id int)").await;
    let check = alembic(&site.database, &["check"]).await;
    assert!(
        !check.succeeded,
        "this check finds drift where there is any"
    );
    assert!(check.said.contains("remove_table"), "{}", check.said);
    let log = site.web.stop().await;
    assert!(log.contains("Application shutdown complete"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_invalidates_cached_lists_once() {
    let site = Site::new().await;
    site.migrate().await;
    let user = Uuid::new_v4();
    let silent = site.web.create(user, "Dora [ready]").await;
    site.web.list(user).await;

    let without_events = sync_once(&site.database.url, &site.provider.url());
    without_events.run().await.expect_code(0);
    let row = site.database.row(provider_id(&silent)).await;
    assert_eq!(row.status, "completed");
    let stale = site.web.list(user).await;
    assert!(stale.cached, "the table alone drops no list");
    assert_eq!(stale.statuses(), ["processing"]);

    site.web.create(user, "Emil [ready]").await;
    site.web.list(user).await;
    site.sync_once().run().await.expect_code(0);
    let list = site.web.fresh_list(user).await;
    assert_eq!(list.statuses(), ["completed", "completed"]);

    let events = site.bus.events("voice.created").await;
    assert_eq!(events.len(), 1);
    site.publish("voice.created", &events[0].to_string()).await;
    site.publish("voice.created", "no JSON").await;
    site.publish(
        "voice.updated",
        &json!({"type": "voice.updated"}).to_string(),
    )
    .await;
    site.consumed("voice.created").await;
    site.consumed("voice.updated").await;
    assert!(site.web.list(user).await.cached, "none of them was news");

    // The application's own publishers have other ids, and other times.
    let mut news = events[0].clone();
    news["event_id"] = json!(Uuid::new_v4().to_string());
    news["source"] = json!("voice-service");
    site.publish("voice.created", &news.to_string()).await;
    assert!(!site.web.fresh_list(user).await.cached);
    site.web.stop().await;
}

/// With an Alembic that has the example's revision, and no other.
async fn upgrade(app: &App) -> Alembic {
    let directory = tempfile::TempDir::new().expect("a directory");
    let ini = directory.path().join("alembic.ini");
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let text = include_str!("../../examples/fastapi/alembic.ini")
        .replace("%(here)s", &format!("{examples}/fastapi"))
        .replace(
            "[alembic]",
            &format!("[alembic]\nversion_locations = {examples}/alembic"),
        );
    std::fs::write(&ini, text).expect("is written");
    alembic(app, &["-c", &ini.display().to_string(), "upgrade", "head"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn example_revision_adds_the_missing_columns() {
    for there in ["", ", status varchar(20) NOT NULL DEFAULT 'processing'"] {
        let ddl = format!(
            "CREATE TABLE voices (
                 id uuid PRIMARY KEY, user_id uuid, elevenlabs_voice_id varchar(100) NOT NULL,
                 created_at timestamp DEFAULT '2024-11-02 08:00:00' {there});
             INSERT INTO voices (id, elevenlabs_voice_id)
             VALUES (gen_random_uuid(), 'sim-ready-1'), (gen_random_uuid(), 'sim-nopreview-1')"
        );
        let app = App::postgres(Variant::B, &ddl).await;
        let file = "SELECT pg_relation_filenode('voices')::bigint";
        let before = app.number(file).await;
        for _ in 0..2 {
            let upgraded = upgrade(&app).await;
            assert!(upgraded.succeeded, "{}", upgraded.said);
            // As if the revision had never been applied.
            app.execute("DELETE FROM alembic_version").await;
        }
        assert_eq!(
            app.number(file).await,
            before,
            "the table was not rewritten"
        );
        let adoption = VoiceSync::new(&["migrate", "--adopt"])
            .env("DATABASE_URL", &app.url)
            .run()
            .await;
        adoption.expect_code(0);
        assert_eq!(
            adoption.report()["adoption"],
            json!([]),
            "nothing is missing"
        );
        let provider = simulator_with(Options::default()).await;
        let first = sync_once(&app.url, &provider.url()).args(&["--fail-after", "never"]);
        let pass = first.run().await;
        pass.expect_code(0);
        assert_eq!((pass.count("completed"), pass.count("processing")), (1, 1));
    }
}
