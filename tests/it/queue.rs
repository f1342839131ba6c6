//! The application's queue of waiting voices, in both of its shapes.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use redis::AsyncTypedCommands;
use serde_json::json;
use voice_sync_simulator::{Options, Simulator};

use crate::support::app::{App, NewVoice, Variant, row_id};
use crate::support::binary::{Ended, VoiceSync, sync_once};
use crate::support::bus::Bus;
use crate::support::fates::{simulator, simulator_with};

/// Said once in a pass, if at all.
const WITHOUT: &str = "queue cannot be used";

/// An application whose voices stand in a queue of its own.
struct Waiting {
    app: App,
    provider: Simulator,
    bus: Bus,
    key: String,
}

impl Waiting {
    async fn new(variant: Variant, ids: &[String]) -> Self {
        let app = App::new(variant).await;
        app.insert(&ids.iter().map(NewVoice::processing).collect::<Vec<_>>())
            .await;
        drop(app.store().await);
        let bus = Bus::new().await;
        let key = format!("{}queue", bus.prefix);
        Self {
            app,
            provider: simulator().await,
            bus,
            key,
        }
    }

    /// The application pushes jobs, one after the other.
    async fn push(&self, jobs: &[String]) {
        let mut connection = self.bus.connection.clone();
        connection.lpush(&self.key, jobs).await.expect("is pushed");
    }

    async fn jobs(&self) -> usize {
        let mut connection = self.bus.connection.clone();
        connection.llen(&self.key).await.expect("a list, or none")
    }

    async fn add<T: redis::ToRedisArgs + Send + Sync>(&self, members: &[T]) {
        let mut connection = self.bus.connection.clone();
        connection.sadd(&self.key, members).await.expect("is added");
    }

    async fn members(&self) -> BTreeSet<Vec<u8>> {
        let mut connection = self.bus.connection.clone();
        let mut ask = redis::cmd("SMEMBERS");
        let members = ask
            .arg(&self.key)
            .query_async::<Vec<Vec<u8>>>(&mut connection);
        members.await.expect("a set").into_iter().collect()
    }

    fn command(&self) -> VoiceSync {
        sync_once(&self.app.url, &self.provider.url())
            .publishing_to(&self.bus)
            .env("VOICE_SYNC_QUEUE", &self.key)
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.command().args(arguments).run().await
    }

    /// Everybody who was asked about, in order of the requests.
    fn asked(&self) -> Vec<String> {
        let requests = self.provider.requests();
        requests.into_iter().flat_map(|r| r.voice_ids).collect()
    }

    async fn completed(&self) -> BTreeSet<String> {
        let rows = self.app.rows().await.into_iter();
        let completed = rows.filter(|(_, row)| row.status == "completed");
        completed.map(|(id, _)| id).collect()
    }
}

/// A job as the application's strategy has it.
fn job(id: &str) -> String {
    json!({"voice_id": row_id(id), "elevenlabs_voice_id": id, "created_at": "2026-11-02T08:00:00",
           "attempts": 0, "max_attempts": 60})
    .to_string()
}

fn voices(fate: &str, n: usize) -> Vec<String> {
    let mut ids: Vec<_> = (0..n).map(|n| format!("sim-{fate}-{n}")).collect();
    ids.sort_by_key(|id| row_id(id));
    ids
}

