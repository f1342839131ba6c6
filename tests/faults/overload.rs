//! More work than there is time for: new voices, an outbox, a time limit. What a person would expect is told as
//! numbers of requests, since no test asserts on time: at a fixed latency and concurrency, time is requests.

use std::time::Duration;

use sqlx::Connection;
use tokio::time::timeout;
use voice_sync_simulator::{Options, Simulator};

use crate::proxy::{Proxy, Weather};
use crate::scene::{DECIDED, Scene};
use crate::support::app::{App, NewVoice, Pool, Variant};
use crate::support::binary::{end, sync_once};
use crate::support::bus::Bus;
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::{simulator, simulator_with};

const BOTH: [Variant; 2] = [Variant::A, Variant::E32];
const CONCURRENCY: u64 = 4;
/// For how long a daemon claims before it looks for new voices, what it then has under way, and the batch of the
/// new ones.
const POLL_S: u64 = 3 + 2 + 2;

async fn slow_simulator(latency: Duration) -> Simulator {
    simulator_with(Options {
        latency,
        ..Options::default()
    })
    .await
}

/// An application with so many voices that stay in processing, were looked up once, and are all overdue.
async fn backlog(variant: Variant, voices: usize) -> App {
    let (app, provider) = (App::new(variant).await, simulator().await);
    drop(app.store().await);
    let ids: Vec<String> = (0..voices).map(|n| format!("sim-nopreview-{n}")).collect();
    let rows: Vec<_> = ids.iter().map(NewVoice::processing).collect();
    for rows in rows.chunks(5000) {
        app.insert(rows).await;
    }
    let run = sync_once(&app.url, &provider.url()).run().await;
    assert_eq!(run.count("processing"), voices as u64, "{}", run.stderr);
    app.age_schedule(600).await;
    app
}

/// The daemon can look up 40 voices a second, and 3,000 are always due. One, two or thirty new voices are all looked up
/// within one poll, also in the next round and after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_voices_are_looked_up_before_thousands_of_overdue_ones() {
    const LATENCY: Duration = Duration::from_millis(100);
    const RATE: u64 = 10 * CONCURRENCY;
    for variant in BOTH {
        let app = backlog(variant, 3000).await;
        let provider = slow_simulator(LATENCY).await;
        let command = || daemon(&app.url, &provider.url()).arg("--lookup=single");
        let mut running = Daemon::start(command());
        let mut completed = 0;
        for (round, new) in [1_i32, 2, 30].into_iter().enumerate() {
            let before = provider.counts().single;
            while provider.counts().single < before + 20 {
                tokio::task::yield_now().await;
            }
            let ids: Vec<String> = (0..new).map(|n| format!("sim-ready-{round}x{n}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let before = provider.counts().single;
            app.insert_processing(&ids).await;
            completed += i64::from(new);
            running.wait_until(&app, "completed", completed).await;
            let asked = provider.counts().single - before;
            let most = POLL_S * RATE + u64::from(new.unsigned_abs());
            assert!(asked <= most, "{variant:?}, {new} new: {asked} requests");
            if round == 1 {
                running.stop().await;
                running = Daemon::start(command());
            }
        }
        running.stop().await;
    }
}

/// Events as an earlier process left them, in the outbox and not published.
async fn leave_events(app: &App, events: u32) {
    let (outbox, batches) = (app.own("outbox"), app.own("batches"));
    let columns = "event_id, run_id, event_type, voice_id, user_id, occurred_at, batch_id";
    let batch = format!(
        "INSERT INTO {batches} (batch_id, run_id, recorded_at, first_id, last_id, events)
         SELECT batch_id, batch_id, min(occurred_at), min(id), max(id), count(*) FROM {outbox} GROUP BY batch_id"
    );
    let events = match app.pool {
        Pool::Postgres(_) => format!(
            "INSERT INTO {outbox} ({columns})
             SELECT gen_random_uuid(), gen_random_uuid(), 'voice.created', 'v' || n, 'u', now(),
                    ('00000000-0000-4000-8000-' || lpad((n / 500)::text, 12, '0'))::uuid
             FROM generate_series(1, {events}) n"
        ),
        Pool::Sqlite(_) => format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {events})
             INSERT INTO {outbox} ({columns})
             SELECT lower(hex(randomblob(4)) || '-0000-4000-8000-' || hex(randomblob(6))),
                    '00000000-0000-4000-8000-000000000000', 'voice.created', 'v' || n, 'u', 0,
                    '00000000-0000-4000-8000-' || printf('%012d', n / 500) FROM n"
        ),
    };
    app.execute(&events).await;
    app.execute(&batch).await;
}

async fn pending(app: &App) -> i64 {
    let sql = format!(
        "SELECT CAST(COALESCE(sum(events), 0) AS bigint) FROM {} WHERE published_at IS NULL",
        app.own("batches")
    );
    app.number(&sql).await
}

