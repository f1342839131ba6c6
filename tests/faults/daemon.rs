//! The daemon while what it depends on is away: it stays, says so once, and goes on by itself.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use voice_sync_simulator::{Answer, Options, Request};

use crate::budget;
use crate::proxy::{Proxy, Weather};
use crate::support::app::{App, Variant};
use crate::support::binary::VoiceSync;
use crate::support::bus::Bus;
use crate::support::daemon::{Daemon, daemon};
use crate::support::fates::{simulator, simulator_with};

async fn migrated() -> App {
    let app = App::new(Variant::A).await;
    VoiceSync::new(&["migrate"])
        .env("DATABASE_URL", &app.url)
        .run()
        .await
        .expect_code(0);
    app
}

/// Lines about a part that began to fail, and about one that works again.
fn turns(daemon: &Daemon, part: &str) -> [Vec<Value>; 2] {
    ["is unavailable", "works again"].map(|words| daemon.said(&format!("the {part} {words}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_an_unavailable_database_at_start_and_later() {
    let (app, provider) = (migrated().await, simulator().await);
    let proxy = Proxy::to(&app.url, 5432).await;
    // Shortened from 30 s.
    let command = || {
        daemon(&proxy.through(&app.url), &provider.url())
            .env("VOICE_SYNC_FAILPOINTS", "store.timeout=stall:5s")
    };
    proxy.set(Weather::Cut);
    let mut daemon = Daemon::start(command());
    daemon.wait_until_said("the database is unavailable").await;
    daemon.wait_until_answers("/livez", 200).await;
    daemon.wait_until_answers("/readyz", 503).await;
    proxy.set(Weather::Fair);
    daemon.wait_until_answers("/readyz", 200).await;
    app.insert_processing(&["sim-ready-1"]).await;
    daemon.wait_until(&app, "completed", 1).await;

    for weather in [Weather::Cut, Weather::HalfOpen] {
        proxy.set(weather);
        daemon.wait_until_answers("/readyz", 503).await;
        daemon.wait_until_answers("/livez", 200).await;
        proxy.set(Weather::Fair);
        daemon.wait_until_answers("/readyz", 200).await;
    }
    app.insert_processing(&["sim-ready-2"]).await;
    daemon.wait_until(&app, "completed", 2).await;
    let [began, ended] = turns(&daemon, "database");
    assert_eq!((began.len(), ended.len()), (3, 3), "{}", daemon.log());
    assert!(began.iter().all(|line| line["event"] == "unavailable"));
    assert!(ended.iter().all(|line| line["event"] == "available"));
    assert!(ended.iter().all(|line| line["lasted_s"].is_u64()));
    daemon.stop().await;
}

/// A daemon that only waits for the database has nothing to finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signal_stops_a_daemon_that_waits_for_the_database() {
    let (app, provider) = (migrated().await, simulator().await);
    let faults = "store.agenda.before=stall:1h;shutdown.timeout=stall:20s";
    let command = daemon(&app.url, &provider.url()).env("VOICE_SYNC_FAILPOINTS", faults);
    let mut daemon = Daemon::start(command);
    daemon.wait_until_answers("/readyz", 200).await;
    daemon.signal("-TERM");
    // It would end with 75 if it used up the time limit for work in progress.
    assert_eq!(daemon.ended().await, 0, "{}", daemon.log());
}

/// Statements are retried here for longer than any health check waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_an_unavailable_database_while_it_retries_statements() {
    for weather in [Weather::Cut, Weather::HalfOpen] {
        let (app, provider) = (migrated().await, simulator().await);
        let proxy = Proxy::to(&app.url, 5432).await;
        let command = daemon(&proxy.through(&app.url), &provider.url())
            .env("VOICE_SYNC_FAILPOINTS", "store.timeout=stall:10m");
        let mut daemon = Daemon::start(command);
        daemon.wait_until_answers("/readyz", 200).await;
        proxy.set(weather);
        daemon.wait_until_answers("/readyz", 503).await;
        let (code, page) = daemon.get("/").await;
        assert!(code == 503 && page.contains("database"), "{code} {page}");
        daemon.wait_until_said("the database is unavailable").await;
        proxy.set(Weather::Fair);
        daemon.wait_until_answers("/readyz", 200).await;
        app.insert_processing(&["sim-ready-1"]).await;
        daemon.wait_until(&app, "completed", 1).await;
        let [began, ended] = turns(&daemon, "database");
        assert_eq!((began.len(), ended.len()), (1, 1), "{}", daemon.log());
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_provider_is_logged_once() {
    let (app, bus, provider) = (migrated().await, Bus::new().await, simulator().await);
    provider.script(|_: &Request| Some(Answer::html(503, "Service Unavailable")));
    app.insert_processing(&["sim-ready-1", "sim-ready-2"]).await;
    let mut daemon = Daemon::start(daemon(&app.url, &provider.url()).publishing_to(&bus));
    daemon.wait_until_said("the provider is unavailable").await;
    // Some more turns: each a line, if it were not for the first.
    let passes = "SELECT count(*) FROM voice_sync.runs";
    let several = async || (app.number(passes).await >= 3).then_some(());
    daemon.wait_for("several passes", several).await;
    daemon.wait_until_answers("/readyz", 200).await;
    let open = "voice_sync_provider_breaker_open 1\n";
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while !daemon.get("/metrics").await.1.contains(open) {
        assert!(std::time::Instant::now() < patience, "{}", daemon.log());
    }
    provider.script(|_: &Request| None);
    // Nobody waits for the breaker here.
    app.age_own_tables(600).await;
    daemon.wait_until(&app, "completed", 2).await;
    daemon.wait_until_said("the provider works again").await;
    let [began, ended] = turns(&daemon, "provider");
    assert_eq!((began.len(), ended.len()), (1, 1), "{}", daemon.log());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_event_bus_delays_no_voice() {
    let (app, bus, provider) = (migrated().await, Bus::new().await, simulator().await);
    let proxy = Proxy::to(&bus.url, 6379).await;
    proxy.set(Weather::Cut);
    app.insert_processing(&["sim-ready-1"]).await;
    let command = daemon(&app.url, &provider.url())
        .publishing_to(&bus)
        .env("REDIS_URL", proxy.through(&bus.url));
    let mut daemon = Daemon::start(command);
    daemon.wait_until(&app, "completed", 1).await;
    daemon.wait_until_said("the event bus is unavailable").await;
    app.insert_processing(&["sim-ready-2"]).await;
    daemon.wait_until(&app, "completed", 2).await;
    daemon.wait_until_answers("/readyz", 200).await;
    proxy.set(Weather::Fair);
    daemon.wait_until_said("the event bus works again").await;
    let published = async || (bus.events("voice.created").await.len() == 2).then_some(());
    daemon.wait_for("events", published).await;
    let [began, ended] = turns(&daemon, "event bus");
    assert_eq!((began.len(), ended.len()), (1, 1), "{}", daemon.log());
    daemon.stop().await;
}

/// The limit is shortened from 90 s to 9 s, and a slow answer from 30 s to 3 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liveness_detects_a_hung_loop_but_not_a_waiting_one() {
    const LIMIT: &str = "daemon.stalled=stall:9s";
    let app = migrated().await;
    let slow = simulator_with(Options {
        latency: Duration::from_secs(3),
        ..Options::default()
    })
    .await;
    app.insert_processing(&["sim-nopreview-1"]).await;
    let mut waiting = Daemon::start(
        daemon(&app.url, &slow.url())
            .args(&["--lookup=single"])
            .env("VOICE_SYNC_FAILPOINTS", LIMIT),
    );
    while slow.counts().single < 2 {
        assert_eq!(waiting.get("/livez").await.0, 200, "{}", waiting.log());
        // Asking all the time would itself keep it from moving.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    waiting.stop().await;

    let provider = simulator().await;
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    let watchdogs = Arc::new(AtomicUsize::new(0));
    let counted = watchdogs.clone();
    // Who does not read would make the daemon wait for it.
    std::thread::spawn(move || {
        let mut datagram = [0; 4096];
        while let Ok(size) = socket.recv(&mut datagram) {
            let is_watchdog = datagram[..size].starts_with(b"WATCHDOG=1");
            counted.fetch_add(usize::from(is_watchdog), Ordering::Relaxed);
        }
    });
    let mut hanging = Daemon::start(
        daemon(&app.url, &provider.url())
            .env("NOTIFY_SOCKET", path.display().to_string())
            .env("WATCHDOG_USEC", "200000")
            .env(
                "VOICE_SYNC_FAILPOINTS",
                format!("{LIMIT};daemon.turn=stall:1h@3"),
            ),
    );
    hanging.wait_until_answers("/livez", 200).await;
    hanging.wait_until_answers("/livez", 503).await;
    let told = watchdogs.load(Ordering::Relaxed);
    assert!(told > 3, "it was alive");
    // Several times the interval in which it would have told.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later = watchdogs.load(Ordering::Relaxed);
    assert!(
        later <= told + 1,
        "the watchdog is told by a loop that hangs"
    );
    assert!(hanging.is_running(), "it is the supervisor's to end it");
}

/// Memory, files and rows of the daemon's own at one moment.
#[derive(Debug, Clone, Copy)]
struct Size {
    resident_kib: u64,
    files: usize,
    rows: i64,
}

async fn size(daemon: &Daemon, app: &App) -> Size {
    let process = format!("/proc/{}", daemon.id());
    let status = std::fs::read_to_string(format!("{process}/status")).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.split_whitespace().next());
    let mut rows = 0;
    for table in [
        "voices",
        "outbox",
        "runs",
        "provider",
        "buses",
        "cursors",
        "completions",
    ] {
        let sql = format!("SELECT count(*) FROM {}", app.own(table));
        rows += app.number(&sql).await;
    }
    Size {
        resident_kib: resident.expect("a size").parse().expect("a number"),
        files: std::fs::read_dir(format!("{process}/fd"))
            .expect("lists")
            .count(),
        rows,
    }
}

/// In each round, some voices are added and an hour passes for voice-sync's own tables; in some rounds the database,
/// Redis or the provider is unavailable. Memory, open files and own tables must not grow.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_files_and_own_tables_do_not_grow_over_time() {
    let rounds = budget(60, 1200);
    let mut rng = crate::rng();
    let (app, bus, provider) = (migrated().await, Bus::new().await, simulator().await);
    let (database, redis) = (
        Proxy::to(&app.url, 5432).await,
        Proxy::to(&bus.url, 6379).await,
    );
    let command = daemon(&database.through(&app.url), &provider.url())
        .publishing_to(&bus)
        .env("REDIS_URL", redis.through(&bus.url))
        .env("RUST_LOG", "warn");
    let mut daemon = Daemon::start(command);
    let mut sizes: Vec<Size> = Vec::new();
    for round in 0..rounds {
        let fates = ["ready", "ready", "banned", "nopreview", "pvcready1s"];
        let ids: Vec<String> = (0..20)
            .map(|n| format!("sim-{}-{round}x{n}", fates[n % fates.len()]))
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        app.insert_processing(&ids).await;
        let down = match rng.u8(..12) {
            0 => Some(&database),
            1 => Some(&redis),
            2 => {
                provider.script(|_: &Request| Some(Answer::html(503, "Service Unavailable")));
                None
            }
            _ => None,
        };
        if let Some(proxy) = down {
            proxy.set(Weather::Cut);
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(100..400))).await;
        provider.script(|_: &Request| None);
        for proxy in [&database, &redis] {
            proxy.set(Weather::Fair);
        }
        app.age_own_tables(3600).await;
        // The application deletes voices that nobody wants any more.
        app.execute(
            "DELETE FROM voices
             WHERE random() < 0.2 AND (name LIKE '%nopreview%' OR status = 'failed')",
        )
        .await;
        if (round + 1) % (rounds / 6) == 0 {
            let now = size(&daemon, &app).await;
            println!("after {} rounds: {now:?}", round + 1);
            sizes.push(now);
        }
    }
    app.execute("DELETE FROM voices WHERE name LIKE '%nopreview%'")
        .await;
    app.age_own_tables(600).await;
    daemon.wait_until(&app, "processing", 0).await;
    assert!(daemon.is_running());
    let (early, late) = (sizes[sizes.len() / 2 - 1], sizes[sizes.len() - 1]);
    assert!(
        late.resident_kib <= early.resident_kib * 6 / 5 + 4096,
        "memory: {sizes:?}"
    );
    assert!(late.files <= early.files + 8, "files: {sizes:?}");
    // A week of rounds is kept: before that, rows only gather.
    if rounds > 1000 {
        assert!(late.rows <= early.rows * 5 / 4, "rows: {sizes:?}");
    }
    daemon.stop().await;
}

/// Clients hang in every possible way, on more connections than the daemon may open files: it continues and answers
/// health checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_clients_do_not_block_the_daemon_or_its_health_checks() {
    const FILES: u64 = 256;
    for variant in [Variant::A, Variant::E32] {
        let (app, provider) = (App::new(variant).await, simulator().await);
        let command = daemon(&app.url, &provider.url()).args(&["--auto-migrate", "--events=none"]);
        let mut daemon = Daemon::start(command);
        daemon.wait_until_answers("/readyz", 200).await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id()).expect("a number"));
        let limit = rustix::process::Rlimit {
            current: Some(FILES),
            maximum: Some(FILES),
        };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("limited");
        let address = daemon.address().await;
        let whole = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(50);
        let mut held = Vec::new();
        for (round, sent) in [
            "",
            "GET / HTTP/1.1\r\nhost: loc",
            "GET / HTTP/1.1\r\ncontent-length: 999999\r\nhost: localhost\r\n\r\nxxx",
            &whole,
        ]
        .iter()
        .enumerate()
        {
            for number in 0..FILES * 2 {
                let mut stream = TcpStream::connect(address).expect("connects");
                // It may be told to go already.
                match stream.write_all(sent.as_bytes()) {
                    Ok(()) => {}
                    Err(error) => assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                        ),
                        "{number}: {error}"
                    ),
                }
                held.push(stream);
                if number % 100 == 0 {
                    assert_eq!(daemon.get("/livez").await.0, 200);
                }
            }
            app.insert_processing(&[&format!("sim-ready-{round}")])
                .await;
            let completed = i64::try_from(round + 1).expect("few");
            daemon.wait_until(&app, "completed", completed).await;
            daemon.wait_until_answers("/livez", 200).await;
            held.truncate(1000);
        }
        assert_eq!(daemon.said("WARN").len(), 0, "{}", daemon.log());
        daemon.stop().await;
    }
}

/// A website whose name resolves to the daemon's address must not read the page (DNS rebinding).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_served_only_for_allowed_hosts() {
    let (app, provider) = (migrated().await, simulator().await);
    let command =
        daemon(&app.url, &provider.url()).arg("--allowed-hosts=voices.example,other.example");
    let mut daemon = Daemon::start(command);
    daemon.wait_until_answers("/readyz", 200).await;
    let own = daemon.address().await.to_string();
    for host in ["localhost", "voices.example:9090", "OTHER.example", &own] {
        assert_eq!(daemon.get_at(host, "/").await.0, 200, "{host}");
    }
    for host in [
        "evil.example",
        "voices.example.evil.example",
        "127.0.0.1.evil.example:80",
    ] {
        let (code, body) = daemon.get_at(host, "/").await;
        assert_eq!(code, 421, "{host}");
        assert!(!body.contains("<html"), "{body}");
        assert_eq!(daemon.get_at(host, "/livez").await.0, 200);
    }
    daemon.stop().await;
}
