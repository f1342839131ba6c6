//! A database that cuts connections, restarts, hangs, refuses and fills up.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::proxy::{Proxy, Weather};
use crate::scene::{DECIDED, MIXED, Scene};
use crate::support::app::{App, Pool, Variant};
use crate::support::binary::{Ended, KEY, end};
use crate::support::server::OwnServers;
use crate::{budget, is_full};

/// Starts a pass that asks one request after the other, and has begun to.
async fn begun(scene: &Scene) -> Child {
    let running = scene.command().arg("--concurrency=1").start();
    while scene.provider.counts().list == 0 {
        tokio::task::yield_now().await;
    }
    running
}

/// Has a pass go on in the background while something happens to its database, again and again.
async fn meanwhile(running: Child, every: Duration, mut happens: impl AsyncFnMut()) -> Ended {
    let mut ending = tokio::spawn(end(running));
    let mut beat = tokio::time::interval(every);
    beat.tick().await;
    loop {
        tokio::select! {
            ended = &mut ending => return ended.expect("joins"),
            _ = beat.tick() => happens().await,
        }
    }
}

/// A pass that takes a while: so many requests, one after the other.
async fn slow_scene(app: App, requests: usize) -> Scene {
    Scene::within(app, DECIDED, requests * 100, Duration::from_millis(100)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_are_replaced() {
    let requests = budget(20, 600) as usize;
    let every = Duration::from_millis(budget(200, 1000));
    let calm = slow_scene(App::new(Variant::A).await, requests).await;
    let undisturbed = Instant::now();
    calm.command().arg("--concurrency=1").run().await;
    let undisturbed = undisturbed.elapsed();

    let scene = slow_scene(App::new(Variant::A).await, requests).await;
    let mut terminated = 0;
    let beginning = Instant::now();
    let ended = meanwhile(begun(&scene).await, every, async || {
        terminated += scene
            .app
            .number(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'voice-sync'",
            )
            .await;
    })
    .await;
    ended.expect_code(0);
    println!(
        "{terminated} connections terminated: {:.1} s; undisturbed: {:.1} s",
        beginning.elapsed().as_secs_f64(),
        undisturbed.as_secs_f64()
    );
    assert!(terminated > 5, "{terminated}");
    assert_eq!(ended.count("superseded"), 0);
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_waits_for_a_restarting_server() {
    let server = OwnServers::postgres();
    let restarts = budget(3, 20);
    let app = App::on_server(server.database_url().to_owned()).await;
    let scene = slow_scene(app, restarts as usize * 20).await;
    let mut restarted = 0;
    let ended = meanwhile(
        begun(&scene).await,
        Duration::from_millis(1500),
        async || {
            server.restart_postgres().await;
            restarted += 1;
        },
    )
    .await;
    println!("{restarted} restarts: exit {}", ended.code);
    ended.expect_code(0);
    assert!(restarted > 0);
    scene.recover().await;
    scene.check().await;
}

/// Puts a proxy between voice-sync and a scene's PostgreSQL.
async fn between(scene: &mut Scene) -> Proxy {
    let url = scene
        .app
        .url
        .replacen("postgresql+asyncpg://", "postgresql://", 1);
    let proxy = Proxy::to(&url, 5432).await;
    scene.app.url = proxy.through(&url);
    proxy
}

async fn lost_replies_cause_no_second_transition(variant: Variant) {
    let mut scene = Scene::new(variant, MIXED, budget(1600, 16_000) as usize).await;
    let proxy = between(&mut scene).await;
    proxy.set(Weather::AnswersLost(5));
    let mut runs = 0;
    while scene.undecided().await > 0 {
        let ended = scene.command().run().await;
        assert!([0, 69, 75].contains(&ended.code), "{ended:?}");
        scene.app.age_own_tables(61).await;
        runs += 1;
    }
    println!("{runs} runs, {} connections", proxy.connections());
    proxy.set(Weather::Fair);
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_replies_cause_no_second_transition_on_postgresql() {
    lost_replies_cause_no_second_transition(Variant::A).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_replies_cause_no_second_transition_behind_pgbouncer() {
    lost_replies_cause_no_second_transition(Variant::Pooled).await;
}

/// Each network fault begins during a pass and leads to the expected exit code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_lost_during_a_pass_is_reported() {
    let mut weathers = vec![
        Weather::Cut,
        Weather::CutAfter(50_000),
        Weather::Late(Duration::from_millis(20)),
    ];
    if is_full() {
        weathers.push(Weather::HalfOpen);
    }
    for weather in weathers {
        let mut scene = slow_scene(App::new(Variant::A).await, 10).await;
        let direct = scene.app.url.clone();
        let proxy = between(&mut scene).await;
        let running = begun(&scene).await;
        proxy.set(weather);
        let beginning = Instant::now();
        let ended = end(running).await;
        println!(
            "{weather:?}: exit {} after {:?}",
            ended.code,
            beginning.elapsed()
        );
        ended.expect_code(match weather {
            Weather::Cut | Weather::HalfOpen => 69,
            // New connections help.
            Weather::Fair | Weather::Late(_) | Weather::CutAfter(_) | Weather::AnswersLost(_) => 0,
        });
        scene.app.url = direct;
        scene.recover().await;
        scene.check().await;
    }
}

/// Connections are the main cost of a pass with nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pass_with_nothing_to_do_opens_one_connection() {
    let mut scene = Scene::new(Variant::A, DECIDED, 0).await;
    let proxy = between(&mut scene).await;
    scene.command().run().await.expect_code(0);
    assert_eq!(proxy.connections(), 1);
}

/// The server accepts connections but never answers, from the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_never_answers_is_reported_as_unavailable() {
    let mut scene = Scene::new(Variant::A, DECIDED, 10).await;
    let proxy = between(&mut scene).await;
    proxy.set(Weather::HalfOpen);
    let ended = scene.command().run().await;
    ended.expect_code(69);
    assert_eq!(scene.provider.counts().list, 0);
}

/// The same scene under a setting of its database, and how a pass ends there.
async fn under(setting: &str) -> (Scene, Ended) {
    let scene = Scene::new(Variant::A, DECIDED, 10).await;
    let name = "SELECT current_database()::text";
    let Pool::Postgres(pool) = &scene.app.pool else {
        panic!("variant A is on PostgreSQL");
    };
    let name: String = sqlx::query_scalar(name)
        .fetch_one(pool)
        .await
        .expect("a name");
    scene
        .app
        .execute(&setting.replace("DATABASE", &format!("DATABASE {name}")))
        .await;
    let ended = scene.command().run().await;
    (scene, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_reported_before_any_request() {
    let (scene, ended) = under("ALTER DATABASE SET default_transaction_read_only = on").await;
    ended.expect_code(69);
    assert!(
        ended.stderr.contains("use the URL of the primary"),
        "{}",
        ended.stderr
    );
    assert_eq!(scene.provider.counts().list, 0, "nothing is asked in vain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_free_connections_is_reported() {
    let mut scene = Scene::new(Variant::A, DECIDED, 10).await;
    let role = format!("guest_{}", uuid::Uuid::new_v4().simple());
    scene
        .app
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{KEY}' CONNECTION LIMIT 0"
        ))
        .await;
    let mut url = url::Url::parse(&scene.app.url).expect("a URL");
    url.set_username(&role).expect("a user");
    url.set_password(Some(KEY)).expect("a password");
    scene.app.url = url.to_string();
    let ended = scene.command().run().await;
    scene.app.execute(&format!("DROP ROLE {role}")).await;
    ended.expect_code(69);
    assert!(
        ended.stderr.contains("too many connections"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_statement_timeout_affects_only_locked_rows() {
    let scene = Scene::new(Variant::A, DECIDED, 10).await;
    let Pool::Postgres(pool) = &scene.app.pool else {
        panic!("variant A is on PostgreSQL");
    };
    let mut holding = pool.begin().await.expect("begins");
    sqlx::query("SELECT 1 FROM voices WHERE elevenlabs_voice_id = 'sim-ready-00000' FOR UPDATE")
        .execute(&mut *holding)
        .await
        .expect("locks");
    let ended = scene
        .command()
        .env("PGOPTIONS", "-c statement_timeout=300ms")
        .run()
        .await;
    ended.expect_code(75);
    assert_eq!(ended.count("unavailable"), 1, "{}", ended.stdout);
    assert_eq!(ended.count("completed") + ended.count("failed"), 9);
    holding.rollback().await.expect("lets go");
    scene.recover().await;
    scene.check().await;
}

/// A trigger raises PostgreSQL's error code for a full disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_server_is_reported() {
    let scene = Scene::new(Variant::A, DECIDED, 10).await;
    scene
        .app
        .execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'could not extend file: No space left on device'
                   USING ERRCODE = 'disk_full'; END $$;
             CREATE TRIGGER full_disk BEFORE INSERT ON voice_sync.outbox
             EXECUTE FUNCTION full_disk()",
        )
        .await;
    let ended = scene.command().run().await;
    ended.expect_code(74);
    assert!(ended.stderr.contains("No space left"), "{}", ended.stderr);
    assert_eq!(
        scene.undecided().await,
        10,
        "no transition without its event"
    );
    scene.app.execute("DROP FUNCTION full_disk CASCADE").await;
    scene.recover().await;
    scene.check().await;
}

/// A limit on the size of files makes writes fail just as a full disk does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_an_sqlite_file_intact() {
    let scene = Scene::new(Variant::E32, DECIDED, 5000).await;
    let Pool::Sqlite(pool) = &scene.app.pool else {
        panic!("variant E is on SQLite");
    };
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(pool)
        .await
        .expect("is written back");
    let file = scene.app.directory().join("app.db");
    let blocks = std::fs::metadata(&file).expect("a file").len() / 1024;
    // `ulimit -f` counts in 1,024 bytes with bash.
    let ended = scene
        .command()
        .through(&[
            "bash",
            "-c",
            &format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", blocks / 4),
            "-",
        ])
        .run()
        .await;
    ended.expect_code(74);
    let intact: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(pool)
        .await
        .expect("is checked");
    assert_eq!(intact, "ok");
    assert!(scene.undecided().await > 0, "{}", ended.stdout);
    scene.recover().await;
    scene.check().await;
}

/// A note that is repeated after a lost reply counts an absence once, and the next pass counts the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absence_whose_reply_is_lost_is_counted_once() {
    for variant in [Variant::A, Variant::Pooled, Variant::E32] {
        let scene = Scene::new(variant, &["missing"], 2).await;
        let counts = format!(
            "SELECT sum(missing_count) FROM {} WHERE missing_count > 0",
            scene.app.own("voices")
        );
        let counts = format!("SELECT CAST(COALESCE(({counts}), 0) AS bigint)");
        for passes in 1..=2 {
            let run = scene
                .command()
                .env("VOICE_SYNC_FAILPOINTS", "store.note.after=error@1")
                .run()
                .await;
            run.expect_code(0);
            assert_eq!(scene.app.number(&counts).await, 2 * passes, "{variant:?}");
        }
    }
}