async fn finished_voices_are_removed_from_the_set(variant: Variant) {
    let mut ids = voices("ready", 3);
    ids.extend(["sim-banned-1", "sim-pvctraining-1"].map(str::to_owned));
    let waiting = Waiting::new(variant, &ids).await;
    // One that an earlier pass finished and did not live to take out.
    waiting
        .app
        .insert(&[NewVoice {
            status: "completed",
            ..NewVoice::processing("earlier")
        }])
        .await;
    let all = ids.iter().map(String::as_str).chain(["earlier", "unknown"]);
    let rows: Vec<_> = all.map(|id| row_id(id).to_string()).collect();
    waiting.add(&rows).await;
    let odd = [
        &b"\xff\xfe"[..],
        b"",
        b"a\0b",
        b"sim-ready-0",
        b"{\"voice_id\":1}",
    ];
    waiting.add(&odd).await;
    waiting
        .add(&[row_id("sim-ready-1").simple().to_string()])
        .await;

    let dry = waiting.run(&["--dry-run"]).await;
    dry.expect_code(0);
    assert_eq!(
        waiting.members().await.len(),
        13,
        "a dry run takes out none"
    );
    let ended = waiting.run(&[]).await;
    ended.expect_code(0);
    assert_eq!((ended.count("due"), ended.count("completed")), (5, 3));
    let left: BTreeSet<Vec<u8>> = ["sim-pvctraining-1", "unknown"]
        .iter()
        .map(|id| row_id(id).to_string().into_bytes())
        .chain(odd.map(Vec::from))
        .collect();
    assert_eq!(waiting.members().await, left);
    assert!(!ended.stderr.contains(WITHOUT), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_voices_are_removed_from_the_set_on_postgresql() {
    finished_voices_are_removed_from_the_set(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_voices_are_removed_from_the_set_on_sqlite() {
    finished_voices_are_removed_from_the_set(Variant::E32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_of_many_pages_is_read_completely() {
    let waiting = Waiting::new(Variant::A, &voices("ready", 1)).await;
    let rows: Vec<_> = (0..1500).map(|n| row_id(&n.to_string())).collect();
    let finished: Vec<_> = (0..750)
        .map(|n| NewVoice {
            status: "failed",
            ..NewVoice::processing(n.to_string())
        })
        .collect();
    waiting.app.insert(&finished).await;
    let rows: Vec<_> = rows.iter().map(ToString::to_string).collect();
    waiting.add(&rows).await;
    waiting
        .run(&["--voice", "sim-ready-0"])
        .await
        .expect_code(0);
    assert_eq!(waiting.members().await.len(), 750);
}

async fn queued_voices_are_looked_up_first(variant: Variant) {
    let ids = voices("ready", 20);
    let waiting = Waiting::new(variant, &ids).await;
    // The last rows of the table, by each kind of id, and one by both.
    let by_row = json!({"voice_id": row_id(&ids[19])}).to_string();
    let by_voice = json!({"elevenlabs_voice_id": ids[18]}).to_string();
    waiting.push(&[by_row, by_voice, job(&ids[19])]).await;
    let ended = waiting.run(&["--limit", "6"]).await;
    ended.expect_code(0);
    assert_eq!((ended.count("due"), ended.count("completed")), (6, 6));
    let first = [18, 19, 0, 1, 2, 3].map(|n: usize| ids[n].clone());
    assert_eq!(waiting.completed().await, BTreeSet::from(first));
    assert_eq!(waiting.jobs().await, 0);

    let next = waiting.run(&["--limit", "6"]).await;
    next.expect_code(0);
    let ten: BTreeSet<_> = ids[..10].iter().chain(&ids[18..]).cloned().collect();
    assert_eq!(waiting.completed().await, ten, "it goes on in the table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_voices_are_looked_up_first_on_postgresql() {
    queued_voices_are_looked_up_first(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_voices_are_looked_up_first_on_sqlite() {
    queued_voices_are_looked_up_first(Variant::E32).await;
}

async fn each_voice_is_looked_up_once_with_a_queue(variant: Variant, arguments: &[&str]) {
    let mut ids = voices("ready", 130);
    ids.extend(voices("pvctraining", 130));
    let mut waiting = Waiting::new(variant, &ids).await;
    // So that the hinted ones are under way while the table is walked.
    waiting.provider = simulator_with(Options {
        latency: Duration::from_millis(100),
        ..Options::default()
    })
    .await;
    let jobs: Vec<_> = ids.iter().step_by(7).map(|id| job(id)).collect();
    waiting.push(&jobs).await;
    let ended = waiting.run(arguments).await;
    ended.expect_code(0);
    let counts = ["due", "completed", "processing", "leased_elsewhere"];
    assert_eq!(counts.map(|count| ended.count(count)), [260, 130, 130, 0]);
    let mut asked = waiting.asked();
    asked.sort_unstable();
    ids.sort_unstable();
    assert_eq!(asked, ids);
    let left = if arguments.contains(&"--dry-run") {
        jobs.len()
    } else {
        0
    };
    assert_eq!(waiting.jobs().await, left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_voice_is_looked_up_once_with_a_queue_on_postgresql() {
    each_voice_is_looked_up_once_with_a_queue(Variant::A, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_voice_is_looked_up_once_with_a_queue_on_sqlite() {
    each_voice_is_looked_up_once_with_a_queue(Variant::E32, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_reads_jobs_without_removing_them() {
    each_voice_is_looked_up_once_with_a_queue(Variant::E36, &["--dry-run"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_with_a_limit_leaves_jobs_for_the_next_pass() {
    let ids = voices("ready", 20);
    let waiting = Waiting::new(Variant::E36, &ids).await;
    // The oldest first, as the application pushes them.
    for id in ids[10..].iter().rev() {
        waiting.push(&[job(id)]).await;
    }
    waiting.run(&["--limit", "5"]).await.expect_code(0);
    assert_eq!(waiting.jobs().await, 7);
    let first = [0, 1, 17, 18, 19].map(|n: usize| ids[n].clone());
    assert_eq!(waiting.completed().await, BTreeSet::from(first));
    waiting.run(&["--voice", &ids[5]]).await.expect_code(0);
    assert_eq!(waiting.jobs().await, 7, "a person's choice needs no hints");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_jobs_are_dropped_and_counted() {
    let ids = voices("ready", 2);
    let waiting = Waiting::new(Variant::A, &ids).await;
    let mut jobs = ["top-secret", "{\"voice_id\":\"a\\u0000\"}", "[]"].map(str::to_owned);
    jobs.sort_unstable();
    waiting.push(&jobs).await;
    waiting.push(&[job(&ids[1])]).await;
    let ended = waiting.run(&[]).await;
    ended.expect_code(0);
    assert_eq!((ended.count("due"), ended.count("completed")), (2, 2));
    assert_eq!(waiting.jobs().await, 0);
    assert!(
        ended.stderr.contains(r#""malformed":3"#),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("top-secret"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queueing_a_set_aside_voice_triggers_no_lookup() {
    let id = "sim-longpreview-1".to_owned();
    let waiting = Waiting::new(Variant::A, std::slice::from_ref(&id)).await;
    for _ in 0..3 {
        waiting.run(&[]).await.expect_code(0);
    }
    waiting.provider.forget_requests();
    waiting.push(&[job(&id)]).await;
    let ended = waiting.run(&[]).await;
    ended.expect_code(0);
    assert_eq!((ended.count("due"), ended.count("requests")), (0, 0));
    assert_eq!(waiting.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_kept_while_the_breaker_is_open() {
    let ids = voices("ready", 6);
    let waiting = Waiting::new(Variant::E32, &ids).await;
    waiting.provider.script(|_| {
        Some(voice_sync_simulator::Answer::html(
            503,
            "Service Unavailable",
        ))
    });
    waiting.run(&[]).await.expect_code(75);
    waiting.push(&[job(&ids[0])]).await;
    let ended = waiting.run(&[]).await;
    ended.expect_code(75);
    assert_eq!((ended.count("due"), waiting.jobs().await), (6, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_key_of_another_type_is_not_modified() {
    let waiting = Waiting::new(Variant::E32, &voices("ready", 1)).await;
    let mut connection = waiting.bus.connection.clone();
    connection.set(&waiting.key, "text").await.expect("is set");
    let ended = waiting.run(&[]).await;
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), 1);
    assert_eq!(ended.stderr.matches(WITHOUT).count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("holds a string"), "{}", ended.stderr);
    let kept = connection.get(&waiting.key).await.expect("is read");
    assert_eq!(kept.as_deref(), Some("text"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_queue_does_not_affect_the_pass() {
    // One that is away, and one that never says a word.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
    let address = silent.local_addr().expect("an address").to_string();
    for address in ["127.0.0.1:1", &address] {
        let waiting = Waiting::new(Variant::E32, &voices("ready", 3)).await;
        let ended = waiting
            .command()
            .env("REDIS_URL", format!("redis://:pass-word@{address}/0"))
            .args(&["--events", "none"])
            .run()
            .await;
        ended.expect_code(0);
        assert_eq!(ended.count("completed"), 3);
        assert_eq!(ended.stderr.matches(WITHOUT).count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(address), "{}", ended.stderr);
        assert!(!ended.stderr.contains("pass-word"), "{}", ended.stderr);
    }
    silent.set_nonblocking(true).expect("is set");
    let tries = std::iter::from_fn(|| silent.accept().ok()).count();
    assert_eq!(tries, 1, "it is not tried again in the same pass");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_works_without_events() {
    let ids = voices("ready", 1);
    let waiting = Waiting::new(Variant::E32, &ids).await;
    waiting.add(&[row_id(&ids[0]).to_string()]).await;
    let ended = waiting.run(&["--events", "none"]).await;
    ended.expect_code(0);
    assert_eq!(ended.count("events_recorded"), 0);
    assert!(waiting.members().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_requires_a_redis_url() {
    let waiting = Waiting::new(Variant::E32, &voices("ready", 1)).await;
    let ended = waiting.command().without("REDIS_URL").run().await;
    ended.expect_code(2);
    assert!(
        ended.stderr.contains("--queue needs a Redis"),
        "{}",
        ended.stderr
    );
    let none = waiting.command().without("REDIS_URL");
    let ended = none.env("VOICE_SYNC_QUEUE", "").run().await;
    ended.expect_code(0);
}

/// The application may add a member before it commits the row.
async fn members_without_a_row_are_removed_after_an_hour(variant: Variant) {
    let waiting = Waiting::new(variant, &voices("nopreview", 2)).await;
    let gone = [row_id("gone-1"), row_id("gone-2")].map(|row| row.to_string().into_bytes());
    let late = row_id("late").to_string();
    waiting
        .add(&[&gone[0][..], &gone[1], late.as_bytes()])
        .await;
    waiting.run(&[]).await.expect_code(0);
    waiting.run(&[]).await.expect_code(0);
    assert_eq!(waiting.members().await.len(), 3, "not at once");

    waiting.app.insert_processing(&["late"]).await;
    waiting.app.age_own_tables(3601).await;
    // A dry run removes nothing.
    waiting.run(&["--dry-run"]).await.expect_code(0);
    assert_eq!(waiting.members().await.len(), 3);
    let ended = waiting.run(&[]).await;
    assert!(
        ended.stderr.contains("no row for an hour"),
        "{}",
        ended.stderr
    );
    let left = waiting.members().await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(gone.iter().all(|member| !left.contains(member)));

    // One that comes again has its hour again.
    waiting.add(&[&gone[0][..]]).await;
    waiting.run(&[]).await;
    assert_eq!(waiting.members().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_without_a_row_are_removed_after_an_hour_on_postgresql() {
    members_without_a_row_are_removed_after_an_hour(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_without_a_row_are_removed_after_an_hour_on_sqlite() {
    members_without_a_row_are_removed_after_an_hour(Variant::E36).await;
}
