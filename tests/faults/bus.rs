//! An event bus that goes away, hangs, or refuses to write.

use std::collections::HashSet;

use futures_util::future::join_all;
use redis::{AsyncTypedCommands, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::budget;
use crate::proxy::{Proxy, Weather};
use crate::scene::{DECIDED, MIXED, Scene};
use crate::support::app::{App, Variant, row_id};
use crate::support::binary::{Ended, VoiceSync};
use crate::support::bus::Bus;
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::simulator;
use crate::support::server::OwnServers;

/// Instances that run again and again, as by cron, while new voices come in, and time that passes
/// between: it is voice-sync's own tables that grow older.
async fn rounds(scene: &mut Scene, redis: &str, count: u64, seconds: u32) -> Vec<Ended> {
    let mut runs = Vec::new();
    for _ in 0..count {
        scene.add(DECIDED, 2).await;
        let two = (0..2).map(|_| scene.command().env("REDIS_URL", redis).run());
        runs.extend(join_all(two).await);
        scene.app.age_own_tables(seconds).await;
    }
    runs
}

async fn backs_off_from_an_unavailable_bus(weather: Weather, minutes: u64) {
    const EVERY: u32 = 10;
    let mut scene = Scene::new(Variant::A, DECIDED, 0).await;
    let proxy = Proxy::to(&scene.bus.url, 6379).await;
    let redis = proxy.through(&scene.bus.url);
    proxy.set(weather);
    let away = minutes * 60 / u64::from(EVERY);
    for ended in rounds(&mut scene, &redis, away, EVERY).await {
        assert!([0, 75].contains(&ended.code), "{ended:?}");
        assert_eq!(ended.count("events_published"), 0);
    }
    assert_eq!(scene.undecided().await, 0, "transitions go on");
    let tries = proxy.connections();
    println!("{weather:?} for {minutes} minutes: {tries} tries");
    // A try may take a second connection; towards the end there is one try a minute.
    assert!(tries <= 2 * (10 + 2 * minutes), "{tries} tries");

    proxy.set(Weather::Fair);
    let back = rounds(&mut scene, &redis, 120 / u64::from(EVERY), EVERY).await;
    let published: u64 = back
        .iter()
        .map(|ended| ended.count("events_published"))
        .sum();
    let all = 2 * (away + 120 / u64::from(EVERY));
    assert_eq!(published, all, "within two minutes");
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backs_off_from_a_bus_that_cuts_connections() {
    backs_off_from_an_unavailable_bus(Weather::Cut, budget(5, 60)).await;
}

/// Each try lasts until its time limit, so the simulated hour is shorter here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backs_off_from_a_bus_that_hangs() {
    backs_off_from_an_unavailable_bus(Weather::HalfOpen, budget(1, 10)).await;
}

/// Has a Redis do as told.
async fn tell(server: &OwnServers, command: &[&str]) {
    let client = Client::open(server.redis_url()).expect("a URL");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("Redis answers");
    let done: redis::RedisResult<redis::Value> = redis::cmd(command[0])
        .arg(&command[1..])
        .query_async(&mut connection)
        .await;
    done.expect("Redis does so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_published_after_redis_becomes_writable_again() {
    let server = OwnServers::redis();
    let cases: [(&[&str], &[&str], &str); 2] = [
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
            "OOM",
        ),
        (
            &["REPLICAOF", "127.0.0.1", "1"],
            &["REPLICAOF", "NO", "ONE"],
            "read only replica",
        ),
    ];
    for (troubled, healed, said) in cases {
        let mut scene = Scene::new(Variant::E32, DECIDED, 250).await;
        scene.bus = Bus::on(server.redis_url().to_owned()).await;
        tell(&server, troubled).await;
        let ended = scene.command().run().await;
        tell(&server, healed).await;
        ended.expect_code(75);
        assert_eq!(ended.count("events_pending"), 250);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        scene.recover().await;
        scene.check().await;
    }
}

/// If a process crashes before it removes the finished voices from the application's set, the next pass removes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_pass_clears_the_queue_set_after_a_crash() {
    for variant in [Variant::A, Variant::E32] {
        let scene = Scene::new(variant, MIXED, 32).await;
        let key = format!("{}queue", scene.bus.prefix);
        let voices: Vec<_> = scene.app.rows().await.into_keys().collect();
        let rows: Vec<_> = voices.iter().map(|id| row_id(id).to_string()).collect();
        let mut connection = scene.bus.connection.clone();
        connection.sadd(&key, &rows).await.expect("is added");
        let command = || scene.command().env("VOICE_SYNC_QUEUE", &key);
        let dying = command().env("VOICE_SYNC_FAILPOINTS", "store.queue_members.after=abort");
        assert_eq!(dying.run().await.code, -1);
        assert_eq!(connection.scard(&key).await.expect("a set"), 32);
        scene.app.age_own_tables(301).await;
        command().run().await.expect_code(0);
        scene.check().await;
        let left = connection.smembers(&key).await.expect("a set");
        let waiting = scene.app.rows().await.into_iter();
        let waiting = waiting.filter(|(_, row)| row.status == "processing");
        let waiting: HashSet<_> = waiting.map(|(id, _)| row_id(&id).to_string()).collect();
        assert_eq!(left, waiting);
    }
}

/// A Redis that reads its data lets clients log in, and do nothing else.
async fn loading(listener: TcpListener) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let lines: Vec<&str> = text.split("\r\n").collect();
            // An argument of XADD is a `*` as well.
            let begins = |at: &usize| lines[*at].starts_with('*') && lines[*at].len() > 1;
            let commands = (0..lines.len()).filter(begins);
            let answers: String = commands
                .map(|at| match lines.get(at + 2) {
                    Some(&"XADD") => "-LOADING Redis is loading the dataset in memory\r\n",
                    Some(_) | None => "+OK\r\n",
                })
                .collect();
            if client.write_all(answers.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_published_after_redis_has_finished_loading() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(loading(listener));
    let scene = Scene::new(Variant::E32, DECIDED, 8).await;
    let ended = scene
        .command()
        .env("REDIS_URL", format!("redis://:password@{address}/0"))
        .run()
        .await;
    serving.abort();
    ended.expect_code(75);
    assert_eq!(ended.count("events_pending"), 8);
    assert!(
        ended.stderr.contains("loading the dataset"),
        "{}",
        ended.stderr
    );
    scene.recover().await;
    scene.check().await;
}

/// The first line about a bus that is away says why, and not that it failed before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_reports_why_the_bus_is_unavailable() {
    let (app, provider) = (App::new(Variant::A).await, simulator().await);
    let migrated = VoiceSync::new(&["migrate"]).env("DATABASE_URL", &app.url);
    migrated.run().await.expect_code(0);
    app.insert_processing(&["sim-ready-1", "sim-ready-2"]).await;
    let command = daemon(&app.url, &provider.url()).env("REDIS_URL", "redis://127.0.0.1:1");
    let mut daemon = Daemon::start(command);
    daemon.wait_until(&app, "completed", 2).await;
    daemon.wait_until_said("the event bus is unavailable").await;
    let said = daemon.said("the event bus is unavailable");
    let reason = said[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("refused"), "{reason}");
    daemon.stop().await;
}