/// The bus is slow and the outbox takes a minute to publish: meanwhile voices are looked up and the loop is alive, and
/// in the end every event is published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_outbox_delays_no_lookup() {
    const EVENTS: u32 = 12_000;
    for variant in BOTH {
        let (app, bus, provider) = (App::new(variant).await, Bus::new().await, simulator().await);
        drop(app.store().await);
        leave_events(&app, EVENTS).await;
        let proxy = Proxy::to(&bus.url, 6379).await;
        proxy.set(Weather::Late(Duration::from_millis(400)));
        let command = daemon(&app.url, &provider.url())
            .publishing_to(&bus)
            .env("VOICE_SYNC_EVENT_MAXLEN", "1000000")
            .env("REDIS_URL", proxy.through(&bus.url))
            .env("VOICE_SYNC_FAILPOINTS", "daemon.stalled=stall:8s");
        let mut daemon = Daemon::start(command);
        for round in 1..=3 {
            let before = pending(&app).await;
            daemon
                .wait_for("events are published", async || {
                    (pending(&app).await < before).then_some(())
                })
                .await;
            app.insert_processing(&[&format!("sim-ready-{round}")])
                .await;
            daemon.wait_until(&app, "completed", round).await;
            assert!(
                pending(&app).await > 0,
                "{variant:?}: the test needs more events"
            );
            assert_eq!(daemon.get("/livez").await.0, 200);
        }
        proxy.set(Weather::Fair);
        daemon
            .wait_for("all events are published", async || {
                (pending(&app).await == 0).then_some(())
            })
            .await;
        daemon.stop().await;
        let published = bus.events("voice.created").await.len();
        assert!(published >= EVENTS as usize + 3, "{published}");
    }
}

/// The limit applies to all passes of a run together: it ends before all voices were looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_runtime_limits_the_whole_run() {
    const LATENCY: Duration = Duration::from_millis(200);
    for variant in BOTH {
        let app = backlog(variant, 20_000).await;
        let provider = slow_simulator(LATENCY).await;
        // 20 lists a second: each pass of 10,000 takes 5 s.
        let run = sync_once(&app.url, &provider.url())
            .args(&["--due", "--max-runtime=8s"])
            .run()
            .await;
        run.expect_code(75);
        let most = (8 + 1) * 5 * CONCURRENCY + CONCURRENCY;
        assert!(run.count("requests") <= most, "{variant:?}: {}", run.stdout);
        assert!(run.count("processing") > 0, "{}", run.stdout);
        println!(
            "{variant:?}: {} of 20000 in {} requests",
            run.count("processing"),
            run.count("requests")
        );
    }
}

/// If the database hangs during a run, the run still ends by its time limit or by a signal, and prints its report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_database_does_not_outlast_the_time_limit_or_a_signal() {
    // Half of what an operation may take by itself.
    const PATIENCE: Duration = Duration::from_secs(15);
    for is_signalled in [false, true] {
        let mut scene = Scene::new(Variant::A, DECIDED, 0).await;
        scene.add(DECIDED, 300).await;
        let url = scene
            .app
            .url
            .replacen("postgresql+asyncpg://", "postgresql://", 1);
        let proxy = Proxy::to(&url, 5432).await;
        let command = scene
            .command()
            .env("DATABASE_URL", proxy.through(&url))
            .arg("--concurrency=1");
        let command = match is_signalled {
            true => command.env("VOICE_SYNC_FAILPOINTS", "shutdown.timeout=stall:3s"),
            false => command.arg("--max-runtime=2s"),
        };
        let child = command.start();
        while scene.provider.counts().list < 1 {
            tokio::task::yield_now().await;
        }
        proxy.set(Weather::HalfOpen);
        if is_signalled {
            let id = child.id().to_string();
            let sent = std::process::Command::new("kill")
                .args(["-TERM", &id])
                .status();
            assert!(sent.expect("kill runs").success());
        }
        let run = timeout(PATIENCE, end(child))
            .await
            .expect("it ends in time");
        run.expect_code(69);
        assert!(run.report()["due"].is_u64(), "{}", run.stdout);
    }
}

/// Statements that wait for a lock when their operation times out do not remain on the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_statements_are_cancelled_on_the_server() {
    for variant in [Variant::A, Variant::Pooled] {
        let mut scene = Scene::new(variant, DECIDED, 0).await;
        scene.add(DECIDED, 10).await;
        let Pool::Postgres(pool) = &scene.app.pool else {
            panic!("it is on PostgreSQL");
        };
        let mut connection = pool.acquire().await.expect("a connection");
        let mut holding = connection.begin().await.expect("begins");
        sqlx::query("LOCK TABLE voice_sync.voices IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *holding)
            .await
            .expect("locks");
        let run = scene
            .command()
            .env("VOICE_SYNC_FAILPOINTS", "store.timeout=stall:2s")
            .run()
            .await;
        run.expect_code(69);
        let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                       WHERE NOT l.granted AND l.relation = 'voice_sync.voices'::regclass";
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while scene.app.number(waiting).await > 0 {
            assert!(
                std::time::Instant::now() < patience,
                "{variant:?}: it waits still"
            );
            tokio::task::yield_now().await;
        }
        holding.rollback().await.expect("lets go");
        drop(connection);
        scene.recover().await;
        scene.check().await;
    }
}
